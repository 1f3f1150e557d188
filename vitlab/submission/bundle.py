"""The submission as one zip: everything a marker needs to read the work, to check it, and to run it again."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import vitlab
from vitlab.errors import UserError
from vitlab.places import project_root, reports_dir
from vitlab.runs import Run, dataset_folder, write_json
from vitlab.submission.archive import hash_file, write_zip
from vitlab.submission.environment import describe_environment
from vitlab.submission.images import hash_table, image_hash_table, join_samples
from vitlab.submission.manifest import write_manifest
from vitlab.submission.notebooks import strip_outputs
from vitlab.submission.opened import FAIL, Result
from vitlab.submission.rubric import Rubric, load_rubric
from vitlab.submission.safe_zip import Limits, UnsafeBundle, check_directory, check_members
from vitlab.submission.selection import Selection, select
from vitlab.submission.templates import write_readme, write_title_page
from vitlab.submission.verify import Verdict, judge_folder
from vitlab.user_files import check_writable

WEIGHTS = "model.safetensors"
TAKEN = (".json", ".csv", ".parquet", ".md", ".safetensors")  # of the files in a run's folder
PROJECT = ("_quarto.yml", "reports/*.csv", "reports/*.bib", "reports/*.csl")  # beside the notebooks, which read them
LOCK = "requirements.lock"
WEIGHTS_LIMIT_MB = 200.0


@dataclass(frozen=True)
class Made:
    """path: the zip. sha256: of the whole zip. verdict: what `vitlab verify` will say of it, but for the check of the images."""

    path: Path
    sha256: str
    verdict: Verdict


def make_bundle(
    runs: Sequence[str],
    *,
    author: str,
    title: str,
    rubric: Path | None = None,
    weights_limit_mb: float = WEIGHTS_LIMIT_MB,
    output: Path | None = None,
    notebooks: Sequence[Path] = (),
) -> Made:
    """Pack runs with the batches and notebooks that made them into a zip (default: reports/submission.zip), and check it.

    runs: folders, names or beginnings of them, or names of batches. rubric: YAML, see `vitlab.submission.rubric`.
    weights_limit_mb: weights go in, run by run, while they are no more in all; of the others the checksum does. notebooks:
    executed ones that no batch made. The report is taken from reports/_site where it is up to date, else it is rendered.

    ValueError for unknown or unfinished runs, an empty author or title, a rubric that is none; what a marker would miss (an empty
    answer, a notebook not executed as it is now) is no error but in `verdict`: the bundle is written all the same.
    """
    for name, text in (("author", author), ("title", title)):
        if not text.strip():
            raise UserError(f"--{name} is empty; it stands on the title page")
    asked = load_rubric(rubric) if rubric else None
    output = Path(output) if output else reports_dir() / "submission.zip"
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, like {output / 'submission.zip'}")
    check_writable(output.parent)
    selection = select(runs, notebooks)
    with tempfile.TemporaryDirectory(prefix="vitlab-submit-") as place:
        folder = Path(place)
        left_out = _put_runs(selection, folder, weights_limit_mb * 1e6)
        _put_notebooks(selection, folder)
        _put_report(selection, folder)
        data = _put_data(selection, folder)
        facts = _put_texts(selection, folder, author.strip(), title.strip(), asked, rubric, left_out)
        write_manifest(folder, {**facts, "data": data, **_describe(selection, folder)})
        verdict = judge_folder(folder)
        write_zip(folder, output)
        verdict = replace(verdict, results=(*_check_zip(output), *verdict.results))
    return Made(output, hash_file(output), verdict)


def _check_zip(path: Path) -> list[Result]:
    """What keeps `vitlab verify` from opening the zip: too many files, too large."""
    try:
        check_directory(path, Limits())
        with zipfile.ZipFile(path) as archive:
            check_members(archive.infolist(), Limits())
    except UnsafeBundle as error:
        return [Result("archive", path.name, FAIL, f"{error}. If it is too large, hand in fewer runs or lower --weights-limit")]
    return []


def _put_runs(selection: Selection, folder: Path, limit: float) -> list[str]:
    """Copy what the runs hold; a line for each thing that stays behind, and why."""
    from vitlab.deploy import model_card

    left_out, used = [], 0
    for place, run in selection.runs.items():
        target = folder / place
        target.mkdir(parents=True)
        for path in sorted(run.path.iterdir()):
            if path.name.startswith(".") or path.name == "notebooks":
                continue
            size = path.lstat().st_size
            if path.is_symlink() or not path.is_file() or path.suffix not in TAKEN:
                left_out.append(f"`{place}/{path.name}`: not a table, text or weights")
            elif path.suffix == ".safetensors" and used + size > limit:
                left_out.append(f"`{place}/{path.name}`: over {limit / 1e6:g} MB of weights; its checksum is in the manifest")
            else:
                used += size if path.suffix == ".safetensors" else 0
                shutil.copyfile(path, target / path.name)
        _write(target / "model_card.md", model_card(run))
    return left_out


def _put_notebooks(selection: Selection, folder: Path) -> None:
    for notebook in selection.notebooks:
        _copy(notebook.source, folder / notebook.path)
        clean = folder / notebook.clean
        if not clean.is_file():
            _write(clean, strip_outputs(notebook.clean_source or notebook.source))
    for name in selection.batches:
        place = Path("runs", "batches", name, "batch.json")
        _copy(reports_dir() / place, folder / place)
    root = project_root()
    for pattern in PROJECT:
        for path in sorted(root.glob(pattern)):
            _copy(path, folder / "project" / path.relative_to(root))


def _put_report(selection: Selection, folder: Path) -> None:
    if selection.site:
        shutil.copytree(
            selection.site, folder / "report", ignore=lambda _, names: [name for name in names if name.startswith(".")]
        )
    elif selection.batches:
        from vitlab.report import render_report

        render_report(list(selection.batches), folder / "report")


def _put_data(selection: Selection, folder: Path) -> dict[str, Any]:
    """Write the hashes of the images of each data set; what the manifest says of them."""
    runs: dict[str, list[Run]] = {}
    for run in selection.runs.values():
        runs.setdefault(run.parameters["dataset"], []).append(run)
    data = {}
    for dataset, those in runs.items():
        from vitlab.data import data_version

        table = image_hash_table(dataset, join_samples([run.read_table("splits.csv") for run in those]))
        place = f"data/{dataset_folder(dataset)}.csv"
        (folder / place).parent.mkdir(exist_ok=True)
        table.to_csv(folder / place, index=False)
        data[dataset] = {"sha256": hash_table(table), "table": place, "images": len(table), "version": data_version(dataset)}
    return data


def _put_texts(
    selection: Selection, folder: Path, author: str, title: str, asked: Rubric | None, rubric: Path | None, left_out: list[str]
) -> dict[str, Any]:
    """Title page, README, rubric and environment; the facts that the manifest repeats."""
    date = datetime.now(UTC).date().isoformat()
    newest = max(selection.runs.values(), key=lambda run: run.info["start_s"])
    environment = describe_environment(newest.info.get("commit", ""))
    (folder / "environment").mkdir()
    write_json(folder / "environment" / "environment.json", environment)
    packages = "".join(f"{name}=={version}\n" for name, version in environment["packages"].items())
    _write(folder / "environment" / "installed.txt", packages)
    if (project_root() / LOCK).is_file():
        _copy(project_root() / LOCK, folder / "environment" / LOCK)
    if rubric:
        _copy(rubric, folder / "rubric.yml")
    contents = [
        f"run `{run.name}` on {run.parameters['dataset']}: {run.title}, seed {run.draw}" for run in selection.runs.values()
    ]
    contents += [f"batch `{name}`: {content['title']}" for name, content in selection.batches.items()]
    contents.append(f"{len(selection.notebooks)} executed notebooks")
    statement = asked.statement if asked else ""
    _write(folder / "TITLE.md", write_title_page(title, author, date, statement, contents))
    seconds = sum(notebook.seconds or 0 for notebook in selection.notebooks)
    version, commit = vitlab.__version__, environment["commit"]
    _write(folder / "README.md", write_readme(title, author, date, version, commit, seconds, left_out))
    return {"title": title, "author": author, "made": date, "vitlab": version, "commit": commit, "left_out": left_out}


def _describe(selection: Selection, folder: Path) -> dict[str, Any]:
    """The runs and notebooks of the manifest; a notebook stands after those that it needs."""
    from vitlab.data import hash_splits
    from vitlab.data.synthetic import drop_synthetic

    runs = []
    for place, run in selection.runs.items():
        weights = run.path / WEIGHTS
        known = {"sha256": hash_file(weights), "bytes": weights.stat().st_size} if weights.is_file() else {}
        runs.append(
            {
                "path": place,
                "dataset": run.parameters["dataset"],
                "parameters": run.parameters,
                "splits_sha256": hash_splits(drop_synthetic(run.read_table("splits.csv"))),
                "weights": {**known, "included": (folder / place / WEIGHTS).is_file()},
            }
        )
    notebooks = [
        {
            "executed": notebook.path,
            "clean": notebook.clean,
            "parameters": notebook.parameters,
            "run": notebook.run,
            "page": notebook.find_page(folder / "report"),
            "seconds": notebook.seconds,
        }
        for notebook in selection.notebooks
    ]
    return {"runs": runs, "notebooks": notebooks}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")

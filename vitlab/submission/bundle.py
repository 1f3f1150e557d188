"""The submission as one zip: everything a marker needs to read the work, to check it, and to run it
again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from string import Template

import vitlab
from vitlab.errors import UserError
from vitlab.files import check_writable, hash_file
from vitlab.places import project_root, reports_dir
from vitlab.run_folders import dataset_folder
from vitlab.submission.archive import (
    Bundle,
    Manifest,
    Options,
    UnsafeBundle,
    check_zip,
    write_manifest,
    write_zip,
)
from vitlab.submission.check_results import image_hash_table, join_samples
from vitlab.submission.checks import FAIL, Result, clean_name
from vitlab.submission.rubric import load_rubric
from vitlab.submission.selection import Selection, find_site, select
from vitlab.submission.verify import CHECKS, Verdict, judge

HERE = Path(__file__).parent  # the texts of title page and README
RUN_FILES = (".json", ".csv", ".parquet", ".md", ".safetensors")  # files of a run that are packed
PROJECT = ("_quarto.yml", "reports/*.csv", "reports/*.bib", "reports/*.csl")  # read by notebooks
LOCK = "requirements.lock"
WEIGHTS_LIMIT_MB = 200.0


@dataclass(frozen=True)
class Made:
    """The zip, its SHA-256, and the verdict of `vitlab verify` without reading the images."""

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
    """Pack runs with the batches and notebooks that made them into a zip (default:
    reports/submission.zip), and check it.

    runs: folders, names or beginnings of them, or names of batches. rubric: YAML, see
    `vitlab.submission.rubric`. weights_limit_mb: weights are packed, run by run, up to this total;
    of the others only the checksum is. notebooks: executed ones that no batch made. The report is
    copied from reports/_site where it is up to date; otherwise it is rendered.

    UserError for unknown or unfinished runs, an empty author or title, an invalid rubric. What a
    marker would miss (an empty answer, a notebook that was changed after its execution) does not
    raise: the bundle is written, and `verdict` names it."""
    for name, text in (("author", author), ("title", title)):
        if not text.strip():
            raise UserError(f"--{name} is empty; it is printed on the title page")
    statement = load_rubric(rubric).statement if rubric else ""
    output = Path(output) if output else reports_dir() / "submission.zip"
    if output.is_dir():
        raise UserError(
            f"--output {output} is a folder; name a file, like {output / 'submission.zip'}"
        )
    check_writable(output.parent)
    selection = select(runs, notebooks)
    with tempfile.TemporaryDirectory(prefix="vitlab-submit-") as place:
        folder = Path(place)
        left_out = _put_runs(selection, folder, weights_limit_mb * 1e6)
        _put_notebooks(selection, folder)
        _put_report(selection, folder)
        _put_data(selection, folder)
        if rubric:
            _copy(rubric, folder / "rubric.yml")
        _put_texts(selection, folder, author.strip(), title.strip(), statement, left_out)
        names = [name for name in CHECKS if name != "rerun"]
        verdict = judge(Bundle(folder, Options(images=False)), names)
        write_zip(folder, output)
    try:
        check_zip(output)
    except UnsafeBundle as error:
        advice = f"{error}. If it is too large, hand in fewer runs or lower --weights-limit"
        failed = Result("archive", output.name, FAIL, advice)
        verdict = replace(verdict, results=(failed, *verdict.results))
    return Made(output, hash_file(output), verdict)


def _put_runs(selection: Selection, folder: Path, limit: float) -> list[str]:
    """Copy the files of the runs; a line for each file that is left out, and why."""
    from vitlab.deploy import model_card

    left_out, used = [], 0
    for place, run in selection.runs.items():
        target = folder / place
        target.mkdir(parents=True)
        for path in sorted(run.path.iterdir()):
            if path.name.startswith(".") or path.name == "notebooks":
                continue
            size = path.lstat().st_size if path.suffix == ".safetensors" else 0
            if path.is_symlink() or not path.is_file() or path.suffix not in RUN_FILES:
                left_out.append(f"`{place}/{path.name}`: not a table, text or weights")
            elif used + size > limit:
                left_out.append(
                    f"`{place}/{path.name}`: over {limit / 1e6:g} MB of weights; its checksum is in"
                    " model.json"
                )
            else:
                used += size
                shutil.copyfile(path, target / path.name)
        _write(target / "model_card.md", model_card(run))
    return left_out


def _put_notebooks(selection: Selection, folder: Path) -> None:
    for notebook in selection.notebooks:
        _copy(notebook.source, folder / notebook.path)
        _write(folder / clean_name(notebook.path), strip_outputs(notebook.clean or notebook.source))
    for name in selection.batches:
        place = Path("runs", "batches", name, "batch.json")
        _copy(reports_dir() / place, folder / place)
    root = project_root()
    for pattern in PROJECT:
        for path in sorted(root.glob(pattern)):
            _copy(path, folder / "project" / path.relative_to(root))


def strip_outputs(path: Path) -> str:
    """The text of a notebook without outputs, counts and injected parameters."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [
        cell
        for cell in notebook["cells"]
        if "injected-parameters" not in cell["metadata"].get("tags", [])
    ]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _put_report(selection: Selection, folder: Path) -> None:
    site = find_site(selection)
    if site:
        shutil.copytree(site, folder / "report", ignore=shutil.ignore_patterns(".*"))
    elif selection.batches:
        from vitlab.report import render_report

        render_report(list(selection.batches), folder / "report")


def _put_data(selection: Selection, folder: Path) -> None:
    """Write the hashes of the images of each data set."""
    splits: dict[str, list] = {}
    for run in selection.runs.values():
        splits.setdefault(run.parameters["dataset"], []).append(run.read_table("splits.csv"))
    for dataset, tables in splits.items():
        table = image_hash_table(dataset, join_samples(tables))
        _write(folder / "data" / f"{dataset_folder(dataset)}.csv", table.to_csv(index=False))


def _put_texts(
    selection: Selection, folder: Path, author: str, title: str, statement: str, left_out: list[str]
) -> None:
    """Environment, title page, README, and the manifest of all files."""
    _write(folder / "environment" / "installed.txt", list_packages())
    if (project_root() / LOCK).is_file():
        _copy(project_root() / LOCK, folder / "environment" / LOCK)
    newest = max(selection.runs.values(), key=lambda run: run.info["start_s"])
    facts = {
        "title": title,
        "author": author,
        "made": datetime.now(UTC).date().isoformat(),
        "vitlab": vitlab.__version__,
        "commit": newest.info.get("commit", ""),
    }
    contents = []
    for run in selection.runs.values():
        contents.append(f"run `{run.name}` on {run.dataset}: {run.title}, seed {run.draw}")
    for name, content in selection.batches.items():
        contents.append(f"batch `{name}`: {content['title']}")
    contents.append(f"{len(selection.notebooks)} executed notebooks")
    statement = statement.strip() or (HERE / "statement.md").read_text(encoding="utf-8").strip()
    title_page = _fill("title.md", facts, statement=statement, contents=_list(contents))
    _write(folder / "TITLE.md", title_page)
    minutes = sum(notebook.seconds or 0 for notebook in selection.notebooks) / 60
    took = f"The notebooks took {minutes:.1f} minutes on the author's machine." if minutes else ""
    missing = "Left out of the bundle:\n\n" + _list(left_out) if left_out else ""
    _write(folder / "README.md", _fill("readme.md", facts, rerun_time=took, left_out=missing))
    notebooks = [notebook.path for notebook in selection.notebooks]
    write_manifest(folder, Manifest(**facts, notebooks=notebooks))


def list_packages() -> str:
    """Lines `name==version` of every package installed here."""
    found = {}
    for package in distributions():
        name = (package.metadata["Name"] or "").lower().replace("_", "-")
        if name:
            found.setdefault(name, package.version)
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def _fill(name: str, facts: dict[str, str], **more: str) -> str:
    return Template((HERE / name).read_text(encoding="utf-8")).substitute(facts | more)


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")

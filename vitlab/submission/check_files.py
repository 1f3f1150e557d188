"""Checks of the files as files: is all there, is each what was packed, do the weights have their
checksum.
"""

from __future__ import annotations

from vitlab.runs import list_versions
from vitlab.submission.archive import hash_file
from vitlab.submission.environment import hash_package
from vitlab.submission.manifest import MANIFEST
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Bundle, Result, judge_each

NEEDED = ("README.md", "TITLE.md", "environment/installed.txt", "report/report.pdf")
OF_A_RUN = ("splits.csv", "predictions.parquet", "model.json", "data_card.md", "model_card.md")


def check_manifest(bundle: Bundle) -> list[Result]:
    """Every file has the SHA-256 that the manifest lists; none is missing, none is added."""
    try:
        listed = bundle.manifest.files
    except ValueError as error:
        return [Result("manifest", MANIFEST, FAIL, str(error))]
    failed = [Result("manifest", name, FAIL, problem) for name, problem in bundle.problems.items()]
    return failed or [Result("manifest", "", PASS, f"{len(listed):,} files as packed")]


def check_contents(bundle: Bundle) -> list[Result]:
    """There are runs, executed notebooks, and what a marker needs of each."""
    pages = len(list((bundle.folder / "report").glob("*.html")))
    found = {
        "a run": bundle.runs,
        "an executed notebook": bundle.notebooks,
        "a page in report/": pages,
    }
    results = [
        Result("contents", what, FAIL, "missing") for what, there in found.items() if not there
    ]
    wanted = [*NEEDED, *(f"{run}/{name}" for run in bundle.runs for name in OF_A_RUN)]
    evaluated = [
        bundle.find_run(name) for name in bundle.notebooks if name.endswith("/04_evaluate.ipynb")
    ]
    wanted += [f"{run}/metrics.json" for run in evaluated if run]
    results += [
        Result("contents", name, FAIL, "missing")
        for name in wanted
        if not (bundle.folder / name).is_file()
    ]
    seen = (
        f"{pages} pages and PDF, {len(bundle.notebooks)} notebooks, {len(bundle.runs)} runs with"
        " cards, environment"
    )
    return results or [Result("contents", "", PASS, seen)]


def check_environment(bundle: Bundle) -> list[Result]:
    """The versions that made each run are noted. It lists those that differ here , and never fails
    for them.
    """
    ours, same_code = list_versions(), bundle.manifest.code == hash_package()

    def judge(run: str) -> tuple[str, str]:
        theirs = bundle.read_json(f"{run}/run.json")["versions"]
        different = [
            f"{name} {theirs.get(name)} there, {here} here"
            for name, here in ours.items()
            if theirs.get(name) != here
        ]
        different += (
            []
            if same_code
            else [f"the code of vitlab (commit {bundle.manifest.commit or 'unknown'} there)"]
        )
        return PASS, (
            f"a rerun may give slightly other numbers: {'; '.join(different)}"
            if different
            else "same as here"
        )

    return judge_each("environment", bundle.runs, judge)


def check_weights(bundle: Bundle) -> list[Result]:
    """Weights have the checksum that model.json notes."""

    def judge(run: str) -> tuple[str, str]:
        noted = str(bundle.read_json(f"{run}/model.json")["weights_sha256"])
        path = bundle.folder / run / "model.safetensors"
        if not path.is_file():
            return SKIPPED, f"not in the bundle; SHA-256 {noted[:64]}"
        if hash_file(path) != noted:
            return FAIL, "model.safetensors does not have the checksum in model.json"
        return PASS, f"SHA-256 {noted[:12]}..."

    return judge_each("weights", bundle.runs, judge)

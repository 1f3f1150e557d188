"""The notebooks of a bundle executed again in a fresh folder, and every metric held against the bundle's.

This executes a stranger's code with the rights of whoever calls it. Nothing else in this package does.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

import vitlab
from vitlab.notebook import fit_parameters
from vitlab.runs import Run
from vitlab.submission.check_results import measure
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Bundle, Result, describe_error, judge_each
from vitlab.submission.selection import PROJECT_FILE

PREDICTIONS = "predictions.parquet"


def check_rerun(bundle: Bundle) -> list[Result]:
    """Each notebook runs to its end again, and each run's metrics are within the tolerance. Only with `rerun`."""
    if not bundle.options.rerun:
        return [Result("rerun", "", SKIPPED, "not asked for: whether the code gives these numbers was not tried (--rerun)")]
    if bundle.problems:
        return [
            Result("rerun", "", SKIPPED, f"{len(bundle.problems)} files are not those that were packed; nothing was executed")
        ]
    with tempfile.TemporaryDirectory(prefix="vitlab-rerun-", ignore_cleanup_errors=True) as place:
        project = Path(place)
        lay_out(bundle, project)
        with inside(project):
            results = execute(bundle, project)
        return results + [compare(bundle, project, run["path"]) for run in bundle.runs]


def lay_out(bundle: Bundle, project: Path) -> None:
    """The clean notebooks and what lies beside them, as a project without any run."""
    for name in bundle.manifest["files"]:
        if PROJECT_FILE.fullmatch(name):
            target = project / name.removeprefix("project/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.place(name), target)
    (project / "reports").mkdir(exist_ok=True)


@contextlib.contextmanager
def inside(project: Path) -> Iterator[None]:
    """The project as working folder, with its own reports, and for kernels this vitlab, whatever lies in the folder."""
    from vitlab.data.torchvision_sets import data_folder

    values = {
        "VITLAB_PROJECT": str(project),
        "VITLAB_REPORTS": str(project / "reports"),
        "VITLAB_DATA": str(data_folder().absolute()),  # what was downloaded here before
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(vitlab.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])),
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        with contextlib.chdir(project):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def execute(bundle: Bundle, project: Path) -> list[Result]:
    """Execute the notebooks with the parameters of the manifest, in its order; how each ended."""
    from vitlab.batch.execute import Execution
    from vitlab.batch.fingerprint import notebook_imports
    from vitlab.batch.limits import Limits
    from vitlab.batch.schedule import check_values, kernel_environment
    from vitlab.batch.summary import describe_problem
    from vitlab.kernels import WarmProcess

    def run(name: str) -> tuple[str, str]:
        book = by_name[name]
        start, clean = time.perf_counter(), project / str(book["clean"]).removeprefix("project/")
        given = dict(book["parameters"])
        if bundle.options.data and "dataset" in given and len({run["dataset"] for run in bundle.runs}) == 1:
            given["dataset"] = bundle.options.data
        parameters = fit_parameters(clean, given) if given else {}
        check_values([(name, {}, parameters)], warm)
        limits = Limits(minutes=bundle.options.minutes)
        outcome = Execution(clean, project / "reports" / name, parameters, warm, limits=limits).run()
        if outcome["status"] == "failed":
            return FAIL, " ".join(describe_problem(outcome).split())
        return PASS, f"ran to its end in {time.perf_counter() - start:.0f} s"

    by_name = {book["executed"]: book for book in bundle.notebooks}
    with kernel_environment(), WarmProcess() as warm:
        with contextlib.suppress(ValueError, OSError):  # what cannot be read is told below, notebook by notebook
            clean = {book["clean"] for book in bundle.notebooks}
            warm.preload(sorted(set().union(*(notebook_imports(bundle.place(name)) for name in clean))))
        return judge_each("rerun", by_name, run)


def compare(bundle: Bundle, project: Path, place: str) -> Result:
    """The metrics of a run executed again against those of its predictions in the bundle."""
    try:
        folder = find_again(project, place)
        if folder is None:
            return Result("rerun", place, FAIL, "no notebook made this run again; it is not of a batch, or its notebook failed")
        ours, theirs = pd.read_parquet(folder / PREDICTIONS), bundle.read_table(f"{place}/{PREDICTIONS}")
        told, worst = compare_metrics(measure(theirs), measure(ours))
        same = (theirs.set_index("sample_id")["pred"] == ours.set_index("sample_id")["pred"].reindex(theirs["sample_id"])).mean()
    except Exception as error:
        return Result("rerun", place, FAIL, describe_error(error))
    status = PASS if worst <= bundle.options.tolerance else FAIL
    told += "" if status == PASS else "; was it trained with as many threads, on a like processor? Else training ends elsewhere"
    return Result(
        "rerun", place, status, f"tolerance {bundle.options.tolerance:g}; {told}; {same:.1%} of the images get the same class"
    )


def compare_metrics(theirs: dict[str, float], ours: dict[str, float]) -> tuple[str, float]:
    """The largest difference in words, and as a number; infinite where only one of the two is defined."""
    gaps = {}
    for name, value in theirs.items():
        other = ours[name]
        both = math.isnan(value) and math.isnan(other)
        gaps[name] = 0.0 if both else math.inf if math.isnan(value) or math.isnan(other) else abs(value - other)
    worst = max(gaps, key=gaps.__getitem__)
    if gaps[worst] == 0:
        return f"all {len(gaps)} metrics are equal", 0.0
    return f"largest difference of {len(gaps)} metrics: {worst}, {theirs[worst]:.4f} there, {ours[worst]:.4f} here", gaps[worst]


def find_again(project: Path, place: str) -> Path | None:
    """The folder of the run that was made again: at its old place, or of its name under another data set's; finished."""
    runs = project / "reports" / "runs"
    for folder in [project / "reports" / place, *sorted(runs.glob(f"*/{Path(place).name}"))]:
        if (folder / "run.json").is_file() and (folder / PREDICTIONS).is_file() and not Run(folder).problem:
            return folder
    return None

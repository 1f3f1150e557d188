"""The notebooks of a bundle executed again in a new folder, and every metric compared with the
bundle's.

This executes code from the bundle with the rights of the caller. Nothing else in this package does.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

import vitlab
from vitlab.kernels import WarmProcess, environment
from vitlab.notebook import fit_parameters
from vitlab.runs import Run
from vitlab.submission.check_notebooks import clean_name, injected_parameters
from vitlab.submission.check_results import measure
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Bundle, Result, describe_error, judge_each

PREDICTIONS = "predictions.parquet"
# never a run or a cache, which would give its results without computing them
PROJECT_FILE = re.compile(
    r"project/(_quarto\.yml|notebooks/[^/]+\.ipynb|reports/[^/]+\.(csv|bib|csl))"
)


def check_rerun(bundle: Bundle) -> list[Result]:
    """Each notebook runs to its end again, and each run's metrics are within the tolerance. Only
    with `rerun`.
    """
    if not bundle.options.rerun:
        return [Result("rerun", "", SKIPPED, "not requested (--rerun)")]
    if bundle.problems:
        return [
            Result(
                "rerun",
                "",
                SKIPPED,
                f"{len(bundle.problems)} files are not as packed; nothing was executed",
            )
        ]
    with tempfile.TemporaryDirectory(prefix="vitlab-rerun-", ignore_cleanup_errors=True) as place:
        project = Path(place)
        lay_out(bundle, project)
        with inside(project):
            results = execute(bundle, project)
        return results + [compare(bundle, project, run) for run in bundle.runs]


def lay_out(bundle: Bundle, project: Path) -> None:
    """Copy the clean notebooks and the tables that they read, as a project without any run."""
    for name in filter(PROJECT_FILE.fullmatch, bundle.manifest.files):
        target = project / name.removeprefix("project/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.place(name), target)
    (project / "reports").mkdir(exist_ok=True)


@contextlib.contextmanager
def inside(project: Path) -> Iterator[None]:
    """The project as working folder, with its own reports; kernels import this vitlab, whatever is
    in the folder.
    """
    from vitlab.data.external import data_folder

    values = {
        "VITLAB_PROJECT": str(project),
        "VITLAB_REPORTS": str(project / "reports"),
        "VITLAB_DATA": str(data_folder().absolute()),  # earlier downloads
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(vitlab.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        ),
    }
    with environment(values), contextlib.chdir(project):
        yield


def execute(bundle: Bundle, project: Path) -> list[Result]:
    """Execute the clean notebooks with the parameters of the executed ones, in the order of the
    manifest.
    """
    from vitlab.batch.execute import Execution
    from vitlab.batch.fingerprint import notebook_imports
    from vitlab.batch.limits import Limits
    from vitlab.batch.schedule import check_values, kernel_environment
    from vitlab.batch.summary import describe_problem

    def run(name: str) -> tuple[str, str]:
        start, clean = time.perf_counter(), project / clean_name(name).removeprefix("project/")
        given = injected_parameters(bundle.read_cells(name))
        if bundle.options.data and "dataset" in given and len(set(bundle.datasets.values())) == 1:
            given["dataset"] = bundle.options.data
        parameters = fit_parameters(clean, given) if given else {}
        check_values([(name, {}, parameters)], warm)
        limits = Limits(minutes=bundle.options.minutes)
        outcome = Execution(
            clean, project / "reports" / name, parameters, warm, limits=limits
        ).run()
        if outcome["status"] == "failed":
            return FAIL, " ".join(describe_problem(outcome).split())
        return PASS, f"ran to its end in {time.perf_counter() - start:.0f} s"

    with kernel_environment(), WarmProcess() as warm:
        with contextlib.suppress(ValueError, OSError):  # a notebook that cannot be read fails below
            clean = {
                project / clean_name(name).removeprefix("project/") for name in bundle.notebooks
            }
            warm.preload(sorted(set().union(*map(notebook_imports, clean))))
        return judge_each("rerun", bundle.notebooks, run)


def compare(bundle: Bundle, project: Path, run: str) -> Result:
    """The metrics of a run executed again against those of its predictions in the bundle."""
    try:
        folder = find_again(project, run)
        if folder is None:
            return Result(
                "rerun",
                run,
                FAIL,
                "no notebook made this run again; it is not of a batch, or its notebook failed",
            )
        ours, theirs = (
            pd.read_parquet(folder / PREDICTIONS),
            bundle.read_table(f"{run}/{PREDICTIONS}"),
        )
        detail, worst = compare_metrics(measure(theirs), measure(ours))
        same = (
            theirs.set_index("sample_id")["pred"]
            == ours.set_index("sample_id")["pred"].reindex(theirs["sample_id"])
        ).mean()
    except Exception as error:
        return Result("rerun", run, FAIL, describe_error(error))
    detail = (
        f"tolerance {bundle.options.tolerance:g}; {detail}; {same:.1%} of the images get the same"
        " class"
    )
    if worst <= bundle.options.tolerance:
        return Result("rerun", run, PASS, detail)
    return Result(
        "rerun",
        run,
        FAIL,
        f"{detail}; training also depends on the processor and the number of threads",
    )


def compare_metrics(theirs: dict[str, float], ours: dict[str, float]) -> tuple[str, float]:
    """The largest difference in words, and as a number; infinite where only one of the two is
    defined.
    """
    gaps = {}
    for name, value in theirs.items():
        other = ours[name]
        both = math.isnan(value) and math.isnan(other)
        gaps[name] = (
            0.0
            if both
            else math.inf
            if math.isnan(value) or math.isnan(other)
            else abs(value - other)
        )
    worst = max(gaps, key=gaps.__getitem__)
    if gaps[worst] == 0:
        return f"all {len(gaps)} metrics are equal", 0.0
    return (
        (
            f"largest difference of {len(gaps)} metrics: {worst}, {theirs[worst]:.4f} there,"
            f" {ours[worst]:.4f} here"
        ),
        gaps[worst],
    )


def find_again(project: Path, place: str) -> Path | None:
    """The folder of the run that was made again and finished: at its old place, or of its name
    under another data set's.
    """
    runs = project / "reports" / "runs"
    for folder in [project / "reports" / place, *sorted(runs.glob(f"*/{Path(place).name}"))]:
        if (
            (folder / "run.json").is_file()
            and (folder / PREDICTIONS).is_file()
            and not Run(folder).problem
        ):
            return folder
    return None

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
from vitlab.kernels import WarmProcess
from vitlab.notebook import fit_parameters
from vitlab.places import environment
from vitlab.runs import Run
from vitlab.submission.archive import Bundle
from vitlab.submission.check_results import measure
from vitlab.submission.checks import (
    FAIL,
    PASS,
    SKIPPED,
    Result,
    clean_name,
    injected_parameters,
    judge_each,
)

PREDICTIONS = "predictions.parquet"
# never a run or a cache, which would give its results without computing them
PROJECT_FILE = re.compile(
    r"project/(_quarto\.yml|notebooks/[^/]+\.ipynb|reports/[^/]+\.(csv|bib|csl))"
)


def check_rerun(bundle: Bundle) -> list[Result]:
    """Each notebook runs again, and each run's metrics are within the tolerance."""
    if not bundle.options.rerun:
        return [Result("rerun", "", SKIPPED, "not requested (--rerun)")]
    if bundle.problems:
        text = f"{len(bundle.problems)} files are not as packed; nothing was executed"
        return [Result("rerun", "", SKIPPED, text)]
    with tempfile.TemporaryDirectory(prefix="vitlab-rerun-", ignore_cleanup_errors=True) as place:
        project = Path(place)
        lay_out(bundle, project)
        with inside(project):
            results = execute(bundle, project)
        return results + judge_each("rerun", bundle.runs, lambda run: compare(bundle, project, run))


def lay_out(bundle: Bundle, project: Path) -> None:
    """Copy the clean notebooks and the tables that they read, as a project without any run."""
    for name in filter(PROJECT_FILE.fullmatch, bundle.manifest.files):
        target = project / name.removeprefix("project/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.place(name), target)
    (project / "reports").mkdir(exist_ok=True)


@contextlib.contextmanager
def inside(project: Path) -> Iterator[None]:
    """The project as working folder, with its own reports; kernels import this vitlab."""
    from vitlab.data.external import data_folder

    paths = [str(Path(vitlab.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    values = {
        "VITLAB_PROJECT": str(project),
        "VITLAB_REPORTS": str(project / "reports"),
        "VITLAB_DATA": str(data_folder().absolute()),  # earlier downloads
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    with environment(values), contextlib.chdir(project):
        yield


def execute(bundle: Bundle, project: Path) -> list[Result]:
    """Execute the clean notebooks with the parameters of the executed ones, in order."""
    from vitlab.batch.display import describe_problem
    from vitlab.batch.execute import Execution
    from vitlab.batch.fingerprint import notebook_imports
    from vitlab.batch.run import check_values, kernel_environment
    from vitlab.batch.specs import Limits

    clean = {name: project / clean_name(name).removeprefix("project/") for name in bundle.notebooks}
    single = len(set(bundle.datasets.values())) == 1

    def run(name: str) -> tuple[str, str]:
        start = time.perf_counter()
        given = injected_parameters(bundle.read_cells(name))
        if bundle.options.data and "dataset" in given and single:
            given["dataset"] = bundle.options.data
        parameters = fit_parameters(clean[name], given) if given else {}
        check_values(name, {}, parameters, warm)
        limits, copy = Limits(minutes=bundle.options.minutes), project / "reports" / name
        outcome = Execution(clean[name], copy, parameters, warm, limits=limits).run()
        if outcome["status"] == "failed":
            return FAIL, " ".join(describe_problem(outcome).split())
        return PASS, f"ran to its end in {time.perf_counter() - start:.0f} s"

    with kernel_environment(), WarmProcess() as warm:
        with contextlib.suppress(ValueError, OSError):  # a notebook that cannot be read fails below
            warm.preload(sorted(set().union(*map(notebook_imports, clean.values()))))
        return judge_each("rerun", bundle.notebooks, run)


def compare(bundle: Bundle, project: Path, run: str) -> tuple[str, str]:
    """The metrics of a run executed again against those of its predictions in the bundle."""
    folder = find_again(project, run)
    if folder is None:
        return FAIL, "no notebook made this run again; it is not of a batch, or its notebook failed"
    ours = pd.read_parquet(folder / PREDICTIONS)
    theirs = bundle.read_table(f"{run}/{PREDICTIONS}")
    text, worst = compare_metrics(measure(theirs), measure(ours))
    classes = ours.set_index("sample_id")["pred"].reindex(theirs["sample_id"])
    same = (theirs["pred"].to_numpy() == classes.to_numpy()).mean()
    tolerance = bundle.options.tolerance
    detail = f"tolerance {tolerance:g}; {text}; {same:.1%} of the images get the same class"
    if worst <= tolerance:
        return PASS, detail
    return FAIL, f"{detail}; training also depends on the processor and the number of threads"


def compare_metrics(theirs: dict[str, float], ours: dict[str, float]) -> tuple[str, float]:
    """The largest difference in words and as a number; infinite if only one is defined."""
    table = pd.DataFrame({"theirs": theirs, "ours": ours})
    gaps = (table["theirs"] - table["ours"]).abs()
    gaps[table.isna().any(axis=1)] = math.inf
    gaps[table.isna().all(axis=1)] = 0.0
    worst = gaps.idxmax()
    if gaps[worst] == 0:
        return f"all {len(gaps)} metrics are equal", 0.0
    values = f"{theirs[worst]:.4f} there, {ours[worst]:.4f} here"
    return f"largest difference of {len(gaps)} metrics: {worst}, {values}", float(gaps[worst])


def find_again(project: Path, place: str) -> Path | None:
    """The folder of the finished run that was made again, also under another data set's."""
    reports = project / "reports"
    for folder in [reports / place, *sorted(reports.glob(f"runs/*/{Path(place).name}"))]:
        whole = (folder / "run.json").is_file() and (folder / PREDICTIONS).is_file()
        if whole and not Run(folder).problem:
            return folder
    return None

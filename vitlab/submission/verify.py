"""The checks of a bundle in their order: against itself and the data, and with `rerun` against what
its code gives here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vitlab.errors import UserError
from vitlab.files import hash_file
from vitlab.submission.archive import UnsafeBundle, open_bundle
from vitlab.submission.check_results import check_data, check_metrics, check_predicted, check_splits
from vitlab.submission.checks import (
    check_answers,
    check_contents,
    check_environment,
    check_executed,
    check_manifest,
    check_parameters,
    check_rubric,
    check_sources,
    check_weights,
    make_points_table,
)
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Bundle, Options, Result, describe_error
from vitlab.submission.rerun import check_rerun
from vitlab.submission.rubric import load_rubric
from vitlab.submission.verdict import Verdict

# in the order in which they are made and shown
CHECKS: dict[str, Callable[[Bundle], list[Result]]] = {
    "manifest": check_manifest,
    "contents": check_contents,
    "parameters": check_parameters,
    "executed": check_executed,
    "sources": check_sources,
    "splits": check_splits,
    "data": check_data,
    "predictions": check_predicted,
    "metrics": check_metrics,
    "weights": check_weights,
    "environment": check_environment,
    "answers": check_answers,
    "rubric": check_rubric,
    "rerun": check_rerun,
}


def verify_bundle(
    path: Path | str,
    *,
    rerun: bool = False,
    tolerance: float = 0.02,
    rubric: Path | None = None,
    data: str = "",
    minutes: float = 120,
) -> Verdict:
    """Check a bundle (a zip, or the folder that it was unpacked to). Nothing of it is executed
    unless `rerun` is set.

    tolerance: how far each metric of the rerun may be from the bundle's. rubric: the marker's own
    file, instead of the one in the bundle. data: name of the data set on this machine
    (folder:PATH), where the bundle names a place on the author's. minutes: how long one notebook
    may take when it is executed again.

    MissingFileError for a path or rubric that is not there, UserError for a negative tolerance or
    an invalid rubric. Problems of the bundle are in the verdict and never raise."""
    if not 0 <= tolerance < float("inf"):
        raise UserError(f"--tolerance {tolerance} is not a distance; write 0 or more, like 0.02")
    if rubric is not None:
        load_rubric(rubric)  # so that a mistake of the marker does not count as one of the author
    if data:
        from vitlab.data import check_name

        prefix, _, place = data.partition(":")
        if prefix == "folder" and place:
            data = f"folder:{Path(place).expanduser().absolute()}"
        check_name(data)
    options = Options(rerun=rerun, tolerance=tolerance, rubric=rubric, data=data, minutes=minutes)
    path = Path(path).absolute()  # a rerun works in another folder
    try:
        with open_bundle(path) as folder:
            seen = f"SHA-256 {hash_file(path)}" if path.is_file() else "a folder, not the zip"
            return judge(Bundle(folder, options), opened=Result("archive", path.name, PASS, seen))
    except UnsafeBundle as error:
        rest = [Result(name, "", SKIPPED, "the bundle was not opened") for name in CHECKS]
        return Verdict((Result("archive", path.name, FAIL, str(error)), *rest))


def judge_folder(folder: Path) -> Verdict:
    """Check the files of a bundle before they are packed, as its author: without the images and a
    rerun.
    """
    names = [name for name in CHECKS if name != "rerun"]
    return judge(Bundle(folder, Options(images=False)), names)


def judge(
    bundle: Bundle, names: Sequence[str] = tuple(CHECKS), opened: Result | None = None
) -> Verdict:
    """The checks of these names (default: all) in order; all are skipped where the manifest cannot
    be read.
    """
    results, seconds = [opened] if opened else [], {}
    try:
        manifest = bundle.manifest
    except ValueError:
        results += check_manifest(bundle)
        for name in names:
            if name != "manifest":
                results.append(Result(name, "", SKIPPED, "the manifest could not be read"))
        return Verdict(tuple(results))
    for name in names:
        start = time.perf_counter()
        try:
            results += CHECKS[name](bundle)
        except Exception as error:  # a damaged file fails its check; the other checks go on
            results.append(Result(name, "", FAIL, describe_error(error)))
        seconds[name] = time.perf_counter() - start
    points = None
    with contextlib.suppress(Exception):  # check_rubric has named the problem
        points = make_points_table(bundle)
    return Verdict(tuple(results), points, manifest.title, manifest.author, seconds)

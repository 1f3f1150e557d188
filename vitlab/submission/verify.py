"""A bundle held against itself, check by check; with `rerun`, against what its code gives here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from vitlab.errors import UserError
from vitlab.submission.check_answers import check_answers, check_rubric, make_points_table
from vitlab.submission.check_files import check_archive, check_contents, check_environment, check_manifest, check_weights
from vitlab.submission.check_notebooks import check_executed, check_parameters, check_shown, check_sources
from vitlab.submission.check_results import check_data, check_metrics, check_predicted, check_splits
from vitlab.submission.opened import FAIL, SKIPPED, Bundle, Options, Result, describe_error
from vitlab.submission.rerun import check_rerun
from vitlab.submission.safe_zip import Opened, UnsafeBundle, open_bundle

CHECKS: dict[str, Callable[[Bundle], list[Result]]] = {  # in the order in which they are made and shown
    "archive": check_archive,
    "manifest": check_manifest,
    "contents": check_contents,
    "parameters": check_parameters,
    "executed": check_executed,
    "sources": check_sources,
    "splits": check_splits,
    "data": check_data,
    "predictions": check_predicted,
    "metrics": check_metrics,
    "shown": check_shown,
    "weights": check_weights,
    "environment": check_environment,
    "answers": check_answers,
    "rubric": check_rubric,
    "rerun": check_rerun,
}


@dataclass(frozen=True)
class Verdict:
    """results: in order. points: of the rubric, None without one. title, author: by the manifest. seconds: of each check."""

    results: tuple[Result, ...]
    points: pd.DataFrame | None = None
    title: str = ""
    author: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.status == FAIL]


def verify_bundle(
    path: Path | str,
    *,
    rerun: bool = False,
    tolerance: float = 0.02,
    rubric: Path | None = None,
    data: str = "",
    minutes: float = 120,
) -> Verdict:
    """Check a bundle (a zip, or the folder that it was unpacked to). Nothing of it is executed unless `rerun` is set.

    tolerance: how far each metric of the rerun may be from the bundle's. rubric: the marker's own file, instead of the one in the
    bundle. data: name of the data set on this machine (folder:PATH), where the bundle names a place on the author's. minutes: how
    long one notebook may take when it is executed again.

    FileNotFoundError for a path or rubric that is not there, ValueError for a negative tolerance or a rubric that is none. What
    is wrong with the bundle is in the verdict, never an exception.
    """
    from vitlab.submission.rubric import load_rubric

    if not 0 <= tolerance < float("inf"):
        raise UserError(f"--tolerance {tolerance} is no distance; write 0 or more, like 0.02")
    if rubric is not None:
        load_rubric(rubric)  # a mistake of the marker's is none of the author's
    if data:
        from vitlab.data import check_name

        prefix, _, place = data.partition(":")
        data = f"folder:{Path(place).expanduser().absolute()}" if prefix == "folder" and place else data
        check_name(data)
    options = Options(rerun=rerun, tolerance=tolerance, rubric=rubric, data=data, minutes=minutes)
    path = Path(path).absolute()  # a rerun works in another folder
    try:
        with open_bundle(path) as opened:
            return judge(Bundle(opened, options))
    except UnsafeBundle as error:
        rest = [Result(name, "", SKIPPED, "the bundle was not opened") for name in CHECKS if name != "archive"]
        return Verdict((Result("archive", Path(path).name, FAIL, str(error)), *rest))


def judge_folder(folder: Path) -> Verdict:
    """Check the files of a bundle before they are packed, as its author: without the zip, the images and a rerun."""
    return judge(Bundle(Opened(folder), Options(images=False)), [name for name in CHECKS if name not in ("archive", "rerun")])


def judge(bundle: Bundle, names: Sequence[str] = tuple(CHECKS)) -> Verdict:
    """The checks of these names (default: all) in order; without a manifest that can be read, no more than that is said."""
    results, seconds, readable = [], {}, True
    for name in names:
        start = time.perf_counter()
        if not readable:
            results.append(Result(name, "", SKIPPED, "there is no manifest to go by"))
            continue
        try:
            results += CHECKS[name](bundle)
        except Exception as error:  # a file that was made to break a reader fails its check; the others are made
            results.append(Result(name, "", FAIL, describe_error(error)))
        seconds[name] = time.perf_counter() - start
        if name == "manifest":
            readable = "manifest" in bundle.__dict__
    if not readable or "manifest" not in bundle.__dict__:
        return Verdict(tuple(results), seconds=seconds)
    points = None
    with contextlib.suppress(Exception):  # check_rubric has said what is wrong
        points = make_points_table(bundle)
    return Verdict(tuple(results), points, bundle.manifest["title"], bundle.manifest["author"], seconds)

"""Many files, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vitlab.app.predictors import AT_ONCE, Predictor
from vitlab.app.uploads import Limits, UploadError, read_upload

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is computed by spreadsheets


def answer_files(predictor: Predictor, paths: Sequence[str | Path], limits: Limits) -> pd.DataFrame:
    """A row for each file, in order: file, answer, sure, set, prob_<class> for each class, problem
    (why there is no answer).

    Raises UploadError for no files at all and for more than the limit.
    """
    if not paths:
        raise UploadError("There are no files yet. Choose some images first.")
    if len(paths) > limits.files:
        raise UploadError(
            f"These are {len(paths)} files, more than the {limits.files} that are accepted at a"
            " time. Send fewer."
        )
    rows = []
    for start in range(0, len(paths), AT_ONCE):
        with predictor.places:
            rows += _answer_some(predictor, paths[start : start + AT_ONCE], limits)
    return pd.DataFrame(rows, columns=name_columns(predictor))


def name_columns(predictor: Predictor) -> list[str]:
    """The columns of the table, in order."""
    return [
        "file",
        "answer",
        "sure",
        "set",
        *(f"prob_{name}" for name in predictor.classes),
        "problem",
    ]


def _answer_some(predictor: Predictor, paths: Sequence[str | Path], limits: Limits) -> list[dict]:
    rows, images = [], []
    for path in paths:
        row = {"file": _safe(Path(path).name), "answer": "", "sure": "", "set": "", "problem": ""}
        try:
            images.append((row, read_upload(path, limits)))
        except UploadError as error:
            row["problem"] = str(error)
        rows.append(row)
    for (row, _), verdict in zip(
        images, predictor.answer([image for _, image in images]), strict=True
    ):
        probabilities = dict(zip(verdict.classes, verdict.probabilities, strict=True))
        row |= {
            "answer": verdict.classes[0],
            "sure": "yes" if verdict.sure else "no",
            "set": ", ".join(verdict.members),
        }
        row |= {f"prob_{name}": round(value, 4) for name, value in probabilities.items()}
    return rows


def _safe(name: str) -> str:
    return f"'{name}" if name.startswith(FORMULA) else name

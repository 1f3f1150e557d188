"""Temperature and conformal limits of a model, fitted on its own validation outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from vitlab.compress.session import description_path, read_description
from vitlab.errors import UserError
from vitlab.evaluation.calibration import calibrate, find_temperature
from vitlab.evaluation.conformal import find_limits
from vitlab.evaluation.scores import read_scores
from vitlab.files import write_json
from vitlab.schema import check_predictions

ALPHA = 0.1  # of the sets, which miss the true class at most this often


def note_calibration(path: Path | str, predictions: pd.DataFrame) -> dict:
    """Fit temperature and conformal limits of an ONNX file on its own predictions, and note them in
    the JSON beside it. Returns what was noted.

    predictions: a predictions table of this very file, as of `predict_variants`; its validation
    rows count. UserError where the classes are others."""
    description = read_description(path)
    if tuple(description["classes"]) != check_predictions(predictions):
        raise UserError(
            f"{path} distinguishes {', '.join(description['classes'])}; the predictions have other"
            " classes"
        )
    noted = find_calibration(predictions)
    write_json(description_path(path), {**description, "calibration": noted})
    return noted


def find_calibration(predictions: pd.DataFrame, alpha: float = ALPHA) -> dict:
    """Temperature and conformal limits of the model that made these predictions, from disjoint
    halves of its validation rows.

    The halves have equally many images of each class (of an odd number the limits get one more).
    The temperature is fitted on one half and the limits on the other, so that these images are
    like new images to the limits: split conformal prediction covers the true class with
    probability 1 - alpha at least (Sadinle et al., arXiv 1609.00451), for each class. Keys
    temperature, alpha, limits: for each class the largest 1 - probability (after the temperature)
    that is let into a set, None where the class is in every set because its half has too few images
    (fewer than 1 / alpha - 1)."""
    classes = check_predictions(predictions)
    val = predictions[predictions["split"] == "val"].reset_index(drop=True)
    if val.empty:
        raise UserError(
            "the predictions have no validation rows to fit a temperature and limits on; predict"
            " the split val"
        )
    first = _draw_half(val["label"])
    temperature, second = 1.0, val[~first]
    if first.any():
        scaled = calibrate(val.assign(split=np.where(first, "val", "test")), "temperature")
        temperature = find_temperature(read_scores(val[first], "val"))
        second = scaled[~first].assign(split="val")
    limits = find_limits(read_scores(second, "val"), alpha)
    noted = {}
    for name, limit in zip(classes, limits, strict=True):
        noted[name] = float(limit) if np.isfinite(limit) else None
    return {"temperature": temperature, "alpha": alpha, "limits": noted}


def _draw_half(labels: pd.Series) -> np.ndarray:
    """Whether (N,) each image is in the first half: of each class half of the images, rounded down,
    drawn at random.
    """
    labels = labels.astype(str)
    order = pd.Series(np.random.default_rng(0).permutation(len(labels)))
    rank = order.groupby(labels.to_numpy()).rank()
    count = labels.map(labels.value_counts())
    return (rank <= count // 2).to_numpy()

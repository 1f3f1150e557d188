"""Temperature and conformal limits of a model, fitted on its own validation outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from vitlab.compress.sidecar import read_sidecar, sidecar_path
from vitlab.errors import UserError
from vitlab.evaluation.calibration import calibrate, find_temperature
from vitlab.evaluation.conformal import find_limits
from vitlab.evaluation.scores import read_scores
from vitlab.files import write_json
from vitlab.schema import check_predictions


def note_calibration(path: Path | str, predictions: pd.DataFrame, alpha: float = 0.1) -> dict:
    """Fit temperature and conformal limits of an ONNX file on its own predictions, and note them in
    the JSON beside it.

    predictions: a predictions table of this very file, as of `predict_variants`; its
    validation rows count. Returns what was noted. ValueError where the classes are others."""
    description = read_sidecar(path)
    if tuple(description["classes"]) != check_predictions(predictions):
        raise UserError(
            f"{path} distinguishes {', '.join(description['classes'])}; the predictions have other"
            " classes"
        )
    noted = find_calibration(predictions, alpha)
    write_json(sidecar_path(path), {**description, "calibration": noted})
    return noted


def find_calibration(predictions: pd.DataFrame, alpha: float = 0.1, seed: int = 0) -> dict:
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
    for_temperature = _draw_half(val["label"], seed)
    temperature, rest = 1.0, val[~for_temperature]
    if for_temperature.any():
        calibrated = calibrate(
            val.assign(split=np.where(for_temperature, "val", "test")), "temperature"
        )
        temperature = find_temperature(read_scores(val[for_temperature], "val"))
        rest = calibrated[~for_temperature].assign(split="val")
    limits = find_limits(read_scores(rest, "val"), alpha)
    noted = {
        name: float(limit) if np.isfinite(limit) else None
        for name, limit in zip(classes, limits, strict=True)
    }
    return {"temperature": temperature, "alpha": alpha, "limits": noted}


def _draw_half(labels: pd.Series, seed: int) -> np.ndarray:
    """Whether (N,) each image is in the first half: of each class half of the images, rounded down,
    drawn at random.
    """
    order = pd.Series(np.random.default_rng(seed).permutation(len(labels)))
    rank = order.groupby(labels.astype(str).to_numpy()).rank()
    count = labels.astype(str).map(labels.astype(str).value_counts())
    return (rank <= count // 2).to_numpy()

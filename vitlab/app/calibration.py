"""Temperature and conformal limits from a run's validation predictions. Not part of a deployed app, which only reads them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitlab.app.verdict import Calibration
from vitlab.evaluation import calibrate
from vitlab.evaluation.conformal import find_limits
from vitlab.schema import check_predictions


def fit_calibration(predictions: pd.DataFrame, alpha: float = 0.1) -> Calibration:
    """Fit on the validation rows: first the temperature, then a limit for each class, at its probabilities (see conformal_sets).

    A class of fewer than 1 / alpha - 1 validation images has the limit 0: it is in every set.
    """
    calibrated = calibrate(predictions, "temperature")
    logits = [f"logit_{name}" for name in check_predictions(predictions)]
    size = np.linalg.norm(calibrated[logits])
    temperature = float(np.linalg.norm(predictions[logits]) / size) if size else 1.0
    scores, _ = find_limits(calibrated, alpha, by_class=True)
    return Calibration(temperature, tuple(float(limit) for limit in np.maximum(1 - scores, 0.0)), alpha)

"""Means over a few images: t intervals and exact tests. The bootstrap is too narrow below about 30
images.

Each takes values (N, M), one row an image; NaN values are left out, column by column. The bootstrap
of 12 values gives 95 % intervals that hold the mean about 90 % of the time; Student's t holds it 95
% of the time for normal values."""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy import stats

# random sign flips where there are more than so many different ones, that is from 14 images on
FLIPS = 9999


def mean_interval(
    values: np.ndarray, confidence: float = 0.95, limits=(-np.inf, np.inf)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high end of its t interval, and number of values, for each column of (N, M).

    NaN ends for fewer than two values; NaN everywhere for none. limits: least and greatest possible
    mean, such as (-1, 1) for correlations, where the ends stop. Source: Student, 1908."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, values, 0).sum(axis=0) / np.where(count > 0, count, np.nan)
        spread = np.where(there, values - mean, 0) ** 2
        error = np.sqrt(spread.sum(axis=0) / np.where(count > 1, count - 1, np.nan) / count)
        half = stats.t.ppf((1 + confidence) / 2, np.maximum(count - 1, 1)) * error
    return mean, np.maximum(mean - half, limits[0]), np.minimum(mean + half, limits[1]), count


def sign_flip_p(values: np.ndarray, alternative: str = "two-sided", seed: int = 0) -> np.ndarray:
    """P-value of each column of paired differences (N, ...): how often random signs give a sum as
    extreme.

    Exact for up to 13 images, else of 9999 random draws. Valid for any number of images where,
    without an effect, each difference is as likely as its negative, as it is when two maps are
    exchangeable; normality is not needed. alternative: "greater", "less" or "two-sided". n images
    reach no p below 0.5^n, one-sided. NaN for a column without values. Source: Fisher, The Design
    of Experiments, 1935, section 21. As scipy's permutation_test, but all columns in one product.
    """
    flat = np.nan_to_num(values).reshape(len(values), -1)
    if 2 ** len(flat) <= FLIPS:
        signs = np.array(list(product((1.0, -1.0), repeat=len(flat))))
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), (FLIPS + 1, len(flat)))
        signs[0] = 1  # the signs as they are
    sums = {"greater": signs @ flat, "less": -signs @ flat, "two-sided": np.abs(signs @ flat)}[
        alternative
    ]
    p = (sums >= sums[0] - 1e-9 * np.abs(flat).sum(axis=0)).mean(axis=0)  # rounding decides nothing
    return np.where(np.isnan(values).all(axis=0), np.nan, p.reshape(values.shape[1:]))


def correct_holm(p: np.ndarray) -> np.ndarray:
    """P-values of any shape after Holm's correction (1979) for their number; NaN is left out, and
    stays.

    As statsmodels' multipletests(p, method="holm"), which collects garbage at each call: 0.8 s with
    torch loaded."""
    corrected, tested = np.full(np.shape(p), np.nan), ~np.isnan(p)
    order = np.argsort(p[tested], kind="stable")
    steps = np.maximum.accumulate(p[tested][order] * np.arange(len(order), 0, -1))
    corrected[tested] = np.minimum(steps, 1)[order.argsort()]
    return corrected

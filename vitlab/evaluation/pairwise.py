"""Every pair of models over the seeds they share, with intervals, effect sizes and p-values corrected for their number.

Seeds of one data set share images, in training as in testing: they are not independent samples, and the plain tests find
differences that are none (Dietterich, 1998; Bouckaert and Frank, 2004). `corrected_t` widens the variance for it.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from vitlab.errors import UserError
from vitlab.evaluation.paired import say_verdict
from vitlab.evaluation.ranking import read_seeds, say_few_seeds, say_smallest_p


def pairwise_table(
    runs_metrics: pd.DataFrame, metric: str, test_share: float | None = None, confidence: float = 0.95
) -> pd.DataFrame:
    """All pairs of models on one metric, each on the seeds that both have: a row for each pair.

    runs_metrics: a row for each run and metric, with columns model, seed, metric, value; more is better.
    Columns model_a, model_b, metric, seeds, difference, low, high, effect_size, p, p_holm, test, verdict, note.
    difference: mean over the seeds of b - a. effect_size: matched-pairs rank-biserial correlation (Kerby, 2014), 1 when b wins on
    every seed, -1 when a does. p_holm: p corrected for the number of pairs (Holm, 1979); the verdict goes by it.

    test_share: share of the images that each seed tests, such as 0.2. With it, p and low, high are those of the corrected
    resampled t-test (`corrected_t`), made for seeds that draw their splits from the same images. Without it, p is that of
    Wilcoxon's signed-rank test (exact for few seeds) and low, high the plain t interval; both count the seeds as independent.
    Intervals are those of one pair, not widened for the number of pairs: the verdict may be stricter than they look.
    note: too few seeds, or the smallest p that they can reach if that is not below 1 - confidence.
    """
    from statsmodels.stats.multitest import multipletests

    wide = read_seeds(runs_metrics, metric)
    pairs = {
        (one, other): (wide[other] - wide[one]).dropna().round(12).to_numpy() for one, other in combinations(wide.columns, 2)
    }
    tests = sum(len(gaps) > 1 for gaps in pairs.values())
    rows = []
    for (one, other), gaps in pairs.items():
        seeds = len(gaps)
        mean, low, high, p = corrected_t(gaps, test_share or 0.0, confidence)
        note = say_few_seeds(seeds) if seeds < 2 else ""
        if test_share is None and seeds >= 2:
            p = float(stats.wilcoxon(gaps).pvalue) if gaps.any() else 1.0
            note = "".join(say_smallest_p(seeds, min(1.0, 2.0 ** (1 - seeds) * tests), 1 - confidence))
        elif seeds >= 2 and np.isnan(p):
            note = "the same difference on every seed: no spread to judge it by"
        row = {"model_a": one, "model_b": other, "metric": metric, "seeds": seeds, "difference": mean, "low": low, "high": high}
        rows.append({**row, "effect_size": rank_biserial(gaps) if seeds > 1 else np.nan, "p": p, "note": note})
    columns = ["model_a", "model_b", "metric", "seeds", "difference", "low", "high", "effect_size", "p", "note"]
    table = pd.DataFrame(rows, columns=columns)
    tested = table["p"].notna()
    table["p_holm"] = np.nan
    if tested.any():
        table.loc[tested, "p_holm"] = multipletests(table.loc[tested, "p"], method="holm")[1]
    table["test"] = "Wilcoxon" if test_share is None else "corrected t"
    table["verdict"] = [
        say_verdict((row.model_a, row.model_b), row.difference, row.p_holm, 1 - confidence) for row in table.itertuples()
    ]
    return table[[*(name for name in table.columns if name != "note"), "note"]]


def corrected_t(differences: np.ndarray, test_share: float, confidence: float = 0.95) -> tuple[float, float, float, float]:
    """Mean, low, high and p of the corrected resampled t-test (Nadeau and Bengio, Machine Learning 52, 2003).

    differences: one for each of k seeds whose splits were drawn from the same images. The variance of their mean is taken as
    (1 / k + test / train) s^2 instead of s^2 / k; with test_share 0 this is the ordinary paired t-test. NaN for one seed.
    """
    if not 0 <= test_share < 1:
        raise UserError(f"test_share is the share of the images that a seed tests, such as 0.2; got {test_share}")
    seeds = len(differences)
    if seeds < 2:
        return (float(np.mean(differences)) if seeds else np.nan, np.nan, np.nan, np.nan)
    mean = float(np.mean(differences))
    spread = np.std(differences, ddof=1) if np.ptp(differences) > 0 else 0.0
    error = spread * np.sqrt(1 / seeds + test_share / (1 - test_share))
    half = stats.t.ppf((1 + confidence) / 2, seeds - 1) * error
    if error > 0:
        p = float(2 * stats.t.sf(abs(mean) / error, seeds - 1))
    else:  # the same difference on every seed: no spread to judge it by, unless it is none
        p, half = (1.0, 0.0) if mean == 0 else (np.nan, np.nan)
    return mean, mean - half, mean + half, p


def rank_biserial(differences: np.ndarray) -> float:
    """(sum of the ranks of the positive differences - of the negative ones) / sum of both; NaN when all are 0."""
    moved = differences[differences != 0]
    if not len(moved):
        return np.nan
    ranks = stats.rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum())


def describe_pairs(table: pd.DataFrame, digits: int = 3) -> str:
    """The verdicts of a `pairwise_table` in sentences, each with the interval that the difference may lie in."""
    texts = []
    for row in table.itertuples():
        span = f"[{row.low:+.{digits}f}, {row.high:+.{digits}f}]"
        if row.verdict == "no difference shown":
            told = f"it may lie anywhere in {span}"
            if row.low * row.high > 0:  # of one sign: the correction for many pairs, or a test of ranks, is what does not show it
                tested = table["p"].notna().sum()
                told = f"{span} by itself" + (f", but not after correction for {tested} pairs" if row.p_holm > row.p else "")
            texts.append(f"{row.model_b} against {row.model_a}: no difference shown; {told}.")
        elif row.verdict == "not tested":
            texts.append(f"{row.model_b} against {row.model_a}: not tested ({row.note}).")
        else:
            texts.append(f"{row.model_b} against {row.model_a}: {row.difference:+.{digits}f} {span}, {row.verdict}.")
    return " ".join(texts) or "There is one model, and nothing to compare it with."

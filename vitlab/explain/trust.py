"""Scores of methods compared with those of control maps, which do not depend on the model, and what
can be concluded. A method that is not better than the controls has not shown that it explains
anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from vitlab.errors import UserError
from vitlab.evaluation.inference import correct_holm, mean_interval
from vitlab.explain.faithfulness import METRICS
from vitlab.explain.removal import SCORE_COLUMNS, CellScorer, check_maps
from vitlab.explain.similarity import CHANGES, LEVEL, SAME_CLASS, TOO_FEW, UNCHANGED, sign_test_p
from vitlab.registry import unknown
from vitlab.schema import AttributionMap, ModelBundle
from vitlab.seeds import derive_seed

CONTROLS = ("random", "centre", "edges")
# standard deviation of the blur of the edges, as a share of the longer side: half a patch of a
# usual ViT
SMOOTH = 1 / 28
WIDTH = 0.25  # standard deviation of the centred Gaussian, as a share of each side
BETTER, NOT_SHOWN, WORSE = "better than all controls", "not shown", "worse"
FOLLOWS = "follows the model"
UNTESTED = "better than the controls; that it changes with the model is not shown"


def add_controls(
    model: ModelBundle, images: torch.Tensor, maps: Sequence[AttributionMap], seed: int = 0
) -> list[AttributionMap]:
    """The maps of these images (N, 3, h, w), followed by three control maps, none of them signed.

    random: independent uniform values. centre: a Gaussian in the middle, where photographers put
    things. edges: the gradient of the grey image (Scharr's filter), which looks like many
    explanations (Adebayo et al. 2018, arXiv 1810.03292), blurred by half a patch: a control must be
    as good as it can be without the model."""
    maps = check_maps(maps)
    like = maps[0]
    height, width = images.shape[-2:]
    random = [
        np.random.default_rng(derive_seed(seed, "random", name)).random((height, width))
        for name in like.sample_ids
    ]
    rows, columns = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    centre = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * WIDTH**2))
    values = {
        "random": np.stack(random),
        "centre": np.repeat(centre[None], len(images), axis=0),
        "edges": _find_edges(images.float().cpu(), model.transform.std),
    }
    controls = [
        replace(like, values=values[name].astype(np.float32), method=name, signed=False)
        for name in CONTROLS
    ]
    return [found for found in maps if found.method not in CONTROLS] + controls


def _find_edges(images: torch.Tensor, std) -> np.ndarray:
    """Size of the gradient of the grey images: normalised (N, 3, h, w) to (N, h, w); the mean
    colour does not matter.
    """
    grey = (images * images.new_tensor(std)[:, None, None]).mean(dim=1).numpy()
    smooth, slope = np.array([3, 10, 3]) / 16, np.array([1, 0, -1]) / 2
    down, across = (
        ndimage.correlate1d(ndimage.correlate1d(grey, slope, axis=axis), smooth, axis=3 - axis)
        for axis in (1, 2)
    )
    return ndimage.gaussian_filter(
        np.hypot(down, across), SMOOTH * max(grey.shape[1:]), axes=(1, 2)
    )


def score_maps(
    scorer: CellScorer,
    maps: Sequence[AttributionMap],
    options: Mapping[str, Mapping] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of the maps and of the controls, which are added: method, metric, sample_id, value.

    options: of the metrics, by name, such as {"road": {"shares": [0.2, 0.5]}}. UserError for an
    unknown metric, and for maps that are not of the scorer's images."""
    options = options or {}
    names = [name for name, metric in METRICS.items() if metric.compute]
    for name in options:
        if name not in names:
            raise UserError(unknown("metric", name, names))
    maps = add_controls(scorer.model, scorer.images, maps, seed)
    tables = []
    for name in names:
        values = METRICS[name].compute(scorer, maps, seed=seed, **options.get(name, {}))
        for found, row in zip(maps, values, strict=True):
            tables.append(scorer.table(found.method, name, row))
    return pd.concat(tables, ignore_index=True)


def trust_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean score of each method, and whether it is better than every control: one row for each
    method and metric.

    Columns method, metric, value, low, high, control, control_value, difference, difference_low,
    difference_high, p_holm, verdict, n. value, low, high: mean over images and its 95% t interval.
    control: the one with the best mean. difference: method minus that control, with the sign that
    makes positive better, on the n images that have both scores, and its t interval. NaN scores, of
    blank maps, are left out.

    verdict: "better than all controls" if on more than half of such images (of those on which the
    scores differ) the method is better than each control; "worse" if it is worse than one control
    on more than half; else "not shown", which is not "equal", or "too few images to show anything":
    nine methods need 9 images, since n images reach no p below 0.5^n. Both are exact one-sided sign
    tests at 2.5%. p_holm: the largest p of the tests of "better" against each control, after Holm's
    correction for the methods of a metric; "worse" is corrected for methods and controls. So the
    chance that any worthless method is called better holds for each metric, but not over several.
    It holds for any distribution of the differences: where their median is zero, some method of
    nine was called better in at most 2.1% of 2,000 tables of 9, 12 or 24 images with normal,
    uniform and exponential differences. The test says nothing about the mean: see `difference`.

    The verdicts hold for this one trained model and images of this kind. Metrics that only describe
    are left out: see `describe_table`. UserError without any control."""
    _check_scores(scores)
    there = list(scores["method"].unique())
    controls = [name for name in CONTROLS if name in there]
    methods = [name for name in there if name not in controls]
    if not controls or not methods:
        raise UserError("the scores need methods and controls; score_maps adds the controls")
    tables = []
    for name in scores["metric"].unique():
        sign = {"high": 1, "low": -1, "": 0}[METRICS[name].better]
        if sign:
            wide = _widen(scores, name)
            tables.append(compare_with_controls(wide, methods, controls, sign).assign(metric=name))
    columns = ["method", "metric", "value", "low", "high", "control", "control_value"]
    columns += ["difference", "difference_low", "difference_high", "p_holm", "verdict", "n"]
    return pd.concat(tables, ignore_index=True)[columns]


def describe_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean of each method and control, with its 95% t interval over images: method, metric, value,
    low, high, n.
    """
    _check_scores(scores)
    tables = [
        _summarise(_widen(scores, name)).assign(metric=name) for name in scores["metric"].unique()
    ]
    return pd.concat(tables, ignore_index=True)[["method", "metric", "value", "low", "high", "n"]]


def rank_table(trust: pd.DataFrame) -> pd.DataFrame:
    """One row for each method, best first: method, mean_rank, better, not_shown, worse, metrics,
    verdict.

    mean_rank: of the difference to the control, 1 the best, mean over the metrics that have one.
    better, not_shown, worse: how often each verdict was given; not_shown counts "too few images to
    show anything" as well. The metrics are correlated (deletion and comprehensiveness use the same
    images), so the counts are not independent. verdict: "follows the model" (better on most
    metrics), "better in part", "mixed", "worse in part", "misleads" (worse on most metrics), "not
    shown in any", "too few images to show anything" or "not measured"."""
    known = trust.dropna(subset=["difference"])
    ranks = known.groupby("metric")["difference"].rank(ascending=False)
    rows = []
    for method in trust["method"].unique():
        mine = known[known["method"] == method]
        better, worse, few = (
            int((mine["verdict"] == verdict).sum()) for verdict in (BETTER, WORSE, TOO_FEW)
        )
        rank = ranks[mine.index].mean() if len(mine) else np.nan
        overall = _describe_counts(better, worse, few, len(mine))
        rows.append((method, rank, better, len(mine) - better - worse, worse, len(mine), overall))
    table = pd.DataFrame(
        rows, columns=["method", "mean_rank", "better", "not_shown", "worse", "metrics", "verdict"]
    )
    return table.sort_values("mean_rank", kind="stable", ignore_index=True)


def summary_table(ranked: pd.DataFrame, sanity: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row for each method, as in `ranked`: method, mean_rank, better and worse ("3 of 7"
    metrics), a verdict for each test, conclusion.

    ranked: from `rank_table`. sanity: name of a test -> its `sanity_verdicts`; the verdict is empty
    for a method that was not tested. conclusion: the verdict of `ranked`, unless the map does not
    change with the model, which overrules it; it follows the model only if it changes in a test.
    And whether the map is the same for every class."""
    verdicts = {name: table.set_index("method")["verdict"] for name, table in sanity.items()}
    rows = []
    for row in ranked.itertuples():
        tests = {name: verdict.get(row.method, "") for name, verdict in verdicts.items()}
        conclusion = row.verdict
        if UNCHANGED in tests.values():
            conclusion = "shows the image, not the model"
        elif conclusion == FOLLOWS and CHANGES not in tests.values():
            conclusion = UNTESTED
        conclusion += "; cannot tell classes apart" if SAME_CLASS in tests.values() else ""
        counts = [f"{count} of {row.metrics}" for count in (row.better, row.worse)]
        rows.append((row.method, row.mean_rank, *counts, *tests.values(), conclusion))
    return pd.DataFrame(
        rows, columns=["method", "mean_rank", "better", "worse", *verdicts, "conclusion"]
    )


def describe_ranks(
    ranked: pd.DataFrame, num_images: int, readable: Callable[[str], str] = str
) -> str:
    """Which methods beat the controls on most measures, from a `rank_table`."""
    ahead = ranked.loc[ranked["better"] > ranked["metrics"] / 2, "method"]
    start = f"On this model and these {num_images} images, "
    if len(ahead):
        return f"{start}**{', '.join(map(readable, ahead))}** beat the controls on most measures."
    return (
        f"{start}**no method beats the controls on most measures**. A method that passes one test,"
        " such as finding a stamp, has passed that test alone."
    )


def _describe_counts(better: int, worse: int, few: int, count: int) -> str:
    if not count:
        return "not measured"
    if few == count:
        return TOO_FEW
    if worse > count / 2:
        return "misleads"
    if worse and better:
        return "mixed"
    if worse:
        return "worse in part"
    if better > count / 2:
        return FOLLOWS
    return "better in part" if better else "not shown in any"


def compare_with_controls(wide, methods, controls, sign) -> pd.DataFrame:
    """The rows of one metric, see `trust_table`. wide: scores, images x methods and controls. sign:
    1 where high scores are better, -1 where low ones are.
    """
    table = _summarise(wide).set_index("method")
    means = sign * table.loc[controls, "value"]
    best = controls.index(means.idxmax()) if means.notna().any() else 0
    # (N, methods, controls)
    gaps = sign * (wide[methods].to_numpy()[:, :, None] - wide[controls].to_numpy()[:, None])
    difference, low, high, n = (part[:, best] for part in mean_interval(gaps))
    usable = ((~np.isnan(gaps)).sum(axis=0) >= 2).all(axis=1)
    better = np.where(usable, sign_test_p(gaps).max(axis=1), np.nan)
    worse = np.where(usable[:, None], sign_test_p(-gaps), np.nan)
    better, worse = correct_holm(better), correct_holm(worse).min(axis=1)
    few = usable & (0.5**n * usable.sum() > LEVEL)
    verdict = np.select([better <= LEVEL, worse <= LEVEL, few], [BETTER, WORSE, TOO_FEW], NOT_SHOWN)
    return (
        table.loc[methods, ["value", "low", "high"]]
        .reset_index()
        .assign(
            control=controls[best],
            control_value=table["value"].loc[controls[best]],
            difference=difference,
            difference_low=low,
            difference_high=high,
            p_holm=better,
            verdict=verdict,
            n=n,
        )
    )


def _summarise(wide) -> pd.DataFrame:
    mean, low, high, count = mean_interval(wide.to_numpy())
    return pd.DataFrame(
        {"method": wide.columns, "value": mean, "low": low, "high": high, "n": count}
    )


def _widen(scores, metric) -> pd.DataFrame:
    """Images x methods, NaN where there is no score."""
    part = scores[scores["metric"] == metric]
    wide = part.pivot(index="sample_id", columns="method", values="value")
    return wide.reindex(index=part["sample_id"].unique(), columns=scores["method"].unique()).astype(
        float
    )


def _check_scores(scores: pd.DataFrame) -> None:
    if not set(SCORE_COLUMNS) <= set(scores.columns) or scores.empty:
        raise UserError(f"the scores need rows with the columns {', '.join(SCORE_COLUMNS)}")
    for name in scores["metric"].unique():
        if name not in METRICS:
            raise UserError(unknown("metric", name, list(METRICS)))
    twice = scores[scores.duplicated(["method", "metric", "sample_id"])]
    if len(twice):
        method, metric, sample_id = twice.iloc[0][["method", "metric", "sample_id"]]
        raise UserError(f"{method} has two scores of {metric} for sample {sample_id!r}")

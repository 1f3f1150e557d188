"""Scores of methods compared with those of maps that do not depend on the model, and what may be
concluded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.inference import correct_holm, mean_interval
from vitlab.explain.controls import CONTROLS, control_maps
from vitlab.explain.faithfulness import (
    STEPS,
    area_table,
    comprehensiveness,
    curve_table,
    road,
    sensitivity_n,
    sparseness,
    sufficiency,
)
from vitlab.explain.removal import SCORE_COLUMNS, CellScorer, check_maps
from vitlab.explain.sanity import CHANGES, FEW, LEVEL, SAME_CLASS, UNCHANGED, sign_test_p
from vitlab.registry import unknown
from vitlab.schema import AttributionMap

BETTER, NOT_SHOWN, WORSE = "better than all controls", "not shown", "worse"
FOLLOWS = "follows the model"
UNTESTED = "better than the controls; that it changes with the model is not shown"


@dataclass(frozen=True)
class Metric:
    """A measure of maps.

    compute: from scorer and maps to scores; None for those of `pointing_scores`. better: "high",
    "low", or "" for one that only describes. meaning: what it measures."""

    compute: Callable[..., pd.DataFrame] | None
    better: str
    meaning: str


def _area(kind):
    return lambda scorer, maps, steps=STEPS, seed=0: area_table(
        curve_table(scorer, maps, [kind], steps, seed)
    )


METRICS: Mapping[str, Metric] = {
    "deletion": Metric(
        _area("deletion"), "low", "mean score while the map's highest cells are removed"
    ),
    "insertion": Metric(
        _area("insertion"), "high", "mean score while the highest cells are put into an empty image"
    ),
    "comprehensiveness": Metric(
        comprehensiveness, "high", "fall of the score without the highest cells"
    ),
    "sufficiency": Metric(sufficiency, "low", "fall of the score with only the highest cells"),
    "sensitivity_n": Metric(
        sensitivity_n,
        "high",
        "correlation of a random set's values with the fall of the score without it",
    ),
    "road": Metric(
        road,
        "high",
        "half of: score without the lowest cells minus that without the highest, holes imputed",
    ),
    "pointing_hit": Metric(None, "high", "whether the highest point is in the planted stamp"),
    "pointing_mass": Metric(None, "high", "share of the positive values in the stamp"),
    "pointing_rank": Metric(None, "high", "share of the stamp's pixels among as many highest ones"),
    "sparseness": Metric(sparseness, "", "Gini index of the cells: near 1 when few have it all"),
}


def legend_table() -> pd.DataFrame:
    """What each metric measures: metric, better ("high", "low", or "" for one that only
    describes), meaning.
    """
    rows = [(name, metric.better, metric.meaning) for name, metric in METRICS.items()]
    return pd.DataFrame(rows, columns=["metric", "better", "meaning"])


def score_maps(
    scorer: CellScorer,
    maps: Sequence[AttributionMap],
    options: Mapping[str, Mapping] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of the maps and of the controls, which are added: method, metric, sample_id, value.

    options: of the metrics, by name, such as {"road": {"shares": [0.2, 0.5]}}. ValueError for an
    unknown metric, and for maps that are not of the scorer's images."""
    options = options or {}
    names = [name for name, metric in METRICS.items() if metric.compute]
    for name in options:
        if name not in names:
            raise UserError(unknown("metric", name, names))
    maps = add_controls(scorer, maps, seed)
    tables = []
    for name in names:
        tables.append(METRICS[name].compute(scorer, maps, seed=seed, **options.get(name, {})))
    return pd.concat(tables, ignore_index=True)


def add_controls(
    scorer: CellScorer, maps: Sequence[AttributionMap], seed: int = 0
) -> list[AttributionMap]:
    """The maps, followed by those of the controls that are not among them."""
    maps = check_maps(maps, scorer)
    there = {found.method for found in maps}
    return maps + [
        found
        for found in control_maps(scorer.model, scorer.images, maps[0], seed)
        if found.method not in there
    ]


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
    are left out: see `describe_table`. ValueError without any control."""
    _check_scores(scores)
    there = list(scores["method"].unique())
    controls = [name for name in CONTROLS if name in there]
    methods = [name for name in there if name not in controls]
    if not controls or not methods:
        what = "control" if not controls else "method beside the controls"
        raise UserError(
            f"the scores have no {what}; score_maps adds the controls ({', '.join(CONTROLS)}) to"
            " the methods"
        )
    tables = []
    for name in scores["metric"].unique():
        sign = {"high": 1, "low": -1, "": 0}[METRICS[name].better]
        if sign:
            wide = _widen(scores, name)
            tables.append(_compare(wide, methods, controls, sign).assign(metric=name))
    if not tables:
        raise UserError(
            "none of the metrics can be compared with controls; see vitlab.explain.legend_table()"
        )
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
    """One row a method, best first: method, mean_rank, better, not_shown, worse, metrics, verdict.

    mean_rank: of the difference to the control, 1 the best, mean over the metrics that have one.
    better, not_shown, worse: how often each verdict was given; not_shown counts "too few images to
    show anything" as well. The metrics are correlated (deletion and comprehensiveness use the same
    images), so the counts are not independent. verdict: in words."""
    known = trust.dropna(subset=["difference"])
    ranks = known.groupby("metric")["difference"].rank(ascending=False)
    rows = []
    for method in trust["method"].unique():
        mine = known[known["method"] == method]
        better, worse, few = (
            int((mine["verdict"] == verdict).sum()) for verdict in (BETTER, WORSE, FEW)
        )
        rank = ranks[mine.index].mean() if len(mine) else np.nan
        overall = FEW if few and few == len(mine) else _describe_counts(better, worse, len(mine))
        rows.append((method, rank, better, len(mine) - better - worse, worse, len(mine), overall))
    table = pd.DataFrame(
        rows, columns=["method", "mean_rank", "better", "not_shown", "worse", "metrics", "verdict"]
    )
    return table.sort_values("mean_rank", kind="stable", ignore_index=True)


def summary_table(ranked: pd.DataFrame, sanity: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a method, as in `ranked`: method, mean_rank, better and worse ("3 of 7" metrics), a
    verdict for each test, conclusion.

    ranked: from `rank_table`. sanity: name of a test -> its `sanity_verdicts`; the verdict is empty
    for a method that was not tested. conclusion: the verdict of `ranked`, unless the map does not
    change with the model, which overrules it; it follows the model only if it changes in a test.
    And whether the map is the same for every class."""
    verdicts = {name: table.set_index("method")["verdict"] for name, table in sanity.items()}
    rows = []
    for row in ranked.itertuples():
        tests = {name: verdict.get(row.method, "") for name, verdict in verdicts.items()}
        conclusion = row.verdict.partition(":")[0]
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


def _describe_counts(better: int, worse: int, count: int) -> str:
    if not count:
        return "not measured"
    if worse > count / 2:
        return f"misleads: worse than a control in {worse} of {count}" + (
            f", better than all in {better}" if better else ""
        )
    if worse and better:
        return f"mixed: better than all controls in {better} of {count}, worse in {worse}"
    if worse:
        return f"worse in part: than a control in {worse} of {count}, better than all in none"
    if better > count / 2:
        return f"follows the model: better than all controls in {better} of {count}"
    return (
        f"better in part: than all controls in {better} of {count}, worse in none"
        if better
        else "not shown in any"
    )


def _compare(wide, methods, controls, sign) -> pd.DataFrame:
    """The rows of one metric. wide: images x methods."""
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
    verdict = np.select([better <= LEVEL, worse <= LEVEL, few], [BETTER, WORSE, FEW], NOT_SHOWN)
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
    missing = [name for name in SCORE_COLUMNS if name not in scores.columns]
    if missing or scores.empty:
        problem = f"lack the columns {', '.join(missing)}" if missing else "have no row"
        raise UserError(
            f"the scores {problem}; score_maps makes them, with {', '.join(SCORE_COLUMNS)}"
        )
    for name in scores["metric"].unique():
        if name not in METRICS:
            raise UserError(unknown("metric", name, list(METRICS)))
    twice = scores[scores.duplicated(["method", "metric", "sample_id"])]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"{first['method']} has two scores of {first['metric']} for sample"
            f" {first['sample_id']!r}; keep models apart"
        )

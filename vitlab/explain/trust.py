"""Every score of every method beside that of maps that know nothing of the model, and what may be
concluded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.few_images import correct_holm, mean_interval, sign_flip_p
from vitlab.explain.controls import CONTROLS, control_maps
from vitlab.explain.faithfulness import (
    STEPS,
    area_table,
    comprehensiveness,
    curve_table,
    sensitivity_n,
    sufficiency,
)
from vitlab.explain.removal import SCORE_COLUMNS, CellScorer, check_maps
from vitlab.explain.road import road
from vitlab.explain.similarity import sparseness
from vitlab.registry import unknown
from vitlab.schema import AttributionMap

BETTER, UNKNOWN, WORSE = "better than all controls", "not shown", "worse"
FEW = "too few images to show anything"


@dataclass(frozen=True)
class Metric:
    """A measure of maps.

    compute: from scorer and maps to a scores table; None where it needs more than these. better:
    "high", "low", or "" for one that only describes, and that a map which knows nothing of the
    model can have as well. meaning: what it asks."""

    compute: Callable[..., pd.DataFrame] | None
    better: str
    meaning: str


def _area(kind):
    return lambda scorer, maps, steps=STEPS, seed=0: area_table(
        curve_table(scorer, maps, [kind], steps, seed)
    )


METRICS: Mapping[str, Metric] = {
    "deletion": Metric(
        _area("deletion"),
        "low",
        "mean score while the map's highest cells are taken away one after the other",
    ),
    "insertion": Metric(
        _area("insertion"),
        "high",
        "mean score while the highest cells are put back into the empty image",
    ),
    "comprehensiveness": Metric(
        comprehensiveness, "high", "fall of the score without the highest cells"
    ),
    "sufficiency": Metric(
        sufficiency, "low", "fall of the score with nothing but the highest cells"
    ),
    "sensitivity_n": Metric(
        sensitivity_n,
        "high",
        "correlation of a random set's values with the fall of the score without it",
    ),
    "road": Metric(
        road,
        "high",
        "half of: score without the lowest cells less that without the highest, holes filled from"
        " around",
    ),
    "pointing_hit": Metric(None, "high", "whether the highest point lies in the planted stamp"),
    "pointing_mass": Metric(None, "high", "share of the positive values that lie in the stamp"),
    "pointing_rank": Metric(None, "high", "share of the stamp's pixels among as many highest ones"),
    "sparseness": Metric(sparseness, "", "Gini index of the cells: near 1 when few have it all"),
    "max_sensitivity": Metric(
        None,
        "",
        "largest change of the map, as a share of its size, under noise too small to be seen",
    ),
}


def legend_table() -> pd.DataFrame:
    """What each metric asks: columns metric, better ("high", "low", or "" for one that only
    describes), meaning.
    """
    rows = [(name, metric.better, metric.meaning) for name, metric in METRICS.items()]
    return pd.DataFrame(rows, columns=["metric", "better", "meaning"])


def score_maps(
    scorer: CellScorer,
    maps: Sequence[AttributionMap],
    metrics: Sequence[str] | None = None,
    options: Mapping[str, Mapping] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of the maps and of the controls, which are added: columns method, metric, sample_id,
    value.

    metrics: names of METRICS; by default all that need no new explanations. options: of the
    metrics, by name, such as {"road": {"shares": [0.2, 0.5]}}. The scorer computes each changed
    image once, whatever asks for it. Raises ValueError for an unknown metric, and for maps that are
    not of the scorer's images or that are named like a control."""
    names = (
        [name for name, metric in METRICS.items() if metric.compute]
        if metrics is None
        else list(metrics)
    )
    for name in [*names, *(options or {})]:
        if name not in METRICS:
            raise UserError(unknown("metric", name, list(METRICS)))
        if METRICS[name].compute is None:
            source = (
                f"vitlab.explain.{name}"
                if name == "max_sensitivity"
                else "vitlab.explain.pointing_scores"
            )
            raise UserError(
                f"{name} needs more than these maps; call {source} and append its table to the"
                " scores"
            )
    maps = add_controls(scorer, maps, seed)
    tables = []
    for name in names:
        further = {} if name == "sparseness" else {"seed": seed}
        tables.append(
            METRICS[name].compute(scorer, maps, **further, **(options or {}).get(name, {}))
        )
    return pd.concat(tables, ignore_index=True)


def add_controls(
    scorer: CellScorer, maps: Sequence[AttributionMap], seed: int = 0
) -> list[AttributionMap]:
    """The maps, and behind them those of the controls that are not among them."""
    maps = check_maps(maps, scorer)
    there = {found.method for found in maps}
    return maps + [
        found
        for found in control_maps(scorer.model, scorer.images, maps[0], seed)
        if found.method not in there
    ]


def trust_table(
    scores: pd.DataFrame, confidence: float = 0.95, controls: Sequence[str] = CONTROLS
) -> pd.DataFrame:
    """What each method's mean score is, and whether it is better than every control's: one row per
    method and metric.

    Columns method, metric, value, low, high, control, control_value, difference, difference_low,
    difference_high, p_holm, verdict, n. value, low, high: mean over images and its t interval.
    control: the one with the best mean. difference: method less that control, with the sign that
    makes positive better, on the n images that have both scores, and its t interval. NaN scores, of
    blank maps, are left out; with fewer than two images there is no interval.

    verdict: "better than all controls" or "worse" (than at least one) at one-sided (1 - confidence)
    / 2, else "not shown", which is not "equal", or "too few images to show anything": nine methods
    need 9 images, since n images reach no p below 0.5^n. p_holm: the largest p of the tests of
    "better" against each control, after Holm's correction for the methods of a metric; "worse" is
    corrected for methods and controls. So for each metric the chance that *any* worthless method is
    called better is held; over several metrics it is not. All of it speaks of this one trained
    model, and of more images of this kind.

    The tests are exact sign-flip tests of the differences between paired images (`sign_flip_p`).
    They show that method and control could not be exchanged image by image, in favour of the
    method. For scores that could be exchanged, some method of nine is wrongly called better in 2.5
    % (normal) and 2.2 % (skewed) of 1,000 tables of 12 images; the target is 2.5 %. They do not
    show a higher mean or median where the differences are skewed. With differences of mean zero (1
    less an exponential value) some method is called better in 20.1 % of 1,000 tables of 12 images
    and 19.4 % of 24; with median zero (an exponential value less ln 2) in 4.4 % and 27.6 %. Read
    `difference` and its interval beside the verdict.

    Metrics that only describe (sparseness, max_sensitivity) are left out: see `describe_table`.
    ValueError without any control."""
    _check_scores(scores)
    there = list(scores["method"].unique())
    controls = [name for name in controls if name in there]
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
            tables.append(_judge(wide, methods, controls, sign, confidence).assign(metric=name))
    if not tables:
        raise UserError(
            "none of the metrics can be compared with controls; see vitlab.explain.legend_table()"
        )
    columns = ["method", "metric", "value", "low", "high", "control", "control_value"]
    columns += ["difference", "difference_low", "difference_high", "p_holm", "verdict", "n"]
    return pd.concat(tables, ignore_index=True)[columns]


def describe_table(scores: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean of each method and control, with its t interval over images. Columns method, metric,
    value, low, high, n.
    """
    _check_scores(scores)
    tables = [
        _summarise(_widen(scores, name), confidence).assign(metric=name)
        for name in scores["metric"].unique()
    ]
    return pd.concat(tables, ignore_index=True)[["method", "metric", "value", "low", "high", "n"]]


def rank_table(trust: pd.DataFrame) -> pd.DataFrame:
    """One row a method, best first: method, mean_rank, better, not_shown, worse, metrics, verdict.

    mean_rank: of the difference to the control, 1 the best, mean over the metrics that have one.
    better, not_shown, worse: in how many of them each verdict was given; not_shown counts "too few
    images to show anything" as well. The metrics are correlated (deletion and comprehensiveness see
    the same images), so the counts are not independent votes. verdict: in words."""
    known = trust.dropna(subset=["difference"])
    ranks = known.groupby("metric")["difference"].rank(ascending=False)
    rows = []
    for method in trust["method"].unique():
        mine = known[known["method"] == method]
        better, worse, few = (
            int((mine["verdict"] == verdict).sum()) for verdict in (BETTER, WORSE, FEW)
        )
        rank = ranks[mine.index].mean() if len(mine) else np.nan
        overall = FEW if few and few == len(mine) else _say_overall(better, worse, len(mine))
        rows.append((method, rank, better, len(mine) - better - worse, worse, len(mine), overall))
    table = pd.DataFrame(
        rows, columns=["method", "mean_rank", "better", "not_shown", "worse", "metrics", "verdict"]
    )
    return table.sort_values("mean_rank", kind="stable", ignore_index=True)


def _say_overall(better: int, worse: int, count: int) -> str:
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


def _judge(wide, methods, controls, sign, confidence) -> pd.DataFrame:
    """The rows of one metric. wide: images x methods."""
    table = _summarise(wide, confidence).set_index("method")
    means = sign * table.loc[controls, "value"]
    best = controls.index(means.idxmax()) if means.notna().any() else 0
    # (N, methods, controls)
    gaps = sign * (wide[methods].to_numpy()[:, :, None] - wide[controls].to_numpy()[:, None])
    difference, low, high, n = (part[:, best] for part in mean_interval(gaps, confidence))
    usable = ((~np.isnan(gaps)).sum(axis=0) >= 2).all(axis=1)
    better, worse = np.full(len(methods), np.nan), np.full((len(methods), len(controls)), np.nan)
    if usable.any():
        better[usable] = sign_flip_p(gaps[:, usable], "greater").max(axis=1)
        worse[usable] = sign_flip_p(gaps[:, usable], "less")
    better, worse = correct_holm(better), correct_holm(worse).min(axis=1)
    tail = (1 - confidence) / 2
    few = usable & (0.5**n * usable.sum() > tail)
    verdict = np.select([better <= tail, worse <= tail, few], [BETTER, WORSE, FEW], UNKNOWN)
    judged = {
        "control": controls[best],
        "control_value": table["value"].loc[controls[best]],
        "difference": difference,
    }
    judged |= {
        "difference_low": low,
        "difference_high": high,
        "p_holm": better,
        "verdict": verdict,
        "n": n,
    }
    return table.loc[methods, ["value", "low", "high"]].reset_index().assign(**judged)


def _summarise(wide, confidence) -> pd.DataFrame:
    mean, low, high, count = mean_interval(wide.to_numpy(), confidence)
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

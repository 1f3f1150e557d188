"""Sentences for notebooks 04 and 08 that depend on the numbers: tables in, Markdown out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import t

from vitlab.evaluation.bootstrap import effective_count, read_clusters
from vitlab.evaluation.calibration import confidence_of
from vitlab.evaluation.paired import NO_DIFFERENCE
from vitlab.evaluation.scores import read_scores, select_split
from vitlab.evaluation.slices import CLEAN, TOUCHED
from vitlab.markup import code, escape

ONE_MODEL = "There is only one model, so nothing can be compared."
ELPV_NOTE = """::: {.callout-note title="Slightly optimistic on ELPV"}
The default recipe of `hybrid_vit` (which part is trained, and for how long) was chosen using the
test scores of seeds 0 and 1. Other seeds draw their test images from the same cells: 39% and 40% of
the test images of seeds 2 and 3 are also test images of seed 0 or 1. No seed of this data set gives
an estimate that is independent of that choice.
:::"""


def describe_scores(table: pd.DataFrame, images: int) -> str:
    """ROC AUC and balanced accuracy of a `metrics_table` with their intervals, in one line."""
    rows = table.set_index("metric")
    texts = [
        f"{name} {rows.loc[metric, 'value']:.3f} [{rows.loc[metric, 'low']:.3f},"
        f" {rows.loc[metric, 'high']:.3f}]"
        for metric, name in (("roc_auc", "ROC AUC"), ("balanced_accuracy", "balanced accuracy"))
    ]
    return f"{', '.join(texts)} on {images} test images."


def describe_choice(table: pd.DataFrame, positive: str, costs: dict[str, float]) -> str:
    """What the thresholds for cost and recall of a `threshold_choice_table` give on the test split.

    costs: cost_miss, cost_false_alarm and min_recall, as given to the table."""
    rows = table.set_index("rule")
    cost, recall = rows.loc["cost"], rows.loc["recall"]
    if np.isnan(cost["threshold"]):
        return f"There is no threshold: {cost['note']}."
    shown = ". " if cost["saved_low"] > 0 else ", which is not shown to differ from zero. "
    return (
        f"If a missed *{escape(positive)}* costs {costs['cost_miss']:g} and a false alarm"
        f" {costs['cost_false_alarm']:g}, validation puts the threshold at {cost['threshold']:.2f}."
        f" On the test split this costs {cost['cost']:.3f} per image, and the threshold 0.5 costs"
        f" {rows.loc['0.5', 'cost']:.3f}: a saving of {cost['saved']:.3f}"
        f" [{cost['saved_low']:.3f}, {cost['saved_high']:.3f}]{shown}The threshold for a recall of"
        f" {costs['min_recall']:.0%} finds {recall['recall']:.1%} of the test images"
        f" [{recall['recall_low']:.1%}, {recall['recall_high']:.1%}] and flags"
        f" {recall['flagged']:.0%} of all."
    )


def describe_confidence(predictions: pd.DataFrame, cluster=None) -> str:
    """Is the model right as often as it says, more often (under-confident) or less often
    (over-confident)? By a 95 % t interval of accuracy minus confidence over the test images."""
    confidence, right = confidence_of(read_scores(predictions, "test"))
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    count = effective_count(np.zeros(len(right), dtype=int), 1, clusters)[0]
    gap = right - confidence
    half = t.ppf(0.975, count - 1) * gap.std(ddof=1) / np.sqrt(count) if count > 1 else np.inf
    text = (
        f"The mean probability of the predicted class is {confidence.mean():.1%}, and"
        f" {right.mean():.1%} of the predictions are correct. "
    )
    if abs(gap.mean()) <= half:
        return text + f"With {len(right)} images, no difference between the two is shown."
    if gap.mean() > 0:
        return text + "Overall the model is under-confident."
    return text + "Overall the model is over-confident."


def describe_recalibration(table: pd.DataFrame) -> str:
    """The method of a `recalibration_table` that validation chooses, and its effect on the test
    split."""
    before, best = table.iloc[0], table.loc[table["val_brier"].idxmin()]
    if best["method"] == "none":
        return (
            "Cross-validated on the validation split, no method has a lower Brier score than the"
            " model as trained."
        )
    changes = ", ".join(
        f"the {name} from {before[column]:.3f} to {best[column]:.3f}"
        for name, column in (("Brier score", "brier"), ("class-wise error", "classwise_ece"))
    )
    return (
        f"Cross-validated on the validation split, *{best['method']}* has the lowest Brier score."
        f" On the test split it changes {changes}, and accuracy from {before['accuracy']:.1%} to"
        f" {best['accuracy']:.1%}."
    )


def describe_selection(table: pd.DataFrame) -> str:
    """What answering everything and what the threshold for 80 % of the images in a
    `selective_table` give on the test split."""
    rows = table[table["target"] == "coverage"].set_index("nominal")
    every, row = rows.loc[1.0], rows.loc[0.8]
    return (
        f"On all test images, the model is wrong on {1 - every['accuracy']:.1%}. With the threshold"
        f" for 80% of the images it covers {row['coverage']:.1%} and is"
        f" wrong on {1 - row['accuracy']:.1%} of these [{1 - row['accuracy_high']:.1%},"
        f" {1 - row['accuracy_low']:.1%}]."
    )


def describe_conformal(by_class: pd.DataFrame, overall: pd.DataFrame) -> str:
    """The sets with a limit for each class beside those with one limit for all, at 90 %: two
    `conformal_table`s."""
    own, plain = (
        table.set_index(table["nominal"].round(2)).loc[0.9] for table in (by_class, overall)
    )
    return (
        f"At a nominal 90%, the sets with a limit for each class contain the true class for"
        f" {own['coverage']:.1%} of the test images [{own['coverage_low']:.1%},"
        f" {own['coverage_high']:.1%}] and for {own['worst_coverage']:.1%} of the class with the"
        f" lowest coverage, *{escape(own['worst_class'])}*; with one limit for all that is"
        f" {plain['worst_coverage']:.1%} (*{escape(plain['worst_class'])}*). They contain"
        f" {own['size']:.2f} classes on average, compared with {plain['size']:.2f};"
        f" {own['single']:.0%} contain exactly one class, which is correct for"
        f" {own['single_accuracy']:.1%} of these."
    )


def describe_gaps(table: pd.DataFrame) -> str:
    """The worst slice of a `worst_slice_table`, and what the corrected test shows."""
    worst, clear = table.iloc[0], table[table["verdict"].str.endswith("than the rest")]
    measure, name = worst["metric"].replace("_", " "), f"{worst['column']} {escape(worst['slice'])}"
    if np.isnan(worst["gap"]):
        return "No slice has enough images for a comparison."
    text = (
        f"The worst of {table['gap'].notna().sum()} slices is *{name}* ({worst['n']} images): its"
        f" {measure} minus that of the other images is {worst['gap']:+.3f} [{worst['low']:+.3f},"
        f" {worst['high']:+.3f}]. "
    )
    if clear.empty:
        return (
            text
            + "After correction for the number of slices, **no difference is shown**; a small one"
            " may exist."
        )
    names = ", ".join(
        f"{row.column} {escape(row.slice)} ({row.gap:+.3f})" for row in clear.itertuples()
    )
    return text + f"After correction for the number of slices, these differ from the rest: {names}."


def describe_order(table: pd.DataFrame) -> str:
    """Which models of a `pairwise_table` may be the best: the one with the highest mean, and those
    not shown to be worse."""
    means = pd.concat(
        [table.set_index("model_a")["value_a"], table.set_index("model_b")["value_b"]]
    ).dropna()
    means = means.groupby(level=0).mean().sort_values(ascending=False)
    if means.empty:
        return ONE_MODEL
    first = means.index[0]
    own = table[(table["model_a"] == first) | (table["model_b"] == first)]
    rivals = own["model_a"].where(own["model_a"] != first, own["model_b"])
    beaten = set(rivals[own["verdict"] == f"{first} better"])
    level = [name for name in means.index[1:] if name not in beaten]
    if level:
        verdict = (
            f"{first} has the highest mean, but is not shown to be better than {', '.join(level)}"
        )
    else:
        verdict = f"{first} is shown to be better than every other model"
    one = " on other images; there is one seed" if (own["seeds"] == 1).all() else ""
    values = "; ".join(f"{name} {value:.3f}" for name, value in means.items())
    return f"{verdict}{one} ({values})."


def describe_spread(table: pd.DataFrame, metric: str) -> str:
    """Mean and interval of a metric in an `uncertainty_table`, and whether seeds or images move it
    more."""
    row = table.set_index("metric").loc[metric]
    if row["seeds"] == 1:
        return "There is one run: the effect of another seed is unknown."
    exceeds = "exceeds" if row["seed_sd"] > row["sampling_sd"] else "does not exceed"
    return (
        f"{row['mean']:.3f} [{row['total_low']:.3f}, {row['total_high']:.3f}]. The standard"
        f" deviation over its {row['seeds']} runs ({row['seed_sd']:.3f}) {exceeds} that of a single"
        f" run over other test images ({row['sampling_sd']:.3f})."
    )


def describe_pairs(table: pd.DataFrame) -> str:
    """The verdicts of a `pairwise_table` in sentences, each with its interval."""
    texts = []
    for row in table.itertuples():
        span = f"[{row.low:+.3f}, {row.high:+.3f}]"
        only = "; this holds for other images only, as there is one seed" if row.seeds == 1 else ""
        if row.verdict == "not tested":
            text = f"not tested ({row.note or 'all test images are one cluster'})"
        elif row.verdict != NO_DIFFERENCE:
            text = f"{row.difference:+.3f} {span}, {row.verdict}{only}"
        elif row.low * row.high > 0:  # only the correction for many pairs hides it
            count = table["p"].notna().sum()
            text = (
                f"{NO_DIFFERENCE} after correction; {span} without correction for {count}"
                f" pairs{only}"
            )
        else:
            text = f"{NO_DIFFERENCE}; 95% interval {span}{only}"
        texts.append(f"{row.model_b} against {row.model_a}: {text}.")
    return " ".join(texts) or ONE_MODEL


def describe_verdicts(tests: Sequence[pd.DataFrame]) -> str:
    """How often each verdict of several `paired_table`s occurs."""
    if not tests:
        return "one model only"
    counts = pd.concat(tests)["verdict"].value_counts()
    return "; ".join(f"{count} of {counts.sum()}, {verdict}" for verdict, count in counts.items())


def describe_leakage(leakage: pd.DataFrame) -> str:
    """Accuracy on all test images minus that without near-duplicates, for each model.

    leakage: rows of `leakage_table` with columns model and seed."""
    rows = leakage[leakage["metric"] == "accuracy"]
    table = rows.pivot(index=["model", "seed"], columns="images", values="value")
    gap = table["all"] - table.get(CLEAN, table["all"]).fillna(table["all"])
    texts = []
    for model, part in gap.groupby("model"):
        spread = f" ± {part.std():.3f}" if len(part) > 1 else ""
        texts.append(f"*{escape(model)}* {part.mean():+.3f}{spread}")
    copies = rows[rows["images"] == TOUCHED].groupby(["model", "seed"])["n"].sum()
    mean = copies.sum() / len(table)
    return (
        f"Accuracy, naive minus clean: {'; '.join(texts)}. Near-duplicates may also be easier or"
        " harder than the rest, or of other classes, so copies may not be the only reason."
        f" On average {mean:.0f} test images per run have a copy; metrics on few images vary."
    )


def describe_best_by_group(groups: pd.DataFrame) -> str:
    """The model with the highest mean ROC AUC in each group: columns model, group, metric, mean."""
    rows = groups[(groups["metric"] == "roc_auc") & (groups["group"] != "all")]
    best = rows.sort_values("mean").groupby("group").tail(1)
    texts = [f"{escape(row.group)}, *{escape(row.model)}*" for row in best.itertuples()]
    return f"Highest mean ROC AUC by group: {'; '.join(texts) or 'there are no groups'}."


def describe_last_epochs(last_was_best: Mapping[str, Sequence[bool]]) -> str:
    """In how many runs of each model the last epoch was the best."""
    texts = [
        f"*{escape(name)}*, {sum(runs)} of {len(runs)}" for name, runs in last_was_best.items()
    ]
    return (
        f"Runs whose last epoch was their best: {'; '.join(texts)}. More epochs may improve them:"
        " their scores may be below the best that the model can reach."
    )


def describe_from_scratch(comparison: pd.DataFrame) -> str:
    """How far `vit_scratch` is behind the best model with pretrained features: a
    `comparison_table`."""
    means = comparison[comparison["metric"] == "roc_auc"].set_index("model")["mean"]
    others = means.drop("vit_scratch", errors="ignore")
    if "vit_scratch" not in means or others.empty:
        return "This comparison has no `vit_scratch` beside a pretrained model."
    return (
        f"Here `vit_scratch` reaches a ROC AUC of {means['vit_scratch']:.3f},"
        f" {others.max() - means['vit_scratch']:.3f} less than {code(others.idxmax())}, which has"
        " pretrained features."
    )


def describe_trusted(tables: Mapping[str, pd.DataFrame]) -> str:
    """The explanation methods that beat the controls on most measures, for each model: trust tables
    of notebook 05, as a Markdown list."""
    lines = []
    for model, table in tables.items():
        better = (table["verdict"] == "better than all controls").groupby(table["method"]).sum()
        measures = table["metric"].nunique()
        held = [escape(name.replace("_", " ")) for name in better[better > measures / 2].index]
        methods = f"{', '.join(held)} beat" if held else "no method beats"
        line = f"- *{escape(model)}*: {methods} the controls on most of {measures} measures"
        if not table["metric"].str.startswith("pointing").any():
            line += "; the planted truth, which it did not learn, is not among them"
        lines.append(f"{line}.")
    return "\n".join(lines)


def describe_published(gaps: pd.DataFrame) -> str:
    """A `published_gap_table` as a Markdown list, with what its verdicts mean."""
    words = {"above": "above", "below": "below", NO_DIFFERENCE: "not shown to differ from"}
    lines = [
        f"- *{escape(row.model)}*, {escape(row.cells)}, {row.metric.replace('_', ' ')} on"
        f" {escape(row.task)}: {row.value:.3f}, {words[row.verdict]} {escape(row.against)} with"
        f" {row.published:.3f} (difference {row.difference:+.3f})"
        for row in gaps.itertuples()
    ]
    return (
        "Comparison with the best published model of each column. No difference is shown if it is"
        " less than 1.96 times the combined standard deviation of their and our single runs (ours"
        " over seeds or over test images, whichever is larger).\n\n" + "\n".join(lines)
    )

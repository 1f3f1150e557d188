"""Sentences of notebooks 04 and 08 that depend on the numbers: tables in, Markdown out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import t

from vitlab.evaluation.groups import ALONE, WITHIN
from vitlab.evaluation.inference import NO_DIFFERENCE, effective_count
from vitlab.evaluation.scores import read_scores
from vitlab.evaluation.slices import CLEAN, TOUCHED
from vitlab.markup import code, escape

ONE_MODEL = "There is only one model, so nothing can be compared."
ELPV_NOTE = """::: {.callout-note title="About ELPV"}
Which cell belongs to which module is **inferred** from the order of the published files; it is not
documented. The default recipe of `hybrid_vit` was chosen with scores on image-wise splits, which
hold cells of all modules, so no module is entirely new to that choice.
:::"""


def describe_choice(table: pd.DataFrame, positive: str, costs: dict[str, float]) -> str:
    """What the thresholds for cost and recall of a `threshold_choice_table` give on the test split.

    costs: cost_miss, cost_false_alarm and min_recall, as given to the table."""
    rows = table.set_index("rule")
    cost, recall = rows.loc["cost"], rows.loc["recall"]
    if np.isnan(cost["threshold"]):
        return f"There is no threshold: validation holds only *{escape(positive)}*, or none of it."
    shown = "" if cost["saved_low"] > 0 else ", which is not shown to differ from zero"
    return (
        f"If a missed *{escape(positive)}* costs {costs['cost_miss']:g} and a false alarm"
        f" {costs['cost_false_alarm']:g}, validation puts the threshold at {cost['threshold']:.2f}."
        f" On the test split this costs {cost['cost']:.3f} per image, and the threshold 0.5 costs"
        f" {rows.loc['0.5', 'cost']:.3f}: a saving of {_interval(cost, 'saved')}{shown}."
        f" The threshold for a recall of {costs['min_recall']:.0%} finds"
        f" {_percent(recall, 'recall')} of the test images and flags {recall['flagged']:.0%} of"
        " all."
    )


def describe_confidence(predictions: pd.DataFrame) -> str:
    """Is accuracy above the mean confidence (under-confident) or below (over-confident)? By a 95 %
    t interval of their difference over the test images."""
    scores = read_scores(predictions, "test")
    place = np.zeros(len(scores.label), dtype=int)
    count = effective_count(place, 1, scores.cluster)[0]
    gap = scores.right - scores.confidence
    half = t.ppf(0.975, count - 1) * gap.std(ddof=1) / np.sqrt(count) if count > 1 else np.inf
    verdict = f"With {len(gap)} images, no difference between the two is shown."
    if abs(gap.mean()) > half:
        side = "under-confident" if gap.mean() > 0 else "over-confident"
        verdict = f"Overall the model is {side}."
    return (
        f"The mean probability of the predicted class is {scores.confidence.mean():.1%}, and"
        f" {scores.right.mean():.1%} of the predictions are correct. {verdict}"
    )


def describe_recalibration(table: pd.DataFrame) -> str:
    """The method of a `recalibration_table` that validation chooses, and its effect on the test
    split."""
    before, best = table.iloc[0], table.loc[table["val_brier"].idxmin()]
    if best["method"] == "none":
        return (
            "Cross-validated on the validation split, no method has a lower Brier score than the"
            " model as trained."
        )
    return (
        f"Cross-validated on the validation split, *{best['method']}* has the lowest Brier score."
        f" On the test split it changes the Brier score from {before['brier']:.3f} to"
        f" {best['brier']:.3f}, the class-wise error from {before['classwise_ece']:.3f} to"
        f" {best['classwise_ece']:.3f}, and accuracy from {before['accuracy']:.1%} to"
        f" {best['accuracy']:.1%}."
    )


def describe_selection(table: pd.DataFrame) -> str:
    """What covering all images and what the threshold for 80 % of them in a `selective_table` give
    on the test split."""
    rows = table[table["target"] == "coverage"].set_index("nominal")
    every, row = rows.loc[1.0], rows.loc[0.8]
    return (
        f"On all test images, {every['accuracy']:.1%} of the predictions are correct. With the"
        f" threshold for 80% of the images, the model covers {row['coverage']:.1%}, and"
        f" {_percent(row, 'accuracy')} of these predictions are correct."
    )


def describe_conformal(by_class: pd.DataFrame, overall: pd.DataFrame) -> str:
    """The sets with a limit for each class beside those with one limit for all, at 90 %: two
    `conformal_table`s."""
    own, plain = (
        table.set_index(table["nominal"].round(2)).loc[0.9] for table in (by_class, overall)
    )
    return (
        "At a nominal 90%, the sets with a limit for each class contain the true class for"
        f" {_percent(own, 'coverage')} of the test images and for {own['worst_coverage']:.1%} of"
        f" the class with the lowest coverage, *{escape(own['worst_class'])}*; with one limit for"
        f" all, this is {plain['worst_coverage']:.1%} (*{escape(plain['worst_class'])}*). They"
        f" contain {own['size']:.2f} classes on average, compared with {plain['size']:.2f};"
        f" {own['single']:.0%} contain exactly one class, which is correct for"
        f" {own['single_accuracy']:.1%} of these."
    )


def describe_gaps(table: pd.DataFrame) -> str:
    """The worst slice of a `worst_slice_table`, and what the corrected test shows."""
    worst, clear = table.iloc[0], table[table["verdict"].str.endswith("than the rest")]
    if np.isnan(worst["gap"]):
        return "No slice has enough images for a comparison."
    verdict = "**no difference is shown**; a small one may exist"
    if len(clear):
        names = [f"{row.column} {escape(row.slice)} ({row.gap:+.3f})" for row in clear.itertuples()]
        verdict = f"these differ from the rest: {', '.join(names)}"
    return (
        f"The worst of {table['gap'].notna().sum()} slices is *{worst['column']}"
        f" {escape(worst['slice'])}* ({worst['n']} images): its"
        f" {worst['metric'].replace('_', ' ')} minus that of the other images is"
        f" {worst['gap']:+.3f} [{worst['low']:+.3f}, {worst['high']:+.3f}]. After correction for"
        f" the number of slices, {verdict}."
    )


def describe_answer(ranking: pd.DataFrame, pairwise: pd.DataFrame, metric: str) -> str:
    """The answer to "which model?" with its interval. "No difference shown" is an answer.

    ranking: of `ranking_table`; pairwise: of `pairwise_table`, by the same metric; metric: its name
    for readers."""
    first = ranking.iloc[0]
    value = f"{metric} {_interval(first)}"
    if len(ranking) == 1:
        text = f"**{escape(first['model'])}: {value}.** {ONE_MODEL}"
    else:
        ends = ["model_a", "model_b"]
        own = pairwise[(pairwise[ends] == first["model"]).any(axis=1)]
        undecided = own[own["verdict"] != f"{first['model']} better"]
        rivals = set(undecided[ends].to_numpy().ravel())
        level = [escape(name) for name in ranking["model"].iloc[1:] if name in rivals]
        name = escape(first["model"])
        if level:
            text = f"**No difference is shown between {name} and {', '.join(level)}.**"
            text += f" {name} has the highest score, {value}."
        else:
            text = f"**{name} is the best of {len(ranking)} models**: {value}."
        several = own.assign(note=own["note"].where(own["seeds"] != 1, ""))
        text += f" {escape(describe_pairs(several))}"
    scope = "other images and other seeds"
    if (ranking["seeds"] == 1).all():
        scope = "other images; another seed may turn the result around"
    return f"{text} Brackets show 95% intervals for {scope}."


def describe_splits(table: pd.DataFrame, group: str) -> str:
    """What the groups have to do with the scores: a `split_table` with the splits "image" and
    `group`, as a Markdown list; "" without runs of both.
    """
    if table.empty or group == "image":
        return ""
    values = table.set_index(["metric", "split", "model"]).sort_index()
    lines = []
    for model in table["model"].unique():
        rows = {
            split: values.loc[("roc_auc", split, model)]
            for split in ("image", group)
            if ("roc_auc", split, model) in values.index
        }
        if set(rows) == {"image", group}:
            within = values.loc[(WITHIN, group, model)]
            lines.append(
                f"- *{escape(model)}*: ROC AUC {_interval(rows['image'])} on new images of known"
                f" {group}s, {_interval(rows[group])} on new {group}s, and {_interval(within)}"
                f" within a new {group}."
            )
        elif "image" in rows and model == f"{group}{ALONE}":
            lines.append(
                f"- The {group} alone, without pixels, gives {_interval(rows['image'])} where it is"
                f" known, and nothing (0.5) where it is new."
            )
    return "\n".join(lines)


def describe_limits(tables: Mapping[str, Mapping[object, pd.DataFrame]]) -> str:
    """What these runs cannot show, as a Markdown list. tables: model -> seed -> predictions."""
    runs = [
        table[table["split"] == "test"] for seeds in tables.values() for table in seeds.values()
    ]
    seeds = min(len(seeds) for seeds in tables.values())
    images, units = runs[0]["sample_id"].nunique(), len(runs[0])
    if "cluster" in runs[0]:
        units = runs[0]["cluster"].nunique()
    same = "" if units == images else f", {units:,} of them independent of each other"
    few = "With one seed" if seeds == 1 else f"With {seeds} seeds"
    return "\n".join(
        [
            f"- **{few}**, how much a score varies from seed to seed is"
            f" {'unknown' if seeds == 1 else 'known only roughly'}.",
            f"- **{images:,} test images**{same}. Small differences cannot be shown on so many;"
            " check VL007 of notebook 00 says how small.",
            "- **One data set.** Nothing here shows how the models do on images from another"
            " source, camera or year.",
        ]
    )


def describe_spread(table: pd.DataFrame, metric: str) -> str:
    """Mean and interval of a metric in an `uncertainty_table`, and whether seeds or images move it
    more."""
    row = table.set_index("metric").loc[metric]
    if row["seeds"] == 1:
        return "There is one run: the effect of another seed is unknown."
    exceeds = "exceeds" if row["seed_sd"] > row["sampling_sd"] else "does not exceed"
    return (
        f"{_interval(row)}. The standard deviation over its {row['seeds']:.0f} runs"
        f" ({row['seed_sd']:.3f}) {exceeds} that of a single run over other test images"
        f" ({row['sampling_sd']:.3f})."
    )


def describe_pairs(table: pd.DataFrame) -> str:
    """The verdicts of a `pairwise_table` in sentences, each with its interval."""
    texts = []
    for row in table.itertuples():
        text = f"{row.model_b} against {row.model_a}: {row.verdict}"
        if not np.isnan(row.p):
            text += f", {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        if row.verdict == NO_DIFFERENCE and row.low * row.high > 0:
            text += " without the correction for several pairs"
        if row.note:
            text += f" ({row.note})"
        texts.append(f"{text}.")
    return " ".join(texts) or ONE_MODEL


def describe_leakage(leakage: pd.DataFrame) -> str:
    """Accuracy on all test images minus that without near-duplicates, for each model.

    leakage: rows of `leakage_table` with columns model and seed."""
    rows = leakage[leakage["metric"] == "accuracy"]
    table = rows.pivot(index=["model", "seed"], columns="images", values="value")
    table = table.reindex(columns=["all", CLEAN])
    gaps = (table["all"] - table[CLEAN].fillna(table["all"])).groupby("model")
    texts = [f"*{escape(model)}* {gap:+.3f}" for model, gap in gaps.mean().items()]
    mean = rows.loc[rows["images"] == TOUCHED, "n"].sum() / len(table)
    return (
        f"Accuracy, naive minus clean, mean over the seeds: {'; '.join(texts)}. Near-duplicates may"
        " also be easier or harder than the rest, or of other classes, so copies may not be the"
        f" only reason. On average {mean:.0f} test images per run have a copy; metrics on few"
        " images vary."
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
        lines.append(f"- *{escape(model)}*: {methods} the controls on most of {measures} measures.")
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


def _interval(row: pd.Series, name: str = "value") -> str:
    """Such as "0.912 [0.881, 0.940]"."""
    start = "" if name == "value" else f"{name}_"
    return f"{row[name]:.3f} [{row[f'{start}low']:.3f}, {row[f'{start}high']:.3f}]"


def _percent(row: pd.Series, name: str) -> str:
    """Such as "91.2% [88.1%, 94.0%]"."""
    return f"{row[name]:.1%} [{row[f'{name}_low']:.1%}, {row[f'{name}_high']:.1%}]"

"""The model card: what a model is, how well it does and where not, from what its run has kept
(arXiv 1810.03993).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.special import softmax

from vitlab.app.predictor import make_prediction
from vitlab.compress.calibration import find_calibration
from vitlab.evaluation import calibration_table, metrics_table, slice_table, worst_slice_table
from vitlab.evaluation.inference import wilson_interval
from vitlab.extremes import describe_cut, keep_extremes
from vitlab.markup import code, escape, list_some, pipe_table
from vitlab.runs import Run
from vitlab.schema import SPLITS, check_predictions

SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "roc_auc": "area under the ROC curve",
    "average_precision": "average precision",
}
BY_GROUP = ("balanced_accuracy", "recall", "roc_auc")
CLUSTERS = "clusters.parquet"  # of a run, by notebook 04: columns sample_id, cluster
MIN_TEST_IMAGES = 100  # below, the card says that intervals are wide
MIN_CLASS_IMAGES = 30  # of the test split; below, the metrics of a class are called imprecise


def model_card(
    run: Run,
    predictions: pd.DataFrame | None = None,
    *,
    calibration: Mapping | None = None,
    measured_on: str = "the weights of the run",
    usage: str = "",
) -> str:
    """The model card of a run as Markdown.

    Intervals resample the clusters of test images that notebook 04 has kept in CLUSTERS; without
    that file, single images. predictions, calibration (of `find_calibration`): of another form of
    the model, such as its ONNX file, named in `measured_on`; by default those of the run. usage:
    Markdown that says how to call it. MissingFileError where the run has no predictions or splits.
    """
    predictions = run.read_table("predictions.parquet") if predictions is None else predictions
    drawn = "single test images (notebook 04 finds near-duplicates)"
    if (run.path / CLUSTERS).is_file():
        clusters = run.read_table(CLUSTERS).set_index("sample_id")["cluster"]
        predictions = predictions.assign(cluster=predictions["sample_id"].map(clusters))
        drawn = "clusters of near-duplicates or groups, as in notebook 04"
    classes = check_predictions(predictions)
    calibration = calibration or find_calibration(predictions)
    calibrated = apply_temperature(predictions, calibration["temperature"])
    test = calibrated[calibrated["split"] == "test"]
    data = read_data_card(run)
    sections = {
        "Intended use": _describe_use(run, classes),
        "Data": _describe_data(run.read_table("splits.csv"), classes, data),
        f"Performance on {len(test):,} test images": [
            f"Measured on {measured_on}. Intervals: 95%, bootstrap over {drawn}.",
            "",
            *_write_metrics(calibrated, classes),
        ],
        "Performance by group": _write_groups(calibrated),
        "Calibration": [_describe_calibration(predictions, calibrated, calibration)],
        'When it says "not sure"': _describe_doubt(test, classes, calibration),
        "Limits": [f"- {limit}" for limit in find_limits(calibrated, classes, data)],
        "How to use it": [
            usage or f"{code(f'vitlab app {shlex.quote(run.name)}')} opens it in the browser."
        ],
        "Licence": [_describe_licence(data)],
        "Training": _describe_training(run),
    }
    lines = [f"# Model card: {escape(run.title)} on {escape(run.parameters['dataset'])}"]
    for title, content in sections.items():
        lines += ["", f"## {title}", "", *content]
    return "\n".join(lines) + "\n"


def apply_temperature(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """The predictions with probabilities and logits at this temperature; `pred` does not change."""
    classes = check_predictions(predictions)
    logits, probabilities = ([f"{kind}_{name}" for name in classes] for kind in ("logit", "prob"))
    table = predictions.copy()
    table[logits] = predictions[logits] / temperature
    table[probabilities] = softmax(table[logits].to_numpy(float), axis=1)
    return table


def read_data_card(run: Run) -> dict[str, str]:
    """Licence, version, source and duplicates by the run's data card; empty where not stated."""
    path = run.path / "data_card.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    patterns = {
        "licence": r"^- Licence: (.*)$",
        "version": r"^- Version: (.*)$",
        "source": r"^## Source\n\n((?:.|\n)*?)\n\n## ",
        "duplicates": r"^- (Of [\d,]+ pairs of near-duplicates, .*)$",
    }
    found = {name: re.search(pattern, text, re.MULTILINE) for name, pattern in patterns.items()}
    texts = {name: match[1] if match else "" for name, match in found.items()}
    return {
        name: "" if value.removeprefix("- ") == "not stated" else value
        for name, value in texts.items()
    }


def find_limits(
    calibrated: pd.DataFrame,
    classes: tuple[str, ...],
    data: Mapping[str, str],
) -> list[str]:
    """What a reader must know before trusting the metrics, each a sentence."""
    test = calibrated[calibrated["split"] == "test"]
    limits = [
        "The metrics hold for images like those of the data set: the same kind of object, camera,"
        " light and framing. For other images the predictions are not meaningful, and the model may"
        ' not say "not sure".',
        "The best epoch was chosen on the validation images. The temperature was fitted on half of"
        " them and the conformal limits on the other half, so the coverage is approximate.",
    ]
    if len(test) < MIN_TEST_IMAGES:
        limits.append(f"There are only {len(test)} test images: the intervals are wide.")
    counts = test["label"].value_counts().reindex(classes, fill_value=0)
    scarce = [f"{name} ({count})" for name, count in counts.items() if count < MIN_CLASS_IMAGES]
    if scarce:
        limits.append(
            f"Fewer than {MIN_CLASS_IMAGES} test images of {list_some(scarce)}: the metrics of"
            " these classes are imprecise."
        )
    if test["group"].nunique() > 1:
        gaps = worst_slice_table(calibrated)
        for _, row in gaps[gaps["verdict"].str.contains("worse", na=False)].iterrows():
            name = SHOWN.get(row["metric"], row["metric"].replace("_", " "))
            limits.append(
                f"The group {escape(row['slice'])} is worse than the rest: {name}"
                f" {row['value']:.3f} against {row['rest']:.3f} (difference {row['gap']:+.3f},"
                f" {row['low']:+.3f} to {row['high']:+.3f})."
            )
    else:
        limits.append("The images have no groups, so performance on subgroups is unknown.")
    limits.append(
        data["duplicates"]
        or "No search for near-duplicates between training and test images; they would inflate"
        " the metrics."
    )
    return limits


def _describe_use(run: Run, classes: tuple[str, ...]) -> list[str]:
    return [
        f"Predicts one of {len(classes)} classes for an image: {list_some(classes)}. Use it for"
        f" images like those of the data set {escape(run.parameters['dataset'])}, in research and"
        " teaching, and as a second opinion.",
        "",
        "Do not use it for decisions about people or safety, or for decisions that nobody checks.",
    ]


def _describe_data(
    samples: pd.DataFrame, classes: tuple[str, ...], data: Mapping[str, str]
) -> list[str]:
    counts = pd.crosstab(samples["label"].astype(str), samples["split"]).reindex(
        index=list(classes), columns=list(SPLITS), fill_value=0
    )
    counts["all"] = counts.sum(axis=1)
    shown = keep_extremes(counts, "all")
    rows = [[escape(name), *(f"{count:,}" for count in row)] for name, *row in shown.itertuples()]
    rows.append(["**all**", *(f"{count:,}" for count in counts.sum())])
    groups = samples["group"].nunique()
    in_groups = f" in {groups} groups" if groups > 1 else ""
    version = [f"Version: {data['version']}.", ""] if data["version"] else []
    source = ["", "Source:", "", data["source"]] if data["source"] else []
    return [
        f"{len(samples):,} images{in_groups}. `train` was used to fit the weights, `val` to"
        " choose the best epoch and the calibration, `test` only for the metrics below.",
        "",
        *version,
        *pipe_table(["class", *counts.columns], rows),
        *_note_cut(describe_cut(len(shown), len(counts), by="number of images")),
        *source,
    ]


def _write_metrics(calibrated: pd.DataFrame, classes: tuple[str, ...]) -> list[str]:
    table = metrics_table(calibrated).set_index("metric")
    rows = []
    for metric, name in SHOWN.items():
        if np.isfinite(table.loc[metric, "value"]):
            rows.append([name, *_with_interval(table.loc[metric])])
    of = f"of the class {escape(classes[-1])}" if len(classes) == 2 else "means over the classes"
    note = f"Precision, recall, specificity, F1 and the two areas are {of}."
    return [*pipe_table(["metric", "value", "95% interval"], rows), "", note]


def _write_groups(calibrated: pd.DataFrame) -> list[str]:
    table = slice_table(calibrated, metrics=BY_GROUP).rename(columns={"slice": "group"})
    if table["group"].nunique() < 2:
        return ["The images have no groups."]
    first = table[table["metric"] == BY_GROUP[0]]
    shown = keep_extremes(first, "value")["group"]
    rows = []
    for group in shown:
        part = table[table["group"] == group].set_index("metric")
        cells = [" ".join(_with_interval(part.loc[metric])) for metric in BY_GROUP]
        rows.append([escape(group), f"{part['n'].iloc[0]:,}", *cells])
    lines = pipe_table(["group", "images", *(SHOWN[metric] for metric in BY_GROUP)], rows)
    return [*lines, *_note_cut(describe_cut(len(shown), len(first), "groups", SHOWN[BY_GROUP[0]]))]


def _describe_calibration(before: pd.DataFrame, after: pd.DataFrame, calibration: Mapping) -> str:
    errors = [calibration_table(part).set_index("metric").loc["ece"] for part in (before, after)]
    first, last = (" ".join(_with_interval(error)) for error in errors)
    return (
        f"The logits are divided by a temperature of {calibration['temperature']:.3f}, fitted on"
        " half of the validation images. On the test images the expected calibration error was"
        f" {first} before and is {last} after."
    )


def _describe_doubt(
    test: pd.DataFrame, classes: tuple[str, ...], calibration: Mapping
) -> list[str]:
    probabilities = test[[f"prob_{name}" for name in classes]].to_numpy()
    made = [make_prediction(row, classes, calibration) for row in probabilities]
    label = test["label"].astype(str).to_numpy()
    sure = np.array([prediction.sure for prediction in made])
    right = np.array([prediction.classes[0] for prediction in made]) == label
    pairs = zip(label, made, strict=True)
    covered = np.array([name in prediction.members for name, prediction in pairs])
    low, high = wilson_interval(covered.mean(), len(covered))
    lines = [
        "A conformal set of classes misses the true one for at most"
        f" {calibration['alpha']:.0%} of the images of each class. The model says"
        ' "not sure" unless the set contains only the most probable class. On the test images:',
        "",
        f"- the sets contained the true class for {covered.mean():.1%} ({low:.1%} to {high:.1%});",
        f"- the model was sure for {sure.mean():.1%};",
    ]
    if sure.any():
        lines.append(f"- when it was sure, it was correct for {right[sure].mean():.1%};")
    if not sure.all():
        lines.append(
            f"- when it was not, the most probable class was correct for {right[~sure].mean():.1%}."
        )
    return lines


def _describe_licence(data: Mapping[str, str]) -> str:
    if not data["licence"]:
        return (
            "The licence of the training images is not stated; ask the owner before you share the"
            " model. The code: MIT."
        )
    return (
        f"The code: MIT. The training data: {data['licence']}. The terms of that licence may apply"
        " to the weights too."
    )


def _describe_training(run: Run) -> list[str]:
    facts = run.facts
    given = {name: value for name, value in run.parameters.items() if value not in (None, "")}
    lines = {
        "run": f"{run.name}, {run.info.get('started', '')[:10]}",
        "parameters": ", ".join(f"{name} {value}" for name, value in given.items()),
        "size": f"{facts['parameters']:,} weights" if "parameters" in facts else "",
        "best epoch": facts.get("best_epoch", ""),
        "time": f"{facts['train_s']:g} s on {facts.get('device')}" if "train_s" in facts else "",
        "machine": run.info.get("machine", ""),
        "commit of vitlab": run.info.get("commit", ""),
        "versions": ", ".join(f"{name} {v}" for name, v in run.info.get("versions", {}).items()),
    }
    return [f"- {name}: {escape(value)}" for name, value in lines.items() if value != ""]


def _with_interval(row: pd.Series) -> tuple[str, str]:
    value = f"{row['value']:.3f}" if np.isfinite(row["value"]) else "none"
    if not np.isfinite(row["low"]):
        return value, "(no interval)"
    return value, f"({row['low']:.3f} to {row['high']:.3f})"


def _note_cut(note: str) -> list[str]:
    return ["", f"The table shows {note}."] if note else []

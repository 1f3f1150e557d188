"""The model card: what a model is, how well it does and for whom not, by what its run has kept
(arXiv 1810.03993).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

import numpy as np
import pandas as pd

from vitlab.app.predictors import temper
from vitlab.app.verdict import Calibration, judge
from vitlab.compress.confidence import find_calibration
from vitlab.evaluation import (
    calibration_table,
    class_table,
    metrics_table,
    slice_table,
    worst_slice_table,
)
from vitlab.evaluation.calibration import wilson_interval
from vitlab.extremes import keep_extremes
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
# of a run: columns sample_id, cluster, of `vitlab.data.cluster_test_images`
CLUSTERS = "clusters.parquet"
MIN_TEST_IMAGES = 100  # below it, the card says that intervals are wide
# of the test split, below it the card says that the figures of a class are imprecise
MIN_CLASS_IMAGES = 30


def model_card(
    run: Run,
    predictions: pd.DataFrame | None = None,
    *,
    calibration: Calibration | None = None,
    measured_on: str = "the weights of the run",
    files: Mapping[str, int] | None = None,
    usage: str = "",
) -> str:
    """A run as Markdown: use, data, metrics with intervals, groups, calibration, "not sure",
    limits, licence, versions.

    Intervals draw the clusters of test images that notebook 04 has kept in CLUSTERS; without that
    file, single images. predictions: of another form of the model, such as its ONNX file, named in
    `measured_on`; by default those of the run. calibration: as it is shipped; by default
    `find_calibration` of the predictions. files: name and bytes of what is shipped. usage: Markdown
    that says how it is called. Raises FileNotFoundError where the run has kept no predictions or
    splits."""
    predictions = run.read_table("predictions.parquet") if predictions is None else predictions
    classes = check_predictions(predictions)
    calibration = calibration or Calibration.from_sidecar(find_calibration(predictions), classes)
    calibrated = apply_temperature(predictions, calibration.temperature)
    test = calibrated[calibrated["split"] == "test"]
    samples = run.read_table("splits.csv")
    data = read_data_card(run)
    kept = (run.path / CLUSTERS).is_file()
    cluster = run.read_table(CLUSTERS).set_index("sample_id")["cluster"] if kept else None
    alone = "single test images (notebook 04 finds near-duplicates)"
    drawn = "clusters of near-duplicates or groups, as in notebook 04" if kept else alone
    sections = {
        "What it is for": _describe_use(run, classes, data),
        "Data": _describe_data(samples, classes, data),
        f"How well it does on {len(test):,} test images": [
            f"Measured on {measured_on}. Intervals: 95%, bootstrap over {drawn}.",
            "",
            *_write_metrics(calibrated, classes, cluster),
            "",
            *_write_classes(calibrated),
        ],
        "For each group": _write_groups(calibrated, cluster),
        "Do the probabilities mean what they say?": _describe_calibration(
            predictions, calibrated, calibration, cluster
        ),
        'When it says "not sure"': _describe_doubt(test, classes, calibration),
        "Limits": [f"- {limit}" for limit in find_limits(calibrated, classes, data, cluster)],
        "How to use it": (
            [usage]
            if usage
            else [f"{code(f'vitlab app {shlex.quote(run.name)}')} opens it in the browser."]
        ),
        "Licence": _describe_licence(data),
        "How it was made": _describe_making(run, files or {}),
    }
    lines = [f"# Model card: {escape(run.title)} on {escape(run.parameters['dataset'])}"]
    for title, content in sections.items():
        lines += ["", f"## {title}", "", *content]
    return "\n".join(lines) + "\n"


def apply_temperature(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """The predictions with probabilities and logits of this temperature; `pred` stays, for their
    order does.
    """
    classes = check_predictions(predictions)
    logits, probabilities = ([f"{kind}_{name}" for name in classes] for kind in ("logit", "prob"))
    table = predictions.copy()
    table[logits] = predictions[logits] / temperature
    table[probabilities] = temper(predictions[probabilities].to_numpy(), temperature)
    return table


def read_data_card(run: Run) -> dict[str, str]:
    """Licence, version, source and duplicates of the data as Markdown, from the run's data card;
    empty where it has none.
    """
    path = run.path / "data_card.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = {
        name: re.search(rf"^- {name}: (.*)$", text, re.MULTILINE) for name in ("Licence", "Version")
    }
    source = re.search(r"^## Source\n\n(.*?)\n\n## ", text, re.MULTILINE | re.DOTALL)
    duplicates = re.search(r"^- (Of [\d,]+ pairs of near-duplicates, .*)$", text, re.MULTILINE)
    return {
        **{
            name.lower(): match.group(1) if match and match.group(1) != "not stated" else ""
            for name, match in found.items()
        },
        "source": source.group(1) if source and source.group(1) != "- not stated" else "",
        "duplicates": duplicates[1] if duplicates else "",
    }


def find_limits(
    calibrated: pd.DataFrame,
    classes: tuple[str, ...],
    data: Mapping[str, str],
    cluster: pd.Series | None = None,
) -> list[str]:
    """What a reader must know before trusting the figures, each a sentence. cluster: as in
    `metrics_table`.
    """
    test = calibrated[calibrated["split"] == "test"]
    limits = [
        (
            "The figures hold for images like those of the data set: same kind of object, camera,"
            " light and framing. What the model says of anything else means nothing, and it will"
            ' not always say "not sure" there.'
        ),
        (
            "The validation images chose the epoch, half of them the temperature, and the other"
            " half the limits of the sets: the promise holds approximately."
        ),
    ]
    if len(test) < MIN_TEST_IMAGES:
        limits.append(f"There are only {len(test)} test images: the intervals are wide.")
    scarce = test["label"].value_counts().reindex(classes, fill_value=0)
    scarce = [f"{name} ({count})" for name, count in scarce.items() if count < MIN_CLASS_IMAGES]
    if scarce:
        named = list_some(scarce)
        limits.append(
            f"Fewer than {MIN_CLASS_IMAGES} test images of {named}: the figures of these classes"
            " are imprecise."
        )
    if test["group"].nunique() > 1:
        gaps = worst_slice_table(calibrated, ["group"], cluster=cluster)
        for _, row in gaps[gaps["verdict"].str.contains("worse", na=False)].iterrows():
            limits.append(
                f"The group {escape(row['slice'])} is worse than the rest:"
                f" {_readable(row['metric'])} {row['value']:.3f} against {row['rest']:.3f}"
                f" (difference {row['gap']:+.3f}, {row['low']:+.3f} to {row['high']:+.3f})."
            )
    else:
        limits.append(
            "The images have no groups: whether the model is worse on some part of them is not"
            " known."
        )
    limits.append(
        data["duplicates"]
        or "Near-duplicates between training and test were not looked for; they would flatter the figures."
    )
    return limits


def _describe_use(run: Run, classes: tuple[str, ...], data: Mapping[str, str]) -> list[str]:
    return [
        (
            f"It looks at one image and names one of {len(classes)} classes: {list_some(classes)}."
            f" It is for images like those of the data set {escape(run.parameters['dataset'])}"
            " (below), for research, teaching and as a second look."
        ),
        "",
        "It is not for decisions about people or safety, or for decisions that nobody checks.",
    ]


def _describe_data(
    samples: pd.DataFrame, classes: tuple[str, ...], data: Mapping[str, str]
) -> list[str]:
    counts = pd.crosstab(samples["label"].astype(str), samples["split"]).reindex(
        index=list(classes), columns=list(SPLITS), fill_value=0
    )
    sized = keep_extremes(counts.assign(all=counts.sum(axis=1)), "all")
    rows = [[escape(name), *(f"{count:,}" for count in row)] for name, *row in sized.itertuples()]
    total = counts.sum().tolist()
    rows.append(["**all**", *(f"{count:,}" for count in [*total, sum(total)])])
    groups = samples["group"].nunique()
    version = [f"Version: {data['version']}.", ""] if data["version"] else []
    source = ["", "Source:", "", data["source"]] if data["source"] else []
    count = f"{len(samples):,} images" + (f" in {groups} groups" if groups > 1 else "")
    said = (
        f"{count}. `train` taught the model, `val` chose the epoch and the calibration, `test` was"
        " kept for the figures below."
    )
    return [
        said,
        "",
        *version,
        *pipe_table(["class", *SPLITS, "all"], rows),
        *_note_cut(len(sized), len(counts)),
        *source,
    ]


def _write_metrics(
    calibrated: pd.DataFrame, classes: tuple[str, ...], cluster: pd.Series | None
) -> list[str]:
    table = metrics_table(calibrated, cluster=cluster).set_index("metric")
    kept = [metric for metric in SHOWN if np.isfinite(table.loc[metric, "value"])]
    rows = [[SHOWN[metric], *_with_interval(table.loc[metric])] for metric in kept]
    of = f"of the class {escape(classes[-1])}" if len(classes) == 2 else "means over the classes"
    note = f"Precision, recall, specificity, F1 and the two areas are {of}."
    return [*pipe_table(["metric", "value", "95% interval"], rows), "", note]


def _write_classes(calibrated: pd.DataFrame) -> list[str]:
    table = class_table(calibrated)
    shown = keep_extremes(table, "f1")
    rows = [
        [
            escape(row["class"]),
            f"{int(row['support']):,}",
            *(_number(row[name]) for name in ("precision", "recall", "f1")),
        ]
        for _, row in shown.iterrows()
    ]
    return [
        *pipe_table(["class", "images", "precision", "recall", "F1"], rows),
        *_note_cut(len(shown), len(table), "F1"),
    ]


def _write_groups(calibrated: pd.DataFrame, cluster: pd.Series | None) -> list[str]:
    table = slice_table(calibrated, metrics=BY_GROUP, cluster=cluster)
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
    return [*lines, *_note_cut(len(shown), len(first), SHOWN[BY_GROUP[0]], "groups")]


def _describe_calibration(
    before: pd.DataFrame, after: pd.DataFrame, calibration: Calibration, cluster: pd.Series | None
) -> list[str]:
    tables = [
        calibration_table(part, cluster=cluster).set_index("metric") for part in (before, after)
    ]
    names = {
        "ece": "expected calibration error",
        "brier": "Brier score",
        "nll": "negative log-likelihood",
    }
    rows = [
        [text, *(" ".join(_with_interval(table.loc[name])) for table in tables)]
        for name, text in names.items()
    ]
    chance = tables[1].loc["ece", ["calibrated_low", "calibrated_high"]]
    return [
        (
            f"The logits are divided by a temperature of {calibration.temperature:.3f}, fitted on"
            " half of the validation images."
        ),
        "",
        *pipe_table(["on the test images", "before", "after"], rows),
        "",
        (
            "Smaller is better for all three. On so few images, even perfectly calibrated"
            f" probabilities would have an expected calibration error of {chance.iloc[0]:.3f} to"
            f" {chance.iloc[1]:.3f} in 95 % of cases."
        ),
    ]


def _describe_doubt(
    test: pd.DataFrame, classes: tuple[str, ...], calibration: Calibration
) -> list[str]:
    probabilities = test[[f"prob_{name}" for name in classes]].to_numpy()
    verdicts = [judge(row, classes, calibration) for row in probabilities]
    sure = np.array([verdict.sure for verdict in verdicts])
    label = test["label"].astype(str).to_numpy()
    right = np.array([verdict.classes[0] for verdict in verdicts]) == label
    covered = np.array(
        [name in verdict.members for name, verdict in zip(label, verdicts, strict=True)]
    )
    share = wilson_interval(covered.mean(), len(covered))
    lines = [
        (
            f"A set of classes is made that misses the true one for at most {calibration.alpha:.0%}"
            ' of the images of each class. The answer is "not sure" unless the most probable class'
            " is alone in it. On the test images:"
        ),
        "",
        (
            f"- the sets held the true class for {covered.mean():.1%} ({share[0]:.1%} to"
            f" {share[1]:.1%});"
        ),
        f"- the answer was sure for {sure.mean():.1%};",
        *(
            [f"- where it was sure, it was right for {right[sure].mean():.1%};"]
            if sure.any()
            else []
        ),
        *(
            [f"- where it was not sure, its best guess was right for {right[~sure].mean():.1%}."]
            if not sure.all()
            else []
        ),
    ]
    table = pd.DataFrame({"class": classes, "limit": calibration.limits})
    shown = keep_extremes(table, "limit")
    rows = [[escape(name), _number(limit)] for name, limit in shown.itertuples(index=False)]
    header = ["class", "in the set from a probability of"]
    return [*lines, "", *pipe_table(header, rows), *_note_cut(len(shown), len(table), "limit")]


def _describe_licence(data: Mapping[str, str]) -> list[str]:
    if not data["licence"]:
        return [
            "The licence of the training images is not stated; ask before the model is passed on."
            " The code is MIT."
        ]
    return [
        f"The code: MIT. The data it was trained on: {data['licence']}. The terms of that licence"
        " may bind the weights too."
    ]


def _describe_making(run: Run, files: Mapping[str, int]) -> list[str]:
    chosen = [
        escape(f"{name} {value}")
        for name, value in run.parameters.items()
        if value not in (None, "")
    ]
    facts = {
        "parameters": f"{run.facts['parameters']:,}" if "parameters" in run.facts else "",
        "best epoch": run.facts.get("best_epoch", ""),
        "training": (
            f"{run.facts['train_s']:g} s on {run.facts.get('device', '')}"
            if "train_s" in run.facts
            else ""
        ),
        "machine": run.info.get("machine", ""),
        "commit of vitlab": run.info.get("commit", ""),
    }
    return [
        f"- run: {code(run.name)}, {run.info.get('started', '')[:10]}",
        f"- set: {', '.join(chosen)}",
        *(f"- {name}: {escape(value)}" for name, value in facts.items() if value != ""),
        *(f"- {code(name)}: {_describe_bytes(size)}" for name, size in files.items()),
        (
            "- versions:"
            f" {', '.join(f'{name} {value}' for name, value in run.info.get('versions', {}).items())}"
        ),
    ]


def _describe_bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _with_interval(row: pd.Series) -> list[str]:
    interval = (
        f"({row['low']:.3f} to {row['high']:.3f})" if np.isfinite(row["low"]) else "(no interval)"
    )
    return [_number(row["value"]), interval]


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "none"


def _readable(metric: str) -> str:
    return SHOWN.get(metric, metric.replace("_", " "))


def _note_cut(shown: int, total: int, by: str = "images", what: str = "classes") -> list[str]:
    note = f"The table has {shown} of {total:,} {what}: those with the lowest and the highest {by}."
    return ["", note] if shown < total else []

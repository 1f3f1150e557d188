"""Checks of the numbers: splits, images, predictions, and metrics computed again from the predictions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.notebook import notebook_parameters
from vitlab.registry import unknown
from vitlab.schema import SPLITS, check_predictions
from vitlab.submission.images import hash_table, image_hash_table, join_samples
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Bundle, Result, judge_each

EXACT = 1e-9  # metrics of the same predictions: only the order of sums may differ
LOOSE = 1e-6  # probabilities against the softmax of the logits


def check_splits(bundle: Bundle) -> list[Result]:
    """Every image is in one split, and the hash of the splits is that of the manifest and of the data card."""
    from vitlab.data import drop_synthetic, find_synthetic, hash_splits

    by_path = {run["path"]: run for run in bundle.runs}

    def judge(place: str) -> tuple[str, str]:
        samples = _read_splits(bundle, place)
        made = samples[find_synthetic(samples) & (samples["split"] != "train")]
        if len(made):
            return FAIL, f"{len(made)} synthetic images are outside of training, the first is {made['sample_id'].iloc[0]}"
        samples = drop_synthetic(samples)
        twice = samples["sample_id"][samples["sample_id"].duplicated()]
        if len(twice):
            return FAIL, f"{len(twice)} images stand twice, the first is {twice.iloc[0]}"
        strange = set(samples["split"]) - set(SPLITS)
        if strange:
            return FAIL, f"there is no split {sorted(map(str, strange))[0]!r}"
        digest = hash_splits(samples)
        if digest != by_path[place]["splits_sha256"]:
            return FAIL, "the hash of the splits is not that of the manifest"
        if f"`{digest}`" not in bundle.read_text(f"{place}/data_card.md"):
            return FAIL, "the hash of the splits is not that of the data card"
        counts = samples["split"].value_counts()
        return PASS, ", ".join(f"{counts.get(name, 0):,} {name}" for name in SPLITS) + f", hash {digest[:12]}..."

    return judge_each("splits", by_path, judge)


def check_data(bundle: Bundle) -> list[Result]:
    """The runs' images and labels are those whose hashes are in the bundle, and those of the data where these are at hand."""

    def judge(dataset: str) -> tuple[str, str]:
        noted = bundle.manifest["data"].get(dataset)
        if noted is None or not any(run["dataset"] == dataset for run in bundle.runs):
            return FAIL, "the manifest has no hashes of its images" if noted is None else "no run is of this data set"
        table = bundle.read_table(noted["table"])
        if hash_table(table) != noted["sha256"]:
            return FAIL, f"{noted['table']} does not have the hash of the manifest"
        samples = join_samples([_read_splits(bundle, run["path"]) for run in bundle.runs if run["dataset"] == dataset])
        if set(samples["sample_id"]) != set(table["sample_id"]):
            return FAIL, f"the splits hold other images than {noted['table']}"
        labels = table.set_index("sample_id")["label"]
        for run in bundle.runs:
            if run["dataset"] == dataset:
                own = _real(_read_splits(bundle, run["path"])).set_index("sample_id")["label"].astype(str)
                wrong = own[own != labels[own.index]]
                if len(wrong):
                    return FAIL, f"{run['path']}/splits.csv labels {wrong.index[0]} {wrong.iloc[0]}, {noted['table']} does not"
        here = find_data(bundle, dataset)
        if not here:
            several = len({run["dataset"] for run in bundle.runs}) > 1
            advice = "--data serves bundles of one data set only" if several else "name yours with --data"
            return SKIPPED, f"{len(table):,} hashes fit the splits; {dataset} is not at hand: {advice}"
        if not bundle.options.images:
            return PASS, f"{len(table):,} images, hash {noted['sha256'][:12]}..."
        left = _find_left_out(here, samples)
        if left:
            return FAIL, f"{len(left)} images of {here} are in no split, the first is {left[0]}"
        ours = image_hash_table(here, samples).set_index("sample_id")
        for column, what in (("sha256", "other pixels"), ("label", "another label")):
            theirs = table.set_index("sample_id")[column]
            other = theirs.index[theirs != ours[column].reindex(theirs.index)]
            if len(other):
                return FAIL, f"{len(other)} images have {what} in {here} on this machine, the first is {other[0]}"
        return PASS, f"{len(table):,} images and labels as in {here} on this machine, hash {noted['sha256'][:12]}..."

    datasets = {run["dataset"] for run in bundle.runs} | set(bundle.manifest["data"])
    return judge_each("data", sorted(datasets), judge)


def check_predicted(bundle: Bundle) -> list[Result]:
    """The predictions are of all images of validation and test, with their labels; class, probabilities and logits agree."""

    def judge(place: str) -> tuple[str, str]:
        predictions = bundle.read_table(f"{place}/predictions.parquet")
        classes = check_predictions(predictions)
        own = bundle.read_json(f"{place}/model.json")["classes"]
        if list(classes) != list(own):
            return FAIL, f"the classes stand in another order than in model.json, {', '.join(map(str, own))[:80]}"
        samples = _real(_read_splits(bundle, place)).set_index("sample_id")
        judged = samples[samples["split"].isin(["val", "test"])]
        ids = set(predictions["sample_id"].astype(str))
        if ids != set(judged.index):
            missing, strange = len(set(judged.index) - ids), len(ids - set(judged.index))
            return FAIL, f"{missing} images of validation and test have no prediction, {strange} predictions no such image"
        rows = samples.loc[predictions["sample_id"].astype(str)]
        for column in ("split", "label"):
            other = rows[column].astype(str).to_numpy() != predictions[column].astype(str).to_numpy()
            if other.any():
                return (
                    FAIL,
                    f"{other.sum()} predictions have another {column} than splits.csv, the first is {rows.index[other][0]}",
                )
        logits, probabilities = (
            predictions[[f"{kind}_{name}" for name in classes]].to_numpy(float) for kind in ("logit", "prob")
        )
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        if np.abs(powers / powers.sum(axis=1, keepdims=True) - probabilities).max() > LOOSE:
            return FAIL, "probabilities are not the softmax of the logits"
        chosen = np.array(classes)[logits.argmax(axis=1)] != predictions["pred"].astype(str).to_numpy()
        if chosen.any():
            return FAIL, f"{chosen.sum()} predictions do not name the class of the highest logit"
        return PASS, f"{len(predictions):,} predictions of {len(classes)} classes"

    return judge_each("predictions", [run["path"] for run in bundle.runs], judge)


def check_metrics(bundle: Bundle) -> list[Result]:
    """metrics.json is what the predictions give; its intervals too, where the images are at hand to find near-duplicates."""

    def judge(place: str) -> tuple[str, str]:
        measured = measure(bundle.read_table(f"{place}/predictions.parquet"))
        if not (bundle.folder / place / "metrics.json").is_file():
            return SKIPPED, f"notebook 04 was not run, so there is nothing to compare; accuracy {measured['accuracy']:.4f}"
        noted = _read_metrics(bundle, place)
        wrong = [
            f"{name} is {noted[name]['value']:.6f} in metrics.json, {measured[name]:.6f} by the predictions"
            for name in noted
            if not _close(noted[name]["value"], measured[name], EXACT)
        ]
        return (FAIL, "; ".join(wrong)) if wrong else (PASS, f"{len(noted)} metrics; accuracy {measured['accuracy']:.4f}")

    results = judge_each("metrics", [run["path"] for run in bundle.runs], judge)
    evaluated = [run["path"] for run in bundle.runs if (bundle.folder / run["path"] / "metrics.json").is_file()]
    return results + judge_each("intervals", evaluated, lambda place: _judge_intervals(bundle, place))


def measure(predictions: pd.DataFrame) -> dict[str, float]:
    """Metric -> value on the test split."""
    from vitlab.evaluation import metrics_table

    return metrics_table(predictions, replicates=0).set_index("metric")["value"].to_dict()


def find_data(bundle: Bundle, dataset: str) -> str:
    """The name by which the data can be read here: what the marker named, or a set that comes in a package; "" for none.

    A stranger's name never makes this machine read a folder or download: those must be named with --data.
    """
    from vitlab.data import available

    if bundle.options.data and len({run["dataset"] for run in bundle.runs}) == 1:
        return bundle.options.data
    return dataset if dataset in available() and not dataset.endswith(":") else ""


def _find_left_out(dataset: str, samples: pd.DataFrame) -> list[str]:
    """Images of the data set that are in no split though they can be read: whoever drops the wrong ones improves every number."""
    from vitlab.data import load_dataset
    from vitlab.data.quality import find_unreadable
    from vitlab.data.sources import NOT_CHOSEN

    data = load_dataset(dataset, samples=samples)
    rest = data.excluded[data.excluded["reason"] == NOT_CHOSEN]
    return sorted(set(rest["sample_id"]) - set(find_unreadable(data.read, rest)["sample_id"])) if len(rest) else []


def _judge_intervals(bundle: Bundle, place: str) -> tuple[str, str]:
    run = next(run for run in bundle.runs if run["path"] == place)
    here = find_data(bundle, run["dataset"])
    if not here or not bundle.options.images:
        return SKIPPED, "the images, which decide what is drawn together, were not read"
    book = next((book for book in bundle.notebooks if book.get("run") == place and "04_evaluate" in book["executed"]), None)
    if book is None:
        return SKIPPED, "the bundle holds no notebook 04 of this run"
    bundle.read_notebook(book["clean"])  # which refuses a large one
    declared = {name: default for name, (default, _) in notebook_parameters(bundle.place(book["clean"])).items()}
    replicates = {**declared, **book["parameters"]}.get("replicates")
    if not isinstance(replicates, int):
        return SKIPPED, "its notebook has no parameter replicates"
    if not 0 <= replicates <= 100_000:
        return SKIPPED, f"{replicates:,} replicates are too many to draw again"
    noted, table = _read_metrics(bundle, place), _measure_intervals(bundle, place, here, replicates)
    wrong = [
        f"{name} is {noted[name][end]:.4f} at the {end} end, {table[name][end]:.4f} when drawn again"
        for name in noted
        for end in ("low", "high")
        if not _close(noted[name][end], table[name][end], LOOSE)
    ]
    return (FAIL, "; ".join(wrong[:3])) if wrong else (PASS, f"{len(noted)} intervals of {replicates:,} replicates")


def _measure_intervals(bundle: Bundle, place: str, dataset: str, replicates: int) -> dict[str, dict[str, float]]:
    """As notebook 04 does: near-duplicates among the test images are drawn together."""
    from vitlab.data import cluster_test_images, load_dataset
    from vitlab.evaluation import metrics_table

    run = next(run for run in bundle.runs if run["path"] == place)
    images = load_dataset(dataset, samples=_read_splits(bundle, place))
    clusters = cluster_test_images(images, run["parameters"].get("split_by", ""))
    predictions = bundle.read_table(f"{place}/predictions.parquet")
    return metrics_table(predictions, replicates=replicates, cluster=clusters).set_index("metric").to_dict("index")


def _read_metrics(bundle: Bundle, place: str) -> dict[str, dict[str, float]]:
    """metrics.json. ValueError where it holds anything but known metrics with value, low and high, or lacks one."""
    from vitlab.evaluation import METRICS

    content: Any = bundle.read_json(f"{place}/metrics.json")
    for name in content:
        if name not in METRICS:
            raise UserError(f"metrics.json: {unknown('metric', name, list(METRICS))}")
    missing = [name for name in METRICS if name not in content]
    if missing:
        raise UserError(f"metrics.json lacks {', '.join(missing)}")
    return {name: {end: float(row[end]) for end in ("value", "low", "high")} for name, row in content.items()}


def _read_splits(bundle: Bundle, place: str) -> pd.DataFrame:
    return bundle.read_table(f"{place}/splits.csv")


def _real(samples: pd.DataFrame) -> pd.DataFrame:
    from vitlab.data import drop_synthetic

    return drop_synthetic(samples)


def _close(one: float, other: float, tolerance: float) -> bool:
    return math.isclose(one, other, rel_tol=0, abs_tol=tolerance) or (math.isnan(one) and math.isnan(other))

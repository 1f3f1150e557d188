"""Checks of the results: splits, images, predictions, and metrics computed again from the
predictions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax

from vitlab.registry import unknown
from vitlab.run_folders import dataset_folder
from vitlab.schema import SPLITS, check_predictions
from vitlab.submission.archive import Bundle
from vitlab.submission.checks import FAIL, PASS, SKIPPED, Result, judge_each

EXACT = 1e-9  # metrics of the same predictions: only the order of sums may differ
LOOSE = 1e-6  # probabilities against the softmax of the logits; ends of intervals


def check_splits(bundle: Bundle) -> list[Result]:
    """Every image is in one split, by the hash in data_card.md; test images are real."""
    from vitlab.data import find_synthetic
    from vitlab.data.balance import drop_synthetic
    from vitlab.data.card import hash_splits

    def judge(run: str) -> tuple[str, str]:
        samples = bundle.read_table(f"{run}/splits.csv")
        made = samples["sample_id"][find_synthetic(samples) & (samples["split"] != "train")]
        if len(made):
            return FAIL, f"{len(made)} synthetic images outside of training, like {made.iloc[0]}"
        samples = drop_synthetic(samples)
        repeated = samples["sample_id"][samples["sample_id"].duplicated()]
        if len(repeated):
            return FAIL, f"{len(repeated)} images have several rows, like {repeated.iloc[0]}"
        strange = set(samples["split"]) - set(SPLITS)
        if strange:
            return FAIL, unknown("split", str(strange.pop()), list(SPLITS))
        digest = hash_splits(samples)
        if f"`{digest}`" not in bundle.read_text(f"{run}/data_card.md"):
            return FAIL, "the hash of splits.csv is not the one in data_card.md"
        counts = samples["split"].value_counts()
        sizes = ", ".join(f"{counts.get(name, 0):,} {name}" for name in SPLITS)
        return PASS, f"{sizes}, hash {digest[:12]}..."

    return judge_each("splits", bundle.runs, judge)


def check_data(bundle: Bundle) -> list[Result]:
    """Images and labels are those of the hashes in the bundle, and of the data if they are here."""

    def judge(dataset: str) -> tuple[str, str]:
        name = f"data/{dataset_folder(dataset)}.csv"
        hashes = bundle.read_table(name).set_index("sample_id")
        runs = [run for run in bundle.runs if bundle.datasets[run] == dataset]
        tables = {run: _read_real(bundle, run) for run in runs}
        samples = join_samples(list(tables.values()))
        if set(samples["sample_id"]) != set(hashes.index):
            return FAIL, f"splits.csv and {name} list different images"
        for run, table in tables.items():
            labels = table.set_index("sample_id")["label"]
            wrong = labels.index[labels != hashes["label"][labels.index]]
            if len(wrong):
                return FAIL, f"{wrong[0]} has another label in {run}/splits.csv than in {name}"
        here = find_data(bundle, dataset)
        if not here:
            single = len(set(bundle.datasets.values())) == 1
            advice = "name yours with --data" if single else "--data needs a single data set"
            return SKIPPED, f"{dataset} is not available here: {advice}"
        if not bundle.options.images:
            return PASS, f"{len(hashes):,} images"
        left = _find_left_out(here, samples)
        if left:
            return FAIL, f"{len(left)} images of {here} are in no split, the first is {left[0]}"
        ours = image_hash_table(here, samples).set_index("sample_id").reindex(hashes.index)
        for column, what in (("sha256", "other pixels"), ("label", "another label")):
            other = hashes.index[hashes[column] != ours[column]]
            if len(other):
                where = f"in {here} on this machine, the first is {other[0]}"
                return FAIL, f"{len(other)} images have {what} {where}"
        return PASS, f"{len(hashes):,} images and labels as in {here} on this machine"

    return judge_each("data", sorted(set(bundle.datasets.values())), judge)


def check_predicted(bundle: Bundle) -> list[Result]:
    """Predictions are of all images of validation and test, and agree with themselves."""

    def judge(run: str) -> tuple[str, str]:
        predictions = bundle.read_table(f"{run}/predictions.parquet")
        classes = check_predictions(predictions)
        own = bundle.read_json(f"{run}/model.json")["classes"]
        if list(classes) != list(own):
            return FAIL, f"the classes are in another order than in model.json: {str(own)[:80]}"
        samples = _read_real(bundle, run).set_index("sample_id")
        expected = set(samples.index[samples["split"].isin(["val", "test"])])
        ids = predictions["sample_id"].astype(str)
        if set(ids) != expected:
            missing, strange = len(expected - set(ids)), len(set(ids) - expected)
            return FAIL, f"{missing} images have no prediction, {strange} predictions no image"
        rows = samples.loc[ids]
        for column in ("split", "label"):
            other = rows[column].astype(str).to_numpy() != predictions[column].astype(str)
            if other.any():
                first = ids[other].iloc[0]
                what = f"predictions have another {column} than splits.csv, the first is {first}"
                return FAIL, f"{other.sum()} {what}"
        logits = predictions[[f"logit_{name}" for name in classes]].to_numpy(float)
        probabilities = predictions[[f"prob_{name}" for name in classes]].to_numpy(float)
        if np.abs(softmax(logits, axis=1) - probabilities).max() > LOOSE:
            return FAIL, "probabilities are not the softmax of the logits"
        wrong = np.array(classes)[logits.argmax(axis=1)] != predictions["pred"].astype(str)
        if wrong.any():
            return FAIL, f"{wrong.sum()} predictions do not name the class of the highest logit"
        return PASS, f"{len(predictions):,} predictions of {len(classes)} classes"

    return judge_each("predictions", bundle.runs, judge)


def check_metrics(bundle: Bundle) -> list[Result]:
    """metrics.json is what the predictions give."""

    def judge(run: str) -> tuple[str, str]:
        measured = measure(bundle.read_table(f"{run}/predictions.parquet"))
        accuracy = f"accuracy {measured['accuracy']:.4f}"
        if not (bundle.folder / run / "metrics.json").is_file():
            return SKIPPED, f"notebook 04 was not run, so there is no metrics.json; {accuracy}"
        noted = bundle.read_json(f"{run}/metrics.json")
        if noted.keys() != measured.keys():
            return FAIL, f"metrics.json must have {', '.join(measured)}"
        for name, row in noted.items():
            value = float(row["value"])
            if not np.isclose(value, measured[name], rtol=0, atol=EXACT, equal_nan=True):
                ours = f"{measured[name]:.6f} by the predictions"
                return FAIL, f"{name} is {value:.6f} in metrics.json, {ours}"
        return PASS, f"{len(noted)} metrics; {accuracy}"

    return judge_each("metrics", bundle.runs, judge)


def measure(predictions: pd.DataFrame) -> dict[str, float]:
    """Metric -> value on the test split."""
    from vitlab.evaluation import metrics_table

    return metrics_table(predictions, replicates=0).set_index("metric")["value"].to_dict()


def find_data(bundle: Bundle, dataset: str) -> str:
    """The name of the data here: what the marker named, or a set that comes in a package; else "".

    A name from a bundle never makes this machine read a folder or download."""
    from vitlab.data import available

    if bundle.options.data and len(set(bundle.datasets.values())) == 1:
        return bundle.options.data
    return dataset if dataset in available() and not dataset.endswith(":") else ""


def _find_left_out(dataset: str, samples: pd.DataFrame) -> list[str]:
    """Readable images in no split: leaving out mistakes would improve every metric."""
    from vitlab.data import load_dataset

    return sorted(set(load_dataset(dataset).samples["sample_id"]) - set(samples["sample_id"]))


def _read_real(bundle: Bundle, run: str) -> pd.DataFrame:
    """splits.csv without synthetic images."""
    from vitlab.data.balance import drop_synthetic

    return drop_synthetic(bundle.read_table(f"{run}/splits.csv"))


def image_hash_table(dataset: str, samples: pd.DataFrame) -> pd.DataFrame:
    """Columns sample_id, label, sha256 (of the decoded pixels) for the images of `samples`
    (sample_id, split), sorted by sample_id.

    Of JPEG and other lossy files, decoders of other versions may give pixels that differ by a grey
    level, and so another hash."""
    from vitlab.data import load_dataset
    from vitlab.data.reading import map_images

    data = load_dataset(dataset, samples=samples)
    rows = data.samples.sort_values("sample_id", ignore_index=True)
    ids = rows["sample_id"].tolist()
    hashes = map_images(lambda name: _hash_image(data.read(name)), ids, "hashing the images")
    return rows[["sample_id", "label"]].astype(str).assign(sha256=hashes)


def join_samples(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """sample_id and split of all real images in these tables of splits, each once."""
    from vitlab.data.balance import drop_synthetic

    real = [drop_synthetic(table)[["sample_id", "split"]] for table in tables]
    return pd.concat(real).drop_duplicates("sample_id", ignore_index=True)


def _hash_image(image) -> str:
    colours = bytes(image.getpalette() or ()) if image.mode == "P" else b""
    head = f"{image.mode} {image.size[0]}x{image.size[1]}\n".encode()
    return hashlib.sha256(head + colours + image.tobytes()).hexdigest()

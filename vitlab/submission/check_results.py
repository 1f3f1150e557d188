"""Checks of the results: splits, images, predictions, and metrics computed again from the
predictions.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.notebook import notebook_parameters
from vitlab.registry import unknown
from vitlab.runs import dataset_folder
from vitlab.schema import SPLITS, check_predictions
from vitlab.submission.check_notebooks import clean_name, injected_parameters
from vitlab.submission.images import image_hash_table, join_samples
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Bundle, Result, judge_each

EXACT = 1e-9  # metrics of the same predictions: only the order of sums may differ
LOOSE = 1e-6  # probabilities against the softmax of the logits; ends of intervals
MAX_REPLICATES = 100_000


def check_splits(bundle: Bundle) -> list[Result]:
    """Every image is in one split, and the data card has the hash of the splits. Only training has
    synthetic images.
    """
    from vitlab.data import drop_synthetic, find_synthetic, hash_splits

    def judge(run: str) -> tuple[str, str]:
        samples = bundle.read_table(f"{run}/splits.csv")
        made = samples["sample_id"][find_synthetic(samples) & (samples["split"] != "train")]
        samples = drop_synthetic(samples)
        repeated = samples["sample_id"][samples["sample_id"].duplicated()]
        for found, what in (
            (made, "synthetic images are not in the training split"),
            (repeated, "images are in several rows"),
        ):
            if len(found):
                return FAIL, f"{len(found)} {what}, the first is {found.iloc[0]}"
        strange = set(samples["split"]) - set(SPLITS)
        if strange:
            return FAIL, unknown("split", str(strange.pop()), list(SPLITS))
        digest = hash_splits(samples)
        if f"`{digest}`" not in bundle.read_text(f"{run}/data_card.md"):
            return FAIL, "the hash of splits.csv is not the one in data_card.md"
        counts = samples["split"].value_counts()
        return (
            PASS,
            ", ".join(f"{counts.get(name, 0):,} {name}" for name in SPLITS)
            + f", hash {digest[:12]}...",
        )

    return judge_each("splits", bundle.runs, judge)


def check_data(bundle: Bundle) -> list[Result]:
    """Images and labels of the runs are those of the hashes in the bundle, and those of the data
    where these are available.
    """

    def judge(dataset: str) -> tuple[str, str]:
        name = f"data/{dataset_folder(dataset)}.csv"
        hashes = bundle.read_table(name).set_index("sample_id")
        tables = {
            run: _read_real(bundle, run) for run in bundle.runs if bundle.datasets[run] == dataset
        }
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
            advice = (
                "name yours with --data"
                if len(set(bundle.datasets.values())) == 1
                else "--data needs a single data set"
            )
            return (
                SKIPPED,
                f"{len(hashes):,} images fit the splits; {dataset} is not available here: {advice}",
            )
        if not bundle.options.images:
            return PASS, f"{len(hashes):,} images"
        left = _find_left_out(here, samples)
        if left:
            return FAIL, f"{len(left)} images of {here} are in no split, the first is {left[0]}"
        ours = image_hash_table(here, samples).set_index("sample_id").reindex(hashes.index)
        for column, what in (("sha256", "other pixels"), ("label", "another label")):
            other = hashes.index[hashes[column] != ours[column]]
            if len(other):
                return (
                    FAIL,
                    (
                        f"{len(other)} images have {what} in {here} on this machine, the first is"
                        f" {other[0]}"
                    ),
                )
        return PASS, f"{len(hashes):,} images and labels as in {here} on this machine"

    return judge_each("data", sorted(set(bundle.datasets.values())), judge)


def check_predicted(bundle: Bundle) -> list[Result]:
    """The predictions are of all images of validation and test, with their labels; class,
    probabilities and logits agree.
    """

    def judge(run: str) -> tuple[str, str]:
        predictions = bundle.read_table(f"{run}/predictions.parquet")
        classes = check_predictions(predictions)
        own = bundle.read_json(f"{run}/model.json")["classes"]
        if list(classes) != list(own):
            return (
                FAIL,
                (
                    "the classes are in another order than in model.json:"
                    f" {', '.join(map(str, own))[:80]}"
                ),
            )
        samples = _read_real(bundle, run).set_index("sample_id")
        expected = set(samples.index[samples["split"].isin(["val", "test"])])
        ids = set(predictions["sample_id"].astype(str))
        if ids != expected:
            missing, strange = len(expected - ids), len(ids - expected)
            return (
                FAIL,
                (
                    f"{missing} images of validation and test have no prediction, {strange}"
                    " predictions are of other images"
                ),
            )
        rows = samples.loc[predictions["sample_id"].astype(str)]
        for column in ("split", "label"):
            other = rows.index[
                rows[column].astype(str).to_numpy() != predictions[column].astype(str).to_numpy()
            ]
            if len(other):
                return (
                    FAIL,
                    (
                        f"{len(other)} predictions have another {column} than splits.csv, the first"
                        f" is {other[0]}"
                    ),
                )
        logits = predictions[[f"logit_{name}" for name in classes]].to_numpy(float)
        probabilities = predictions[[f"prob_{name}" for name in classes]].to_numpy(float)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        if np.abs(powers / powers.sum(axis=1, keepdims=True) - probabilities).max() > LOOSE:
            return FAIL, "probabilities are not the softmax of the logits"
        wrong = (
            np.array(classes)[logits.argmax(axis=1)] != predictions["pred"].astype(str).to_numpy()
        )
        if wrong.any():
            return FAIL, f"{wrong.sum()} predictions do not name the class of the highest logit"
        return PASS, f"{len(predictions):,} predictions of {len(classes)} classes"

    return judge_each("predictions", bundle.runs, judge)


def check_metrics(bundle: Bundle) -> list[Result]:
    """metrics.json is what the predictions give; its intervals too, where the images are available
    to find near-duplicates.
    """

    def judge(run: str) -> tuple[str, str]:
        measured = measure(bundle.read_table(f"{run}/predictions.parquet"))
        if run not in evaluated:
            return (
                SKIPPED,
                (
                    "notebook 04 was not run, so there is no metrics.json; accuracy"
                    f" {measured['accuracy']:.4f}"
                ),
            )
        noted = _read_metrics(bundle, run)
        wrong = [
            f"{name} is {noted[name]['value']:.6f} in metrics.json, {measured[name]:.6f} by the"
            " predictions"
            for name in noted
            if not _close(noted[name]["value"], measured[name], EXACT)
        ]
        return (
            (FAIL, "; ".join(wrong))
            if wrong
            else (PASS, f"{len(noted)} metrics; accuracy {measured['accuracy']:.4f}")
        )

    evaluated = [run for run in bundle.runs if (bundle.folder / run / "metrics.json").is_file()]
    results = judge_each("metrics", bundle.runs, judge)
    return results + judge_each("intervals", evaluated, lambda run: _judge_intervals(bundle, run))


def measure(predictions: pd.DataFrame) -> dict[str, float]:
    """Metric -> value on the test split."""
    from vitlab.evaluation import metrics_table

    return metrics_table(predictions, replicates=0).set_index("metric")["value"].to_dict()


def find_data(bundle: Bundle, dataset: str) -> str:
    """The name by which the data can be read here: what the marker named, or a set that comes in a
    package; "" for none.

    A name from a bundle never makes this machine read a folder or download: those must be named
    with --data."""
    from vitlab.data import available

    if bundle.options.data and len(set(bundle.datasets.values())) == 1:
        return bundle.options.data
    return dataset if dataset in available() and not dataset.endswith(":") else ""


def _find_left_out(dataset: str, samples: pd.DataFrame) -> list[str]:
    """Readable images of the data set that are in no split: leaving out misclassified ones would
    improve every metric.
    """
    from vitlab.data import load_dataset
    from vitlab.data.reading import find_unreadable
    from vitlab.data.sources import NOT_CHOSEN

    data = load_dataset(dataset, samples=samples)
    rest = data.excluded[data.excluded["reason"] == NOT_CHOSEN]
    return (
        sorted(set(rest["sample_id"]) - set(find_unreadable(data.read, rest)["sample_id"]))
        if len(rest)
        else []
    )


def _judge_intervals(bundle: Bundle, run: str) -> tuple[str, str]:
    """As notebook 04 computes them: near-duplicates among the test images are drawn together."""
    from vitlab.data import cluster_test_images, load_dataset
    from vitlab.evaluation import metrics_table

    here = find_data(bundle, bundle.datasets[run])
    if not here or not bundle.options.images:
        return SKIPPED, "the images, which decide what is drawn together, were not read"
    notebook = f"{run}/notebooks/04_evaluate.ipynb"
    declared = {
        name: default
        for name, (default, _) in notebook_parameters(bundle.place(clean_name(notebook))).items()
    }
    replicates = (declared | injected_parameters(bundle.read_cells(notebook))).get("replicates")
    if not isinstance(replicates, int) or not 0 <= replicates <= MAX_REPLICATES:
        return (
            SKIPPED,
            f"notebook 04 has replicates {replicates!r}; up to {MAX_REPLICATES:,} are drawn again",
        )
    noted = _read_metrics(bundle, run)
    split_by = bundle.read_json(f"{run}/run.json")["parameters"].get("split_by", "")
    clusters = cluster_test_images(
        load_dataset(here, samples=bundle.read_table(f"{run}/splits.csv")), split_by
    )
    predictions = bundle.read_table(f"{run}/predictions.parquet")
    table = (
        metrics_table(predictions, replicates=replicates, cluster=clusters)
        .set_index("metric")
        .to_dict("index")
    )
    wrong = [
        f"the {end} end of {name} is {noted[name][end]:.4f} in metrics.json, {table[name][end]:.4f}"
        " when drawn again"
        for name in noted
        for end in ("low", "high")
        if not _close(noted[name][end], table[name][end], LOOSE)
    ]
    return (
        (FAIL, "; ".join(wrong[:3]))
        if wrong
        else (PASS, f"{len(noted)} intervals of {replicates:,} replicates")
    )


def _read_metrics(bundle: Bundle, run: str) -> dict[str, dict[str, float]]:
    """metrics.json. UserError where its metrics are not those of vitlab."""
    from vitlab.evaluation import METRICS

    content = bundle.read_json(f"{run}/metrics.json")
    if set(content) != set(METRICS):
        raise UserError(f"metrics.json has {', '.join(content)}; it must have {', '.join(METRICS)}")
    return {
        name: {end: float(row[end]) for end in ("value", "low", "high")}
        for name, row in content.items()
    }


def _read_real(bundle: Bundle, run: str) -> pd.DataFrame:
    """splits.csv without synthetic images."""
    from vitlab.data import drop_synthetic

    return drop_synthetic(bundle.read_table(f"{run}/splits.csv"))


def _close(one: float, other: float, tolerance: float) -> bool:
    return math.isclose(one, other, rel_tol=0, abs_tol=tolerance) or (
        math.isnan(one) and math.isnan(other)
    )

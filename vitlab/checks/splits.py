"""One question, two splits: how do models do on new images of known groups, and on new groups?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vitlab.checks.baseline import can_probe, cluster_images, predictions_of, probe_data
from vitlab.data.balance import drop_synthetic
from vitlab.data.quality import cluster_table, logistic_head
from vitlab.data.sources import MIN_GROUPS
from vitlab.evaluation.groups import ALONE, split_table
from vitlab.evaluation.pairwise import pairwise_table
from vitlab.evaluation.sentences import describe_pairs, describe_splits
from vitlab.markup import escape
from vitlab.run_tables import latest_runs, read_tests
from vitlab.schema import DataBundle

HEAD = "logistic head"  # on frozen features of a pretrained network


def compare_splits(
    data: DataBundle, embeddings: np.ndarray, pairs: pd.DataFrame, group: str, seed: int = 0
) -> pd.DataFrame:
    """A `split_table` of a logistic head, out of fold: for new images of known groups ("image") and
    for new groups (the name of the column); and of the group alone, without pixels.
    Empty for fewer than 10 groups, or where a class is in fewer than five.
    """
    groups = data.samples[group].astype(str)
    by_group = cluster_images(data.samples, pairs, group)
    if groups.nunique() < MIN_GROUPS or not can_probe(data, by_group):
        return pd.DataFrame()
    by_image = cluster_table(data.samples, pairs)["cluster"]
    alone = pd.get_dummies(groups).to_numpy(float)
    probes = {
        "image": {
            HEAD: probe_data(data, embeddings, by_image, seed),
            f"{group}{ALONE}": probe_data(data, alone, by_image, seed),
        },
        group: {HEAD: probe_data(data, embeddings, by_group, seed)},
    }
    named = pd.Series(groups.to_numpy(), data.samples["sample_id"])
    tests = {
        split: {
            name: probe.predictions.assign(cluster=probe.predictions["sample_id"].map(named))
            for name, probe in models.items()
        }
        for split, models in probes.items()
    }
    return split_table(tests)


def predict_tests(
    splits: Sequence[pd.DataFrame], features: pd.DataFrame, classes: Sequence[str]
) -> pd.DataFrame:
    """The predictions of a logistic head for the test images of these splits (one, or the folds of
    a cross-validation), fitted to their training and validation images.

    splits: tables sample_id, label, group, split. features: a row for each image, with the
    sample_id as index."""
    tables = []
    for samples in splits:
        fitted, tested = (samples[(samples["split"] == "test") == part] for part in (False, True))
        head = logistic_head().fit(features.loc[fitted["sample_id"]].to_numpy(), fitted["label"])
        prob = head.predict_proba(features.loc[tested["sample_id"]].to_numpy())
        order = [list(head.classes_).index(name) for name in classes]
        tables.append(predictions_of(tested, prob[:, order], tuple(classes)))
    return pd.concat(tables, ignore_index=True)


def predictions_by_split(
    data: DataBundle, embeddings: np.ndarray, dataset: str, preset: str = ""
) -> dict[str, dict[str, pd.DataFrame]]:
    """Split ("image", and the data set's group column) -> model -> test predictions with the group
    as column `cluster`: what `split_table` takes; and the protocol of the split. Empty without
    groups.

    Of the finished runs, the first seed of each model is taken, with all folds of a
    cross-validation. Beside them, fitted to the same training images: the logistic head, and under
    "image" the group alone. embeddings: (N, D), a row for each of `data.samples`."""
    if not data.group_column:
        return {}
    ids = data.samples["sample_id"]
    groups = data.samples.set_index("sample_id")[data.group_column].astype(str)
    features = pd.DataFrame(embeddings, ids)
    found = {}
    for split in ("image", data.group_column):
        runs, _ = latest_runs(dataset, preset=preset, split_by=split)
        tests = {}
        for title, _, predictions in read_tests(runs)[0]:
            tests.setdefault(title, predictions)
        if not tests:
            continue
        title, tested = next(iter(tests.items()))
        every = [run.read_table("splits.csv") for run in runs if run.title == title]
        own = set(tested["sample_id"])  # of one seed, or of all its folds
        tables = [
            drop_synthetic(table)
            for table in every
            if own.issuperset(table["sample_id"][table["split"] == "test"])
        ]
        tests[HEAD] = predict_tests(tables, features, data.classes)
        if split == "image":
            alone = pd.get_dummies(groups).astype(float)
            tests[f"{data.group_column}{ALONE}"] = predict_tests(tables, alone, data.classes)
        found[split] = {
            name: table.assign(cluster=table["sample_id"].map(groups), protocol=runs[0].protocol)
            for name, table in tests.items()
        }
    return found


def describe_tests(
    tests: Mapping[str, Mapping[str, pd.DataFrame]], table: pd.DataFrame, metric: str
) -> str:
    """A `split_table` in Markdown, and each model against the logistic head: on new groups where
    there are runs of that split, else on new images.

    tests: of `predictions_by_split`. metric: that decides. "" without tests."""
    if not tests:
        return ""
    group, models = list(tests.items())[-1]
    head = models[HEAD]
    same = {
        name: {0: predictions}
        for name, predictions in models.items()
        if not name.endswith(ALONE) and set(predictions["sample_id"]) >= set(head["sample_id"])
    }
    gains = pairwise_table(same, metric, against=HEAD)
    pairs = f"Against the {HEAD}: {escape(describe_pairs(gains))}" if len(gains) else ""
    return f"{describe_splits(table, group)}\n\n{pairs}"

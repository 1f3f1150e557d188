"""Scores by number of training images: which images are kept, and what is measured."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

from benchmarks.pretraining import data_efficiency
from benchmarks.pretraining.data_efficiency import data_efficiency_table, keep_few
from vitlab.data import load_dataset
from vitlab.models import build_model

TINY = {
    "name": "vit_scratch",
    "size": 8,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
}


def test_few_images_are_among_more_and_the_test_split_stays():
    data = load_dataset("digits", seed=0)
    few, more = (keep_few(data, count, 0) for count in (2, 5))
    train = {
        name: set(one.split("train")["sample_id"]) for name, one in (("few", few), ("more", more))
    }
    assert train["few"] < train["more"] <= set(data.split("train")["sample_id"])
    assert (few.split("train")["label"].value_counts() == 2).all() and few.split("train")[
        "label"
    ].nunique() == 10
    pd.testing.assert_frame_equal(
        few.split("test").reset_index(drop=True), data.split("test").reset_index(drop=True)
    )
    assert train["few"] != set(keep_few(data, 2, 1).split("train")["sample_id"])
    assert keep_few(data, 0, 0) is data


def test_more_than_there_are_is_refused():
    with pytest.raises(
        ValueError,
        match=r"digits has \d+ training images of \d, not 5000: choose fewer, or 0 for all",
    ):
        keep_few(load_dataset("digits", seed=0), 5000, 0)


def test_a_row_for_each_model_number_and_seed(monkeypatch):
    monkeypatch.setattr(data_efficiency, "STEPS", 1)
    rows = list(
        data_efficiency_table(
            "digits",
            {"tiny": TINY, "same": TINY},
            [2, 4],
            [0],
            epochs=1,
            augment="none",
            batch_size=16,
        )
    )
    assert [(row["model"], row["images_per_class"], row["seed"]) for row in rows] == [
        ("tiny", 2, 0),
        ("same", 2, 0),
        ("tiny", 4, 0),
        ("same", 4, 0),
    ]
    assert rows[0]["accuracy"] == rows[1]["accuracy"] and all(
        0 <= row["roc_auc"] <= 1 for row in rows
    )


def test_scores_are_those_of_the_test_split():
    data = load_dataset("digits", seed=0)
    options = {key: value for key, value in TINY.items() if key != "name"}
    model = build_model("vit_scratch", data.classes, **options)
    scores = data_efficiency._score(model, data)
    table = data_efficiency.predict(model, data, splits=("test",))
    assert scores["accuracy"] == accuracy_score(table["label"], table["pred"])
    recalls = [np.mean(part["pred"] == part["label"]) for _, part in table.groupby("label")]
    assert scores["balanced_accuracy"] == pytest.approx(np.mean(recalls))

"""Naive and clean scores against those of the parts, and images as vectors."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from tests.test_evaluation_metrics import make_predictions
from tests.toys import small_digits
from vitlab.data import load_dataset
from vitlab.evaluation import leakage_table
from vitlab.models import build_model
from vitlab.training import embed_images


def test_each_row_is_the_score_of_its_part():
    predictions = make_predictions(num_samples=200)
    clean = set(predictions["sample_id"].iloc[:150])
    table = leakage_table(predictions, clean)
    assert table["images"].drop_duplicates().tolist() == [
        "all",
        "without near-duplicates",
        "near-duplicates only",
    ]
    rows = table.set_index(["images", "metric"])
    last = [name for name in predictions if name.startswith("prob_")][-1]
    parts = {
        "all": predictions,
        "without near-duplicates": predictions[:150],
        "near-duplicates only": predictions[150:],
    }
    for name, part in parts.items():
        assert rows.loc[(name, "accuracy"), "n"] == len(part)
        assert rows.loc[(name, "accuracy"), "value"] == pytest.approx(
            accuracy_score(part["label"], part["pred"]), abs=1e-12
        )
        positive = part["label"] == last.removeprefix("prob_")
        assert rows.loc[(name, "roc_auc"), "value"] == pytest.approx(
            roc_auc_score(positive, part[last]), abs=1e-9
        )


def test_without_near_duplicates_there_is_one_score():
    predictions = make_predictions(("a", "b", "c"), 60)
    for clean in (set(predictions["sample_id"]), set()):
        assert set(leakage_table(predictions, clean)["images"]) == {"all"}


def test_ids_of_other_images_are_refused():
    predictions = make_predictions(("a", "b", "c"), 60)
    with pytest.raises(
        ValueError,
        match="1 clean_ids are not test images of these predictions, first 'nobody'",
    ):
        leakage_table(predictions, {"nobody"})


def test_images_become_vectors_of_length_one_in_the_order_of_the_samples():
    data = small_digits()
    vectors = embed_images(data, size=32)
    assert vectors.shape == (len(data.samples), 1280) and np.allclose(
        np.linalg.norm(vectors, axis=1), 1, atol=1e-5
    )
    shuffled = data.samples.sample(frac=1, random_state=0)
    again = embed_images(load_dataset("digits", samples=shuffled), size=32)
    assert np.array_equal(again, vectors[shuffled.index])
    module = build_model("efficientnet_lite0", ("a", "b"), size=32).module
    assert module.num_features == vectors.shape[1]


def test_vectors_are_kept_and_do_not_depend_on_splits(reports_folder):
    data = small_digits()
    first = embed_images(data, size=32)
    files = sorted((reports_folder / "cache").glob("*.features"))
    other = data.samples.assign(
        split=data.samples["split"].map({"train": "test", "test": "val", "val": "train"})
    )
    second = embed_images(load_dataset("digits", samples=other), size=32)
    assert (
        np.array_equal(first, second)
        and sorted((reports_folder / "cache").glob("*.features")) == files
        and len(files) == 1
    )


def test_alike_images_have_near_vectors():
    data = small_digits()
    vectors = embed_images(data, size=32)
    cosine = vectors @ vectors.T
    same = pd.Series(data.samples["label"].to_numpy())
    np.fill_diagonal(cosine, -1)
    nearest = cosine.argmax(axis=1)
    assert (same[nearest].to_numpy() == same.to_numpy()).mean() > 0.5

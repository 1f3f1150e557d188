"""Images as vectors of a pretrained network."""

import numpy as np
import pandas as pd

from tests.toys import small_digits
from vitlab.data import load_dataset
from vitlab.models import build_model
from vitlab.training import embed_images


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

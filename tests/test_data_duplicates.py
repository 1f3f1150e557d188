"""Near-duplicates by two distances, and their clusters, against hand-computed ones."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vitlab.data import (
    clean_test_ids,
    cluster_table,
    cluster_test_images,
    duplicates,
    near_duplicate_table,
)
from vitlab.schema import DataBundle


def make_bundle(images, labels=None, splits=None):
    ids = list(images)
    samples = pd.DataFrame(
        {
            "sample_id": ids,
            "label": labels or ["a"] * len(ids),
            "split": splits or ["train"] * len(ids),
        }
    )
    samples = samples.assign(group="all", source=ids)
    excluded = pd.DataFrame(columns=["sample_id", "source", "reason"], dtype=str)
    return DataBundle("toy", ("a", "b"), samples, images.__getitem__, excluded)


def noise(seed, size=(120, 100)):
    values = np.random.default_rng(seed).normal(128, 50, (10, 12)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def test_near_duplicates_are_found_through_blur_exposure_and_size():
    original = noise(1)
    images = {
        "original": original,
        "other": noise(2),
        "blurred": original.filter(ImageFilter.GaussianBlur(2)),
        "third": noise(3),
        "darker": ImageEnhance.Brightness(original).enhance(0.7),
        "smaller": original.resize((80, 66)),
    }
    table = near_duplicate_table(
        make_bundle(images, labels=list("aaabba"), splits=["train"] * 5 + ["test"])
    )
    alike = ["original", "blurred", "darker", "smaller"]
    found = set(table[["sample_id_a", "sample_id_b"]].itertuples(index=False, name=None))
    assert found == {
        (first, second) for position, first in enumerate(alike) for second in alike[position + 1 :]
    }
    assert table["distance"].is_monotonic_increasing and table["distance"].max() <= 16
    rows = table.set_index(["sample_id_a", "sample_id_b"])
    assert rows.loc[("original", "smaller"), ["same_label", "crosses_split"]].tolist() == [
        True,
        True,
    ]
    assert rows.loc[("original", "darker"), ["same_label", "crosses_split"]].tolist() == [
        False,
        False,
    ]


def make_samples(labels, **columns):
    ids = [f"s{row:04d}" for row in range(len(labels))]
    return pd.DataFrame({"sample_id": ids, "label": list(labels), **columns})


def make_pairs(*ends):
    return pd.DataFrame(list(ends), columns=["sample_id_a", "sample_id_b"])


def unit(*rows):
    return np.array(rows, dtype=float)


def test_each_distance_finds_what_the_other_misses():
    original = noise(1)
    images = {
        "copy": original.copy(),
        "darker": ImageEnhance.Brightness(original).enhance(0.8),
        "flipped": ImageOps.mirror(original),
        "original": original,
        "other": noise(2),
    }
    data = make_bundle(images, splits=["train", "test", "test", "train", "train"])
    # of any length: copies, and a flip close by
    vectors = unit([1, 0, 0], [0, 1, 0], [3, 0.1, 0], [1, 0, 0], [0, 0, 2])
    table = near_duplicate_table(data, embeddings=vectors, max_cosine=0.001)
    found = table.set_index(["sample_id_a", "sample_id_b"])
    assert found["found_by"].to_dict() == {
        ("copy", "original"): "both",
        ("copy", "darker"): "hash",
        ("darker", "original"): "hash",
        ("copy", "flipped"): "embedding",
        ("flipped", "original"): "embedding",
    }
    assert found.loc[("copy", "original"), "cosine_distance"] == pytest.approx(0, abs=1e-6)
    assert found.loc[("copy", "flipped"), "cosine_distance"] == pytest.approx(
        1 - 3 / np.sqrt(9.01), abs=1e-6
    )
    assert found.loc[("copy", "darker"), "cosine_distance"] == pytest.approx(1)
    assert found.loc[("copy", "flipped"), "distance"] > 16 and found["crosses_split"].sum() == 4
    assert len(near_duplicate_table(data)) == 3


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((3, 4)), r"shape \(3, 4\) do not fit 2 samples"),
        (np.ones(2), r"shape \(2,\) do not fit"),
        (unit([1, 0], [0, 0]), "1 embeddings are zero, NaN or infinite, the first in row 1"),
        (unit([np.nan, 0], [0, 1]), "the first in row 0"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        near_duplicate_table(make_bundle({"x": noise(1), "y": noise(2)}), embeddings=vectors)


def test_a_chain_of_pairs_is_one_cluster():
    samples = make_samples("aaaaaa", split=["train", "test", "train", "val", "train", "test"])
    table = cluster_table(
        samples, make_pairs(("s0001", "s0003"), ("s0005", "s0003"), ("s0002", "s0004"))
    )
    assert table["cluster"].tolist() == ["s0000", "s0001", "s0002", "s0001", "s0002", "s0001"]
    assert table["size"].tolist() == [1, 3, 2, 3, 2, 3]
    assert table["splits"].tolist() == [
        "train",
        "test val",
        "train",
        "test val",
        "train",
        "test val",
    ]
    alone = cluster_table(samples, make_pairs())
    assert alone["cluster"].tolist() == samples["sample_id"].tolist() and set(alone["size"]) == {1}
    with pytest.raises(
        ValueError, match="sample_id_b 'gone' of the pairs is not among the samples"
    ):
        cluster_table(samples, make_pairs(("s0000", "gone")))


def test_clean_test_images_have_no_partner_in_training():
    samples = make_samples("aaaaaa", split=["test", "test", "test", "train", "val", "test"])
    pairs = make_pairs(
        ("s0000", "s0003"), ("s0004", "s0001"), ("s0002", "s0005"), ("s0003", "gone")
    )
    assert clean_test_ids(samples, pairs) == ["s0001", "s0002", "s0005"]
    assert clean_test_ids(samples, pairs, against=("train", "val")) == ["s0002", "s0005"]
    assert clean_test_ids(samples, make_pairs()) == ["s0000", "s0001", "s0002", "s0005"]


def test_an_image_mode_does_not_matter():
    table = near_duplicate_table(
        make_bundle({"x": noise(1), "y": noise(1).convert("RGB"), "z": Image.new("L", (3, 3))})
    )
    assert table[["sample_id_a", "sample_id_b", "distance"]].values.tolist()[0] == ["x", "y", 0]


def test_what_evaluation_draws_together():
    """Near-duplicates among the test images; where the splits go by a column, all images of one of
    its values.
    """
    images = {"a": noise(1), "a2": noise(1), "b": noise(2), "c": noise(3)}
    bundle = make_bundle(images)
    bundle = replace(
        bundle,
        samples=bundle.samples.assign(
            split=["test", "test", "test", "train"], patient=list("xyyz")
        ),
    )
    assert cluster_test_images(bundle).to_dict() == {"a": "a", "a2": "a", "b": "b"}
    assert cluster_test_images(bundle, "cluster").to_dict() == {"a": "a", "a2": "a", "b": "b"}
    assert cluster_test_images(bundle, "patient").to_dict() == {"a": "x", "a2": "y", "b": "y"}


def test_close_pairs_equal_brute_force():
    vectors = np.random.default_rng(0).normal(size=(40, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    close = 1 - vectors @ vectors.T <= 0.3
    wanted = [[i, j] for i in range(40) for j in range(i + 1, 40) if close[i, j]]
    assert sorted(duplicates._find_close(vectors, 0.3).tolist()) == wanted != []

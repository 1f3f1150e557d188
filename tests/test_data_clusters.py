"""Near-duplicates by two distances, clusters of them, and splits and folds that keep them
together.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.model_selection import StratifiedGroupKFold

from tests.test_data_quality import make_bundle, noise
from vitlab.data import (
    clean_test_ids,
    cluster_table,
    cluster_test_images,
    load_dataset,
    near_duplicate_table,
)
from vitlab.data.folds import draw_folds, split_fold
from vitlab.data.splits import draw_splits


def make_samples(labels, **columns):
    return pd.DataFrame(
        {
            "sample_id": [f"s{row:04d}" for row in range(len(labels))],
            "label": list(labels),
            **columns,
        }
    )


def make_pairs(*ends):
    return pd.DataFrame(list(ends), columns=["sample_id_a", "sample_id_b"])


def unit(*rows):
    return np.array(rows, dtype=float)


# pairs by hash and by embedding


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


# clusters


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
    with pytest.raises(ValueError, match="split to hold the test images against 'test'"):
        clean_test_ids(samples, pairs, against=("test",))


# splits by groups


def test_groups_of_one_are_drawn_as_without_groups():
    samples = make_samples("a" * 100 + "b" * 50)
    plain = draw_splits(samples, seed=3)
    pd.testing.assert_series_equal(draw_splits(samples, seed=3, groups=samples["sample_id"]), plain)


def test_groups_never_cross_and_strata_keep_their_shares():
    rng = np.random.default_rng(0)
    samples = make_samples(rng.choice(["a", "b", "c"], 1000, p=[0.6, 0.3, 0.1]))
    groups = rng.integers(0, 250, 1000)
    for seed in range(5):
        split = draw_splits(samples, seed=seed, groups=groups)
        assert (split.groupby(groups).nunique() == 1).all()
        share = pd.crosstab(samples["label"], split, normalize="index")
        assert np.allclose(share["test"], 0.2, atol=0.04) and np.allclose(
            share["val"], 0.12, atol=0.04
        )
    order = rng.permutation(1000)
    shuffled = draw_splits(samples.iloc[order], seed=4, groups=groups[order]).sort_index()
    pd.testing.assert_series_equal(shuffled, split)
    assert (draw_splits(samples, seed=0, groups=groups) != split).any()


def test_a_cluster_larger_than_a_split_stays_in_training():
    samples = make_samples("ab" * 100)
    groups = ["big"] * 120 + [f"g{row}" for row in range(80)]
    for seed in range(10):
        split = draw_splits(samples, seed=seed, groups=groups)
        assert set(split[:120]) == {"train"} and split.value_counts()["test"] == 40


def test_the_smallest_groups_still_reach_every_split():
    samples = make_samples("a" * 20 + "b" * 20)
    groups = [row // 4 for row in range(40)]  # ten groups of four: 15 % of 32 are 4.8
    split = draw_splits(samples, seed=0, groups=groups)
    assert pd.crosstab(samples["label"], split)[["test", "val"]].min().min() == 4


def test_groups_that_cannot_be_split_are_refused():
    samples = make_samples("ab" * 50)
    with pytest.raises(
        ValueError,
        match=r"whole groups leave nothing for test: the largest of 2, 'x', has 55 of 100",
    ):
        draw_splits(samples, seed=0, groups=["x"] * 55 + ["y"] * 45)
    with pytest.raises(ValueError, match="99 groups do not fit 100 samples"):
        draw_splits(samples, seed=0, groups=range(99))
    with pytest.raises(ValueError, match="1 samples have no group, the first is 's0007'"):
        draw_splits(samples, seed=0, groups=[None if row == 7 else "x" for row in range(100)])


# folds


def test_folds_partition_and_keep_proportions():
    samples = make_samples("a" * 60 + "b" * 25)
    fold = draw_folds(samples, 5, seed=0)
    assert pd.crosstab(samples["label"], fold).to_numpy().tolist() == [[12] * 5, [5] * 5]
    shuffled = samples.sample(frac=1, random_state=1)
    pd.testing.assert_series_equal(draw_folds(shuffled, 5, seed=0).sort_index(), fold)
    assert (draw_folds(samples, 5, seed=1) != fold).any()


def test_each_image_is_tested_once_and_every_split_has_each_class():
    samples = make_samples("a" * 60 + "b" * 25)
    splits = pd.DataFrame({number: split_fold(samples, number, 5, seed=0) for number in range(5)})
    assert ((splits == "test").sum(axis=1) == 1).all()
    for number in range(5):
        assert (
            pd.crosstab(samples["label"], splits[number])[["train", "val", "test"]].min().min() > 0
        )
    assert splits[0].value_counts()["val"] == round(0.15 * 48) + round(0.15 * 20)


def test_folds_keep_groups_and_are_as_even_as_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    samples, groups = (
        make_samples(rng.choice(["a", "b"], 400, p=[0.8, 0.2])),
        rng.integers(0, 80, 400),
    )
    fold = draw_folds(samples, 5, seed=0, groups=groups)
    assert (fold.groupby(groups).nunique() == 1).all() and set(fold) == set(range(5))
    own = pd.crosstab(samples["label"], fold).loc["b"]
    parts = StratifiedGroupKFold(5).split(samples, samples["label"], groups)
    reference = [int((samples["label"].iloc[rows] == "b").sum()) for _, rows in parts]
    assert np.ptp(own) <= np.ptp(reference) + 2
    split = split_fold(samples, 2, 5, seed=0, groups=groups)
    assert (split.groupby(groups).nunique() == 1).all() and (split == "test").equals(
        (fold == 2).rename("split")
    )


def test_impossible_folds_are_refused():
    samples = make_samples("a" * 60 + "b" * 4)
    with pytest.raises(ValueError, match="folds=5 is more than the 4 samples of the class 'b'"):
        draw_folds(samples, 5, seed=0)
    with pytest.raises(ValueError, match="folds=4 is more than the 2 groups of the class 'b'"):
        draw_folds(samples, 4, seed=0, groups=[row // 2 for row in range(64)])
    with pytest.raises(ValueError, match="folds=1: cross-validation needs at least 2"):
        draw_folds(samples, 1, seed=0)
    with pytest.raises(ValueError, match="fold=4 is none of 4 folds"):
        split_fold(samples, 4, 4, seed=0)


# through load_dataset


@pytest.fixture
def twins(tmp_path):
    """A folder of 30 images of noise in two classes, each with a darker copy of itself."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
    for number in range(30):
        image = noise(number)
        folder = tmp_path / ("cat" if number < 18 else "dog")
        image.save(folder / f"{number:02d}.png")
        ImageEnhance.Brightness(image).enhance(0.8).save(folder / f"{number + 50:02d}.png")
    return f"folder:{tmp_path}"


def test_splits_by_cluster_leave_no_pair_across(twins):
    torn = near_duplicate_table(load_dataset(twins, seed=0))
    data = load_dataset(twins, seed=0, split_by="cluster")
    pairs = near_duplicate_table(data)
    assert torn["crosses_split"].any() and len(pairs) == 30 and not pairs["crosses_split"].any()
    assert data.samples["cluster"].nunique() == 30
    assert (data.samples.groupby("cluster")["split"].nunique() == 1).all()
    assert clean_test_ids(data.samples, pairs) == data.split("test")["sample_id"].tolist()
    pd.testing.assert_frame_equal(
        load_dataset(twins, seed=0, split_by="cluster").samples, data.samples
    )
    again = load_dataset(twins, samples=data.samples)
    assert again.samples["split"].tolist() == data.samples["split"].tolist()


def test_folds_through_load_dataset(twins):
    tests = [
        load_dataset(twins, seed=1, folds=3, fold=fold, split_by="cluster").split("test")
        for fold in range(3)
    ]
    ids = pd.concat(tests)["sample_id"]
    assert ids.is_unique and len(ids) == 60
    assert set(tests[0]["cluster"]).isdisjoint(tests[1]["cluster"])
    with pytest.raises(ValueError, match="folds=50 is more than the 24 samples of the class 'dog'"):
        load_dataset(twins, folds=50)
    with pytest.raises(ValueError, match="fold=3 is none of 3 folds"):
        load_dataset(twins, folds=3, fold=3)


def test_splits_of_earlier_seeds_have_not_changed():
    plain = load_dataset("digits", seed=0).samples
    pd.testing.assert_series_equal(plain["split"], draw_splits(plain, seed=0))
    assert plain["sample_id"][plain["split"] == "test"].head(3).tolist() == [
        "digit0000",
        "digit0009",
        "digit0013",
    ]
    assert plain["split"].value_counts().to_dict() == {"train": 1222, "test": 359, "val": 216}


def test_what_does_not_go_together_is_refused(twins, mnist_files):
    with pytest.raises(
        ValueError,
        match=r"unknown column of folder:.* to split by 'clusters'\. Did you mean cluster",
    ):
        load_dataset(twins, split_by="clusters")
    with pytest.raises(
        ValueError,
        match=r"nothing for test: the largest of 1, 'all', has 60 of 60.*write split_by=''",
    ):
        load_dataset(twins, split_by="group")
    with pytest.raises(ValueError, match="has its splits already; leave out split_by= and folds="):
        load_dataset(twins, samples=load_dataset(twins).samples, split_by="cluster")
    with pytest.raises(ValueError, match="comes with its own test split"):
        load_dataset("torchvision:MNIST", folds=3)


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

"""Splits, folds and subsets against hand-computed numbers, and through load_dataset."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from PIL import ImageEnhance
from sklearn.model_selection import StratifiedGroupKFold

from tests.test_data_quality import make_samples, noise
from vitlab.data import clean_test_ids, draw_samples, load_dataset, near_duplicate_table, splits
from vitlab.data.splits import draw_folds, draw_splits, draw_subset


def count(samples, split):
    table = pd.crosstab(samples["label"], split)
    return table.reindex(columns=["train", "val", "test"], fill_value=0).T.to_dict("list")


def test_shares_are_exact_in_each_stratum_and_the_smallest_reach_every_split():
    samples = make_samples("a" * 100 + "b" * 50 + "c" * 10)
    # a: 20 test, 12 of 80 val; b: 10 test, 6 of 40 val; c: 2 test, 1.2 of 8 val
    wanted = {"a": [68, 12, 20], "b": [34, 6, 10], "c": [7, 1, 2]}
    assert count(samples, draw_splits(samples, seed=0)) == wanted
    samples = make_samples("aaabbc")
    wanted = {"a": [1, 1, 1], "b": [1, 0, 1], "c": [1, 0, 0]}
    assert count(samples, draw_splits(samples, seed=0)) == wanted


def test_given_splits_stay_and_the_missing_one_is_drawn_from_train():
    samples = make_samples("a" * 20 + "b" * 20, split=(["test"] * 4 + ["train"] * 16) * 2)
    split = draw_splits(samples, seed=0)
    assert count(samples, split) == {"a": [14, 2, 4], "b": [14, 2, 4]}
    assert (split[samples["split"] == "test"] == "test").all()


def test_the_draw_is_the_documented_hash_on_every_machine():
    samples = make_samples("a" * 10)
    order = sorted(
        samples["sample_id"], key=lambda name: hashlib.sha256(f"7 test {name}".encode()).hexdigest()
    )
    split = draw_splits(samples, seed=7)
    assert set(samples["sample_id"][split == "test"]) == set(order[:2]) == {"s0002", "s0005"}
    digits = load_dataset("digits", seed=0).samples
    tested = digits["sample_id"][digits["split"] == "test"]
    assert tested.head(3).tolist() == ["digit0000", "digit0009", "digit0013"]
    assert digits["split"].value_counts().to_dict() == {"train": 1222, "test": 359, "val": 216}


def test_order_of_rows_and_other_samples_do_not_matter_and_the_seed_does():
    samples = make_samples("a" * 200 + "b" * 100)
    split = draw_splits(samples, seed=0)
    shuffled = samples.sample(frac=1, random_state=0)
    pd.testing.assert_series_equal(draw_splits(shuffled, seed=0).sort_index(), split)
    fewer = samples.drop(index=[5, 250])
    assert (draw_splits(fewer, seed=0) != split[fewer.index]).sum() <= 6
    assert (draw_splits(samples, seed=1) != split).sum() > 60


def test_groups_never_cross_and_strata_keep_their_shares():
    rng = np.random.default_rng(0)
    samples = make_samples(rng.choice(["a", "b", "c"], 1000, p=[0.6, 0.3, 0.1]))
    groups = rng.integers(0, 250, 1000)
    for seed in range(3):
        split = draw_splits(samples, seed=seed, groups=groups)
        assert (split.groupby(groups).nunique() == 1).all()
        share = pd.crosstab(samples["label"], split, normalize="index")
        assert np.allclose(share["test"], 0.2, atol=0.04)
        assert np.allclose(share["val"], 0.12, atol=0.04)
    order = rng.permutation(1000)
    shuffled = draw_splits(samples.iloc[order], seed=2, groups=groups[order]).sort_index()
    pd.testing.assert_series_equal(shuffled, split)
    assert (draw_splits(samples, seed=0, groups=groups) != split).any()


def test_large_groups_stay_in_training_and_small_sets_still_reach_every_split():
    samples = make_samples("ab" * 100)
    groups = ["big"] * 120 + [f"g{row}" for row in range(80)]
    for seed in range(5):
        split = draw_splits(samples, seed=seed, groups=groups)
        assert set(split[:120]) == {"train"} and split.value_counts()["test"] == 40
    samples = make_samples("a" * 20 + "b" * 20)
    groups = [row // 4 for row in range(40)]  # ten groups of four: 15 % of 32 are 4.8
    split = draw_splits(samples, seed=0, groups=groups)
    assert pd.crosstab(samples["label"], split)[["test", "val"]].min().min() == 4


def test_groups_that_cannot_be_split_are_refused():
    samples = make_samples("ab" * 50)
    message = r"whole groups leave nothing for test: the largest of 2, 'x', has 55 of 100"
    with pytest.raises(ValueError, match=message):
        draw_splits(samples, seed=0, groups=["x"] * 55 + ["y"] * 45)
    with pytest.raises(ValueError, match="1 samples have no group, the first is 's0007'"):
        draw_splits(samples, seed=0, groups=[None if row == 7 else "x" for row in range(100)])


def test_folds_keep_groups_and_are_as_even_as_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    samples = make_samples(rng.choice(["a", "b"], 400, p=[0.8, 0.2]))
    groups = rng.integers(0, 80, 400).astype(str)
    fold = draw_folds(samples, 5, seed=0, groups=groups)
    assert (fold.groupby(groups).nunique() == 1).all() and set(fold) == set(range(5))
    own = pd.crosstab(samples["label"], fold).loc["b"]
    parts = StratifiedGroupKFold(5).split(samples, samples["label"], groups)
    reference = [int((samples["label"].iloc[rows] == "b").sum()) for _, rows in parts]
    assert np.ptp(own) <= np.ptp(reference) + 2
    split = draw_splits(samples, seed=0, groups=groups, folds=5, fold=2)
    assert (split.groupby(groups).nunique() == 1).all()
    assert ((split == "test") == (fold == 2)).all() and "val" in set(split)


def test_impossible_folds_are_refused():
    samples = make_samples("a" * 60 + "b" * 4)
    with pytest.raises(ValueError, match="folds=5 is more than the 4 samples of the class 'b'"):
        draw_folds(samples, 5, seed=0)
    groups = np.array([str(row // 2) for row in range(64)])
    with pytest.raises(ValueError, match="folds=4 is more than the 2 groups of the class 'b'"):
        draw_folds(samples, 4, seed=0, groups=groups)
    with pytest.raises(ValueError, match="folds=1: cross-validation needs at least 2"):
        draw_splits(samples, seed=0, folds=1)
    with pytest.raises(ValueError, match="fold=4 must be from 0 to 3"):
        draw_splits(samples, seed=0, folds=4, fold=4)


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


def test_splits_and_folds_by_cluster_leave_no_pair_across(twins):
    torn = near_duplicate_table(load_dataset(twins, seed=0))
    data = load_dataset(twins, seed=0, split_by="cluster")
    pairs = near_duplicate_table(data)
    assert torn["crosses_split"].any() and len(pairs) == 30 and not pairs["crosses_split"].any()
    assert data.samples["cluster"].nunique() == 30
    assert (data.samples.groupby("cluster")["split"].nunique() == 1).all()
    assert clean_test_ids(data.samples, pairs) == data.split("test")["sample_id"].tolist()
    again = load_dataset(twins, samples=data.samples)
    assert again.samples["split"].tolist() == data.samples["split"].tolist()
    tests = [
        load_dataset(twins, seed=1, folds=3, fold=fold, split_by="cluster").split("test")
        for fold in range(3)
    ]
    ids = pd.concat(tests)["sample_id"]
    assert ids.is_unique and len(ids) == 60
    assert set(tests[0]["cluster"]).isdisjoint(tests[1]["cluster"])


def test_what_does_not_go_together_is_refused(twins, mnist_files):
    for wrong, message in [
        (
            {"split_by": "clusters"},
            r"unknown column of folder:.* 'clusters'\. Did you mean cluster",
        ),
        (
            {"split_by": "group"},
            "cannot be split by group: all images have one group, 'all'; write split_by='image'",
        ),
        ({"folds": 50}, "folds=50 is more than the 24 samples of the class 'dog'"),
        (
            {"samples": load_dataset(twins).samples, "split_by": "cluster"},
            "has its splits already; leave out split_by= and folds=",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            load_dataset(twins, **wrong)
    with pytest.raises(ValueError, match="comes with its own test split"):
        load_dataset("torchvision:MNIST", folds=3)


def test_a_subset_keeps_proportions_and_small_classes(monkeypatch):
    samples = make_samples(["many"] * 990 + ["rare"] * 10)
    samples["group"] = ["x"] * 330 + ["y"] * 660 + ["x"] * 10
    pd.testing.assert_frame_equal(draw_subset(samples), samples)
    monkeypatch.setattr(splits, "LIMIT", 100)
    chosen = draw_subset(samples)
    assert chosen["label"].value_counts().to_dict() == {"many": 99, "rare": 6}
    assert (chosen.query("label == 'many'")["group"] == "x").sum() == 33
    assert chosen["sample_id"].is_monotonic_increasing
    shuffled = draw_subset(samples.sample(frac=1, random_state=0))
    assert set(shuffled["sample_id"]) == set(chosen["sample_id"]), "whatever the order of the rows"


def test_a_class_with_few_images_shows_what_it_has():
    shown = draw_samples(make_samples("a" * 30 + "b" * 3), 12)
    assert shown["label"].tolist() == ["a"] * 9 + ["b"] * 3 and shown["sample_id"].is_unique
    assert len(draw_samples(make_samples("ab"), 12)) == 2

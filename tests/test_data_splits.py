"""Splits and class weights against hand-computed numbers."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from vitlab.data import class_weights
from vitlab.data.splits import draw_splits


def make_samples(**sizes):
    labels = [label for label, size in sizes.items() for _ in range(size)]
    return pd.DataFrame(
        {"sample_id": [f"s{row:04d}" for row in range(len(labels))], "label": labels}
    )


def count(samples, split):
    return (
        pd.crosstab(samples["label"], split)
        .reindex(columns=["train", "val", "test"], fill_value=0)
        .T.to_dict("list")
    )


def test_shares_are_exact_in_each_stratum():
    samples = make_samples(a=100, b=50, c=10)
    # a: 20 test, 12 of 80 val; b: 10 test, 6 of 40 val; c: 2 test, 1.2 of 8 val
    assert count(samples, draw_splits(samples, seed=0)) == {
        "a": [68, 12, 20],
        "b": [34, 6, 10],
        "c": [7, 1, 2],
    }


def test_the_smallest_strata_still_reach_every_split():
    samples = make_samples(a=3, b=2, c=1)
    assert count(samples, draw_splits(samples, seed=0)) == {
        "a": [1, 1, 1],
        "b": [1, 0, 1],
        "c": [1, 0, 0],
    }


def test_a_share_of_zero_draws_nothing():
    samples = make_samples(a=10, b=10)
    assert set(draw_splits(samples, seed=0, test=0, val=0)) == {"train"}
    assert count(samples, draw_splits(samples, seed=0, test=0, val=0.5)) == {
        "a": [5, 5, 0],
        "b": [5, 5, 0],
    }


def test_several_columns_make_the_strata():
    samples = make_samples(a=40, b=40).assign(group=["mono", "poly"] * 40)
    split = draw_splits(samples, seed=1, strata=("label", "group"))
    assert (samples[split == "test"].groupby(["label", "group"]).size() == 4).all()


def test_the_draw_is_the_documented_hash_on_every_machine():
    samples = make_samples(a=10)
    order = sorted(
        samples["sample_id"], key=lambda name: hashlib.sha256(f"7 test {name}".encode()).hexdigest()
    )
    split = draw_splits(samples, seed=7)
    assert set(samples["sample_id"][split == "test"]) == set(order[:2]) == {"s0002", "s0005"}


def test_order_of_rows_and_other_samples_do_not_matter_and_the_seed_does():
    samples = make_samples(a=200, b=100)
    split = draw_splits(samples, seed=0)
    shuffled = samples.sample(frac=1, random_state=0)
    pd.testing.assert_series_equal(draw_splits(shuffled, seed=0).sort_index(), split)
    fewer = samples.drop(index=[5, 250])
    assert (draw_splits(fewer, seed=0) != split[fewer.index]).sum() <= 6
    assert (draw_splits(samples, seed=1) != split).sum() > 60


def test_test_does_not_depend_on_the_share_of_val():
    samples = make_samples(a=50, b=50)
    first, second = draw_splits(samples, seed=0, val=0.1), draw_splits(samples, seed=0, val=0.4)
    assert ((first == "test") == (second == "test")).all()


@pytest.mark.parametrize("share", [{"test": 1.0}, {"val": -0.1}, {"test": 20}])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ValueError, match=f"{next(iter(share))}=.* is no share"):
        draw_splits(make_samples(a=10), seed=0, **share)


def test_class_weights_are_n_over_k_times_count():
    weights = class_weights(["b", "a", "a", "a"], ["b", "a"])
    assert np.allclose(weights, [4 / (2 * 1), 4 / (2 * 3)])
    assert np.mean([weights[0], weights[1], weights[1], weights[1]]) == pytest.approx(1)


def test_class_weights_need_every_class_and_no_other():
    with pytest.raises(ValueError, match="no label of the classes c"):
        class_weights(["a", "b"], ["a", "b", "c"])
    with pytest.raises(ValueError, match="labels outside the classes: b"):
        class_weights(["a", "b"], ["a"])

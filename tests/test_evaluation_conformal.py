"""Conformal sets: quantiles and sets by hand, coverage by simulation, and too few images."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from statsmodels.stats.proportion import proportion_confint

from vitlab.evaluation import conformal_class_table, conformal_sets, conformal_table
from vitlab.evaluation.conformal import conformal_quantile
from vitlab.evaluation.sentences import describe_conformal

ABC = ("a", "b", "c")


def make_predictions(num_samples=600, seed=0, shares=(0.6, 0.3, 0.1), val=0.5):
    generator = np.random.default_rng(seed)
    label = generator.choice(3, num_samples, p=shares)
    logits = generator.normal(size=(num_samples, 3)) + 2 * np.eye(3)[label] + np.log(shares)
    return fill_table(
        label,
        softmax(logits, axis=1),
        np.where(np.arange(num_samples) < val * num_samples, "val", "test"),
    )


def fill_table(label, prob, split):
    table = pd.DataFrame(
        {"sample_id": [f"s{i}" for i in range(len(label))], "split": split, "group": "all"}
    )
    table["label"], table["pred"] = np.array(ABC)[label], np.array(ABC)[prob.argmax(axis=1)]
    with np.errstate(divide="ignore"):
        table[[f"logit_{name}" for name in ABC]] = np.maximum(np.log(prob), -99)
    table[[f"prob_{name}" for name in ABC]] = prob
    return table


@pytest.mark.parametrize(
    ("n", "alpha", "rank"),
    [(9, 0.1, 9), (19, 0.05, 19), (99, 0.1, 90), (10, 0.1, 10), (4, 0.5, 3), (20, 0.1, 19)],
)
def test_the_rank_is_that_of_a_finite_sample(n, alpha, rank):
    assert conformal_quantile(np.random.default_rng(0).permutation(n) + 1.0, alpha) == rank


@pytest.mark.parametrize(("n", "alpha"), [(8, 0.1), (18, 0.05), (0, 0.5)])
def test_too_few_scores_give_no_limit(n, alpha):
    assert conformal_quantile(np.arange(n, dtype=float), alpha) == np.inf


def test_sets_by_hand():
    # all of class a: scores 0.25, 0.5, 0.75
    val = np.array([[0.75, 0.125, 0.125], [0.5, 0.375, 0.125], [0.25, 0.625, 0.125]])
    test = np.array(
        [[0.5, 0.5, 0.0], [0.25, 0.625, 0.125], [0.125, 0.125, 0.75], [0.375, 0.3125, 0.3125]]
    )
    table = fill_table(
        np.array([0, 0, 0, 0, 1, 0, 2]), np.vstack([val, test]), ["val"] * 3 + ["test"] * 4
    )
    # rank ceil(4 * 0.5) = 2: a probability of 0.5 is enough
    sets = conformal_sets(table, alpha=0.5, by_class=False)
    assert sets[["in_a", "in_b", "in_c"]].to_numpy().tolist() == [
        [True, True, False],
        [False, True, False],
        [False, False, True],
        [False, False, False],
    ]
    assert sets["size"].tolist() == [2, 1, 1, 0] and sets["covered"].tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert sets["sample_id"].tolist() == ["s3", "s4", "s5", "s6"]
    row = conformal_table(table, alphas=(0.5,), by_class=False).iloc[0]
    assert row[["nominal", "coverage", "size", "single", "single_accuracy", "empty"]].tolist() == [
        0.5,
        0.5,
        1,
        0.5,
        0.5,
        0.25,
    ]
    assert (row["worst_class"], row["worst_coverage"], row["note"]) == ("c", 0, "")
    mondrian = conformal_sets(table, alpha=0.5)  # b and c have no calibration image
    assert mondrian["in_a"].tolist() == sets["in_a"].tolist() and mondrian[["in_b", "in_c"]].all(
        axis=None
    )
    assert conformal_table(table, alphas=(0.5,))["note"].tolist() == [
        "too few in validation: b, c in every set"
    ]
    classes = conformal_class_table(table, alpha=0.5).set_index("class")
    assert classes["calibration"].tolist() == [3, 0, 0] and classes["limit"].tolist() == [0.5, 0, 0]
    assert classes["note"].tolist() == ["", *["in every set: too few in validation"] * 2]
    assert classes.loc["a", ["n", "coverage", "size"]].tolist() == [2, 0.5, (3 + 2) / 2]


def test_the_coverage_holds_on_average_and_not_by_much():
    scores = np.random.default_rng(0).random((4000, 10))  # nine to calibrate, the tenth to come
    kept = [row[-1] <= conformal_quantile(row[:-1], 0.1) for row in scores]
    # the plain 90 % quantile of nine keeps 0.82
    assert np.mean(kept) == pytest.approx(0.9, abs=0.015)
    tables = [conformal_table(make_predictions(300, seed), alphas=(0.2,)) for seed in range(80)]
    assert 0.79 < np.mean([table["coverage"].iloc[0] for table in tables]) < 0.84


def test_by_class_it_holds_for_the_rare_class_too():
    rare = {
        by_class: np.mean(
            [
                conformal_class_table(make_predictions(900, seed), 0.1, by_class)["coverage"].iloc[
                    2
                ]
                for seed in range(30)
            ]
        )
        for by_class in (False, True)
    }
    assert rare[False] < 0.8 and 0.89 < rare[True] < 0.95


def test_sets_grow_with_the_nominal_coverage():
    table = conformal_table(make_predictions(), alphas=(0.02, 0.1, 0.3))
    assert table["nominal"].tolist() == pytest.approx([0.98, 0.9, 0.7])
    assert table["size"].is_monotonic_decreasing and table["coverage"].is_monotonic_decreasing


def test_sets_in_words():
    predictions = make_predictions()
    by_class, overall = (conformal_table(predictions, by_class=kind) for kind in (True, False))
    row = by_class.set_index(by_class["nominal"].round(2)).loc[0.9]
    text = describe_conformal(by_class, overall)
    assert f"contain the true class for {row['coverage']:.1%} of the test images" in text
    assert f"They contain {row['size']:.2f} classes on average" in text


def test_intervals_agree_with_statsmodels():
    predictions = make_predictions()
    sets = conformal_sets(predictions, 0.1)
    row = conformal_table(predictions, (0.1,)).iloc[0]
    low, high = proportion_confint(sets["covered"].sum(), len(sets), method="wilson")
    assert [row["coverage_low"], row["coverage_high"]] == pytest.approx([low, high], abs=1e-9)


def test_limits_come_from_validation_only():
    predictions = make_predictions()
    turned = predictions.assign(
        label=np.where(predictions["split"] == "test", "c", predictions["label"])
    )
    columns = [f"in_{name}" for name in ABC]
    pd.testing.assert_frame_equal(
        conformal_sets(predictions)[columns], conformal_sets(turned)[columns]
    )


def test_a_class_that_the_test_split_lacks_has_no_coverage():
    predictions = make_predictions()
    predictions.loc[predictions["split"] == "test", "label"] = "a"
    table = conformal_class_table(predictions).set_index("class")
    assert table.loc[["b", "c"], ["coverage", "coverage_low", "size"]].isna().all(axis=None)
    assert conformal_table(predictions)["worst_class"].tolist() == ["a"] * 3


def test_bad_input_is_named():
    predictions = make_predictions()
    for alpha in (0, 1, 90, np.nan):
        with pytest.raises(ValueError, match="alpha is the share of sets that may miss"):
            conformal_sets(predictions, alpha)
    with pytest.raises(ValueError, match="no sample of split 'val'"):
        conformal_table(predictions[predictions["split"] == "test"])
    with pytest.raises(ValueError, match="sum to"):
        conformal_table(predictions.assign(prob_a=0.9))

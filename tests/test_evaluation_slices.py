"""Slices of any column and the gaps between them, near-duplicates: hand-counted cases, statsmodels'
tests, error rates, bad input."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import accuracy_score, roc_auc_score
from statsmodels.stats.multitest import multipletests

from tests.predictions import fill_binary, make_predictions
from vitlab.evaluation import leakage_table, metrics_table, slice_table, worst_slice_table
from vitlab.evaluation.scores import Scores, read_scores
from vitlab.evaluation.sentences import describe_gaps
from vitlab.evaluation.slices import balanced_accuracy, bin_column, name_bins, permutation_p


def answers(label, pred, **columns):
    """Predictions of two classes with probability 0 or 1."""
    return fill_binary(pred, np.where(np.asarray(label, bool), "yes", "no"), **columns)


class TestBins:
    def test_numbers_are_cut_at_quantiles_and_named_by_the_ends(self):
        bins = bin_column([0, 1, 2, 3, 4, 5, 6, 7, 8])
        assert bins.cat.categories.tolist() == ["0 to 2", "2 to 4", "4 to 6", "6 to 8"]
        assert bins.tolist() == ["0 to 2"] * 3 + ["2 to 4"] * 2 + ["4 to 6"] * 2 + ["6 to 8"] * 2

    def test_as_pandas_cuts(self):
        values = np.random.default_rng(0).normal(size=203)
        assert (bin_column(values).cat.codes == pd.qcut(values, 4, labels=False)).all()

    def test_digits_enough_to_tell_the_ends_apart(self):
        assert name_bins([0.2101, 0.2103, 0.2105]) == ["0.2101 to 0.2103", "0.2103 to 0.2105"]
        assert name_bins([0.123456, 0.5, 0.9]) == ["0.123 to 0.5", "0.5 to 0.9"]
        assert name_bins([1000.0, 2000, 3000]) == ["1,000 to 2,000", "2,000 to 3,000"]

    def test_order_is_that_of_the_numbers_not_of_their_names(self):
        assert bin_column([2, 9, 10, 100, 1000]).cat.categories[0].startswith("2 to")

    def test_few_numbers_stay_themselves(self):
        assert bin_column([300, 300, 1000]).cat.categories.tolist() == ["300", "1000"]
        assert bin_column([0.5, 1.0]).tolist() == ["0.5", "1"]
        assert bin_column([True, False]).cat.categories.tolist() == ["False", "True"]

    def test_words_and_what_is_missing(self):
        assert bin_column(["b", None, "a", ""]).tolist() == ["b", "(none)", "a", "(none)"]
        assert bin_column(["b", None, "a"]).cat.categories.tolist() == ["a", "b", "(none)"]
        ordered = pd.Categorical(["small", "large"], categories=["small", "large"])
        assert bin_column(pd.Series(ordered)).cat.categories.tolist() == ["small", "large"]
        numbers = bin_column([1, 2, 3, 4, 5, np.nan])
        assert numbers.tolist() == ["1 to 2", "1 to 2", "2 to 3", "3 to 4", "4 to 5", "(none)"]

    def test_many_equal_numbers_give_fewer_bins(self):
        assert len(bin_column([0] * 50 + [1, 2, 3, 4, 5, 6]).cat.categories) == 1


class TestSlices:
    def test_several_columns_and_numbers(self):
        predictions = make_predictions(num_samples=200).assign(
            size=np.arange(200.0), kind=["a", "b"] * 100
        )
        table = slice_table(predictions, ["kind", "size"], metrics=["f1"], replicates=20)
        assert table[["column", "slice", "n"]].values.tolist() == [
            ["", "all", 200],
            ["kind", "a", 100],
            ["kind", "b", 100],
            ["size", "0 to 49.8", 50],
            ["size", "49.8 to 99.5", 50],
            ["size", "99.5 to 149", 50],
            ["size", "149 to 199", 50],
        ]
        alone = metrics_table(predictions[predictions["size"] >= 150], replicates=20)
        columns = ["metric", "value", "low", "high", "note"]
        row = alone[alone["metric"] == "f1"].reset_index(drop=True)
        pd.testing.assert_frame_equal(table[columns].tail(1).reset_index(drop=True), row)
        with pytest.raises(ValueError, match="unknown metric 'auc'"):
            slice_table(predictions, metrics=["auc"])
        with pytest.raises(ValueError, match=r"unknown column 'knd'\. Did you mean kind"):
            slice_table(predictions, ["knd"])

    def test_a_small_slice_has_no_number(self):
        predictions = make_predictions(num_samples=100).assign(group=["a"] * 95 + ["b"] * 5)
        table = slice_table(predictions, metrics=["accuracy", "f1"], replicates=5)
        small = table[table["slice"] == "b"]
        assert small[["value", "low", "high"]].isna().all(axis=None)
        assert small["note"].tolist() == ["5 images only"] * 2
        assert table[table["slice"] == "a"]["value"].notna().all()

    def test_near_duplicates_are_scored_apart(self):
        predictions = make_predictions(num_samples=200)
        table = leakage_table(predictions, set(predictions["sample_id"].iloc[:150]))
        parts = {
            "all": predictions,
            "without near-duplicates": predictions[:150],
            "near-duplicates only": predictions[150:],
        }
        assert table["images"].drop_duplicates().tolist() == list(parts)
        rows = table.set_index(["images", "metric"])
        for name, part in parts.items():
            assert rows.loc[(name, "accuracy"), "n"] == len(part)
            accuracy = accuracy_score(part["label"], part["pred"])
            assert rows.loc[(name, "accuracy"), "value"] == pytest.approx(accuracy)
            area = roc_auc_score(part["label"] == "defective", part["prob_defective"])
            assert rows.loc[(name, "roc_auc"), "value"] == pytest.approx(area)
        for clean in (set(predictions["sample_id"]), set()):
            assert set(leakage_table(predictions, clean)["images"]) == {"all"}


class TestGaps:
    def test_the_gap_by_hand(self):
        """Group a: 8 of 10 yes right; b: 4 of 12; c: all of 10; of no, all are right."""
        pred = [1] * 8 + [0] * 2 + [1] * 4 + [0] * 8 + [1] * 10 + [0] * 30
        group = ["a"] * 10 + ["b"] * 12 + ["c"] * 10 + ["a", "b", "c"] * 10
        predictions = answers([1] * 32 + [0] * 30, pred, group=group)
        table = worst_slice_table(predictions, replicates=500).set_index("slice")
        assert table.index.tolist() == ["b", "a", "c"]
        expected = [22, (1 + 4 / 12) / 2, (1 + 18 / 20) / 2, (4 / 12 - 18 / 20) / 2]
        assert table.loc["b", ["n", "value", "rest", "gap"]].tolist() == pytest.approx(expected)
        assert table.loc["a", "gap"] == pytest.approx((8 / 10 - 14 / 22) / 2)
        assert table.loc["b", "low"] < table.loc["b", "gap"] < table.loc["b", "high"] < 0
        worse, none, better = table["verdict"]
        assert (worse, none) == ("worse than the rest", "no difference shown")
        assert better == "better than the rest"
        assert "these differ from the rest: group b (-0.283)" in describe_gaps(table.reset_index())

    def test_p_holm_is_that_of_statsmodels(self):
        predictions = make_predictions(num_samples=200).assign(
            size=np.arange(200.0) % 37, group=["a", "b", "c", "d"] * 50
        )
        table = worst_slice_table(predictions, ["group", "size"], replicates=300)
        assert np.allclose(table["p_holm"], multipletests(table["p"], method="holm")[1])

    def test_p_against_every_membership_there_is(self):
        label = [1] * 9 + [0] * 6
        predictions = answers(label, [1, 1, 1, 1, 0, 0, 1, 0, 0] + [0] * 6)
        scores, inside = read_scores(predictions, "test"), np.isin(np.arange(15), [0, 1, 2, 3, 9])
        members = []
        for chosen in combinations(range(9), 4):
            for other in range(9, 15):
                members.append(np.isin(np.arange(15), [*chosen, other]))
        members = np.array(members, float)
        gaps = balanced_accuracy(scores, members) - balanced_accuracy(scores, 1 - members)
        exact = np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-12)
        assert permutation_p(scores, inside, 20_000) == pytest.approx(exact, abs=0.01)

    def test_under_the_null_p_is_small_as_often_as_it_says(self):
        inside, ps = np.arange(80) < 30, []
        for seed in range(200):
            scores = read_scores(make_predictions(num_samples=80, seed=seed), "test")
            ps.append(permutation_p(scores, inside, 99, seed=1000 + seed))
        # three standard deviations
        assert np.mean(np.array(ps) <= 0.2) == pytest.approx(0.2, abs=0.085)
        assert np.mean(np.array(ps) <= 0.5) == pytest.approx(0.5, abs=0.11)

    @pytest.mark.parametrize("prevalence", [(0.4, 0.4), (0.1, 0.4)])
    def test_other_shares_of_the_classes_are_no_worse_slice(self, prevalence):
        """100 images in the slice, 200 in the rest, the same scores within each class: at most 7 %
        of 300 at 5 % nominal.

        Membership permuted over the classes rejected 19 to 22 % at prevalences of .10 and .40.
        """
        generator, inside, rejected = np.random.default_rng(0), np.arange(300) < 100, 0
        for seed in range(300):
            label = (generator.random(300) < np.where(inside, *prevalence)).astype(int)
            score = generator.normal(loc=np.where(label, 0.84, -0.84))  # 80 % right in either class
            prob = np.column_stack([1 - expit(score), expit(score)])
            scores = Scores(("no", "yes"), label, (score > 0).astype(int), prob)
            rejected += permutation_p(scores, inside, 99, seed=seed) <= 0.05
        assert rejected <= 21

    def test_two_values_are_one_comparison(self):
        predictions = make_predictions(num_samples=100).assign(
            group=["a"] * 50 + ["b"] * 50, kind=["x", "y"] * 50
        )
        table = worst_slice_table(predictions, ["group", "kind"], replicates=20)
        assert sorted(table["column"]) == ["group", "kind"]
        assert (table["gap"] <= 0).all()

    def test_small_slices_and_missing_classes_are_marked(self):
        label = np.array([0, 1] * 50)
        # a has no yes, b no no
        group = ["a", "b"] * 30 + ["c"] * 36 + ["d"] * 4
        table = worst_slice_table(answers(label, label, group=group), replicates=20)
        rows, gaps = table.set_index("slice"), ["gap", "low", "high", "p", "p_holm"]
        assert rows.loc[list("abd"), "note"].tolist() == ["only no", "only yes", "4 images only"]
        assert rows.loc[list("abd"), gaps].isna().all(axis=None)
        assert (rows.loc[list("abd"), "verdict"] == "").all()
        assert rows.loc["c", gaps].notna().all()
        assert "**no difference is shown**" in describe_gaps(table)
        assert "No slice has enough images" in describe_gaps(table[1:])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"by": ["grup"]}, "unknown column 'grup'. Did you mean group"),
            ({"by": ["group"]}, "nothing to compare: group has one value"),
            ({"by": []}, "nothing to compare"),
            ({"replicates": 0}, "at least 1"),
        ],
    )
    def test_bad_input(self, arguments, message):
        predictions = make_predictions(num_samples=40).assign(kind=["a", "b"] * 20)
        with pytest.raises(ValueError, match=message):
            worst_slice_table(predictions, **{"by": ["kind"], "replicates": 5, **arguments})

"""Slices of any column and the gaps between them: hand-counted cases, scipy's and statsmodels'
tests, bad input.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import permutation_test
from statsmodels.stats.multitest import multipletests

from tests.test_evaluation_metrics import make_predictions
from vitlab.evaluation import METRICS, add_columns, metrics_table, slice_table, worst_slice_table
from vitlab.evaluation.gaps import permutation_p
from vitlab.evaluation.scores import Scores, read_scores
from vitlab.evaluation.sentences import describe_gaps
from vitlab.evaluation.slices import bin_column, name_bins


def answers(label, pred, **columns):
    """Predictions of two classes, sure of every answer."""
    label, pred = np.array(label), np.array(pred)
    table = pd.DataFrame(
        {"sample_id": [f"s{i}" for i in range(len(label))], "split": "test", "group": "all"}
    )
    table["label"], table["pred"] = np.array(["no", "yes"])[label], np.array(["no", "yes"])[pred]
    for kind in ("logit", "prob"):
        table[f"{kind}_no"], table[f"{kind}_yes"] = 1.0 - pred, 1.0 * pred
    return table.assign(**columns)


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
        numbers = bin_column([1, 2, 3, 4, 5, np.nan, np.inf])
        assert (
            numbers.tolist() == ["1 to 2", "1 to 2", "2 to 3", "3 to 4", "4 to 5"] + ["(none)"] * 2
        )

    def test_many_equal_numbers_give_fewer_bins(self):
        assert len(bin_column([0] * 50 + [1, 2, 3, 4, 5, 6]).cat.categories) == 1


class TestJoin:
    def test_columns_come_by_sample(self):
        predictions = make_predictions(num_samples=5)
        table = pd.DataFrame(
            {
                "sample_id": [f"s{i}" for i in (4, 2, 0, 1, 3, 9)],
                "mean": [4, 2, 0, 1, 3, 9],
                "std": 0,
            }
        )
        joined = add_columns(predictions, table, ["mean"])
        assert joined["mean"].tolist() == [0, 1, 2, 3, 4]
        assert "std" not in joined
        pd.testing.assert_frame_equal(joined.drop(columns="mean"), predictions)

    def test_bad_tables(self):
        predictions = make_predictions(num_samples=3)
        table = pd.DataFrame({"sample_id": ["s0", "s1", "s2"], "mean": 0.5})
        with pytest.raises(ValueError, match=r"unknown column 'maen'. Did you mean mean"):
            add_columns(predictions, table, ["maen"])
        with pytest.raises(ValueError, match="several rows for sample_id 's0'"):
            add_columns(predictions, pd.concat([table, table[:1]]), ["mean"])
        with pytest.raises(ValueError, match="no row for 2 of 3 images, first 's1'"):
            add_columns(predictions, table[:1], ["mean"])
        with pytest.raises(ValueError, match="'group' already"):
            add_columns(predictions, table.assign(group="a"), ["group"])


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
        alone = (
            metrics_table(predictions[predictions["size"] >= 150], replicates=20)
            .set_index("metric")
            .loc["f1"]
        )
        assert (
            table.iloc[6][["value", "low", "high"]].tolist()
            == alone[["value", "low", "high"]].tolist()
        )

    def test_a_small_slice_has_no_number(self):
        predictions = make_predictions(num_samples=100).assign(group=["a"] * 95 + ["b"] * 5)
        table = slice_table(predictions, metrics=["accuracy", "f1"], replicates=5)
        small = table[table["group"] == "b"]
        assert small[["value", "low", "high"]].isna().all(axis=None)
        assert small["note"].tolist() == ["5 images only"] * 2
        assert table[table["group"] == "a"]["value"].notna().all()


class TestGaps:
    def test_the_gap_by_hand(self):
        """Group a: 8 of 10 right; b: 4 of 12; c: all of 10."""
        pred = [1] * 8 + [0] * 2 + [1] * 4 + [0] * 8 + [1] * 10
        predictions = answers([1] * 32, pred, group=["a"] * 10 + ["b"] * 12 + ["c"] * 10)
        table = worst_slice_table(predictions, metric="accuracy", replicates=500).set_index("slice")
        assert table.index.tolist() == ["b", "a", "c"]
        assert table.loc["b", ["n", "value", "rest", "gap"]].tolist() == pytest.approx(
            [12, 4 / 12, 18 / 20, 4 / 12 - 18 / 20]
        )
        assert table.loc["a", "gap"] == pytest.approx(8 / 10 - 14 / 22)
        assert table.loc["b", "low"] < table.loc["b", "gap"] < table.loc["b", "high"] < 0
        assert table["verdict"].tolist() == [
            "worse than the rest",
            "no difference shown",
            "better than the rest",
        ]

    def test_p_holm_is_that_of_statsmodels(self):
        predictions = make_predictions(num_samples=200).assign(
            size=np.arange(200.0) % 37, group=["a", "b", "c", "d"] * 50
        )
        table = worst_slice_table(predictions, ["group", "size"], "accuracy", replicates=300)
        assert np.allclose(table["p_holm"], multipletests(table["p"], method="holm")[1])
        assert (table["p_holm"] >= table["p"]).all()

    def test_p_against_every_membership_there_is(self):
        predictions = answers([1] * 9, [1, 1, 1, 1, 0, 0, 1, 0, 0])
        scores, inside = read_scores(predictions, "test"), np.arange(9) < 4
        right = (scores.label == scores.pred).astype(float)
        gaps = [
            right[list(chosen)].mean() - np.delete(right, chosen).mean()
            for chosen in map(list, combinations(range(9), 4))
        ]
        exact = np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-12)
        drawn = permutation_p(scores, inside, METRICS.index("accuracy"), 20_000)
        assert drawn == pytest.approx(exact, abs=0.01)

    def test_p_against_scipy(self):
        generator = np.random.default_rng(1)
        pred = np.r_[generator.random(30) < 0.9, generator.random(40) < 0.7].astype(int)
        scores = read_scores(answers([1] * 70, pred), "test")
        result = permutation_test(
            (pred[:30], pred[30:]),
            lambda x, y, axis: abs(x.mean(axis) - y.mean(axis)),
            vectorized=True,
            n_resamples=20_000,
            alternative="greater",
            rng=np.random.default_rng(0),
        )
        drawn = permutation_p(scores, np.arange(70) < 30, METRICS.index("accuracy"), 20_000)
        assert drawn == pytest.approx(result.pvalue, abs=0.015)

    def test_under_the_null_p_is_small_as_often_as_it_says(self):
        inside, place, ps = np.arange(80) < 30, METRICS.index("balanced_accuracy"), []
        for seed in range(200):
            scores = read_scores(make_predictions(num_samples=80, seed=seed), "test")
            ps.append(permutation_p(scores, inside, place, 99, seed=1000 + seed))
        # three standard deviations
        assert np.mean(np.array(ps) <= 0.2) == pytest.approx(0.2, abs=0.085)
        assert np.mean(np.array(ps) <= 0.5) == pytest.approx(0.5, abs=0.11)

    @pytest.mark.parametrize("prevalence", [(0.4, 0.4), (0.1, 0.4)])
    @pytest.mark.parametrize("metric", ["balanced_accuracy", "roc_auc", "accuracy"])
    def test_other_shares_of_the_classes_are_no_worse_slice(self, metric, prevalence):
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
            rejected += permutation_p(scores, inside, METRICS.index(metric), 99, seed=seed) <= 0.05
        assert rejected <= 21

    def test_a_worse_slice_is_found(self):
        generator = np.random.default_rng(0)
        label, inside = generator.integers(2, size=400), np.arange(400) < 100
        right = generator.random(400) < np.where(inside, 0.6, 0.9)
        predictions = answers(
            label, np.where(right, label, 1 - label), group=np.where(inside, "a", "b")
        )
        table = worst_slice_table(predictions, replicates=200)
        assert table["verdict"].tolist() == ["worse than the rest"]
        assert "these differ from the rest: group a (" in describe_gaps(table)
        assert describe_gaps(table).startswith(
            "The worst of 1 slices is *group a* (100 images): its balanced accuracy minus"
        )
        even = worst_slice_table(
            answers(label, label, group=np.where(inside, "a", "b")), replicates=20
        )
        assert "**no difference is shown**" in describe_gaps(even)

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
        group = np.array(["a", "b"] * 30 + ["c"] * 36 + ["d"] * 4, dtype=object)
        table = worst_slice_table(answers(label, label, group=group), replicates=20).set_index(
            "slice"
        )
        notes = ["only no", "only yes", "4 images only"]
        assert table.loc[["a", "b", "d"], "note"].tolist() == notes
        gaps = ["gap", "low", "high", "p", "p_holm"]
        assert table.loc[["a", "b", "d"], gaps].isna().all(axis=None)
        assert (table.loc[["a", "b", "d"], "verdict"] == "").all()
        assert table.loc["c", gaps].notna().all()
        accuracy = worst_slice_table(
            answers(label, label, group=group), metric="accuracy", replicates=20
        ).set_index("slice")
        assert accuracy.loc[["a", "b", "c"], "gap"].tolist() == [0, 0, 0]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"by": ["grup"]}, "unknown column 'grup'. Did you mean group"),
            ({"by": "group"}, r"by=\['group'\]"),
            ({"by": ["group"]}, "nothing to compare: group has one value"),
            ({"by": []}, "nothing to compare"),
            ({"metric": "auc"}, "unknown metric"),
            (
                {"metric": "f1"},
                (
                    "unknown metric for comparing slices 'f1'.*Choices: accuracy,"
                    " balanced_accuracy, recall"
                ),
            ),
            ({"replicates": 0}, "at least 1"),
        ],
    )
    def test_bad_input(self, arguments, message):
        by = {"by": ["kind"], **arguments}
        with pytest.raises(ValueError, match=message):
            worst_slice_table(
                make_predictions(num_samples=40).assign(kind=["a", "b"] * 20),
                **{"replicates": 5, **by},
            )

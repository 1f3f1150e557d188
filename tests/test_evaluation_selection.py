"""Selective prediction and conformal sets: counted by hand, guarantees by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from statsmodels.stats.proportion import proportion_confint

from tests.predictions import fill_binary, fill_table
from vitlab.evaluation import (
    conformal_class_table,
    conformal_table,
    risk_coverage_table,
    selective_table,
)
from vitlab.evaluation.conformal import conformal_quantile, predict_sets
from vitlab.evaluation.inference import wilson_interval
from vitlab.evaluation.sentences import describe_conformal, describe_selection


def answer_yes(confidence, right, split="test"):
    """Two classes; the prediction is always yes, with this confidence, and right or not."""
    return fill_binary(confidence, np.where(right, "yes", "no"), split)


FIVE = answer_yes([0.9, 0.6, 0.8, 0.7, 0.95], [True, False, False, True, True])


def make_both(num_samples=500, seed=0):
    generator = np.random.default_rng(seed)
    parts = []
    for split in ("val", "test"):
        confidence = generator.uniform(0.5, 1, num_samples)
        right = generator.random(num_samples) < confidence
        parts.append(answer_yes(confidence, right, split))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(sample_id=[f"s{i}" for i in range(len(table))])


def test_risk_and_coverage_by_hand():
    table = risk_coverage_table(FIVE)
    assert table["threshold"].tolist() == [0.95, 0.9, 0.8, 0.7, 0.6]
    assert table["n"].tolist() == [1, 2, 3, 4, 5]
    assert table["coverage"].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert table["risk"].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 4, 2 / 5])
    assert table["oracle"].tolist() == pytest.approx([0, 0, 0, 1 / 4, 2 / 5])
    expected = np.transpose(wilson_interval(table["risk"].to_numpy(), table["n"].to_numpy()))
    assert (table[["low", "high"]].to_numpy() == expected).all()
    # equal confidences are covered together
    table = risk_coverage_table(answer_yes([0.7, 0.7, 0.9], [True, False, True]))
    assert table["n"].tolist() == [1, 3] and table["risk"].tolist() == pytest.approx([0, 1 / 3])


def test_thresholds_are_chosen_on_validation_and_measured_on_test():
    table = make_both(2000)
    chosen = selective_table(table)
    assert chosen["target"].tolist() == ["coverage"] * 4 + ["accuracy"] * 2
    val, test = (table[table["split"] == split] for split in ("val", "test"))
    for row in chosen.dropna().itertuples():
        kept = val[val["prob_yes"] >= row.threshold]
        given = test[test["prob_yes"] >= row.threshold]
        assert row.val_coverage == pytest.approx(len(kept) / len(val))
        assert row.val_accuracy == pytest.approx((kept["label"] == "yes").mean())
        assert (row.n, row.coverage) == (len(given), pytest.approx(len(given) / len(test)))
        assert row.accuracy == pytest.approx((given["label"] == "yes").mean())
        assert row.accuracy_low < row.accuracy < row.accuracy_high
        assert (row.val_coverage if row.target == "coverage" else row.val_accuracy) >= row.nominal
    assert chosen["coverage"].iloc[0] == 1
    # one image fewer would be below the nominal coverage
    assert (val["prob_yes"] > chosen["threshold"].iloc[2]).mean() < 0.8
    text = describe_selection(chosen)
    assert f"{chosen['accuracy'].iloc[0]:.1%} of the predictions are correct" in text
    turned = table.assign(label=np.where(table["split"] == "test", "no", table["label"]))
    assert chosen["threshold"].equals(selective_table(turned)["threshold"])


def test_an_accuracy_that_validation_does_not_show_has_no_threshold():
    table = make_both(20)
    row = selective_table(table).iloc[-1]
    assert (row["nominal"], row["n"]) == (0.95, 0)
    assert row[["threshold", "val_coverage", "coverage", "accuracy_low"]].isna().all()
    table.loc[table["split"] == "test", ["prob_no", "prob_yes"]] = [0.49, 0.51]
    row = selective_table(table).iloc[3]  # covers nothing in test
    assert (row["n"], row["coverage"]) == (0, 0) and np.isnan(row["accuracy"])


def test_a_nominal_accuracy_holds_for_new_images_at_the_confidence_level():
    kept = []
    for seed in range(60):
        row = selective_table(make_both(300, seed)).iloc[4]
        # confidence is uniform and calibrated
        kept.append(np.isnan(row["threshold"]) or (1 + row["threshold"]) / 2 >= 0.9)
    assert np.mean(kept) >= 0.9
    row = selective_table(make_both(2000)).iloc[4]
    n = round(row["val_coverage"] * 2000)
    # 2,000 thresholds: 11 steps of the binary search
    low, _ = proportion_confint(n * row["val_accuracy"], n, alpha=2 * 0.1 / 11, method="beta")
    assert low >= 0.9


def make_three(num_samples=600, seed=0, shares=(0.6, 0.3, 0.1)):
    generator = np.random.default_rng(seed)
    label = generator.choice(3, num_samples, p=shares)
    logits = generator.normal(size=(num_samples, 3)) + 2 * np.eye(3)[label] + np.log(shares)
    split = np.where(np.arange(num_samples) < num_samples / 2, "val", "test")
    return fill_table("abc", label, softmax(logits, axis=1), split)


@pytest.mark.parametrize(
    ("n", "alpha", "rank"),
    [(9, 0.1, 9), (19, 0.05, 19), (99, 0.1, 90), (10, 0.1, 10), (4, 0.5, 3), (20, 0.1, 19)],
)
def test_the_rank_is_that_of_a_finite_sample(n, alpha, rank):
    assert conformal_quantile(np.random.default_rng(0).permutation(n) + 1.0, alpha) == rank


@pytest.mark.parametrize(("n", "alpha"), [(8, 0.1), (18, 0.05), (0, 0.5)])
def test_too_few_scores_give_no_limit(n, alpha):
    assert conformal_quantile(np.arange(n, dtype=float), alpha) == np.inf


def test_sets_by_hand(monkeypatch):
    # all of class a: scores 0.25, 0.5, 0.75; then the test images
    prob = [[0.75, 0.125, 0.125], [0.5, 0.375, 0.125], [0.25, 0.625, 0.125]]
    prob += [[0.5, 0.5, 0.0], [0.25, 0.625, 0.125], [0.125, 0.125, 0.75], [0.375, 0.3125, 0.3125]]
    table = fill_table("abc", [0, 0, 0, 0, 1, 0, 2], prob, ["val"] * 3 + ["test"] * 4)
    # rank ceil(4 * 0.5) = 2: a probability of 0.5 is enough
    inside, covered = predict_sets(table, 0.5, by_class=False)
    assert inside.astype(int).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert covered.tolist() == [True, True, False, False]
    monkeypatch.setattr("vitlab.evaluation.conformal.ALPHAS", (0.5,))
    row = conformal_table(table, by_class=False).iloc[0]
    columns = ["nominal", "coverage", "size", "single", "single_accuracy", "empty"]
    assert row[columns].tolist() == [0.5, 0.5, 1, 0.5, 0.5, 0.25]
    assert (row["worst_class"], row["worst_coverage"]) == ("c", 0)
    by_class, _ = predict_sets(table, 0.5)  # b and c have no calibration image
    assert (by_class[:, 0] == inside[:, 0]).all() and by_class[:, 1:].all()
    classes = conformal_class_table(table, alpha=0.5).set_index("class")
    assert classes["calibration"].tolist() == [3, 0, 0] and classes["limit"].tolist() == [0.5, 0, 0]
    assert classes.loc["a", ["n", "coverage", "size"]].tolist() == [2, 0.5, (3 + 2) / 2]


def test_the_coverage_holds_on_average_and_not_by_much():
    scores = np.random.default_rng(0).random((4000, 10))  # nine to calibrate, the tenth to come
    kept = [row[-1] <= conformal_quantile(row[:-1], 0.1) for row in scores]
    # the plain 90 % quantile of nine keeps 0.82
    assert np.mean(kept) == pytest.approx(0.9, abs=0.015)
    covered = [predict_sets(make_three(300, seed), 0.2)[1].mean() for seed in range(80)]
    assert 0.79 < np.mean(covered) < 0.84


def test_by_class_it_holds_for_the_rare_class_too():
    rare = {False: [], True: []}
    for seed in range(30):
        table = make_three(900, seed)
        of_rare = (table["label"] == "c")[table["split"] == "test"].to_numpy()
        for by_class, found in rare.items():
            found.append(predict_sets(table, 0.1, by_class)[1][of_rare].mean())
    assert np.mean(rare[False]) < 0.8 and 0.89 < np.mean(rare[True]) < 0.95


def test_sets_grow_with_the_nominal_coverage():
    predictions = make_three()
    table, plain = conformal_table(predictions), conformal_table(predictions, by_class=False)
    assert table["nominal"].tolist() == pytest.approx([0.95, 0.9, 0.8])
    assert table["size"].is_monotonic_decreasing and table["coverage"].is_monotonic_decreasing
    row, text = table.iloc[1], describe_conformal(table, plain)
    covered = predict_sets(predictions, 0.1)[1]
    low, high = proportion_confint(covered.sum(), len(covered), method="wilson")
    ends = row[["coverage_low", "coverage_high"]].tolist()
    assert ends == pytest.approx([low, high], abs=1e-9)
    assert f"contain the true class for {row['coverage']:.1%} [{low:.1%}, {high:.1%}]" in text
    assert f"They contain {row['size']:.2f} classes on average" in text


def test_limits_come_from_validation_only():
    predictions = make_three()
    is_test = predictions["split"] == "test"
    turned = predictions.assign(label=np.where(is_test, "c", predictions["label"]))
    assert (predict_sets(predictions, 0.1)[0] == predict_sets(turned, 0.1)[0]).all()
    table = conformal_class_table(turned).set_index("class")  # no test image of a and b
    assert table.loc[["a", "b"], ["coverage", "coverage_low", "size"]].isna().all(axis=None)
    assert conformal_table(turned)["worst_class"].tolist() == ["c"] * 3
    for make in (conformal_table, selective_table):
        with pytest.raises(ValueError, match="no sample of split 'val'"):
            make(predictions[is_test])

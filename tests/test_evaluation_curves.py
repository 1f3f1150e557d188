"""Curves, calibration, slices and the comparison of runs: small cases counted by hand, and
scikit-learn's values.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from vitlab.evaluation import (
    comparison_table,
    metrics_table,
    mistakes_table,
    precision_recall_table,
    reliability_table,
    roc_table,
    slice_table,
    threshold_table,
)
from vitlab.evaluation.calibration import expected_calibration_error


def make_predictions(prob_yes, label, group=None):
    """A two-class table (no, yes) from the probability of yes."""
    prob_yes = np.asarray(prob_yes, float)
    table = pd.DataFrame({"sample_id": [f"s{i}" for i in range(len(prob_yes))], "split": "test"})
    table["group"] = group if group is not None else "all"
    table["label"], table["pred"] = list(label), np.where(prob_yes > 0.5, "yes", "no")
    table["logit_no"], table["logit_yes"] = 0.0, 0.0
    table["prob_no"], table["prob_yes"] = 1 - prob_yes, prob_yes
    return table


@pytest.fixture
def six():
    return make_predictions(
        [0.95, 0.85, 0.65, 0.45, 0.15, 0.05],
        ["yes", "yes", "no", "yes", "no", "no"],
        list("aabbcc"),
    )


def test_roc_curve_by_hand(six):
    table = roc_table(six)
    assert (table["class"] == "yes").all()
    assert table["threshold"].iloc[0] == np.inf
    points = list(
        zip(
            table["false_positive_rate"].round(3), table["true_positive_rate"].round(3), strict=True
        )
    )
    assert points == [(0, 0), (0, 0.333), (0, 0.667), (0.333, 0.667), (0.333, 1), (1, 1)]
    area = np.trapezoid(table["true_positive_rate"], table["false_positive_rate"])
    assert area == pytest.approx(
        metrics_table(six, replicates=0).set_index("metric").loc["roc_auc", "value"]
    )


def test_precision_recall_curve_starts_at_the_prevalence(six):
    table = precision_recall_table(six)
    assert table.loc[0, ["recall", "precision", "threshold"]].tolist() == [1, 0.5, 0.05]
    assert table.iloc[-1][["recall", "precision", "threshold"]].tolist() == [0, 1, np.inf]
    average = -(table["recall"].diff() * table["precision"].shift()).sum()
    assert average == pytest.approx(
        metrics_table(six, replicates=0).set_index("metric").loc["average_precision", "value"]
    )


def test_several_classes_give_one_curve_each_and_none_for_an_absent_one():
    generator = np.random.default_rng(0)
    prob = generator.dirichlet(np.ones(3), 60)
    table = pd.DataFrame(
        {"sample_id": [str(i) for i in range(60)], "split": "test", "group": "all"}
    )
    table["label"] = generator.choice(["a", "b"], 60)
    table["pred"] = np.array(["a", "b", "c"])[prob.argmax(axis=1)]
    table[["logit_a", "logit_b", "logit_c"]] = np.log(prob)
    table[["prob_a", "prob_b", "prob_c"]] = prob
    curves = roc_table(table)
    assert list(curves["class"].unique()) == ["a", "b"]
    for name, curve in curves.groupby("class"):
        area = np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"])
        assert area == pytest.approx(
            reference.roc_auc_score(table["label"] == name, table[f"prob_{name}"])
        )
    assert precision_recall_table(table, positive="c").empty
    with pytest.raises(ValueError, match="write positive= with one of a, b, c"):
        threshold_table(table)
    assert threshold_table(table, positive="a", steps=3)["threshold"].tolist() == [0, 0.5, 1]


def test_threshold_table_by_hand(six):
    table = threshold_table(six, steps=5).set_index("threshold")
    assert table.loc[0, ["precision", "recall", "specificity", "f1"]].tolist() == [
        0.5,
        1,
        0,
        pytest.approx(2 / 3),
    ]
    assert table.loc[0.5, ["precision", "recall", "specificity", "f1"]].tolist() == pytest.approx(
        [2 / 3] * 4
    )
    assert table.loc[0.75, ["precision", "recall", "specificity", "f1"]].tolist() == pytest.approx(
        [1, 2 / 3, 1, 0.8]
    )
    assert np.isnan(table.loc[1, "precision"]) and table.loc[1, "recall"] == 0


def test_reliability_and_calibration_error_by_hand(six):
    # confidences .95 .85 .65 .55 .85 .95, right, right, wrong, wrong, right, right
    table = reliability_table(six, bins=5).set_index("bin")
    assert table["n"].tolist() == [0, 0, 1, 1, 4]
    assert table.loc[[2, 3, 4], "confidence"].tolist() == pytest.approx([0.55, 0.65, 0.9])
    assert table.loc[[2, 3, 4], "accuracy"].tolist() == [0, 0, 1]
    assert table.loc[[0, 1], ["confidence", "accuracy", "low", "high"]].isna().all(axis=None)
    assert expected_calibration_error(six, bins=5) == pytest.approx((0.55 + 0.65 + 4 * 0.1) / 6)
    # of one class: p(yes) .05 .15 | .45 | .65 | .85 .95 against the share of yes
    table = reliability_table(six, bins=5, positive="yes")
    assert table["n"].tolist() == [2, 0, 1, 1, 2]
    assert table["accuracy"].tolist() == pytest.approx([0, np.nan, 1, 0, 1], nan_ok=True)
    assert expected_calibration_error(six, bins=5, positive="yes") == pytest.approx(
        (2 * 0.1 + 0.55 + 0.65 + 2 * 0.1) / 6
    )


def test_bins_hold_their_upper_edge():
    table = reliability_table(
        make_predictions([0, 0.2, 0.4, 1], ["no", "no", "no", "yes"]), bins=5, positive="yes"
    )
    assert table["n"].tolist() == [2, 1, 0, 0, 1]
    with pytest.raises(ValueError, match="at least 1"):
        reliability_table(make_predictions([0.1], ["no"]), bins=0)


def test_wilson_interval_is_the_textbook_one():
    table = reliability_table(make_predictions([0.9] * 10, ["yes"] * 8 + ["no"] * 2), bins=1)
    # 8 of 10: Wilson, 1927
    assert table.loc[0, ["low", "high"]].tolist() == pytest.approx([0.4902, 0.9433], abs=1e-4)
    table = reliability_table(make_predictions([0.9] * 10, ["yes"] * 10), bins=1)
    assert table.loc[0, ["low", "high"]].tolist() == pytest.approx([0.7225, 1], abs=1e-4)


def test_slices_by_hand(six):
    table = slice_table(six, metrics=["accuracy", "roc_auc"], replicates=20, least=1).set_index(
        ["group", "metric"]
    )
    assert table.loc[("all", "accuracy"), "value"] == pytest.approx(4 / 6)
    assert table.loc[("b", "accuracy"), "value"] == 0
    assert table.loc[("b", "roc_auc"), "value"] == 0  # the no stands above the yes
    assert table.loc[("a", "accuracy"), ["n", "value"]].tolist() == [2, 1]
    assert np.isnan(table.loc[("a", "roc_auc"), "value"])
    assert table.loc[("a", "roc_auc"), "note"] == "only yes"
    assert table.loc[("c", "roc_auc"), "note"] == "only no"
    assert table.loc[("a", "accuracy"), "note"] == ""


def test_slices_agree_with_the_metrics_of_the_part():
    generator = np.random.default_rng(1)
    label = generator.choice(["no", "yes"], 200)
    predictions = make_predictions(
        generator.random(200), label, generator.choice(["mono", "poly"], 200)
    )
    table = slice_table(predictions, metrics=["f1", "roc_auc"], replicates=50, seed=4).set_index(
        ["group", "metric"]
    )
    part = metrics_table(
        predictions[predictions["group"] == "poly"], replicates=50, seed=4
    ).set_index("metric")
    for metric in ("f1", "roc_auc"):
        assert (
            table.loc[("poly", metric), ["value", "low", "high"]].tolist()
            == part.loc[metric, ["value", "low", "high"]].tolist()
        )


def test_one_group_is_one_slice_and_an_empty_group_has_a_name(six):
    assert slice_table(six.assign(group="all"), replicates=2)["group"].unique().tolist() == ["all"]
    some = slice_table(
        six.assign(group=["", None, "x", "x", "x", "x"]),
        metrics=["accuracy"],
        replicates=2,
        least=1,
    )
    assert some[["group", "n"]].to_numpy().tolist() == [["all", 6], ["x", 4], ["(none)", 2]]
    with pytest.raises(ValueError, match="unknown metric 'auc'"):
        slice_table(six, metrics=["auc"])
    with pytest.raises(ValueError, match=r"unknown column 'grup'\. Did you mean group"):
        slice_table(six, by="grup")


def test_mistakes_come_most_confident_first(six):
    table = mistakes_table(six)
    assert table[["sample_id", "label", "pred"]].to_numpy().tolist() == [
        ["s2", "no", "yes"],
        ["s3", "yes", "no"],
    ]
    assert table["confidence"].tolist() == pytest.approx([0.65, 0.55])
    assert table["prob_label"].tolist() == pytest.approx([0.35, 0.45])
    assert len(mistakes_table(six, n=1)) == 1
    none = mistakes_table(six[six["label"] == six["pred"]])
    assert none.empty and "confidence" in none.columns


def test_comparison_over_seeds_by_hand():
    rows = [
        ("vit", 0, "f1", 0.8),
        ("vit", 1, "f1", 0.9),
        ("cnn", 0, "f1", 0.7),
        ("vit", 0, "mcc", 0.5),
        ("vit", 1, "mcc", np.nan),
    ]
    table = comparison_table(pd.DataFrame(rows, columns=["model", "seed", "metric", "value"]))
    assert table[["model", "metric"]].to_numpy().tolist() == [
        ["vit", "f1"],
        ["cnn", "f1"],
        ["vit", "mcc"],
    ]
    assert table.loc[0, ["mean", "spread", "low", "high", "seeds"]].tolist() == pytest.approx(
        [0.85, 0.1 / np.sqrt(2), 0.8, 0.9, 2]
    )
    assert table["seeds"].tolist() == [2, 1, 1]
    assert table["spread"].isna().tolist() == [False, True, True]


def test_comparison_refuses_two_runs_of_one_seed():
    rows = [("vit", 0, "f1", 0.8), ("vit", 0, "f1", 0.9)]
    with pytest.raises(ValueError, match="two values of f1 for model vit, seed 0"):
        comparison_table(pd.DataFrame(rows, columns=["model", "seed", "metric", "value"]))
    with pytest.raises(ValueError, match="lacks the columns value"):
        comparison_table(pd.DataFrame({"model": [], "seed": [], "metric": []}))

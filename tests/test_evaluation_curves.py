"""Curves, calibration, slices and the comparison of runs: small cases counted by hand, and
scikit-learn's values.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference
from sklearn.metrics import precision_recall_curve, roc_curve

from tests.test_evaluation_metrics import BINARY, DIGITS, make_predictions as mediocre
from vitlab.evaluation import (
    comparison_table,
    curve_band_table,
    metrics_table,
    mistakes_table,
    precision_recall_table,
    reliability_table,
    roc_table,
    slice_table,
    threshold_table,
)
from vitlab.evaluation.bootstrap import draw_counts
from vitlab.evaluation.calibration import (
    assign_bins,
    expected_calibration_error,
    wilson_interval,
)
from vitlab.evaluation.curves import prepare_curve
from vitlab.evaluation.scores import read_scores


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
    assert list(precision_recall_table(table)["class"].unique()) == ["a", "b"]
    with pytest.raises(ValueError, match="write positive= with one of a, b, c"):
        threshold_table(table)
    thresholds = threshold_table(table, positive="a")["threshold"]
    assert thresholds.iloc[[0, 50, 100]].tolist() == [0, 0.5, 1]


def test_threshold_table_by_hand(six):
    table = threshold_table(six).set_index("threshold")
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
    # confidences .95 .85 .65 .55 .85 .95: right, right, wrong, wrong, right, right
    table = reliability_table(six).set_index("bin")
    assert table["n"].tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 2, 2]
    filled = table[table["n"] > 0]
    assert filled["confidence"].tolist() == pytest.approx([0.55, 0.65, 0.85, 0.95])
    assert filled["accuracy"].tolist() == [0, 0, 1, 1]
    assert table.loc[[0, 7], ["confidence", "accuracy", "low", "high"]].isna().all(axis=None)
    by_hand = (0.55 + 0.65 + 2 * 0.15 + 2 * 0.05) / 6
    assert expected_calibration_error(six) == pytest.approx(by_hand)


def test_bins_hold_their_upper_edge():
    assert assign_bins(np.array([0, 0.1, 0.11, 0.5, 1])).tolist() == [0, 0, 1, 4, 9]


def test_wilson_interval_is_the_textbook_one():
    # 8 of 10 and 10 of 10: Wilson, 1927
    assert [float(end) for end in wilson_interval(0.8, 10)] == pytest.approx(
        [0.4902, 0.9433], abs=1e-4
    )
    assert [float(end) for end in wilson_interval(1, 10)] == pytest.approx([0.7225, 1], abs=1e-4)


def test_slices_by_hand(six, monkeypatch):
    monkeypatch.setattr("vitlab.evaluation.slices.MIN_IMAGES", 1)
    table = slice_table(six, metrics=["accuracy", "roc_auc"], replicates=20).set_index(
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
    table = slice_table(predictions, metrics=["f1", "roc_auc"], replicates=50).set_index(
        ["group", "metric"]
    )
    part = metrics_table(predictions[predictions["group"] == "poly"], replicates=50).set_index(
        "metric"
    )
    for metric in ("f1", "roc_auc"):
        assert (
            table.loc[("poly", metric), ["value", "low", "high"]].tolist()
            == part.loc[metric, ["value", "low", "high"]].tolist()
        )


def test_one_group_is_one_slice_and_an_empty_group_has_a_name(six, monkeypatch):
    monkeypatch.setattr("vitlab.evaluation.slices.MIN_IMAGES", 1)
    assert slice_table(six.assign(group="all"), replicates=2)["group"].unique().tolist() == ["all"]
    some = slice_table(
        six.assign(group=["", None, "x", "x", "x", "x"]),
        metrics=["accuracy"],
        replicates=2,
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


GRID = np.linspace(0, 1, 101)


def reference_curve(label, score, kind):
    if kind == "roc":
        false, true, _ = roc_curve(label, score, drop_intermediate=False)
        return np.interp(GRID, false, true)
    precision, recall, _ = precision_recall_curve(label, score)
    precision, recall = precision[:-1], recall[:-1]  # without the point that is added at recall 0
    # of the highest threshold
    first = [np.flatnonzero(recall >= max(level, 1e-6) - 1e-9)[-1] for level in GRID]
    return precision[first]


@pytest.mark.parametrize("kind", ["roc", "precision_recall"])
@pytest.mark.parametrize("round_to", [None, 0], ids=["distinct scores", "ties"])
def test_every_replicate_is_the_curve_of_the_copied_samples(kind, round_to):
    scores = read_scores(mediocre(num_samples=120, round_to=round_to), "test")
    (counts,) = draw_counts(120, 20, seed=1)
    ours = prepare_curve(scores.prob[:, 1], scores.label == 1, kind)(counts)
    for values, row in zip(ours, counts, strict=True):
        drawn = np.repeat(np.arange(120), row.astype(int))
        np.testing.assert_allclose(
            values, reference_curve(scores.label[drawn], scores.prob[drawn, 1], kind), atol=1e-9
        )


def test_the_curve_and_its_band_by_hand():
    predictions = mediocre(num_samples=4)
    predictions["label"] = ["defective", "functional", "defective", "functional"]
    predictions["prob_defective"] = [0.9, 0.6, 0.4, 0.1]
    predictions["prob_functional"] = 1 - predictions["prob_defective"]
    table = curve_band_table(predictions, replicates=50)
    assert list(table.columns) == [
        "class",
        "false_positive_rate",
        "true_positive_rate",
        "low",
        "high",
    ]
    assert table["true_positive_rate"].iloc[::25].tolist() == [0.5, 0.5, 1, 1, 1]
    table = curve_band_table(predictions, "precision_recall", replicates=50)
    assert list(table.columns) == ["class", "recall", "precision", "low", "high"]
    assert table["precision"].iloc[::25].tolist() == pytest.approx([1, 1, 1, 2 / 3, 2 / 3])
    assert (table["class"] == "defective").all()


@pytest.mark.parametrize("kind", ["roc", "precision_recall"])
def test_the_band_holds_the_curve_and_narrows_with_more_samples(kind):
    widths = []
    for num_samples in (100, 1600):
        table = curve_band_table(mediocre(num_samples=num_samples), kind, replicates=300)
        height = table.iloc[:, 2]
        assert ((table["low"] - 1e-9 <= height) & (height <= table["high"] + 1e-9)).mean() > 0.95
        widths.append((table["high"] - table["low"]).mean())
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.35)  # sixteen times the samples
    again = curve_band_table(mediocre(num_samples=1600), kind, replicates=300)
    assert again.equals(table)


def test_classes_without_a_curve_have_no_band():
    predictions = mediocre(DIGITS, num_samples=200)
    assert list(curve_band_table(predictions, replicates=5)["class"].unique()) == list(
        roc_table(predictions)["class"].unique()
    )
    alone = mediocre(num_samples=20).assign(label="functional")
    for kind in ("roc", "precision_recall"):
        assert curve_band_table(alone, kind, replicates=5).empty
    with pytest.raises(ValueError, match=r"unknown kind of curve 'rok'\. Did you mean roc\?"):
        curve_band_table(alone, "rok")


def test_clusters_widen_the_band():
    once = mediocre(BINARY, num_samples=100)
    copies = once.loc[np.repeat(once.index, 9)].assign(image=np.repeat(once.index, 9))
    copies["sample_id"] = [str(i) for i in range(len(copies))]
    narrow, wide = (
        curve_band_table(copies, replicates=200, cluster=cluster) for cluster in (None, "image")
    )
    # 3, of nine copies
    assert (wide["high"] - wide["low"]).mean() > 2.3 * (narrow["high"] - narrow["low"]).mean()
    assert (
        precision_recall_table(once)["precision"].iloc[0]
        == precision_recall_table(copies)["precision"].iloc[0]
    )

"""Curves and thresholds: small cases counted by hand, scikit-learn's values, and a search over all
candidates."""

import numpy as np
import pytest
from sklearn import metrics as reference

from tests.predictions import DIGITS, fill_binary, make_predictions
from vitlab.evaluation import (
    choose_threshold,
    curve_band_table,
    metrics_table,
    precision_recall_table,
    roc_table,
    threshold_choice_table,
    threshold_table,
)
from vitlab.evaluation.curves import prepare_curve
from vitlab.evaluation.inference import bootstrap, tail_share
from vitlab.evaluation.scores import read_scores
from vitlab.evaluation.sentences import describe_choice
from vitlab.evaluation.thresholds import RULES

KINDS = pytest.mark.parametrize("kind", ["roc", "precision_recall"])
GRID = np.linspace(0, 1, 101)


@pytest.fixture
def six():
    label = ["yes", "yes", "no", "yes", "no", "no"]
    return fill_binary([0.95, 0.85, 0.65, 0.45, 0.15, 0.05], label)


def test_curves_by_hand(six):
    area = metrics_table(six, replicates=0).set_index("metric")["value"]
    roc = roc_table(six)
    assert (roc["class"] == "yes").all() and roc["threshold"].iloc[0] == np.inf
    points = roc[["false_positive_rate", "true_positive_rate"]].round(3).to_numpy().tolist()
    expected = [[0, 0], [0, 0.333], [0, 0.667], [0.333, 0.667], [0.333, 1], [1, 1]]
    assert points == expected
    found = np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"])
    assert found == pytest.approx(area["roc_auc"])
    table = precision_recall_table(six)
    assert table.loc[0, ["recall", "precision", "threshold"]].tolist() == [1, 0.5, 0.05]
    assert table.iloc[-1][["recall", "precision", "threshold"]].tolist() == [0, 1, np.inf]
    found = -(table["recall"].diff() * table["precision"].shift()).sum()
    assert found == pytest.approx(area["average_precision"])


def test_an_absent_class_has_no_curve():
    predictions = make_predictions(DIGITS, num_samples=200)
    predictions["label"] = predictions["label"].replace("3", "4")
    present = [name for name in DIGITS if name != "3"]
    for make in (roc_table, precision_recall_table, lambda t: curve_band_table(t, replicates=5)):
        table = make(predictions)
        assert table["class"].unique().tolist() == present
    alone = make_predictions(num_samples=20).assign(label="functional")
    assert curve_band_table(alone, "precision_recall", replicates=5).empty
    with pytest.raises(ValueError, match=r"unknown kind of curve 'rok'\. Did you mean roc\?"):
        curve_band_table(alone, "rok")


def reference_curve(label, score, kind):
    if kind == "roc":
        false, true, _ = reference.roc_curve(label, score, drop_intermediate=False)
        return np.interp(GRID, false, true)
    precision, recall, _ = reference.precision_recall_curve(label, score)
    precision, recall = precision[:-1], recall[:-1]  # without the point that is added at recall 0
    # of the highest threshold
    first = [np.flatnonzero(recall >= max(level, 1e-6) - 1e-9)[-1] for level in GRID]
    return precision[first]


@KINDS
@pytest.mark.parametrize("round_to", [None, 0], ids=["distinct scores", "ties"])
def test_every_replicate_is_the_curve_of_the_copied_samples(kind, round_to):
    scores = read_scores(make_predictions(num_samples=120, round_to=round_to), "test")
    counts = bootstrap(lambda counts: counts, 120, 20, seed=1)
    ours = prepare_curve(scores.prob[:, 1], scores.label == 1, kind)(counts)
    for values, row in zip(ours, counts, strict=True):
        drawn = np.repeat(np.arange(120), row.astype(int))
        expected = reference_curve(scores.label[drawn], scores.prob[drawn, 1], kind)
        np.testing.assert_allclose(values, expected, atol=1e-9)


def test_the_curve_of_a_band_by_hand():
    predictions = fill_binary([0.9, 0.6, 0.4, 0.1], ["yes", "no", "yes", "no"])
    table = curve_band_table(predictions, replicates=50)
    columns = ["class", "false_positive_rate", "true_positive_rate", "low", "high"]
    assert list(table.columns) == columns
    assert table["true_positive_rate"].iloc[::25].tolist() == [0.5, 0.5, 1, 1, 1]
    table = curve_band_table(predictions, "precision_recall", replicates=50)
    assert list(table.columns) == ["class", "recall", "precision", "low", "high"]
    assert table["precision"].iloc[::25].tolist() == pytest.approx([1, 1, 1, 2 / 3, 2 / 3])


@KINDS
def test_the_band_narrows_with_more_samples(kind):
    widths = []
    for num_samples in (100, 1600):
        table = curve_band_table(make_predictions(num_samples=num_samples), kind, replicates=200)
        widths.append((table["high"] - table["low"]).mean())
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.35)  # sixteen times the samples


def test_threshold_table_by_hand(six):
    table = threshold_table(six).set_index("threshold")
    measures = ["precision", "recall", "specificity", "f1"]
    assert table.loc[0, measures].tolist() == pytest.approx([0.5, 1, 0, 2 / 3])
    assert table.loc[0.5, measures].tolist() == pytest.approx([2 / 3] * 4)
    assert table.loc[0.75, measures].tolist() == pytest.approx([1, 2 / 3, 1, 0.8])
    assert np.isnan(table.loc[1, "precision"]) and table.loc[1, "recall"] == 0
    three = make_predictions(("a", "b", "c"))
    assert (threshold_table(three)["class"] == "c").all()


@pytest.fixture
def by_hand():
    """Validation: yes at 0.9, 0.6 and 0.2; no at 0.7, 0.4, 0.3 and 0.1."""
    prob = [0.9, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1, 0.65, 0.5, 0.1]
    label = ["yes", "no", "yes", "no", "no", "yes", "no", "yes", "no", "yes"]
    return fill_binary(prob, label, ["val"] * 7 + ["test"] * 3)


def make_mediocre(num_samples=400, seed=0, digits=2):
    generator = np.random.default_rng(seed)
    yes = generator.random(num_samples) < 0.3
    prob = (1 / (1 + np.exp(-generator.normal(2 * yes - 1.5, 1.2)))).round(digits)
    split = np.where(np.arange(num_samples) % 2, "val", "test")
    return fill_binary(prob, np.where(yes, "yes", "no"), split)


def test_every_rule_by_hand(by_hand):
    # threshold 0.9: 1 found, 0 alarms; 0.6: 2 found, 1 alarm; 0.2: 3 found, 3 alarms
    assert choose_threshold(by_hand, "f1") == 0.2  # F1 2/4, 4/6, 6/9: of two equal ones the lower
    assert choose_threshold(by_hand, "youden") == 0.6  # 2/3 - 1/4; 1/3 at 0.9; 1/4 at 0.2
    assert choose_threshold(by_hand, "cost") == 0.6  # 2 errors, as at 0.9: the lower one
    assert choose_threshold(by_hand, "cost", cost_miss=10) == 0.2
    assert choose_threshold(by_hand, "cost", cost_miss=1, cost_false_alarm=100) == 0.9
    assert choose_threshold(by_hand, "recall", min_recall=0.6) == 0.6
    assert choose_threshold(by_hand, "recall", min_recall=0.7) == 0.2


def test_expensive_false_alarms_flag_nothing():
    prob, label = [0.9, 0.8, 0.1] * 2, ["no", "yes", "no"] * 2
    table = fill_binary(prob, label, ["val"] * 3 + ["test"] * 3)
    choice = threshold_choice_table(table, cost_false_alarm=3, replicates=20)
    row = choice.set_index("rule").loc["cost"]
    assert row["threshold"] == np.inf and row["flagged"] == row["recall"] == 0
    assert np.isnan(row["precision"]) and row["cost"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("digits", [1, 6], ids=["ties", "distinct scores"])
def test_rules_agree_with_a_search_over_scikit_learn(digits):
    table = make_mediocre(digits=digits)
    val = table[table["split"] == "val"]
    yes, score = val["label"] == "yes", val["prob_yes"].to_numpy()
    candidates = np.unique(score)
    recall = np.array([reference.recall_score(yes, score >= t) for t in candidates])
    f1 = [reference.f1_score(yes, score >= t) for t in candidates]
    cost = [5 * (yes & (score < t)).sum() + 2 * (~yes & (score >= t)).sum() for t in candidates]
    balanced = [reference.balanced_accuracy_score(yes, score >= t) for t in candidates]
    assert choose_threshold(table, "f1") == candidates[np.argmax(f1)]
    found = choose_threshold(table, "cost", cost_miss=5, cost_false_alarm=2)
    assert found == candidates[np.argmin(cost)]
    assert choose_threshold(table, "youden") == pytest.approx(candidates[np.argmax(balanced)])
    assert choose_threshold(table, "recall", min_recall=0.8) == candidates[recall >= 0.8].max()


def test_the_test_split_is_measured_at_these_thresholds():
    table = make_mediocre(seed=1)
    choice = threshold_choice_table(table, cost_miss=5, replicates=0).set_index("rule")
    assert list(choice.index) == ["0.5", *RULES]
    test = table[table["split"] == "test"]
    yes = test["label"] == "yes"
    for row in choice.itertuples():
        flagged = test["prob_yes"] >= row.threshold
        expected = {
            "precision": reference.precision_score(yes, flagged),
            "recall": reference.recall_score(yes, flagged),
            "f1": reference.f1_score(yes, flagged),
            "specificity": reference.recall_score(~yes, ~flagged),
            "cost": (5 * (yes & ~flagged).sum() + (~yes & flagged).sum()) / len(test),
            "flagged": flagged.mean(),
        }
        assert {name: getattr(row, name) for name in expected} == pytest.approx(expected)
    turned = table.assign(label=np.where(table["split"] == "test", "no", table["label"]))
    other = threshold_choice_table(turned, cost_miss=5, replicates=0)
    assert choice["threshold"].tolist() == other["threshold"].tolist()
    assert other.set_index("rule").loc[:, ["recall", "f1"]].isna().all(axis=None)


def test_intervals_are_those_of_the_bootstrap_and_the_saving_is_paired():
    table = make_mediocre(seed=1)
    choice = threshold_choice_table(table, cost_miss=5, replicates=300).set_index("rule")
    test = table[table["split"] == "test"]
    yes, score = (test["label"] == "yes").to_numpy(), test["prob_yes"].to_numpy()
    counts, row = bootstrap(lambda counts: counts, len(test), 300), choice.loc["cost"]
    recall = (counts @ (yes & (score >= 0.5))) / (counts @ yes)
    tails = [tail_share(len(test)), 1 - tail_share(len(test))]
    ends = choice.loc["0.5", ["recall_low", "recall_high"]].tolist()
    assert ends == pytest.approx(np.quantile(recall, tails).tolist(), abs=1e-9)
    costs = [np.where(yes, 5 * (score < t), score >= t) for t in (0.5, row["threshold"])]
    saved = counts @ (costs[0] - costs[1]) / len(test)
    expected = np.quantile(saved, tails).tolist()
    assert row[["saved_low", "saved_high"]].tolist() == pytest.approx(expected, abs=1e-9)
    assert row["saved"] == pytest.approx(choice.loc["0.5", "cost"] - row["cost"])
    assert choice.loc["0.5", ["saved", "saved_low"]].isna().all()


def test_a_class_that_validation_lacks_has_no_threshold(by_hand):
    by_hand.loc[by_hand["split"] == "val", "label"] = "no"
    table = threshold_choice_table(by_hand, replicates=20).set_index("rule")
    assert table.loc[list(RULES), ["threshold", "f1", "flagged", "cost_low"]].isna().all(axis=None)
    assert table.loc["0.5", "recall"] == 0.5
    costs = {"cost_miss": 5.0, "cost_false_alarm": 1.0, "min_recall": 0.9}
    assert "There is no threshold" in describe_choice(table.reset_index(), "yes", costs)


def test_bad_input_is_named(by_hand):
    with pytest.raises(ValueError, match="unknown rule 'f2'"):
        choose_threshold(by_hand, "f2")
    with pytest.raises(ValueError, match="min_recall is a share"):
        threshold_choice_table(by_hand, min_recall=1.2)
    for costs in ((-1, 1), (0, 0), (np.nan, 1), (1, np.inf)):
        with pytest.raises(ValueError, match="costs are finite numbers"):
            choose_threshold(by_hand, "cost", *costs)


def test_the_choice_in_words():
    costs = {"cost_miss": 5.0, "cost_false_alarm": 1.0, "min_recall": 0.9}
    table = threshold_choice_table(make_mediocre(), **costs, replicates=100)
    row = table.set_index("rule").loc["cost"]
    text = describe_choice(table, "yes", costs)
    assert f"validation puts the threshold at {row['threshold']:.2f}" in text
    assert f"this costs {row['cost']:.3f} per image" in text
    same = describe_choice(table.assign(saved_low=-1.0), "yes", costs)
    assert "which is not shown to differ from zero" in same

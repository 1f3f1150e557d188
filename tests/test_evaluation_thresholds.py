"""Thresholds: the rules against scikit-learn and a search over every candidate; the test split is
only read.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from vitlab.evaluation import choose_threshold, threshold_choice_table
from vitlab.evaluation.bootstrap import draw_counts
from vitlab.evaluation.sentences import describe_choice
from vitlab.evaluation.thresholds import RULES


def make_predictions(prob_yes, label, split):
    """A two-class table (no, yes) from the probability of yes."""
    prob_yes = np.asarray(prob_yes, float)
    table = pd.DataFrame(
        {"sample_id": [f"s{i}" for i in range(len(prob_yes))], "split": split, "group": "all"}
    )
    table["label"], table["pred"] = list(label), np.where(prob_yes > 0.5, "yes", "no")
    table["logit_no"], table["logit_yes"] = 0.0, 0.0
    table["prob_no"], table["prob_yes"] = 1 - prob_yes, prob_yes
    return table


def make_mediocre(num_samples=400, seed=0, digits=2):
    generator = np.random.default_rng(seed)
    yes = generator.random(num_samples) < 0.3
    prob = (1 / (1 + np.exp(-generator.normal(2 * yes - 1.5, 1.2)))).round(digits)
    return make_predictions(
        prob, np.where(yes, "yes", "no"), np.where(np.arange(num_samples) % 2, "val", "test")
    )


@pytest.fixture
def by_hand():
    """Validation: yes at 0.9, 0.6 and 0.2; no at 0.7, 0.4, 0.3 and 0.1."""
    prob = [0.9, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1]
    label = ["yes", "no", "yes", "no", "no", "yes", "no"]
    return pd.concat(
        [
            make_predictions(prob, label, "val"),
            make_predictions([0.65, 0.5, 0.1], ["yes", "no", "yes"], "test"),
        ]
    )


@pytest.fixture
def joined(by_hand):
    return by_hand.assign(sample_id=[str(i) for i in range(len(by_hand))]).reset_index(drop=True)


def test_every_rule_by_hand(joined):
    # threshold 0.9: 1 found, 0 alarms; 0.6: 2 found, 1 alarm; 0.2: 3 found, 3 alarms
    assert choose_threshold(joined, "f1") == 0.2  # F1 2/4, 4/6, 6/9: of two equal ones the lower
    assert choose_threshold(joined, "youden") == 0.6  # 2/3 - 1/4; 1/3 at 0.9; 1/4 at 0.2
    assert choose_threshold(joined, "cost") == 0.6  # 2 errors, as at 0.9: the lower one
    assert choose_threshold(joined, "cost", cost_miss=10) == 0.2
    assert choose_threshold(joined, "cost", cost_miss=1, cost_false_alarm=100) == 0.9
    assert choose_threshold(joined, "recall", min_recall=0.6) == 0.6
    assert choose_threshold(joined, "recall", min_recall=0.7) == 0.2


def test_false_alarms_too_dear_flag_nothing():
    table = make_predictions(
        [0.9, 0.8, 0.1, 0.9, 0.8, 0.1], ["no", "yes", "no"] * 2, ["val"] * 3 + ["test"] * 3
    )
    assert choose_threshold(table, "cost", cost_miss=1, cost_false_alarm=3) == np.inf
    row = (
        threshold_choice_table(table, cost_false_alarm=3, replicates=20)
        .set_index("rule")
        .loc["cost"]
    )
    assert (
        row["flagged"] == 0
        and row["recall"] == 0
        and np.isnan(row["precision"])
        and row["note"] == "flags nothing"
    )
    assert row["cost"] == pytest.approx(1 / 3)


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
    assert (
        choose_threshold(table, "cost", cost_miss=5, cost_false_alarm=2)
        == candidates[np.argmin(cost)]
    )
    assert choose_threshold(table, "youden") == pytest.approx(candidates[np.argmax(balanced)])
    assert choose_threshold(table, "recall", min_recall=0.8) == candidates[recall >= 0.8].max()


def test_the_test_split_is_read_at_these_thresholds():
    table = make_mediocre(seed=1)
    choice = threshold_choice_table(table, cost_miss=5, replicates=200).set_index("rule")
    assert list(choice.index) == ["0.5", *RULES]
    test = table[table["split"] == "test"]
    yes = test["label"] == "yes"
    for row in choice.itertuples():
        flagged = test["prob_yes"] >= row.threshold
        no, all_no = ~yes & flagged, ~yes
        assert row.precision == pytest.approx(reference.precision_score(yes, flagged), abs=1e-9)
        assert row.recall == pytest.approx(reference.recall_score(yes, flagged), abs=1e-9)
        assert row.f1 == pytest.approx(reference.f1_score(yes, flagged), abs=1e-9)
        assert row.specificity == pytest.approx(1 - no.sum() / all_no.sum(), abs=1e-9)
        assert row.cost == pytest.approx(
            (5 * (yes & ~flagged).sum() + no.sum()) / len(test), abs=1e-9
        )
        assert row.flagged == pytest.approx(flagged.mean(), abs=1e-9)
        assert row.recall_low < row.recall < row.recall_high and row.note == ""


def test_thresholds_do_not_depend_on_the_test_split():
    table = make_mediocre()
    turned = table.copy()
    is_test = turned["split"] == "test"
    turned.loc[is_test, "label"] = turned.loc[is_test, "label"].map({"yes": "no", "no": "yes"})
    first, second = (
        threshold_choice_table(table, replicates=0),
        threshold_choice_table(turned, replicates=0),
    )
    assert first["threshold"].tolist() == second["threshold"].tolist()
    assert first["f1"].tolist() != second["f1"].tolist()
    assert first[["f1_low", "f1_high"]].isna().all(axis=None)


def test_intervals_are_those_of_the_bootstrap():
    table = make_mediocre(seed=2)
    row = threshold_choice_table(table, replicates=500).set_index("rule").loc["0.5"]
    test = table[table["split"] == "test"]
    yes, flagged = (test["label"] == "yes").to_numpy(), (test["prob_yes"] >= 0.5).to_numpy()
    drawn = [
        np.repeat(np.arange(len(test)), row.astype(int))
        for counts in draw_counts(len(test), 500)
        for row in counts
    ]
    recalls = [reference.recall_score(yes[rows], flagged[rows]) for rows in drawn]
    assert [row["recall_low"], row["recall_high"]] == pytest.approx(
        np.quantile(recalls, [0.025, 0.975]).tolist(), abs=1e-9
    )


def test_the_saving_is_a_paired_difference():
    table = make_mediocre(seed=1)
    choice = threshold_choice_table(table, cost_miss=5, replicates=300).set_index("rule")
    assert np.isnan(choice.loc["0.5", ["saved", "saved_low"]].astype(float)).all()
    row = choice.loc["cost"]
    assert row["saved"] == pytest.approx(choice.loc["0.5", "cost"] - row["cost"])
    test = table[table["split"] == "test"]
    yes, score = (test["label"] == "yes").to_numpy(), test["prob_yes"].to_numpy()
    paid = [np.where(yes, 5 * (score < t), score >= t) for t in (0.5, row["threshold"])]
    saved = np.concatenate(
        [counts @ (paid[0] - paid[1]) / len(test) for counts in draw_counts(len(test), 300)]
    )
    assert [row["saved_low"], row["saved_high"]] == pytest.approx(
        np.quantile(saved, [0.025, 0.975]).tolist(), abs=1e-9
    )


def test_several_classes_need_a_named_one():
    generator = np.random.default_rng(0)
    prob = generator.dirichlet(np.ones(3), 90)
    table = pd.DataFrame(
        {
            "sample_id": [str(i) for i in range(90)],
            "split": ["val", "test", "test"] * 30,
            "group": "all",
        }
    )
    table["label"] = generator.choice(["a", "b", "c"], 90)
    table["pred"] = np.array(["a", "b", "c"])[prob.argmax(axis=1)]
    table[["logit_a", "logit_b", "logit_c"]] = np.log(prob)
    table[["prob_a", "prob_b", "prob_c"]] = prob
    with pytest.raises(ValueError, match="needs one class: write positive= with one of a, b, c"):
        threshold_choice_table(table)
    assert threshold_choice_table(table, "b", replicates=0)["recall"].between(0, 1).all()


def test_a_class_that_validation_lacks_has_no_threshold(joined):
    joined.loc[joined["split"] == "val", "label"] = "no"
    table = threshold_choice_table(joined, replicates=20).set_index("rule")
    assert table.loc[list(RULES), ["threshold", "f1", "flagged", "cost_low"]].isna().all(axis=None)
    assert set(table.loc[list(RULES), "note"]) == {"validation holds no yes, or nothing else"}
    assert table.loc["0.5", "recall"] == 0.5
    joined["label"] = "yes"
    assert choose_threshold(joined, "recall", min_recall=1) == 0.1
    assert np.isnan(choose_threshold(joined, "youden"))


def test_a_class_that_the_test_split_lacks_has_no_recall(joined):
    joined.loc[joined["split"] == "test", "label"] = "no"
    row = threshold_choice_table(joined, replicates=20).set_index("rule").loc["youden"]
    assert (
        np.isnan(row[["recall", "f1", "recall_low"]].astype(float)).all()
        and row["note"] == "no yes in test"
    )
    assert row["specificity"] == pytest.approx(2 / 3)


def test_bad_input_is_named(joined):
    with pytest.raises(ValueError, match="no sample of split 'val'"):
        choose_threshold(joined[joined["split"] == "test"], "f1")
    with pytest.raises(ValueError, match="unknown rule 'f2'"):
        choose_threshold(joined, "f2")
    with pytest.raises(ValueError, match="unknown class 'maybe'"):
        threshold_choice_table(joined, positive="maybe")
    with pytest.raises(ValueError, match="min_recall is a share"):
        threshold_choice_table(joined, min_recall=1.2)
    for costs in ((-1, 1), (0, 0), (np.nan, 1), (1, np.inf)):
        with pytest.raises(ValueError, match="costs are finite numbers"):
            choose_threshold(joined, "cost", cost_miss=costs[0], cost_false_alarm=costs[1])
    with pytest.raises(ValueError, match="NaN or infinite scores"):
        choose_threshold(joined.assign(prob_yes=np.nan), "f1")


def test_the_choice_in_words():
    costs = {"cost_miss": 5.0, "cost_false_alarm": 1.0, "min_recall": 0.9}
    table = threshold_choice_table(make_mediocre(), "yes", **costs, replicates=100)
    row = table.set_index("rule").loc["cost"]
    text = describe_choice(table, "yes", costs)
    assert text.startswith(
        "If a missed *yes* costs 5 and a false alarm 1, validation puts the threshold at"
        f" {row['threshold']:.2f}. On the test split this costs {row['cost']:.3f} per image"
    )
    same = describe_choice(table.assign(saved_low=-1.0), "yes", costs)
    assert "which is not shown to differ from zero" in same

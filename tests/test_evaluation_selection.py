"""Risk and coverage counted by hand; thresholds are chosen on validation."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from vitlab.evaluation import risk_coverage_table, selective_table
from vitlab.evaluation.calibration import wilson_interval
from vitlab.evaluation.sentences import describe_selection


def make_predictions(confidence, right, split="test"):
    """Two classes; the answer is always yes, with this confidence, and right or not."""
    confidence = np.asarray(confidence, float)
    table = pd.DataFrame(
        {
            "sample_id": [f"{split}{i}" for i in range(len(confidence))],
            "split": split,
            "group": "all",
        }
    )
    table["label"], table["pred"] = np.where(right, "yes", "no"), "yes"
    table["logit_no"], table["logit_yes"] = 0.0, 0.0
    table["prob_no"], table["prob_yes"] = 1 - confidence, confidence
    return table


FIVE = make_predictions(
    [0.9, 0.6, 0.8, 0.7, 0.95], [True, False, False, True, True]
)  # in order: right, right, wrong, right, wrong


def make_both(num_samples=500, seed=0):
    generator = np.random.default_rng(seed)
    parts = []
    for split in ("val", "test"):
        confidence = generator.uniform(0.5, 1, num_samples)
        parts.append(
            make_predictions(confidence, generator.random(num_samples) < confidence, split)
        )
    return pd.concat(parts, ignore_index=True)


def test_risk_and_coverage_by_hand():
    table = risk_coverage_table(FIVE)
    assert table["threshold"].tolist() == [0.95, 0.9, 0.8, 0.7, 0.6] and table["n"].tolist() == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert table["coverage"].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert table["risk"].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 4, 2 / 5])
    assert table["oracle"].tolist() == pytest.approx([0, 0, 0, 1 / 4, 2 / 5])
    low, high = wilson_interval(table["risk"].to_numpy(), table["n"].to_numpy())
    assert table["low"].tolist() == low.tolist() and table["high"].tolist() == high.tolist()


def test_equal_confidences_are_answered_together():
    table = risk_coverage_table(make_predictions([0.7, 0.7, 0.9], [True, False, True]))
    assert table["n"].tolist() == [1, 3] and table["risk"].tolist() == pytest.approx([0, 1 / 3])


def test_the_oracle_is_never_worse():
    table = risk_coverage_table(make_both())
    assert (table["oracle"] <= table["risk"] + 1e-12).all() and table["risk"].iloc[-1] == table[
        "oracle"
    ].iloc[-1]


def test_thresholds_are_chosen_on_validation_and_read_on_test():
    table = make_both(2000)
    chosen = selective_table(table, coverages=(1, 0.8, 0.5), accuracies=(0.8, 0.9))
    assert chosen["target"].tolist() == ["coverage"] * 3 + ["accuracy"] * 2
    val, test = (table[table["split"] == split] for split in ("val", "test"))
    for row in chosen.itertuples():
        kept, given = val[val["prob_yes"] >= row.threshold], test[test["prob_yes"] >= row.threshold]
        assert row.val_coverage == pytest.approx(len(kept) / len(val))
        assert row.val_accuracy == pytest.approx((kept["label"] == "yes").mean())
        assert (row.n, row.coverage) == (len(given), pytest.approx(len(given) / len(test)))
        assert row.accuracy == pytest.approx((given["label"] == "yes").mean())
        assert row.accuracy_low < row.accuracy < row.accuracy_high and row.note == ""
        assert (row.val_coverage if row.target == "coverage" else row.val_accuracy) >= row.nominal
    assert chosen["coverage"].iloc[0] == 1
    # one image fewer would be below the nominal coverage
    higher = val.loc[val["prob_yes"] > chosen["threshold"].iloc[1], "prob_yes"]
    assert len(higher) / len(val) < 0.8
    text = describe_selection(selective_table(table))
    assert text.startswith(
        f"On all test images, the model is wrong on {1 - chosen['accuracy'][0]:.1%}"
    )
    turned = table.assign(label=np.where(table["split"] == "test", "no", table["label"]))
    second = selective_table(turned, coverages=(1, 0.8, 0.5), accuracies=(0.8, 0.9))
    assert chosen["threshold"].tolist() == second["threshold"].tolist()


def test_what_validation_does_not_show_has_no_threshold():
    table = pd.concat(
        [
            make_predictions([0.9, 0.8], [False, True], "val"),
            make_predictions([0.7, 0.8], [True, True]),
        ]
    )
    chosen = selective_table(table, coverages=(), accuracies=(0.9,))
    assert np.isnan(chosen["threshold"][0]) and chosen["note"][0] == "at most 50.0% on validation"
    assert chosen["n"][0] == 0 and np.isnan(chosen["accuracy_low"][0])
    few = selective_table(make_both(20), (), (0.9,), 0.99).iloc[0]
    assert np.isnan(few["threshold"])
    assert few["note"] == "too few validation images for 99% confidence"
    nothing = selective_table(
        pd.concat([table.iloc[:2], make_predictions([0.6], [True])]), (0.5,), ()
    )
    assert nothing["note"].tolist() == ["answers nothing in test"]
    assert nothing["coverage"].tolist() == [0]
    assert nothing[["accuracy", "accuracy_low"]].isna().all(axis=None)


def test_a_nominal_accuracy_holds_for_new_images_at_the_confidence_level():
    kept = []
    for seed in range(60):
        row = selective_table(make_both(300, seed), (), (0.8,)).iloc[0]
        # confidence is uniform and honest
        kept.append(np.isnan(row["threshold"]) or (1 + row["threshold"]) / 2 >= 0.8)
    assert np.mean(kept) >= 0.9
    row = selective_table(make_both(2000), (), (0.8,), 0.95).iloc[0]
    n = round(row["val_coverage"] * 2000)
    right = round(n * row["val_accuracy"])
    # 2,000 thresholds: 11 steps of the binary search
    low, _ = proportion_confint(right, n, alpha=2 * 0.05 / 11, method="beta")
    assert low >= 0.8


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no sample of split 'val'"):
        selective_table(FIVE)
    for value in (0, 1.5, np.nan):
        with pytest.raises(ValueError, match="lie above 0 and at most at 1"):
            selective_table(make_both(20), coverages=(value,))
    with pytest.raises(ValueError, match="NaN or infinite"):
        risk_coverage_table(FIVE.assign(prob_yes=np.nan))

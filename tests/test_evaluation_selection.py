"""Risk and coverage counted by hand; thresholds for a promise come from validation."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from vitlab.evaluation import risk_area_table, risk_coverage_table, selective_table
from vitlab.evaluation.calibration import wilson_interval


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


def test_areas_by_hand():
    value = risk_area_table(FIVE, replicates=0).set_index("metric")["value"]
    assert value["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert value["oracle_aurc"] == pytest.approx((1 / 4 + 2 / 5) / 5)
    assert value["excess_aurc"] == pytest.approx(1 / 15) and value["error_rate"] == pytest.approx(
        0.4
    )


def test_equal_confidence_counts_as_random_order():
    value = risk_area_table(
        make_predictions([0.7] * 4, [True, False, True, True]), replicates=0
    ).set_index("metric")["value"]
    assert value["aurc"] == pytest.approx(0.25) == pytest.approx(value["error_rate"])
    table = risk_coverage_table(make_predictions([0.7, 0.7, 0.9], [True, False, True]))
    assert table["n"].tolist() == [1, 3] and table["risk"].tolist() == pytest.approx([0, 1 / 3])


def test_area_of_no_mistakes_is_nothing_and_of_only_mistakes_is_one():
    assert (
        risk_area_table(make_predictions([0.7, 0.8], [True, True]), replicates=5)[
            ["value", "low", "high"]
        ]
        == 0
    ).all(axis=None)
    value = risk_area_table(make_predictions([0.7, 0.8], [False, False]), replicates=0).set_index(
        "metric"
    )["value"]
    assert value.tolist() == [1, 1, 1, 0]


def test_replicates_of_the_area_are_drawn_samples():
    table = make_both(60)
    test = table[table["split"] == "test"].reset_index(drop=True)
    summary = risk_area_table(table, replicates=30, seed=5).set_index("metric").loc["aurc"]
    areas = []
    for rows in np.random.default_rng(5).integers(60, size=(30, 60)):
        drawn = test.iloc[rows].assign(sample_id=[f"s{i}" for i in range(60)])
        areas.append(risk_area_table(drawn, replicates=0)["value"].iloc[1])
    assert [summary["low"], summary["high"]] == pytest.approx(
        np.quantile(areas, [0.025, 0.975]).tolist(), abs=1e-9
    )


def test_the_oracle_is_never_worse():
    table = risk_coverage_table(make_both())
    assert (table["oracle"] <= table["risk"] + 1e-12).all() and table["risk"].iloc[-1] == table[
        "oracle"
    ].iloc[-1]


def test_promises_are_chosen_on_validation_and_read_on_test():
    table = make_both()
    chosen = selective_table(table, coverages=(1, 0.8, 0.5), least_accuracies=(0.8, 0.9))
    assert chosen["promised"].tolist() == ["coverage"] * 3 + ["accuracy"] * 2
    val, test = (table[table["split"] == split] for split in ("val", "test"))
    for row in chosen.itertuples():
        kept, given = val[val["prob_yes"] >= row.threshold], test[test["prob_yes"] >= row.threshold]
        assert row.val_coverage == pytest.approx(len(kept) / len(val))
        assert row.val_accuracy == pytest.approx((kept["label"] == "yes").mean())
        assert (row.n, row.coverage) == (len(given), pytest.approx(len(given) / len(test)))
        assert row.accuracy == pytest.approx((given["label"] == "yes").mean())
        assert row.accuracy_low < row.accuracy < row.accuracy_high and row.note == ""
        assert (row.val_coverage if row.promised == "coverage" else row.val_accuracy) >= row.promise
    assert chosen["coverage"].iloc[0] == 1
    # one sample fewer would break the promise of coverage, any lower threshold that of accuracy
    higher = val.loc[val["prob_yes"] > chosen["threshold"].iloc[1], "prob_yes"]
    assert len(higher) / len(val) < 0.8
    lower = np.sort(val["prob_yes"][val["prob_yes"] < chosen["threshold"].iloc[3]])
    assert all((val["label"][val["prob_yes"] >= t] == "yes").mean() < 0.8 for t in lower)


def test_thresholds_do_not_depend_on_the_test_split():
    table = make_both()
    turned = table.assign(label=np.where(table["split"] == "test", "no", table["label"]))
    first, second = (selective_table(each, least_accuracies=(0.9,)) for each in (table, turned))
    assert (
        first["threshold"].tolist() == second["threshold"].tolist()
        and (second["accuracy"] == 0).all()
    )


def test_a_promise_that_validation_never_keeps_has_no_threshold():
    table = pd.concat(
        [
            make_predictions([0.9, 0.8], [False, True], "val"),
            make_predictions([0.7, 0.8], [True, True]),
        ]
    )
    chosen = selective_table(table, coverages=(), least_accuracies=(0.9, 0.5))
    assert np.isnan(chosen["threshold"].iloc[0]) and chosen["note"].tolist() == [
        "at most 50.0% on validation",
        "",
    ]
    assert chosen["n"].tolist() == [0, 1] and np.isnan(chosen["accuracy_low"].iloc[0])
    nothing = selective_table(pd.concat([table.iloc[:2], make_predictions([0.6], [True])]), (0.5,))
    assert nothing["note"].tolist() == ["answers nothing in test"]
    assert nothing["coverage"].tolist() == [0] and nothing[["accuracy", "accuracy_low"]].isna().all(
        axis=None
    )


def test_with_certainty_the_accuracy_is_kept_by_new_images():
    kept = []
    for seed in range(60):
        table = make_both(300, seed)
        row = selective_table(table, coverages=(), least_accuracies=(0.8,), certainty=0.9).iloc[0]
        # confidence is uniform and honest
        kept.append(np.isnan(row["threshold"]) or (1 + row["threshold"]) / 2 >= 0.8)
    assert np.mean(kept) >= 0.9
    plain, certain = (
        selective_table(make_both(2000), (), (0.8,), value).iloc[0] for value in (None, 0.95)
    )
    assert certain["threshold"] > plain["threshold"] and certain["val_accuracy"] > 0.8
    n, right = (
        round(certain["val_coverage"] * 2000),
        round(certain["val_coverage"] * 2000 * certain["val_accuracy"]),
    )
    # 2,000 thresholds: 11 halvings
    low, _ = proportion_confint(right, n, alpha=2 * 0.05 / 11, method="beta")
    assert low >= 0.8
    few = selective_table(make_both(20), (), (0.9,), 0.99).iloc[0]
    assert (
        np.isnan(few["threshold"]) and few["note"] == "too few validation images to be so certain"
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="certainty is a probability between 0 and 1"):
        selective_table(make_both(20), least_accuracies=(0.9,), certainty=95)
    with pytest.raises(ValueError, match="no sample of split 'val'"):
        selective_table(FIVE)
    for value in (0, 1.5, np.nan):
        with pytest.raises(ValueError, match="are shares above 0 and at most 1"):
            selective_table(make_both(20), coverages=(value,))
    with pytest.raises(ValueError, match="NaN or infinite"):
        risk_coverage_table(FIVE.assign(prob_yes=np.nan))

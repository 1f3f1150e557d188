"""Scores under corruption: the rows, what they are computed from, pairs, and bad input."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.toys import linear_digits, small_digits, tiny_vit
from vitlab.evaluation import metrics_table
from vitlab.evaluation.calibration import expected_calibration_error
from vitlab.robustness import corrupt_data, draw_subset, drop_table, robustness_table
from vitlab.training import TrainConfig, fit, predict


@pytest.fixture(scope="module")
def trained():
    model = tiny_vit()
    fit(
        model,
        small_digits(),
        config=TrainConfig(epochs=4, batch_size=16, learning_rate=3e-3, augment="none"),
    )
    return model


@pytest.fixture
def float32(monkeypatch):
    """Forward passes in float32, as predict has them, whatever the machine is fast in."""
    monkeypatch.setattr("vitlab.robustness.curves.choose_precision", lambda device: "fp32")


METRICS = ("accuracy", "balanced_accuracy", "roc_auc", "mcc", "calibration_error", "overconfidence")


def test_the_values_are_those_of_the_predictions(trained, float32):
    """All images of the split: clean and corrupted rows equal what predict and the metrics of
    vitlab.evaluation give.
    """
    data = small_digits()
    table = robustness_table(
        trained,
        data,
        ["blur", "gaussian_noise"],
        [3],
        images=10_000,
        metrics=METRICS,
        replicates=50,
    )
    for name, severity in [("clean", 0), ("blur", 3), ("gaussian_noise", 3)]:
        worse = corrupt_data(data, name, severity) if severity else data
        predictions = predict(trained, worse, splits=["test"])
        rows = table[(table["corruption"] == name) & (table["severity"] == severity)].set_index(
            "metric"
        )
        expected = metrics_table(predictions, replicates=50).set_index("metric")
        for metric in METRICS[:4]:
            for column in ("value", "low", "high"):
                assert rows.loc[metric, column] == pytest.approx(
                    expected.loc[metric, column], abs=1e-6
                )
        assert rows.loc["calibration_error", "value"] == pytest.approx(
            expected_calibration_error(predictions), abs=1e-6
        )
        confidence = predictions.filter(like="prob_").max(axis=1).mean()
        accuracy = (predictions["label"] == predictions["pred"]).mean()
        assert rows.loc["overconfidence", "value"] == pytest.approx(confidence - accuracy, abs=1e-6)
        assert rows["n"].tolist() == [len(predictions)] * len(METRICS)


def test_changes_are_paired():
    table = robustness_table(
        linear_digits(),
        small_digits(),
        ["brightness", "contrast"],
        [1, 5],
        images=40,
        replicates=200,
    )
    assert table["corruption"].unique().tolist() == ["clean", "brightness", "contrast"]
    clean = table[table["corruption"] == "clean"]
    without = table["metric"] == "calibration_error"  # drawing again adds to it: no interval
    assert table.loc[without, ["low", "high", "change_low", "change_high"]].isna().all(axis=None)
    assert (clean.loc[~without, ["change", "change_low", "change_high"]] == 0).all(axis=None)
    value = clean.set_index("metric")["value"]
    assert np.allclose(table["change"], table["value"] - table["metric"].map(value))
    inside = table[~without]
    assert ((inside["low"] <= inside["value"]) & (inside["value"] <= inside["high"])).all()
    worst = (
        table[(table["corruption"] == "contrast") & (table["severity"] == 5)]
        .set_index("metric")
        .loc["accuracy"]
    )
    assert worst["change"] < 0
    assert (
        worst["change_high"] - worst["change_low"]
        < (worst["high"] - worst["low"]) + (clean["high"] - clean["low"]).iloc[0]
    )


def test_the_same_twice_and_nothing_left_behind(trained):
    data = small_digits()
    trained.module.train()
    first = robustness_table(
        trained, data, ["gaussian_noise"], [2], images=20, replicates=10, seed=3
    )
    assert all(part.training for part in trained.module.modules())
    trained.module.eval()
    pd.testing.assert_frame_equal(
        first,
        robustness_table(trained, data, ["gaussian_noise"], [2], images=20, replicates=10, seed=3),
    )


def test_each_image_is_decoded_once(trained):
    data, reads = small_digits(), []

    def read(sample_id):
        reads.append(sample_id)
        return data.read(sample_id)

    robustness_table(
        trained, replace(data, read=read), ["blur", "jpeg"], [1, 2], images=12, replicates=0
    )
    assert sorted(reads) == sorted(set(reads))
    assert len(reads) == 12


def test_a_missing_class_is_a_marked_gap(trained):
    data = small_digits()
    samples = data.samples[
        (data.samples["split"] != "test") | ~data.samples["label"].isin(["3", "7"])
    ]
    table = robustness_table(
        trained,
        replace(data, samples=samples),
        ["blur"],
        [1],
        metrics=["accuracy", "balanced_accuracy"],
        replicates=5,
    )
    gap = table[table["metric"] == "balanced_accuracy"]
    assert (
        gap[["value", "low", "high", "change", "change_low", "change_high"]].isna().all(axis=None)
    )
    assert (gap["note"] == "no 3, 7").all()
    assert table[table["metric"] == "accuracy"]["value"].notna().all()


def test_the_subset_is_stratified_and_seeded():
    samples = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(100)],
            "label": ["a"] * 70 + ["b"] * 30,
            "split": "test",
        }
    )
    data = replace(
        small_digits(), classes=("a", "b"), samples=samples.sample(frac=1, random_state=0)
    )
    ids = draw_subset(data, 20)
    labels = samples.set_index("sample_id").loc[ids, "label"].value_counts()
    assert labels.to_dict() == {"a": 14, "b": 6}
    assert ids == draw_subset(data, 20)
    assert ids != draw_subset(data, 20, seed=1)
    assert draw_subset(data, 1000) == data.samples["sample_id"].tolist()
    with pytest.raises(ValueError, match="at least 1"):
        draw_subset(data, 0)
    with pytest.raises(ValueError, match="no image in split 'val'"):
        draw_subset(data, 5, "val")


def test_mean_drop_by_hand():
    accuracy = [
        ("clean", 0, 0.8),
        ("blur", 1, 0.6),
        ("blur", 3, 0.4),
        ("jpeg", 1, 0.8),
        ("jpeg", 3, 0.7),
    ]
    error = [("clean", 0, 0.1), ("blur", 1, 0.2), ("blur", 3, 0.4)]
    columns = ["corruption", "severity", "value"]
    parts = [pd.DataFrame(accuracy, columns=columns), pd.DataFrame(error, columns=columns)]
    rows = pd.concat(
        part.assign(metric=name)
        for name, part in zip(["accuracy", "calibration_error"], parts, strict=True)
    )
    table = drop_table(rows).set_index(["metric", "corruption"])
    assert table.loc[("accuracy", "blur"), "worse"] == pytest.approx(0.5)
    assert table.loc[("accuracy", "blur"), "relative"] == pytest.approx(-0.375)
    assert table.loc[("accuracy", "all"), "worse"] == pytest.approx(0.625)
    assert table.loc[("accuracy", "all"), "relative"] == pytest.approx(-0.21875)
    assert table.loc[("calibration_error", "all"), "change"] == pytest.approx(0.2)
    assert np.isnan(table.loc[("calibration_error", "all"), "relative"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corruptions": ["blurr"]}, "unknown corruption 'blurr'"),
        ({"severities": [1, 7]}, "severity 7"),
        ({"metrics": ["auc"]}, "unknown metric 'auc'"),
        ({"split": "testing"}, "unknown split"),
        ({"images": 0}, "at least 1"),
    ],
)
def test_bad_input(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        robustness_table(
            trained,
            small_digits(),
            **{"images": 5, "replicates": 2, "corruptions": ["jpeg"], **arguments},
        )

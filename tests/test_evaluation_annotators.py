"""The model beside the annotators: means counted by hand, correlation and Brier score as scipy and
scikit-learn give them.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import brier_score_loss, mean_absolute_error, mean_squared_error

from vitlab.evaluation import annotator_agreement_table, predict_value

VALUES = np.array([0, 1 / 3, 2 / 3, 1])


def make_predictions(classes, prob, label):
    table = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(len(prob))],
            "split": "test",
            "group": "all",
            "label": label,
        }
    )
    table["pred"] = np.array(classes)[prob.argmax(axis=1)]
    table[[f"logit_{name}" for name in classes]] = np.log(prob)
    table[[f"prob_{name}" for name in classes]] = prob
    return table


@pytest.fixture
def binary():
    """Predictions of defective, and the samples in another order with a training image more."""
    generator = np.random.default_rng(0)
    said = generator.choice(VALUES, 80)
    score = np.clip(0.8 * said + 0.1 + generator.normal(0, 0.1, 80), 0.01, 0.99).round(2)
    label = np.where(said > 0.5, "defective", "functional")
    predictions = make_predictions(
        ("functional", "defective"), np.column_stack([1 - score, score]), label
    )
    samples = pd.DataFrame(
        {"sample_id": predictions["sample_id"], "label": label, "defect_probability": said}
    )
    extra = pd.DataFrame(
        {"sample_id": ["other"], "label": ["defective"], "defect_probability": [1.0]}
    )
    return predictions, pd.concat([samples, extra]).iloc[::-1]


def test_agreement_is_that_of_the_libraries(binary):
    predictions, samples = binary
    said = predict_value(predictions, samples)
    table = annotator_agreement_table(predictions, samples, replicates=50).set_index("metric")
    value = table["value"]
    assert value["spearman"] == pytest.approx(
        spearmanr(said["predicted"], said["annotators"]).statistic, abs=1e-9
    )
    assert value["mean_absolute_difference"] == pytest.approx(
        mean_absolute_error(said["annotators"], said["predicted"]), abs=1e-9
    )
    assert value["brier"] == pytest.approx(
        mean_squared_error(said["annotators"], said["predicted"]), abs=1e-9
    )
    constant = mean_squared_error(said["annotators"], np.full(80, said["annotators"].mean()))
    assert value["constant_brier"] == pytest.approx(constant, abs=1e-9)
    assert value["mean_difference"] == pytest.approx(
        (said["predicted"] - said["annotators"]).mean(), abs=1e-9
    )
    rows = np.random.default_rng([0, 0]).integers(80, size=(50, 80))
    drawn = [
        spearmanr(said["predicted"].iloc[each], said["annotators"].iloc[each]).statistic
        for each in rows
    ]
    assert table.loc["spearman", ["low", "high"]].tolist() == pytest.approx(
        np.quantile(drawn, [0.025, 0.975]).tolist(), abs=1e-9
    )


def test_against_hard_labels_it_is_the_usual_brier_score(binary):
    predictions, samples = binary
    hard = samples.assign(defect_probability=(samples["label"] == "defective").astype(float))
    value = annotator_agreement_table(predictions, hard, replicates=0).set_index("metric")["value"]
    theirs = brier_score_loss(predictions["label"] == "defective", predictions["prob_defective"])
    assert value["brier"] == pytest.approx(theirs, abs=1e-9)


def test_grades_give_the_expected_value():
    classes = ("none", "possible", "probable", "certain")
    prob = np.array(
        [[0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [0.25, 0.25, 0.25, 0.25]]
    )
    predictions = make_predictions(classes, prob, ["none", "possible", "certain", "probable"])
    samples = predictions[["sample_id", "label"]].assign(defect_probability=VALUES[[0, 1, 3, 2]])
    said = predict_value(predictions, samples)
    assert said["predicted"].tolist() == pytest.approx([0.2, 1.3 / 3, 0.8, 0.5])
    twice = pd.DataFrame(
        {"sample_id": ["train"], "label": ["possible"], "defect_probability": [1.0]}
    )
    with pytest.raises(ValueError, match="the classes possible do not stand for one value"):
        predict_value(predictions, pd.concat([samples, twice]))


def test_a_model_that_always_says_the_same_has_no_correlation(binary):
    predictions, samples = binary
    flat = predictions.assign(prob_defective=0.25, prob_functional=0.75)
    row = (
        annotator_agreement_table(flat, samples, replicates=10).set_index("metric").loc["spearman"]
    )
    assert (
        np.isnan(row["value"])
        and np.isnan(row["low"])
        and row["note"] == "model or annotators are constant"
    )


def test_bad_input_is_named(binary):
    predictions, samples = binary
    with pytest.raises(
        ValueError, match=r"unknown column of the samples 'defect_probabilty'.*defect_probability"
    ):
        predict_value(predictions, samples, column="defect_probabilty")
    with pytest.raises(ValueError, match=r"defect_probability of 's5' is nan.*1 have none"):
        predict_value(predictions, samples[samples["sample_id"] != "s5"])
    with pytest.raises(ValueError, match=r"needs a value between 0 and 1"):
        annotator_agreement_table(predictions, samples.assign(defect_probability=2.0))

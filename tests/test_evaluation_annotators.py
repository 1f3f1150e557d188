"""The model beside the annotators: means counted by hand, correlation and Brier score as scipy and
scikit-learn give them."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import brier_score_loss, mean_squared_error

from tests.predictions import BINARY, fill_table
from vitlab.evaluation.annotators import annotator_agreement_table, annotator_table
from vitlab.evaluation.inference import tail_share

VALUES = np.array([0, 1 / 3, 2 / 3, 1])


@pytest.fixture
def binary():
    """Predictions of defective, and the samples in another order with one training image."""
    generator = np.random.default_rng(0)
    annotated = generator.choice(VALUES, 80)
    score = np.clip(0.8 * annotated + 0.1 + generator.normal(0, 0.1, 80), 0.01, 0.99).round(2)
    predictions = fill_table(BINARY, annotated > 0.5, np.column_stack([1 - score, score]))
    samples = predictions[["sample_id", "label"]].assign(defect_probability=annotated)
    return predictions, pd.concat([samples, samples[:1].assign(sample_id="other")]).iloc[::-1]


def test_agreement_is_that_of_the_libraries(binary):
    both = annotator_table(*binary)
    annotated, predicted = both["annotators"], both["predicted"]
    table = annotator_agreement_table(*binary, replicates=50).set_index("metric")
    expected = {
        "spearman": spearmanr(predicted, annotated).statistic,
        "mean_difference": (predicted - annotated).mean(),
        "brier": mean_squared_error(annotated, predicted),
        "constant_brier": mean_squared_error(annotated, np.full(80, annotated.mean())),
    }
    assert table["value"].to_dict() == pytest.approx(expected)
    rows = np.random.default_rng([0, 0]).integers(80, size=(50, 80))
    drawn = [spearmanr(predicted.iloc[each], annotated.iloc[each]).statistic for each in rows]
    ends = np.quantile(drawn, [tail_share(80), 1 - tail_share(80)]).tolist()
    assert table.loc["spearman", ["low", "high"]].tolist() == pytest.approx(ends)


def test_against_hard_labels_it_is_the_usual_brier_score(binary):
    predictions, samples = binary
    hard = samples.assign(defect_probability=(samples["label"] == "defective").astype(float))
    value = annotator_agreement_table(predictions, hard, replicates=0).set_index("metric")["value"]
    theirs = brier_score_loss(predictions["label"] == "defective", predictions["prob_defective"])
    assert value["brier"] == pytest.approx(theirs)


def test_grades_give_the_expected_value():
    classes = ("none", "possible", "probable", "certain")
    prob = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [0.25] * 4]
    predictions = fill_table(classes, [0, 1, 3, 2], prob)
    samples = predictions[["sample_id", "label"]].assign(defect_probability=VALUES[[0, 1, 3, 2]])
    found = annotator_table(predictions, samples)["predicted"]
    assert found.tolist() == pytest.approx([0.2, 1.3 / 3, 0.8, 0.5])
    vague = {"sample_id": ["train"], "label": ["possible"], "defect_probability": [1.0]}
    with pytest.raises(ValueError, match="the classes possible do not stand for one value"):
        annotator_table(predictions, pd.concat([samples, pd.DataFrame(vague)]))


def test_a_constant_prediction_has_no_correlation(binary):
    predictions, samples = binary
    flat = predictions.assign(prob_defective=0.25, prob_functional=0.75)
    row = annotator_agreement_table(flat, samples, replicates=10).set_index("metric")
    assert row.loc["spearman", ["value", "low"]].isna().all()


def test_bad_values_are_named(binary):
    predictions, samples = binary
    with pytest.raises(ValueError, match=r"defect_probability of 's5' is nan.*1 have none"):
        annotator_table(predictions, samples[samples["sample_id"] != "s5"])
    with pytest.raises(ValueError, match=r"needs a value between 0 and 1"):
        annotator_table(predictions, samples.assign(defect_probability=2.0))

"""Calibration errors and proper scores against torchmetrics and scikit-learn; recalibration against
scikit-learn.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from tests.predictions import BINARY, DIGITS, fill_binary, make_calibrated
from vitlab.evaluation import (
    calibrate,
    calibration_table,
    recalibration_table,
    reliability_table,
)
from vitlab.evaluation.calibration import (
    CALIBRATION_METRICS,
    assign_bins,
    expected_calibration_error,
    measure_calibration,
)
from vitlab.evaluation.scores import read_scores
from vitlab.evaluation.sentences import describe_confidence, describe_recalibration
from vitlab.schema import check_predictions

BOTH = pytest.mark.parametrize("classes", [BINARY, DIGITS], ids=["binary", "multi-class"])


def arrays(predictions, split="test"):
    scores = read_scores(predictions, split)
    return scores.label, scores.prob


def reference_error(prob, hit):
    accuracy, mean = calibration_curve(hit, prob, n_bins=10)
    count, _ = np.histogram(prob, bins=10, range=(0, 1))
    return (count[count > 0] * np.abs(accuracy - mean)).sum() / len(prob)


@BOTH
def test_calibration_errors_agree_with_scikit_learn(classes):
    predictions = make_calibrated(classes)
    label, prob = arrays(predictions)
    value = calibration_table(predictions, replicates=0).set_index("metric")["value"]
    theirs = reference_error(prob.max(axis=1), prob.argmax(axis=1) == label)
    assert value["ece"] == expected_calibration_error(predictions) == pytest.approx(theirs)
    classwise = [reference_error(prob[:, k], label == k) for k in range(len(classes))]
    assert value["classwise_ece"] == pytest.approx(np.mean(classwise))


@pytest.mark.parametrize("digits", [1, 8], ids=["ties", "distinct"])
def test_reliability_agrees_with_scikit_learn(digits):
    predictions = make_calibrated()
    predictions["prob_defective"] = predictions["prob_defective"].round(digits)
    predictions["prob_functional"] = 1 - predictions["prob_defective"]
    scores = read_scores(predictions, "test")
    table = reliability_table(predictions)
    filled = table[table["n"] > 0]
    theirs = calibration_curve(scores.right, scores.confidence, n_bins=10)
    np.testing.assert_allclose(filled[["accuracy", "confidence"]].T, theirs, atol=1e-9)
    assert table["n"].sum() == 300


def test_reliability_and_calibration_error_by_hand():
    label = ["yes", "yes", "no", "yes", "no", "no"]
    # confidences .95 .85 .65 .55 .85 .95: right, right, wrong, wrong, right, right
    predictions = fill_binary([0.95, 0.85, 0.65, 0.45, 0.15, 0.05], label)
    table = reliability_table(predictions).set_index("bin")
    assert table["n"].tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 2, 2]
    assert table["accuracy"].dropna().tolist() == [0, 0, 1, 1]
    empty = table.loc[[0, 7], ["confidence", "accuracy", "low", "high"]]
    assert empty.isna().all(axis=None)
    by_hand = (0.55 + 0.65 + 2 * 0.15 + 2 * 0.05) / 6
    assert expected_calibration_error(predictions) == pytest.approx(by_hand)
    # bins hold their upper edge
    assert assign_bins(np.array([0, 0.1, 0.11, 0.5, 1])).tolist() == [0, 0, 1, 4, 9]


@BOTH
def test_scores_agree_with_scikit_learn(classes):
    predictions = make_calibrated(classes)
    label, prob = arrays(predictions)
    value = calibration_table(predictions, replicates=0).set_index("metric")["value"]
    assert tuple(value.index) == CALIBRATION_METRICS
    theirs = reference.brier_score_loss(
        label, prob, labels=range(len(classes)), scale_by_half=False
    )
    assert value["brier"] == pytest.approx(theirs, abs=1e-9)
    assert value["nll"] == pytest.approx(
        reference.log_loss(label, prob, labels=range(len(classes))), abs=1e-9
    )


@BOTH
def test_every_replicate_is_the_measure_of_the_drawn_samples(classes):
    scores = read_scores(make_calibrated(classes), "test")
    rows = np.random.default_rng(1).integers(300, size=300)
    counts = np.bincount(rows, minlength=300)[None].astype(float)
    drawn, weighted = scores.take(rows), measure_calibration(scores, counts)[0]
    direct = measure_calibration(drawn, np.ones((1, 300)))[0]
    np.testing.assert_allclose(weighted, direct, atol=1e-9)


def test_calibrated_probabilities_lie_at_the_level_of_calibrated_ones():
    good = calibration_table(make_calibrated(DIGITS, 2000), 60).set_index("metric")
    assert good.loc["ece", "value"] < 2 * good.loc["ece", "calibrated"]
    bold = calibration_table(make_calibrated(DIGITS, 2000, temperature=0.4), 60)
    bold = bold.set_index("metric")
    assert bold.loc["ece", "value"] > 5 * bold.loc["ece", "calibrated"] > 0
    assert good.index[good["low"].notna()].tolist() == ["brier", "nll"]
    nothing = calibration_table(make_calibrated(), replicates=0)
    assert nothing.drop(columns=["metric", "value"]).isna().all(axis=None)


def test_calibrated_models_lie_in_the_range_of_calibrated_ones():
    """150 models with exactly right probabilities, 100 images: each error is in its range in 90 to
    99 % of cases (95 % nominal).

    The bootstrap interval of the ECE held the truth in 72 %. A model that is twice as bold lies
    above the range."""
    names, inside = ["ece", "classwise_ece"], []
    for seed in range(150):
        table = calibration_table(make_calibrated(num_samples=200, seed=seed), replicates=250)
        row = table.set_index("metric").loc[names]
        inside.append(row["value"].between(row["calibrated_low"], row["calibrated_high"]))
    share = np.mean(inside, axis=0)
    assert (share >= 0.9).all() and (share <= 0.99).all(), share
    bold = calibration_table(make_calibrated(temperature=0.5), 80).set_index("metric").loc[names]
    assert (bold["value"] > bold["calibrated_high"]).all()


@pytest.mark.parametrize(
    ("temperature", "text"),
    [(1, "no difference between the two"), (0.5, "over-confident"), (2, "under-confident")],
)
def test_confidence_in_words(temperature, text):
    assert text in describe_confidence(make_calibrated(num_samples=2000, temperature=temperature))
    if temperature == 0.5:
        bold = make_calibrated(temperature=0.4)
        assert "no difference" in describe_confidence(bold.assign(cluster=np.arange(600) // 300))


def test_validation_chooses_the_recalibration():
    """Validation favours the last class, which vector scaling undoes; on the test split that is the
    worst that can be done."""
    good, bad = make_calibrated(DIGITS, 2000), make_calibrated(DIGITS, 2000, bias=3.0)
    mixed = pd.concat([bad[bad["split"] == "val"], good[good["split"] == "test"]])
    table = recalibration_table(mixed).set_index("method")
    assert table["val_brier"].idxmin() == "vector" and table["brier"].idxmin() == "none"
    assert "*vector* has the lowest Brier score" in describe_recalibration(table.reset_index())
    best = table.assign(val_brier=[0, 1, 1, 1]).reset_index()
    assert "no method has a lower Brier score" in describe_recalibration(best)
    few = make_calibrated(num_samples=120)
    scores = read_scores(calibrate(few, "isotonic"), "val")
    fitted = measure_calibration(scores, np.ones((1, len(scores.label))))[0][2]
    cross_validated = recalibration_table(few).set_index("method").loc["isotonic", "val_brier"]
    assert cross_validated > fitted, "a fit is not judged by the images that it was fitted to"


def test_an_impossible_label_makes_the_likelihood_infinite():
    predictions = make_calibrated()
    first = predictions.index[predictions["split"] == "test"][0]
    right = predictions.loc[first, "label"] == "defective"
    predictions.loc[first, ["prob_functional", "prob_defective"]] = [float(right), float(not right)]
    row = calibration_table(predictions, replicates=20).set_index("metric").loc["nll"]
    assert row["value"] == np.inf and np.isnan(row["low"])


class Memory(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier that was "trained" long ago: row i of its input is the number of a
    sample.
    """

    def __init__(self, prob):
        self.prob = prob
        self.classes_ = np.arange(prob.shape[1])

    def fit(self, X, y):
        return self

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)

    def predict_proba(self, X):
        return self.prob[np.asarray(X, int)[:, 0]]


@BOTH
@pytest.mark.parametrize(("method", "tolerance"), [("temperature", 1e-6), ("isotonic", 1e-9)])
def test_recalibration_agrees_with_scikit_learn(classes, method, tolerance):
    predictions = make_calibrated(classes, temperature=0.5)
    (val, val_prob), (_, prob) = arrays(predictions, "val"), arrays(predictions)
    number = np.arange(len(val_prob) + len(prob))[:, None]
    memory = FrozenEstimator(Memory(np.concatenate([val_prob, prob])))
    theirs = (
        CalibratedClassifierCV(memory, method=method)
        .fit(number[: len(val)], val)
        .predict_proba(number[len(val) :])
    )
    _, ours = arrays(calibrate(predictions, method))
    # temperature: that of the optimiser, and theirs adds 2e-16 to p
    np.testing.assert_allclose(ours, theirs, atol=tolerance)


def test_vector_scaling_of_two_classes_is_logistic_regression():
    predictions = make_calibrated(temperature=0.6, bias=1.0)
    difference = (predictions["logit_defective"] - predictions["logit_functional"]).to_numpy()[
        :, None
    ]
    val = (predictions["split"] == "val").to_numpy()
    platt = LogisticRegression(C=np.inf, tol=1e-10).fit(
        difference[val], predictions["label"][val] == "defective"
    )
    ours = calibrate(predictions, "vector")["prob_defective"]
    np.testing.assert_allclose(ours, platt.predict_proba(difference)[:, 1], atol=1e-5)


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
@BOTH
def test_recalibrated_predictions_are_predictions(classes, method):
    predictions = make_calibrated(classes, temperature=0.3).assign(shade=1.0)
    new = calibrate(predictions, method)
    assert check_predictions(new) == classes and list(new.columns) == list(predictions.columns)
    prob = new[[f"prob_{name}" for name in classes]].to_numpy()
    predicted = prob[np.arange(len(prob)), pd.Index(classes).get_indexer(new["pred"])]
    assert (predicted == prob.max(axis=1)).all()
    if method == "temperature":
        assert (new["pred"] == predictions["pred"]).all()
    before, after = (
        calibration_table(table, replicates=0).set_index("metric")["value"]
        for table in (predictions, new)
    )
    assert after["ece"] < before["ece"] / 2 and after["brier"] < before["brier"]
    # the labels of the test split have no part in the fit
    turned = predictions.assign(
        label=np.where(predictions["split"] == "test", classes[0], predictions["label"])
    )
    again = calibrate(turned, method)
    pd.testing.assert_frame_equal(new.drop(columns="label"), again.drop(columns="label"))


def test_known_temperature_and_bias_are_found():
    table = recalibration_table(make_calibrated(DIGITS, 4000, temperature=0.5))
    table = table.set_index("method")
    note = table.loc["temperature", "note"]
    assert float(note.removeprefix("T = ")) == pytest.approx(2, rel=0.05)
    assert list(table.index) == ["none", "temperature", "vector", "isotonic"]
    biased = recalibration_table(make_calibrated(DIGITS, 4000, bias=2.0)).set_index("method")
    assert biased.loc["vector", "classwise_ece"] < biased.loc["temperature", "classwise_ece"] / 2
    assert biased.loc["vector", "accuracy"] > biased.loc["none", "accuracy"]


def test_without_mistakes_the_temperature_stops_at_its_limit():
    predictions = make_calibrated()
    predictions["label"] = predictions["pred"]
    table = recalibration_table(predictions).set_index("method")
    assert table.loc["temperature", "note"] == "T = 0.050"


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
def test_a_class_that_validation_lacks_does_no_harm(method):
    predictions = make_calibrated(DIGITS)
    lacking = (predictions["split"] == "val") & (predictions["label"] == "3")
    predictions.loc[lacking, "label"] = "4"
    new = calibrate(predictions, method)
    assert check_predictions(new) == DIGITS and new["prob_3"].max() < 0.9


def test_bad_input_is_named():
    predictions = make_calibrated()
    with pytest.raises(ValueError, match="unknown method 'platt'"):
        calibrate(predictions, "platt")
    with pytest.raises(ValueError, match="no sample of split 'val'"):
        recalibration_table(predictions[predictions["split"] == "test"])

"""Calibration errors and proper scores against torchmetrics and scikit-learn; recalibration against
scikit-learn.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn import metrics as reference
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from vitlab.evaluation import (
    calibrate,
    calibration_table,
    recalibration_table,
    reliability_table,
)
from vitlab.evaluation.calibration import (
    CALIBRATION_METRICS,
    expected_calibration_error,
    measure_calibration,
)
from vitlab.evaluation.scores import read_scores
from vitlab.evaluation.sentences import describe_confidence, describe_recalibration
from vitlab.schema import check_predictions

BINARY = ("functional", "defective")
DIGITS = tuple("0123456789")
BOTH = pytest.mark.parametrize("classes", [BINARY, DIGITS], ids=["binary", "multi-class"])


def make_predictions(classes=BINARY, num_samples=600, seed=0, temperature=1.0, bias=0.0):
    """Labels drawn from the probabilities; then the logits are sharpened and the last class is
    favoured.
    """
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2, size=(num_samples, len(classes)))
    label = (generator.random((num_samples, 1)) > softmax(logits, axis=1).cumsum(axis=1)).sum(
        axis=1
    )
    logits = logits / temperature
    logits[:, -1] += bias
    return fill_table(classes, label, logits)


def fill_table(classes, label, logits):
    prob = softmax(logits, axis=1)
    table = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(len(label))],
            "split": ["val", "test"] * (len(label) // 2),
        }
    )
    table["group"], table["label"], table["pred"] = (
        "all",
        np.array(classes)[label],
        np.array(classes)[prob.argmax(axis=1)],
    )
    table[[f"logit_{name}" for name in classes]] = logits
    table[[f"prob_{name}" for name in classes]] = prob
    return table


def arrays(predictions, split="test"):
    scores = read_scores(predictions, split)
    return scores.label, scores.prob


@BOTH
def test_calibration_errors_agree_with_torchmetrics(classes):
    import torch
    from torchmetrics.functional.classification import (
        binary_calibration_error,
        multiclass_calibration_error,
    )

    predictions = make_predictions(classes)
    label, prob = arrays(predictions)
    theirs = multiclass_calibration_error(
        torch.tensor(prob), torch.tensor(label), len(classes), n_bins=10
    )
    # theirs counts in float32
    assert expected_calibration_error(predictions) == pytest.approx(float(theirs), abs=1e-7)
    classwise = [
        binary_calibration_error(torch.tensor(prob[:, k]), torch.tensor(label == k), n_bins=10)
        for k in range(len(classes))
    ]
    value = calibration_table(predictions, replicates=0).set_index("metric")["value"]
    assert value["classwise_ece"] == pytest.approx(np.mean(classwise), abs=1e-7)


@pytest.mark.parametrize("digits", [1, 8], ids=["ties", "distinct"])
def test_reliability_agrees_with_scikit_learn(digits):
    predictions = make_predictions()
    predictions["prob_defective"] = predictions["prob_defective"].round(digits)
    predictions["prob_functional"] = 1 - predictions["prob_defective"]
    scores = read_scores(predictions, "test")
    confidence = np.take_along_axis(scores.prob, scores.pred[:, None], axis=1)[:, 0]
    table = reliability_table(predictions)
    filled = table[table["n"] > 0]
    theirs = calibration_curve(scores.pred == scores.label, confidence, n_bins=10)
    np.testing.assert_allclose(filled["accuracy"], theirs[0], atol=1e-9)
    np.testing.assert_allclose(filled["confidence"], theirs[1], atol=1e-9)
    assert table["n"].sum() == 300


@BOTH
def test_scores_agree_with_scikit_learn(classes):
    predictions = make_predictions(classes)
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
    scores = read_scores(make_predictions(classes), "test")
    rows = np.random.default_rng(1).integers(300, size=300)
    counts = np.bincount(rows, minlength=300)[None].astype(float)
    drawn, weighted = scores.take(rows), measure_calibration(scores, counts)[0]
    direct = measure_calibration(drawn, np.ones((1, 300)))[0]
    np.testing.assert_allclose(weighted, direct, atol=1e-9)


def test_honest_probabilities_lie_at_the_level_of_honest_ones():
    honest = calibration_table(make_predictions(DIGITS, 2000), replicates=100).set_index("metric")
    assert honest.loc["ece", "value"] < 2 * honest.loc["ece", "calibrated"]
    proud = calibration_table(
        make_predictions(DIGITS, 2000, temperature=0.4), replicates=100
    ).set_index("metric")
    assert proud.loc["ece", "value"] > 5 * proud.loc["ece", "calibrated"] > 0
    with_interval = honest[honest["low"].notna()]
    assert with_interval.index.tolist() == ["brier", "nll"] and (honest["note"] == "").all()
    assert (
        (with_interval["low"] <= with_interval["value"])
        & (with_interval["value"] <= with_interval["high"])
    ).all()
    nothing = calibration_table(make_predictions(), replicates=0)
    assert (
        nothing[["low", "high", "calibrated", "calibrated_low", "calibrated_high"]]
        .isna()
        .all(axis=None)
    )


def test_honest_models_lie_in_the_range_of_honest_ones():
    """150 models with exactly right probabilities, 100 images: each error is in its range in 90 to
    99 % of cases (95 % nominal).

    The bootstrap interval of the ECE held the truth in 72 %. A model that is twice as bold lies
    above the range."""
    names, inside = ["ece", "classwise_ece"], []
    for seed in range(150):
        table = calibration_table(make_predictions(num_samples=200, seed=seed), replicates=250)
        row = table.set_index("metric").loc[names]
        inside.append(
            (row["calibrated_low"] <= row["value"]) & (row["value"] <= row["calibrated_high"])
        )
    share = np.mean(inside, axis=0)
    assert (share >= 0.9).all() and (share <= 0.99).all(), share
    bold = (
        calibration_table(make_predictions(num_samples=600, temperature=0.5), replicates=80)
        .set_index("metric")
        .loc[names]
    )
    assert (bold["value"] > bold["calibrated_high"]).all()


def test_confidence_in_words():
    assert "no difference between the two is shown" in describe_confidence(
        make_predictions(num_samples=2000)
    )
    assert "the model is over-confident" in describe_confidence(
        make_predictions(num_samples=2000, temperature=0.5)
    )
    assert "the model is under-confident" in describe_confidence(
        make_predictions(num_samples=2000, temperature=2)
    )
    bold = make_predictions(num_samples=600, temperature=0.4)
    together = pd.Series(np.arange(600) // 300, index=bold["sample_id"])
    assert "over-confident" in describe_confidence(bold) and "no difference" in describe_confidence(
        bold, cluster=together
    )


def test_validation_chooses_the_recalibration():
    """Validation favours the last class, which vector scaling undoes; on the test split that is the
    worst that can be done.
    """
    good, bad = make_predictions(DIGITS, 3000), make_predictions(DIGITS, 3000, bias=3.0)
    mixed = pd.concat([bad[bad["split"] == "val"], good[good["split"] == "test"]])
    table = recalibration_table(mixed).set_index("method")
    assert table["val_brier"].idxmin() == "vector" and table["brier"].idxmin() == "none"
    assert describe_recalibration(table.reset_index()).startswith(
        "Cross-validated on the validation split, *vector* has"
    )
    turned = mixed.assign(label=np.where(mixed["split"] == "test", "0", mixed["label"]))
    np.testing.assert_allclose(recalibration_table(turned)["val_brier"], table["val_brier"])
    table = recalibration_table(make_predictions(num_samples=120)).set_index("method")
    scores = read_scores(calibrate(make_predictions(num_samples=120), "isotonic"), "val")
    fitted = measure_calibration(scores, np.ones((1, len(scores.label))))[0][2]
    assert table.loc["isotonic", "val_brier"] > fitted, (
        "a fit is not judged by the images that it was fitted to"
    )
    best = table.assign(val_brier=[0, 1, 1, 1]).reset_index()
    assert "no method has a lower Brier score" in describe_recalibration(best)


def test_an_impossible_label_makes_the_likelihood_infinite():
    predictions = make_predictions()
    first = predictions.index[predictions["split"] == "test"][0]
    right = predictions.loc[first, "label"] == "defective"
    predictions.loc[first, ["prob_functional", "prob_defective"]] = [float(right), float(not right)]
    row = calibration_table(predictions, replicates=20).set_index("metric").loc["nll"]
    assert (
        row["value"] == np.inf
        and np.isnan(row["low"])
        and row["note"] == "1 with a label of probability 0"
    )


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
    predictions = make_predictions(classes, temperature=0.5)
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
    predictions = make_predictions(temperature=0.6, bias=1.0)
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
    predictions = make_predictions(classes, temperature=0.3).assign(shade=1.0)
    new = calibrate(predictions, method)
    assert check_predictions(new) == classes
    assert (
        list(new.columns) == list(predictions.columns)
        and (new["sample_id"] == predictions["sample_id"]).all()
    )
    prob = new[[f"prob_{name}" for name in classes]].to_numpy()
    mine = prob[np.arange(len(prob)), pd.Index(classes).get_indexer(new["pred"])]
    assert (mine == prob.max(axis=1)).all()
    if method == "temperature":
        assert (new["pred"] == predictions["pred"]).all()
    before, after = (
        calibration_table(table, replicates=0).set_index("metric")["value"]
        for table in (predictions, new)
    )
    assert after["ece"] < before["ece"] / 2 and after["brier"] < before["brier"]


def test_known_temperature_and_bias_are_found():
    table = recalibration_table(make_predictions(DIGITS, 6000, temperature=0.5)).set_index("method")
    assert float(table.loc["temperature", "note"].removeprefix("T = ")) == pytest.approx(
        2, rel=0.05
    )
    assert list(table.index) == ["none", "temperature", "vector", "isotonic"]
    assert table.loc["temperature", "accuracy"] == table.loc["none", "accuracy"]
    biased = recalibration_table(make_predictions(DIGITS, 6000, bias=2.0)).set_index("method")
    assert biased.loc["vector", "classwise_ece"] < biased.loc["temperature", "classwise_ece"] / 2
    assert biased.loc["vector", "accuracy"] > biased.loc["none", "accuracy"]


def test_the_test_split_has_no_say_in_the_fit():
    predictions = make_predictions(DIGITS)
    turned = predictions.copy()
    turned.loc[turned["split"] == "test", "label"] = "0"
    for method in ("temperature", "vector", "isotonic"):
        first, second = calibrate(predictions, method), calibrate(turned, method)
        pd.testing.assert_frame_equal(first.drop(columns="label"), second.drop(columns="label"))


def test_without_mistakes_the_temperature_stops_at_its_limit():
    predictions = make_predictions()
    predictions["label"] = predictions["pred"]
    table = recalibration_table(predictions).set_index("method")
    assert table.loc["temperature", "note"] == "T = 0.050, the limit"
    assert (calibrate(predictions)["pred"] == predictions["pred"]).all()


def test_a_class_that_validation_lacks_is_named():
    predictions = make_predictions(DIGITS)
    predictions.loc[(predictions["split"] == "val") & (predictions["label"] == "3"), "label"] = "4"
    with pytest.raises(
        ValueError, match="vector needs images of every class in validation, which has none of 3"
    ):
        calibrate(predictions, "vector")
    table = recalibration_table(predictions).set_index("method")
    assert (
        table.loc[["vector", "isotonic"], "ece"].isna().all()
        and "none of 3" in table.loc["isotonic", "note"]
    )
    assert table.loc["temperature", "ece"] > 0


def test_bad_input_is_named():
    predictions = make_predictions()
    with pytest.raises(ValueError, match="unknown method 'platt'"):
        calibrate(predictions, "platt")
    with pytest.raises(ValueError, match="no sample of split 'val'"):
        recalibration_table(predictions[predictions["split"] == "test"])
    with pytest.raises(ValueError, match="not the softmax of its logits"):
        calibrate(predictions.assign(logit_defective=0.0))
    with pytest.raises(ValueError, match="NaN or infinite"):
        calibration_table(predictions.assign(logit_defective=np.nan))

"""Metrics against scikit-learn, their intervals, and images chosen from a known order."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference
from sklearn.neighbors import NearestNeighbors

from tests.predictions import BINARY, DIGITS, fill_binary, fill_table, make_predictions
from vitlab.errors import UserError
from vitlab.evaluation import (
    METRICS,
    choose_examples,
    class_table,
    confusion_table,
    curve_band_table,
    draw_findings,
    mcnemar_table,
    metrics_table,
    mistakes_table,
    neighbour_table,
    uncertainty_table,
)
from vitlab.evaluation.metrics import prepare_metrics
from vitlab.evaluation.scores import read_scores

BOTH = pytest.mark.parametrize("classes", [BINARY, DIGITS], ids=["binary", "multi-class"])


def sklearn_metrics(scores, weight=None):
    """METRICS as scikit-learn gives them."""
    label, pred, prob, binary = scores.label, scores.pred, scores.prob, len(scores.classes) == 2
    average = "binary" if binary else "macro"
    score = prob[:, 1] if binary else prob
    one_hot = label if binary else np.eye(len(scores.classes))[label]
    targets = [1] if binary else range(len(scores.classes))
    common = {"sample_weight": weight}
    return [
        reference.accuracy_score(label, pred, **common),
        reference.balanced_accuracy_score(label, pred, **common),
        reference.precision_score(label, pred, average=average, zero_division=0, **common),
        reference.recall_score(label, pred, average=average, **common),
        np.mean([reference.recall_score(label != k, pred != k, **common) for k in targets]),
        reference.f1_score(label, pred, average=average, **common),
        reference.f1_score(label, pred, average="weighted", **common),
        reference.roc_auc_score(one_hot, score, average="macro", **common),
        reference.average_precision_score(one_hot, score, average="macro", **common),
        reference.matthews_corrcoef(label, pred, **common),
    ]


@BOTH
@pytest.mark.parametrize("round_to", [None, 0], ids=["distinct scores", "ties"])
def test_metrics_agree_with_scikit_learn(classes, round_to):
    predictions = make_predictions(classes, round_to=round_to)
    scores = read_scores(predictions, "test")
    table = metrics_table(predictions, replicates=0)
    assert tuple(table["metric"]) == METRICS
    np.testing.assert_allclose(table["value"], sklearn_metrics(scores), atol=1e-9)
    assert table[["low", "high"]].isna().all(axis=None)
    weights = np.random.default_rng(3).multinomial(300, np.full(300, 1 / 300), size=3)
    theirs = [sklearn_metrics(scores, weight) for weight in weights]
    np.testing.assert_allclose(prepare_metrics(scores)(weights.astype(float)), theirs, atol=1e-9)


def test_intervals_are_seeded_and_hold_the_normal_approximation():
    predictions = make_predictions(num_samples=1000)
    table = metrics_table(predictions)
    assert table.equals(metrics_table(predictions)) and (table["note"] == "").all()
    value, low, high = table.set_index("metric").loc["accuracy", ["value", "low", "high"]]
    half = 1.96 * np.sqrt(value * (1 - value) / 1000)  # the interval of a share of 1000
    assert [value - low, high - value] == pytest.approx([half, half], rel=0.15)


def test_few_clusters_are_noted_and_one_has_no_interval():
    predictions = make_predictions(num_samples=60)
    table = metrics_table(predictions.assign(cluster=np.arange(60) % 4))
    assert (table["note"] == "only 4 clusters").all() and table["low"].notna().all()
    table = metrics_table(predictions.assign(cluster=0))
    assert table[["low", "high"]].isna().all(axis=None)
    assert (table["note"] == "only 1 cluster").all()
    assert (metrics_table(predictions.assign(cluster=np.arange(60) % 30))["note"] == "").all()


def test_replicates_that_lack_a_class_are_reported():
    # one single sample of the other class: (29/30)^30 = 36 % of replicates miss it
    predictions = make_predictions(num_samples=30)
    predictions["label"] = ["defective", *["functional"] * 29]
    table = metrics_table(predictions).set_index("metric")
    share, text = table.loc["roc_auc", "note"].split("%")
    assert 31 <= int(share) <= 41 and text == " of the replicates lack a class"
    assert table.loc["roc_auc", ["value", "low", "high"]].notna().all()
    assert table.loc["accuracy", "note"] == ""


def test_a_missing_class_is_nan_and_named():
    predictions = make_predictions(num_samples=40).assign(label="functional")
    table = metrics_table(predictions).set_index("metric")
    undefined = table.drop(["accuracy", "specificity", "weighted_f1"])
    assert undefined[["value", "low", "high"]].isna().all(axis=None)
    assert (undefined["note"] == "only functional").all()
    right = (predictions["pred"] == "functional").mean()
    assert table.loc[["accuracy", "specificity"], "value"].tolist() == pytest.approx([right, right])


def test_a_constant_prediction_follows_scikit_learn():
    predictions = make_predictions(num_samples=50).assign(pred="functional")
    table = metrics_table(predictions, replicates=0).set_index("metric")["value"]
    assert (table[["precision", "recall", "f1", "mcc"]] == 0).all()
    assert table["balanced_accuracy"] == 0.5


def test_class_and_confusion_table_by_hand():
    predictions = make_predictions(("a", "b", "c"), num_samples=6)
    predictions = predictions.assign(label=list("aaabbb"), pred=list("aabbbc"))
    counts = confusion_table(predictions)
    assert counts.to_numpy().tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 0]]
    assert (counts.index.name, counts.columns.name) == ("label", "pred")
    table = class_table(predictions).set_index("class")
    np.testing.assert_allclose(table.loc["a"], [1, 2 / 3, 4 / 5, 3])
    np.testing.assert_allclose(table.loc["b"], [2 / 3, 2 / 3, 2 / 3, 3])
    np.testing.assert_allclose(table.loc["c"].astype(float), [np.nan, np.nan, np.nan, 0])


BAD = {
    "NaN or infinite scores": {"prob_defective": np.nan},
    "sum to": {"prob_defective": 0.9, "prob_functional": 0.9},
    "more than once": {"sample_id": "s1"},
    "unknown label 'broken'": {"label": "broken"},
    "no sample of split 'test'; they have train": {"split": "train"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_predictions_are_refused_by_every_table(message):
    good = make_predictions(num_samples=10)
    bad = good.copy()
    rows = slice(None) if "split" in BAD[message] else 0
    for column, value in BAD[message].items():
        bad.loc[rows, column] = value
    for make in (
        metrics_table,
        mistakes_table,
        curve_band_table,
        lambda table: mcnemar_table(table, good, ("a", "b")),
        lambda table: uncertainty_table({0: good, 1: table}),
    ):
        with pytest.raises(ValueError, match=message):
            make(bad)


def test_neither_evaluation_nor_plots_load_torch():
    code = "import sys, vitlab.evaluation, vitlab.plots; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_one_example_of_each_kind_and_group():
    prob = [0.99, 0.95, 0.90, 0.02, 0.55, 0.46, 0.70, 0.30]
    label = ["yes", "yes", "no", "yes", "yes", "no", "yes", "no"]
    predictions = fill_binary(prob, label, group=["a", "b"] * 4)
    found = choose_examples(predictions, each=1)
    assert dict(zip(found["kind"], found["sample_id"], strict=True)) == {
        "sure and right": "s0",
        "sure and wrong": "s3",  # 0.98 for no, and it is yes
        "near the threshold": "s5",
        "typical a": "s6",  # confidences left in a: s2 .90, s4 .55, s6 .70
        # left in b: s1 .95, s7 .70: equally far from their median, the first is taken
        "typical b": "s1",
    }
    assert found["confidence"].tolist() == pytest.approx([0.99, 0.98, 0.54, 0.70, 0.95])
    other = choose_examples(predictions, each=1, threshold=0.71).set_index("kind")
    assert other.loc["near the threshold", "sample_id"] == "s6"
    every = choose_examples(predictions, each=8)
    assert sorted(every["sample_id"]) == [f"s{i}" for i in range(8)]
    with pytest.raises(ValueError, match="threshold=2 is not a probability"):
        choose_examples(predictions, threshold=2)


def test_examples_of_many_classes_without_mistakes():
    prob = [[0.5, 0.3, 0.2], [0.45, 0.44, 0.11], [0.1, 0.8, 0.1]]
    found = choose_examples(fill_table("abc", [0, 0, 1], prob), each=1)
    assert found["kind"].tolist() == ["sure and right", "near the threshold", "typical all"]
    assert found["sample_id"].tolist() == ["s2", "s1", "s0"]


def test_findings_are_right_and_of_the_last_class():
    prob, label = [0.9, 0.8, 0.1, 0.7, 0.2], ["yes", "no", "no", "yes", "yes"]
    predictions = fill_binary(prob, label)
    assert sorted(draw_findings(predictions, 5)["sample_id"]) == ["s0", "s3"]
    assert len(draw_findings(predictions, 1)) == 1
    never = fill_binary(prob, ["no", "no", "yes", "no", "yes"])
    assert len(draw_findings(never, 9)) == 5
    three = fill_table("abc", [0, 0], [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    assert draw_findings(three, 5)["sample_id"].tolist() == ["s0"]


def test_mistakes_come_most_confident_first():
    label = ["yes", "yes", "no", "yes", "no", "no"]
    predictions = fill_binary([0.95, 0.85, 0.65, 0.45, 0.15, 0.05], label)
    table = mistakes_table(predictions)
    rows = [["s2", "no", "yes"], ["s3", "yes", "no"]]
    assert table[["sample_id", "label", "pred"]].to_numpy().tolist() == rows
    assert table["confidence"].tolist() == pytest.approx([0.65, 0.55])
    assert len(mistakes_table(predictions, n=1)) == 1
    none = mistakes_table(predictions.assign(pred=predictions["label"]))
    assert none.empty and "confidence" in none.columns


def test_neighbours_are_those_of_scikit_learn_without_the_image_itself():
    rng = np.random.default_rng(0)
    vectors, ids = rng.normal(size=(40, 6)), [f"s{i}" for i in range(40)]
    vectors[7] = 3 * vectors[3]  # a copy, in direction
    samples = pd.DataFrame({"sample_id": ids, "label": np.where(np.arange(40) % 2, "x", "y")})
    table = neighbour_table(vectors, samples, ["s3", "s20"], count=4)
    search = NearestNeighbors(n_neighbors=5, metric="cosine").fit(vectors)
    distances, places = search.kneighbors(vectors[[20]])
    own = table[table["sample_id"] == "s20"]
    assert own["neighbour"].tolist() == [ids[place] for place in places[0][1:]]
    assert own["distance"].tolist() == pytest.approx(distances[0][1:].tolist())
    first = table.iloc[0]
    assert (first["neighbour"], first["label"]) == ("s7", "x")
    assert first["distance"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(UserError, match="'s99' is not a sample_id"):
        neighbour_table(vectors, samples, ["s99"])

"""Metrics against scikit-learn, their intervals against the definition of the bootstrap."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from vitlab.evaluation import METRICS, class_table, confusion_table, metrics_table
from vitlab.evaluation.bootstrap import bootstrap, draw_counts, percentile_interval, read_clusters
from vitlab.evaluation.metrics import prepare_metrics
from vitlab.evaluation.scores import read_scores

BINARY = ("functional", "defective")
DIGITS = tuple("0123456789")


def make_predictions(classes=BINARY, num_samples=300, seed=0, round_to=None):
    """Predictions of a mediocre classifier; rounding the probabilities makes ties."""
    generator = np.random.default_rng(seed)
    label = generator.integers(len(classes), size=num_samples)
    logits = generator.normal(size=(num_samples, len(classes)))
    logits[np.arange(num_samples), label] += 1
    if round_to is not None:
        logits = logits.round(round_to)
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame(
        {"sample_id": [f"s{i}" for i in range(num_samples)], "split": "test", "group": "all"}
    )
    table["label"], table["pred"] = np.array(classes)[label], np.array(classes)[prob.argmax(axis=1)]
    for kind, values in (("logit", logits), ("prob", prob)):
        table[[f"{kind}_{name}" for name in classes]] = values
    return table


def sklearn_specificity(label, pred, targets, weight):
    """Recall of not being of the class, mean over the classes."""
    return np.mean(
        [reference.recall_score(label != k, pred != k, sample_weight=weight) for k in targets]
    )


def sklearn_metrics(scores, weight=None):
    """METRICS as scikit-learn gives them."""
    label, pred, prob, binary = scores.label, scores.pred, scores.prob, len(scores.classes) == 2
    average = "binary" if binary else "macro"
    score = prob[:, 1] if binary else prob
    one_hot = label if binary else np.eye(len(scores.classes))[label]
    common = {"sample_weight": weight}
    return [
        reference.accuracy_score(label, pred, **common),
        reference.balanced_accuracy_score(label, pred, **common),
        reference.precision_score(label, pred, average=average, zero_division=0, **common),
        reference.recall_score(label, pred, average=average, **common),
        sklearn_specificity(
            label,
            pred,
            range(len(scores.classes))[-1:] if binary else range(len(scores.classes)),
            weight,
        ),
        reference.f1_score(label, pred, average=average, **common),
        reference.f1_score(label, pred, average="weighted", **common),
        reference.roc_auc_score(one_hot, score, average="macro", **common),
        reference.average_precision_score(one_hot, score, average="macro", **common),
        reference.matthews_corrcoef(label, pred, **common),
    ]


@pytest.mark.parametrize("classes", [BINARY, DIGITS], ids=["binary", "multi-class"])
@pytest.mark.parametrize("round_to", [None, 0], ids=["distinct scores", "ties"])
def test_metrics_agree_with_scikit_learn(classes, round_to):
    predictions = make_predictions(classes, round_to=round_to)
    table = metrics_table(predictions, replicates=0)
    assert tuple(table["metric"]) == METRICS
    np.testing.assert_allclose(
        table["value"], sklearn_metrics(read_scores(predictions, "test")), atol=1e-9
    )
    assert table[["low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize("classes", [BINARY, DIGITS], ids=["binary", "multi-class"])
def test_every_replicate_agrees_with_scikit_learn(classes):
    scores = read_scores(make_predictions(classes, round_to=1), "test")
    (counts,) = draw_counts(len(scores.label), 5, seed=3)
    ours = prepare_metrics(scores)(counts)
    theirs = [sklearn_metrics(scores, weight) for weight in counts]
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_replicates_are_draws_with_replacement_in_any_chunks(monkeypatch):
    counts = np.concatenate(list(draw_counts(20, 4000, seed=0)))
    assert (counts.sum(axis=1) == 20).all() and counts.shape == (4000, 20)
    # share of samples that a replicate leaves out
    assert abs((counts == 0).mean() - (1 - 1 / 20) ** 20) < 0.01
    monkeypatch.setattr("vitlab.evaluation.bootstrap.CHUNK", 70)
    chunks = list(draw_counts(20, 8, seed=0))
    assert [len(chunk) for chunk in chunks] == [3, 3, 2]
    assert (np.concatenate(chunks).sum(axis=1) == 20).all()


def test_replicates_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr("vitlab.evaluation.bootstrap.CHUNK", 900)
    scores = read_scores(make_predictions(), "test")
    compute, values = prepare_metrics(scores), []
    for cores in (1, 4):
        monkeypatch.setattr("vitlab.evaluation.bootstrap.count_cores", lambda cores=cores: cores)
        values.append(bootstrap(compute, 300, 40, seed=2))
    one, four = values
    np.testing.assert_array_equal(one, four)
    drawn = np.concatenate(list(draw_counts(300, 40, seed=2)))
    np.testing.assert_allclose(one, compute(drawn), atol=1e-12)
    assert len(np.unique(one[:, 0])) > 10  # chunks are not copies of each other
    assert bootstrap(compute, 300, 0, seed=2).shape == (0, len(METRICS))


def test_clusters_are_drawn_as_wholes():
    cluster = np.array([0, 0, 0, 1, 2, 2])
    counts = np.concatenate(list(draw_counts(6, 5000, seed=0, cluster=cluster)))
    assert (
        (counts[:, 0] == counts[:, 1]).all()
        and (counts[:, 0] == counts[:, 2]).all()
        and (counts[:, 4] == counts[:, 5]).all()
    )
    # three clusters are drawn, of whatever size
    assert (counts[:, [0, 3, 4]].sum(axis=1) == 3).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.05)


def test_copies_of_samples_leave_the_cluster_interval_as_it_was(monkeypatch):
    """Each sample four times over teaches nothing new: by cluster the interval stays, by sample it
    is half as wide.
    """
    predictions = make_predictions(num_samples=150)
    # one chunk, so that the same clusters are drawn
    monkeypatch.setattr("vitlab.evaluation.bootstrap.CHUNK", 10**6)
    ids, images = predictions["sample_id"], predictions.index
    copies = pd.concat(
        [predictions.assign(sample_id=ids + f"-{i}", image=images) for i in range(4)]
    )
    once = metrics_table(predictions)
    clustered = metrics_table(copies, cluster="image")
    np.testing.assert_allclose(
        clustered[["value", "low", "high"]], once[["value", "low", "high"]], atol=1e-9
    )
    fooled = metrics_table(copies)
    half = (fooled["high"] - fooled["low"]) / (once["high"] - once["low"])
    assert ((half > 0.4) & (half < 0.6)).all()


def test_clusters_come_as_a_column_a_series_or_a_list():
    rows = make_predictions(num_samples=5).assign(twin=["a", "b", "a", None, None])
    expected = [0, 1, 0, 2, 3]
    by_id = pd.Series(rows["twin"].to_numpy(), index=rows["sample_id"])[::-1]
    for cluster in ("twin", by_id, rows["twin"], rows["twin"].tolist()):
        assert len(set(zip(read_clusters(rows, cluster), expected, strict=True))) == 4
    assert read_clusters(rows, None) is None
    with pytest.raises(ValueError, match="no column 'twins' to take clusters from"):
        read_clusters(rows, "twins")
    with pytest.raises(ValueError, match="2 cluster ids for 5 images"):
        read_clusters(rows, [0, 1])
    with pytest.raises(ValueError, match="a sample_id has two clusters"):
        read_clusters(rows, pd.concat([by_id, by_id]))


def test_few_clusters_are_said_and_one_has_no_interval():
    predictions = make_predictions(num_samples=60)
    table = metrics_table(predictions, cluster=np.arange(60) % 4)
    assert (table["note"] == "only 4 clusters").all() and table["low"].notna().all()
    table = metrics_table(predictions, cluster=np.zeros(60))
    assert (
        table[["low", "high"]].isna().all(axis=None) and (table["note"] == "only 1 cluster").all()
    )
    assert (metrics_table(predictions, cluster=np.arange(60) % 30)["note"] == "").all()


def test_intervals_are_seeded_and_hold_the_normal_approximation():
    predictions = make_predictions(num_samples=1000)
    table = metrics_table(predictions).set_index("metric")
    pd.testing.assert_frame_equal(table, metrics_table(predictions).set_index("metric"))
    value, low, high = table.loc["accuracy", ["value", "low", "high"]]
    half = 1.96 * np.sqrt(value * (1 - value) / 1000)  # the interval of a share of 1000
    assert (value - low, high - value) == (
        pytest.approx(half, rel=0.15),
        pytest.approx(half, rel=0.15),
    )
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert (table["note"] == "").all()


def test_undefined_replicates_are_left_out_and_reported():
    values = np.array([[0.0, np.nan], [1.0, np.nan], [np.nan, np.nan], [0.5, np.nan]])
    low, high, undefined = percentile_interval(values, confidence=0.5)
    np.testing.assert_allclose(low, [0.25, np.nan])
    np.testing.assert_allclose(high, [0.75, np.nan])
    np.testing.assert_allclose(undefined, [0.25, 1])

    predictions = make_predictions(num_samples=30)
    # one single sample of the other class: (29/30)^30 = 36 % of replicates miss it
    predictions.loc[1:, "label"] = "functional"
    predictions.loc[0, "label"] = "defective"
    table = metrics_table(predictions).set_index("metric")
    share, said = table.loc["roc_auc", "note"].split("%")
    assert 31 <= int(share) <= 41 and said == " of the replicates lack a class"
    assert np.isfinite(table.loc["roc_auc", ["value", "low", "high"]].astype(float)).all()
    assert table.loc["accuracy", "note"] == ""


def test_a_missing_class_is_nan_and_named():
    predictions = make_predictions(num_samples=40)
    predictions["label"] = "functional"
    table = metrics_table(predictions).set_index("metric")
    undefined = [
        "balanced_accuracy",
        "precision",
        "recall",
        "f1",
        "roc_auc",
        "average_precision",
        "mcc",
    ]
    assert table.loc[undefined, ["value", "low", "high"]].isna().all(axis=None)
    assert (table.loc[undefined, "note"] == "only functional").all()
    right = (predictions["pred"] == "functional").mean()
    assert table.loc[["accuracy", "specificity"], "value"].tolist() == pytest.approx([right, right])


def test_a_constant_prediction_follows_scikit_learn():
    predictions = make_predictions(num_samples=50)
    predictions["pred"] = "functional"
    table = metrics_table(predictions, replicates=0).set_index("metric")["value"]
    assert (table["precision"], table["recall"], table["f1"], table["mcc"]) == (0, 0, 0, 0)
    assert table["balanced_accuracy"] == 0.5


def test_an_absent_split_names_those_there():
    with pytest.raises(ValueError, match="no sample of split 'val'; they have test"):
        metrics_table(make_predictions(), split="val")


def test_class_and_confusion_table_by_hand():
    predictions = make_predictions(("a", "b", "c"), num_samples=6)
    predictions["label"] = list("aaabbb")
    predictions["pred"] = list("aabbbc")
    counts = confusion_table(predictions)
    assert counts.to_numpy().tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 0]]
    assert (counts.index.name, counts.columns.name, list(counts.columns)) == (
        "label",
        "pred",
        ["a", "b", "c"],
    )
    table = class_table(predictions).set_index("class")
    np.testing.assert_allclose(table.loc["a"], [1, 2 / 3, 4 / 5, 3])
    np.testing.assert_allclose(table.loc["b"], [2 / 3, 2 / 3, 2 / 3, 3])
    np.testing.assert_allclose(table.loc["c"].astype(float), [np.nan, np.nan, np.nan, 0])


def test_neither_evaluation_nor_plots_load_torch():
    code = "import sys, vitlab.evaluation, vitlab.plots; print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"

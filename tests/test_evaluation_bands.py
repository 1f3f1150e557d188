"""Curves with bands: the curves of replicates against scikit-learn's of the copied samples, bands
against their definition.
"""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from tests.test_evaluation_metrics import BINARY, DIGITS, make_predictions
from vitlab.evaluation import curve_band_table, precision_recall_table, roc_table
from vitlab.evaluation.bands import prepare_curve
from vitlab.evaluation.bootstrap import draw_counts
from vitlab.evaluation.scores import read_scores

GRID = np.linspace(0, 1, 41)


def reference_curve(label, score, kind):
    if kind == "roc":
        false, true, _ = roc_curve(label, score, drop_intermediate=False)
        return np.interp(GRID, false, true)
    precision, recall, _ = precision_recall_curve(label, score)
    precision, recall = precision[:-1], recall[:-1]  # without the point that is added at recall 0
    # of the highest threshold
    first = [np.flatnonzero(recall >= max(level, 1e-6) - 1e-9)[-1] for level in GRID]
    return precision[first]


@pytest.mark.parametrize("kind", ["roc", "precision_recall"])
@pytest.mark.parametrize("round_to", [None, 0], ids=["distinct scores", "ties"])
def test_every_replicate_is_the_curve_of_the_copied_samples(kind, round_to):
    scores = read_scores(make_predictions(num_samples=120, round_to=round_to), "test")
    (counts,) = draw_counts(120, 20, seed=1)
    ours = prepare_curve(scores.prob[:, 1], scores.label == 1, kind, GRID)(counts)
    for values, row in zip(ours, counts, strict=True):
        drawn = np.repeat(np.arange(120), row.astype(int))
        np.testing.assert_allclose(
            values, reference_curve(scores.label[drawn], scores.prob[drawn, 1], kind), atol=1e-9
        )


def test_the_curve_and_its_band_by_hand():
    predictions = make_predictions(num_samples=4)
    predictions["label"] = ["defective", "functional", "defective", "functional"]
    predictions["prob_defective"] = [0.9, 0.6, 0.4, 0.1]
    predictions["prob_functional"] = 1 - predictions["prob_defective"]
    table = curve_band_table(predictions, points=5, replicates=50)
    assert list(table.columns) == [
        "class",
        "false_positive_rate",
        "true_positive_rate",
        "low",
        "high",
    ]
    assert table["true_positive_rate"].tolist() == [0.5, 0.5, 1, 1, 1]
    table = curve_band_table(predictions, "precision_recall", points=5, replicates=50)
    assert list(table.columns) == ["class", "recall", "precision", "low", "high"]
    assert table["precision"].tolist() == pytest.approx([1, 1, 1, 2 / 3, 2 / 3])
    assert (table["class"] == "defective").all()


@pytest.mark.parametrize("kind", ["roc", "precision_recall"])
def test_the_band_holds_the_curve_and_narrows_with_more_samples(kind):
    widths = []
    for num_samples in (100, 1600):
        table = curve_band_table(make_predictions(num_samples=num_samples), kind, replicates=300)
        height = table.iloc[:, 2]
        assert ((table["low"] - 1e-9 <= height) & (height <= table["high"] + 1e-9)).mean() > 0.95
        widths.append((table["high"] - table["low"]).mean())
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.35)  # sixteen times the samples
    again = curve_band_table(make_predictions(num_samples=1600), kind, replicates=300)
    assert again.equals(table)


def test_classes_without_a_curve_have_no_band():
    predictions = make_predictions(DIGITS, num_samples=200)
    assert list(curve_band_table(predictions, replicates=5)["class"].unique()) == list(
        roc_table(predictions)["class"].unique()
    )
    alone = make_predictions(num_samples=20).assign(label="functional")
    for kind in ("roc", "precision_recall"):
        assert curve_band_table(alone, kind, replicates=5).empty
    with pytest.raises(ValueError, match=r"unknown kind of curve 'rok'\. Did you mean roc\?"):
        curve_band_table(alone, "rok")


def test_clusters_widen_the_band():
    once = make_predictions(BINARY, num_samples=100)
    copies = once.loc[np.repeat(once.index, 9)].assign(image=np.repeat(once.index, 9))
    copies["sample_id"] = [str(i) for i in range(len(copies))]
    narrow, wide = (
        curve_band_table(copies, replicates=200, cluster=cluster) for cluster in (None, "image")
    )
    # 3, of nine copies
    assert (wide["high"] - wide["low"]).mean() > 2.3 * (narrow["high"] - narrow["low"]).mean()
    assert (
        precision_recall_table(once)["precision"].iloc[0]
        == precision_recall_table(copies)["precision"].iloc[0]
    )

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from vitlab.evaluation import class_scores_table, imbalance_table
from vitlab.evaluation.calibration import expected_calibration_error
from vitlab.plots import plot_imbalance_methods

CLASSES = ("none", "probable", "certain")


def make_scores():
    values = {
        ("plain", 0): 0.5,
        ("plain", 1): 0.7,
        ("smote", 0): 0.6,
        ("smote", 1): 0.65,
        ("focal", 1): 0.8,
    }
    rows = [(model, seed, "f1", value) for (model, seed), value in values.items()]
    return pd.DataFrame(rows, columns=["model", "seed", "metric", "value"])


def test_differences_by_hand():
    table = imbalance_table(make_scores(), "plain").set_index("model")
    assert list(table.index) == ["plain", "smote", "focal"]
    smote = table.loc["smote"]
    assert smote["mean"] == pytest.approx(0.625) and smote["difference"] == pytest.approx(0.025)
    assert (smote["lowest"], smote["highest"]) == pytest.approx((-0.05, 0.1)) and (
        smote["rose"],
        smote["seeds"],
    ) == (1, 2)
    assert (
        table.loc["focal", "difference"] == pytest.approx(0.1) and table.loc["focal", "seeds"] == 1
    )
    assert (table.loc["plain", ["difference", "lowest", "highest", "rose"]] == 0).all()


def test_without_a_seed_in_common_there_is_no_difference():
    scores = make_scores().query("not (model == 'plain' and seed == 1)")
    table = imbalance_table(scores, "plain").set_index("model")
    assert np.isnan(table.loc["focal", "difference"]) and table.loc["focal", "seeds"] == 0
    assert table.loc["focal", "mean"] == 0.8


def test_an_unknown_baseline():
    with pytest.raises(ValueError, match=r"unknown baseline 'plane'. Did you mean plain"):
        imbalance_table(make_scores(), "plane")


def test_class_scores_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    label, logits = generator.integers(0, 3, 90), generator.normal(size=(90, 3))
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    pred = prob.argmax(axis=1)
    names = np.array(CLASSES)
    predictions = pd.DataFrame(
        {"sample_id": [f"s{i}" for i in range(90)], "split": "test", "group": "all"}
    )
    predictions = predictions.assign(label=names[label], pred=names[pred])
    for kind, values in (("logit", logits), ("prob", prob)):
        predictions[[f"{kind}_{name}" for name in CLASSES]] = values
    found = class_scores_table(predictions).set_index("metric")["value"]
    assert found["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(label, pred), abs=1e-9
    )
    assert found["f1"] == pytest.approx(f1_score(label, pred, average="macro"), abs=1e-9)
    recalls = recall_score(label, pred, average=None)
    assert [found[f"recall of {name}"] for name in CLASSES] == pytest.approx(recalls, abs=1e-9)
    assert found["calibration_error"] == expected_calibration_error(predictions)


def test_a_plot_of_differences():
    table = imbalance_table(make_scores(), "plain")
    (ax,) = plot_imbalance_methods(table, ["f1"])
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "smote",
        "focal",
    ], "the baseline is the line at 0"
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, [0.025, 0.1])
    with pytest.raises(ValueError, match="unknown metric 'f2'"):
        plot_imbalance_methods(table, ["f2"])
    with pytest.raises(ValueError, match="no model differs from the baseline"):
        plot_imbalance_methods(table[table["model"] == "plain"], ["f1"])
    plt.close("all")

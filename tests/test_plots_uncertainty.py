"""Figures of thresholds, calibration, selection and conformal sets: what is drawn is what the
tables say.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from vitlab import evaluation, plots
from vitlab.evaluation.calibration import expected_calibration_error
from vitlab.plots.evaluation import plot_threshold

CLASSES = ("functional", "defective")
DIGITS = tuple("0123456789")


def make_predictions(classes=CLASSES, num_samples=400):
    generator = np.random.default_rng(0)
    label = generator.integers(len(classes), size=num_samples)
    logits = generator.normal(size=(num_samples, len(classes))) + 2 * np.eye(len(classes))[label]
    prob = softmax(logits, axis=1)
    table = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(num_samples)],
            "split": ["val", "test"] * (num_samples // 2),
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


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_chosen_thresholds_are_marked_with_their_rules():
    predictions = make_predictions()
    curves = evaluation.threshold_table(predictions, "val")
    chosen = pd.DataFrame(
        {
            "rule": ["0.5", "f1", "cost", "recall", "youden"],
            "threshold": [0.5, 0.4, np.inf, np.nan, 0.4],
        }
    )
    ax = plot_threshold(curves, chosen=chosen)
    assert [(text.get_position()[0], text.get_text()) for text in ax.texts] == [(0.4, "F1, Youden")]
    assert len(ax.lines) == len(plot_threshold(curves).lines) + 1
    interactive = plots.iplot_threshold(curves, chosen).figure
    assert [(mark.x, mark.text) for mark in interactive.layout.annotations] == [(0.4, "F1, Youden")]
    assert not plots.iplot_threshold(curves).figure.layout.annotations


def test_recalibration_has_a_panel_for_each_method():
    predictions = make_predictions()
    tables = {"none": predictions, "temperature": evaluation.calibrate(predictions)}
    reliability = {name: evaluation.reliability_table(table) for name, table in tables.items()}
    axes = plots.plot_recalibration(reliability)
    errors = [expected_calibration_error(table) for table in tables.values()]
    assert [ax.get_title() for ax in axes] == [
        f"{n}\nECE {e:.3f}" for n, e in zip(tables, errors, strict=True)
    ]
    for ax, table in zip(axes, reliability.values(), strict=True):
        np.testing.assert_allclose(
            ax.collections[-1].get_offsets()[:, 1], table["accuracy"].dropna()
        )
    assert axes[0].get_ylabel() == "accuracy in the bin" and axes[1].get_ylabel() == ""


def test_annotators_are_drawn_with_every_image_and_the_mean():
    said = pd.DataFrame({"annotators": [0, 0, 0.5, 1, 1], "predicted": [0.1, 0.3, 0.4, 0.9, 0.7]})
    ax = plots.plot_annotators(said)
    images, means = ax.collections[:2]
    assert sorted(images.get_offsets()[:, 1]) == [0.1, 0.3, 0.4, 0.7, 0.9]
    np.testing.assert_allclose(means.get_offsets(), [[0, 0.2], [1, 0.4], [2, 0.8]])
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "0.00 (n = 2)",
        "0.50 (n = 1)",
        "1.00 (n = 2)",
    ]
    assert legend_texts(ax) == ["image", "mean of the model", "annotators"]


def test_risk_is_drawn_with_oracle_and_band():
    table = evaluation.risk_coverage_table(make_predictions())
    ax = plots.plot_risk_coverage(table)
    assert legend_texts(ax) == [
        "by confidence",
        "95% band",
        "best order of these answers",
        "in random order",
    ]
    assert ax.lines[0].get_ydata().tolist() == table["risk"].tolist()
    assert ax.lines[1].get_ydata().tolist() == table["oracle"].tolist()
    given = plt.figure().add_subplot()
    assert plots.plot_risk_coverage(table, given) is given


@pytest.mark.parametrize("classes", [CLASSES, DIGITS], ids=["binary", "multi-class"])
def test_conformal_coverage_stands_against_the_nominal(classes):
    predictions = make_predictions(classes)
    tables = {
        name: evaluation.conformal_table(predictions, by_class=name == "by class")
        for name in ("by class", "all alike")
    }
    left, right = plots.plot_conformal(tables)
    assert [text.get_text() for text in left.figure.legends[0].get_texts()] == [
        "nominal",
        *tables,
        "worst class",
    ]
    assert right.lines[0].get_ydata().tolist() == tables["by class"]["size"].tolist()
    assert (
        left.containers[1].lines[0].get_ydata().tolist() == tables["all alike"]["coverage"].tolist()
    )


def test_coverage_of_each_class_has_its_row():
    table = evaluation.conformal_class_table(make_predictions(DIGITS))
    ax = plots.plot_class_coverage({"by class": table}, 0.9)
    assert ax.containers[0].lines[0].get_xdata().tolist() == table["coverage"].tolist()
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        f"{row['class']} (n = {row['n']})" for _, row in table.iterrows()
    ]
    assert "nominal (90%)" in legend_texts(ax)


def test_tables_fold_every_interval_into_its_value():
    choice = evaluation.threshold_choice_table(make_predictions(), replicates=50)
    shown = plots.present(choice, digits=2)
    assert list(shown.columns) == [
        "threshold",
        "precision",
        "recall",
        "specificity",
        "F1",
        "cost",
        "flagged",
        "saved",
    ]
    row = choice.iloc[1]
    assert (
        shown.loc["f1", "recall"]
        == f"{row['recall']:.2f} [{row['recall_low']:.2f}, {row['recall_high']:.2f}]"
    )
    without = plots.present(
        evaluation.threshold_choice_table(make_predictions(), replicates=0), digits=2
    )
    assert without.loc["f1", "recall"] == f"{row['recall']:.2f}"

"""Figures of calibration, selection, conformal sets, differences and gaps show their tables."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from tests.test_evaluation_comparison import improve, make_experiment
from vitlab import evaluation, plots
from vitlab.evaluation.calibration import expected_calibration_error

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


def test_recalibration_has_a_panel_for_each_method():
    predictions = make_predictions()
    tables = {"none": predictions, "temperature": evaluation.calibrate(predictions)}
    reliability = {name: evaluation.reliability_table(table) for name, table in tables.items()}
    axes = plots.plot_reliability(reliability)
    errors = [expected_calibration_error(table) for table in tables.values()]
    assert [ax.get_title() for ax in axes] == [
        f"{n}\nECE {e:.3f}, n = 200" for n, e in zip(tables, errors, strict=True)
    ]
    for ax, table in zip(axes, reliability.values(), strict=True):
        np.testing.assert_allclose(
            ax.collections[-1].get_offsets()[:, 1], table["accuracy"].dropna()
        )
    assert axes[0].get_ylabel() == "accuracy in the bin" and axes[1].get_ylabel() == ""


def test_annotators_are_drawn_with_every_image_and_the_mean():
    said = pd.DataFrame({"annotators": [0, 0, 0.5, 1, 1], "predicted": [0.1, 0.3, 0.4, 0.9, 0.7]})
    ax = plots.plot_annotators(said)
    *images, means = [dots for dots in ax.collections if len(dots.get_offsets())][:4]
    heights = np.concatenate([dots.get_offsets()[:, 1] for dots in images])
    assert sorted(heights) == [0.1, 0.3, 0.4, 0.7, 0.9]
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
    legend = {text.get_text() for text in left.figure.legends[0].get_texts()}
    assert legend == {"nominal", *tables, "worst class"}
    assert right.lines[0].get_ydata().tolist() == tables["by class"]["size"].tolist()
    assert (
        left.containers[1].lines[0].get_ydata().tolist() == tables["all alike"]["coverage"].tolist()
    )


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


def test_differences_of_many_pairs_are_named_and_hollow_without_a_verdict():
    runs = make_experiment(np.random.default_rng(0), images=80, test=80, seeds=2, fixed=True)
    table = evaluation.pairwise_table(runs, "accuracy", replicates=50)
    assert table["verdict"].tolist() == ["no difference shown"]
    third = evaluation.pairwise_table(runs | {"c": runs["a"]}, "accuracy", replicates=50)
    ax = plots.plot_differences(third)
    assert ax.get_yticklabels()[0].get_text() == "b \N{MINUS SIGN} a"
    assert {line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"} == {
        "white"
    }
    assert ax.get_xlabel() == "difference in accuracy (right of 0: the first-named is better)"
    given = ax.figure.add_subplot()
    assert plots.plot_differences(third, given) is given


def test_tables_of_differences_are_presented_in_few_digits():
    a = make_predictions(num_samples=400)
    pair = {"a": {0: a}, "b": {0: improve(a, 4)}}
    table = evaluation.pairwise_table(pair, "accuracy", replicates=50)
    shown = plots.present(table.drop(columns=["model_a", "model_b"]))
    assert "[" in shown["difference"].iloc[0] and re.fullmatch(
        r"0\.\d{3}|< 0\.001", shown["p"].iloc[0]
    )
    runs = pd.DataFrame({"metric": ["f1"], "p": [1e-9], "p_holm": [np.nan]})
    assert plots.present(runs).iloc[0].tolist() == ["< 0.001", "–"]


def test_gaps_around_zero_by_column():
    rows = [
        ("size", "small", 30, -0.2, -0.3, -0.1, "worse than the rest", ""),
        ("kind", "a", 40, -0.05, -0.2, 0.1, "no difference shown", ""),
        ("size", "large", 30, 0.1, -0.1, 0.2, "no difference shown", ""),
        ("kind", "b", 4, np.nan, np.nan, np.nan, "", "4 images only"),
    ]
    table = pd.DataFrame(
        rows, columns=["column", "slice", "n", "gap", "low", "high", "verdict", "note"]
    )
    ax = plots.plot_gaps(table.assign(metric="accuracy", value=0.5))
    places = {
        label.get_text(): place
        for label, place in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)
    }
    order = ["size", "small (n = 30)", "large (n = 30)", "kind", "a (n = 40)", "b (n = 4)"]
    assert sorted(places, key=places.get) == order
    dots = {line.get_ydata()[0]: line for line in ax.lines if len(line.get_xdata()) == 1}
    assert dots[places["small (n = 30)"]].get_xdata()[0] == -0.2
    assert dots[places["small (n = 30)"]].get_markerfacecolor() != "white"
    assert dots[places["a (n = 40)"]].get_markerfacecolor() == "white"
    assert [text.get_text() for text in ax.texts] == ["4 images only"]
    assert ax.get_xlabel() == "accuracy: slice minus rest"


def test_slices_of_several_columns_stand_under_their_names():
    rows = [
        ("", "all", 70, 0.8),
        ("kind", "a", 40, 0.9),
        ("kind", "b", 30, 0.7),
        ("size", "1 to 2", 70, 0.6),
    ]
    table = pd.DataFrame(rows, columns=["column", "slice", "n", "value"]).assign(
        metric="accuracy", note=""
    )
    (ax,) = plots.plot_slices(table.assign(low=table["value"] - 0.1, high=table["value"] + 0.1))
    places = {
        label.get_text(): place
        for label, place in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)
    }
    assert sorted(places, key=places.get) == [
        "all (n = 70)",
        "kind",
        "a (n = 40)",
        "b (n = 30)",
        "size",
        "1 to 2 (n = 70)",
    ]
    dots = {
        line.get_ydata()[0]: line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1
    }
    assert dots == {places[f"{name} (n = {n})"]: value for _, name, n, value in rows}

"""Figures of comparisons show the numbers of their tables."""

import re

import numpy as np
import pandas as pd
import pytest

from tests.test_evaluation_comparison import improve, make_experiment
from tests.test_evaluation_metrics import DIGITS, make_predictions
from vitlab import plots
from vitlab.evaluation import (
    curve_band_table,
    paired_table,
    pairwise_table,
    precision_recall_table,
    roc_table,
    uncertainty_table,
)
from vitlab.plots.curves import plot_precision_recall


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_differences_of_a_pair_have_a_row_for_each_metric():
    a = make_predictions(num_samples=100)
    table = paired_table(
        a, improve(a, 10), ("old", "new"), metrics=["accuracy", "roc_auc"], replicates=50
    )
    ax = plots.plot_differences(table)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["accuracy", "ROC AUC"]
    assert ax.get_xlabel() == "difference (right of 0: new is better)"
    zero, interval, dot, *_ = ax.lines
    assert list(zero.get_xdata()) == [0, 0]
    assert (
        list(interval.get_xdata()) == table.loc[0, ["low", "high"]].tolist()
        and dot.get_xdata()[0] == table.loc[0, "difference"]
    )
    assert dot.get_markerfacecolor() != "white"
    undefined = paired_table(*[a.assign(label="functional")] * 2, metrics=["recall"], replicates=5)
    assert texts(plots.plot_differences(undefined)) == ["not defined: only functional"]


def test_differences_of_many_pairs_are_named_and_hollow_without_a_verdict():
    runs = make_experiment(np.random.default_rng(0), images=80, test=80, seeds=2, fixed=True)
    table = pairwise_table(runs, "accuracy", replicates=50)
    assert table["verdict"].tolist() == ["no difference shown"]
    third = pairwise_table(runs | {"c": runs["a"]}, "accuracy", replicates=50)
    ax = plots.plot_differences(third)
    assert ax.get_yticklabels()[0].get_text() == "b \N{MINUS SIGN} a"
    assert {line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"} == {
        "white"
    }
    assert ax.get_xlabel() == "difference in accuracy (right of 0: the first-named is better)"
    assert (
        plots.plot_differences(
            pairwise_table({"a": runs["a"]}, "accuracy", replicates=50)
        ).get_yticklabels()
        == []
    )
    given = ax.figure.add_subplot()
    assert plots.plot_differences(third, given) is given


def test_uncertainty_has_three_intervals_or_says_unknown():
    runs = {seed: make_predictions(num_samples=100, seed=seed) for seed in range(3)}
    table = uncertainty_table(runs, ["accuracy", "mcc"], replicates=50)
    axes = plots.plot_uncertainty(table)
    assert [ax.get_title() for ax in axes] == ["accuracy", "MCC"]
    total = [line for line in axes[1].lines if line.get_marker() == "|"][-1]
    assert list(total.get_xdata()) == table.loc[1, ["total_low", "total_high"]].tolist()
    (ax,) = plots.plot_uncertainty(uncertainty_table({0: runs[0]}, ["accuracy"], replicates=50))
    assert texts(ax) == ["unknown", "unknown"]


def test_bands_lie_around_their_curves():
    predictions = make_predictions(num_samples=150)
    for plot, curve, kind in (
        (plots.plot_roc, roc_table, "roc"),
        (plot_precision_recall, precision_recall_table, "precision_recall"),
    ):
        band = curve_band_table(predictions, kind, replicates=30)
        ax = plot(curve(predictions), band=band)
        (area,) = ax.collections
        corners = area.get_paths()[0].vertices
        assert (
            corners[:, 1].max() == band["high"].max() and corners[:, 1].min() == band["low"].min()
        )
    with pytest.raises(ValueError, match="no column recall"):
        plot_precision_recall(
            precision_recall_table(predictions), band=curve_band_table(predictions, replicates=5)
        )
    many = make_predictions(DIGITS[:5])
    band = curve_band_table(many, replicates=5)
    assert len(plots.plot_roc(roc_table(many), band=band).collections) == 5


def test_tables_of_differences_are_presented_in_few_digits():
    a = make_predictions(num_samples=100)
    shown = plots.present(
        paired_table(a, improve(a, 10), metrics=["accuracy"], replicates=50).drop(
            columns=["model_a", "model_b"]
        )
    )
    assert "[" in shown["difference"].iloc[0] and re.fullmatch(
        r"0\.\d{3}|< 0\.001", shown["p"].iloc[0]
    )
    runs = pd.DataFrame({"metric": ["f1"], "p": [1e-9], "p_holm": [np.nan]})
    assert plots.present(runs).iloc[0].tolist() == ["< 0.001", "–"]

"""Figures of a search, from tables of trials: with all kinds of trials, with one alone, and with
none that finished.
"""

import base64

import numpy as np
import pandas as pd
import pytest

from vitlab import plots
from vitlab.plots.tuning import TOO_FEW, best_so_far, plot_trials

ARGUMENTS = ["learning_rate", "mixup", "augment", "trained_blocks"]


@pytest.fixture
def trials():
    """As `trials_table` gives them: the finished ones first, the best on top."""
    table = pd.DataFrame(
        {
            "trial": [4, 0, 2, 1, 3],
            "state": ["finished", "finished", "finished", "pruned", "failed"],
            "value": [0.9, 0.8, 0.7, 0.5, np.nan],
            "best_epoch": [3, 2, 3, 1, 0],
            "epochs": [3, 3, 3, 2, 0],
            "seconds": [1.0, 1.1, 1.0, 0.5, 0.1],
            "learning_rate": [1e-3, 1e-4, 1e-5, 1e-2, 1e-1],
            "mixup": [0.0, 0.1, 0.4, 0.2, 0.3],
            "augment": pd.Categorical(
                ["light", "none", "light", "strong", "none"],
                ["none", "light", "strong"],
                ordered=True,
            ),
            "trained_blocks": pd.Categorical(
                ["all", "0", "2", "all", "0"], ["0", "2", "all"], ordered=True
            ),
            "note": ["", "", "", "", "FloatingPointError"],
        }
    )
    return table


@pytest.fixture
def importance():
    return pd.DataFrame({"argument": ["learning_rate", "mixup"], "importance": [0.7, 0.3]})


def test_best_so_far_by_hand(trials):
    assert best_so_far(trials, "val_accuracy").to_numpy().tolist() == [
        [0, 0.8],
        [1, 0.8],
        [2, 0.8],
        [3, 0.8],
        [4, 0.9],
    ]
    assert best_so_far(trials, "val_loss")["value"].tolist() == [0.8, 0.8, 0.7, 0.7, 0.7]


def test_trials_show_every_state(trials):
    ax = plot_trials(trials, "val_accuracy")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["finished", "pruned (best until then)", "best so far", "failed"]
    assert ax.get_ylabel() == "validation accuracy" and ax.get_xlabel() == "trial"
    finished = ax.collections[0].get_offsets()
    assert finished.tolist() == [[4, 0.9], [0, 0.8], [2, 0.7]]


def test_importance_bars_or_words(importance):
    ax = plots.plot_importance(importance)
    assert [bar.get_width() for bar in ax.patches] == [0.7, 0.3]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["learning rate", "mixup"]
    assert plots.plot_importance(importance[:0]).texts[0].get_text() == TOO_FEW


def test_interactive_figures_tell_the_same(trials):
    figure = plots.iplot_trials(trials, "val_accuracy").figure
    assert [trace.name for trace in figure.data] == ["finished", "pruned", "best so far"]
    assert (
        "trial 4: 0.9000 (epoch 3)<br>learning rate 0.001<br>mixup 0<br>augment light"
        in figure.data[0].text[0]
    )
    assert figure.layout.yaxis.title.text == "validation accuracy"
    dimensions = plots.iplot_parallel(trials, "val_accuracy").figure.data[0].dimensions
    assert [one.label for one in dimensions] == [
        "learning rate",
        "mixup",
        "augment",
        "trained blocks",
        "validation accuracy",
    ]
    assert list(dimensions[0].values) == [0, 0.5, 1], "by powers of ten, the best trial last"
    assert list(dimensions[3].ticktext) == ["0", "2", "all"] and list(dimensions[3].values) == [
        0.5,
        0,
        1,
    ]
    panels = plots.iplot_arguments(trials, "val_accuracy").figure
    assert panels.layout.xaxis.type == "log" and list(panels.layout.xaxis4.ticktext) == [
        "0",
        "2",
        "all",
    ]
    best, others = panels.data[:2]
    assert best.name == "best trial" and list(best.x) == [1e-3] and list(best.y) == [0.9]
    assert best.text == ("trial 4 (epoch 3)<br>learning rate: 0.001",) and list(others.y) == [
        0.8,
        0.7,
    ]
    losses = plots.iplot_arguments(trials.assign(value=-trials["value"]), "val_loss").figure
    assert list(losses.data[0].y) == [-0.9], "the lowest loss is the best"


@pytest.mark.parametrize("finished", [3, 1, 0])
def test_few_finished_trials_do_not_break_a_figure(trials, finished):
    few = pd.concat([trials[:finished], trials[3:]], ignore_index=True)
    figures = [
        draw(few, "val_accuracy")
        for draw in (plots.iplot_trials, plots.iplot_parallel, plots.iplot_arguments)
    ]
    for figure in figures:
        bundle = figure._repr_mimebundle_()
        assert (
            base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
            and "vitlab-plotly" in bundle["text/html"]
        )

"""Figures of a pretraining and of what it is worth: they show the numbers of their tables."""

import numpy as np
import pandas as pd
import pytest

from vitlab import plots


def test_the_log_is_drawn_over_its_epochs():
    log = pd.DataFrame({"epoch": [1, 2], "loss": [3.0, 2.0], "accuracy": [0.1, 0.2]})
    axes = plots.plot_pretraining(log)
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), [3.0, 2.0])
    np.testing.assert_array_equal(axes[1].lines[0].get_xydata(), [[1, 0.1], [2, 0.2]])


def test_lines_run_through_the_means_over_seeds():
    rows = [
        ("pretrained", 5, 0, 0.6),
        ("pretrained", 5, 1, 0.8),
        ("pretrained", 50, 0, 0.9),
        ("scratch", 5, 0, 0.3),
    ]
    ax = plots.plot_hunger(
        pd.DataFrame(rows, columns=["model", "images_per_class", "seed", "accuracy"])
    )
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[5, 0.7], [50, 0.9]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "pretrained",
        "scratch",
    ]
    assert list(ax.get_xticks()) == [5, 50]


def test_a_table_without_its_columns_is_refused():
    with pytest.raises(ValueError, match="images_per_class"):
        plots.plot_hunger(pd.DataFrame({"model": ["a"], "seed": [0], "accuracy": [1.0]}))

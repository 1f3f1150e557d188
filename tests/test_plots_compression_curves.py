"""Curves of compression: the points stand where the table says."""

import numpy as np
import pandas as pd
import pytest

from vitlab import plots

KEPT = [1.0, 0.8, 0.6]


def pruning():
    parts = {"taylor": [0.9, 0.88, 0.7], "magnitude": [0.9, 0.8, 0.6]}
    rows = [
        pd.DataFrame(
            {
                "importance": name,
                "keep": KEPT,
                "multiply_adds": [1.0, 0.9, 0.8],
                "metric": "balanced_accuracy",
                "value": value,
            }
        )
        for name, value in parts.items()
    ]
    table = pd.concat(rows)  # the index has doubles, as of a concatenation
    return table.assign(low=table["value"] - 0.02, high=table["value"] + 0.01)


def merging():
    table = pd.DataFrame(
        {
            "merged": [0, 4, 8],
            "metric": "accuracy",
            "value": [0.9, 0.89, 0.8],
            "p50_ms": [20.0, 15.0, 10.0],
        }
    )
    table = table.assign(
        low=table["value"] - 0.02, high=table["value"] + 0.01, ratio=[1.0, 0.75, 0.5]
    )
    return table.assign(batch_size=1, threads=2)


def test_pruning_has_a_line_for_each_importance():
    ax = plots.plot_pruning_curve(pruning())
    first, second = (container.lines[0] for container in ax.containers)
    assert first.get_xdata() == pytest.approx(
        [0.8, 0.9, 1.0], abs=0.002
    ) and first.get_ydata().tolist() == [0.7, 0.88, 0.9]
    assert (
        second.get_ydata().tolist() == [0.6, 0.8, 0.9] and second.get_color() != first.get_color()
    )
    bars = np.array(ax.containers[0].lines[2][0].get_segments())[:, :, 1]
    assert bars == pytest.approx(np.array([[0.68, 0.71], [0.86, 0.89], [0.88, 0.91]]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "gradient (Taylor)",
        "magnitude",
    ]
    level = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert level[0].get_ydata()[0] == 0.9 and ax.get_ylabel() == "balanced accuracy"


def test_merging_has_the_score_and_the_time():
    score, latency = plots.plot_merging_curve(merging().iloc[::-1])
    assert score.containers[0].lines[0].get_xydata().tolist() == [[0, 0.9], [4, 0.89], [8, 0.8]]
    assert latency.lines[0].get_xydata().tolist() == [[0, 20], [4, 15], [8, 10]]
    assert [text.get_text() for text in latency.texts] == ["75%", "50%"]
    assert (
        latency.get_title() == "median latency (ms, batch 1, 2 threads)"
        and latency.get_ylim()[0] == 0
    )


@pytest.mark.parametrize(
    ("plot", "table", "column"),
    [
        (plots.plot_pruning_curve, pruning(), "multiply_adds"),
        (plots.plot_merging_curve, merging(), "merged"),
    ],
)
def test_tables_that_lack_a_column(plot, table, column):
    with pytest.raises(ValueError, match=column):
        plot(table.drop(columns=column))

"""Figures of compression: what stands where, labels that do not overlap, and bad tables."""

import numpy as np
import pandas as pd
import pytest

from tests.test_compress_benchmark import AFTER, BEFORE
from vitlab import plots
from vitlab.compress.changes import change_table, changed_images
from vitlab.plots.compression import find_front

CROWD = [
    ("ViT-B fp32", 232, 344, 0.952),
    ("ViT-B ONNX fp32", 180, 343, 0.952),
    ("ViT-B int8", 61, 89, 0.949),
    ("ViT-B pruned int8", 38, 52, 0.945),
    ("ViT-S fp32", 70, 86, 0.941),
    ("ViT-S int8", 20, 23, 0.938),
    ("ViT-S bf16", 22, 44, 0.9405),
    ("ViT-Ti int8", 9, 7, 0.921),
]
LOST = changed_images(BEFORE, AFTER)


def make_table(rows=CROWD):
    table = pd.DataFrame(rows, columns=["variant", "p50_ms", "size_mb", "value"])
    table = table.assign(
        low=table["value"] - 0.013,
        high=table["value"] + 0.01,
        metric="balanced_accuracy",
        threads=2,
    )
    slow = table.assign(batch_size=32, p50_ms=20 * table["p50_ms"])
    return pd.concat([table.assign(batch_size=1), slow], ignore_index=True)


def test_the_front_by_hand():
    cost, value = np.array([1, 2, 2, 3, 4, 1]), np.array([5, 7, 6, 7, 8, 5])
    assert find_front(cost, value).tolist() == [True, True, False, False, True, True]


def test_pareto_dots_front_and_axes():
    (ax,) = plots.iplot_pareto(make_table(), 1).static.axes
    dots = {tuple(dot.get_offsets()[0]): dot for dot in ax.collections}
    assert sorted(dots) == sorted((float(ms), score) for _, ms, _, score in CROWD)
    areas = [dots[float(ms), score].get_sizes()[0] for _, ms, _, score in CROWD]
    assert areas[0] / areas[2] == pytest.approx(344 / 89)
    hollow = {
        place[0] for place, dot in dots.items() if tuple(dot.get_facecolor()[0][:3]) == (1, 1, 1)
    }
    assert hollow == {232, 70}
    front = ax.lines[0]
    assert front.get_xdata().tolist() == [9, 20, 22, 38, 61, 180]
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "median latency (ms, batch 1, 2 threads); area: size on disk"
    assert ax.get_ylabel() == "balanced accuracy"
    bars = [line.get_ydata() for line in ax.lines[1:]]
    assert np.ptp(bars, axis=1) == pytest.approx([0.023] * 8)


def test_pareto_of_another_batch_size_and_without_a_size():
    (ax,) = plots.iplot_pareto(make_table(), batch_size=32).static.axes
    assert ax.lines[0].get_xdata()[0] == 180
    assert "batch 32" in ax.get_xlabel()
    unsized = make_table().head(3).assign(size_mb=[344, np.nan, 89])
    (ax,) = plots.iplot_pareto(unsized, 1).static.axes
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["ViT-B fp32, 344 MB", "ViT-B ONNX fp32, unknown size", "ViT-B int8, 89 MB"]


def test_pareto_to_explore():
    shown = plots.iplot_pareto(make_table(), 1)
    behind, on, front = shown.figure.data
    assert list(front.x) == [9, 20, 22, 38, 61, 180]
    assert sorted(on.text) == sorted({name for name, *_ in CROWD} - {"ViT-B fp32", "ViT-S fp32"})
    assert list(behind.text) == [
        "ViT-B fp32",
        "",
    ], "of those behind the front the first side alone is named"
    assert behind.customdata[1][0] == "ViT-S fp32"
    assert behind.customdata[0].tolist() == ["ViT-B fp32", "344 MB", "[0.939, 0.962]"]
    assert shown.figure.layout.xaxis.type == "log"
    assert shown.to_png().startswith(b"\x89PNG")


def test_drops_have_their_intervals_and_counts():
    table = change_table(BEFORE, AFTER)
    ax = plots.plot_drop(table)
    assert [label.get_text() for label in ax.get_yticklabels()[:2]] == ["label", "group"]
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == pytest.approx(table["change"].tolist())
    spans = [line.get_xdata() for line in ax.lines if line.get_marker() == "|"]
    assert np.array(spans) == pytest.approx(table[["low", "high"]].to_numpy())
    names = [label.get_text() for label in ax.get_yticklabels()[2:]]
    counts = [name.partition(": ")[2].partition(" (")[0] for name in names]
    assert counts == ["−5 +1", "−3 +1", "−2 +0", "−4 +1", "−1 +0"]
    zero = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert zero[0].get_xdata() == [0, 0]


def test_drops_are_filled_where_the_interval_leaves_out_zero():
    table = change_table(BEFORE, AFTER, by=["label"]).assign(high=[-0.1, -0.1, 0.1])
    dots = [line for line in plots.plot_drop(table).lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, False, True]


def test_a_slice_too_small_says_so():
    groups = ["few"] * 9 + ["many"] * 15
    ax = plots.plot_drop(change_table(BEFORE.assign(group=groups), AFTER, by=["group"]))
    assert [text.get_text() for text in ax.texts] == ["9 images only"]


def test_lost_images_with_both_answers():
    images = np.zeros((len(LOST), 8, 8))
    axes = plots.plot_lost(images, LOST)
    assert axes[0].get_title() == "s001\ntrue: cat\ncat → dog\np(true): 90% → 10%"
    assert axes[5].get_title() == "s010\ntrue: cat\ndog → cat\np(true): 20% → 60%"
    (ax,) = plots.plot_lost([], LOST.head(0))
    assert ax.texts[0].get_text() == "no image was lost"


def test_bad_tables_of_compression():
    table = make_table()
    with pytest.raises(ValueError, match="columns missing: p50_ms"):
        plots.iplot_pareto(table.drop(columns="p50_ms"), 1)
    with pytest.raises(ValueError, match=r"unknown batch_size .8.*1, 32"):
        plots.iplot_pareto(table, batch_size=8)
    with pytest.raises(ValueError, match="table has no rows"):
        plots.iplot_pareto(table.head(0), 1)
    with pytest.raises(ValueError, match="2 images and 6 titles"):
        plots.plot_lost([np.zeros((4, 4))] * 2, LOST)
    with pytest.raises(ValueError, match="columns missing: label"):
        plots.plot_lost([], LOST.drop(columns="label"))


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

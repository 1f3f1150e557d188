"""Figures of compression: what stands where, labels that do not overlap, and bad tables."""

import numpy as np
import pandas as pd
import pytest

from tests.test_compress_losses import AFTER, BEFORE
from vitlab import plots
from vitlab.compress.losses import drop_table, lost_images
from vitlab.plots.pareto import _choose_ticks, find_front, plot_pareto

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
LOST = lost_images(BEFORE, AFTER)


def make_table(rows=CROWD):
    table = pd.DataFrame(rows, columns=["side", "p50_ms", "size_mb", "value"])
    table = table.assign(
        low=table["value"] - 0.013,
        high=table["value"] + 0.01,
        metric="balanced_accuracy",
        threads=2,
    )
    slow = table.assign(batch_size=32, p50_ms=20 * table["p50_ms"])
    return pd.concat([table.assign(batch_size=1), slow], ignore_index=True)


@pytest.mark.parametrize(
    ("times", "ticks"),
    [((9, 232), [10, 20, 50, 100, 200]), ((2.1, 4.8), [2, 3, 4, 5]), ((3.6, 17), [5, 10, 20])],
)
def test_ticks_of_a_logarithmic_axis(times, ticks):
    assert _choose_ticks(pd.Series(times)) == pytest.approx(ticks)


def test_the_front_by_hand():
    cost, value = np.array([1, 2, 2, 3, 4, 1]), np.array([5, 7, 6, 7, 8, 5])
    assert find_front(cost, value).tolist() == [True, True, False, False, True, True]


def test_pareto_dots_front_and_axes():
    ax = plot_pareto(make_table(), 1)
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
    ax = plot_pareto(make_table(), batch_size=32)
    assert ax.lines[0].get_xdata()[0] == 180
    assert "batch 32" in ax.get_xlabel()
    ax = plot_pareto(make_table().head(3).assign(size_mb=[344, np.nan, 89]), 1)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["ViT-B fp32, 344 MB", "ViT-B ONNX fp32, size not known", "ViT-B int8, 89 MB"]


def test_pareto_to_explore():
    shown = plots.iplot_pareto(make_table(), 1)
    front, on, behind = shown.figure.data
    assert list(front.x) == [9, 20, 22, 38, 61, 180]
    assert sorted(on.text) == sorted({name for name, *_ in CROWD} - {"ViT-B fp32", "ViT-S fp32"})
    assert list(behind.text) == [
        "ViT-B fp32",
        "",
    ], "of those behind the front the first side alone is named"
    assert behind.customdata[1][0] == "ViT-S fp32"
    assert behind.customdata[0].tolist() == ["ViT-B fp32", "344 MB", "0.939", "0.962"]
    assert shown.figure.layout.xaxis.type == "log"
    assert shown.to_png().startswith(b"\x89PNG")


def test_ingredients_are_shares_of_the_first():
    rows = make_table().iloc[[0, 2, 5]]
    axes = plots.plot_ingredients(rows, 1)
    assert [ax.get_title() for ax in axes] == ["latency", "size on disk", "balanced accuracy"]
    shares = [[bar.get_width() for bar in ax.patches] for ax in axes]
    assert shares[0] == pytest.approx([1, 61 / 232, 20 / 232])
    assert [text.get_text() for text in axes[1].texts] == [
        "344 MB",
        "89 MB (25.9%)",
        "23 MB (6.7%)",
    ]
    assert [text.get_text() for text in axes[2].texts] == [
        "0.952",
        "0.949 (−0.3 points)",
        "0.938 (−1.4 points)",
    ]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [
        "ViT-B fp32",
        "ViT-B int8",
        "ViT-S int8",
    ]
    assert len(plots.plot_ingredients(rows.assign(size_mb=np.nan), 1)) == 2
    blank = plots.plot_ingredients(rows.assign(value=[0.0, 0.0, 0.5]), 1)[2]
    assert [bar.get_width() for bar in blank.patches] == [
        0,
        0,
        0.5,
    ], "a score of 0 leaves the panel readable"


def test_drops_have_their_intervals_and_counts():
    table = drop_table(BEFORE, AFTER)
    ax = plots.plot_drop(table)
    assert [label.get_text() for label in ax.get_yticklabels()[:2]] == ["label", "group"]
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == pytest.approx(table["change"].tolist())
    spans = [line.get_xdata() for line in ax.lines if line.get_marker() == "|"]
    assert np.array(spans) == pytest.approx(table[["low", "high"]].to_numpy())
    assert [text.get_text() for text in ax.texts] == ["−5 +1", "−3 +1", "−2 +0", "−4 +1", "−1 +0"]
    zero = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert zero[0].get_xdata() == [0, 0]


def test_drops_are_filled_where_the_interval_leaves_out_zero():
    table = drop_table(BEFORE, AFTER, by=["label"]).assign(high=[-0.1, -0.1, 0.1])
    dots = [line for line in plots.plot_drop(table).lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, False, True]


def test_a_slice_too_small_says_so():
    ax = plots.plot_drop(drop_table(BEFORE, AFTER, least=13))
    assert [text.get_text() for text in ax.texts][1:] == ["12 images only"] * 4


def test_lost_images_with_both_answers():
    images = np.zeros((len(LOST), 8, 8))
    axes = plots.plot_lost(images, LOST)
    assert axes[0].get_title() == "s001\ntrue: cat\ncat → dog\np(true): 90% → 10%"
    assert axes[5].get_title() == "s010\ntrue: cat\ndog → cat\np(true): 20% → 60%"
    assert [text.get_text() for text in axes[0].figure.legends[0].get_texts()] == ["gained", "lost"]
    assert axes[0].spines["left"].get_edgecolor() != axes[5].spines["left"].get_edgecolor()
    assert plots.plot_lost(images[:5], LOST.head(5))[0].figure.legends == []
    (ax,) = plots.plot_lost([], LOST.head(0))
    assert ax.texts[0].get_text() == "no image was lost or won"


def test_bad_tables_of_compression():
    table = make_table()
    with pytest.raises(ValueError, match="columns missing: p50_ms"):
        plot_pareto(table.drop(columns="p50_ms"), 1)
    with pytest.raises(ValueError, match=r"unknown batch_size .8.*1, 32"):
        plot_pareto(table, batch_size=8)
    with pytest.raises(ValueError, match="table has no rows"):
        plots.plot_ingredients(table.head(0), 1)
    with pytest.raises(ValueError, match="2 images do not go with 6 rows"):
        plots.plot_lost([np.zeros((4, 4))] * 2, LOST)
    with pytest.raises(ValueError, match="lacks the columns kind"):
        plots.plot_lost([], LOST.drop(columns="kind"))

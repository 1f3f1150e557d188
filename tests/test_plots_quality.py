"""Pictures of the worst images and of clusters: what is framed, named and left blank."""

import matplotlib.colors as colors
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vitlab.plots import data, plot_clusters, plot_worst
from vitlab.plots.style import series_colors

IMAGES = {f"s{row}": Image.new("L", (8, 6), 20 * row) for row in range(10)}


def test_worst_images_are_in_rows_with_scores_and_frames():
    rows = [
        ("dark", "s0", 0.1, True),
        ("dark", "s1", 0.4567, False),
        ("wrong_label", "s2", 1e-8, True),
    ]
    axes = plot_worst(
        IMAGES, pd.DataFrame(rows, columns=["issue", "sample_id", "score", "flagged"])
    )
    assert axes.shape == (2, 2) and axes[1, 1] is None
    assert [axes[0, 0].get_title(), axes[0, 1].get_title(), axes[1, 0].get_title()] == [
        "0.100",
        "0.457",
        "1e-08",
    ]
    assert [
        any(spine.get_visible() for spine in ax.spines.values()) for ax in (*axes[0], axes[1, 0])
    ] == [True, False, True]
    assert {text.get_text() for ax in axes[0, 0].figure.axes for text in ax.texts} == {
        "dark",
        "wrong\nlabel",
    }
    assert np.array_equal(
        np.asarray(axes[0, 1].images[0].get_array()) * 255, np.asarray(IMAGES["s1"])
    )


def test_an_image_that_cannot_be_drawn_is_a_blank_with_its_name():
    worst = pd.DataFrame(
        [("unreadable", "broken", 0.0, True)], columns=["issue", "sample_id", "score", "flagged"]
    )
    axes = plot_worst({}, worst)
    assert axes[0, 0].texts[0].get_text() == "broken" and axes[0, 0].get_title() == "0"


def test_clusters_are_framed_in_the_colour_of_their_split(monkeypatch):
    monkeypatch.setattr(data, "MOST_IMAGES", 2)
    samples = pd.DataFrame(
        {"sample_id": list(IMAGES), "label": ["a", "b"] * 5, "split": ["train", "test"] * 5}
    )
    rows = [("s4", "s4", 2), ("s5", "s4", 2), ("s0", "s0", 3), ("s1", "s0", 3), ("s2", "s0", 3)]
    clusters = pd.DataFrame(rows, columns=["sample_id", "cluster", "size"])
    axes = plot_clusters(IMAGES, clusters, samples)
    assert axes.shape == (2, 2) and axes[1, 0].get_title() == "s0\na"
    wanted = series_colors(["train", "val", "test"])
    for ax, split in zip(axes[0], ("train", "test"), strict=True):
        assert colors.same_color(ax.spines["top"].get_edgecolor(), wanted[split])
    assert [text.get_text() for text in axes[0, 0].figure.legends[0].texts] == [
        "train",
        "val",
        "test",
    ]
    assert {text.get_text() for ax in axes[0, 0].figure.axes for text in ax.texts} == {
        "2 images",
        "3 images",
    }


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no image to draw"):
        plot_worst({}, pd.DataFrame(columns=["issue", "sample_id", "score", "flagged"]))

"""The gallery of many methods, its colours and titles; what it always did is tested in
test_plots.py.
"""

import numpy as np
import pandas as pd
import pytest

from vitlab import plots
from vitlab.plots.attribution import PALE, STRONG, overlay_colors
from vitlab.schema import AttributionMap


def make_maps(count, images, signed=False):
    values = np.random.default_rng(0).random((images, 8, 8)).astype(np.float32) - 0.5 * signed
    ids = tuple(map(str, range(images)))
    return [
        AttributionMap(values, f"method_{number}", ("a",) * images, ids, signed)
        for number in range(count)
    ]


def row_of(ax):
    return ax.get_subplotspec().rowspan.start


def test_many_methods_are_rows_with_their_names_beside_them():
    axes = plots.plot_attributions(np.full((8, 8, 8, 3), 0.5), make_maps(10, 8), list("abcdefgh"))
    assert axes.shape == (8, 11)
    assert [row_of(ax) for ax in axes[3]] == list(range(11)), (
        "an image and its maps below each other"
    )
    assert [ax.get_title() for ax in axes[:, 0]] == list("abcdefgh")
    assert [ax.get_ylabel() for ax in axes[0]] == [
        "image",
        *(f"method {number}" for number in range(10)),
    ]
    assert axes[0, 1].yaxis.label.get_rotation() == 0
    assert not any(ax.get_ylabel() for ax in axes[1])


def test_more_than_eight_images_come_in_blocks():
    axes = plots.plot_attributions(np.full((10, 8, 8, 3), 0.5), make_maps(7, 10))
    assert axes.shape == (10, 8)
    parents = [ax.figure for ax in axes[:, 0]]
    assert len(set(parents[:8])) == 1 and parents[8] is parents[9] is not parents[0]
    assert [ax.get_ylabel() for ax in axes[8, :2]] == [
        "image",
        "method 0",
    ], "each block names its rows"
    figure = axes[0, 0].get_figure(root=True)
    assert sum(len(ax.images) for ax in figure.findobj(type(axes[0, 0]))) == 10 * (1 + 2 * 7), (
        "and no panel is left empty"
    )


def test_few_images_with_many_methods_get_several_rows_each():
    axes = plots.plot_attributions(np.full((2, 8, 8, 3), 0.5), make_maps(9, 2), ["a", "b"])
    assert axes.shape == (2, 10)
    assert [row_of(ax) for ax in axes[0]] == [0] * 5 + [1] * 5 and row_of(axes[1, 0]) == 2
    assert [axes[1, 0].get_title(), axes[1, 9].get_title(), axes[1, 0].get_ylabel()] == [
        "image",
        "method 8",
        "b",
    ]


def test_few_methods_stay_columns():
    axes = plots.plot_attributions(np.full((8, 8, 8, 3), 0.5), make_maps(5, 8), list("abcdefgh"))
    assert [row_of(ax) for ax in axes[:, 0]] == list(range(8))
    assert [ax.get_title() for ax in axes[0]] == [
        "image",
        *(f"method {number}" for number in range(5)),
    ]


def test_colours_fade_to_nothing_where_a_map_says_nothing():
    signed, unsigned = overlay_colors(True), overlay_colors(False)
    assert unsigned(0.0)[3] == 0 and unsigned(1.0)[3] == pytest.approx(STRONG)
    assert signed(0.0)[3] == signed(1.0)[3] == pytest.approx(STRONG) and signed(0.5)[3] < 0.01
    red, blue = signed(1.0), signed(0.0)
    assert red[0] > red[2] and blue[2] > blue[0]


def test_the_image_is_paler_under_signed_maps():
    images = np.full((1, 8, 8, 3), 0.5)
    plain = plots.plot_attributions(images, make_maps(1, 1))[0, 1].images[0].get_array()
    pale = plots.plot_attributions(images, make_maps(1, 1, signed=True))[0, 1].images[0].get_array()
    assert (plain == 0.5).all()
    np.testing.assert_allclose(pale, 0.5 * (1 - PALE) + PALE)


def test_titles_from_the_table_of_predictions():
    table = pd.DataFrame({"label": ["good", "bad"], "pred": ["good", "good"]})
    assert plots.title_images(table) == ["good\n→ good", "bad\n→ good"]
    full = table.assign(kind="unsure", group="mono", confidence=[0.512, 0.9])
    assert plots.title_images(full)[0] == "unsure\nmono\ngood\n→ good\n(0.51)"
    with pytest.raises(
        ValueError, match="table of chosen images: columns missing: pred; the table has label"
    ):
        plots.title_images(table[["label"]])


def test_what_does_not_go_together():
    images = np.zeros((2, 8, 8, 3))
    with pytest.raises(ValueError, match="2 images and 0 maps: give at least one of each"):
        plots.plot_attributions(images, [])
    with pytest.raises(ValueError, match="3 titles do not go with 2 images"):
        plots.plot_attributions(images, make_maps(1, 2), list("abc"))

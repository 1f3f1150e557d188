"""Attributions over their images, and counterfactuals: what stands where, colours, titles."""

import numpy as np
import pandas as pd
import pytest

from vitlab import plots
from vitlab.plots.attribution import PALE, STRONG, block_means, overlay_colors, relative
from vitlab.schema import AttributionMap


def make_maps(count, images, signed=False):
    values = np.random.default_rng(0).random((images, 8, 8)).astype(np.float32) - 0.5 * signed
    ids = tuple(map(str, range(images)))
    return [
        AttributionMap(values, f"method_{number}", ("a",) * images, ids, signed)
        for number in range(count)
    ]


def make_chosen(count):
    table = pd.DataFrame({"label": [f"l{number}" for number in range(count)], "pred": "b"})
    return table.assign(kind="unsure", group="mono", confidence=0.512)


def row_of(ax):
    return ax.get_subplotspec().rowspan.start


def test_many_methods_are_rows_with_their_names_beside_them():
    axes = plots.plot_attributions(np.full((8, 8, 8, 3), 0.5), make_maps(10, 8), make_chosen(8))
    assert axes.shape == (8, 11)
    assert [row_of(ax) for ax in axes[3]] == list(range(11)), (
        "an image and its maps below each other"
    )
    assert axes[7, 0].get_title() == "unsure\nmono\nl7\n→ b\n(0.51)"
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
    axes = plots.plot_attributions(np.full((2, 8, 8, 3), 0.5), make_maps(9, 2), make_chosen(2))
    assert axes.shape == (2, 10)
    assert [row_of(ax) for ax in axes[0]] == [0] * 5 + [1] * 5 and row_of(axes[1, 0]) == 2
    assert [axes[1, 0].get_title(), axes[1, 9].get_title(), axes[1, 0].get_ylabel()] == [
        "image",
        "method 8",
        "unsure\nmono\nl1\n→ b\n(0.51)",
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


def test_a_map_is_relative_to_its_own_strength():
    assert relative(np.full((10, 10), 4.0)).max() == 1
    assert relative(np.full((4, 4), -2.0)).min() == -1
    assert (relative(np.zeros((4, 4))) == 0).all()


def test_maps_of_single_pixels_are_drawn_as_means_over_blocks():
    values = np.arange(2 * 60 * 50, dtype=float).reshape(2, 60, 50)
    blocks = block_means(values, cells=20)  # of 3 pixels a side; the last column of blocks has 2
    assert blocks.shape == (2, 20, 17)
    assert blocks[1, 4, 5] == pytest.approx(values[1, 12:15, 15:18].mean())
    assert blocks[0, 0, -1] == pytest.approx(values[0, :3, 48:].mean())
    np.testing.assert_array_equal(block_means(values, cells=100), values)


def test_a_colour_bar_for_each_kind_of_map():
    maps = [*make_maps(1, 2), *make_maps(1, 2, signed=True)]
    axes = plots.plot_attributions(np.full((2, 8, 8, 3), 0.5), maps)
    assert {ax.images[-1].get_clim() for ax in axes[:, 1]} == {(0, 1)}
    assert {ax.images[-1].get_clim() for ax in axes[:, 2]} == {(-1, 1)}
    root = axes[0, 0].get_figure(root=True)
    labels = [ax.get_xlabel() for ax in root.axes if ax.get_xlabel()]
    unit = "99th percentile of the map"
    assert labels == [f"attribution (1 = {unit})", f"evidence (±1 = {unit})"]


@pytest.mark.parametrize(
    ("maps", "chosen", "message"),
    [
        ([], None, "2 images and 0 maps: give at least one of each"),
        (make_maps(1, 3), None, "method_0: 3 maps do not match 2 images"),
        (make_maps(1, 2), make_chosen(3), "3 rows of predictions do not match 2 images"),
        (make_maps(1, 2), make_chosen(2)[["label"]], "chosen images: columns missing: pred"),
    ],
)
def test_what_does_not_go_together(maps, chosen, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_attributions(np.zeros((2, 8, 8, 3)), maps, chosen)


# Counterfactuals


def make_removed(*marked):
    removed = np.zeros((len(marked), 4, 5), bool)
    for cells, row in zip(removed, marked, strict=True):
        for place in row:
            cells[place] = True
    return removed


def draw(removed, before=("good", "bad"), after=("bad", "bad"), found=(True, False), **options):
    images = np.random.default_rng(0).random((len(removed), 40, 50, 3))
    return plots.plot_counterfactuals(
        images, images[::-1], removed, before, after, found, **options
    )


def test_captions_say_what_changed_with_how_many_patches():
    axes = draw(make_removed([(1, 1), (1, 2)], []))
    assert axes.shape == (2, 2)
    assert [first.get_title() for first, _ in axes] == ["good", "bad"]
    assert [second.get_title() for _, second in axes] == [
        "→ bad\n2 of 20 patches",
        "no change found",
    ]
    names = [text.get_text() for ax in axes[0, 0].figure.axes for text in ax.texts]
    assert names == ["image", "patches\nremoved"]


def test_the_outline_runs_around_the_cells_and_not_between_them():
    axes = draw(make_removed([(1, 1), (1, 2)], [(0, 0)]))
    (outline,) = axes[0, 1].collections[0].get_paths()
    corners = outline.get_extents()  # cells of 10 x 10 pixels
    np.testing.assert_allclose(corners.get_points(), [[9.5, 9.5], [29.5, 19.5]])
    inside = (outline.vertices[:, 0] > 11) & (outline.vertices[:, 0] < 28)
    assert set(outline.vertices[inside, 1]) == {9.5, 19.5}
    assert len(axes[1, 1].collections[0].get_paths()[0].to_polygons()) == 1, "closed at the border"


def test_many_images_come_in_blocks():
    removed = make_removed(*[[(0, 0)]] * 8)
    axes = draw(removed, ["good"] * 8, ["bad"] * 8, [True] * 8)
    assert axes.shape == (8, 2)
    rows = [[ax.get_subplotspec().rowspan.start for ax in pair] for pair in axes]
    assert rows == [[0, 1]] * 4 + [[2, 3]] * 4


def test_counts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"have 1, 1, 1, 2, 2, 2 entries: give as many of each"):
        draw(make_removed([(0, 0)]))
    with pytest.raises(ValueError, match="at least one"):
        draw(np.zeros((0, 4, 5), bool), [], [], [])

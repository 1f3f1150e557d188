"""Every figure keeps one contract, and draws what its table says."""

import inspect
import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image
from scipy.stats import norm, sem, t

from tests import figures
from tests.figures import CLASSES, DIGITS, FIGURES, make_predictions
from vitlab import evaluation, plots
from vitlab.plots import comparison, images, style, training, trust
from vitlab.plots.interactive import Interactive

A4 = (8.01, 11.0)  # inches: the widest figure, and the text block of a page with room for a caption


@pytest.fixture(autouse=True)
def styled():
    with mpl.rc_context(), pd.option_context("display.max_colwidth", 50):
        plots.set_style()
        yield


def texts(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def legend(ax):
    found = ax.get_legend() or ax.get_figure(root=True).legends[0]
    return [text.get_text() for text in found.get_texts()]


def by_label(ax):
    return {line.get_label(): line for line in ax.lines}


def dots(ax, markers="o<>x"):
    """(value, filled) of each dot of a row, without lines of reference and intervals."""
    lines = [line for line in ax.lines if line.get_marker() in markers and len(line.get_xdata())]
    return [(line.get_xdata()[0], line.get_markerfacecolor() != "white") for line in lines]


def draw(name):
    return FIGURES[name]()


# The contract


def test_every_figure_has_an_example():
    drawn = {name for name in plots.__all__ if name.startswith(("plot_", "iplot_"))}
    assert drawn == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_contract(name, monkeypatch):
    """Axes or an Interactive; nothing shown, no setting changed; labels inside the figure, none
    over another; as large as a page at most.
    """
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("a figure shows itself"))
    before = dict(mpl.rcParams)
    drawn = draw(name)
    assert dict(mpl.rcParams) == before
    assert isinstance(drawn, Interactive) == name.startswith("iplot_")
    if isinstance(drawn, Interactive):
        assert plt.get_fignums() == [], "the twin is not drawn a second time"
        figure = drawn.static
        if isinstance(figure, str):
            return
    else:
        assert isinstance(drawn, (Axes, np.ndarray))
        assert all(isinstance(ax, Axes) for ax in np.ravel(drawn) if ax is not None)
        figure = next(ax for ax in np.ravel(drawn) if ax is not None).get_figure(root=True)
    figure.draw_without_rendering()
    assert (figure.get_size_inches() <= A4).all()
    boxes = {text: text.get_window_extent() for text in shown_texts(figure)}
    assert boxes, "a figure without a word"
    page = figure.bbox.padded(9)
    level = [text for text in boxes if text.get_rotation() == 0]
    for place, text in enumerate(level):
        box = boxes[text]
        assert page.containsx(box.x0) and page.containsx(box.x1), f"{text.get_text()!r} is cut off"
        assert page.containsy(box.y0) and page.containsy(box.y1), f"{text.get_text()!r} is cut off"
        for other in level[place + 1 :]:
            both = mpl.transforms.Bbox.intersection(box, boxes[other])
            covered = 0 if both is None else both.width * both.height
            assert covered < 30, f"{text.get_text()!r} lies on {other.get_text()!r}"


def shown_texts(figure):
    """All texts but those of ticks beyond the ends of their axis."""
    hidden = set()
    for ax in figure.findobj(Axes):
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            beyond = [tick for tick in ticks if not low <= tick.get_loc() <= high]
            hidden |= {label for tick in beyond for label in (tick.label1, tick.label2)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    return [text for text in texts if text not in hidden]


@pytest.mark.parametrize(
    "name", [name for name in FIGURES if "ax" in inspect.signature(getattr(plots, name)).parameters]
)
def test_axes_that_are_given_are_drawn_on(name, monkeypatch):
    given = plt.figure(layout="constrained").add_subplot()
    function = getattr(plots, name)
    monkeypatch.setattr(plots, name, lambda *args, **kw: function(*args, **kw, ax=given))
    assert draw(name) is given and len(plt.get_fignums()) == 1


# Style


def test_a_class_has_one_colour_everywhere():
    colors = style.class_colors(CLASSES)
    bars = draw("plot_class_balance")[0].patches
    assert [to_hex(bar.get_facecolor()) for bar in bars] == list(colors.values())
    frame = draw("plot_sample_grid")[0].spines["left"]
    assert to_hex(frame.get_edgecolor()) == colors["defective"]
    recall = draw("plot_history")[2].lines
    assert [line.get_color() for line in recall[:2]] == list(colors.values())
    dot = draw("iplot_intensities").static.axes[0].collections[0]
    assert to_hex(dot.get_facecolor()[0][:3]) in colors.values()


def test_colours_never_run_out_and_differ():
    names = [str(i) for i in range(25)]
    for colors in (style.class_colors(names), style.series_colors(names)):
        assert len(set(colors.values())) == 25
    series = style.series_colors("abc")
    assert set(style.class_colors(CLASSES).values()).isdisjoint(series.values())


def test_images_keep_their_range_of_values():
    ax = plt.figure().add_subplot()
    style.show_image(ax, np.full((4, 4), 51, np.uint8))
    style.show_image(ax, np.full((4, 4), 0.2))
    style.show_image(ax, Image.fromarray(np.full((4, 4), 13107, np.uint16)))
    assert [float(image.get_array()[0, 0]) for image in ax.images] == pytest.approx([0.2, 0.2, 0.2])
    assert all(image.get_clim() == (0, 1) for image in ax.images)


def test_names_are_shown_as_they_are():
    names = ["$x$ and $y$", "<b>bold", "__background__", "back\\slash", "%{x}"]
    table = pd.DataFrame(np.eye(5, dtype=int), index=names, columns=names)
    ax = plots.plot_confusion(table)
    ax.figure.draw_without_rendering()
    assert labels(ax.xaxis) == names
    assert not any(label.get_parse_math() for label in ax.get_xticklabels())
    assert "tex2jax_ignore" in pd.DataFrame({"a": ["$x$"]})._repr_html_()
    recall = plots.plot_history(figures.make_history(classes=["__background__", "a"]))[2]
    assert legend(recall) == [style.legend_name("__background__"), "a"]


def test_logarithmic_axes_have_plain_numbers():
    ax = style.new_axes(None, 2)
    ax.plot([1e-4, 100], [0, 1])
    style.use_log_axis(ax)
    ax.figure.draw_without_rendering()
    assert {"0.001", "1", "100"} <= set(labels(ax.xaxis))


# Data and images


def test_class_balance_counts_each_group():
    samples = pd.DataFrame({"label": ["functional"] * 6 + ["defective"] * 4})
    samples["group"] = ["mono", "poly"] * 5
    axes = plots.plot_class_balance(samples, classes=CLASSES)
    assert [ax.get_title() for ax in axes] == ["all (n = 10)", "mono (n = 5)", "poly (n = 5)"]
    assert [bar.get_width() for bar in axes[0].patches] == [6, 4]
    assert texts(axes[1]) == ["3 (60%)", "2 (40%)"]
    assert len(plots.plot_class_balance(samples.assign(group="x"), CLASSES)) == 1


def test_image_rows_have_names_titles_frames_and_no_empty_axes():
    pictures = {f"s{i}": Image.new("L", (8, 6), 20 * i) for i in range(3)}
    axes = plots.plot_worst(pictures, figures.make_worst())
    assert axes.shape == (3, 2) and axes[1, 1] is None
    titles = [ax.get_title() for ax in axes.ravel() if ax is not None]
    assert titles == ["0.100", "0.457", "1e-08", "broken"]
    framed = [any(spine.get_visible() for spine in ax.spines.values()) for ax in axes[0]]
    assert framed == [True, False]
    names = {text for ax in axes[0, 0].figure.axes for text in texts(ax)}
    assert names == {"dark", "wrong\nlabel", "unreadable"}
    shown = np.asarray(axes[0, 1].images[0].get_array()) * 255
    np.testing.assert_allclose(shown, np.asarray(pictures["s1"]))
    grid = plots.plot_sample_grid([*pictures.values()] * 2, list("abcdef"), columns=4)
    assert len(grid[0].figure.axes) == 6, "the empty places of the last row are gone"
    with pytest.raises(ValueError, match="no image"):
        plots.plot_sample_grid([], [])
    with pytest.raises(ValueError, match="1 images and 2 titles"):
        plots.plot_sample_grid([pictures["s0"]], ["a", "b"])


def test_mistakes_and_lost_images_are_described():
    table = evaluation.mistakes_table(make_predictions(), n=4)
    axes = plots.plot_mistakes(figures.make_images(4), table)
    first = table.iloc[0]
    named = f"{first['sample_id']}\ntrue: {first['label']}\npredicted: {first['pred']}"
    assert axes[0].get_title() == f"{named} ({first['confidence']:.0%})"
    assert texts(plots.plot_mistakes([], table.iloc[:0])[0]) == ["no mistakes"]
    lost = draw("plot_lost")[0].get_title()
    assert lost == "s1\ntrue: cat\ncat → dog\np(true): 90% → 10%"


def test_corruptions_and_attacks():
    axes = draw("plot_corruptions")
    assert [ax.get_title() for ax in axes[0]] == ["blur", "Gaussian noise"]
    assert [text for ax in axes[0, 0].figure.axes for text in texts(ax)] == ["clean", "severity 3"]
    before = np.full((2, 4, 4, 3), 0.5)
    after = before + np.where(np.arange(4) < 2, 0.01, -0.01)[None, None, :, None]
    axes = plots.plot_attack_images(before, after, figures.make_attacked())
    shown = axes[1, 0].images[0].get_array()
    np.testing.assert_allclose(shown[0, [0, 3], 0], [1, 0], atol=1e-9, err_msg="magnified")
    assert "change,\n50 times" in [text for ax in axes[0, 0].figure.axes for text in texts(ax)]
    assert [axes[0, 1].get_title(), axes[2, 1].get_title()] == ["true: no\nno (90%)", "yes (80%)"]


# Explanations


def test_patches_are_those_of_the_image():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    whole, grid, row = plots.plot_patches(image, 4)
    picture = grid.images[0].get_array() * 255
    assert picture[0, 0] == 0 and picture[-1, -1] == 63 and picture[0, -1] == 7
    assert (picture == 255).any(), "white gaps"
    assert labels(row.xaxis) == ["1", "2", "3", "4"]
    assert whole.images[0].get_array().shape == (8, 8)
    with pytest.raises(ValueError, match="do not fill an image of 8 x 8"):
        plots.plot_patches(image, 3)


def test_position_similarities_by_hand():
    # a prefix token, then a grid of 2 x 2
    positions = np.array([[9.0, 9, 9], [1, 0, 0], [0, 2, 0], [1, 0, 0], [0, 0, -1]])
    left, right = plots.plot_position_encodings(positions, (2, 2))
    assert left.images[0].get_array().shape == (4, 3)
    mosaic = right.images[0].get_array()  # four maps of 2 x 2 with a gap between them
    assert mosaic.shape == (5, 5)
    np.testing.assert_allclose(mosaic[:2, :2], [[1, 0], [1, 0]])
    np.testing.assert_allclose(mosaic[:2, 3:], [[0, 1], [0, 0]])
    assert np.ma.getmaskarray(mosaic)[2].all()


def test_heads_share_one_scale_and_say_what_the_prefix_tokens_get():
    weights = figures.make_attention(3)  # a class token and 2 x 3 patches
    axes = plots.plot_heads(np.full((20, 30, 3), 0.5), weights, (2, 3))
    for head, ax in enumerate(axes[1:]):
        np.testing.assert_allclose(
            ax.images[0].get_array(), weights[head, 0, 1:].reshape(2, 3), rtol=1e-6
        )
        assert ax.images[0].get_clim() == pytest.approx((0, weights[:, 0, 1:].max()))
        assert ax.get_title() == f"head {head + 1}\n({weights[head, 0, 0]:.0%})"
    assert axes[0].get_title() == "query:\nclass token" and not axes[0].patches
    axes = plots.plot_heads(np.zeros((20, 30, 3)), weights[:1], (2, 3), query=(1, 0))
    np.testing.assert_allclose(
        axes[1].images[0].get_array(), weights[0, 4, 1:].reshape(2, 3), rtol=1e-6
    )
    mark = axes[0].patches[0]
    assert (mark.get_xy(), mark.get_width(), mark.get_height()) == ((-0.5, 9.5), 10, 10)
    without = plots.plot_heads(np.zeros((20, 30, 3)), figures.make_attention(3, 0), (2, 3))
    assert without[0].get_title() == "query:\nframed patch"
    assert without[1].patches[0].get_xy() == (0.5, 0.5), "the patch in the middle"
    with pytest.raises(ValueError, match=r"must be \(N, T, T\).*got \(7, 7\)"):
        plots.plot_heads(np.zeros((8, 8)), weights[0], (2, 3))
    with pytest.raises(ValueError, match="does not fit a grid of 3 x 3"):
        plots.plot_heads(np.zeros((8, 8)), weights, (3, 3))


def test_distance_and_change_by_depth():
    table = figures.make_heads(3, 2)
    axes = plots.plot_attention_distance(table, uniform={"distance": 50.0})
    lines = by_label(axes[0])
    np.testing.assert_allclose(lines["a head"].get_ydata(), table["distance"])
    assert (np.rint(lines["a head"].get_xdata()) == [1, 1, 2, 2, 3, 3]).all()
    means = lines["mean of the heads"].get_xydata()
    np.testing.assert_allclose(means, [[1, 0.5], [2, 10.5], [3, 20.5]])
    assert lines["even attention"].get_ydata()[0] == 50
    assert "even attention" not in by_label(axes[1])
    segments = axes[0].collections[0].get_segments()
    np.testing.assert_allclose(segments[0][:, 1], [-0.5, 1])
    deep = plots.plot_attention_distance(figures.make_heads(24))[0]
    assert labels(deep.xaxis) == [str(place) for place in range(1, 25, 2)]

    axes = draw("plot_attention_change")
    lines = by_label(axes[0])
    change = lines["after"].get_ydata() - lines["before fine-tuning"].get_ydata()
    np.testing.assert_allclose(change, 3)
    colors = axes[0].collections[0].get_colors()[:3, 0]
    np.testing.assert_allclose(colors, [0.3, 0.8, 0.8], err_msg="light: no change is shown")
    assert "before fine-tuning" not in by_label(axes[1]) and not axes[1].collections
    places = by_label(axes[1])["after"].get_xdata()
    assert places[0] > places[1], "heads of a block are in the order of their values"


def test_head_ablation_is_centred_on_zero_and_frames_what_is_sure():
    table = figures.make_ablation()
    ax = plots.plot_head_ablation(table, "change of the accuracy")
    mesh = ax.collections[0]
    np.testing.assert_allclose(mesh.get_array().ravel(), table["change"])
    assert mesh.get_clim() == (-0.4, 0.4)
    assert texts(ax) == ["+0.10", "-0.02", "+0.00", "-0.40", "+0.05", "+0.01"]
    assert {patch.get_xy() for patch in ax.patches} == {(0, 0), (0, 1)}, "column, row"
    assert labels(ax.xaxis) == ["1", "2", "3"] and labels(ax.yaxis) == ["1", "2"]
    assert len(texts(plots.plot_head_ablation(table.assign(change=0.0), "change"))) == 6


def row_of(ax):
    return ax.get_subplotspec().rowspan.start


def test_attributions_of_many_images_have_a_row_for_each_method():
    axes = plots.plot_attributions(
        figures.make_images(10, 8), figures.make_maps(7, 10, 8), figures.make_chosen(10)
    )
    assert axes.shape == (10, 8)
    assert [row_of(ax) for ax in axes[3]] == list(range(8))
    assert [row_of(ax) for ax in axes[8]] == list(range(8, 16)), "blocks of eight images"
    assert axes[7, 0].get_title() == "unsure\nmono\nl7\n→ b\n(0.51)"
    names = ["image", *(f"method {number}" for number in range(7))]
    assert [ax.get_ylabel() for ax in axes[0]] == names == [ax.get_ylabel() for ax in axes[8]]
    assert not any(ax.get_ylabel() for ax in axes[1])
    panels = axes[0, 0].get_figure(root=True).findobj(Axes)
    assert sum(bool(ax.images) for ax in panels) == 80, "and no panel is left empty"
    assert {ax.images[-1].get_clim() for ax in axes[:, 1]} == {(0, 1)}
    assert {ax.images[-1].get_clim() for ax in axes[:, 2]} == {(-1, 1)}
    bars = [ax.get_xlabel() for ax in panels if ax.get_xlabel()]
    unit = "99th percentile of the map"
    assert bars == [f"attribution (1 = {unit})", f"evidence (±1 = {unit})"]


def test_attributions_of_few_images_have_several_rows_each():
    pictures, maps = figures.make_images(2, 8), figures.make_maps(9, 2, 8)
    axes = plots.plot_attributions(pictures, maps, figures.make_chosen(2))
    assert [row_of(ax) for ax in axes[0]] == [0] * 5 + [1] * 5 and row_of(axes[1, 0]) == 2
    assert [axes[1, 0].get_title(), axes[1, 9].get_title()] == ["image", "method 8"]
    assert axes[1, 0].get_ylabel() == "unsure\nmono\nl1\n→ b\n(0.51)"
    grey = pictures[0].mean(axis=-1)
    np.testing.assert_allclose(axes[0, 1].images[0].get_array(), grey)
    pale = axes[0, 2].images[0].get_array()
    np.testing.assert_allclose(
        pale, grey * (1 - images.PALE) + images.PALE, err_msg="paler under signed maps"
    )
    with pytest.raises(ValueError, match="2 images and 0 maps: give at least one of each"):
        plots.plot_attributions(pictures, [])


def test_a_map_is_relative_fades_at_zero_and_is_averaged_over_blocks():
    signed, unsigned = images.overlay_colors(True), images.overlay_colors(False)
    assert unsigned(0.0)[3] == 0 and unsigned(1.0)[3] == pytest.approx(images.STRONG)
    assert signed(0.0)[3] == signed(1.0)[3] and signed(0.5)[3] < 0.01
    red, blue = signed(1.0), signed(0.0)
    assert red[0] > red[2] and blue[2] > blue[0]
    assert images.relative(np.full((10, 10), 4.0)).max() == 1
    assert images.relative(np.full((4, 4), -2.0)).min() == -1
    assert (images.relative(np.zeros((4, 4))) == 0).all()
    values = np.arange(2 * 60 * 50, dtype=float).reshape(2, 60, 50)
    blocks = images.block_means(values, cells=20)  # of 3 pixels a side; the last column has 2
    assert blocks.shape == (2, 20, 17)
    assert blocks[1, 4, 5] == pytest.approx(values[1, 12:15, 15:18].mean())
    assert blocks[0, 0, -1] == pytest.approx(values[0, :3, 48:].mean())
    np.testing.assert_array_equal(images.block_means(values, cells=100), values)


def test_counterfactuals_are_captioned_and_outlined():
    removed = figures.make_removed([(1, 1), (1, 2)], [])
    pictures = np.random.default_rng(0).random((2, 40, 50, 3))
    axes = plots.plot_counterfactuals(
        pictures, pictures, removed, ["good", "bad"], ["bad", "bad"], [True, False], kind="blurred"
    )
    assert [first.get_title() for first, _ in axes] == ["good", "bad"]
    captions = ["→ bad\n2 of 20 patches", "no change found"]
    assert [second.get_title() for _, second in axes] == captions
    (outline,) = axes[0, 1].collections[0].get_paths()
    # cells of 10 x 10 pixels
    np.testing.assert_allclose(outline.get_extents().get_points(), [[9.5, 9.5], [29.5, 19.5]])
    inside = (outline.vertices[:, 0] > 11) & (outline.vertices[:, 0] < 28)
    assert set(outline.vertices[inside, 1]) == {9.5, 19.5}, "around the cells, not between them"
    removed, eight = figures.make_removed(*[[(0, 0)]] * 8), np.repeat(pictures, 4, axis=0)
    words = (["good"] * 8, ["bad"] * 8, [True] * 8)
    axes = plots.plot_counterfactuals(eight, eight, removed, *words, kind="blurred")
    assert [[row_of(ax) for ax in pair] for pair in axes] == [[0, 1]] * 4 + [[2, 3]] * 4


# Tests of explanations


def test_trust_shows_each_verdict():
    table, ranks = figures.make_trust(), figures.make_ranks()
    axes = plots.plot_trust(table, ranks)
    assert labels(axes[0].yaxis) == ["Grad-CAM", "attention rollout", "saliency"]
    assert dots(axes[0]) == [(0.4, True), (0.2, True), (-0.3, True)]
    shapes = [line.get_marker() for line in axes[1].lines if line.get_marker() in "<>o"]
    assert shapes == [">", ">", "o"]
    interval = next(line for line in axes[0].lines if line.get_marker() == "|")
    np.testing.assert_allclose(interval.get_xdata(), [0.3, 0.5])
    assert texts(axes[1]) == ["ROAD", "2 of 2", "2 of 2", "0 of 2"]
    assert legend(axes[0]) == list(trust.VERDICTS)[:3]
    few = plots.plot_trust(table.assign(verdict="too few images to show anything"), ranks)
    assert len(legend(few[0])) == 4
    table.loc[table["method"] == "saliency", ["difference", "verdict"]] = np.nan
    table = table[~((table["method"] == "rollout") & (table["metric"] == "road"))]
    axes = plots.plot_trust(table, ranks)
    assert [texts(ax).count("–") for ax in axes] == [1, 2], "what is missing is a dash"


def test_trust_by_model_and_agreement():
    cnn = figures.make_ranks().assign(mean_rank=[2.0, np.nan, 1.0], better=[0, 0, 1], metrics=1)
    ax = plots.plot_trust_by_model({"hybrid_vit": figures.make_ranks(), "cnn": cnn})
    assert labels(ax.yaxis) == ["attention rollout", "Grad-CAM", "saliency"], "1.5, 1.75, 2"
    words = {"1.5 (2/2)", "3.0 (0/2)", "2.0 (0/1)", "1.0 (1/1)"}
    assert texts(ax)[-1] == "–" and set(texts(ax)[:-1]) == words
    many = {f"m{number}": figures.make_ranks().assign(better=number) for number in range(20)}
    cut = plots.plot_trust_by_model(many)
    assert labels(cut.xaxis) == [f"m{number}" for number in range(12, 20)]
    assert cut.figure.get_suptitle().startswith("the best 8 of 20 models")
    ax = draw("plot_agreement")
    assert labels(ax.xaxis) == ["attention rollout", "saliency"]
    assert labels(ax.yaxis) == ["Grad-CAM", "attention rollout"]
    assert texts(ax) == ["0.25", "-0.50", "–"] and ax.collections[0].get_clim() == (-1, 1)


def test_perturbation_curves_are_means_with_t_intervals():
    curves = figures.make_curves()
    axes = plots.plot_perturbation_curves(curves)
    assert [ax.get_title() for ax in axes][:2] == ["Grad-CAM", "attention rollout"]
    lines = by_label(axes[1])
    assert "random map (control)" in lines and len(axes) == 3
    part = curves[(curves["method"] == "rollout") & (curves["kind"] == "insertion")]
    means = part.groupby("share")["score"].mean()
    np.testing.assert_allclose(lines["insertion (higher is better)"].get_ydata(), means)
    last = part.loc[part["share"] == 1, "score"]
    band = axes[1].collections[1].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose(band.max(), last.mean() + t.ppf(0.975, 3) * last.std() / 2)


def test_randomisation_draws_mean_and_band():
    axes = draw("plot_randomisation")
    lines = by_label(axes[0])
    np.testing.assert_allclose(lines["method"].get_ydata(), [1, 0.6, 0.2])
    np.testing.assert_allclose(lines["absolute values"].get_ydata(), [1.1, 0.7, 0.3])
    assert lines["maps of other images"].get_ydata()[0] == pytest.approx(0.3)
    assert texts(axes[1]) == ["0.40"]
    band = axes[0].collections[0].get_paths()[0].vertices
    # 10 % and 90 % of 0.1, 0.2, 0.3
    np.testing.assert_allclose(sorted(set(band[band[:, 0] == 2, 1].round(9))), [0.12, 0.28])
    assert labels(axes[0].xaxis) == ["trained", "head", "blocks.0"], "of several layers the last"


def test_pointing_ranks_methods_and_shows_chance():
    axes = draw("plot_pointing")
    assert labels(axes[0].yaxis) == ["Grad-CAM", "attention rollout", "random map (control)"]
    assert dots(axes[0]) == [(0.8, True), (0.4, True), (0.1, False)]
    assert by_label(axes[1])["chance"].get_xdata()[0] == pytest.approx(0.04)


def test_intervals_of_means_over_images():
    hits = np.array([1.0] * 8 + [0.0] * 2)
    z, n, p = norm.ppf(0.975), 10, 0.8  # Wilson 1927
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(trust._interval(hits, "hit"), [middle - half, middle + half])
    halves, whole = np.array([0.5, 0.5, 1.0]), np.array([0.0, 1.0, 1.0])
    assert trust._interval(halves, "hit") == trust._interval(whole, "hit")
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    expected = t.interval(0.95, 399, values.mean(), sem(values))
    np.testing.assert_allclose(trust._interval(values, "mass"), expected)
    assert trust._interval(np.array([0.1, 0.9]), "mass") == (0, 1), "shares stay within 0 and 1"
    assert trust._interval(np.full(3, 0.25), "rank") == (0.25, 0.25)


# Training


def test_history_marks_the_best_epoch():
    history = figures.make_history()
    loss, scores, recall = plots.plot_history(history, monitor="val_roc_auc")
    assert legend(loss) == ["training", "validation"]
    assert legend(scores) == ["accuracy", "balanced accuracy", "ROC AUC"]
    assert legend(recall) == list(CLASSES)
    assert all(ax.lines[-1].get_xdata()[0] == 6 for ax in (loss, scores, recall))
    assert training.best_epoch(history.assign(val_loss=[3, 1, 2, 4, 5, 6]), "val_loss") == 2
    with pytest.raises(ValueError, match="unknown column 'val_auc'"):
        plots.plot_history(history, monitor="val_auc")
    one = plots.plot_history(figures.make_history(1))
    assert one[0].lines[0].get_marker() == "o", "one epoch can be seen"


@pytest.mark.parametrize("count", [10, 100])
def test_legends_and_titles_of_many_classes_with_long_names_fit(count):
    classes = [f"great white shark {number}" for number in range(count)]
    samples = figures.make_samples(200)
    samples["label"] = [classes[place % count] for place in range(200)]
    table = figures.make_image_table(samples)
    grid = plots.plot_sample_grid(
        figures.make_images(6), [f"{name}, mono" for name in classes[:6]], classes[:6], classes
    )
    dots = plots.iplot_intensities(table, samples, classes).static
    for figure in (grid[0].figure, dots):
        figure.canvas.draw()
        for shown in figure.legends:
            box = shown.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    boxes = [ax.title.get_window_extent() for ax in grid]
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))
    assert bool(grid[0].figure.legends) == (count == 10), "of more, the titles name the classes"


def test_history_of_many_classes_draws_their_mean_and_the_lowest():
    history = figures.make_history(classes=DIGITS).assign(val_recall_3=0.1)
    recall = plots.plot_history(history)[2]
    assert legend(recall) == ["all classes", "mean of 10", "lowest at the end: 3"]
    means = history.filter(like="val_recall_").mean(axis=1)
    np.testing.assert_allclose(recall.lines[0].get_ydata(), means)
    np.testing.assert_allclose(recall.lines[1].get_ydata(), 0.1)


def test_learning_curves_are_means_over_the_epochs_all_seeds_reached():
    ax = draw("plot_learning_curves")
    assert legend(ax) == ["hybrid_vit (2 seeds)", "vit_scratch"]
    mean = by_label(ax)["hybrid_vit (2 seeds)"]
    assert mean.get_xdata().tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(mean.get_ydata(), [0.56, 0.61, 0.66, 0.71])


def test_data_efficiency_runs_through_the_means_over_seeds():
    ax = draw("plot_data_efficiency")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[5, 0.7], [50, 0.9]])
    assert legend(ax) == ["pretrained", "scratch"] and list(ax.get_xticks()) == [5, 50]


# Evaluation


def test_confusion_shows_counts_and_row_shares():
    table = pd.DataFrame([[3, 1], [0, 6]], index=CLASSES, columns=CLASSES)
    ax = plots.plot_confusion(table)
    assert texts(ax) == ["3\n75%", "1\n25%", "0\n0%", "6\n100%"]
    assert labels(ax.yaxis) == ["functional\nn = 4", "defective\nn = 6"]


def test_curves_have_their_area_and_their_baseline():
    predictions = make_predictions()
    metrics = evaluation.metrics_table(predictions, replicates=0).set_index("metric")["value"]
    auc, ap = f"{metrics['roc_auc']:.3f}", f"{metrics['average_precision']:.3f}"
    roc = evaluation.roc_table(predictions)
    ax = plots.plot_roc({"hybrid_vit": roc, "same": roc})
    named = [f"{name} (AUC {auc})" for name in ("hybrid_vit", "same")]
    assert legend(ax) == [*named, "chance (AUC 0.500)"]
    assert ax.get_legend().get_title().get_text() == "class: defective"
    bands = {
        kind: evaluation.curve_band_table(predictions, kind, replicates=30)
        for kind in ("roc", "precision_recall")
    }
    curves = roc, evaluation.precision_recall_table(predictions)
    axes = plots.plot_curves(*curves, bands)
    test = predictions[predictions["split"] == "test"]
    prevalence = (test["label"] == "defective").mean()
    assert legend(axes[1]) == [f"defective (AP {ap})", f"prevalence ({prevalence:.3f})"]
    for ax, band in zip(axes, bands.values(), strict=True):
        heights = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == (band["low"].min(), band["high"].max())
    with pytest.raises(ValueError, match="no column false_positive_rate"):
        plots.plot_curves(*curves, {"roc": bands["precision_recall"]})


def test_curves_of_several_classes():
    predictions = make_predictions(DIGITS)
    metrics = evaluation.metrics_table(predictions, replicates=0).set_index("metric")["value"]
    axes = figures.draw_curves(predictions)
    mean = f"mean of 10 classes (AUC {metrics['roc_auc']:.3f})"
    assert legend(axes[0]) == ["range of the classes", mean, "chance (AUC 0.500)"]
    few = figures.draw_curves(make_predictions(DIGITS[:5]))
    assert [len(ax.lines) for ax in few] == [6, 6]
    several = plots.plot_roc({"a": evaluation.roc_table(predictions)})
    assert legend(several)[0] == f"a (AUC {metrics['roc_auc']:.3f})"
    assert several.get_legend().get_title().get_text() == "mean over 10 classes"


def test_reliability_risk_and_conformal_sets():
    predictions = make_predictions()
    table = evaluation.reliability_table(predictions)
    (ax,) = plots.plot_reliability({"as trained": table})
    error = evaluation.calibration_table(predictions, replicates=0).set_index("metric")
    assert ax.get_title() == f"as trained\nECE {error.loc['ece', 'value']:.3f}, n = 120"
    heights = ax.collections[-1].get_offsets()[:, 1]
    np.testing.assert_allclose(heights, table["accuracy"].dropna())
    table = evaluation.risk_coverage_table(predictions)
    lines = by_label(plots.plot_risk_coverage(table))
    assert lines["by confidence, 95% interval"].get_ydata().tolist() == table["risk"].tolist()
    oracle = lines["oracle (best possible order)"].get_ydata()
    assert oracle.tolist() == table["oracle"].tolist()
    assert lines["random order"].get_ydata()[0] == table["risk"].iloc[-1]
    left, right = draw("plot_conformal")
    table = evaluation.conformal_table(figures.binary(), by_class=False)
    assert set(legend(left)) == {"nominal", "by class", "all alike", "worst class"}
    assert by_label(left)["all alike"].get_ydata().tolist() == table["coverage"].tolist()
    assert right.lines[1].get_ydata().tolist() == table["size"].tolist()


def test_slices_are_listed_under_their_column():
    rows = [("", "all", 70, 0.8), ("kind", "a", 40, 0.9), ("kind", "b", 30, np.nan)]
    rows.append(("size", "1 to 2", 70, 0.6))
    table = pd.DataFrame(rows, columns=["column", "slice", "n", "value"])
    table = figures.with_interval(table.assign(metric="accuracy", note="only functional"))
    (ax,) = plots.plot_slices(table)
    names = dict(zip(ax.get_yticks(), labels(ax.yaxis), strict=True))
    order = ["all (n = 70)", "kind", "a (n = 40)", "b (n = 30)", "size", "1 to 2 (n = 70)"]
    assert [names[place] for place in sorted(names)] == order
    drawn = [
        (names[line.get_ydata()[0]], line.get_xdata()[0])
        for line in ax.lines
        if line.get_marker() == "o"
    ]
    assert drawn == [("all (n = 70)", 0.8), ("a (n = 40)", 0.9), ("1 to 2 (n = 70)", 0.6)]
    assert texts(ax) == ["only functional"], "why a value is missing"


def test_changes_are_filled_where_they_are_shown():
    ax = draw("plot_gaps")
    assert dots(ax) == [(-0.2, True), (0.1, False), (-0.05, False)]
    assert texts(ax) == ["4 images only"] and ax.get_xlabel() == "accuracy: slice minus rest"
    ax = draw("plot_drop")
    assert dots(ax) == [(-0.1, False), (0.2, True)]
    assert "cat: −5 +1 (n = 40)" in labels(ax.yaxis)


# Comparison


def test_differences_are_named_and_hollow_without_a_verdict():
    ax = draw("plot_differences")
    assert labels(ax.yaxis) == ["b − a", "c − a", "c − b"]
    assert dots(ax) == [(0.05, True), (-0.01, False)] and texts(ax) == ["too few images"]
    assert ax.get_xlabel() == "difference in accuracy (right of 0: the first-named is better)"


def test_the_front_by_hand():
    cost, value = np.array([1, 2, 2, 3, 4, 1]), np.array([5, 7, 6, 7, 8, 5])
    front = [True, True, False, False, True, True]
    assert comparison.find_front(cost, value).tolist() == front


def test_pruning_and_merging_draw_score_and_time():
    ax = draw("plot_pruning_curve")
    lines = by_label(ax)
    first = lines["gradient (Taylor)"].get_xydata()
    assert first.tolist() == [[0.8, 0.7], [0.9, 0.88], [1.0, 0.9]]
    level = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert level[0].get_ydata()[0] == 0.9 and ax.get_ylabel() == "accuracy"
    score, latency = draw("plot_merging_curve")
    assert score.lines[0].get_xydata().tolist() == [[0, 0.9], [4, 0.89], [8, 0.8]]
    assert latency.lines[0].get_xydata().tolist() == [[0, 20], [4, 15], [8, 10]]
    assert texts(latency) == ["75%", "50%"] and latency.get_ylim()[0] == 0
    assert latency.get_title() == "median latency (ms, batch 1, 2 threads)"


def test_robustness_begins_at_the_clean_images():
    axes = draw("plot_robustness")
    assert [ax.get_title() for ax in axes[0]] == ["blur", "JPEG"]
    assert [row[0].get_ylabel() for row in axes] == ["accuracy", "overconfidence"]
    ours, theirs = by_label(axes[0, 1])["ours"], by_label(axes[0, 1])["theirs"]
    np.testing.assert_allclose(ours.get_xydata(), [[0, 0.9], [1, 0.8], [3, 0.6]])
    assert theirs.get_ydata()[0] == 0.7 and legend(axes[0, 0]) == ["ours", "theirs"]
    table = figures.make_robustness()
    assert not plots.plot_robustness(table, ["accuracy"])[0, 0].figure.legends
    less = table[table["corruption"] != "jpeg"]
    assert plots.plot_robustness({"a": table, "b": less}, ["accuracy"]).shape == (1, 1)
    with pytest.raises(ValueError, match=r"unknown metric .acuracy.\. Did you mean accuracy"):
        plots.plot_robustness(table, ["acuracy"])
    ax = draw("plot_attack")
    assert ax.lines[0].get_xydata().tolist() == [[0, 0.9], [1, 0.4], [2, 0.1]]


def test_a_slice_without_one_of_the_metrics_has_a_row_without_a_dot():
    names = ["column", "slice", "n", "metric", "value", "low", "high"]
    rows = [("a", "x", 9, "auc", 0.8, 0.7, 0.9), ("a", "x", 9, "within", 0.6, 0.5, 0.7)]
    rows += [("b", "y", 9, "auc", 0.5, 0.4, 0.6)]
    both, one = plots.plot_slices(pd.DataFrame(rows, columns=names))
    assert len(both.lines) - len(one.lines) == 2  # the line and the dot of slice y

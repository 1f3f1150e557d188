"""Figures of attention by layer and head show the numbers of their tables."""

import numpy as np
import pandas as pd
import pytest

from vitlab import plots
from vitlab.plots.attention import number_layers


def make_heads(layers=3, heads=2):
    rows = [
        (layer, head, 10.0 * layer + head, 1 + 0.1 * head)
        for layer in range(layers)
        for head in range(heads)
    ]
    return pd.DataFrame(rows, columns=["layer", "head", "distance", "entropy"])


def softmax_attention(*shape):
    weights = np.exp(np.random.default_rng(0).normal(size=shape))
    return weights / weights.sum(axis=-1, keepdims=True)


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def by_label(ax):
    return {line.get_label(): line for line in ax.lines}


def test_heads_share_one_scale_and_say_what_the_prefix_tokens_get():
    attention = softmax_attention(3, 7, 7)  # a class token and 2 x 3 patches
    axes = plots.plot_heads(np.full((20, 30, 3), 0.5), attention, (2, 3))
    assert axes.shape == (4,)
    for head, ax in enumerate(axes[1:]):
        np.testing.assert_allclose(ax.images[0].get_array(), attention[head, 0, 1:].reshape(2, 3))
        assert ax.images[0].get_clim() == (0, attention[:, 0, 1:].max())
        assert ax.get_title() == f"head {head + 1}\n({attention[head, 0, 0]:.0%})"
    assert axes[0].get_title() == "query:\nclass token" and not axes[0].patches
    without = plots.plot_heads(np.full((20, 30, 3), 0.5), softmax_attention(3, 6, 6), (2, 3))
    assert without[0].get_title() == "query:\nframed patch" and without[1].patches[0].get_xy() == (
        0.5,
        0.5,
    )


def test_distance_and_entropy_by_depth():
    axes = plots.plot_attention_distance(make_heads(), uniform={"distance": 50.0})
    assert [ax.get_ylabel() for ax in axes] == [
        "attention distance (pixels)",
        "attention entropy (nats)",
    ]
    lines = by_label(axes[0])
    np.testing.assert_allclose(lines["a head"].get_ydata(), [0, 1, 10, 11, 20, 21])
    assert (np.rint(lines["a head"].get_xdata()) == [1, 1, 2, 2, 3, 3]).all()
    np.testing.assert_allclose(
        lines["mean of the heads"].get_xydata(), [[1, 0.5], [2, 10.5], [3, 20.5]]
    )
    assert lines["even attention"].get_ydata()[0] == 50 and "even attention" not in by_label(
        axes[1]
    )
    assert len(plots.plot_attention_distance(make_heads().drop(columns="entropy"))) == 1
    bounded = make_heads().assign(
        distance_low=lambda table: table["distance"] - 1,
        distance_high=lambda table: table["distance"] + 2,
    )
    segments = plots.plot_attention_distance(bounded)[0].collections[0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in segments][:2], [[-1, 2], [0, 3]])


def test_layers_are_counted_or_named():
    assert number_layers(make_heads().query("layer > 0")).tolist() == [
        2,
        2,
        3,
        3,
    ], "block 2 stays block 2 when 1 is left out"
    names = make_heads().assign(layer=lambda table: "blocks." + table["layer"].astype(str))
    assert number_layers(names).tolist() == [1, 1, 2, 2, 3, 3]
    deep = plots.plot_attention_distance(make_heads(layers=24))[0]
    assert labels(deep.xaxis) == [str(place) for place in range(1, 25, 2)]


def test_head_ablation_is_centred_on_zero_and_frames_what_is_sure():
    table = make_heads(2, 3)[["layer", "head"]].assign(change=[0.1, -0.02, 0.0, -0.4, 0.05, 0.01])
    table["p_fdr"] = [0.01, 0.06, 1, 0.0001, 0.2, 0.8]
    ax = plots.plot_head_ablation(table, "change of the accuracy")
    mesh = ax.collections[0]
    np.testing.assert_allclose(
        mesh.get_array().reshape(2, 3), table["change"].to_numpy().reshape(2, 3)
    )
    assert mesh.get_clim() == (-0.4, 0.4)
    assert [text.get_text() for text in ax.texts] == [
        "+0.10",
        "-0.02",
        "+0.00",
        "-0.40",
        "+0.05",
        "+0.01",
    ]
    assert {tuple(np.floor(patch.get_xy())) for patch in ax.patches} == {
        (0, 0),
        (0, 1),
    }, "column, row of the sure ones"
    assert labels(ax.xaxis) == ["1", "2", "3"] and labels(ax.yaxis) == ["1", "2"]
    plain = plots.plot_head_ablation(table.drop(columns="p_fdr"))
    assert not plain.patches and plain.get_legend() is None
    assert len(plots.plot_head_ablation(table.assign(change=0.0)).texts) == 6, (
        "no change at all is drawn too"
    )
    given = ax.figure.add_subplot()
    assert plots.plot_head_ablation(table, ax=given) is given


def test_change_by_fine_tuning_joins_before_and_after():
    heads = make_heads(2, 2)
    parts = [
        heads[["layer", "head"]].assign(
            measure="distance", before=heads["distance"], after=heads["distance"] + 3
        ),
        heads[["layer", "head"]].assign(
            measure="similarity", before=1.0, after=[0.9, 0.8, 0.7, 0.6]
        ),
    ]
    axes = plots.plot_attention_change(pd.concat(parts))  # index values occur twice
    assert [ax.get_title() for ax in axes] == [
        "attention distance (pixels)",
        "similarity to before",
    ]
    lines = by_label(axes[0])
    np.testing.assert_allclose(
        lines["after"].get_ydata() - lines["before fine-tuning"].get_ydata(), 3
    )
    np.testing.assert_allclose(lines["after"].get_xdata(), lines["before fine-tuning"].get_xdata())
    joined = axes[0].collections[0].get_segments()
    np.testing.assert_allclose(
        [segment[:, 1] for segment in joined], [[0, 3], [1, 4], [10, 13], [11, 14]]
    )
    assert "before fine-tuning" not in by_label(axes[1]) and not axes[1].collections
    places = by_label(axes[1])["after"].get_xdata()
    assert places[0] > places[1], "heads of a block stand in the order of their values"
    sure = plots.plot_attention_change(parts[0].assign(p_fdr=[0.01, 0.2, 0.04, 0.001]))[
        0
    ].collections[0]
    assert [round(float(color[0]), 2) for color in sure.get_colors()] == [
        0.3,
        0.8,
        0.3,
        0.3,
    ], "light where no change is shown"


def test_attention_of_the_wrong_shape():
    with pytest.raises(
        ValueError,
        match=r"attention must be \(H, T, T\), all heads of one layer for one image, got \(5, 5\)",
    ):
        plots.plot_heads(np.zeros((8, 8)), softmax_attention(5, 5), (2, 2))
    with pytest.raises(ValueError, match="does not cover a grid of 3 x 3"):
        plots.plot_heads(np.zeros((8, 8)), softmax_attention(2, 5, 5), (3, 3))

"""Figures of tests of explanations: means, intervals and reference lines against values worked out
here.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, sem, t

from vitlab import plots
from vitlab.plots.faithfulness import _interval, split_controls


def make_curves(methods=("grad_cam", "rollout", "random"), images=4):
    shares = np.linspace(0, 1, 5)
    rows = [
        (
            method,
            kind,
            f"s{image}",
            share,
            (share if kind == "insertion" else 1 - share) * (0.5 + 0.1 * image + 0.01 * number),
        )
        for number, method in enumerate(methods)
        for kind in ("deletion", "insertion")
        for image in range(images)
        for share in shares
    ]
    return pd.DataFrame(rows, columns=["method", "kind", "sample_id", "share", "score"])


def make_randomisation():
    similarity = {"grad_cam": [1, 0.6, 0.2], "rollout": [1, 0.5, 0.4], "edges": [1, 1, 1]}
    rows = [
        (
            method,
            step,
            ["", "head", "blocks.0"][step],
            f"s{image}",
            value + 0.1 * (image - 1) * (step > 0),
        )
        for method, values in similarity.items()
        for step, value in enumerate(values)
        for image in range(3)
    ]
    return pd.DataFrame(rows, columns=["method", "step", "layer", "sample_id", "similarity"])


def make_pointing():
    generator = np.random.default_rng(0)
    rows = [
        (
            method,
            f"s{image}",
            image < hits,
            *(np.clip(generator.normal(hits / 10, 0.05, 2), 0, 1)),
            0.04,
        )
        for method, hits in (("random", 1), ("grad_cam", 8), ("rollout", 4))
        for image in range(10)
    ]
    return pd.DataFrame(rows, columns=["method", "sample_id", "hit", "mass", "rank", "chance"])


def by_label(ax):
    return {line.get_label(): line for line in ax.lines}


def test_few_methods_share_a_panel_for_each_kind():
    curves = make_curves()
    axes = plots.plot_perturbation_curves(curves)
    assert [ax.get_title() for ax in axes] == [
        "insertion (higher is better)",
        "deletion (lower is better)",
    ]
    lines = by_label(axes[0])
    assert list(lines) == ["random map (control)", "Grad-CAM", "attention rollout"]
    part = curves[(curves["method"] == "rollout") & (curves["kind"] == "insertion")]
    np.testing.assert_allclose(
        lines["attention rollout"].get_ydata(), part.groupby("share")["score"].mean()
    )
    assert (
        lines["random map (control)"].get_linestyle() == "--"
        and lines["random map (control)"].get_color() == "0.45"
    )
    last = part.loc[part["share"] == 1, "score"]
    band = axes[0].collections[2].get_paths()[0].vertices[:, 1]
    half = t.ppf(0.975, 3) * last.std() / 2
    np.testing.assert_allclose([band.max()], [last.mean() + half])


def test_many_methods_get_a_panel_each_with_the_controls_in_it():
    methods = [f"method_{number}" for number in range(6)]
    axes = plots.plot_perturbation_curves(make_curves([*methods, "random", "edges"]))
    assert [ax.get_title() for ax in axes] == [f"method {number}" for number in range(6)]
    assert [len(ax.lines) for ax in axes] == [6] * 6, "two kinds of the method and of two controls"
    legend = axes[0].get_figure(root=True).legends[0]
    assert [text.get_text() for text in legend.get_texts()][2:] == [
        "random map (control)",
        "edge detector (control)",
    ]
    only = plots.plot_perturbation_curves(make_curves(["grad_cam"]).query("kind == 'deletion'"))
    assert [ax.get_title() for ax in only] == ["deletion (lower is better)"]


def test_randomisation_draws_mean_band_and_control():
    axes = plots.plot_randomisation(make_randomisation())
    assert [ax.get_title() for ax in axes] == ["Grad-CAM", "attention rollout"]
    lines = by_label(axes[0])
    np.testing.assert_allclose(lines["method"].get_ydata(), [1, 0.6, 0.2])
    np.testing.assert_allclose(lines["edge detector (control)"].get_ydata(), [1, 1, 1])
    assert [text.get_text() for text in axes[1].texts] == ["0.40"]
    band = axes[0].collections[0].get_paths()[0].vertices
    # 10 % and 90 % of 0.1, 0.2, 0.3
    np.testing.assert_allclose(sorted(set(band[band[:, 0] == 2, 1].round(9))), [0.12, 0.28])
    assert [label.get_text() for label in axes[0].get_xticklabels()] == [
        "trained",
        "head",
        "blocks.0",
    ]
    assert axes[0].get_ylim()[0] < 0 < 1 < axes[0].get_ylim()[1]
    full = make_randomisation().assign(
        absolute=lambda table: table["similarity"] + 0.1, other_image=0.3
    )
    lines = by_label(plots.plot_randomisation(full)[0])
    np.testing.assert_allclose(lines["absolute values"].get_ydata(), [1.1, 0.7, 0.3])
    assert lines["maps of other images"].get_ydata()[0] == pytest.approx(0.3)
    several = make_randomisation().replace({"layer": {"blocks.0": "blocks.2 to blocks.0"}})
    assert plots.plot_randomisation(several)[0].get_xticklabels()[-1].get_text() == "blocks.0"
    alone = plots.plot_randomisation(make_randomisation().query("method == 'edges'"))
    assert len(alone) == 1


def test_pointing_ranks_methods_and_shows_chance():
    table = make_pointing()
    axes = plots.plot_pointing(table)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [
        "Grad-CAM",
        "attention rollout",
        "random map (control)",
    ]
    dots = [line for line in axes[0].lines if line.get_marker() == "o"]
    np.testing.assert_allclose([line.get_xdata()[0] for line in dots], [0.8, 0.4, 0.1])
    assert [line.get_markerfacecolor() == "white" for line in dots] == [False, False, True]
    for ax in axes:
        assert by_label(ax)["chance"].get_xdata()[0] == pytest.approx(0.04)
    near = plots.plot_pointing(table.assign(hit_chance=0.2))
    assert [by_label(ax)["chance"].get_xdata()[0] for ax in near] == pytest.approx(
        [0.2, 0.04, 0.04]
    )


def test_intervals_of_means_over_images():
    hits = np.array([1.0] * 8 + [0.0] * 2)
    z, n, p = norm.ppf(0.975), 10, 0.8  # Wilson 1927
    middle, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )
    np.testing.assert_allclose(_interval(hits, "hit"), [middle - half, middle + half])
    assert _interval(np.array([0.5, 0.5, 1.0]), "hit") == _interval(
        np.array([0.0, 1.0, 1.0]), "hit"
    ), "halves count as halves"
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    low, high = _interval(values, "mass")
    np.testing.assert_allclose([low, high], t.interval(0.95, 399, values.mean(), sem(values)))
    assert _interval(np.array([0.1, 0.9]), "mass") == (0, 1), "shares stay within 0 and 1"
    assert _interval(np.full(3, 0.25), "rank") == (0.25, 0.25)


def test_controls_are_told_from_methods():
    assert split_controls(["edges", "rollout", "edges", "random", "lime"]) == (
        ["rollout", "lime"],
        ["edges", "random"],
    )


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (plots.plot_perturbation_curves, make_curves(), "share"),
        (plots.plot_randomisation, make_randomisation(), "similarity"),
        (plots.plot_pointing, make_pointing(), "chance"),
    ],
)
def test_tables_that_do_not_fit(draw, table, column):
    with pytest.raises(ValueError, match=f"columns missing: {column}; the table has method"):
        draw(table.drop(columns=column))
    with pytest.raises(ValueError, match="has no rows, so there is nothing to draw"):
        draw(table[:0])


def test_curves_of_an_unknown_kind_or_of_controls_alone():
    with pytest.raises(ValueError, match="unknown kind 'removal'"):
        plots.plot_perturbation_curves(make_curves().replace("deletion", "removal"))
    with pytest.raises(
        ValueError, match=r"only controls \(random\); add the curves of at least one method"
    ):
        plots.plot_perturbation_curves(make_curves(["random"]))

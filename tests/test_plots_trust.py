"""Figures of tests of explanations and of trust: means, intervals and reference lines by hand, and
tables that do not fit.
"""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy.stats import norm, sem, t

from vitlab import plots
from vitlab.plots.trust import VERDICTS, _interval


def texts(ax):
    return [text.get_text() for text in ax.texts]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def by_label(ax):
    return {line.get_label(): line for line in ax.lines}


def make_trust(differences):
    """A trust table from {method: {metric: difference}}, every interval 0.1 to both sides."""
    rows = [
        (method, metric, value, value - 0.1, value + 0.1)
        for method, metrics in differences.items()
        for metric, value in metrics.items()
    ]
    columns = ["method", "metric", "difference", "difference_low", "difference_high"]
    table = pd.DataFrame(rows, columns=columns)
    verdict = np.where(table["difference"] > 0.1, "better than all controls", "not shown")
    return table.assign(verdict=np.where(table["difference"] < -0.1, "worse", verdict))


TRUST = make_trust(
    {
        "saliency": {"insertion": -0.3, "road": 0.0},
        "grad_cam": {"insertion": 0.4, "road": 0.3},
        "rollout": {"insertion": 0.2, "road": 0.5},
    }
)
RANKS = pd.DataFrame(
    [("grad_cam", 1.5, 2, 2), ("rollout", 1.5, 2, 2), ("saliency", 3.0, 0, 2)],
    columns=["method", "mean_rank", "better", "metrics"],
)


def dots(ax):
    """(x, y, marker, colour) of each dot, without zero line and intervals."""
    found = []
    for line in ax.lines:
        if line.get_marker() not in ("None", "", "|") and len(line.get_xdata()):
            place = float(line.get_xdata()[0]), int(line.get_ydata()[0])
            found.append((*place, line.get_marker(), to_hex(line.get_color())))
    return found


def test_trust_shows_each_verdict():
    axes = plots.plot_trust(TRUST, RANKS)
    assert labels(axes[0].yaxis) == ["Grad-CAM", "attention rollout", "saliency"]
    better, _, worse, _ = (to_hex(color) for color, _ in VERDICTS.values())
    assert dots(axes[0]) == [(0.4, 0, ">", better), (0.2, 1, ">", better), (-0.3, 2, "<", worse)]
    assert [mark for *_, mark, _ in dots(axes[1])] == [">", ">", "o"]
    interval = next(line for line in axes[0].lines if line.get_marker() == "|")
    np.testing.assert_allclose(interval.get_xdata(), [0.3, 0.5])
    assert texts(axes[1]) == ["ROAD", "2 of 2", "2 of 2", "0 of 2"]
    legend = axes[0].get_figure(root=True).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(VERDICTS)[:3]
    few = plots.plot_trust(TRUST.assign(verdict="too few images to show anything"), RANKS)
    legend = few[0].get_figure(root=True).legends[0]
    assert len(legend.get_texts()) == 4 and {mark for *_, mark, _ in dots(few[0])} == {"x"}


def test_missing_differences_are_dashes():
    table = TRUST[~((TRUST["method"] == "rollout") & (TRUST["metric"] == "road"))].copy()
    table.loc[table["method"] == "saliency", ["difference", "verdict"]] = np.nan
    axes = plots.plot_trust(table, RANKS)
    assert texts(axes[0])[:2] == ["–", "insertion"] and texts(axes[1])[:2] == ["–", "–"]


def test_trust_by_model_marks_methods_that_a_model_lacks():
    cnn = pd.DataFrame({"method": ["grad_cam", "saliency"], "mean_rank": [2.0, 1.0]})
    cnn = cnn.assign(better=[0, 1], metrics=1)
    ax = plots.plot_trust_by_model({"hybrid_vit": RANKS, "efficientnet_lite0": cnn})
    assert labels(ax.yaxis) == ["attention rollout", "Grad-CAM", "saliency"], "means 1.5, 1.75, 2"
    assert labels(ax.xaxis) == ["hybrid_vit", "efficientnet_\nlite0"]
    words = {"1.5 (2/2)", "3.0 (0/2)", "2.0 (0/1)", "1.0 (1/1)"}
    assert texts(ax)[-1] == "–" and set(texts(ax)[:-1]) == words
    np.testing.assert_allclose(ax.collections[0].get_array().reshape(3, 2)[1:], [[1.5, 2], [3, 1]])
    many = {f"m{number}": RANKS.assign(better=number) for number in range(20)}
    cut = plots.plot_trust_by_model(many)
    assert labels(cut.xaxis) == [f"m{number}" for number in range(12, 20)]
    assert cut.figure.get_suptitle().startswith("the best 8 of 20 models")


def test_agreement_shows_each_pair_once_and_marks_gaps():
    pairs = [
        ("grad_cam", "rollout", 0.25),
        ("grad_cam", "saliency", np.nan),
        ("rollout", "saliency", -0.5),
    ]
    ax = plots.plot_agreement(pd.DataFrame(pairs, columns=["method_a", "method_b", "value"]))
    assert labels(ax.xaxis) == ["attention rollout", "saliency"]
    assert labels(ax.yaxis) == ["Grad-CAM", "attention rollout"]
    assert [text for text in texts(ax) if text] == ["0.25", "-0.50", "–"]
    assert ax.collections[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plots.plot_trust(TRUST.drop(columns="verdict"), RANKS),
            "trust_table: columns missing: verdict; the table has method",
        ),
        (
            lambda: plots.plot_trust(TRUST.replace({"verdict": {"worse": "bad"}}), RANKS),
            "trust_table: unknown verdict 'bad'",
        ),
        (lambda: plots.plot_trust_by_model({}), "ranks is empty"),
        (
            lambda: plots.plot_perturbation_curves(make_curves().replace("deletion", "removal")),
            "unknown kind 'removal'",
        ),
        (
            lambda: plots.plot_perturbation_curves(make_curves(["random"])),
            r"only controls \(random\); add the curves of at least one method",
        ),
        (lambda: plots.plot_trust_by_model({"a": RANKS[["method"]]}), "ranks of a: columns"),
    ],
)
def test_tables_that_do_not_fit(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


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
    similarity = {"grad_cam": [1, 0.6, 0.2], "rollout": [1, 0.5, 0.4]}
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
    table = pd.DataFrame(rows, columns=["method", "step", "layer", "sample_id", "similarity"])
    return table.assign(absolute=table["similarity"] + 0.1, other_image=0.3)


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


def test_perturbation_curves_have_a_panel_for_each_method():
    curves = make_curves()
    axes = plots.plot_perturbation_curves(curves)
    assert [ax.get_title() for ax in axes] == ["Grad-CAM", "attention rollout"]
    lines = by_label(axes[1])
    assert set(lines) == {
        "random map (control)",
        "insertion (higher is better)",
        "deletion (lower is better)",
    }
    part = curves[(curves["method"] == "rollout") & (curves["kind"] == "insertion")]
    means = part.groupby("share")["score"].mean()
    np.testing.assert_allclose(lines["insertion (higher is better)"].get_ydata(), means)
    last = part.loc[part["share"] == 1, "score"]
    band = axes[1].collections[1].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose(band.max(), last.mean() + t.ppf(0.975, 3) * last.std() / 2)


def test_randomisation_draws_mean_and_band():
    axes = plots.plot_randomisation(make_randomisation())
    assert [ax.get_title() for ax in axes] == ["Grad-CAM", "attention rollout"]
    lines = by_label(axes[0])
    np.testing.assert_allclose(lines["method"].get_ydata(), [1, 0.6, 0.2])
    np.testing.assert_allclose(lines["absolute values"].get_ydata(), [1.1, 0.7, 0.3])
    assert lines["maps of other images"].get_ydata()[0] == pytest.approx(0.3)
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
    several = make_randomisation().replace({"layer": {"blocks.0": "blocks.2 to blocks.0"}})
    assert plots.plot_randomisation(several)[0].get_xticklabels()[-1].get_text() == "blocks.0"


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

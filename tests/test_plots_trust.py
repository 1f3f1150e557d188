"""Figures of trust: what stands where, and that a table that does not fit is refused in words."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from vitlab import plots
from vitlab.plots.style import PALETTE
from vitlab.plots.trust import VERDICTS, _two_ticks, rank_methods

COLUMNS = [
    "method",
    "metric",
    "value",
    "low",
    "high",
    "control",
    "difference",
    "difference_low",
    "difference_high",
    "verdict",
]


def make_trust(differences):
    """A trust table from {method: {metric: difference}}, every interval 0.1 to both sides."""
    rows = []
    for method, metrics in differences.items():
        for metric, value in metrics.items():
            verdict = (
                "better than all controls"
                if value > 0.1
                else "worse"
                if value < -0.1
                else "not shown"
            )
            rows.append(
                (method, metric, 0.5, 0.4, 0.6, "centre", value, value - 0.1, value + 0.1, verdict)
            )
    return pd.DataFrame(rows, columns=COLUMNS)


TRUST = make_trust(
    {
        "saliency": {"insertion": -0.3, "road": 0.0},
        "grad_cam": {"insertion": 0.4, "road": 0.3},
        "rollout": {"insertion": 0.2, "road": 0.5},
    }
)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def dots(ax):
    """(x, y, marker, colour) of each dot, without zero line and intervals."""
    return [
        (
            float(line.get_xdata()[0]),
            int(line.get_ydata()[0]),
            line.get_marker(),
            to_hex(line.get_color()),
        )
        for line in ax.lines
        if line.get_marker() not in ("None", "")
    ]


def test_trust_ranks_methods_and_shows_each_verdict():
    axes = plots.plot_trust(TRUST)
    assert axes.shape == (2,)
    assert labels(axes[0].yaxis) == [
        "Grad-CAM",
        "attention rollout",
        "saliency",
    ], "ranks 1.5, 1.5, 3; ties in the table's order"
    better, _, worse, _ = (to_hex(color) for color, _ in VERDICTS.values())
    assert dots(axes[0]) == [(0.4, 0, ">", better), (0.2, 1, ">", better), (-0.3, 2, "<", worse)]
    assert [mark for *_, mark, _ in dots(axes[1])] == [">", ">", "o"]
    interval = next(line for line in axes[0].lines if len(set(line.get_xdata())) == 2)
    np.testing.assert_allclose(interval.get_xdata(), [0.3, 0.5])
    assert texts(axes[0]) == ["insertion"]
    assert texts(axes[1]) == ["ROAD", "2 of 2", "2 of 2", "0 of 2"]
    legend = axes[0].get_figure(root=True).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(VERDICTS)[:3]
    few = plots.plot_trust(TRUST.assign(verdict="too few images to show anything"))
    legend = few[0].get_figure(root=True).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(VERDICTS) and {
        mark for *_, mark, _ in dots(few[0])
    } == {"x"}


def test_trust_in_an_order_of_ones_own_with_gaps():
    table = TRUST[~((TRUST["method"] == "rollout") & (TRUST["metric"] == "road"))].copy()
    table.loc[table["method"] == "saliency", ["difference", "verdict"]] = np.nan
    axes = plots.plot_trust(table, order=["saliency", "rollout"])
    assert labels(axes[0].yaxis) == ["saliency", "attention rollout"]
    assert texts(axes[0]) == ["–", "insertion"] and texts(axes[1])[:2] == ["–", "–"]
    assert texts(axes[1])[3:] == ["0 of 0", "1 of 1"]
    with pytest.raises(
        ValueError, match=r"unknown method in order 'grad_cm'. Did you mean grad_cam"
    ):
        plots.plot_trust(table, order=["grad_cm"])


def test_mean_ranks_and_counts():
    ranks = rank_methods(TRUST).set_index("method")
    assert ranks["mean_rank"].to_dict() == {"grad_cam": 1.5, "rollout": 1.5, "saliency": 3.0}
    assert ranks["better"].to_dict() == {"grad_cam": 2, "rollout": 2, "saliency": 0}
    assert ranks["worse"].tolist() == [0, 0, 1] and ranks["metrics"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("limits", "ticks"),
    [
        ((-0.1, 0.5), [0, 0.4]),
        ((-3.0, 1.0), [0, -2.0]),
        ((-0.01, 0.09), [0, 0.05]),
        ((-1, 11), [0, 5]),
    ],
)
def test_two_round_ticks(limits, ticks):
    places, names = _two_ticks(*limits)
    np.testing.assert_allclose(places, ticks)
    assert names == ["0", f"{ticks[1]:g}".replace("-", "−")]
    assert limits[0] <= places[1] <= limits[1]


def test_trust_by_model_marks_methods_that_a_model_lacks():
    cnn = make_trust({"grad_cam": {"insertion": 0.0}, "saliency": {"insertion": 0.2}})
    ax = plots.plot_trust_by_model({"hybrid_vit": TRUST, "efficientnet_lite0": cnn})
    assert labels(ax.yaxis) == ["attention rollout", "Grad-CAM", "saliency"], "means 1.5, 1.75, 2"
    assert labels(ax.xaxis) == ["hybrid_vit", "efficientnet_\nlite0"]
    shown = texts(ax)
    assert shown[-1] == "–" and set(shown[:-1]) == {
        "1.5 (2/2)",
        "3.0 (0/2)",
        "2.0 (0/1)",
        "1.0 (1/1)",
    }
    np.testing.assert_allclose(ax.collections[0].get_array().reshape(3, 2)[1:], [[1.5, 2], [3, 1]])


def test_agreement_shows_each_pair_once_and_marks_gaps():
    pairs = [
        ("grad_cam", "rollout", 0.25),
        ("grad_cam", "saliency", np.nan),
        ("rollout", "saliency", -0.5),
    ]
    ax = plots.plot_agreement(pd.DataFrame(pairs, columns=["method_a", "method_b", "value"]))
    assert labels(ax.xaxis) == ["attention rollout", "saliency"]
    assert labels(ax.yaxis) == ["Grad-CAM", "attention rollout"]
    assert texts(ax) == ["0.25", "-0.50", "–"]
    assert ax.collections[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plots.plot_trust(TRUST.drop(columns="verdict")),
            "trust_table: columns missing: verdict; the table has method",
        ),
        (lambda: plots.plot_trust(TRUST[:0]), "trust_table has no rows"),
        (
            lambda: plots.plot_trust(TRUST.replace({"verdict": {"worse": "bad"}})),
            "trust_table: unknown verdict 'bad'",
        ),
        (
            lambda: plots.plot_trust(pd.concat([TRUST, TRUST])),
            "more than one row for saliency and insertion; give one model's",
        ),
        (lambda: plots.plot_trust_by_model({}), "tables is empty"),
        (
            lambda: plots.plot_trust_by_model({"a": TRUST[["method"]]}),
            "trust table of a: columns missing: metric",
        ),
        (
            lambda: plots.plot_agreement(pd.DataFrame({"method_a": ["x"]})),
            "agreement table: columns missing: method_b, value",
        ),
    ],
)
def test_tables_that_do_not_fit(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_verdicts_differ_in_lightness_and_shape_too():
    assert len({marker for _, marker in VERDICTS.values()}) == 4
    assert {color for color, _ in VERDICTS.values()} & set(PALETTE) == {PALETTE[0], PALETTE[3]}

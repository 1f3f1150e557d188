"""Explanations put to the test, test by test: patches taken away, weights made random, a planted
truth.
"""

from __future__ import annotations

import math
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.stats import sem, t
from statsmodels.stats.proportion import proportion_confint

from vitlab.errors import UserError
from vitlab.plots.rows import draw_interval, list_rows
from vitlab.plots.style import (
    GREY,
    MARKERS,
    PALETTE,
    check_table,
    few_ticks,
    new_figure,
    panel_grid,
    readable,
    series_colors,
)
from vitlab.plots.trust import CONTROLS
from vitlab.registry import unknown

KINDS = {
    "insertion": ("most important patches put in first", PALETTE[0]),
    "deletion": ("… taken away first", PALETTE[1]),
}
TOGETHER = 5  # methods whose curves can be told apart in one panel
DASHES = ((0, (4, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))  # of the controls
BAND = 0.16  # opacity
POINTING = {
    "hit": "pointing game:\nhit rate",
    "mass": "relevance mass\nin the stamp",
    "rank": "relevance rank:\nshare of the top pixels",
}


def plot_perturbation_curves(curves: pd.DataFrame) -> np.ndarray:
    """The target's probability while patches are put in or taken away, mean over images with its 95
    % interval.

    curves: columns method, kind ("insertion" or "deletion"), sample_id, share (of cells changed,
    0..1), score. Controls (random, centre, edges) are grey and dashed. Up to five methods share a
    panel for each kind; of more, each gets a panel of its own, with both kinds in it. An array of
    axes."""
    check_table(
        curves, ("method", "kind", "sample_id", "share", "score"), "table of perturbation curves"
    )
    for kind in curves["kind"].unique():
        if kind not in KINDS:
            raise UserError(
                "table of perturbation curves: " + unknown("kind", str(kind), list(KINDS))
            )
    means = _mean_over_images(curves, ["method", "kind", "share"], "score")
    kinds = [kind for kind in KINDS if kind in set(curves["kind"])]
    methods, controls = split_controls(curves["method"])
    if not methods:
        raise UserError(
            f"perturbation curves: only controls ({', '.join(controls)}); add the curves of at"
            " least one method"
        )
    return (_draw_together if len(methods) <= TOGETHER else _draw_apart)(
        means, kinds, methods, controls
    )


def split_controls(names) -> tuple[list[str], list[str]]:
    """The methods, and the controls, each once and in the order they come."""
    names = list(pd.unique(pd.Series(names)))
    return [name for name in names if name not in CONTROLS], [
        name for name in names if name in CONTROLS
    ]


def _draw_together(means, kinds, methods, controls):
    lines = math.ceil((len(methods) + len(controls)) / 4)
    figure = new_figure(2.6 + 0.17 * lines)
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    colors = series_colors(methods)
    for ax, kind in zip(axes, kinds, strict=True):
        for method, dashes in zip(controls, DASHES, strict=False):
            _draw_curve(
                ax,
                means,
                method,
                kind,
                GREY,
                linestyle=dashes,
                linewidth=1.2,
                label=f"{readable(method)} (control)",
            )
        for number, method in enumerate(methods):
            mark = {"marker": MARKERS[number % len(MARKERS)], "markersize": 3.5, "markevery": 0.14}
            _draw_curve(ax, means, method, kind, colors[method], label=readable(method), **mark)
        better = "higher" if kind == "insertion" else "lower"
        ax.set_title(f"{kind} ({better} is better)")
        _dress_share(ax)
        ax.set_xlabel("share of patches " + ("put in" if kind == "insertion" else "taken away"))
    axes[0].set_ylabel("probability of the target")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return axes


def _draw_apart(means, kinds, methods, controls):
    axes = panel_grid(len(methods), 4, 1.5, sharex=True, sharey=True)
    for ax, method in zip(axes, methods, strict=True):
        for kind in kinds:
            for control, dashes in zip(controls, DASHES, strict=False):
                _draw_curve(
                    ax, means, control, kind, GREY, band=False, linestyle=dashes, linewidth=0.9
                )
            _draw_curve(ax, means, method, kind, KINDS[kind][1])
        ax.set_title(textwrap.fill(readable(method), 24), fontsize=8)
        _dress_share(ax)
    figure = axes[0].get_figure(root=True)
    figure.set_figheight(figure.get_figheight() + 0.7)
    figure.supylabel("probability of the target", fontsize=8)
    words = {"insertion": "insertion (higher is better)", "deletion": "deletion (lower is better)"}
    handles = [Line2D([], [], color=KINDS[kind][1], label=words[kind]) for kind in kinds]
    handles += [
        Line2D(
            [], [], color=GREY, linestyle=dashes, linewidth=0.9, label=f"{readable(name)} (control)"
        )
        for name, dashes in zip(controls, DASHES, strict=False)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3,
        title="share of patches put in or taken away",
    )
    return axes


def _draw_curve(
    ax: Axes,
    means: pd.DataFrame,
    method: str,
    kind: str,
    color: str,
    *,
    band: bool = True,
    **options,
) -> None:
    part = means[(means["method"] == method) & (means["kind"] == kind)].sort_values("share")
    if band:
        ax.fill_between(
            part["share"], part["low"], part["high"], color=color, alpha=BAND, linewidth=0
        )
    ax.plot(part["share"], part["mean"], color=color, **options)


def _dress_share(ax: Axes) -> None:
    ax.set(xlim=(0, 1))
    ax.xaxis.set_major_locator(few_ticks(2))
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    ax.yaxis.set_major_locator(few_ticks(4))
    ax.grid(axis="y")


def _mean_over_images(table: pd.DataFrame, by: list[str], column: str) -> pd.DataFrame:
    """Mean, and its 95 % t interval over images; a single image has no interval."""
    table = table.groupby(by, sort=False)[column].agg(["mean", "sem", "count"]).reset_index()
    error = t.ppf(0.975, (table["count"] - 1).clip(lower=1)) * table["sem"]
    return table.assign(low=table["mean"] - error, high=table["mean"] + error)


def plot_randomisation(table: pd.DataFrame) -> np.ndarray:
    """How much of a map is left while the model's weights are made random, a panel for each method:
    an array of axes (methods,).

    The line is the mean over images, the band holds the middle 80 % of them. 1 is the map of the
    trained model, 0 a map that has nothing in common with it: what stays near 1 does not depend on
    what the model learned. Controls are grey and dashed. Further lines where the table has the
    columns: absolute, the similarity of absolute values, and other_image, what the trained model's
    maps of different images have in common anyway, below which a curve cannot be expected to fall.
    table: columns method, step (0 = trained), layer (what was made random last), sample_id,
    similarity (rank correlation with the map of step 0)."""
    check_table(
        table, ("method", "step", "layer", "sample_id", "similarity"), "randomisation table"
    )
    methods, controls = split_controls(table["method"])
    methods, controls = (methods, controls) if methods else (controls, [])
    groups = table.groupby(["method", "step"])["similarity"]
    curves = pd.DataFrame(
        {"mean": groups.mean(), "low": groups.quantile(0.1), "high": groups.quantile(0.9)}
    )
    columns = max(1, min(4, len(methods)))
    axes = panel_grid(len(methods), columns, 1.45, sharex=True, sharey=True)
    for ax, method in zip(axes, methods, strict=True):
        ax.axhline(0, color=GREY, linestyle=":", linewidth=1)
        for control, dashes in zip(controls, DASHES, strict=False):
            ax.plot(
                curves.loc[control, "mean"],
                color=GREY,
                linestyle=dashes,
                linewidth=1.1,
                label=f"{readable(control)} (control)",
            )
        curve = curves.loc[method]
        ax.fill_between(
            curve.index, curve["low"], curve["high"], color=PALETTE[0], alpha=BAND, linewidth=0
        )
        ax.plot(curve["mean"], color=PALETTE[0], marker="o", markersize=3, label="method")
        part = table[table["method"] == method].groupby("step")
        if "absolute" in table and not np.allclose(part["absolute"].mean(), curve["mean"]):
            ax.plot(
                part["absolute"].mean(),
                color=PALETTE[1],
                marker="s",
                markersize=2.5,
                linewidth=1.1,
                label="absolute values",
            )
        if "other_image" in table:
            ax.axhline(
                table.loc[table["method"] == method, "other_image"].mean(),
                color=PALETTE[3],
                linestyle=(0, (1, 1.2)),
                linewidth=1.2,
                label="maps of other images",
            )
        last = curve["mean"].iloc[-1]
        ax.annotate(
            f"{last:.2f}",
            (curve.index[-1], last),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            bbox={"color": "white", "pad": 0},
        )
        ax.set_title(textwrap.fill(readable(method), 24), fontsize=8)
        ax.yaxis.set_major_locator(few_ticks(3))
        ax.grid(axis="y")
    axes[0].set_ylim(min(0.0, curves["low"].min()) - 0.05, 1.12)
    steps = table.drop_duplicates("step").sort_values("step")
    # of several, the last
    names = ["trained", *(str(name).rpartition(" to ")[2] for name in steps["layer"].iloc[1:])]
    shown = range(len(names)) if len(names) <= 4 else sorted({0, len(names) // 2, len(names) - 1})
    # room for the last value
    axes[0].set_xlim(-0.06 * steps["step"].max(), 1.22 * steps["step"].max())
    axes[0].set_xticks(steps["step"].to_numpy()[list(shown)], [names[i] for i in shown])
    for ax in axes[-columns:]:  # the last of each column, also where a panel below it is missing
        ax.tick_params(axis="x", labelbottom=True, rotation=35, labelsize=7)
        plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    figure = axes[0].get_figure(root=True)
    figure.set_figheight(figure.get_figheight() + 0.7 + 0.35 * bool(len(methods) % columns))
    figure.supylabel("similarity to the map of the trained model", fontsize=8)
    title = "weights made random, from the head down to …"
    named = {}
    for ax in axes:
        named |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, title=title)
    return axes


def plot_pointing(table: pd.DataFrame) -> np.ndarray:
    """How well each method (rows, best first) finds the planted stamp: hit rate, mass and rank, an
    array of axes (3,).

    Dots are means over images; the 95 % interval of the hit rate is Wilson's, the others are t
    intervals. The dashed line is what a map without any knowledge of the stamp reaches on average:
    the stamp's share of the area. Controls are grey and hollow. table: columns method, sample_id,
    hit (bool, or the share of equal maxima that hit), mass, rank, chance (all 0..1); hit_chance
    where the hit rate has a chance of its own."""
    check_table(table, ("method", "sample_id", "hit", "mass", "rank", "chance"), "pointing table")
    means = table.groupby("method", sort=False)[["hit", "mass", "rank"]].mean().mean(axis=1)
    methods = list(means.sort_values(ascending=False, kind="stable").index)
    figure = new_figure(0.95 + 0.23 * len(methods))
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (column, title) in zip(axes, POINTING.items(), strict=True):
        for place, method in enumerate(methods):
            values = table.loc[table["method"] == method, column].to_numpy(float)
            low, high = _interval(values, column)
            control = method in CONTROLS
            color = GREY if control else PALETTE[0]
            draw_interval(ax, place, values.mean(), low, high, color, filled=not control)
        chance = "hit_chance" if column == "hit" and "hit_chance" in table else "chance"
        ax.axvline(
            table[chance].mean(),
            color=PALETTE[3],
            linestyle=(0, (4, 2)),
            linewidth=1.1,
            zorder=0,
            label="chance",
        )
        ax.set_title(title, fontsize=8)
        ax.set_xlim(-0.03, 1.03)
        list_rows(
            ax, [readable(name) + " (control)" * (name in CONTROLS) for name in methods], ticks=3
        )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center")
    return axes


def _interval(values: np.ndarray, column: str) -> tuple[float, float]:
    """95 % interval of the mean over images."""
    if column == "hit":
        # takes shares of a hit too
        low, high = proportion_confint(values.sum(), len(values), method="wilson")
        return float(low), float(high)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    low, high = t.interval(0.95, len(values) - 1, values.mean(), sem(values))
    return max(low, 0.0), min(high, 1.0)

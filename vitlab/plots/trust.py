"""Whether explanations can be trusted: tests of each method, its scores beside those of controls
(maps made without the model), and the agreement of methods.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.stats import sem, t
from statsmodels.stats.proportion import proportion_confint

from vitlab.extremes import describe_best, find_best
from vitlab.plots.style import (
    DIVERGING,
    GREY,
    MINUS,
    PALETTE,
    SEQUENTIAL,
    draw_band,
    draw_heatmap,
    draw_intervals,
    draw_level,
    few_ticks,
    name_rows,
    new_axes,
    new_figure,
    note_above,
    panel_grid,
    readable,
    shared_legend,
)

CONTROLS = ("random", "centre", "edges")  # maps made without the model
DASHES = ((0, (4, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))  # of the controls
KINDS = {  # label and colour
    "insertion": ("insertion (higher is better)", PALETTE[0]),
    "deletion": ("deletion (lower is better)", PALETTE[1]),
}
POINTING = {
    "hit": "pointing game:\nhit rate",
    "mass": "relevance mass\nin the stamp",
    "rank": "relevance rank:\nshare of the top pixels",
}
VERDICTS = {  # colour and marker, so that the colours are not needed to read it
    "better than all controls": (PALETTE[0], ">"),
    "not shown": (GREY, "o"),
    "worse": (PALETTE[3], "<"),
    "too few images to show anything": (GREY, "x"),
}
# metrics side by side that leave room for two numbers below each; of more, zero is the line alone
WIDE = 7
MAX_MODELS = 8


def plot_perturbation_curves(curves: pd.DataFrame) -> np.ndarray:
    """The target's probability while patches are inserted or deleted, mean over images with its
    95 % interval, a panel for each method: an array of axes (methods,).

    curves: columns method, kind ("insertion" or "deletion"), sample_id, share (of patches changed,
    0..1), score. Controls (random, centre, edges) are grey and dashed in every panel."""
    methods = [name for name in curves["method"].unique() if name not in CONTROLS]
    controls = [name for name in curves["method"].unique() if name in CONTROLS]
    groups = curves.groupby(["method", "kind", "share"])["score"].agg(["mean", "sem", "count"])
    error = t.ppf(0.975, (groups["count"] - 1).clip(lower=1)) * groups["sem"]
    means = groups.assign(low=groups["mean"] - error, high=groups["mean"] + error)
    axes = panel_grid(len(methods), 4, 1.5, sharex=True, sharey=True)
    for ax, method in zip(axes, methods, strict=True):
        for kind in curves["kind"].unique():
            for control, dashes in zip(controls, DASHES, strict=False):
                style = {"color": GREY, "linestyle": dashes, "linewidth": 0.9}
                label = f"{readable(control)} (control)"
                ax.plot(means.loc[control, kind]["mean"], label=label, **style)
            label, color = KINDS[kind]
            part = means.loc[method, kind]
            draw_band(ax, part.index, part, "mean", color=color, label=label, linewidth=1.6)
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_locator(few_ticks(2))
        ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        ax.yaxis.set_major_locator(few_ticks(4))
    _finish_panels(axes, methods, "probability of the target")
    shared_legend(axes, 3, title="share of patches inserted or deleted")
    return axes


def _finish_panels(axes: np.ndarray, methods: list[str], label: str) -> None:
    """Titles, a grid, one label for the y axes, and room for a legend."""
    for ax, method in zip(axes, methods, strict=True):
        ax.set_title(textwrap.fill(readable(method), 24), fontsize=8)
        ax.grid(axis="y")
    figure = axes[0].figure
    figure.set_figheight(figure.get_figheight() + 0.7)
    figure.supylabel(label, fontsize=8)


def plot_randomisation(table: pd.DataFrame) -> np.ndarray:
    """How similar a map stays while the model's weights are randomised, a panel for each method: an
    array of axes (methods,).

    The line is the mean over images, the band contains the middle 80 % of them. 1 is the map of the
    trained model: what stays near 1 does not depend on what the model learned. The dotted line is
    the similarity of the trained model's maps of different images: a curve cannot be expected to
    fall below it. table: columns method, step (0 = trained), layer (randomised last), sample_id,
    similarity (rank correlation with the map of step 0), absolute (that of absolute values), and
    other_image."""
    groups = table.groupby(["method", "step"])["similarity"]
    low, high = groups.quantile(0.1), groups.quantile(0.9)
    curves = pd.DataFrame({"mean": groups.mean(), "low": low, "high": high})
    methods = list(table["method"].unique())
    across = max(1, min(4, len(methods)))
    axes = panel_grid(len(methods), across, 1.45, sharex=True, sharey=True)
    for ax, method in zip(axes, methods, strict=True):
        curve, part = curves.loc[method], table[table["method"] == method]
        draw_level(ax)
        draw_band(ax, curve.index, curve, "mean", color=PALETTE[0], marker="o", label="method")
        absolute = part.groupby("step")["absolute"].mean()
        if not np.allclose(absolute, curve["mean"]):
            style = {"color": PALETTE[1], "marker": "s", "markersize": 2.5, "linewidth": 1.1}
            ax.plot(absolute, label="absolute values", **style)
        style = {"color": PALETTE[3], "linestyle": (0, (1, 1.2)), "linewidth": 1.2}
        ax.axhline(part["other_image"].mean(), label="maps of other images", **style)
        last, end = curve.index[-1], curve["mean"].iloc[-1]
        style = {"va": "center", "fontsize": 7, "bbox": {"color": "white", "pad": 0}}
        ax.annotate(f"{end:.2f}", (last, end), (4, 0), textcoords="offset points", **style)
        ax.yaxis.set_major_locator(few_ticks(3))
    steps = table.drop_duplicates("step").sort_values("step")
    # of several layers, the last
    names = ["trained", *(str(name).rpartition(" to ")[2] for name in steps["layer"].iloc[1:])]
    shown = sorted({0, len(names) // 2, len(names) - 1})
    axes[0].set_xticks(steps["step"].to_numpy()[shown], [names[place] for place in shown])
    axes[0].set_ylim(min(0.0, curves["low"].min()) - 0.05, 1.12)
    # room for the last value
    axes[0].set_xlim(-0.06 * steps["step"].max(), 1.22 * steps["step"].max())
    for ax in axes[-across:]:  # the last of each column, also where a panel below it is missing
        ax.tick_params(axis="x", labelbottom=True, rotation=35, labelsize=7)
    _finish_panels(axes, methods, "rank correlation with\nthe trained model's map")
    shared_legend(axes, title="weights randomised, from the head down to …")
    return axes


def plot_pointing(table: pd.DataFrame) -> np.ndarray:
    """How well each method (rows, best first) finds the planted stamp: hit rate, mass and rank, an
    array of axes (3,).

    Dots are means over images with 95 % intervals. The dashed line is what a map without any
    knowledge of the stamp reaches on average. Controls are grey and hollow. table: columns method,
    sample_id, hit (bool, or the share of equal maxima that hit), mass, rank, chance (all 0..1)."""
    means = table.groupby("method", sort=False)[list(POINTING)].mean().mean(axis=1)
    methods = list(means.sort_values(ascending=False, kind="stable").index)
    control = [name in CONTROLS for name in methods]
    looks = {"color": np.where(control, GREY, PALETTE[0]), "filled": np.logical_not(control)}
    axes = new_figure(0.95 + 0.23 * len(methods)).subplots(1, 3, sharey=True)
    for ax, (column, title) in zip(axes, POINTING.items(), strict=True):
        parts = [table.loc[table["method"] == name, column].to_numpy(float) for name in methods]
        rows = [(values.mean(), *_interval(values, column)) for values in parts]
        draw_intervals(ax, pd.DataFrame(rows, columns=["value", "low", "high"]).assign(**looks))
        style = {"color": PALETTE[3], "linestyle": (0, (4, 2)), "linewidth": 1.1, "zorder": 0}
        ax.axvline(table["chance"].mean(), label="chance", **style)
        ax.set_title(title, fontsize=8)
        ax.set_xlim(-0.03, 1.03)
        names = [readable(name) + " (control)" * (name in CONTROLS) for name in methods]
        name_rows(ax, names, ticks=3)
    shared_legend(axes[:1])
    return axes


def _interval(values: np.ndarray, column: str) -> tuple[float, float]:
    """95 % interval of the mean over images: Wilson's for the hit rate, else Student's t."""
    if column == "hit":  # takes shares of a hit too
        low, high = proportion_confint(values.sum(), len(values), method="wilson")
        return float(low), float(high)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    low, high = t.interval(0.95, len(values) - 1, values.mean(), sem(values))
    return max(low, 0.0), min(high, 1.0)


def plot_trust(trust_table: pd.DataFrame, ranks: pd.DataFrame) -> np.ndarray:
    """Every method (rows) on every metric (columns) against the best control: an array of axes
    (metrics,).

    A dot is the difference to the best control, right of zero being better, with its interval;
    colour and shape are the verdict. At the right: on how many metrics a method is better than all
    controls. trust_table: columns method, metric, difference, difference_low, difference_high,
    verdict (a key of VERDICTS), a row for each method and metric; a pair that is missing, or NaN,
    is a dash. ranks: a `rank_table` of it, which gives the order of the methods."""
    methods = list(ranks["method"])
    metrics = list(trust_table["metric"].unique())
    names = {"difference_low": "low", "difference_high": "high", "difference": "value"}
    table = trust_table[["method", "metric", "verdict", *names]].rename(columns=names)
    looks = table["verdict"].map(lambda verdict: VERDICTS.get(verdict, (GREY, "o")))
    table = table.assign(color=looks.str[0], marker=looks.str[1], note="–")
    table["filled"] = table["marker"] != "o"
    axes = _open_trust(metrics, len(methods))
    for ax, metric in zip(axes, metrics, strict=True):
        rows = table[table["metric"] == metric].set_index("method").reindex(methods)
        draw_intervals(ax, rows.fillna({"note": "–"}))
        for place in range(0, len(methods), 2):  # guides the eye from the name to the last metric
            ax.axhspan(place - 0.5, place + 0.5, color="0.955", linewidth=0, zorder=0)
        ax.axvline(0, color="0.2", linewidth=0.8, zorder=1)
        ax.margins(x=0.12)
        low, high = ax.get_xlim()
        low, high = min(low, -0.06 * (high - low)), max(high, 0.06 * (high - low))
        ax.set_xlim(low, high)
        ticks, labels = _two_ticks(low, high)
        ax.set_xticks(ticks, labels if len(metrics) <= WIDE else ["", labels[1]])
        ax.tick_params(axis="x", labelsize=7)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(methods)), [readable(name) for name in methods])
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    right = {"xycoords": axes[-1].get_yaxis_transform(), "textcoords": "offset points"}
    for place, row in enumerate(ranks.itertuples()):
        text = f"{row.better:.0f} of {row.metrics:.0f}"
        axes[-1].annotate(text, (1, place), (6, 0), va="center", fontsize=7.5, **right)
    for verdict, (color, marker) in VERDICTS.items():
        if verdict in set(trust_table["verdict"]) or marker != "x":
            look = {"color": color, "marker": marker, "markersize": 5, "linewidth": 1.2}
            inside = "white" if marker == "o" else color
            axes[0].plot([], [], label=verdict, markerfacecolor=inside, **look)
    title = "difference to the best control (right of 0: the method is better)"
    shared_legend(axes[:1], 3, title=title)
    return axes


def _open_trust(metrics: list[str], rows: int) -> np.ndarray:
    """Axes side by side with slanting titles, for which the layout leaves room."""
    longest = max(len(readable(metric)) for metric in metrics)
    above = 0.1 + 0.038 * longest  # inches
    figure = new_figure(0.95 + above + 0.25 * rows)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - above / figure.get_figheight()))
    # else a notebook, which trims its figures, would cut the titles off
    figure.add_artist(Line2D([0, 1], [1, 1], alpha=0))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    slanting = {"rotation": 32, "rotation_mode": "anchor", "va": "bottom", "fontsize": 7.5}
    corner = {"xycoords": "axes fraction", "textcoords": "offset points"}
    for ax, metric in zip(axes, metrics, strict=True):
        title = ax.annotate(readable(metric), (0.2, 1), (0, 3), **corner, **slanting)
        title.set_in_layout(False)
    return axes


def _two_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Zero and one round value on the longer side, with their labels: panels this narrow have room
    for no more.
    """
    side = high if high >= -low else low
    size = 10.0 ** np.floor(np.log10(0.9 * abs(side)))
    step = max(factor for factor in (1, 2, 4, 5) if factor * size <= 0.9 * abs(side)) * size
    tick = float(np.copysign(step, side))
    return [0, tick], ["0", f"{tick:g}".replace("-", MINUS)]


def plot_trust_by_model(ranks: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Mean rank of each method (rows) for each model (columns), and on how many metrics it beats
    all controls.

    ranks: a `rank_table` for each model. A method that a model does not support (attention rollout
    of a CNN) is a dash. Methods are sorted by their mean over the models. Of more than eight
    models, those whose methods are better than all controls most often are shown."""
    shares = {name: table["better"].sum() / table["metrics"].sum() for name, table in ranks.items()}
    best = find_best(pd.Series(shares), MAX_MODELS)
    long = pd.concat([ranks[name].assign(model=name) for name in best])
    long = long.dropna(subset=["mean_rank"])
    words = [
        f"{row.mean_rank:.1f} ({row.better:.0f}/{row.metrics:.0f})" for row in long.itertuples()
    ]
    wide = long.assign(words=words).pivot(index="method", columns="model")
    values = wide["mean_rank"].reindex(columns=best)
    values = values.loc[values.mean(axis=1).sort_values(kind="stable").index]
    words = wide["words"].reindex(index=values.index, columns=best).fillna("–")
    ax = new_axes(ax, 1.15 + 0.3 * len(values), min(6.3, 2.4 + 1.2 * len(best)))
    draw_heatmap(ax, values, words, "mean rank (1 = best)", SEQUENTIAL)
    ax.collections[0].colorbar.ax.invert_yaxis()
    ax.set_xlabel("in brackets: on how many metrics better than all controls")
    ax.set_yticklabels([readable(name) for name in values.index])
    wrapped = [textwrap.fill(name.replace("_", "_ "), 14).replace("_ ", "_") for name in best]
    ax.set_xticklabels(wrapped)
    note_above(ax.figure, describe_best(len(best), len(ranks), "the trust in their explanations"))
    return ax


def plot_agreement(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How similar the maps of each two methods are, as numbers in the upper triangle; "–" where a
    pair could not be compared.

    table: a row for each pair, with columns method_a, method_b and value (the mean rank correlation
    over images, -1..1)."""
    order = list(pd.unique(pd.concat([table["method_a"], table["method_b"]])))
    swapped = table.rename(columns={"method_a": "method_b", "method_b": "method_a"})
    square = pd.concat([table, swapped]).pivot(index="method_a", columns="method_b", values="value")
    # the last row and the first column would be empty
    values = square.reindex(index=order[:-1], columns=order[1:])
    size = len(values)
    below = np.tril(np.ones((size, size), dtype=bool), -1)
    words = values.map("{:.2f}".format).replace("nan", "–").mask(below, "")
    ax = new_axes(ax, max(2.4, 1.35 + 0.33 * size), min(6.3, 2.6 + 0.46 * size))
    draw_heatmap(ax, values.mask(below), words, "rank correlation", DIVERGING, vmin=-1, vmax=1)
    ax.set_facecolor("white")
    ax.xaxis.tick_top()
    ax.set_xticklabels([readable(name) for name in order[1:]], rotation=40, ha="left")
    ax.set_yticklabels([readable(name) for name in order[:-1]])
    ax.tick_params(length=0)
    return ax

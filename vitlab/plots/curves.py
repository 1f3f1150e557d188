"""ROC and precision-recall curves, with their bands."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vitlab.errors import UserError
from vitlab.extremes import MAX_LINES, find_extremes
from vitlab.plots.style import (
    GREY,
    PALETTE,
    class_colors,
    legend_below,
    legend_name,
    new_axes,
    new_figure,
    series_colors,
    shorten,
)

GRID = np.linspace(0, 1, 201)  # where the curves of several classes are averaged


def plot_roc(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame],
    ax: Axes | None = None,
    band: pd.DataFrame | None = None,
) -> Axes:
    """ROC curves with their area, and the line of chance. tables: one `roc_table`, or one for each
    name (model, seed).

    One table of up to five classes gives a curve for each class; of more, the mean, the range, the
    lowest and the highest curve. Several tables of several classes give one curve each, the mean
    over its classes. band: with one table, a `curve_band_table` of the same kind, drawn around the
    curve of each class where each has one."""
    x, y = "false_positive_rate", "true_positive_rate"
    lines, everyone = _list_lines(tables, lambda curve: np.trapezoid(curve[y], curve[x]))
    ax = new_axes(ax, 3.5 + 0.1 * len(lines), 4.2)
    heights = [np.array([0, *np.interp(GRID, curve[x], curve[y])]) for curve in everyone]
    _fill_range(ax, np.array([0, *GRID]), heights)
    for name, color, curves, area in lines:
        label = _label(name, f"AUC {area:.3f}")
        if len(curves) == 1:
            ax.plot(curves[0][x], curves[0][y], color=color, label=label)
        else:
            mean = np.mean([np.interp(GRID, curve[x], curve[y]) for curve in curves], axis=0)
            ax.plot([0, *GRID], [0, *mean], color=color, label=label)
    if band is not None and not everyone:
        _fill_bands(ax, lines, band, x)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="chance (AUC 0.500)")
    ax.set(xlabel="false positive rate", ylabel="true positive rate (recall)")
    return _finish_square(ax, _subject(tables))


def plot_precision_recall(
    table: pd.DataFrame, ax: Axes | None = None, band: pd.DataFrame | None = None
) -> Axes:
    """Precision-recall curves with average precision, and the prevalence: what guessing reaches.
    Tables as in `plot_roc`.
    """
    lines, everyone = _list_lines(
        table, lambda curve: -(curve["recall"].diff() * curve["precision"].shift()).sum()
    )
    ax = new_axes(ax, 3.5 + 0.1 * len(lines), 4.2)
    _fill_range(ax, GRID, [_precision_at(curve) for curve in everyone])
    for name, color, curves, average in lines:
        label = _label(name, f"AP {average:.3f}")
        if len(curves) == 1:
            ax.step(
                curves[0]["recall"], curves[0]["precision"], where="post", color=color, label=label
            )
        else:
            ax.plot(
                GRID,
                np.mean([_precision_at(curve) for curve in curves], axis=0),
                color=color,
                label=label,
            )
    if band is not None and not everyone:
        _fill_bands(ax, lines, band, "recall")
    if lines:
        level = np.mean([curve["precision"].iloc[0] for _, curve in table.groupby("class")])
        ax.axhline(
            level, color=GREY, linewidth=0.8, linestyle=":", label=f"prevalence ({level:.3f})"
        )
    ax.set(xlabel="recall", ylabel="precision")
    return _finish_square(ax, _subject(table))


def plot_curves(
    roc: pd.DataFrame,
    precision_recall: pd.DataFrame,
    bands: Mapping[str, pd.DataFrame] | None = None,
) -> np.ndarray:
    """`plot_roc` and `plot_precision_recall` side by side. bands: a `curve_band_table` each for
    "roc" and "precision_recall".
    """
    bands = bands or {}
    entries = min(roc["class"].nunique(), MAX_LINES) + 2  # with chance and the title of the legend
    axes = new_figure(3.3 + 0.17 * entries).subplots(1, 2)
    plot_roc(roc, axes[0], bands.get("roc"))
    plot_precision_recall(precision_recall, axes[1], bands.get("precision_recall"))
    return axes


def _list_lines(
    tables, measure
) -> tuple[list[tuple[str, str, list[pd.DataFrame], float]], list[pd.DataFrame]]:
    """Name, colour, curves and mean area of each line to be drawn; and all curves where not every
    class has a line.
    """
    if isinstance(tables, Mapping) and len(tables) > 1:
        colors = series_colors(tables)
        lines = [
            (name, colors[name], [curve for _, curve in table.groupby("class", sort=False)])
            for name, table in tables.items()
        ]
        lines = [(*line, float(np.mean([measure(curve) for curve in line[2]]))) for line in lines]
        return [lines[place] for place in find_extremes([line[3] for line in lines])], []
    name, table = next(iter(tables.items())) if isinstance(tables, Mapping) else ("", tables)
    groups = dict(list(table.groupby("class", sort=False)))
    areas = pd.Series(
        {label: float(measure(curve)) for label, curve in groups.items()}, dtype=float
    )
    if len(groups) == 1:
        return [(name, series_colors([name])[name], list(groups.values()), areas.iloc[0])], []
    if len(groups) <= MAX_LINES:
        colors = class_colors(list(groups))
        return [
            (label, color, [groups[label]], areas[label]) for label, color in colors.items()
        ], []
    low, high = areas.idxmin(), areas.idxmax()
    return [
        (f"mean of {len(groups):,} classes", "black", list(groups.values()), areas.mean()),
        (f"lowest: {shorten(low)}", PALETTE[3], [groups[low]], areas[low]),
        (f"highest: {shorten(high)}", PALETTE[0], [groups[high]], areas[high]),
    ], list(groups.values())


def _precision_at(curve: pd.DataFrame) -> np.ndarray:
    """The precision over the grid of recalls."""
    rising = curve.iloc[::-1]
    return np.interp(GRID, rising["recall"], rising["precision"])


def _fill_range(ax: Axes, at: np.ndarray, heights: list[np.ndarray]) -> None:
    if heights:
        low, high = np.min(heights, axis=0), np.max(heights, axis=0)
        ax.fill_between(
            at, low, high, color=GREY, alpha=0.2, linewidth=0, label="range of the classes"
        )


def _fill_bands(ax: Axes, lines, band: pd.DataFrame, x: str) -> None:
    """The area between low and high around the curve of each class."""
    if x not in band:
        raise UserError(f"the band has no column {x}: it is that of another kind of curve")
    for _, color, curves, _ in lines:
        own = band[band["class"] == curves[0]["class"].iloc[0]]
        ax.fill_between(own[x], own["low"], own["high"], color=color, alpha=0.2, linewidth=0)


def _subject(tables) -> str:
    """What the curves are about, for the title of the legend."""
    parts = list(tables.values()) if isinstance(tables, Mapping) else [tables]
    classes = {name for table in parts for name in table["class"].unique()}
    if len(classes) == 1:
        return f"class: {shorten(classes.pop())}"
    return "class, against the rest" if len(parts) == 1 else f"mean over {len(classes)} classes"


def _label(name: str, score: str) -> str:
    return f"{legend_name(name)} ({score})" if name else score


def _finish_square(ax: Axes, title: str) -> Axes:
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), box_aspect=1)
    ax.grid(True)
    width = ax.get_position().width * ax.get_figure().get_size_inches()[0]
    # two columns run into a neighbour's
    legend_below(ax, 1 if len(ax.lines) <= 3 or width < 2.8 else 2, title=title)
    return ax

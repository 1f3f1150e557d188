"""How good the predictions are: confusion, curves, calibration, slices, mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vitlab.errors import UserError
from vitlab.plots.data import plot_sample_grid
from vitlab.plots.style import (
    GREY,
    PALETTE,
    class_colors,
    few_ticks,
    legend_below,
    legend_name,
    new_axes,
    panel_grid,
    readable,
    series_colors,
)

GRID = np.linspace(0, 1, 201)  # where the curves of several classes are averaged


def plot_confusion(confusion_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Counts, and their share of the true class: a row for each true class, a column for each predicted one."""
    counts = confusion_table.to_numpy()
    classes = list(confusion_table.columns)
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    side = min(4.4, 1.0 + 0.85 * len(classes))
    ax = new_axes(ax, side, side + 1.2)
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    few = len(classes) <= 5
    for (row, column), count in np.ndenumerate(counts):
        text = f"{count:,}\n{share[row, column]:.0%}" if few or (count and len(classes) <= 15) else ""
        color = "white" if share[row, column] > 0.5 else "black"
        ax.text(column, row, text, ha="center", va="center", color=color, fontsize=9 if few else 6.5)
    turned = max(map(len, classes)) * len(classes) > 45
    ax.set_xticks(
        range(len(classes)),
        classes,
        rotation=40 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )
    ax.set_yticks(range(len(classes)), [f"{name}\nn = {total:,}" for name, total in zip(classes, totals[:, 0], strict=True)])
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, label="share of the true class")
    bar.outline.set_visible(False)
    return ax


def plot_roc(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame],
    ax: Axes | None = None,
    bands: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
) -> Axes:
    """ROC curves with their area, and the line of chance. tables: one `roc_table`, or one for each name (model, seed).

    One table of several classes gives a curve for each class; several such tables give one curve each, the mean over its classes.
    bands: a `curve_band_table` of the same kind, or one for each name, drawn around its curve; a mean over classes has none.
    """
    x, y = "false_positive_rate", "true_positive_rate"
    lines = _list_curves(tables)
    ax = new_axes(ax, 3.5 + 0.1 * len(lines), 4.2)
    for name, color, curves in lines:
        area = np.mean([np.trapezoid(curve[y], curve[x]) for curve in curves])
        if len(curves) == 1:
            ax.plot(curves[0][x], curves[0][y], color=color, label=_label(name, f"AUC {area:.3f}"))
        else:
            mean = np.mean([np.interp(GRID, curve[x], curve[y]) for curve in curves], axis=0)
            ax.plot([0, *GRID], [0, *mean], color=color, label=_label(name, f"AUC {area:.3f}"))
    _fill_bands(ax, lines, tables, bands, x)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="chance (AUC 0.500)")
    ax.set(xlabel="false positive rate", ylabel="true positive rate (recall)")
    return _finish_square(ax, _subject(tables))


def plot_precision_recall(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame],
    ax: Axes | None = None,
    bands: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
) -> Axes:
    """Precision-recall curves with average precision, and the prevalence: what guessing reaches. Tables as in `plot_roc`."""
    lines = _list_curves(tables)
    ax = new_axes(ax, 3.5 + 0.1 * len(lines), 4.2)
    prevalences = []
    for name, color, curves in lines:
        average = np.mean([-(curve["recall"].diff() * curve["precision"].shift()).sum() for curve in curves])
        prevalences += [curve["precision"].iloc[0] for curve in curves]
        label = _label(name, f"AP {average:.3f}")
        if len(curves) == 1:
            ax.step(curves[0]["recall"], curves[0]["precision"], where="post", color=color, label=label)
        else:
            rising = [curve.iloc[::-1] for curve in curves]
            mean = np.mean([np.interp(GRID, curve["recall"], curve["precision"]) for curve in rising], axis=0)
            ax.plot(GRID, mean, color=color, label=label)
    _fill_bands(ax, lines, tables, bands, "recall")
    if prevalences:
        level = np.mean(prevalences)
        ax.axhline(level, color=GREY, linewidth=0.8, linestyle=":", label=f"prevalence ({level:.3f})")
    ax.set(xlabel="recall", ylabel="precision")
    return _finish_square(ax, _subject(tables))


def _list_curves(tables) -> list[tuple[str, str, list[pd.DataFrame]]]:
    """Name, colour and the curves behind each line to be drawn."""
    if isinstance(tables, Mapping) and len(tables) > 1:
        colors = series_colors(tables)
        return [
            (name, colors[name], [curve for _, curve in table.groupby("class", sort=False)]) for name, table in tables.items()
        ]
    name, table = next(iter(tables.items())) if isinstance(tables, Mapping) else ("", tables)
    groups = dict(list(table.groupby("class", sort=False)))
    if len(groups) == 1:
        return [(name, series_colors([name])[name], list(groups.values()))]
    return [(label, color, [groups[label]]) for label, color in class_colors(list(groups)).items()]


def _fill_bands(ax: Axes, lines, tables, bands, x: str) -> None:
    """The area between low and high of each line that has a band."""
    if bands is None:
        return
    if isinstance(tables, Mapping) != isinstance(bands, Mapping) or (isinstance(bands, Mapping) and set(bands) != set(tables)):
        raise UserError("bands go with the curves: one table for one table, or a mapping of the same names")
    for name, color, curves in lines:
        if len(curves) > 1:
            raise UserError("a mean over classes has no band: make curves and bands of one class, with positive=")
        table = bands[name] if isinstance(bands, Mapping) and name in bands else bands
        table = next(iter(table.values())) if isinstance(table, Mapping) else table
        if x not in table:
            raise UserError(f"the band has no column {x}: it is that of another kind of curve")
        own = table[table["class"] == curves[0]["class"].iloc[0]]
        ax.fill_between(own[x], own["low"], own["high"], color=color, alpha=0.2, linewidth=0)


def _subject(tables) -> str:
    """What the curves are about, for the title of the legend."""
    parts = list(tables.values()) if isinstance(tables, Mapping) else [tables]
    classes = {name for table in parts for name in table["class"].unique()}
    if len(classes) == 1:
        return f"class: {classes.pop()}"
    return "class, against the rest" if len(parts) == 1 else f"mean over {len(classes)} classes"


def _label(name: str, score: str) -> str:
    return f"{legend_name(name)} ({score})" if name else score


def _finish_square(ax: Axes, title: str) -> Axes:
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), box_aspect=1)
    ax.grid(True)
    width = ax.get_position().width * ax.get_figure().get_size_inches()[0]
    legend_below(ax, 1 if len(ax.lines) <= 3 or width < 2.6 else 2, title=title)  # two columns run into a neighbour's
    return ax


def plot_threshold(threshold_table: pd.DataFrame, ax: Axes | None = None, chosen: pd.DataFrame | None = None) -> Axes:
    """Precision, recall, specificity and F1 against the threshold on the probability of a class.

    chosen: a table of rule and threshold (`threshold_choice_table`); each threshold is marked with the names of its rules.
    """
    ax = new_axes(ax, 3.2 if chosen is None else 3.6)
    for name, color in series_colors(["precision", "recall", "specificity", "f1"]).items():
        ax.plot(threshold_table["threshold"], threshold_table[name], color=color, label=readable(name))
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":", label="0.5, the default")
    for threshold, names in list_marks(chosen).items():
        ax.axvline(threshold, color="black", linewidth=0.8, zorder=0)
        ax.text(threshold, 1.02, names, rotation=40, fontsize=7, ha="left", va="bottom", rotation_mode="anchor")
    ax.set(
        xlim=(0, 1),
        ylim=(-0.01, 1.01),
        xlabel=f"threshold on the probability of {threshold_table['class'].iloc[0]}",
        ylabel="score",
    )
    ax.grid(True)
    legend_below(ax, 5)
    return ax


def list_marks(chosen: pd.DataFrame | None) -> dict[float, str]:
    """The rules that chose each threshold within 0..1, from the lowest; the reference 0.5 has a line of its own."""
    if chosen is None:
        return {}
    rules = chosen[(chosen["rule"] != "0.5") & chosen["threshold"].between(0, 1)]
    return {threshold: ", ".join(readable(name) for name in part["rule"]) for threshold, part in rules.groupby("threshold")}


def plot_slices(slice_table: pd.DataFrame, columns: int = 2) -> np.ndarray:
    """The metrics of each slice with their intervals, a panel for each metric; the dotted line is the value of all samples.

    Of a table of several columns, slices of one column stand together under its name.
    """
    several = {"column", "slice"} <= set(slice_table.columns)
    keys = ["column", "slice"] if several else [slice_table.columns[0]]
    table = slice_table.assign(key=slice_table[keys].astype(str).agg("\n".join, axis=1))
    slices = table.drop_duplicates("key")
    columns_of = slices["column"] if several else [""] * len(slices)
    places, names, heads = stack_rows(columns_of, slices[keys[-1]], slices["n"], " " if several else "\n")
    metrics = list(table["metric"].unique())
    height = 0.75 + (0.2 if several else 0.36) * (places[-1] + 1)
    axes = panel_grid(len(metrics), columns, height, sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        rows = table[table["metric"] == metric].set_index("key").loc[slices["key"]]
        for place, row in zip(places, rows.itertuples(), strict=True):
            draw_interval(ax, place, row, GREY if row.Index.endswith("all") and place == 0 else PALETTE[2])
        overall = rows["value"].iloc[0] if rows[keys[-1]].iloc[0] == "all" else np.nan
        ax.axvline(overall, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        ax.set_title(readable(metric))
        finish_rows(ax, places, names, heads)
    return axes


def plot_gaps(worst_slice_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How far each slice is above or below the rest, with its interval; filled where the test shows a difference."""
    order = {name: position for position, name in enumerate(worst_slice_table["column"].unique())}
    table = worst_slice_table.sort_values("column", key=lambda column: column.map(order), kind="stable")
    places, names, heads = stack_rows(table["column"], table["slice"], table["n"])
    ax = new_axes(ax, 0.75 + 0.2 * (places[-1] + 1), 5.2)
    for place, row in zip(places, table.rename(columns={"gap": "value", "value": "own"}).itertuples(), strict=True):
        shown = str(row.verdict).endswith("than the rest")
        draw_interval(ax, place, row, PALETTE[2] if shown else GREY, filled=shown)
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    ax.set_xlabel(f"{readable(table['metric'].iloc[0])}: slice minus rest")
    finish_rows(ax, places, names, heads)
    return ax


def stack_rows(columns, names, counts, separator: str = " ") -> tuple[list[float], list[str], dict[float, str]]:
    """Where each row stands, what it is called, and the headings: a column's name on a line of its own above its slices."""
    places, texts, heads, place, before = [], [], {}, -1.0, ""
    for column, name, count in zip(columns, names, counts, strict=True):
        if column and column != before:
            place += 1.1
            heads[place] = readable(column)
        place, before = place + 1, column
        places.append(place)
        texts.append(f"{name}{separator}(n = {count:,})")
    return places, texts, heads


def draw_interval(ax: Axes, place: float, row, color: str, filled: bool = True) -> None:
    """A dot with its interval; the note in place of a value that is missing."""
    if np.isnan(row.value):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        middle = {"ha": "center", "va": "center", "transform": ax.get_yaxis_transform()}
        ax.text(0.5, place, row.note, color=GREY, fontsize=7, bbox=box, **middle)
        return
    ax.plot([row.low, row.high], [place, place], color=color, marker="|", markersize=6, linewidth=1.2)
    ax.plot(row.value, place, color=color, marker="o", markersize=5, markerfacecolor=color if filled else "white")


def finish_rows(ax: Axes, places: list[float], names: list[str], heads: dict[float, str]) -> None:
    ax.set_yticks([*heads, *places], [*heads.values(), *names])
    for text in ax.get_yticklabels()[: len(heads)]:
        text.set_fontweight("bold")
    ax.set_ylim(places[-1] + 0.6, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(few_ticks(5))
    ax.grid(axis="x")


def plot_mistakes(images: Sequence, mistakes: pd.DataFrame, columns: int = 4) -> np.ndarray:
    """The images of a `mistakes_table`, in its order, each with its true class, the wrong answer and how sure that was."""
    if len(images) != len(mistakes):
        raise UserError(f"{len(images)} images do not go with {len(mistakes)} mistakes: give one image for each row, in order")
    if mistakes.empty:
        ax = new_axes(None, 0.6)
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no mistakes", ha="center", va="center")
        return np.array([ax])
    titles = [
        f"{row.sample_id}\n" * bool(row.sample_id) + f"true: {row.label}\npredicted: {row.pred} ({row.confidence:.0%})"
        for row in mistakes.itertuples()
    ]
    return plot_sample_grid(images, titles, columns=columns)

"""How good the predictions are: confusion, thresholds, slices, mistakes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vitlab.errors import UserError
from vitlab.extremes import MAX_SHOWN, describe_cut
from vitlab.plots.data import plot_sample_grid
from vitlab.plots.rows import cut_slices, draw_interval, draw_zero, list_grouped_rows, stack_rows
from vitlab.plots.style import (
    GREY,
    PALETTE,
    legend_below,
    new_axes,
    note_above,
    panel_grid,
    readable,
    series_colors,
    shorten,
)


def plot_confusion(confusion_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Counts, and their share of the true class: a row for each true class, a column for each
    predicted one.

    Of more than a dozen classes, those that are confused most often are shown, and the others
    together as one."""
    total = len(confusion_table)
    table = _pool_classes(confusion_table)
    counts = table.to_numpy()
    classes = list(table.columns)
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    side = min(4.4, 1.0 + 0.85 * len(classes))
    ax = new_axes(ax, side, side + 1.2)
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    few = len(classes) <= 5
    for (row, column), count in np.ndenumerate(counts):
        text = f"{count:,}\n{share[row, column]:.0%}" if few or count else ""
        color = "white" if share[row, column] > 0.5 else "black"
        ax.text(
            column, row, text, ha="center", va="center", color=color, fontsize=9 if few else 6.5
        )
    names = [shorten(name) for name in classes]
    turned = max(map(len, names)) * len(names) > 45
    ax.set_xticks(
        range(len(names)),
        names,
        rotation=40 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )
    ax.set_yticks(
        range(len(names)),
        [f"{name}\nn = {total:,}" for name, total in zip(names, totals[:, 0], strict=True)],
    )
    ax.set(xlabel="predicted class", ylabel="true class")
    if len(classes) < total:
        ax.set_title(
            f"the {len(classes) - 1} of {total:,} classes that are confused most often",
            fontsize=8,
            color=GREY,
        )
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, label="share of the true class")
    bar.outline.set_visible(False)
    return ax


def _pool_classes(table: pd.DataFrame) -> pd.DataFrame:
    """The classes of the most frequent confusions, in the order of the table, and all others as one
    last row and column.
    """
    counts = table.to_numpy()
    if len(counts) <= MAX_SHOWN:
        return table
    wrong = counts - np.diag(np.diag(counts))
    pairs = np.dstack(np.unravel_index(np.argsort(-wrong, axis=None, kind="stable"), wrong.shape))[
        0
    ]
    kept = np.sort(pd.unique(pairs.ravel())[: MAX_SHOWN - 1])
    rest = np.setdiff1d(np.arange(len(counts)), kept)
    pooled = np.block(
        [
            [counts[np.ix_(kept, kept)], counts[np.ix_(kept, rest)].sum(axis=1, keepdims=True)],
            [
                counts[np.ix_(rest, kept)].sum(axis=0, keepdims=True),
                counts[np.ix_(rest, rest)].sum(keepdims=True),
            ],
        ]
    )
    names = [*table.columns[kept], f"{len(rest):,} others"]
    return pd.DataFrame(pooled, index=names, columns=names)


def plot_threshold(
    threshold_table: pd.DataFrame, ax: Axes | None = None, chosen: pd.DataFrame | None = None
) -> Axes:
    """Precision, recall, specificity and F1 against the threshold on the probability of a class.

    chosen: a table of rule and threshold (`threshold_choice_table`); each threshold is marked with
    the names of its rules."""
    ax = new_axes(ax, 3.2 if chosen is None else 3.6)
    for name, color in series_colors(["precision", "recall", "specificity", "f1"]).items():
        ax.plot(
            threshold_table["threshold"], threshold_table[name], color=color, label=readable(name)
        )
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":", label="0.5, the default")
    for threshold, names in list_marks(chosen).items():
        ax.axvline(threshold, color="black", linewidth=0.8, zorder=0)
        ax.text(
            threshold,
            1.02,
            names,
            rotation=40,
            fontsize=7,
            ha="left",
            va="bottom",
            rotation_mode="anchor",
        )
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
    """The rules that chose each threshold within 0..1, from the lowest; the reference 0.5 has a
    line of its own.
    """
    if chosen is None:
        return {}
    rules = chosen[(chosen["rule"] != "0.5") & chosen["threshold"].between(0, 1)]
    return {
        threshold: ", ".join(readable(name) for name in part["rule"])
        for threshold, part in rules.groupby("threshold")
    }


def plot_slices(slice_table: pd.DataFrame, columns: int = 2) -> np.ndarray:
    """The metrics of each slice with their intervals, a panel for each metric; the dotted line is
    the value of all samples.

    slice_table: of several columns. Slices of one column stand together under its name. Of more
    than a dozen slices of a column, those with the lowest and the highest value of the first metric
    are shown."""
    keys = ["column", "slice"]
    table = slice_table.assign(key=slice_table[keys].astype(str).agg("\n".join, axis=1))
    every = table.drop_duplicates("key")  # with the first metric
    slices = cut_slices(every, "value")
    places, names, heads = stack_rows(slices)
    metrics = list(table["metric"].unique())
    axes = panel_grid(len(metrics), columns, 0.75 + 0.2 * (places[-1] + 1), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        rows = table[table["metric"] == metric].set_index("key").loc[slices["key"]]
        for place, row in zip(places, rows.itertuples(), strict=True):
            color = GREY if row.Index.endswith("all") and place == 0 else PALETTE[2]
            draw_interval(ax, place, row.value, row.low, row.high, color, note=row.note)
        overall = rows["value"].iloc[0] if rows["slice"].iloc[0] == "all" else np.nan
        draw_zero(ax, overall)
        ax.set_title(readable(metric))
        list_grouped_rows(ax, places, names, heads)
    note_above(
        axes[0].figure, describe_cut(len(slices), len(every), "slices", readable(metrics[0]))
    )
    return axes


def plot_gaps(worst_slice_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How far each slice is above or below the rest, with its interval; filled where the test shows
    a difference.

    Of more than a dozen slices of a column, those with the lowest and the highest gap are shown.
    """
    table = cut_slices(worst_slice_table, "gap")
    places, names, heads = stack_rows(table)
    ax = new_axes(ax, 0.75 + 0.2 * (places[-1] + 1), 5.2)
    for place, row in zip(places, table.itertuples(), strict=True):
        shown = str(row.verdict).endswith("than the rest")
        draw_interval(
            ax, place, row.gap, row.low, row.high, PALETTE[2] if shown else GREY, shown, row.note
        )
    draw_zero(ax)
    ax.set_xlabel(f"{readable(table['metric'].iloc[0])}: slice minus rest")
    list_grouped_rows(ax, places, names, heads)
    note_above(ax.figure, describe_cut(len(table), len(worst_slice_table), "slices", "gap"))
    return ax


def plot_mistakes(images: Sequence, mistakes: pd.DataFrame) -> np.ndarray:
    """The images of a `mistakes_table`, in its order, each with its true class, the wrong answer
    and how sure that was.
    """
    if len(images) != len(mistakes):
        raise UserError(
            f"{len(images)} images do not go with {len(mistakes)} mistakes: give one image for each"
            " row, in order"
        )
    if mistakes.empty:
        ax = new_axes(None, 0.6)
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no mistakes", ha="center", va="center")
        return np.array([ax])
    titles = [
        f"{row.sample_id}\n" * bool(row.sample_id)
        + f"true: {row.label}\npredicted: {row.pred} ({row.confidence:.0%})"
        for row in mistakes.itertuples()
    ]
    return plot_sample_grid(images, titles, columns=4)

"""How good the predictions are: confusion, ROC and precision-recall curves, thresholds, slices,
mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.express as px
import seaborn as sns
from matplotlib.axes import Axes

from vitlab.errors import UserError
from vitlab.extremes import (
    MAX_LINES,
    MAX_SHOWN,
    describe_best,
    describe_cut,
    find_best,
)
from vitlab.plots.data import plot_sample_grid
from vitlab.plots.elements import (
    cut_slices,
    draw_interval,
    draw_zero,
    list_slices,
    plot_slice_changes,
    slices_height,
)
from vitlab.plots.interactive import Interactive, dress, plotly_text
from vitlab.plots.style import (
    GREY,
    PALETTE,
    class_colors,
    empty_axes,
    legend_below,
    legend_name,
    new_axes,
    new_figure,
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
    table = _pool_classes(confusion_table)
    counts = table.to_numpy()
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    few = len(table) <= 5
    texts = table.astype(object)
    for (row, column), count in np.ndenumerate(counts):
        shown = count or few
        texts.iloc[row, column] = f"{count:,}\n{share[row, column]:.0%}" if shown else ""
    side = min(4.4, 1.0 + 0.85 * len(table))
    ax = new_axes(ax, side, side + 1.2)
    style = {"cmap": "Blues", "vmin": 0, "vmax": 1, "square": True}
    bar = {"label": "share of the true class", "shrink": 0.8}
    look = {"fontsize": 9 if few else 6.5}
    sns.heatmap(share, annot=texts, fmt="", annot_kws=look, cbar_kws=bar, ax=ax, **style)
    names = [shorten(name) for name in table.columns]
    turned = max(map(len, names)) * len(names) > 45
    ax.set_xticklabels(
        names,
        rotation=40 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )
    rows = [f"{name}\nn = {total:,}" for name, total in zip(names, totals[:, 0], strict=True)]
    ax.set_yticklabels(rows, rotation=0)
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.tick_params(length=0)
    total = len(confusion_table)
    if len(table) < total:
        text = f"the {len(table) - 1} of {total:,} classes that are confused most often"
        ax.set_title(text, fontsize=8, color=GREY)
    return ax


def _pool_classes(table: pd.DataFrame) -> pd.DataFrame:
    """The classes of the most frequent confusions, in the order of the table, and all others as one
    last row and column.
    """
    if len(table) <= MAX_SHOWN:
        return table
    wrong = table.to_numpy() * (1 - np.eye(len(table), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")
    pairs = np.stack(np.unravel_index(order, wrong.shape), axis=1)
    kept = set(pd.unique(pairs.ravel())[: MAX_SHOWN - 1])
    others = f"{len(table) - len(kept):,} others"
    names = [name if place in kept else others for place, name in enumerate(table.columns)]
    pooled = table.set_axis(names, axis=0).set_axis(names, axis=1)
    pooled = pooled.groupby(level=0).sum().T.groupby(level=0).sum().T
    order = [*(name for name in names if name != others), others]
    return pooled.loc[order, order]


GRID = np.linspace(0, 1, 201)  # where the curves of several classes are averaged
CURVES = {  # columns x and y, and the name of the area
    "roc": ("false_positive_rate", "true_positive_rate", "AUC"),
    "precision_recall": ("recall", "precision", "AP"),
}


def plot_roc(tables: pd.DataFrame | Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """ROC curves with their area, and the line of chance. tables: one `roc_table`, or one for each
    model.

    One table of up to five classes gives a curve for each class; of more, the mean, the range, the
    lowest and the highest curve. Several tables give one curve each, the mean over their classes;
    of more than a dozen models, the best."""
    return _plot_curves(tables, "roc", ax)


def plot_curves(
    roc: pd.DataFrame,
    precision_recall: pd.DataFrame,
    bands: Mapping[str, pd.DataFrame] | None = None,
) -> np.ndarray:
    """ROC and precision-recall curves side by side. bands: a `curve_band_table` each for "roc" and
    "precision_recall".
    """
    entries = min(roc["class"].nunique(), MAX_LINES) + 2  # with chance and the title of the legend
    axes = new_figure(3.3 + 0.17 * entries).subplots(1, 2)
    tables = {"roc": roc, "precision_recall": precision_recall}
    for ax, (kind, table) in zip(axes, tables.items(), strict=True):
        _plot_curves(table, kind, ax, (bands or {}).get(kind))
    return axes


def _plot_curves(tables, kind: str, ax: Axes | None, band: pd.DataFrame | None = None) -> Axes:
    x, y, area = CURVES[kind]
    lines, everyone, note = _list_lines(tables, kind)
    if band is not None and x not in band:
        raise UserError(f"the band has no column {x}: it belongs to another kind of curve")
    ax = new_axes(ax, 3.5 + 0.1 * len(lines), 4.2)
    if everyone:
        heights = [_height_at(curve, kind) for curve in everyone]
        low, high = np.min(heights, axis=0), np.max(heights, axis=0)
        look = {"color": GREY, "alpha": 0.2, "linewidth": 0, "label": "range of the classes"}
        ax.fill_between(GRID, low, high, **look)
    for name, color, curves, score in lines:
        label = f"{legend_name(name)} ({area} {score:.3f})" if name else f"{area} {score:.3f}"
        if len(curves) == 1:
            step = "steps-post" if kind == "precision_recall" else "default"
            ax.plot(curves[0][x], curves[0][y], color=color, label=label, drawstyle=step)
        else:
            mean = np.mean([_height_at(curve, kind) for curve in curves], axis=0)
            ax.plot(GRID, mean, color=color, label=label)
        if band is not None and not everyone:
            own = band[band["class"] == curves[0]["class"].iloc[0]]
            ax.fill_between(own[x], own["low"], own["high"], color=color, alpha=0.2, linewidth=0)
    guess = {"color": GREY, "linewidth": 0.8, "linestyle": ":"}
    if kind == "roc":
        ax.plot([0, 1], [0, 1], label="chance (AUC 0.500)", **guess)
        ax.set(xlabel="false positive rate", ylabel="true positive rate (recall)")
    else:
        level = np.mean([curve[y].iloc[0] for _, curve in tables.groupby("class")])
        ax.axhline(level, label=f"prevalence ({level:.3f})", **guess)
        ax.set(xlabel="recall", ylabel="precision")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), box_aspect=1)
    ax.grid(True)
    width = ax.get_position().width * ax.get_figure().get_size_inches()[0]
    # two columns run into a neighbour's
    legend_below(ax, 1 if len(ax.lines) <= 3 or width < 2.8 else 2, title=_subject(tables))
    note_above(ax.get_figure(), note)
    return ax


def _list_lines(tables, kind: str) -> tuple[list[tuple], list[pd.DataFrame], str]:
    """Name, colour, curves and mean area of each line to draw; all curves where not every class has
    a line; and a note on what is left out.
    """
    if isinstance(tables, Mapping) and len(tables) > 1:
        groups = {
            name: [part for _, part in table.groupby("class")] for name, table in tables.items()
        }
        scores = pd.Series(
            {
                name: np.mean([_area(curve, kind) for curve in curves])
                for name, curves in groups.items()
            }
        )
        best = find_best(scores)
        lines = [
            (name, color, groups[name], scores[name]) for name, color in series_colors(best).items()
        ]
        return lines, [], describe_best(len(best), len(tables), CURVES[kind][2])
    name, table = next(iter(tables.items())) if isinstance(tables, Mapping) else ("", tables)
    groups = dict(list(table.groupby("class", sort=False)))
    areas = pd.Series({label: _area(curve, kind) for label, curve in groups.items()}, dtype=float)
    if len(groups) == 1:
        return [(name, series_colors([name])[name], list(groups.values()), areas.iloc[0])], [], ""
    if len(groups) <= MAX_LINES:
        colors = class_colors(list(groups))
        return [(label, colors[label], [groups[label]], areas[label]) for label in groups], [], ""
    low, high = areas.idxmin(), areas.idxmax()
    every = list(groups.values())
    lines = [
        (f"mean of {len(groups):,} classes", "black", every, areas.mean()),
        (f"lowest: {shorten(low)}", PALETTE[3], [groups[low]], areas[low]),
        (f"highest: {shorten(high)}", PALETTE[0], [groups[high]], areas[high]),
    ]
    return lines, every, ""


def _area(curve: pd.DataFrame, kind: str) -> float:
    """ROC AUC or average precision."""
    if kind == "roc":
        return float(np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"]))
    return float(-(curve["recall"].diff() * curve["precision"].shift()).sum())


def _height_at(curve: pd.DataFrame, kind: str) -> np.ndarray:
    """The curve over GRID."""
    x, y, _ = CURVES[kind]
    rising = curve if kind == "roc" else curve.iloc[::-1]
    heights = np.interp(GRID, rising[x], rising[y])
    if kind == "roc":
        heights[0] = 0  # every ROC curve begins there
    return heights


def _subject(tables) -> str:
    """What the curves are about, for the title of the legend."""
    parts = list(tables.values()) if isinstance(tables, Mapping) else [tables]
    classes = {name for table in parts for name in table["class"].unique()}
    if len(classes) == 1:
        return f"class: {shorten(classes.pop())}"
    return "class, against the rest" if len(parts) == 1 else f"mean over {len(classes)} classes"


def iplot_threshold(threshold_table: pd.DataFrame, chosen: pd.DataFrame) -> Interactive:
    """Precision, recall, specificity and F1 against the threshold on the probability of a class.

    chosen: a table of rule and threshold (`threshold_choice_table`); each threshold is marked with
    the names of its rules. In HTML, point at a threshold to read all four scores."""
    scores = ["precision", "recall", "specificity", "f1"]
    colors, marks = series_colors(scores), list_marks(chosen)
    title = f"threshold on the probability of {threshold_table['class'].iloc[0]}"
    ax = new_axes(None, 3.6)
    for name, color in colors.items():
        ax.plot(
            threshold_table["threshold"], threshold_table[name], color=color, label=readable(name)
        )
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":", label="0.5, the default")
    turned = {"rotation": 40, "rotation_mode": "anchor", "ha": "left", "va": "bottom"}
    for threshold, names in marks.items():
        ax.axvline(threshold, color="black", linewidth=0.8, zorder=0)
        ax.text(threshold, 1.02, names, fontsize=7, **turned)
    ax.set(xlim=(0, 1), ylim=(-0.01, 1.01), xlabel=title, ylabel="score")
    ax.grid(True)
    legend_below(ax, 5)

    names = {name: readable(name) for name in scores}
    figure = px.line(
        threshold_table.rename(columns=names),
        x="threshold",
        y=list(names.values()),
        color_discrete_map={names[name]: color for name, color in colors.items()},
    )
    figure.update_traces(line_width=2.5, hovertemplate="%{y:.3f}")
    figure.add_vline(x=0.5, line={"color": "grey", "width": 1, "dash": "dot"})
    line = {"line": {"color": "black", "width": 1}, "annotation_textangle": -40}
    for threshold, text in marks.items():
        figure.add_vline(x=threshold, annotation_text=plotly_text(text), **line)
    figure.update_annotations(y=1, xanchor="left", yanchor="bottom")
    dress(figure).update_layout(
        hovermode="x unified",
        xaxis={"title": plotly_text(title), "range": [0, 1]},
        yaxis={"title": "score", "range": [0, 1.02]},
        margin_t=80,
        height=440,
        legend_title=None,
    )
    return Interactive(figure, ax.figure)


def list_marks(chosen: pd.DataFrame) -> dict[float, str]:
    """The rules that chose each threshold within 0..1, from the lowest; the reference 0.5 has a
    line of its own.
    """
    rules = chosen[(chosen["rule"] != "0.5") & chosen["threshold"].between(0, 1)]
    groups = rules["rule"].map(readable).groupby(rules["threshold"])
    return groups.agg(", ".join).to_dict()


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
    metrics = list(table["metric"].unique())
    axes = panel_grid(len(metrics), columns, slices_height(slices), sharey=True)
    places = list_slices(axes, slices)
    for ax, metric in zip(axes, metrics, strict=True):
        rows = table[table["metric"] == metric].set_index("key").loc[slices["key"]]
        for place, row in zip(places, rows.itertuples(), strict=True):
            color = GREY if row.Index.endswith("all") and place == 0 else PALETTE[2]
            draw_interval(ax, place, row.value, row.low, row.high, color, note=row.note)
        draw_zero(ax, rows["value"].iloc[0] if rows["slice"].iloc[0] == "all" else np.nan)
        ax.set_title(readable(metric))
    note = describe_cut(len(slices), len(every), "slices", readable(metrics[0]))
    note_above(axes[0].figure, note)
    return axes


def plot_gaps(worst_slice_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How far each slice is above or below the rest, with its interval; filled where the test shows
    a difference.
    """
    shown = worst_slice_table["verdict"].astype(str).str.endswith("than the rest")
    label = f"{readable(worst_slice_table['metric'].iloc[0])}: slice minus rest"
    return plot_slice_changes(worst_slice_table, "gap", shown, label, ax)


def plot_mistakes(images: Sequence, mistakes: pd.DataFrame) -> np.ndarray:
    """The images of a `mistakes_table`, in its order, each with its true class, the prediction and
    its confidence.
    """
    if mistakes.empty:
        return np.array([empty_axes("no mistakes")])
    titles = [
        f"{row.sample_id}\ntrue: {row.label}\npredicted: {row.pred} ({row.confidence:.0%})"
        for row in mistakes.itertuples()
    ]
    return plot_sample_grid(images, titles, columns=4)

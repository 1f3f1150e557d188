"""ROC and precision-recall curves, and metrics by threshold.

scikit-learn's RocCurveDisplay draws one binary problem; these figures draw means over classes,
bands, and curves of many models, which leaves it nothing but the line."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.express as px
from matplotlib.axes import Axes

from vitlab.errors import UserError
from vitlab.extremes import MAX_LINES, describe_best, find_best
from vitlab.plots.interactive import Interactive, dress, plotly_text
from vitlab.plots.style import (
    GREY,
    class_colors,
    legend_below,
    legend_name,
    new_axes,
    new_figure,
    note_above,
    readable,
    series_colors,
)

GRID = np.linspace(0, 1, 201)  # where the curves of several classes are averaged
CURVES = {  # columns x and y, and the name of the area
    "roc": ("false_positive_rate", "true_positive_rate", "AUC"),
    "precision_recall": ("recall", "precision", "AP"),
}
AREA = {"alpha": 0.2, "linewidth": 0}
NEAR = 0.05  # thresholds that are closer have no room for a name each


def plot_roc(tables: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """A ROC curve with its area for each model, the mean over its classes.

    tables: a `roc_table` for each model. Of more than a dozen models, the best are drawn."""
    areas = {name: _mean_area(table, "roc") for name, table in tables.items()}
    best = find_best(pd.Series(areas))
    ax = new_axes(ax, 3.5 + 0.1 * len(best), 4.2)
    for name, color in series_colors(best).items():
        _draw_curve(ax, "roc", tables[name], color, name)
    classes = next(iter(tables.values()))["class"].unique()
    mean = f"mean over {len(classes)} classes"
    title = f"class: {classes[0]}" if len(classes) == 1 else mean
    _finish(ax, "roc", 0.5, 2 if len(best) > 2 else 1, title)
    note_above(ax.figure, describe_best(len(best), len(tables), "AUC"))
    return ax


def plot_curves(
    roc: pd.DataFrame,
    precision_recall: pd.DataFrame,
    bands: Mapping[str, pd.DataFrame] | None = None,
) -> np.ndarray:
    """ROC and precision-recall curves side by side, one for each class, each against the rest; of
    more than five classes, their mean and range.

    bands: a `curve_band_table` each for "roc" and "precision_recall"."""
    classes = list(roc["class"].unique())
    colors = class_colors(classes) if len(classes) > 1 else series_colors(classes)
    axes = new_figure(3.5 + 0.17 * min(len(classes), MAX_LINES)).subplots(1, 2)
    tables = {"roc": roc, "precision_recall": precision_recall}
    for ax, (kind, table) in zip(axes, tables.items(), strict=True):
        if len(classes) > MAX_LINES:
            heights = [_height_at(curve, kind) for _, curve in table.groupby("class")]
            low, high = np.min(heights, axis=0), np.max(heights, axis=0)
            ax.fill_between(GRID, low, high, color=GREY, label="range of the classes", **AREA)
            _draw_curve(ax, kind, table, "black", f"mean of {len(classes):,} classes")
        else:
            band = (bands or {}).get(kind, pd.DataFrame({"class": []}))
            for name in classes:
                _draw_curve(ax, kind, table[table["class"] == name], colors[name], name)
                _draw_band(ax, kind, band[band["class"] == name], colors[name])
        first = table.drop_duplicates("class")
        # with the threshold below all scores, precision is the share of the class
        _finish(ax, kind, 0.5 if kind == "roc" else first["precision"].mean(), 1)
    return axes


def _draw_curve(ax: Axes, kind: str, table: pd.DataFrame, color: str, name: str) -> None:
    """The curve of a class, or the mean of those of several, with the area in its label."""
    x, y, area = CURVES[kind]
    label = f"{legend_name(name)} ({area} {_mean_area(table, kind):.3f})"
    if table["class"].nunique() == 1:
        step = "steps-post" if kind == "precision_recall" else "default"
        ax.plot(table[x], table[y], color=color, label=label, drawstyle=step)
        return
    heights = [_height_at(curve, kind) for _, curve in table.groupby("class")]
    ax.plot(GRID, np.mean(heights, axis=0), color=color, label=label)


def _draw_band(ax: Axes, kind: str, band: pd.DataFrame, color: str) -> None:
    if band.empty:
        return
    x = CURVES[kind][0]
    if x not in band:
        raise UserError(f"the band has no column {x}: it belongs to another kind of curve")
    ax.fill_between(band[x], band["low"], band["high"], color=color, **AREA)


def _finish(ax: Axes, kind: str, level: float, columns: int, title: str = "") -> None:
    """The line of guessing, labels and legend."""
    guess = {"color": GREY, "linewidth": 0.8, "linestyle": ":"}
    if kind == "roc":
        ax.plot([0, 1], [0, 1], label="chance (AUC 0.500)", **guess)
        ax.set(xlabel="false positive rate", ylabel="true positive rate (recall)")
    else:
        ax.axhline(level, label=f"prevalence ({level:.3f})", **guess)
        ax.set(xlabel="recall", ylabel="precision")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), box_aspect=1)
    ax.grid(True)
    legend_below(ax, columns, title=title or None)


def _mean_area(table: pd.DataFrame, kind: str) -> float:
    """ROC AUC or average precision, the mean over the classes."""
    areas = []
    for _, curve in table.groupby("class"):
        if kind == "roc":
            areas.append(np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"]))
        else:
            areas.append(-(curve["recall"].diff() * curve["precision"].shift()).sum())
    return float(np.mean(areas))


def _height_at(curve: pd.DataFrame, kind: str) -> np.ndarray:
    """The curve over GRID."""
    x, y, _ = CURVES[kind]
    rising = curve if kind == "roc" else curve.iloc[::-1]
    heights = np.interp(GRID, rising[x], rising[y])
    if kind == "roc":
        heights[0] = 0  # every ROC curve begins there
    return heights


def iplot_threshold(threshold_table: pd.DataFrame, chosen: pd.DataFrame) -> Interactive:
    """Precision, recall, specificity and F1 against the threshold on the probability of a class.

    chosen: a table of rule and threshold (`threshold_choice_table`); each threshold is marked with
    the names of its rules. In HTML, point at a threshold to read all four scores."""
    scores = {readable(name): name for name in ("precision", "recall", "specificity", "f1")}
    colors, marks = series_colors(scores), _list_marks(chosen)
    title = f"threshold on the probability of {threshold_table['class'].iloc[0]}"
    ax = new_axes(None, 3.6)
    for name, color in colors.items():
        column = threshold_table[scores[name]]
        ax.plot(threshold_table["threshold"], column, color=color, label=name)
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":", label="0.5, the default")
    turned = {"rotation": 40, "rotation_mode": "anchor", "ha": "left", "va": "bottom"}
    for threshold, names in marks.items():
        ax.axvline(threshold, color="black", linewidth=0.8, zorder=0)
        ax.text(threshold, 1.02, names, fontsize=7, **turned)
    ax.set(xlim=(0, 1), ylim=(-0.01, 1.01), xlabel=title, ylabel="score")
    ax.grid(True)
    legend_below(ax, 5)

    table = threshold_table.rename(columns={column: name for name, column in scores.items()})
    figure = px.line(table, x="threshold", y=list(scores), color_discrete_map=colors)
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
        margin_t=110,  # for the names of all rules at one place
        height=470,
        legend_title=None,
    )
    return Interactive(figure, ax.figure)


def _list_marks(chosen: pd.DataFrame) -> dict[float, str]:
    """The rules that chose each threshold within 0..1, from the lowest; the reference 0.5 has a
    line of its own. Thresholds too close for names of their own share those at the first of them.
    """
    rules = chosen[(chosen["rule"] != "0.5") & chosen["threshold"].between(0, 1)]
    rules = rules.sort_values("threshold", kind="stable")
    first = rules["threshold"].where(rules["threshold"].diff().gt(NEAR)).ffill()
    names = rules["rule"].map(readable).groupby(first.fillna(rules["threshold"].min()))
    return dict.fromkeys(rules["threshold"], "") | names.agg(", ".join).to_dict()

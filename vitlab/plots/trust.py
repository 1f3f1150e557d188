"""Whether explanations may be believed: their scores beside those of maps that know nothing of the
model.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from vitlab.errors import UserError
from vitlab.plots.style import GREY, PALETTE, check_table, new_axes, new_figure, readable
from vitlab.registry import unknown

MINUS = "\N{MINUS SIGN}"
CONTROLS = ("random", "centre", "edges")  # maps made without the model
VERDICTS = {  # colour and marker: the shapes say it once more, for those who do not see the colours
    "better than all controls": (PALETTE[0], ">"),
    "not shown": (GREY, "o"),
    "worse": (PALETTE[3], "<"),
    "too few images to show anything": (GREY, "x"),
}
BETTER, _, _, FEW = VERDICTS
TRUST_COLUMNS = ("method", "metric", "difference", "difference_low", "difference_high", "verdict")
ROW = 0.25  # inches a method
# metrics beside each other that leave room for two numbers below each; of more, zero is the line
# alone
WIDE = 7


def plot_trust(trust_table: pd.DataFrame, order: Sequence[str] | None = None) -> np.ndarray:
    """Every method (rows, best first) on every metric (columns) against the best control: an array
    of axes (metrics,).

    A dot is the difference to the best map made without the model, right of zero being better, with
    its interval; colour and shape are the verdict. At the right stands on how many metrics a method
    is better than all controls. trust_table: columns method, metric, difference, difference_low,
    difference_high, verdict ("better than all controls", "not shown", "worse" or "too few images to
    show anything"), a row for each method and metric; a pair that is missing, or NaN, is a dash.
    order: methods from top to bottom; else by mean rank of the difference."""
    _check_trust(trust_table, "trust_table")
    ranks = rank_methods(trust_table)
    methods = list(ranks["method"] if order is None else order)
    _check_order(methods, ranks["method"])
    metrics = list(trust_table["metric"].unique())
    rows = trust_table.set_index(["method", "metric"])
    longest = max(len(readable(metric)) for metric in metrics)
    above = 0.1 + 0.038 * longest  # inches: slanting titles, which the layout would push apart
    figure = new_figure(0.95 + above + ROW * len(methods))
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - above / figure.get_figheight()))
    # else a notebook, which trims its figures, would cut the titles off
    figure.add_artist(Line2D([0, 1], [1, 1], alpha=0))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        for place, method in enumerate(methods):
            found = rows.loc[(method, metric)] if (method, metric) in rows.index else None
            if found is None or pd.isna(found["difference"]):
                ax.text(
                    0.5,
                    place,
                    "–",
                    color=GREY,
                    ha="center",
                    va="center",
                    transform=ax.get_yaxis_transform(),
                )
            else:
                _draw_difference(ax, place, found)
        _band_rows(ax, len(methods))
        ax.axvline(0, color="0.2", linewidth=0.8, zorder=1)
        ax.annotate(
            readable(metric),
            (0.2, 1),
            (0, 3),
            xycoords="axes fraction",
            textcoords="offset points",
            rotation=32,
            rotation_mode="anchor",
            va="bottom",
            fontsize=7.5,
        ).set_in_layout(False)
        ax.margins(x=0.12)
        ax.set_xlim(*_include_zero(*ax.get_xlim()))
        ticks, labels = _two_ticks(*ax.get_xlim())
        ax.set_xticks(ticks, labels if len(metrics) <= WIDE else ["", labels[1]])
        ax.tick_params(axis="x", labelsize=7)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(methods)), [readable(name) for name in methods])
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    counts = ranks.set_index("method")
    for place, method in enumerate(methods):
        text = f"{counts.loc[method, 'better']} of {counts.loc[method, 'metrics']}"
        axes[-1].annotate(
            text,
            (1, place),
            (6, 0),
            xycoords=axes[-1].get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    handles = [
        Line2D(
            [],
            [],
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.2,
            label=verdict,
            markerfacecolor="white" if marker == "o" else color,
        )
        for verdict, (color, marker) in list(VERDICTS.items())[
            : 4 if FEW in set(trust_table["verdict"]) else 3
        ]
    ]
    title = "difference to the best control (right of 0: the method is better)"
    figure.legend(handles=handles, loc="outside lower center", ncols=3, title=title)
    return axes


def rank_methods(trust_table: pd.DataFrame) -> pd.DataFrame:
    """Methods by mean rank of their differences over the metrics, best first.

    One row a method: method, mean_rank (1 is best; ties share), better (metrics with the verdict
    "better than all controls"), worse, metrics (how many it was measured on)."""
    _check_trust(trust_table, "trust_table")
    known = trust_table.dropna(subset=["difference"])
    ranks = known.assign(rank=known.groupby("metric")["difference"].rank(ascending=False))
    table = ranks.groupby("method").agg(
        mean_rank=("rank", "mean"),
        better=("verdict", lambda verdict: int((verdict == BETTER).sum())),
        worse=("verdict", lambda verdict: int((verdict == "worse").sum())),
        metrics=("metric", "nunique"),
    )
    table = table.reindex(trust_table["method"].unique())
    counts = ["better", "worse", "metrics"]
    table[counts] = table[counts].fillna(0).astype(int)
    return (
        table.rename_axis("method")
        .reset_index()
        .sort_values("mean_rank", kind="stable", ignore_index=True)
    )


def plot_trust_by_model(tables: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Mean rank of each method (rows) for each model (columns), and on how many metrics it beats
    all controls.

    tables: a trust table for each model, as in `plot_trust`. Methods that a model has no parts for
    (attention rollout of a CNN) are a dash. Methods are sorted by their mean over the models."""
    if not tables:
        raise UserError("tables is empty: give one trust table for each model")
    found = {}
    for name, table in tables.items():
        _check_trust(table, f"trust table of {name}")
        found[name] = rank_methods(table).set_index("method")
    ranks = pd.DataFrame({name: table["mean_rank"] for name, table in found.items()})
    ranks = ranks.loc[ranks.mean(axis=1).sort_values(kind="stable").index]
    words = pd.DataFrame("–", index=ranks.index, columns=ranks.columns)
    for name, table in found.items():
        for method, row in table.dropna(subset=["mean_rank"]).iterrows():
            words.loc[method, name] = (
                f"{row['mean_rank']:.1f} ({row['better']:.0f}/{row['metrics']:.0f})"
            )
    ax = new_axes(ax, 1.15 + 0.3 * len(ranks), min(6.3, 2.4 + 1.2 * len(found)))
    ax.set_facecolor("0.93")  # what a gap shows
    bar = {"label": "mean rank (1 = best)"}
    sns.heatmap(
        ranks,
        annot=words,
        fmt="",
        cmap="viridis",
        ax=ax,
        cbar_kws=bar,
        annot_kws={"fontsize": 7.5},
        linewidths=1,
    )
    for row, column in np.argwhere(ranks.isna().to_numpy()):
        ax.text(column + 0.5, row + 0.5, "–", color=GREY, ha="center", va="center")
    ax.collections[0].colorbar.ax.invert_yaxis()
    ax.set(xlabel="in brackets: on how many metrics better than all controls", ylabel="")
    ax.set_yticks(np.arange(len(ranks)) + 0.5, [readable(name) for name in ranks.index], rotation=0)
    ax.set_xticks(
        np.arange(len(found)) + 0.5,
        [textwrap.fill(name.replace("_", "_ "), 14).replace("_ ", "_") for name in found],
        rotation=0,
    )
    ax.tick_params(length=0)
    return ax


def plot_agreement(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How alike the maps of each two methods are, as numbers in the upper triangle; "–" where a
    pair could not be compared.

    table: a row for each pair, with columns method_a, method_b and value (the mean rank correlation
    over images, -1..1)."""
    square = _square(table)
    order = list(square.index)
    values = square.to_numpy(float)[:-1, 1:]  # the last row and the first column would be empty
    hidden = np.tril(np.ones_like(values, dtype=bool), -1)
    size = len(values)
    ax = new_axes(ax, 1.35 + 0.33 * size, min(6.3, 2.6 + 0.46 * size))
    sns.heatmap(
        values,
        mask=hidden,
        annot=True,
        fmt=".2f",
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        linewidths=1,
        ax=ax,
        annot_kws={"fontsize": 7},
        cbar_kws={"label": "rank correlation of two maps", "shrink": 0.7},
    )
    for row, column in np.argwhere(np.isnan(values) & ~hidden):
        ax.text(column + 0.5, row + 0.5, "–", color=GREY, ha="center", va="center")
    ax.xaxis.tick_top()
    ax.set_xticks(
        np.arange(size) + 0.5, [readable(name) for name in order[1:]], rotation=40, ha="left"
    )
    ax.set_yticks(np.arange(size) + 0.5, [readable(name) for name in order[:-1]], rotation=0)
    ax.tick_params(length=0, pad=2)
    return ax


def _square(table: pd.DataFrame) -> pd.DataFrame:
    check_table(table, ("method_a", "method_b", "value"), "agreement table")
    order = list(pd.unique(pd.concat([table["method_a"], table["method_b"]])))
    square = pd.DataFrame(np.nan, index=order, columns=order)
    for row in table.itertuples():
        square.loc[row.method_a, row.method_b] = square.loc[row.method_b, row.method_a] = row.value
    return square


def _check_trust(table: pd.DataFrame, what: str) -> None:
    check_table(table, TRUST_COLUMNS, what)
    for verdict in table.loc[table["difference"].notna(), "verdict"].unique():
        if verdict not in VERDICTS:
            raise UserError(f"{what}: " + unknown("verdict", str(verdict), list(VERDICTS)))
    double = table[table.duplicated(["method", "metric"])]
    if len(double):
        first = double.iloc[0]
        raise UserError(
            f"{what}: more than one row for {first['method']} and {first['metric']}; give one"
            " model's table"
        )


def _check_order(methods: Sequence[str], known) -> None:
    for method in methods:
        if method not in set(known):
            raise UserError(unknown("method in order", method, list(known)))


def _draw_difference(ax: Axes, place: int, row: pd.Series) -> None:
    color, marker = VERDICTS[row["verdict"]]
    ax.plot(
        [row["difference_low"], row["difference_high"]],
        [place, place],
        color=color,
        linewidth=1.2,
        zorder=2,
    )
    fill = "white" if marker == "o" else color
    ax.plot(
        row["difference"],
        place,
        marker,
        color=color,
        markersize=4.5,
        markerfacecolor=fill,
        zorder=3,
    )


def _band_rows(ax: Axes, count: int) -> None:
    """Every second row on grey, so that the eye keeps the line from the name to the last metric."""
    for place in range(0, count, 2):
        ax.axhspan(place - 0.5, place + 0.5, color="0.955", linewidth=0, zorder=0)


def _two_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Zero and one round value on the longer side, with their labels: panels this narrow have room
    for no more.
    """
    side = high if high >= -low else low
    size = 10.0 ** np.floor(np.log10(0.9 * abs(side)))
    step = max(factor for factor in (1, 2, 4, 5) if factor * size <= 0.9 * abs(side)) * size
    return [0, float(np.copysign(step, side))], [
        "0",
        f"{np.copysign(step, side):g}".replace("-", MINUS),
    ]


def _include_zero(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low)
    return min(low, -room), max(high, room)

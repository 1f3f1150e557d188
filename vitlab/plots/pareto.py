"""What compressed models cost and give: score against latency and size, and each step as a share of
the first.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from vitlab.errors import UserError
from vitlab.plots.interactive import Interactive, dress
from vitlab.plots.style import (
    GREY,
    MARKERS,
    PALETTE,
    check_table,
    legend_below,
    new_axes,
    panel_grid,
    readable,
    series_colors,
)
from vitlab.registry import unknown

MINUS = "\N{MINUS SIGN}"
COLUMNS = ("side", "batch_size", "threads", "p50_ms", "size_mb", "metric", "value", "low", "high")
AREA, LEAST_AREA = 400, 20  # square points of the largest file, of the smallest dot
STEPS = {"p50_ms": ("latency", "{:.3g} ms"), "size_mb": ("size on disk", "{:.3g} MB")}


def plot_pareto(benchmark_table: pd.DataFrame, batch_size: int, ax: Axes | None = None) -> Axes:
    """Score with its interval against the median latency (logarithmic); the area of a dot is the
    size on disk.

    batch_size: which rows to draw. The line joins the Pareto front: those that no other one beats
    in both time and score. The others are hollow."""
    rows = _choose_rows(benchmark_table, batch_size)
    front = find_front(rows["p50_ms"].to_numpy(), rows["value"].to_numpy())
    ax = new_axes(ax, 3.4 + 0.1 * len(rows))
    ax.set_xscale("log")
    best = rows[front].sort_values("p50_ms")
    ax.step(
        best["p50_ms"], best["value"], where="post", color=GREY, linewidth=1.2, alpha=0.5, zorder=1
    )
    colors = series_colors(rows["side"])
    for row, on_front, area, marker in zip(
        rows.itertuples(), front, _find_areas(rows), MARKERS * len(rows), strict=False
    ):
        color = colors[row.side]
        ax.plot([row.p50_ms] * 2, [row.low, row.high], color=color, linewidth=1, zorder=2)
        style = {
            "marker": marker,
            "facecolor": color if on_front else "white",
            "edgecolor": color,
            "alpha": 0.75,
        }
        label = f"{row.side}, {_name_size(row.size_mb)}"
        ax.scatter(row.p50_ms, row.value, s=area, **style, label=label, zorder=3)
    ax.margins(x=0.1, y=0.1)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(
        xlabel=f"{latency_label(rows)}; area: size on disk", ylabel=readable(rows["metric"].iloc[0])
    )
    ax.grid(True)
    for handle in legend_below(ax, 2).legend_handles:
        handle.set_sizes([40])
    return ax


def iplot_pareto(benchmark_table: pd.DataFrame, batch_size: int) -> Interactive:
    """`plot_pareto` to explore; named are the first side and the front, point at a dot to read all
    its numbers.
    """
    static = plot_pareto(benchmark_table, batch_size).figure
    rows = _choose_rows(benchmark_table, batch_size)
    front = find_front(rows["p50_ms"].to_numpy(), rows["value"].to_numpy())
    best, score = rows[front].sort_values("p50_ms"), readable(rows["metric"].iloc[0])
    figure = go.Figure()
    figure.add_scatter(
        x=best["p50_ms"],
        y=best["value"],
        mode="lines",
        line={"color": PALETTE[0], "width": 1.5, "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
    )
    diameters = 1.6 * np.sqrt(_find_areas(rows))
    for kind, inside, color in (("on the front", front, PALETTE[0]), ("behind it", ~front, "grey")):
        part = rows[inside]
        sizes = part["size_mb"].map(_name_size)
        error = {
            "type": "data",
            "symmetric": False,
            "array": part["high"] - part["value"],
            "thickness": 1,
        }
        ends = [part[name].map("{:.3f}".format) for name in ("low", "high")]
        figure.add_scatter(
            x=part["p50_ms"],
            y=part["value"],
            error_y={**error, "arrayminus": part["value"] - part["low"]},
            mode="markers+text",
            marker={
                "color": color,
                "size": diameters[inside],
                "opacity": 0.7,
                "sizemode": "diameter",
            },
            name=kind,
            text=part["side"].where(front[inside] | (part["side"] == rows["side"].iloc[0]), ""),
            textposition="top center",
            customdata=np.stack([part["side"], sizes, *ends], 1),
            hovertemplate=f"%{{customdata[0]}}<br>%{{x:.3g}} ms, %{{customdata[1]}}<br>{score} %{{y:.4f}} "
            "[%{customdata[2]}, %{customdata[3]}]<extra></extra>",
        )
    ticks = _choose_ticks(rows["p50_ms"])
    figure.update_xaxes(
        title=latency_label(rows),
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
    )
    figure.update_yaxes(title=score)
    return Interactive(dress(figure), static)


def _choose_ticks(times: pd.Series) -> list[float]:
    """1, 2 and 5 times powers of ten within the times; all digits where those are fewer than
    three.
    """
    for digits in ((1, 2, 5), range(1, 10)):
        steps = [digit * 10.0**power for power in range(-3, 6) for digit in digits]
        inside = [step for step in steps if 0.8 * times.min() <= step <= 1.2 * times.max()]
        if len(inside) > 2:
            break
    return inside


def find_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Whether (N,) each has none beside it that costs no more and is worth no less, one of the two
    strictly.
    """
    # [i, j]: i against j
    cheaper, better = cost[:, None] <= cost[None], value[:, None] >= value[None]
    strictly = (cost[:, None] < cost[None]) | (value[:, None] > value[None])
    return ~(cheaper & better & strictly).any(axis=0)


def plot_ingredients(benchmark_table: pd.DataFrame, batch_size: int) -> np.ndarray:
    """Each step as a share of the first one, a panel for latency, size on disk (where known) and
    the score.

    The rows are in the order of the steps, the first being the model to be compressed.
    """
    rows = _choose_rows(benchmark_table, batch_size)
    metric = readable(rows["metric"].iloc[0])
    known = {name: spec for name, spec in STEPS.items() if rows[name].notna().all()}
    panels = known | {"value": (metric, "{:.3f}")}
    axes = panel_grid(len(panels), 3, 0.75 + 0.27 * len(rows), sharey=True)
    places = np.arange(len(rows))
    for ax, (name, (title, text)) in zip(axes, panels.items(), strict=True):
        shares = (rows[name] / (rows[name].iloc[0] or 1.0)).to_numpy()  # a score of 0 has no shares
        colors = [GREY, *[PALETTE[2] if name == "value" else PALETTE[0]] * (len(rows) - 1)]
        bars = ax.barh(places, shares, color=colors, height=0.7)
        texts = [
            f"{text.format(value)} ({share:.1%})"
            for value, share in zip(rows[name], shares, strict=True)
        ]
        if name == "value":
            gaps = 100 * (rows[name] - rows[name].iloc[0])
            texts = [
                f"{value:.3f} ({gap:+.1f} points)".replace("-", MINUS)
                for value, gap in zip(rows[name], gaps, strict=True)
            ]
        texts[0] = text.format(rows[name].iloc[0])
        inside = shares > 0.55 * shares.max()
        for bar, label, within in zip(bars, texts, inside, strict=True):
            x = (
                bar.get_width() - 0.03 * shares.max()
                if within
                else bar.get_width() + 0.03 * shares.max()
            )
            style = (
                {"ha": "right", "color": "white"} if within else {"ha": "left", "color": "black"}
            )
            ax.text(
                x, bar.get_y() + bar.get_height() / 2, label, va="center", fontsize=7.5, **style
            )
        ax.axvline(1, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        ax.set_title(title)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.tick_params(axis="y", length=0)
        ax.set_yticks(places, rows["side"])
        ax.set_ylim(len(rows) - 0.5, -0.5)
    axes[0].figure.supxlabel(f"share of {rows['side'].iloc[0]}", fontsize=8)
    return axes


def _choose_rows(table: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    check_table(table, COLUMNS, "benchmark_table")
    there = sorted(table["batch_size"].unique().tolist())
    if batch_size not in there:
        raise UserError(unknown("batch_size", str(batch_size), list(map(str, there))))
    return table[table["batch_size"] == batch_size].reset_index(drop=True)


def _find_areas(rows: pd.DataFrame) -> np.ndarray:
    """Square points, in proportion to the size; the least for a size that is not known."""
    return (
        (AREA * rows["size_mb"] / rows["size_mb"].max())
        .clip(lower=LEAST_AREA)
        .fillna(LEAST_AREA)
        .to_numpy()
    )


def _name_size(size: float) -> str:
    return "size not known" if np.isnan(size) else f"{size:.3g} MB"


def latency_label(rows: pd.DataFrame) -> str:
    """What the axis of p50_ms shows."""
    threads = int(rows["threads"].iloc[0])
    return (
        f"median latency (ms, batch {rows['batch_size'].iloc[0]}, {threads}"
        f" thread{'s' * (threads != 1)})"
    )

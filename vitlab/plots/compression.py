"""What compression gives and what it costs: accuracy against time, the share of each step, and what was lost where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import Bbox

from vitlab.errors import UserError
from vitlab.extremes import describe_cut
from vitlab.plots.checking import check_table
from vitlab.plots.data import plot_sample_grid
from vitlab.plots.rows import cut_slices, draw_interval, draw_zero, list_grouped_rows, stack_rows
from vitlab.plots.interactive import Interactive, dress
from vitlab.plots.style import GREY, PALETTE, new_axes, note_above, panel_grid, readable
from vitlab.registry import unknown

MINUS, ARROW = "\N{MINUS SIGN}", "\N{RIGHTWARDS ARROW}"
PARETO = ("side", "p50_ms", "metric", "value", "low", "high")
DROP = ("column", "slice", "n", "change", "low", "high", "lost", "gained", "note")
LOST = ("kind", "sample_id", "label", "pred_before", "pred_after", "prob_before", "prob_after")
AREA, LEAST_AREA, UNKNOWN_AREA = 620, 10, 40  # square points of the largest file, of the smallest dot, of a size not known
TEXT = {"fontsize": 7, "linespacing": 1.05}
PADDING, LINE = 2, 3  # pixels that a label keeps free around itself, and that a line takes to either side
GAPS = (1, 5, 12, 20, 30, 42)  # points between a dot and its label
DIRECTIONS = np.array([(1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1)])
STEPS = {"p50_ms": ("latency", "{:.3g} ms"), "size_mb": ("size on disk", "{:.3g} MB")}


def plot_pareto(table: pd.DataFrame, batch_size: int | None = None, ax: Axes | None = None) -> Axes:
    """Score with its interval against the median latency (logarithmic); the area of a dot is the size on disk.

    table: a `benchmark_table`, or any with columns side, p50_ms, metric, value, low, high and, if known, size_mb, batch_size: a
    row for each model. batch_size: which rows to draw, the smallest by default. The line joins the Pareto front: those than which
    none is both faster and better. Others are hollow. A diamond stands for a size that is not known.
    """
    rows = _choose_rows(table, batch_size)
    front = find_front(rows["p50_ms"].to_numpy(), rows["value"].to_numpy())
    areas, known = _find_areas(rows), rows["size_mb"].notna()
    ax = new_axes(ax, 3.9)
    ax.set_xscale("log")
    best = rows[front].sort_values("p50_ms")
    ax.step(best["p50_ms"], best["value"], where="post", color=PALETTE[0], linewidth=1.2, alpha=0.5, zorder=1)
    for row, on_front, area in zip(rows.itertuples(), front, areas, strict=True):
        color = PALETTE[0] if on_front else GREY
        ax.plot([row.p50_ms] * 2, [row.low, row.high], color=color, linewidth=1, zorder=2)
        face = color if on_front else "white"
        marker = "D" if known.any() and not known[row.Index] else "o"
        style = {"marker": marker, "facecolor": face, "edgecolor": color, "alpha": 0.75, "linewidths": 1}
        ax.scatter(row.p50_ms, row.value, s=area, **style, zorder=3)
    ax.margins(x=0.16, y=0.12)
    _name_milliseconds(ax)
    size = "; area: size on disk" if rows["size_mb"].notna().any() else ""
    ax.set(xlabel=latency_label(rows) + size, ylabel=readable(rows["metric"].iloc[0]))
    ax.grid(True)
    lines = [[(row.p50_ms, row.low), (row.p50_ms, row.high)] for row in rows.itertuples()]
    steps = best[["p50_ms", "value"]].to_numpy(float)
    for (x, y), (further, higher) in pairwise(steps):
        lines += [[(x, y), (further, y)], [(further, y), (further, higher)]]
    _place_labels(ax, rows, _label(rows), areas, np.array(lines, float))
    return ax


def iplot_pareto(table: pd.DataFrame, batch_size: int | None = None) -> Interactive:
    """`plot_pareto` to explore; named are the first side and the front, point at a dot to read all its numbers."""
    static = plot_pareto(table, batch_size).figure
    rows = _choose_rows(table, batch_size)
    front = find_front(rows["p50_ms"].to_numpy(), rows["value"].to_numpy())
    best, score = rows[front].sort_values("p50_ms"), readable(rows["metric"].iloc[0])
    figure = go.Figure()
    figure.add_scatter(
        x=best["p50_ms"], y=best["value"], mode="lines", line={"color": PALETTE[0], "width": 1.5, "shape": "hv"},
        name="Pareto front", hoverinfo="skip",
    )  # fmt: skip
    diameters = 1.6 * np.sqrt(_find_areas(rows))
    for kind, inside, color in (("on the front", front, PALETTE[0]), ("behind it", ~front, "grey")):
        part = rows[inside]
        sizes = [f"{value:.3g} MB" if value == value else "size not known" for value in part["size_mb"]]
        error = {"type": "data", "symmetric": False, "array": part["high"] - part["value"], "thickness": 1}
        ends = [part[name].map("{:.3f}".format) for name in ("low", "high")]
        figure.add_scatter(
            x=part["p50_ms"], y=part["value"], error_y={**error, "arrayminus": part["value"] - part["low"]}, mode="markers+text",
            marker={"color": color, "size": diameters[inside], "opacity": 0.7, "sizemode": "diameter"}, name=kind,
            text=part["side"].where(front[inside] | (part["side"] == rows["side"].iloc[0]), ""), textposition="top center",
            customdata=np.stack([part["side"], sizes, *ends], 1),
            hovertemplate=f"%{{customdata[0]}}<br>%{{x:.3g}} ms, %{{customdata[1]}}<br>{score} %{{y:.4f}} "
            "[%{customdata[2]}, %{customdata[3]}]<extra></extra>",
        )  # fmt: skip
    ticks = _choose_ticks(rows["p50_ms"])
    figure.update_xaxes(title=latency_label(rows), type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(title=score)
    return Interactive(dress(figure), static)


def _choose_ticks(times: pd.Series) -> list[float]:
    """1, 2 and 5 times powers of ten within the times; all digits where those are fewer than three."""
    for digits in ((1, 2, 5), range(1, 10)):
        steps = [digit * 10.0**power for power in range(-3, 6) for digit in digits]
        inside = [step for step in steps if 0.8 * times.min() <= step <= 1.2 * times.max()]
        if len(inside) > 2:
            break
    return inside


def find_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Whether (N,) each has none beside it that costs no more and is worth no less, one of the two strictly."""
    cheaper, better = cost[:, None] <= cost[None], value[:, None] >= value[None]  # [i, j]: i against j
    strictly = (cost[:, None] < cost[None]) | (value[:, None] > value[None])
    return ~(cheaper & better & strictly).any(axis=0)


def plot_ingredients(table: pd.DataFrame, batch_size: int | None = None) -> np.ndarray:
    """Each step as a share of the first one, a panel for latency, size on disk (where known) and the score.

    table: as of `plot_pareto`, its rows in the order of the steps, the first being the model to be compressed.
    """
    rows = _choose_rows(table, batch_size)
    metric = readable(rows["metric"].iloc[0])
    panels = {name: spec for name, spec in STEPS.items() if name in rows and rows[name].notna().all()} | {
        "value": (metric, "{:.3f}")
    }
    axes = panel_grid(len(panels), 3, 0.75 + 0.27 * len(rows), sharey=True)
    places = np.arange(len(rows))
    for ax, (name, (title, text)) in zip(axes, panels.items(), strict=True):
        shares = (rows[name] / (rows[name].iloc[0] or 1.0)).to_numpy()  # a score of 0 has no shares
        colors = [GREY, *[PALETTE[2] if name == "value" else PALETTE[0]] * (len(rows) - 1)]
        bars = ax.barh(places, shares, color=colors, height=0.7)
        texts = [f"{text.format(value)} ({share:.1%})" for value, share in zip(rows[name], shares, strict=True)]
        if name == "value":
            gaps = 100 * (rows[name] - rows[name].iloc[0])
            texts = [f"{value:.3f} ({gap:+.1f} points)".replace("-", MINUS) for value, gap in zip(rows[name], gaps, strict=True)]
        texts[0] = text.format(rows[name].iloc[0])
        inside = shares > 0.55 * shares.max()
        for bar, label, within in zip(bars, texts, inside, strict=True):
            x = bar.get_width() - 0.03 * shares.max() if within else bar.get_width() + 0.03 * shares.max()
            style = {"ha": "right", "color": "white"} if within else {"ha": "left", "color": "black"}
            ax.text(x, bar.get_y() + bar.get_height() / 2, label, va="center", fontsize=7.5, **style)
        ax.axvline(1, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        ax.set_title(title)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.tick_params(axis="y", length=0)
        ax.set_yticks(places, rows["side"])
        ax.set_ylim(len(rows) - 0.5, -0.5)
    axes[0].figure.supxlabel(f"share of {rows['side'].iloc[0]}", fontsize=8)
    return axes


def plot_drop(drop_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Change of the accuracy within each class and group with its paired interval, and a line at zero.

    The numbers at the right are how many images were lost and won. Of more than a dozen slices of a column, those with the
    lowest and the highest change are shown.
    """
    check_table(drop_table, DROP, "drop_table")
    table = cut_slices(drop_table, "change")
    places, names, heads = stack_rows(table)
    ax = new_axes(ax, 0.8 + 0.2 * (places[-1] + 1), 5.2)
    for place, row in zip(places, table.itertuples(), strict=True):
        shown = row.low > 0 or row.high < 0
        draw_interval(ax, place, row.change, row.low, row.high, PALETTE[2] if shown else GREY, shown, row.note)
        if not np.isnan(row.change):
            ax.annotate(f"{MINUS}{row.lost:.0f} +{row.gained:.0f}", (1, place), (6, 0), va="center", fontsize=7,
                        xycoords=ax.get_yaxis_transform(), textcoords="offset points")  # fmt: skip
    draw_zero(ax)
    ax.set_xlabel(f"accuracy: after minus before (at the right: images lost {MINUS}, won +)")
    list_grouped_rows(ax, places, names, heads)
    note_above(ax.figure, describe_cut(len(table), len(drop_table), "slices", "change"))
    return ax


def plot_lost(images: Sequence, lost_images: pd.DataFrame) -> np.ndarray:
    """The images of a `lost_images` table, in its order: true class, both answers, and the probability of the true class."""
    missing = [name for name in LOST if name not in lost_images]
    if missing:
        raise UserError(f"lost_images lacks the columns {', '.join(missing)}; lost_images(before, after) makes such a table")
    if len(images) != len(lost_images):
        raise UserError(f"{len(images)} images do not go with {len(lost_images)} rows: give one image for each row, in order")
    if lost_images.empty:
        ax = new_axes(None, 0.6)
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no image was lost or won", ha="center", va="center")
        return np.array([ax])
    titles = [
        f"{row.sample_id}\n" * bool(row.sample_id)
        + f"true: {row.label}\n{row.pred_before} {ARROW} {row.pred_after}\n"
        + f"p(true): {row.prob_before:.0%} {ARROW} {row.prob_after:.0%}"
        for row in lost_images.itertuples()
    ]
    kinds = [name for name in ("gained", "lost") if (lost_images["kind"] == name).any()]
    labels = lost_images["kind"].tolist() if len(kinds) > 1 else None
    return plot_sample_grid(images, titles, labels, kinds, columns=4)


def _choose_rows(table: pd.DataFrame, batch_size: int | None) -> pd.DataFrame:
    check_table(table, PARETO, "table")
    if "batch_size" in table:
        there = sorted(table["batch_size"].unique().tolist())
        chosen = there[0] if batch_size is None else batch_size
        if chosen not in there:
            raise UserError(unknown("batch_size", str(chosen), list(map(str, there))))
        table = table[table["batch_size"] == chosen]
    if not (table["p50_ms"] > 0).all():
        raise UserError("p50_ms must be above 0 throughout: the axis is logarithmic")
    if table["side"].duplicated().any():
        raise UserError(f"{table['side'][table['side'].duplicated()].iloc[0]!r} has several rows; give one a model")
    return (table if "size_mb" in table else table.assign(size_mb=np.nan)).reset_index(drop=True)


def _find_areas(rows: pd.DataFrame) -> np.ndarray:
    """Square points, in proportion to the size; the same for all that are not known."""
    sizes = rows["size_mb"].to_numpy(float)
    areas = np.maximum(AREA * sizes / max(np.nanmax(sizes, initial=0), 1e-9), LEAST_AREA)
    return np.where(np.isnan(sizes), UNKNOWN_AREA, areas)


def _label(rows: pd.DataFrame) -> list[str]:
    return [row.side + (f"\n{row.size_mb:.3g} MB" if row.size_mb == row.size_mb else "") for row in rows.itertuples()]


def latency_label(rows: pd.DataFrame) -> str:
    """What the axis of p50_ms shows, with batch size and threads where the table has them."""
    details = []
    if "batch_size" in rows:
        details.append(f"batch {rows['batch_size'].iloc[0]}")
    if "threads" in rows:
        threads = int(rows["threads"].iloc[0])
        details.append(f"{threads} thread{'s' * (threads != 1)}")
    return "median latency (ms" + "".join(f", {detail}" for detail in details) + ")"


def _name_milliseconds(ax: Axes) -> None:
    """Ticks at 1, 2, 5 of each decade, written out."""
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _place_labels(ax: Axes, rows: pd.DataFrame, texts: Sequence[str], areas: np.ndarray, lines: np.ndarray) -> None:
    """Write each text near its dot where it covers least: other texts and what is outside first of all, then dots and lines.

    lines: (M, 2, 2), the ends of upright and level lines in data. A text that found room only further off is tied to its dot.
    """
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()  # the layout is settled then
    pixels = figure.dpi / 72
    points = rows[["p50_ms", "value"]].to_numpy(float)
    centres, radii = ax.transData.transform(points), np.sqrt(areas / np.pi) * pixels
    dots = [Bbox([centre - radius, centre + radius]) for centre, radius in zip(centres, radii, strict=True)]
    ends = ax.transData.transform(lines.reshape(-1, 2)).reshape(-1, 2, 2)
    ends = np.stack([ends.min(axis=1), ends.max(axis=1)], axis=1)
    covered = [Bbox([low - LINE, high + LINE]) for low, high in ends]
    frame, taken = ax.get_window_extent(), []
    for place in np.argsort(-areas, kind="stable"):
        half = _measure_text(ax, texts[place]) / 2 + PADDING
        options = []
        for gap in GAPS:
            for side in DIRECTIONS:
                reach = radii[place] * side / np.linalg.norm(side) + gap * pixels * side
                box = Bbox([centres[place] + reach + side * half - half, centres[place] + reach + side * half + half])
                inside = _overlap(box, [frame])
                cost = 50 * (_overlap(box, taken) + box.width * box.height - inside)
                cost += 20 * _overlap(box, dots) + 8 * _overlap(box, covered) + 40 * gap
                options.append((cost, len(options), box, gap))
        _, _, box, gap = min(options)
        taken.append(box)
        arrow = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": radii[place] / pixels}
        ax.annotate(
            texts[place], points[place], ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) - centres[place], **TEXT,
            textcoords="offset pixels", ha="center", va="center", zorder=4, arrowprops=arrow if gap > GAPS[1] else None,
        ).set_in_layout(False)  # fmt: skip


def _measure_text(ax: Axes, text: str) -> np.ndarray:
    """Width and height in pixels."""
    drawn = ax.text(0, 0, text, transform=None, **TEXT)
    extent = drawn.get_window_extent()
    drawn.remove()
    return np.array([extent.width, extent.height])


def _overlap(box: Bbox, others: Sequence[Bbox]) -> float:
    """Square pixels that the box shares with the others."""
    shared = (Bbox.intersection(box, other) for other in others)
    return sum(part.width * part.height for part in shared if part is not None)

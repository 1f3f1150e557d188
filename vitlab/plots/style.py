"""How every figure looks: palette, page width, names, legends; and what several are made of: rows
with an interval, lines with a band, heat maps, images.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from vitlab.plots.captions import show_captions
from vitlab.plots.fonts import fallback_families

# Wong's colour-blind safe colours (Nature Methods 8, 441, 2011) as seaborn tunes them. Classes are
# counted from the front and models or runs from further on, so that within one report a colour
# rarely stands for a class here and for a model there.
PALETTE = tuple(sns.color_palette("colorblind").as_hex())
SERIES = tuple(PALETTE[i] for i in (2, 3, 4, 9, 7, 5, 6, 8, 0, 1))
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">")
GREY = "0.45"
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
TIMES, MINUS, ARROW = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}", "\N{RIGHTWARDS ARROW}"

WIDTH = 6.3  # inches: the text width of an A4 page, 16 cm
DPI = 150  # 945 pixels across, for a page of 800

BAND = 0.18  # opacity of an interval
# of a row with an interval, where its table says nothing else
DOT = {"color": PALETTE[0], "marker": "o", "filled": True, "note": ""}

NAMES = {
    "roc_auc": "ROC AUC",
    "roc_auc_within_groups": "ROC AUC within groups",
    "mcc": "MCC",
    "f1": "F1",
    "youden": "Youden",
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
    "grad_cam": "Grad-CAM",
    "layer_cam": "LayerCAM",
    "score_cam": "Score-CAM",
    "eigen_cam": "Eigen-CAM",
    "rollout": "attention rollout",
    "gradient_rollout": "gradient-weighted rollout",
    "kernel_shap": "KernelSHAP",
    "lime": "LIME",
    "road": "ROAD",
    "sensitivity_n": "sensitivity-n",
    "centre": "centred Gaussian",
    "random": "random map",
    "edges": "edge detector",
    "gaussian_noise": "Gaussian noise",
    "jpeg": "JPEG",
    "ece": "ECE",
    "classwise_ece": "class-wise ECE",
    "brier": "Brier score",
    "nll": "NLL",
    "support": "images",
    "p_holm": "p (Holm)",
    "model_a": "model A",
    "model_b": "model B",
    "value_a": "A",
    "value_b": "B",
    "only_a_right": "only A right",
    "only_b_right": "only B right",
    "sampling_sd": "s.d. by test images",
    "seed_sd": "s.d. by seeds",
    "pred": "prediction",
    "training_seconds": "training time (s)",
    "inference_ms": "inference time per image (ms)",
    "p50_ms": "median (ms)",
    "p90_ms": "90th percentile (ms)",
    "size_mb": "size (MB)",
    "spearman": "rank correlation (Spearman)",
    "constant_brier": "constant Brier score",
    "taylor": "gradient (Taylor)",
}


def set_style() -> None:
    """Set matplotlib and seaborn for figures of page width, pandas for tables with whole texts;
    show captions in Jupyter. Call it once in each notebook.
    """
    show_captions()
    # a fallback font need not have a bold weight
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    pd.set_option("display.max_colwidth", None)
    pd.set_option("display.html.use_mathjax", False)
    small = dict.fromkeys(
        ("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize"), 8
    )
    large = dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize", "figure.titlesize"), 9)
    rc = {
        **small,
        **large,
        "font.family": ["sans-serif", *fallback_families()],
        "figure.figsize": (WIDTH, 3.2),
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "grid.color": "0.9",
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "image.cmap": SEQUENTIAL,
        "text.parse_math": False,  # a name such as "$x$" is shown as it is
    }
    sns.set_theme(context="paper", style="ticks", palette=list(PALETTE), rc=rc)


def class_colors(classes: Sequence[str]) -> dict[str, str]:
    """A colour for each class, the same in every figure as long as the classes come in the order of
    the data set.
    """
    return dict(zip(classes, _at_least(PALETTE, len(classes)), strict=False))


def series_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each model, run or metric that a figure compares: the same for the same names,
    in whatever order they come.
    """
    names = list(names)
    colors = dict(zip(sorted(names), _at_least(SERIES, len(names)), strict=False))
    return {name: colors[name] for name in names}


def series_looks(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Colour and marker of each model, run or method of a figure with lines."""
    looks = {}
    for place, (name, color) in enumerate(series_colors(names).items()):
        looks[name] = {"color": color, "marker": MARKERS[place % len(MARKERS)]}
    return looks


def _at_least(colors: tuple[str, ...], count: int) -> Sequence[str]:
    return colors if count <= len(colors) else sns.color_palette("husl", count).as_hex()


def shorten(name: str, longest: int = 30) -> str:
    """The name, its end replaced by an ellipsis where it is too long for a figure."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def legend_name(name: str) -> str:
    """The name for `label=`: matplotlib leaves labels that begin with an underscore out of the
    legend.
    """
    return f"\N{ZERO WIDTH SPACE}{name}" if name.startswith("_") else name


def readable(name: str) -> str:
    """A column or metric name for readers; names with blanks stay.

    >>> readable("val_roc_auc")
    'validation ROC AUC'
    """
    if " " in name:  # such as "recall of class_01", which holds a name
        return NAMES.get(name, name)
    for prefix, word in (("val_", "validation "), ("train_", "training ")):
        if name.startswith(prefix) and name not in NAMES:
            return word + readable(name.removeprefix(prefix))
    return NAMES.get(name, name.replace("_", " "))


def new_axes(ax: Axes | None, height: float, width: float = WIDTH) -> Axes:
    """The axes given, or those of a new figure."""
    return ax if ax is not None else new_figure(height, width).add_subplot()


def new_figure(height: float, width: float = WIDTH) -> Figure:
    return plt.figure(figsize=(width, height), layout="constrained")


def panel_grid(count: int, columns: int, height: float, **options) -> np.ndarray:
    """`count` axes in rows of at most `columns`, each row `height` inches high: an array (count,)
    on a figure of page width.
    """
    columns = max(1, min(columns, count))
    rows = -(-max(1, count) // columns)
    figure = new_figure(rows * height)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for ax in axes[count:]:
        ax.remove()
    return axes[:count]


def legend_below(ax: Axes, columns: int, **options) -> Legend:
    """A legend under the label of the x axis, where it hides nothing. Twice as many entries as
    columns are two lines.
    """
    # inches: tick and axis labels
    under = ax.transAxes + ScaledTranslation(0, -0.4, ax.get_figure(root=True).dpi_scale_trans)
    return ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=under, ncols=columns, **options
    )


def shared_legend(axes: Sequence[Axes], columns: int = 4, **options) -> None:
    """One legend below a figure with the labels of all its axes, each once."""
    entries = {}
    for ax in np.ravel(axes):
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure = np.ravel(axes)[0].get_figure(root=True)
    columns = min(columns, count_columns(entries))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, **options
    )


def count_columns(names: Iterable[str]) -> int:
    """How many columns of a legend with these names the page is wide enough for."""
    longest = max(map(len, names), default=0)
    return max(1, int(WIDTH / (0.55 + 0.07 * longest)))  # inches of a sign and of a letter


def empty_axes(text: str) -> Axes:
    """A low figure with a text, for a table without rows."""
    ax = new_axes(None, 0.6)
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, ha="center", va="center")
    return ax


def show_image(ax: Axes, image) -> None:
    """Draw an image (PIL; (h, w) or (h, w, 3); integers, or floats in 0..1) on its full range of
    values, without ticks.
    """
    pixels = np.asarray(image)
    highest = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    ax.imshow(np.clip(pixels / highest, 0, 1), cmap="gray", vmin=0, vmax=1)
    hide_ticks(ax)


def note_above(figure: Figure, *notes: str) -> None:
    """Small grey lines above a figure, such as what was left out; nothing where all notes are
    empty.
    """
    if text := "\n".join(filter(None, notes)):
        figure.suptitle(text, fontsize=8, color=GREY)


def use_log_axis(ax: Axes) -> None:
    """A logarithmic x axis with plain numbers at its ticks."""
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def few_ticks(count: int) -> MaxNLocator:
    """About `count` ticks at round values."""
    return MaxNLocator(nbins=count, steps=[1, 2, 5, 10])


def hide_ticks(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def frame(ax: Axes, color: str) -> None:
    """A coloured frame around an image."""
    for spine in ax.spines.values():
        spine.set(visible=True, color=color, linewidth=2)


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


def image_shape(image) -> tuple[int, int]:
    """Height and width in pixels."""
    return np.asarray(image).shape[:2]


# What several figures are made of


def name_rows(ax: Axes, names: Sequence[str], ticks: int = 4) -> None:
    """Name the rows 0, 1, 2 ... from top to bottom. ticks: about how many values the x axis
    shows.
    """
    ax.set_yticks(range(len(names)), [shorten(name, 40) for name in names])
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(few_ticks(ticks))
    ax.grid(axis="x")


def draw_intervals(ax: Axes, table: pd.DataFrame, places: Sequence[float] | None = None) -> None:
    """A dot at `value` and a line from `low` to `high` for each row of a table, from top to bottom.

    Optional columns: color; marker; filled, False for a hollow dot; note, which is written where
    the value is missing. places: of the rows, else 0, 1, 2 ..."""
    places = range(len(table)) if places is None else places
    for place, row in zip(places, table.to_dict("records"), strict=True):
        look = DOT | row
        if np.isnan(row["value"]):
            middle = {"ha": "center", "va": "center", "transform": ax.get_yaxis_transform()}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            text = shorten(look["note"], 40)
            ax.text(0.5, place, text, color=GREY, fontsize=7, bbox=box, **middle)
            continue
        color = look["color"]
        line = {"color": color, "marker": "|", "markersize": 6, "linewidth": 1.2}
        ax.plot([row["low"], row["high"]], [place, place], **line)
        inside = color if look["filled"] else "white"
        dot = {"color": color, "marker": look["marker"], "markersize": 5}
        ax.plot(row["value"], place, markerfacecolor=inside, **dot)


def draw_reference(ax: Axes, at: float = 0) -> None:
    """A dotted vertical line that values are compared with."""
    ax.axvline(at, color=GREY, linewidth=0.8, linestyle=":", zorder=0)


def draw_level(ax: Axes, at: float = 0) -> None:
    """A dotted horizontal line that values are compared with."""
    ax.axhline(at, color=GREY, linewidth=0.8, linestyle=":", zorder=0)


def draw_band(ax: Axes, x, table: pd.DataFrame, value: str = "value", **look) -> None:
    """A line with the area between the columns low and high."""
    area = {"color": look.get("color"), "alpha": BAND, "linewidth": 0}
    ax.fill_between(x, table["low"], table["high"], **area)
    ax.plot(x, table[value], **{"markersize": 3.5, "linewidth": 1.2} | look)


def draw_lines(ax: Axes, table: pd.DataFrame, x: str, by: str, looks: Mapping[str, dict]) -> None:
    """A line with its band over the column x for each value of the column `by`, labelled for a
    legend. looks: colour and marker of each value.
    """
    for name, look in looks.items():
        part = table[table[by] == name].sort_values(x)
        draw_band(ax, part[x], part, label=legend_name(name), **look)
    ax.grid(True)


def draw_heatmap(
    ax: Axes, values: pd.DataFrame, words: pd.DataFrame, label: str, cmap: str, **look
) -> None:
    """A heat map with words in its cells; where a value is missing, they stand on grey."""
    ax.set_facecolor("0.93")
    options = {"linewidths": 1, "annot_kws": {"fontsize": 7}, "cbar_kws": {"label": label}}
    sns.heatmap(values, annot=words, fmt="", cmap=cmap, ax=ax, **options | look)
    for row, column in np.argwhere(values.isna().to_numpy()):
        word = words.iloc[row, column]
        ax.text(column + 0.5, row + 0.5, word, color=GREY, ha="center", va="center")
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0, pad=2, rotation=0)

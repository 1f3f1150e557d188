"""What is in a data set: balance, sizes, intensities, images, near-duplicates, flaws,
augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from vitlab.errors import UserError
from vitlab.extremes import MAX_LINES, MAX_PANELS, MAX_SHOWN, describe_cut, find_extremes
from vitlab.plots.style import (
    GREY,
    PALETTE,
    TIMES,
    WIDTH,
    class_colors,
    frame,
    image_shape,
    new_axes,
    new_figure,
    note_above,
    panel_grid,
    readable,
    series_colors,
    shorten,
    show_image,
)
from vitlab.schema import SPLITS

BRIGHTNESS, CONTRAST = "mean brightness (0 black, 1 white)", "contrast (standard deviation)"


def plot_class_balance(samples: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """Number and share of samples of each class: a panel for all samples, then one for each group.

    Of many classes and groups, those with the fewest and the most samples are shown.
    """
    every = list(classes)
    sizes = samples["label"].value_counts().reindex(every, fill_value=0)
    classes = [every[place] for place in find_extremes(sizes)]
    colors = class_colors(every)
    groups = samples["group"].astype(str)
    order = largest_groups(groups)
    parts = {"all": samples} | {name: samples[groups == name] for name in order if len(order) > 1}
    axes = panel_grid(len(parts), 4, 0.75 + 0.28 * len(classes), sharey=True)
    # the text behind a bar is about 0.9 inches long
    room = 1 / (1 - 0.9 / ((WIDTH - 0.8) / min(4, len(parts))))
    for ax, (name, part) in zip(axes, parts.items(), strict=True):
        counts = part["label"].value_counts().reindex(classes, fill_value=0)
        bars = ax.barh(
            range(len(classes)), counts, color=[colors[name] for name in classes], height=0.72
        )
        texts = [f"{count:,} ({count / max(1, len(part)):.0%})" for count in counts]
        ax.bar_label(bars, texts, padding=3, fontsize=7.5)
        ax.set(
            title=f"{shorten(name)} (n = {len(part):,})",
            xlabel="images",
            xlim=(0, max(1, counts.max()) * room),
        )
        ax.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10], integer=True))
        ax.set_yticks(range(len(classes)), [shorten(name) for name in classes])
        ax.tick_params(axis="y", length=0)
    axes[0].invert_yaxis()
    cut = describe_cut(len(classes), len(every), by="number of images")
    note_above(axes[0].figure, cut, note_groups(len(order), groups.nunique()))
    return axes


def largest_groups(groups: pd.Series) -> list[str]:
    """The names of the largest groups, as many as a figure has panels, in alphabetical order."""
    return sorted(groups.value_counts().index[: MAX_PANELS - 1])


def note_groups(shown: int, total: int) -> str:
    return f"the {shown} largest of {total:,} values of group" if shown < total else ""


def plot_sample_grid(
    images: Sequence,
    titles: Sequence[str],
    labels: Sequence[str] | None = None,
    classes: Sequence[str] = (),
    columns: int = 6,
) -> np.ndarray:
    """Images side by side. With `labels` and `classes`, each has a frame in the colour of its
    class.
    """
    if len(images) == 0:
        raise UserError("there is no image to draw")
    lines = max(title.count("\n") + 1 for title in titles)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    ratio = max(height / width for height, width in map(image_shape, images))
    colors = class_colors(classes) if labels is not None else {}
    colors = {
        name: color
        for name, color in colors.items()
        if len(colors) <= MAX_SHOWN or name in set(labels)
    }
    legend_height = 0.1 + 0.2 * -(-len(colors) // 5) if colors else 0
    axes = panel_grid(
        len(images),
        columns,
        ratio * WIDTH / max(columns, 3) * 0.97 + 0.14 * lines + legend_height / rows,
    )
    for ax, image, title in zip(axes, images, titles, strict=True):
        show_image(ax, image)
        ax.set_title(title, fontsize=7, pad=3)
    if labels is not None:
        for ax, label in zip(axes, labels, strict=True):
            frame(ax, colors[label])
        handles = [Patch(color=color, label=shorten(name)) for name, color in colors.items()]
        axes[0].figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 5)
        )
    return axes


def plot_image_sizes(image_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Width against height in pixels; the area of a dot says how many images have that size."""
    ax = new_axes(ax, 3.0, 4.2)
    sizes = image_table.value_counts(["width", "height"]).reset_index()
    ax.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle=":", label="square")
    area = 15 + 285 * sizes["count"] / len(image_table)
    ax.scatter(sizes["width"], sizes["height"], s=area, color=PALETTE[0], alpha=0.6, linewidths=0)
    first = sizes.iloc[0]
    ax.set_title(
        f"most common: {first['width']} {TIMES} {first['height']} ({first['count']:,} of"
        f" {len(image_table):,} images)"
    )
    low, high = (
        sizes[["width", "height"]].min().min() * 0.7,
        sizes[["width", "height"]].max().max() * 1.3,
    )
    ax.set(
        xlim=(low, high),
        ylim=(low, high),
        xlabel="width (pixels)",
        ylabel="height (pixels)",
        aspect="equal",
    )
    ax.legend(loc="lower right")
    return ax


def plot_intensities(
    image_table: pd.DataFrame, samples: pd.DataFrame, classes: Sequence[str]
) -> np.ndarray:
    """Mean brightness against contrast (standard deviation of the pixels), a dot for each image, a
    panel for each group.

    Of many classes, the darkest and the brightest have a colour; of many groups, the largest have a
    panel."""
    table, colors, groups = prepare_intensities(image_table, samples, classes)
    table = table.sample(frac=1, random_state=0)  # mixed, so that no class hides the others
    axes = panel_grid(len(groups), 3, 3.0, sharex=True, sharey=True)
    for ax, group in zip(axes, groups, strict=True):
        part = table[table["group"] == group]
        ax.scatter(
            part["mean"], part["std"], s=7, c=part["class"].map(colors), alpha=0.5, linewidths=0
        )
        ax.set_title(f"{shorten(group)} (n = {len(part):,})")
    axes[0].set_ylabel(CONTRAST)
    axes[0].figure.supxlabel(BRIGHTNESS, fontsize=9)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, label=shorten(name))
        for name, color in colors.items()
    ]
    axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=min(len(colors), 5))
    note_above(axes[0].figure, note_groups(len(groups), table["group"].nunique()))
    return axes


def prepare_intensities(
    image_table: pd.DataFrame, samples: pd.DataFrame, classes: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """The images with label and group; the colours of the classes drawn, others as one in the
    column class; groups drawn.
    """
    table = image_table.merge(
        samples[["sample_id", "label", "group"]], on="sample_id", validate="one_to_one"
    )
    table["group"] = table["group"].astype(str)
    every = list(classes)
    shown = [
        every[place]
        for place in find_extremes(
            table.groupby("label")["mean"].mean().reindex(every), MAX_LINES * 2
        )
    ]
    others = f"{len(every) - len(shown):,} others"
    colors = class_colors(shown) | ({others: "#737373"} if len(shown) < len(every) else {})
    table["class"] = table["label"].where(table["label"].isin(shown), others)
    return table, colors, largest_groups(table["group"])


def plot_augmentations(original, variants: Sequence) -> np.ndarray:
    """An image and what augmentation made of it."""
    axes = plot_sample_grid(
        [original, *variants], ["original", *(f"variant {i}" for i in range(1, len(variants) + 1))]
    )
    frame(axes[0], PALETTE[0])
    return axes


def plot_pairs(pairs: Sequence[tuple], titles: Sequence[tuple[str, str]]) -> np.ndarray:
    """Pairs of images (near-duplicates) side by side: an array of axes (pairs, 2). titles: one for
    each image of each pair.
    """
    if len(pairs) == 0:
        raise UserError("there is no pair to draw")
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    lines = max(title.count("\n") + 1 for pair in titles for title in pair)
    figure = new_figure(rows * (0.92 * WIDTH / (2.12 * max(columns, 2)) + 0.17 * lines))
    widths = ([1, 1, 0.12] * columns)[:-1]  # a narrow gap after each pair
    cells = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    places = [(row, 3 * column) for row in range(rows) for column in range(columns)][: len(pairs)]
    axes = np.array([[cells[row, left], cells[row, left + 1]] for row, left in places])
    for ax in set(cells.ravel()) - set(axes.ravel()):
        ax.remove()
    for position, pair in enumerate(pairs):
        for side in (0, 1):
            show_image(axes[position, side], pair[side])
            axes[position, side].set_title(titles[position][side], fontsize=7, pad=3)
    return axes


MOST_IMAGES = 8  # of a cluster
LABEL_WIDTH = 0.8  # inches, for the name of a row
FLAGGED = PALETTE[3]


def plot_worst(images: Mapping[str, object], worst: pd.DataFrame) -> np.ndarray:
    """A row of images for each issue, the worst first, with their scores; a frame marks those that
    the issue's rule flags.

    worst: issue, sample_id, score, flagged, as of `vitlab.data.worst_images`; images: sample_id to
    image. One that is not given (it is unreadable) is a blank with its name. Array of axes (issues,
    most images); None where a row is shorter."""
    rows = [(readable(issue), part) for issue, part in worst.groupby("issue", sort=False)]
    axes = _image_rows(
        [(name.replace(" ", "\n"), part["sample_id"].tolist()) for name, part in rows], images
    )
    for (_, part), row in zip(rows, axes, strict=True):
        for ax, score, flagged in zip(row, part["score"], part["flagged"], strict=False):
            ax.set_title(_write_score(score), fontsize=6.5, pad=2)
            if flagged:
                frame(ax, FLAGGED)
    return axes


def plot_clusters(
    images: Mapping[str, object], clusters: pd.DataFrame, samples: pd.DataFrame
) -> np.ndarray:
    """A row of images for each cluster of near-duplicates, at most eight of them, framed in the
    colour of their split.

    clusters: sample_id, cluster, size, of `vitlab.data.cluster_table`, the clusters in the order
    wanted; samples: sample_id, label, split. Where frames differ in colour, a cluster crosses a
    split. Array of axes (clusters, columns); None where a row is shorter."""
    named = samples.set_index("sample_id")
    colors = series_colors(SPLITS)
    parts = [part.head(MOST_IMAGES) for _, part in clusters.groupby("cluster", sort=False)]
    rows = [(f"{part['size'].iloc[0]} images", part["sample_id"].tolist()) for part in parts]
    axes = _image_rows(rows, images, legend=True)
    for (_, ids), row in zip(rows, axes, strict=True):
        for ax, sample_id in zip(row, ids, strict=False):
            ax.set_title(f"{sample_id}\n{named.loc[sample_id, 'label']}", fontsize=6.5, pad=3)
            frame(ax, colors[named.loc[sample_id, "split"]])
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    axes[0, 0].figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return axes


def _image_rows(
    rows: list[tuple[str, list[str]]], images: Mapping[str, object], legend: bool = False
) -> np.ndarray:
    if not rows:
        raise UserError("there is no image to draw: the table is empty")
    columns = max(len(ids) for _, ids in rows)
    side = (WIDTH - LABEL_WIDTH) / max(columns, 6)
    figure = new_figure(len(rows) * (side + 0.24 + 0.1 * legend) + 0.1 + 0.25 * legend)
    grid = figure.subplots(
        len(rows),
        max(columns, 6) + 1,
        squeeze=False,
        width_ratios=[LABEL_WIDTH, *[side] * max(columns, 6)],
    )
    axes = np.full((len(rows), columns), None, dtype=object)
    for place, (label, ids) in enumerate(rows):
        for ax in grid[place]:
            ax.axis("off")
        grid[place, 0].text(
            0, 0.5, label, fontsize=7.5, va="center", transform=grid[place, 0].transAxes
        )
        for column, sample_id in enumerate(ids):
            ax = axes[place, column] = grid[place, column + 1]
            ax.axis("on")
            image = images.get(sample_id)
            show_image(ax, np.full((8, 8), 235, dtype=np.uint8) if image is None else image)
            if image is None:
                ax.text(
                    0.5,
                    0.5,
                    sample_id,
                    fontsize=5,
                    ha="center",
                    va="center",
                    wrap=True,
                    transform=ax.transAxes,
                )
    return axes


def _write_score(score: float) -> str:
    return "0" if score == 0 else f"{score:.0e}" if score < 0.0005 else f"{score:.3f}"

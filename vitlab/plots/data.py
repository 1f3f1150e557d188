"""What is in a data set: class balance, sizes, intensities, images, near-duplicates, flagged
images, augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.express as px
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vitlab.errors import UserError
from vitlab.extremes import MAX_LINES, MAX_PANELS, MAX_SHOWN, describe_cut, find_extremes
from vitlab.plots.elements import plot_image_rows
from vitlab.plots.interactive import Interactive, dress, plotly_text
from vitlab.plots.style import (
    GREY,
    PALETTE,
    TIMES,
    WIDTH,
    class_colors,
    new_axes,
    note_above,
    panel_grid,
    readable,
    series_colors,
    shared_legend,
    shorten,
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
    """A grid of images, with `labels` and `classes` each framed in the colour of its class: an
    array of axes (N,).
    """
    if len(images) != len(titles):
        raise UserError(f"{len(images)} images and {len(titles)} titles: give one title per image")
    colors, frames = {}, []
    if labels is not None:
        frames = [class_colors(classes)[label] for label in labels]
        colors = class_colors(classes)
        if len(colors) > MAX_SHOWN:
            colors = dict(zip(labels, frames, strict=True))
    columns = max(1, min(columns, len(images)))
    images, titles, frames = (
        [part[start : start + columns] for start in range(0, len(part), columns)]
        for part in (list(images), list(titles), frames)
    )
    axes = plot_image_rows(images, (), titles, frames, columns=max(columns, 3), legend=colors)
    return np.array([ax for ax in axes.ravel() if ax is not None])


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
    sides = sizes[["width", "height"]].to_numpy()
    ends = sides.min() * 0.7, sides.max() * 1.3
    ax.set(xlim=ends, ylim=ends, xlabel="width (pixels)", ylabel="height (pixels)", aspect="equal")
    ax.legend(loc="lower right")
    return ax


def iplot_intensities(
    image_table: pd.DataFrame, samples: pd.DataFrame, classes: Sequence[str]
) -> Interactive:
    """Mean brightness against contrast (standard deviation of the pixels), a dot for each image, a
    panel for each group.

    Of many classes, the darkest and the brightest have a colour; of many groups, the largest have a
    panel. In HTML, point at a dot to read its sample_id."""
    table = image_table.merge(
        samples[["sample_id", "label", "group"]], on="sample_id", validate="one_to_one"
    )
    table["group"] = table["group"].astype(str)
    groups, every = largest_groups(table["group"]), list(classes)
    means = table.groupby("label")["mean"].mean().reindex(every)
    shown = [every[place] for place in find_extremes(means, MAX_LINES * 2)]
    others = f"{len(every) - len(shown):,} others"
    colors = class_colors(shown) | ({others: "#737373"} if len(shown) < len(every) else {})
    table["class"] = table["label"].where(table["label"].isin(shown), others)
    note = note_groups(len(groups), table["group"].nunique())
    table = table[table["group"].isin(groups)]
    static = _draw_intensities(table, colors, groups)
    note_above(static, note)

    counts = table["group"].value_counts()
    titles = {group: f"{plotly_text(group)} (n = {counts[group]:,})" for group in groups}
    named = table.assign(
        panel=table["group"].map(titles),
        **{name: table[name].map(plotly_text) for name in ("class", "sample_id")},
    )
    legend = {plotly_text(name): color for name, color in colors.items()}
    figure = px.scatter(
        named,
        x="mean",
        y="std",
        color="class",
        symbol="class",
        facet_col="panel",
        facet_col_wrap=4,
        facet_row_spacing=0.2,
        hover_name="sample_id",
        category_orders={"panel": list(titles.values()), "class": list(legend)},
        color_discrete_map=legend,
        labels={"mean": BRIGHTNESS, "std": CONTRAST, "class": ""},
        render_mode="svg",
        opacity=0.55,
    )
    figure.for_each_annotation(lambda title: title.update(text=title.text.partition("=")[2]))
    figure.update_traces(marker_size=5)
    height = 120 + 280 * -(-len(groups) // 4)
    return Interactive(dress(figure).update_layout(height=height), static)


def _draw_intensities(table: pd.DataFrame, colors: Mapping[str, str], groups: Sequence[str]):
    table = table.sample(frac=1, random_state=0)  # mixed, so that no class hides the others
    axes = panel_grid(len(groups), 3, 3.0, sharex=True, sharey=True)
    for ax, group in zip(axes, groups, strict=True):
        part = table[table["group"] == group]
        color = part["class"].map(colors)
        ax.scatter(part["mean"], part["std"], s=7, c=color, alpha=0.5, linewidths=0)
        ax.set_title(f"{shorten(group)} (n = {len(part):,})")
    axes[0].set_ylabel(CONTRAST)
    for name, color in colors.items():
        axes[0].scatter([], [], s=22, color=color, label=shorten(name))
    # a label of the figure would lie on the legend
    shared_legend(axes[:1], min(len(colors), 5), title=BRIGHTNESS)
    return axes[0].figure


def plot_pairs(pairs: Sequence[tuple], titles: Sequence[tuple[str, str]]) -> np.ndarray:
    """Pairs of images (near-duplicates), two pairs a row: an array of axes (rows, 5) with a gap
    between the pairs. titles: one for each image of each pair.
    """
    rows, row_titles = [], []
    for place in range(0, len(pairs), 2):
        images, names = [*pairs[place]], [*titles[place]]
        if place + 1 < len(pairs):
            images += [None, *pairs[place + 1]]
            names += ["", *titles[place + 1]]
        rows.append(images)
        row_titles.append(names)
    return plot_image_rows(rows, titles=row_titles, columns=5)


MAX_IMAGES = 8  # of a cluster


def plot_worst(images: Mapping[str, object], worst: pd.DataFrame) -> np.ndarray:
    """A row of images for each issue, the worst first, with their scores; a frame marks those that
    the issue's rule flags.

    worst: issue, sample_id, score, flagged, as from `vitlab.data.worst_images`; images: sample_id
    to image. One that is missing (it is unreadable) is a grey square with its name."""
    rows, names, titles, frames = [], [], [], []
    for issue, part in worst.groupby("issue", sort=False):
        names.append(readable(issue).replace(" ", "\n"))
        rows.append([images.get(name, UNREADABLE) for name in part["sample_id"]])
        scores = part["score"].map(_write_score)
        known = part["sample_id"].isin(list(images))
        titles.append(scores.where(known, part["sample_id"].map(lambda name: shorten(name, 10))))
        frames.append([PALETTE[3] if flagged else None for flagged in part["flagged"]])
    titles = [list(row) for row in titles]
    return plot_image_rows(rows, names, titles, frames, title_size=6.5)


UNREADABLE = np.full((8, 8), 235, dtype=np.uint8)


def plot_clusters(
    images: Mapping[str, object], clusters: pd.DataFrame, samples: pd.DataFrame
) -> np.ndarray:
    """A row of images for each cluster of near-duplicates, at most eight of them, framed in the
    colour of their split.

    clusters: sample_id, cluster, size, from `vitlab.data.cluster_table`; samples: sample_id, label,
    split. Frames of several colours in a row: the cluster crosses a split."""
    named = samples.set_index("sample_id")
    colors = series_colors(SPLITS)
    rows, names, titles, frames = [], [], [], []
    for _, part in clusters.groupby("cluster", sort=False):
        ids = part["sample_id"].head(MAX_IMAGES)
        names.append(f"{part['size'].iloc[0]} images")
        rows.append([images.get(name, UNREADABLE) for name in ids])
        titles.append([f"{name}\n{named.loc[name, 'label']}" for name in ids])
        frames.append([colors[named.loc[name, "split"]] for name in ids])
    return plot_image_rows(rows, names, titles, frames, title_size=6.5, legend=colors)


def _write_score(score: float) -> str:
    return "0" if score == 0 else f"{score:.0e}" if score < 0.0005 else f"{score:.3f}"

"""What is wrong with images, as pictures: the worst of each issue, and clusters of near-duplicates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from vitlab.errors import UserError
from vitlab.plots.style import PALETTE, WIDTH, frame, new_figure, readable, series_colors, show_image
from vitlab.schema import SPLITS

MOST_IMAGES = 8  # of a cluster
LABEL_WIDTH = 0.8  # inches, for the name of a row
FLAGGED = PALETTE[3]


def plot_worst(images: Mapping[str, object], worst: pd.DataFrame) -> np.ndarray:
    """A row of images for each issue, the worst first, with their scores; a frame marks those that the issue's rule flags.

    worst: issue, sample_id, score, flagged, as of `vitlab.data.worst_images`; images: sample_id to image. One that is not given
    (it is unreadable) is a blank with its name. Array of axes (issues, most images); None where a row is shorter.
    """
    rows = [(readable(issue), part) for issue, part in worst.groupby("issue", sort=False)]
    axes = _image_rows([(name.replace(" ", "\n"), part["sample_id"].tolist()) for name, part in rows], images)
    for (_, part), row in zip(rows, axes, strict=True):
        for ax, score, flagged in zip(row, part["score"], part["flagged"], strict=False):
            ax.set_title(_write_score(score), fontsize=6.5, pad=2)
            if flagged:
                frame(ax, FLAGGED)
    return axes


def plot_clusters(images: Mapping[str, object], clusters: pd.DataFrame, samples: pd.DataFrame) -> np.ndarray:
    """A row of images for each cluster of near-duplicates, at most eight of them, framed in the colour of their split.

    clusters: sample_id, cluster, size, of `vitlab.data.cluster_table`, the clusters in the order wanted; samples: sample_id,
    label, split. Where frames differ in colour, a cluster crosses a split. Array of axes (clusters, columns); None where a row
    is shorter.
    """
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


def _image_rows(rows: list[tuple[str, list[str]]], images: Mapping[str, object], legend: bool = False) -> np.ndarray:
    if not rows:
        raise UserError("there is no image to draw: the table is empty")
    columns = max(len(ids) for _, ids in rows)
    side = (WIDTH - LABEL_WIDTH) / max(columns, 6)
    figure = new_figure(len(rows) * (side + 0.24 + 0.1 * legend) + 0.1 + 0.25 * legend)
    grid = figure.subplots(len(rows), max(columns, 6) + 1, squeeze=False, width_ratios=[LABEL_WIDTH, *[side] * max(columns, 6)])
    axes = np.full((len(rows), columns), None, dtype=object)
    for place, (label, ids) in enumerate(rows):
        for ax in grid[place]:
            ax.axis("off")
        grid[place, 0].text(0, 0.5, label, fontsize=7.5, va="center", transform=grid[place, 0].transAxes)
        for column, sample_id in enumerate(ids):
            ax = axes[place, column] = grid[place, column + 1]
            ax.axis("on")
            image = images.get(sample_id)
            show_image(ax, np.full((8, 8), 235, dtype=np.uint8) if image is None else image)
            if image is None:
                ax.text(0.5, 0.5, sample_id, fontsize=5, ha="center", va="center", wrap=True, transform=ax.transAxes)
    return axes


def _write_score(score: float) -> str:
    return "0" if score == 0 else f"{score:.0e}" if score < 0.0005 else f"{score:.3f}"

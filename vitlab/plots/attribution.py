"""Explanations over the images they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from vitlab.plots.style import DIVERGING, WIDTH, few_ticks, new_figure, readable, show_image
from vitlab.schema import AttributionMap

CLIP = 99.0  # percentile that counts as full strength: single pixels of a gradient would otherwise pale all the rest
UNSIGNED = "inferno"
CELLS = 28  # blocks a side, about, of which a map is drawn
BROAD = 8.0  # inches: the text width of an HTML page, so that six panels side by side can still be read
ACROSS = 6  # images that find room side by side
BAR = 0.62  # inches for a colour bar with its label


def plot_attributions(
    images: np.ndarray, maps: Sequence[AttributionMap], titles: Sequence[str] | None = None, scale: str = "map"
) -> np.ndarray:
    """Each image and every method's map over it: an array of axes (N, 1 + methods).

    A row for each image; where there are more images than maps, up to six, a column for each, which takes less of the page.
    images: (N, h, w, 3) floats in 0..1. titles: one for each image. Signed maps get a two-sided scale with zero in the middle.
    Maps of single pixels would be speckle at the size of a panel, so means over blocks are drawn.
    scale: methods measure in different units, so a map is shown relative to the 99th percentile of its own absolute values
    ("map") or of those of all maps of its method ("method": strengths compare down a column).
    """
    if scale not in ("map", "method"):
        raise ValueError(f"unknown scale {scale!r}; choose map or method")
    for attribution in maps:
        if len(attribution.values) != len(images):
            raise ValueError(f"{attribution.method}: {len(attribution.values)} maps do not go with {len(images)} images")
    across = 1 + len(maps) < len(images) <= ACROSS
    maps = [replace(attribution, values=block_means(attribution.values)) for attribution in maps]
    rows, columns = (1 + len(maps), len(images)) if across else (len(images), 1 + len(maps))
    height, width = images.shape[1:3]
    lines = max(title.count("\n") + 1 for title in titles) if titles is not None and across else 1
    kinds = sorted({attribution.signed for attribution in maps})  # one colour bar for each
    page = BROAD if across else WIDTH
    figure = new_figure(rows * 0.97 * page / max(columns, 3) * height / width + BAR + 0.14 * lines + 0.1, page)
    above, below = figure.subfigures(2, 1, height_ratios=[figure.get_figheight() - BAR, BAR])
    axes = above.subplots(rows, columns, squeeze=False)
    axes = axes.T if across else axes
    for row, image in enumerate(images):
        show_image(axes[row, 0], image)
        for ax, attribution in zip(axes[row, 1:], maps, strict=True):
            _overlay(ax, image, relative(attribution, row, scale), attribution.signed)
        if titles is not None:
            _write_beside(axes[row, 0], titles[row], above=across, fontsize=8.5 if across else 7.5)
    for ax, name in zip(axes[0], ["image", *(readable(attribution.method) for attribution in maps)], strict=True):
        _write_beside(ax, name.replace(" ", "\n") if across else name, above=not across)
    bars = below.subplots(1, len(kinds), squeeze=False)[0]
    for bar, signed in zip(bars, kinds, strict=True):
        unit = f"99th percentile of the {scale}"
        label = f"evidence (±1 = {unit})" if signed else f"attribution (1 = {unit})"
        shades = ScalarMappable(Normalize(-1 if signed else 0, 1), DIVERGING if signed else UNSIGNED)
        below.colorbar(shades, cax=bar, orientation="horizontal", ticks=few_ticks(4)).set_label(label, fontsize=8)
    return axes


def block_means(values: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Maps (N, H, W) as means over square blocks of pixels, about `cells` along the longer side; smaller maps as they are."""
    height, width = values.shape[1:]
    side = max(1, round(max(height, width) / cells))
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.add.reduceat(np.add.reduceat(values, rows, axis=1), columns, axis=2)
    return sums / np.outer(np.diff([*rows, height]), np.diff([*columns, width]))  # blocks at the edge may be smaller


def relative(attribution: AttributionMap, row: int, scale: str) -> np.ndarray:
    """One map (H, W) divided by what counts as full strength, cut to -1..1; zeros where the map is blank."""
    values = attribution.values[row]
    full = np.percentile(np.abs(values if scale == "map" else attribution.values), CLIP)
    return np.clip(values / full, -1, 1) if full > 0 else np.zeros_like(values)


def _write_beside(ax: Axes, text: str, *, above: bool, **options) -> None:
    (ax.set_title if above else ax.set_ylabel)(text, **options)


def _overlay(ax: Axes, image: np.ndarray, values: np.ndarray, signed: bool) -> None:
    """The map in colour over the image in grey; the less it says about a pixel, the more of the image shows through."""
    height, width = image.shape[:2]
    show_image(ax, image.mean(axis=-1))
    options = {"cmap": DIVERGING if signed else UNSIGNED, "vmin": -1 if signed else 0, "vmax": 1}
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(values, alpha=0.75 * np.abs(values), extent=extent, interpolation="bilinear", **options)

"""Attention to explore without a kernel: point at a patch and see where it looks. Plain HTML and a
canvas, all data inside.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from string import Template
from uuid import uuid4

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from vitlab.errors import UserError
from vitlab.plots.interactive import Interactive
from vitlab.plots.style import SEQUENTIAL, WIDTH, image_shape, panel_grid, show_image
from vitlab.plots.vit import MARK, draw_attention, outline_cell

FRAGMENT = Path(__file__).with_name("viewer.html")
ALT = "An image; pointing at one of its patches shows beside it where this patch attends."
LIMIT = 1_500_000  # bytes of HTML: a page has several figures
OTHERS = 330_000  # bytes kept for image, code and colours
PIXELS = 448  # of the longer side on the canvas
QUALITY = 88


def iplot_patch_attention(
    image: np.ndarray, attention: np.ndarray, grid: tuple[int, int]
) -> Interactive:
    """Where each patch attends: choose it on the image, with the arrow keys or a slider; and the
    block from a list.

    The first query is the class token, or the patch in the middle where there is none. The picture
    for paper shows the last block, for this query and for three patches along the diagonal.
    image: (h, w, 3) or (h, w), floats in 0..1 or uint8. attention: (T, T), or (L, T, T) for several
    blocks (heads averaged, or one head), a row for each query; kept to 1/255 of the strongest
    weight of its row. grid: rows and columns of patches.

    Raises UserError where shapes do not fit or the figure would be larger than 1.5 MB.
    """
    attention, prefix = _check_attention(attention, grid)
    names = [str(number) for number in range(1, len(attention) + 1)]
    _check_size(attention, prefix)
    start = 0 if prefix else grid[0] // 2 * grid[1] + grid[1] // 2
    patches = attention[:, :, prefix:]  # (L, T, rows * columns)
    highest = patches.max(axis=2)  # (L, T)
    levels = np.rint(255 * patches / np.maximum(highest, 1e-12)[:, :, None]).astype(np.uint8)
    pixels = _as_uint8(image)
    scale = PIXELS / max(pixels.shape[:2])
    colors = (255 * colormaps[SEQUENTIAL](np.linspace(0, 1, 256))[:, :3]).round().astype(np.uint8)
    data = {
        "grid": list(map(int, grid)),
        "prefix": prefix,
        "size": [round(scale * pixels.shape[1]), round(scale * pixels.shape[0])],
        "query": start,
        "layer": len(names) - 1,
        "layers": names,
        "mark": MARK,
        "highest": [[float(f"{value:.4g}") for value in row] for row in highest],
        "toPrefix": [
            [float(f"{value:.4g}") for value in row] for row in attention[:, :, :prefix].sum(axis=2)
        ],
        "weights": [_encode(level.tobytes()) for level in levels],
        "colors": _encode(colors.tobytes()),
        "image": _encode(_as_jpeg(pixels)),
    }
    # no name can end the script
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = Template(FRAGMENT.read_text(encoding="utf-8"))
    html = template.substitute(name=f"vitlab-{uuid4()}", alt=ALT, data=text)
    return Interactive(html, _draw_static(pixels, attention[-1], grid, prefix, start))


def _check_attention(attention, grid) -> tuple[np.ndarray, int]:
    attention = np.asarray(attention, np.float32)
    attention = attention[None] if attention.ndim == 2 else attention
    if attention.ndim != 3 or attention.shape[1] != attention.shape[2] or not attention.size:
        raise UserError(
            f"attention must be (T, T), or (L, T, T) for several blocks, got {attention.shape};"
            " average the heads or choose one"
        )
    tokens, patches = attention.shape[1], grid[0] * grid[1]
    prefix = tokens - patches
    if prefix < 0 or patches < 1:
        raise UserError(
            f"attention over {tokens} tokens does not fit a grid of {grid[0]} x {grid[1]} patches"
        )
    if not np.isfinite(attention).all() or attention.min() < 0:
        raise UserError(
            "attention holds NaN, infinite or negative weights; give the weights after the softmax"
        )
    return attention, prefix


def _check_size(attention: np.ndarray, prefix: int) -> None:
    count, tokens = attention.shape[:2]
    # base64 of the levels, and two numbers a row
    each = tokens * (tokens - prefix) * 4 // 3 + 16 * tokens
    room = (LIMIT - OTHERS) // each
    if count > room:
        advice = (
            f"give at most {room} of the {count} blocks"
            if room
            else "give a smaller image, which has fewer patches"
        )
        raise UserError(
            f"the attention of {count} blocks over {tokens} tokens takes {count * each / 1e6:.1f}"
            f" MB of a page, the limit is {LIMIT / 1e6:.1f}: {advice}"
        )


def _as_uint8(image) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise UserError(f"image must be (h, w, 3) or (h, w), got {pixels.shape}")
    if pixels.dtype == np.uint8:
        return pixels
    return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def _as_jpeg(pixels: np.ndarray) -> bytes:
    picture = Image.fromarray(pixels).convert("RGB")
    picture.thumbnail((PIXELS, PIXELS))
    with io.BytesIO() as buffer:
        picture.save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _draw_static(pixels, attention, grid, prefix, start) -> Figure:
    """The attention of the first query and of three patches along the diagonal, in the last
    block.
    """
    places = [(row * grid[0] // 6, row * grid[1] // 6) for row in (1, 3, 5)]
    patches = [prefix + row * grid[1] + column for row, column in places]
    queries = list(dict.fromkeys([start, *patches]))
    height, width = image_shape(pixels)
    side = 0.84 * WIDTH / (len(queries) + 1)
    axes = panel_grid(len(queries) + 1, len(queries) + 1, side * height / width + 0.5)
    show_image(axes[0], pixels)
    axes[0].set_title("queries", fontsize=7.5)
    cell = height / grid[0], width / grid[1]
    for number, (ax, token) in enumerate(zip(axes[1:], queries, strict=True), 1):
        weights = attention[token, prefix:]
        query = divmod(token - prefix, grid[1]) if token >= prefix else None
        shown = draw_attention(ax, weights / max(weights.max(), 1e-12), grid, pixels, query, 1)
        name = "class token" if query is None else f"patch {number}"
        ax.set_title(f"{name}\n(strongest {weights.max():.1%})", fontsize=7.5)
        if query is not None:
            outline_cell(axes[0], query, *cell, linewidth=1.5)
            corner = (query[1] + 0.5) * cell[1], (query[0] + 0.5) * cell[0]
            middle = {"color": "white", "fontsize": 6, "ha": "center", "va": "center"}
            box = {"color": MARK, "pad": 0.5, "linewidth": 0}
            axes[0].text(*corner, str(number), bbox=box, **middle)
    bar = axes[0].figure.colorbar(shown, ax=list(axes), ticks=[0, 0.5, 1], shrink=0.9, aspect=12)
    bar.set_label("weight, relative\nto the strongest", fontsize=7.5)
    return axes[0].figure

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
from PIL import Image

from vitlab.errors import UserError
from vitlab.plots.attention import MARK, draw_attention_maps, read_attention
from vitlab.plots.interactive import Interactive
from vitlab.plots.style import SEQUENTIAL

FRAGMENT = Path(__file__).with_name("viewer.html")
ALT = "An image; pointing at one of its patches shows beside it where this patch attends."
LIMIT = 1_500_000  # bytes of HTML: a page has several figures
OTHERS = 330_000  # bytes kept for image, code and colours
PIXELS = 448  # of the longer side on the canvas


def iplot_patch_attention(
    image: np.ndarray, attention: np.ndarray, grid: tuple[int, int]
) -> Interactive:
    """Where each patch attends: choose it on the image, with the arrow keys or a slider; and the
    block from a list.

    The first query is the class token, or the patch in the middle where there is none. The picture
    for paper shows the last block, for this query and for three patches along the diagonal.
    image: (h, w, 3), floats in 0..1. attention: (L, T, T), the heads of each block averaged, a row
    for each query; kept to 1/255 of the strongest weight of its row. grid: rows and columns of
    patches. UserError where shapes do not fit or the figure would be larger than 1.5 MB."""
    attention, prefix = read_attention(attention, grid)
    _check_size(attention, prefix)
    start = 0 if prefix else grid[0] // 2 * grid[1] + grid[1] // 2
    patches = attention[:, :, prefix:]  # (L, T, rows * columns)
    highest = patches.max(axis=2)  # (L, T)
    levels = np.rint(255 * patches / np.maximum(highest, 1e-12)[:, :, None]).astype(np.uint8)
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    scale = PIXELS / max(pixels.shape[:2])
    colors = (255 * colormaps[SEQUENTIAL](np.linspace(0, 1, 256))[:, :3]).round().astype(np.uint8)
    data = {
        "grid": list(map(int, grid)),
        "prefix": prefix,
        "size": [round(scale * pixels.shape[1]), round(scale * pixels.shape[0])],
        "query": start,
        "layer": len(attention) - 1,
        "layers": [str(number) for number in range(1, len(attention) + 1)],
        "mark": MARK,
        "highest": _round(highest),
        "toPrefix": _round(attention[:, :, :prefix].sum(axis=2)),
        "weights": [_encode(level.tobytes()) for level in levels],
        "colors": _encode(colors.tobytes()),
        "image": _encode(_as_jpeg(pixels)),
    }
    # no name can end the script
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = Template(FRAGMENT.read_text(encoding="utf-8"))
    html = template.substitute(name=f"vitlab-{uuid4()}", alt=ALT, data=text)
    return Interactive(html, _draw_static(image, attention[-1], grid, prefix, start))


def _check_size(attention: np.ndarray, prefix: int) -> None:
    count, tokens = attention.shape[:2]
    # base64 of the levels, and two numbers a row
    each = tokens * (tokens - prefix) * 4 // 3 + 16 * tokens
    room = (LIMIT - OTHERS) // each
    if count > room:
        fewer = f"give at most {room} of the {count} blocks"
        advice = fewer if room else "give a smaller image, which has fewer patches"
        raise UserError(
            f"the attention of {count} blocks over {tokens} tokens takes {count * each / 1e6:.1f}"
            f" MB of a page, the limit is {LIMIT / 1e6:.1f}: {advice}"
        )


def _round(values: np.ndarray) -> list[list[float]]:
    """To four digits."""
    return [[float(f"{value:.4g}") for value in row] for row in values]


def _as_jpeg(pixels: np.ndarray) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((PIXELS, PIXELS))
    with io.BytesIO() as buffer:
        picture.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _draw_static(image, attention, grid, prefix, start):
    """The attention of the first query and of three patches along the diagonal, in the last
    block.
    """
    places = [(row * grid[0] // 6, row * grid[1] // 6) for row in (1, 3, 5)]
    tokens = [prefix + row * grid[1] + column for row, column in places]
    maps, queries, titles = [], [], []
    for token in dict.fromkeys([start, *tokens]):
        weights = attention[token, prefix:]
        strongest = max(weights.max(), 1e-12)
        query = divmod(token - prefix, grid[1]) if token >= prefix else None
        where = f"row {query[0] + 1}, column {query[1] + 1}" if query else "class token"
        maps.append(weights.reshape(grid) / strongest)
        queries.append(query)
        titles.append(f"{where}\n(strongest {strongest:.1%})")
    label = "weight, relative\nto the strongest"
    axes = draw_attention_maps(image, np.stack(maps), queries, titles, label)
    axes[0].set_title("queries\n(framed)", fontsize=7, pad=3)
    return axes[0].figure

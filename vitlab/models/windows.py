"""Attention within windows of a map of tokens (Swin, arXiv 2103.14030): which token lies where, and
how to find that out.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vitlab.schema import Window


def place_tokens(window: Window) -> torch.Tensor:
    """The token, numbered row by row, at each place of each window: (windows, T), -1 where a window
    reaches past the map.

    The map is rolled by the shift, filled up at its lower right to whole windows, and cut.
    """
    rows, columns = window.grid
    height, width = window.size
    tokens = (
        torch.arange(rows * columns)
        .view(rows, columns)
        .roll((-window.shift[0], -window.shift[1]), (0, 1))
    )
    tokens = F.pad(tokens, (0, -columns % width, 0, -rows % height), value=-1)
    # (rows, columns, h, w) first
    return tokens.unfold(0, height, height).unfold(1, width, width).reshape(-1, height * width)


def find_window(layer: str, inside: torch.Tensor, outside: torch.Tensor) -> Window | None:
    """How a map of tokens (B, h, w, C) was cut into what an attention layer takes in, (B * windows,
    T, C); None where it was not.

    Every token is recognised by its values, so the images behind them must hold something. One
    image is enough."""
    if (
        inside.ndim != 3
        or outside.ndim != 4
        or inside.shape[-1] != outside.shape[-1]
        or len(inside) % len(outside)
    ):
        return None
    # a model without weights, built to be counted: its tokens have no values to be recognised by
    if inside.is_meta:
        return None
    batch, *grid, _ = outside.shape
    numbers = {
        token.tobytes(): number
        for number, token in enumerate(outside[0].flatten(0, 1).float().cpu().numpy())
    }
    seen = [
        numbers.get(token.tobytes(), -1)
        for token in inside[: len(inside) // batch].flatten(0, 1).float().cpu().numpy()
    ]
    area = inside.shape[1]
    shift = divmod(seen[0], grid[1])
    for height in range(1, area + 1):
        window = Window(layer, tuple(grid), (height, area // height), shift)
        if area % height == 0 and place_tokens(window).flatten().tolist() == seen:
            return window
    return None

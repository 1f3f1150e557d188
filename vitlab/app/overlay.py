"""Occlusion maps and overlays with numpy and Pillow alone, for an app without torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from vitlab.errors import UserError

OPACITY = 0.75  # of full strength, as in vitlab.plots
CLIP = 99.0  # percentile that counts as full strength
OCCLUSION_SHOWS = (
    "Brighter areas lower the odds of {target} more when they are covered; evidence against it is"
    " not shown."
)
# of matplotlib's map of that name, from 0 to 1
INFERNO = "000004 210c4a 57106e 8a226a bc3754 e45a31 f98e09 f9cb35 fcffa4"


def occlusion_map(
    predict: Callable[[Sequence[Image.Image]], np.ndarray],
    frame: Image.Image,
    target: int,
    fill: tuple[int, int, int],
    grid: tuple[int, int] = (14, 14),
    window: int = 2,
    batch_size: int = 16,
) -> np.ndarray:
    """The drop of the target's log odds when each patch is covered: a map (rows, columns), the mean
    over the windows that covered the patch (Zeiler and Fergus, arXiv 1311.2901).

    Windows of `window` x `window` patches slide over the grid by one patch and are filled with
    `fill`. predict: images to probabilities (N, C), called from as many threads as there are cores.
    Negative values: the class becomes more probable without the patch."""
    rows, columns = grid
    if not 1 <= window <= min(grid) or frame.height < rows or frame.width < columns:
        raise UserError(
            f"a window of {window} patches on a grid of {rows}x{columns} does not fit"
            f" {frame.width}x{frame.height}"
        )
    bottom = np.linspace(0, frame.height, rows + 1).round().astype(int)
    right = np.linspace(0, frame.width, columns + 1).round().astype(int)
    corners = [(i, j) for i in range(rows - window + 1) for j in range(columns - window + 1)]

    def measure(chosen: list[tuple[int, int]]) -> np.ndarray:
        batch = []
        for i, j in chosen:
            covered = frame.copy()
            covered.paste(
                fill,
                (int(right[j]), int(bottom[i]), int(right[j + window]), int(bottom[i + window])),
            )
            batch.append(covered)
        return _log_odds(predict(batch)[:, target])

    batches = [corners[start : start + batch_size] for start in range(0, len(corners), batch_size)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        odds = list(pool.map(measure, batches))
    fall = _log_odds(predict([frame])[:, target])[0] - np.concatenate(odds)  # (windows,)
    total, count = np.zeros((2, rows, columns))
    for (i, j), value in zip(corners, fall, strict=True):
        total[i : i + window, j : j + window] += value
        count[i : i + window, j : j + window] += 1
    return total / count


def paint_overlay(frame: Image.Image, values: np.ndarray) -> Image.Image:
    """The map (rows, columns) over the image in grey; negative values are not shown."""
    grey = np.asarray(frame.convert("L"), dtype=np.float32)[..., None]  # (h, w, 1)
    strength = np.maximum(np.asarray(values, dtype=np.float32), 0)
    full = np.percentile(strength, CLIP)
    full = full if full > 0 else strength.max()
    strength = np.clip(strength / full, 0, 1) if full > 0 else strength
    # (h, w)
    strength = np.asarray(Image.fromarray(strength).resize(frame.size, Image.Resampling.BILINEAR))
    alpha = OPACITY * strength[..., None]
    painted = grey * (1 - alpha) + colour(strength) * alpha
    return Image.fromarray(painted.round().clip(0, 255).astype(np.uint8))


def colour(strength: np.ndarray) -> np.ndarray:
    """Values in 0..1 as colours (..., 3) in 0..255."""
    # (9, 3)
    anchors = np.array([list(bytes.fromhex(code)) for code in INFERNO.split()], dtype=float)
    places = np.linspace(0, 1, len(anchors))
    return np.stack(
        [np.interp(strength, places, anchors[:, channel]) for channel in range(3)], axis=-1
    )


def _log_odds(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.log(clipped) - np.log1p(-clipped)

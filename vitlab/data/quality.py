"""What is in the images: which cannot be read, how large they are, how bright."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from vitlab.data.reading import map_images
from vitlab.data.sources import EXCLUDED_COLUMNS
from vitlab.errors import UserError
from vitlab.pictures import to_rgb
from vitlab.schema import DataBundle

QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95}


def find_unreadable(read: Callable[[str], Image.Image], samples: pd.DataFrame) -> pd.DataFrame:
    """Decode every image once and list those that fail: sample_id, source, reason. `samples` needs
    sample_id and source.
    """
    reasons = map_images(
        lambda sample_id: _why_unreadable(read, sample_id),
        samples["sample_id"].tolist(),
        "checking images",
    )
    table = samples[["sample_id", "source"]].assign(reason=reasons)
    return table[table["reason"] != ""].reset_index(drop=True)[list(EXCLUDED_COLUMNS)]


def image_table(data: DataBundle, limit: int | None = None) -> pd.DataFrame:
    """One row an image: sample_id; width, height in pixels; Pillow's mode; mean, std, p05, median,
    p95 of grey values in 0..1.

    limit: at most so many images, evenly spread over the table.
    """
    ids = data.samples["sample_id"]
    if limit is not None and limit < len(ids):
        ids = ids.iloc[np.linspace(0, len(ids) - 1, limit).round().astype(int)]
    sizes, histograms = zip(
        *map_images(
            lambda sample_id: _measure(data.read(sample_id)), ids.tolist(), "measuring images"
        ),
        strict=True,
    )
    table = pd.DataFrame(sizes, columns=["width", "height", "mode"])
    table.insert(0, "sample_id", ids.to_numpy())
    # (N, 256)
    share = np.array(histograms) / (table["width"] * table["height"]).to_numpy()[:, None]
    values = np.arange(256) / 255
    table["mean"] = share @ values
    table["std"] = np.sqrt(np.maximum(share @ values**2 - table["mean"] ** 2, 0))
    for name, quantile in QUANTILES.items():
        table[name] = values[(share.cumsum(axis=1) < quantile - 1e-9).sum(axis=1)]
    return table


def _measure(image):
    return (image.width, image.height, image.mode), to_rgb(image).convert("L").histogram()


def describe_failure(error: Exception) -> str:
    """Why an image cannot be decoded, in a few words and without the path on this machine."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in any known format"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it has more than the {2 * Image.MAX_IMAGE_PIXELS / 1e6:.3g} megapixels that are read;"
            " scale it down"
        )
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _why_unreadable(read, sample_id) -> str:
    try:
        to_rgb(read(sample_id))
    # a broken file makes Pillow's decoders fail in every way: SyntaxError, struct.error, ...
    except Exception as error:
        return describe_failure(error)
    return ""

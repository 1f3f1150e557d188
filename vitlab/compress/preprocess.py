"""What `vitlab.data.preprocess` does, in Pillow and numpy alone: pixel by pixel the same, for machines without torch."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from vitlab.registry import unknown
from vitlab.schema import Transform

INTERPOLATIONS = tuple(method.name.lower() for method in Image.Resampling)


def preprocess(image: Image.Image, transform: Transform) -> np.ndarray:
    """The image as a model takes it: (3, h, w) float32, or (1, h, w) for grey, normalised."""
    return normalise(fit_image(image, transform), transform)


def fit_image(image: Image.Image, transform: Transform) -> np.ndarray:
    """(h, w, 3) uint8 in RGB, or (h, w, 1) in grey where the transform has one mean: at the model's size, its aspect ratio kept.

    Fit `pad` shows the whole image between bars, `crop` fills the frame and cuts what stands out, both around the centre.
    """
    if transform.interpolation not in INTERPOLATIONS:
        raise ValueError(unknown("interpolation", transform.interpolation, list(INTERPOLATIONS)))
    if transform.fit not in ("pad", "crop"):
        raise ValueError(unknown("fit", transform.fit, ["pad", "crop"]))
    height, width = transform.size
    method = Image.Resampling[transform.interpolation.upper()]
    fill = tuple(round(255 * mean) for mean in transform.mean) * (3 // len(transform.mean))
    image = _to_rgb(image, fill)
    if transform.fit == "pad":
        image = ImageOps.pad(image, (width, height), method, color=fill)
    else:
        image = ImageOps.fit(image, (width, height), method)
    pixels = np.asarray(image if len(transform.mean) == 3 else image.convert("L"))
    return pixels.reshape(height, width, len(transform.mean))


def normalise(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    """uint8 (..., h, w, C) to float32 (..., C, h, w): values in 0..1, then minus mean, over std, per channel."""
    mean, std = (np.array(values, np.float32) for values in (transform.mean, transform.std))
    if pixels.shape[-1] != len(mean):
        raise ValueError(f"images with {pixels.shape[-1]} channels do not fit a transform with {len(mean)}")
    values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(values, -1, -3))


def _to_rgb(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    """8-bit RGB from any mode; `fill` shows through transparent pixels. Deep grey values are read as 0..65535."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*fill, 255)), image)
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite pixels")
    low, high = 0.0, 65535.0
    if image.mode == "F" or values.min() < low or values.max() > high:
        low, high = values.min(), values.max()
    return Image.fromarray(np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8))

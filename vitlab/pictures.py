"""From a decoded image of any size and mode to one of a model's size, in Pillow alone: a deployed model sees the same pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import Transform

INTERPOLATIONS = tuple(method.name.lower() for method in Image.Resampling)


def fit_picture(image: Image.Image, transform: Transform) -> Image.Image:
    """RGB, or 8-bit grey where the transform has one mean: at the model's size, the image's aspect ratio kept.

    Fit `pad` shows the whole image between bars, `crop` fills the frame and cuts what stands out, both around the centre.
    Bars and transparent pixels get the mean colour, which normalises to about 0: nothing to see there.
    """
    if transform.interpolation not in INTERPOLATIONS:
        raise UserError(unknown("interpolation", transform.interpolation, list(INTERPOLATIONS)))
    if transform.fit not in ("pad", "crop"):
        raise UserError(unknown("fit", transform.fit, ["pad", "crop"]))
    height, width = transform.size
    method = Image.Resampling[transform.interpolation.upper()]
    fill = tuple(round(255 * mean) for mean in transform.mean) * (3 // len(transform.mean))
    image = to_rgb(image, fill)
    if transform.fit == "pad":
        image = ImageOps.pad(_thicken(image, (width, height), method), (width, height), method, color=fill)
    else:
        image = ImageOps.fit(image, (width, height), method)
    return image if len(transform.mean) == 3 else image.convert("L")


def to_rgb(image: Image.Image, fill: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """8-bit RGB from any mode; `fill` shows through transparent pixels.

    Integer grey values beyond 8 bits are read as 0..65535, whatever part of that an image uses, so that exposures stay
    comparable. Floating-point values, and integers outside that range, run from the image's darkest to its brightest.
    Raises ValueError where pixels are NaN or infinite.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _to_eight_bits(image)  # Pillow's own conversion clips all above 255 to white
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*fill, 255)), image)
    return image.convert("RGB")


def _thicken(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """A pixel thick, where nothing would be left of so thin an image at this size (width, height); others as they are."""
    width, height = image.size
    if round(height / width * size[0]) < 1:
        return image.resize((size[0], 1), method)
    if round(width / height * size[1]) < 1:
        return image.resize((1, size[1]), method)
    return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise UserError("it holds NaN or infinite pixels")
    low, high = 0.0, 65535.0
    if image.mode == "F" or values.min() < low or values.max() > high:
        low, high = values.min(), values.max()
    return Image.fromarray(np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8))

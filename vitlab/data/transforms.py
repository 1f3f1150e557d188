"""From a decoded image of any size and mode to what a model expects, and back to what a figure shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from vitlab.registry import unknown
from vitlab.schema import Transform

INTERPOLATIONS = tuple(method.name.lower() for method in Image.Resampling)
STRENGTHS = ("none", "light", "strong")


def preprocess(image: Image.Image, transform: Transform) -> torch.Tensor:
    """The image as a model takes it: (3, h, w) float, or (1, h, w) for grey, normalised."""
    return normalise(fit_image(image, transform), transform)


def fit_image(image: Image.Image, transform: Transform) -> torch.Tensor:
    """(3, h, w) uint8 in RGB, or (1, h, w) in grey where the transform has one mean: at the model's size, its aspect ratio kept.

    Fit `pad` shows the whole image between bars, `crop` fills the frame and cuts what stands out, both around the centre.
    Bars and transparent pixels get the mean colour, which normalises to about 0: nothing to see there.
    """
    if transform.interpolation not in INTERPOLATIONS:
        raise ValueError(unknown("interpolation", transform.interpolation, list(INTERPOLATIONS)))
    if transform.fit not in ("pad", "crop"):
        raise ValueError(unknown("fit", transform.fit, ["pad", "crop"]))
    height, width = transform.size
    method = Image.Resampling[transform.interpolation.upper()]
    fill = tuple(round(255 * mean) for mean in transform.mean) * (3 // len(transform.mean))
    image = to_rgb(image, fill)
    if transform.fit == "pad":
        image = ImageOps.pad(image, (width, height), method, color=fill)
    else:
        image = ImageOps.fit(image, (width, height), method)
    return v2.functional.pil_to_tensor(image if len(transform.mean) == 3 else image.convert("L"))


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


def normalise(pixels: torch.Tensor, transform: Transform) -> torch.Tensor:
    """uint8 (..., 3, h, w) to float: values in 0..1, then minus mean, over std, per channel."""
    return (pixels / 255 - _per_channel(transform.mean, pixels)) / _per_channel(transform.std, pixels)


def denormalise(batch: torch.Tensor, transform: Transform) -> np.ndarray:
    """The inverse of `normalise` for figures: (B, 3 or 1, h, w) to (B, h, w, 3) float in 0..1."""
    pixels = batch.detach() * _per_channel(transform.std, batch) + _per_channel(transform.mean, batch)
    return pixels.clamp(0, 1).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).float().cpu().numpy()


def build_augmentation(
    strength: str, size: tuple[int, int], *, flip: bool = True, drawn_for: tuple[int, int] | None = None
) -> Callable | None:
    """Random variants of (3, h, w) uint8 pixels, still that size: flips, small rotation, crop, colour jitter; None for "none".

    flip: False for what must not be mirrored, such as digits. torch's global generator rules.
    drawn_for: another size of the same proportions; from the same state of the generator, the variant is the one that images of
        that size get, its crop included: the same view for two models.
    """
    if strength not in STRENGTHS:
        raise ValueError(unknown("strength of augmentation", strength, list(STRENGTHS)))
    if strength == "none":
        return None
    degrees, smallest, jitter = {"light": (5, 0.85, 0.1), "strong": (15, 0.6, 0.3)}[strength]
    height, width = size
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()] if flip else []
    cut = {"scale": (smallest, 1.0), "ratio": (0.9 * width / height, 1.1 * width / height), "antialias": True}
    same = drawn_for is None or tuple(drawn_for) == tuple(size)
    return v2.Compose(
        [
            *flips,
            v2.RandomRotation(degrees, interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomResizedCrop((height, width), **cut) if same else _SameCrop((height, width), tuple(drawn_for), **cut),
            v2.ColorJitter(brightness=jitter, contrast=jitter),
        ]
    )


class _SameCrop(v2.RandomResizedCrop):
    """Cuts the part of an image that RandomResizedCrop draws for images of another size."""

    def __init__(self, size: tuple[int, int], drawn_for: tuple[int, int], **arguments):
        super().__init__(size, **arguments)
        self.drawn_for = drawn_for

    def make_params(self, flat_inputs):
        height, width = flat_inputs[0].shape[-2:]
        drawn = super().make_params([torch.empty(1, *self.drawn_for)])
        rows, columns = height / self.drawn_for[0], width / self.drawn_for[1]
        top, left = round(drawn["top"] * rows), round(drawn["left"] * columns)
        bottom, right = round((drawn["top"] + drawn["height"]) * rows), round((drawn["left"] + drawn["width"]) * columns)
        return {"top": top, "left": left, "height": max(1, bottom - top), "width": max(1, right - left)}


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite pixels")
    low, high = 0.0, 65535.0
    if image.mode == "F" or values.min() < low or values.max() > high:
        low, high = values.min(), values.max()
    return Image.fromarray(np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8))


def _per_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    if like.shape[-3] != len(values):
        raise ValueError(f"images with {like.shape[-3]} channels do not fit a transform with {len(values)}")
    return torch.tensor(values, device=like.device).view(-1, 1, 1)

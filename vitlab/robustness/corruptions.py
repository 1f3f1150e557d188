"""Corruptions: images made worse as cameras and people make them worse, at five severities.

Noise, blur, brightness, contrast and JPEG have the strengths of ImageNet-C (Hendrycks and
Dietterich 2019, arXiv 1903.12261), which were chosen for photographs of 224 x 224 pixels.
ImageNet-C has no rotation; we chose its strengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitlab.errors import UserError
from vitlab.pictures import to_rgb
from vitlab.registry import Registry
from vitlab.seeds import derive_seed

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE = 224  # pixels along the shorter side for which widths of blur are given

CORRUPTIONS = Registry("corruption")


@dataclass(frozen=True)
class Corruption:
    """A way to make an image worse.

    apply(image, strength, generator): from an 8-bit image, grey (L) or RGB, to one of the same mode
    and size. strengths: one for each severity."""

    apply: Callable[[Image.Image, float, np.random.Generator], Image.Image]
    strengths: tuple[float, ...]


def corruption(*strengths: float):
    """Decorator: register a function as a corruption under its own name (see Corruption)."""

    def register(function):
        CORRUPTIONS.register(Corruption(function, strengths), name=function.__name__)
        return function

    return register


def corrupt_image(
    image: Image.Image, corruption: str, severity: int, seed: int = 0, sample_id: str = ""
) -> Image.Image:
    """The image at its own size, in 8-bit grey or RGB, made worse; severity 0 only changes the
    mode.

    Random numbers (noise, the direction of a rotation) depend on seed, corruption and sample_id,
    not on the severity.

    >>> from PIL import Image
    >>> corrupt_image(Image.new("L", (8, 8), 100), "brightness", 2).getpixel((0, 0))
    151
    """
    chosen = find_corruption(corruption, severity)
    image = to_eight_bits(image)
    if severity == 0:
        return image
    generator = np.random.default_rng(derive_seed(seed, corruption, sample_id))
    return chosen.apply(image, chosen.strengths[severity - 1], generator)


def find_corruption(corruption: str, severity: int) -> Corruption:
    """The corruption of this name; ValueError for an unknown name or severity."""
    chosen = CORRUPTIONS[corruption]
    if isinstance(severity, bool) or severity not in (0, *SEVERITIES):
        raise UserError(
            f"{corruption}: the severity must be 1 (mild) to 5 (severe), or 0 for the clean image,"
            f" not {severity!r}"
        )
    return chosen


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey modes as 8-bit grey, all others as RGB (see `vitlab.pictures.to_rgb`)."""
    grey = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;")
    return to_rgb(image).convert("L") if grey else to_rgb(image)


@corruption(0.08, 0.12, 0.18, 0.26, 0.38)
def gaussian_noise(image, strength, generator):
    """Noise of its own for each pixel and channel; strength: standard deviation, of 0..1."""
    pixels = np.asarray(image)
    return _from_floats(pixels / 255 + strength * generator.standard_normal(pixels.shape))


@corruption(1, 2, 3, 4, 6)
def blur(image, strength, generator):
    """Gaussian; strength: standard deviation in pixels, for 224 pixels along the shorter side.

    Small images get at least a quarter of it. Pillow's filter, since torchvision's needs an image
    larger than half of its kernel."""
    return image.filter(ImageFilter.GaussianBlur(strength * max(min(image.size) / REFERENCE, 0.25)))


@corruption(0.1, 0.2, 0.3, 0.4, 0.5)
def brightness(image, strength, generator):
    """Brighter, hue and saturation kept; strength: added to V of HSV (0..1), at most 1 in all.

    torchvision's `adjust_brightness` multiplies, which leaves dark pixels dark."""
    pixels = np.asarray(image) / 255
    value = pixels if pixels.ndim == 2 else pixels.max(axis=2, keepdims=True)  # V of HSV
    brighter = np.minimum(value + strength, 1)
    return _from_floats(
        np.where(value > 0, pixels * brighter / np.where(value > 0, value, 1), brighter)
    )


@corruption(0.4, 0.3, 0.2, 0.1, 0.05)
def contrast(image, strength, generator):
    """Strength: the share of the contrast that is left."""
    return F.adjust_contrast(image, strength)


@corruption(25, 18, 15, 10, 7)
def jpeg(image, strength, generator):
    """Written as JPEG and read back; strength: the quality, of 1..95."""
    return F.jpeg(image, strength)


@corruption(5, 10, 15, 20, 30)
def rotation(image, strength, generator):
    """Turned around the centre, to the left or to the right; strength: degrees.

    The image is continued by its mirror image, so that no empty corner shows the turn."""
    width, height = image.size
    margin = int(np.ceil((np.hypot(width, height) - min(width, height)) / 2))
    pixels = np.asarray(image)
    wide = np.pad(pixels, [(margin, margin)] * 2 + [(0, 0)] * (pixels.ndim - 2), mode="symmetric")
    angle = strength * int(generator.choice([-1, 1]))
    turned = F.rotate(Image.fromarray(wide), angle, InterpolationMode.BICUBIC)
    return turned.crop((margin, margin, margin + width, margin + height))


def _from_floats(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))

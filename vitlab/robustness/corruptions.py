"""Corruptions: images made worse as cameras and people make them worse, at five severities.

Noise, blur, brightness, contrast and JPEG have the strengths of ImageNet-C (Hendrycks and
Dietterich 2019, arXiv 1903.12261), which were chosen for photographs of 224 x 224 pixels.
ImageNet-C has no rotation; we chose its strengths. torchvision's operations are used where they do
the same: its Gaussian blur fails on images smaller than half its kernel, and its brightness
multiplies, which leaves dark pixels dark."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitlab.errors import UserError
from vitlab.pictures import to_rgb
from vitlab.registry import unknown
from vitlab.seeds import derive_seed

REFERENCE = 224  # pixels along the shorter side for which widths of blur are given


def corrupt_image(
    image: Image.Image, corruption: str, severity: int, sample_id: str = ""
) -> Image.Image:
    """The image at its own size, in 8-bit grey or RGB, made worse; severity 0 only changes the
    mode.

    Random numbers (noise, the direction of a rotation) depend on corruption and sample_id, not on
    the severity.

    >>> from PIL import Image
    >>> corrupt_image(Image.new("L", (8, 8), 100), "brightness", 2).getpixel((0, 0))
    151
    """
    check_corruption(corruption, severity)
    image = to_eight_bits(image)
    if severity == 0:
        return image
    corrupt, strengths = CORRUPTIONS[corruption]
    generator = np.random.default_rng(derive_seed(0, corruption, sample_id))
    return corrupt(image, strengths[severity - 1], generator)


def check_corruption(corruption: str, severity: int) -> None:
    """UserError for an unknown name or severity."""
    if corruption not in CORRUPTIONS:
        raise UserError(unknown("corruption", corruption, list(CORRUPTIONS)))
    if severity not in range(6):
        raise UserError(
            f"{corruption}: the severity must be 1 (mild) to 5 (severe), or 0 for the clean image,"
            f" not {severity!r}"
        )


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey modes as 8-bit grey, all others as RGB (see `vitlab.pictures.to_rgb`)."""
    grey = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;")
    return to_rgb(image).convert("L") if grey else to_rgb(image)


def add_noise(image, strength, generator):
    """Independent noise for each pixel and channel; strength: standard deviation, of 0..1."""
    pixels = np.asarray(image)
    return _from_floats(pixels / 255 + strength * generator.standard_normal(pixels.shape))


def blur(image, strength, generator):
    """Gaussian; strength: standard deviation in pixels, for 224 pixels along the shorter side.
    Small images get at least a quarter of it."""
    return image.filter(ImageFilter.GaussianBlur(strength * max(min(image.size) / REFERENCE, 0.25)))


def brighten(image, strength, generator):
    """Hue and saturation stay; strength: added to V of HSV (0..1), up to 1 in all."""
    pixels = np.asarray(image) / 255
    value = pixels if pixels.ndim == 2 else pixels.max(axis=2, keepdims=True)  # V of HSV
    brighter = np.minimum(value + strength, 1)
    return _from_floats(
        np.where(value > 0, pixels * brighter / np.where(value > 0, value, 1), brighter)
    )


def reduce_contrast(image, strength, generator):
    """Strength: the share of the contrast that is left."""
    return F.adjust_contrast(image, strength)


def compress(image, strength, generator):
    """Written as JPEG and read back; strength: the quality, 1 to 95."""
    return F.jpeg(image, strength)


def rotate(image, strength, generator):
    """Rotated around the centre, to the left or to the right; strength: degrees.

    The image is extended by its mirror image, so that there is no empty corner."""
    width, height = image.size
    margin = int(np.ceil((np.hypot(width, height) - min(width, height)) / 2))
    pixels = np.asarray(image)
    wide = np.pad(pixels, [(margin, margin)] * 2 + [(0, 0)] * (pixels.ndim - 2), mode="symmetric")
    angle = strength * int(generator.choice([-1, 1]))
    turned = F.rotate(Image.fromarray(wide), angle, InterpolationMode.BICUBIC)
    return turned.crop((margin, margin, margin + width, margin + height))


def _from_floats(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))


# name -> function of an 8-bit image, a strength and a random generator; strengths by severity
CORRUPTIONS = {
    "gaussian_noise": (add_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": (blur, (1, 2, 3, 4, 6)),
    "brightness": (brighten, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (reduce_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg": (compress, (25, 18, 15, 10, 7)),
    "rotation": (rotate, (5, 10, 15, 20, 30)),
}

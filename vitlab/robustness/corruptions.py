"""Images made worse in a way that cameras and people make them worse, at five severities.

Noise, blur, brightness, contrast and JPEG have the strengths of ImageNet-C (Hendrycks and
Dietterich 2019, arXiv 1903.12261), which were chosen for photographs of 224 x 224 pixels. It has no
rotation; those strengths are ours."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageFilter

from vitlab.errors import UserError
from vitlab.pictures import to_rgb
from vitlab.registry import Registry
from vitlab.schema import DataBundle
from vitlab.seeds import derive_seed

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE = 224  # pixels along the shorter side for which widths of blur are given

CORRUPTIONS = Registry("corruption")


@dataclass(frozen=True)
class Corruption:
    """A way to make an image worse.

    apply(image, strength, generator): from an 8-bit image, grey (L) or RGB, to one of the same mode
    and size. strengths: one for each severity. unit: what the strength is."""

    apply: Callable[[Image.Image, float, np.random.Generator], Image.Image]
    strengths: tuple[float, ...]
    unit: str


def corruption(unit: str, *strengths: float):
    """Decorator: make a function available as a corruption under its own name (see Corruption)."""
    if len(strengths) != len(SEVERITIES):
        raise UserError(
            f"a corruption has {len(SEVERITIES)} strengths, one for each severity; got"
            f" {len(strengths)}"
        )

    def register(function):
        CORRUPTIONS.register(Corruption(function, strengths, unit), name=function.__name__)
        return function

    return register


def corruption_table() -> pd.DataFrame:
    """The strength of every corruption at every severity: columns corruption, unit, 1, 2, 3, 4,
    5.
    """
    rows = [
        (name, CORRUPTIONS[name].unit, *CORRUPTIONS[name].strengths) for name in CORRUPTIONS.names()
    ]
    return pd.DataFrame(rows, columns=["corruption", "unit", *map(str, SEVERITIES)])


def corrupt_image(
    image: Image.Image, corruption: str, severity: int, seed: int = 0, sample_id: str = ""
) -> Image.Image:
    """The image at its own size, in 8-bit grey or RGB, made worse; severity 0 only changes the
    mode.

    What is drawn (noise, the direction of a rotation) depends on seed, corruption and sample_id,
    not on the severity."""
    chosen = find_corruption(corruption, severity)
    image = to_eight_bits(image)
    if severity == 0:
        return image
    generator = np.random.default_rng(derive_seed(seed, corruption, sample_id))
    return chosen.apply(image, chosen.strengths[severity - 1], generator)


def corrupt_data(data: DataBundle, corruption: str, severity: int, seed: int = 0) -> DataBundle:
    """The same data set with every image made worse when it is read (see corrupt_image); severity
    0: the data as they are.

    The version names the corruption, so that nothing computed for the clean images is taken for it.
    """
    find_corruption(corruption, severity)
    if severity == 0:
        return data
    read = partial(_read_corrupted, data.read, corruption, severity, seed)
    return replace(
        data, read=read, version=f"{data.version} + {corruption} {severity}, seed {seed}"
    )


def find_corruption(corruption: str, severity: int) -> Corruption:
    """The corruption of this name; ValueError for an unknown name or severity."""
    chosen = CORRUPTIONS[corruption]
    if isinstance(severity, bool) or severity not in (0, *SEVERITIES):
        raise UserError(
            f"{corruption}: severity {severity!r} is none of 1 (mild) to 5 (severe), or 0 for the"
            " clean image"
        )
    return chosen


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey modes as 8-bit grey, all others as RGB; see vitlab.pictures.to_rgb for how deep or
    transparent images are read.
    """
    grey = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;")
    return to_rgb(image).convert("L") if grey else to_rgb(image)


@corruption("standard deviation, of 0..1", 0.08, 0.12, 0.18, 0.26, 0.38)
def gaussian_noise(image, strength, generator):
    """Each pixel and channel has its own noise."""
    pixels = np.asarray(image)
    return _from_floats(pixels / 255 + strength * generator.standard_normal(pixels.shape))


@corruption(
    f"standard deviation in pixels, for {REFERENCE} pixels along the shorter side", 1, 2, 3, 4, 6
)
def blur(image, strength, generator):
    """Gaussian, as wide relative to the image as in ImageNet-C, and at least a quarter of the
    strength in pixels.
    """
    return image.filter(ImageFilter.GaussianBlur(strength * max(min(image.size) / REFERENCE, 0.25)))


@corruption("added to the brightness (V of HSV, 0..1)", 0.1, 0.2, 0.3, 0.4, 0.5)
def brightness(image, strength, generator):
    """Brighter, hue and saturation kept; what gets brighter than white is white."""
    pixels = np.asarray(image) / 255
    value = pixels if pixels.ndim == 2 else pixels.max(axis=2, keepdims=True)  # V of HSV
    brighter = np.minimum(value + strength, 1)
    return _from_floats(
        np.where(value > 0, pixels * brighter / np.where(value > 0, value, 1), brighter)
    )


@corruption("share of the contrast that is left", 0.4, 0.3, 0.2, 0.1, 0.05)
def contrast(image, strength, generator):
    """Closer to the mean grey of the image."""
    return ImageEnhance.Contrast(image).enhance(strength)


@corruption("JPEG quality, of 1..95", 25, 18, 15, 10, 7)
def jpeg(image, strength, generator):
    """Written as JPEG and read back."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=strength)
    decoded = Image.open(file)
    decoded.load()
    return decoded.copy()  # a plain image, without the file behind it


@corruption("degrees, to the left or to the right", 5, 10, 15, 20, 30)
def rotation(image, strength, generator):
    """Turned around the centre. The image is continued by its mirror image, so that no empty corner
    gives the turn away.
    """
    width, height = image.size
    margin = int(np.ceil((np.hypot(width, height) - min(width, height)) / 2))
    pixels = np.asarray(image)
    wide = np.pad(pixels, [(margin, margin)] * 2 + [(0, 0)] * (pixels.ndim - 2), mode="symmetric")
    turned = Image.fromarray(wide).rotate(
        strength * generator.choice([-1, 1]), Image.Resampling.BICUBIC
    )
    return turned.crop((margin, margin, margin + width, margin + height))


def _read_corrupted(read, corruption: str, severity: int, seed: int, sample_id: str) -> Image.Image:
    return corrupt_image(read(sample_id), corruption, severity, seed, sample_id)


def _from_floats(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))

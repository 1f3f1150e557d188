"""Images are checked once: which cannot be decoded, and which pixel values are black and white
where they exceed 8 bits.

A file of 16 bits a pixel may hold 8, 10, 12 or 16 bits of signal, and nothing in it says which. So
one range of pixel values is estimated over all images of a data set and used for each of them, and
exposures stay comparable. The test images count as well: no label is used, and the range must be
the same for every seed, fold and later notebook."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from threading import Lock

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.data.quality import describe_failure
from vitlab.data.reading import map_images
from vitlab.data.sources import DATASETS, EXCLUDED_COLUMNS, Source
from vitlab.errors import UserError
from vitlab.pictures import LOST_BITS, is_deep, scale_to_eight_bits, to_rgb

# of the pixels of an image and of the images, at each end, that may lie outside the range
PIXEL_SHARE, IMAGE_SHARE = 0.001, 0.01
# of the range of so many bits that the values must fill; else 8 bits would leave fewer than 32 grey
# values
MIN_SPAN = 1 / 8


@dataclass(frozen=True)
class Checked:
    """unreadable: images that cannot be decoded, with EXCLUDED_COLUMNS. deep: number of images of
    more than 8 bits a pixel.

    deep_colour: number of colour images of 16 bits a channel, of which Pillow keeps the upper 8.
    """

    unreadable: pd.DataFrame
    value_range: tuple[float, float] | None
    deep: int
    deep_colour: int


def check_images(source: Source) -> Checked:
    """Decode every image of the source; once in a process, as long as the source is the same."""
    with _locks[source.location, source.version]:
        return _check_images(source)


def find_range(source: Source) -> tuple[float, float] | None:
    """The value range of all its images; None where all have 8 bits."""
    return check_images(source).value_range


def find_value_range(limits: Sequence[tuple[float, float, bool]]) -> tuple[float, float] | None:
    """The pixel values that become black and white, from each deep image's `_measure`; None where
    there is no deep image.

    Whole numbers from 0 on get the range of the fewest bits, from 8 on, that hold them: 0 to 4095
    for 12 bits. Numbers within 0..1 get 0 to 1. Other numbers, and those that fill less than an
    eighth of such a range, get what is observed. A thousandth of the pixels of each image, and a
    hundredth of the images, may lie outside, so that hot pixels and a spoilt image do not count.

    >>> find_value_range([(20.0, 3000.0, True), (40.0, 4000.0, True)])
    (0.0, 4095.0)
    """
    if not limits:
        return None
    lows, highs, whole = zip(*limits, strict=True)
    low = float(np.quantile(lows, IMAGE_SHARE, method="lower"))
    high = float(np.quantile(highs, 1 - IMAGE_SHARE, method="higher"))
    if low < 0 or not (all(whole) or high <= 1):
        return low, high
    top = 1.0 if high <= 1 else 2.0 ** max(8, int(high).bit_length()) - 1
    return (low, high) if 0 < high - low < MIN_SPAN * top else (0.0, top)


def read_scaled(source: Source, sample_id: str) -> Image.Image:
    """The image of a sample as the source reads it, scaled to 8 bits where it is deeper than
    that.
    """
    image = source.read(sample_id)
    return scale_to_eight_bits(image, find_range(source)) if is_deep(image) else image


def find_base(prefix: str, name: str) -> Source:
    """The source that a set PREFIX:NAME is made of; its images have 8 bits."""
    if not name:
        raise UserError(
            f"{prefix} needs the name of the data set that it is made of; write {prefix}digits, say"
        )
    base = DATASETS[name]()
    return replace(base, read=partial(read_scaled, base))


_locks = defaultdict(Lock)  # threads that meet a deep image at the same time measure once


@lru_cache(maxsize=8)
def _check_images(source: Source) -> Checked:
    found = map_images(
        partial(_examine, source.read), source.samples["sample_id"].tolist(), "checking images"
    )
    reasons, limits, lost = zip(*found, strict=True)
    table = source.samples[["sample_id", "source"]].assign(reason=reasons)
    unreadable = table[table["reason"] != ""].reset_index(drop=True)[list(EXCLUDED_COLUMNS)]
    deep = [one for one in limits if one]
    return Checked(unreadable, find_value_range(deep), len(deep), sum(lost))


def _examine(read, sample_id: str) -> tuple[str, tuple[float, float, bool] | None, bool]:
    """Why an image cannot be used, or an empty text; what `_measure` says of a deep one; and
    whether it is deep colour.
    """
    try:
        image = read(sample_id)
        if is_deep(image):
            return "", _measure(image), False
        to_rgb(image)
    # a broken file makes Pillow's decoders fail in every way: SyntaxError, struct.error, a bomb,
    # ...
    except Exception as error:
        return describe_failure(error), None, False
    return "", None, LOST_BITS in image.info


def _measure(image: Image.Image) -> tuple[float, float, bool]:
    """The lowest and highest pixel value without the extreme ones, and whether all are whole
    numbers.
    """
    values = np.asarray(image, dtype=np.float64)
    scale_to_eight_bits(image)  # raises where a value is not finite
    low, high = np.quantile(values, [PIXEL_SHARE, 1 - PIXEL_SHARE], method="nearest")
    return float(low), float(high), bool((values == np.rint(values)).all())

"""From a sample_id to an 8-bit image; many images in threads; and the check of all images of a set.

A file of 16 bits a pixel may hold 8, 10, 12 or 16 bits of signal, and does not state which. So
one range of pixel values is estimated over all images of a data set, test images too, and used for
each of them; exposures stay comparable. Colour of 16 bits a channel is left out: Pillow reads only
the upper 8 bits of each channel. A truncated file is left out, too, even where only its end marker
is missing."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from threading import Lock
from typing import TypeVar

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from vitlab.data.sources import DATASETS, EXCLUDED_COLUMNS, Source
from vitlab.errors import UserError
from vitlab.pictures import LOST_BITS, is_deep, scale_to_eight_bits, to_rgb

T = TypeVar("T")
Limits = tuple[float, float, bool]  # lowest and highest pixel value, and whether all are whole
THREADS = os.cpu_count() or 1
# images a task of the pool: small for a smooth progress bar, large for little overhead
BLOCK = 64
# of the pixels of an image and of the images, at each end, that may lie outside the value range
PIXEL_SHARE, IMAGE_SHARE = 0.001, 0.01
# of the range of its bits that a signal must fill; with less, 8 bits keep fewer than 32 greys
MIN_SPAN = 1 / 8
DEEP_COLOUR = (
    "colour of 16 bits a channel, of which only the upper 8 could be read; save it with 8 bits a"
    " channel"
)


def map_images(function: Callable[[str], T], sample_ids: Sequence[str], task: str) -> list[T]:
    """The results of function(sample_id), in order, from a pool of threads: Pillow decodes outside
    Python's global lock.

    A progress bar named `task` appears when it takes more than ten seconds.
    """
    blocks = [sample_ids[start : start + BLOCK] for start in range(0, len(sample_ids), BLOCK)]
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(sample_ids), desc=task, unit="image", delay=10, leave=False) as bar,
    ):
        results = []
        for block in pool.map(lambda block: [function(sample_id) for sample_id in block], blocks):
            results += block
            bar.update(len(block))
    return results


@dataclass(frozen=True)
class Checked:
    """unreadable: images that cannot be used, with EXCLUDED_COLUMNS. value_range: of the images of
    more than 8 bits a pixel; deep: how many these are.
    """

    unreadable: pd.DataFrame
    value_range: tuple[float, float] | None
    deep: int


_locks = defaultdict(Lock)  # threads that meet a deep image at the same time check once


def check_images(source: Source) -> Checked:
    """Decode every image of the source; once in a process, as long as the source is the same."""
    with _locks[source.location, source.version]:
        return _check_images(source)


@lru_cache(maxsize=8)
def _check_images(source: Source) -> Checked:
    ids = source.samples["sample_id"].tolist()
    found = map_images(partial(_examine, source.read), ids, "checking images")
    reasons, limits = [reason for reason, _ in found], [limit for _, limit in found if limit]
    table = source.samples[["sample_id", "source"]].assign(reason=reasons)
    unreadable = table[table["reason"] != ""].reset_index(drop=True)[list(EXCLUDED_COLUMNS)]
    return Checked(unreadable, find_value_range(limits), len(limits))


def find_value_range(limits: Sequence[Limits]) -> tuple[float, float] | None:
    """The pixel values that become black and white, from the limits of each deep image; None
    without any.

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


def find_range(source: Source) -> tuple[float, float] | None:
    """The value range of all its images; None where all have 8 bits."""
    return check_images(source).value_range


def read_scaled(source: Source, sample_id: str) -> Image.Image:
    """The image of a sample, scaled to 8 bits where it has more."""
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


def _examine(read, sample_id: str) -> tuple[str, Limits | None]:
    """Why an image cannot be used, or an empty text; and the limits of a deep one."""
    try:
        image = read(sample_id)
        if is_deep(image):
            return "", _measure(image)
        to_rgb(image)
    # a broken file makes Pillow's decoders fail in every way: SyntaxError, struct.error, a bomb,
    # ...
    except Exception as error:
        return _describe_failure(error), None
    return DEEP_COLOUR if LOST_BITS in image.info else "", None


def _measure(image: Image.Image) -> Limits:
    """The lowest and highest pixel value without the extreme ones, and whether all are whole."""
    values = np.asarray(image, dtype=np.float64)
    scale_to_eight_bits(image)  # raises where a value is not finite
    low, high = np.quantile(values, [PIXEL_SHARE, 1 - PIXEL_SHARE], method="nearest")
    return float(low), float(high), bool((values == np.rint(values)).all())


def _describe_failure(error: Exception) -> str:
    """Why an image cannot be decoded, in a few words and without the path on this machine."""
    match error:
        case UnidentifiedImageError():
            return "not an image in any known format"
        case Image.DecompressionBombError():
            limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
            return f"it has more than the {limit:.3g} megapixels that are read; scale it down"
        case OSError():
            return error.strerror or str(error)
        case UserError():
            return str(error)
    return f"{type(error).__name__}: {error}"

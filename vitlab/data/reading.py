"""From a sample_id to a decoded image, one at a time or many in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image
from tqdm import tqdm

from vitlab.errors import UserError
from vitlab.pictures import open_picture

T = TypeVar("T")
THREADS = os.cpu_count() or 1
# images a task of the pool: small enough for a smooth progress bar, large enough to make its
# overhead vanish
BLOCK = 64


def read_file(paths: Mapping[str, Path], sample_id: str) -> Image.Image:
    """Decode the whole file of one sample, upright where its EXIF data say how it was held.

    Raises ValueError for an unknown sample_id, and whatever Pillow raises for a file that it cannot
    decode."""
    if sample_id not in paths:
        raise UserError(
            f"unknown sample_id {sample_id!r}; the {len(paths)} known ones are in the column"
            " sample_id of data.samples"
        )
    if paths[sample_id].stat().st_size == 0:
        raise OSError("the file is empty")
    return open_picture(paths[sample_id])


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

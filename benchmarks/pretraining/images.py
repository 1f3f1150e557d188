"""A large set of small images, decoded once: from Parquet files of encoded images or from a folder
of one folder a class.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from vitlab.errors import MissingFileError


@dataclass(frozen=True)
class ImageArray:
    """Images of one size, in memory or mapped from a file: pixels (N, 3, h, w) uint8, labels (N,)
    int64, places in `classes`.
    """

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (B, 3, h, w) uint8 and labels (B,) of these places, on the device."""
        pixels = torch.from_numpy(np.ascontiguousarray(self.pixels[places]))
        return pixels.to(device, non_blocking=True), torch.from_numpy(self.labels[places]).to(
            device, non_blocking=True
        )


def load_images(folder: Path, split: str, size: int, cache: Path) -> ImageArray:
    """The images of a split, each resized to `size` x `size` pixels; decoded at the first call and
    kept as .npy files in `cache`.

    folder: holds either Parquet files `<split>*.parquet` with columns `image` (an encoded picture,
        or a struct with `bytes`) and `label`, and perhaps `classes.tsv` with a row a label; or
        `<split>/<class>/<picture>`.
    """
    folder, cache = Path(folder), Path(cache)
    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files and not (folder / split).is_dir():
        raise MissingFileError(
            f"{folder} holds neither {split}*.parquet nor a folder {split}/ of one folder a class"
        )
    rows, labels, classes = _read_parquet(files, folder) if files else _read_folder(folder / split)
    path = cache / f"{split}-{size}-{len(labels)}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        pixels = np.lib.format.open_memmap(part, "w+", np.uint8, (len(labels), 3, size, size))
        for place, row in enumerate(
            tqdm(rows, desc=f"decode {split}", total=len(labels), mininterval=5)
        ):
            with Image.open(row if isinstance(row, Path) else io.BytesIO(row)) as file:
                picture = file.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            pixels[place] = np.asarray(picture).transpose(2, 0, 1)
        pixels.flush()
        del pixels  # Windows renames no file that is mapped
        part.replace(path)
    return ImageArray(np.load(path, mmap_mode="r"), labels, classes)


def _read_parquet(files, folder):
    labels = np.concatenate(
        [pq.read_table(file, columns=["label"])["label"].to_numpy() for file in files]
    ).astype(np.int64)
    names = folder / "classes.tsv"
    if names.exists():
        with names.open(encoding="utf-8") as file:
            table = list(csv.DictReader(file, delimiter="\t"))
        classes = tuple(
            next(value for key, value in row.items() if key != "label") for row in table
        )
    else:
        classes = tuple(map(str, range(int(labels.max()) + 1)))
    return _read_pictures(files), labels, classes


def _read_pictures(files):
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(1000, columns=["image"]):
            for value in batch.column("image").to_pylist():
                yield value["bytes"] if isinstance(value, dict) else value


def _read_folder(folder):
    found = ImageFolder(folder)
    return (
        (Path(path) for path, _ in found.samples),
        np.array(found.targets, np.int64),
        tuple(found.classes),
    )

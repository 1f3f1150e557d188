"""Near-duplicates: pairs of images that look the same, and may sit on both sides of a split."""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn

from vitlab.data.reading import map_images
from vitlab.data.transforms import to_rgb
from vitlab.schema import DataBundle

THUMBNAIL = 64  # pixels a side
FREQUENCIES = 16  # lowest ones kept along each side: 255 bits without the constant one
BLOCK = 1024  # rows compared at once: 1,024 x N distances in memory


def near_duplicate_table(data: DataBundle, max_distance: int = 16) -> pd.DataFrame:
    """Pairs of images whose perceptual hashes differ in at most `max_distance` of 255 bits, the most alike first.

    Columns: sample_id_a, sample_id_b, distance, same_label, crosses_split. The hash is the DCT hash of C. Zauner,
    "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), with 16 instead of 8 frequencies a side.
    It sees through blur, exposure and size, not through flips and rotations. Unrelated images differ in about 128 bits.
    """
    ids = data.samples["sample_id"].tolist()
    thumbnails = map_images(lambda sample_id: _make_thumbnail(data.read(sample_id)), ids, "comparing images")
    first, second, distance = _find_close_pairs(_hash_thumbnails(np.stack(thumbnails)), max_distance)
    label, split = data.samples["label"].to_numpy(), data.samples["split"].to_numpy()
    table = pd.DataFrame(
        {
            "sample_id_a": np.array(ids, dtype=object)[first],
            "sample_id_b": np.array(ids, dtype=object)[second],
            "distance": distance,
            "same_label": label[first] == label[second],
            "crosses_split": split[first] != split[second],
        }
    )
    return table.sort_values(["distance", "sample_id_a", "sample_id_b"], ignore_index=True)


def _make_thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(to_rgb(image).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def _hash_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 64, 64) grey values to (N, 255) bits: which of the low frequencies are above the image's median one."""
    frequencies = dctn(thumbnails.astype(np.float32), axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES]
    frequencies = frequencies.reshape(len(thumbnails), -1)[:, 1:]
    return frequencies > np.median(frequencies, axis=1, keepdims=True)


def _find_close_pairs(bits: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows i < j of (N, D) bits that differ in at most `max_distance` places, and in how many."""
    signs = np.where(bits, 1, -1).astype(np.float32)  # the product of two rows is D - 2 x distance, exactly
    pairs = []
    for start in range(0, len(signs), BLOCK):
        distance = (bits.shape[1] - signs[start : start + BLOCK] @ signs[start:].T) / 2
        row, column = np.nonzero(np.triu(distance <= max_distance, k=1))
        pairs.append((row + start, column + start, distance[row, column].astype(int)))
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))

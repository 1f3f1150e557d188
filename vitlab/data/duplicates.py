"""Near-duplicates: pairs of images that look the same, and may sit on both sides of a split."""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn

from vitlab.data.reading import map_images
from vitlab.errors import UserError
from vitlab.pictures import to_rgb
from vitlab.schema import DataBundle

THUMBNAIL = 64  # pixels a side
FREQUENCIES = 16  # lowest ones kept along each side: 255 bits without the constant one
MAX_COSINE = 0.007  # see near_duplicate_table
BLOCK = 1024  # rows compared at once: 1,024 x N distances in memory


def near_duplicate_table(
    data: DataBundle,
    max_distance: int = 16,
    *,
    embeddings: np.ndarray | None = None,
    max_cosine: float = MAX_COSINE,
) -> pd.DataFrame:
    """Pairs of images whose perceptual hashes differ in at most `max_distance` of 255 bits, the
    most alike first.

    Columns: sample_id_a, sample_id_b, distance, same_label, crosses_split. The hash is the DCT hash
    of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), with
    16 instead of 8 frequencies a side. It sees through blur, exposure and size, not through flips
    and rotations. Unrelated images differ in about 128 bits.

    embeddings: (N, D), a vector for each row of `data.samples` (`vitlab.training.embed_images`).
        Pairs whose vectors have a cosine distance (1 - cosine, 0 to 2) of at most `max_cosine` then
        count too, and the table has two more columns: cosine_distance, and found_by ("hash",
        "embedding" or "both"). Both distances are given for every pair. The default suits the
        vectors of efficientnet_lite0: a copy of an ELPV cell in other size or exposure is 0.003 to
        0.008 away, a flipped one 0.014, but from 0.008 on half of the pairs are different cells of
        one make. Where images differ more from each other, as photographs do, 0.05 finds flips as
        well. Look at the pairs before you trust a threshold.
    """
    hashes = hash_images(data)
    first, second, distance = _find_close_pairs(hashes, max_distance)
    pairs = pd.DataFrame({"a": first, "b": second})
    if embeddings is not None:
        vectors = normalise_rows(embeddings, len(hashes))
        pairs = pd.concat([pairs, _find_close_vectors(vectors, max_cosine)]).drop_duplicates(
            ignore_index=True
        )
        distance = (hashes[pairs["a"]] != hashes[pairs["b"]]).sum(axis=1)
    first, second = pairs["a"].to_numpy(), pairs["b"].to_numpy()
    ids, label, split = (
        data.samples[name].to_numpy(dtype=object) for name in ("sample_id", "label", "split")
    )
    table = pd.DataFrame(
        {"sample_id_a": ids[first], "sample_id_b": ids[second], "distance": distance}
    )
    if embeddings is not None:
        table["cosine_distance"] = np.maximum(
            1 - (vectors[first] * vectors[second]).sum(axis=1), 0
        ).astype(float)
        by_hash, by_cosine = (
            table["distance"] <= max_distance,
            table["cosine_distance"] <= max_cosine,
        )
        table["found_by"] = np.select([by_hash & by_cosine, by_hash], ["both", "hash"], "embedding")
    table["same_label"] = label[first] == label[second]
    table["crosses_split"] = split[first] != split[second]
    return table.sort_values(["distance", "sample_id_a", "sample_id_b"], ignore_index=True)


def hash_images(data: DataBundle) -> np.ndarray:
    """(N, 255) bits, the perceptual hash of each row of `data.samples`."""
    ids = data.samples["sample_id"].tolist()
    thumbnails = map_images(
        lambda sample_id: _make_thumbnail(data.read(sample_id)), ids, "comparing images"
    )
    return _hash_thumbnails(np.stack(thumbnails))


def normalise_rows(embeddings: np.ndarray, rows: int) -> np.ndarray:
    """The vectors at length 1; ValueError where there is not one finite, non-zero vector for each
    of `rows` samples.
    """
    vectors = np.asarray(embeddings, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != rows:
        raise UserError(
            f"embeddings of shape {vectors.shape} do not fit {rows} samples; expected ({rows}, D)"
        )
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~np.isfinite(length[:, 0]) | (length[:, 0] == 0)
    if bad.any():
        raise UserError(
            f"{bad.sum()} embeddings are zero, NaN or infinite, the first in row {bad.argmax()}"
        )
    return vectors / length


def _make_thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(
        to_rgb(image).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    )


def _hash_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 64, 64) grey values to (N, 255) bits: which of the low frequencies are above the image's
    median one.
    """
    frequencies = dctn(thumbnails.astype(np.float32), axes=(1, 2), norm="ortho")[
        :, :FREQUENCIES, :FREQUENCIES
    ]
    frequencies = frequencies.reshape(len(thumbnails), -1)[:, 1:]
    return frequencies > np.median(frequencies, axis=1, keepdims=True)


def _find_close_pairs(
    bits: np.ndarray, max_distance: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows i < j of (N, D) bits that differ in at most `max_distance` places, and in how many."""
    # the product of two rows is D - 2 x distance, exactly
    signs = np.where(bits, 1, -1).astype(np.float32)
    pairs = []
    for start in range(0, len(signs), BLOCK):
        distance = (bits.shape[1] - signs[start : start + BLOCK] @ signs[start:].T) / 2
        row, column = np.nonzero(np.triu(distance <= max_distance, k=1))
        pairs.append((row + start, column + start, distance[row, column].astype(int)))
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))


def _find_close_vectors(vectors: np.ndarray, max_cosine: float) -> pd.DataFrame:
    """Rows a < b of (N, D) vectors of length 1 whose cosine is at least 1 - max_cosine."""
    pairs = []
    for start in range(0, len(vectors), BLOCK):
        cosine = vectors[start : start + BLOCK] @ vectors[start:].T
        # float32 leaves copies 1e-7 apart
        row, column = np.nonzero(np.triu(cosine >= 1 - max_cosine - 1e-6, k=1))
        pairs.append(pd.DataFrame({"a": row + start, "b": column + start}))
    return pd.concat(pairs, ignore_index=True)

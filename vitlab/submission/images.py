"""SHA-256 of every image of a data set, over the decoded pixels: the same wherever the files
are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pandas as pd


def image_hash_table(dataset: str, samples: pd.DataFrame) -> pd.DataFrame:
    """Columns sample_id, label, sha256 for the images of `samples` (sample_id, split), sorted by
    sample_id.

    Of JPEG and other lossy files, decoders of other versions may give pixels that differ by a grey
    level, and so another hash."""
    from vitlab.data import load_dataset
    from vitlab.data.reading import map_images

    data = load_dataset(dataset, samples=samples)
    rows = data.samples.sort_values("sample_id", ignore_index=True)
    hashes = map_images(
        lambda sample_id: _hash_image(data.read(sample_id)),
        rows["sample_id"].tolist(),
        "hashing the images",
    )
    return pd.DataFrame(
        {
            "sample_id": rows["sample_id"].astype(str),
            "label": rows["label"].astype(str),
            "sha256": hashes,
        }
    )


def join_samples(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """sample_id and split of all real images in these tables of splits, each once."""
    from vitlab.data import drop_synthetic

    real = [drop_synthetic(table)[["sample_id", "split"]] for table in tables]
    return pd.concat(real).drop_duplicates("sample_id", ignore_index=True)


def _hash_image(image) -> str:
    colours = bytes(image.getpalette() or ()) if image.mode == "P" else b""
    head = f"{image.mode} {image.size[0]}x{image.size[1]}\n".encode()
    return hashlib.sha256(head + colours + image.tobytes()).hexdigest()

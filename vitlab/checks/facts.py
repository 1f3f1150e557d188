"""Facts of image files that are not in the picture, and yet may predict its label."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.data.reading import map_images
from vitlab.data.sources import Reader
from vitlab.pictures import to_rgb
from vitlab.schema import DataBundle

BORDER = 0.04  # of the shorter side: the width of the frame whose grey values are measured
CAMERA_TAGS = (271, 272)  # EXIF: make, model


def fact_table(data: DataBundle) -> pd.DataFrame:
    """One row for each image: sample_id, width, height, brightness and contrast of the whole image
    and of its border (0..1), and where images are files: bytes_per_pixel, format, quality (the sum
    of a JPEG's quantisation table: small is good), camera. Columns without variation are left out.
    """

    def measure(sample_id: str) -> dict:
        picture = data.read(sample_id)
        grey = np.asarray(to_rgb(picture).convert("L"), dtype=np.float32) / 255
        width = max(1, round(BORDER * min(grey.shape)))
        inner = grey[width:-width, width:-width]
        sides = (grey[:width], grey[-width:], grey[:, :width], grey[:, -width:])
        border = np.concatenate([side.ravel() for side in sides])
        facts = {"sample_id": sample_id, "width": picture.width, "height": picture.height}
        facts |= {"brightness": inner.mean() if inner.size else grey.mean()}
        facts |= {"contrast": grey.std(), "border": border.mean(), "border_contrast": border.std()}
        path = _find_file(data, sample_id)
        return facts | (_read_header(path, grey.size) if path else {})

    ids = data.samples["sample_id"].tolist()
    table = pd.DataFrame(map_images(measure, ids, "reading facts"))
    varied = [name for name in table if name == "sample_id" or table[name].nunique() > 1]
    return table[varied]


def _find_file(data: DataBundle, sample_id: str) -> Path | None:
    """The file of an image, where each image of the data set is a file."""
    reader = data.read.args[0].read if isinstance(data.read, partial) else data.read
    place = reader.places.get(sample_id) if isinstance(reader, Reader) else None
    return place if isinstance(place, Path) else None


def _read_header(path: Path, pixels: int) -> dict:
    with Image.open(path) as image:
        tables = getattr(image, "quantization", None) or {}
        exif = image.getexif()
        return {
            "bytes_per_pixel": path.stat().st_size / pixels,
            "format": image.format or "",
            "quality": float(sum(sum(table) for table in tables.values())),
            "camera": " ".join(str(exif.get(tag, "")).strip() for tag in CAMERA_TAGS).strip(),
        }

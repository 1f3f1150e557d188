"""Digits: 1,797 handwritten digits, 8 x 8, inside scikit-learn: the quick set."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.data.sources import DATASETS, Source
from vitlab.errors import UserError


@DATASETS.register
def digits() -> Source:
    """Ten classes, "0" to "9"; the grey values 0 to 16 become 0 to 255."""
    labels = [str(target) for target in _load_arrays().target]
    samples = pd.DataFrame(
        {
            "sample_id": [
                f"digit{row:04d}" for row in range(len(labels))
            ],  # a bare number would come back from CSV as an integer
            "label": labels,
            "group": "all",
            "source": [f"sklearn.datasets.load_digits, row {row}" for row in range(len(labels))],
        }
    )
    return Source(
        location="scikit-learn digits",
        version=f"scikit-learn {version('scikit-learn')}",
        classes=tuple("0123456789"),
        samples=samples,
        read=_read_digit,
        licence="CC BY 4.0 (UCI Machine Learning Repository)",
        citation=(
            "Alpaydin, E., Kaynak, C. (1998). Optical Recognition of Handwritten Digits. UCI"
            " Machine Learning Repository. doi:10.24432/C50P49"
        ),
        flip=False,
    )


@cache
def _load_arrays():
    from sklearn.datasets import load_digits

    return load_digits()


def _read_digit(sample_id: str) -> Image.Image:
    images = _load_arrays().images
    row = sample_id.removeprefix("digit")
    if not row.isdecimal() or int(row) >= len(images):
        raise UserError(
            f"unknown sample_id {sample_id!r}; digits has digit0000 to digit{len(images) - 1:04d}"
        )
    return Image.fromarray(np.round(images[int(row)] * (255 / 16)).astype(np.uint8))

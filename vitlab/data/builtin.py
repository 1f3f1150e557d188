"""Data sets that need no download: `elpv` (solar cells, package elpv-dataset) and `digits`
(scikit-learn).
"""

from __future__ import annotations

import importlib.resources
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.data.reading import read_file
from vitlab.data.sources import DATASETS, Source
from vitlab.errors import UserError

ELPV_LICENCE = "images CC BY-NC-SA 4.0 (Bavarian Center for Applied Energy Research, ZAE Bayern)"
ELPV_CITATION = """\
Buerhop-Lutz, C., Deitsch, S., Maier, A., Gallwitz, F., Berger, S., Doll, B., Hauch, J., Camus, C., Brabec, C. J. (2018). \
A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery. \
European PV Solar Energy Conference and Exhibition (EU PVSEC). doi:10.4229/35thEUPVSEC20182018-5CV.3.15
Deitsch, S., Christlein, V., Berger, S., Buerhop-Lutz, C., Maier, A., Gallwitz, F., Riess, C. (2019). \
Automatic classification of defective photovoltaic module cells in electroluminescence images. \
Solar Energy 185, 455-468. doi:10.1016/j.solener.2019.02.067
Deitsch, S., Buerhop-Lutz, C., Sovetkin, E., Steland, A., Maier, A., Gallwitz, F., Riess, C. (2021). \
Segmentation of photovoltaic module cells in uncalibrated electroluminescence images. \
Machine Vision and Applications 32(4). doi:10.1007/s00138-021-01191-9"""  # noqa: E501

BINARY = ("functional", "defective")
GRADES = ("none", "possible", "probable", "certain")  # a defect, at probability 0, 1/3, 2/3 and 1
COARSER = {
    "elpv": dict(zip(GRADES, ("functional", "functional", "defective", "defective"), strict=True))
}


@DATASETS.register
def elpv() -> Source:
    """2,624 electroluminescence images of solar cells, 300 x 300. A cell whose defect probability
    is at least 0.5 is defective.
    """
    return _load_elpv(BINARY, lambda probability: (probability >= 0.5).astype(int))


@DATASETS.register(name="elpv:grade")
def elpv_grade() -> Source:
    """The images of `elpv` in four classes: how sure the experts were of a defect."""
    return _load_elpv(
        GRADES, lambda probability: (3 * probability).round().astype(int), coarser=COARSER
    )


def _load_elpv(classes, find_class, coarser=None) -> Source:
    root = Path(str(importlib.resources.files("elpv_dataset") / "data"))
    columns = ["source", "defect_probability", "group"]
    table = pd.read_csv(root / "labels.csv", sep=r"\s+", header=None, names=columns)
    samples = pd.DataFrame(
        {
            "sample_id": table["source"].map(lambda file: Path(file).stem),
            "label": find_class(table["defect_probability"]).map(dict(enumerate(classes))),
            "group": table["group"],
            "source": table["source"],
            "defect_probability": table["defect_probability"],
        }
    )
    paths = {
        sample_id: root / file
        for sample_id, file in zip(samples["sample_id"], samples["source"], strict=True)
    }
    return Source(
        location="elpv-dataset",
        version=f"elpv-dataset {version('elpv-dataset')}",
        classes=classes,
        samples=samples,
        read=partial(read_file, paths),
        strata=("defect_probability", "group"),
        licence=ELPV_LICENCE,
        citation=ELPV_CITATION,
        coarser=coarser or {},
    )


@DATASETS.register
def digits() -> Source:
    """1,797 handwritten digits, 8 x 8; the grey values 0 to 16 become 0 to 255."""
    labels = [str(target) for target in _load_digits().target]
    rows = range(len(labels))
    samples = pd.DataFrame(
        {
            # a bare number would come back from CSV as an integer
            "sample_id": [f"digit{row:04d}" for row in rows],
            "label": labels,
            "group": "all",
            "source": [f"sklearn.datasets.load_digits, row {row}" for row in rows],
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
def _load_digits():
    from sklearn.datasets import load_digits

    return load_digits()


def _read_digit(sample_id: str) -> Image.Image:
    images = _load_digits().images
    row = sample_id.removeprefix("digit")
    if not row.isdecimal() or int(row) >= len(images):
        raise UserError(
            f"unknown sample_id {sample_id!r}; digits has digit0000 to digit{len(images) - 1:04d}"
        )
    return Image.fromarray(np.round(images[int(row)] * (255 / 16)).astype(np.uint8))

"""ELPV: 2,624 electroluminescence images of solar cells, 300 x 300, with a defect probability given
by experts.
"""

from __future__ import annotations

import importlib.resources
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from vitlab.data.reading import read_file
from vitlab.data.sources import DATASETS, Source

LICENCE = "images CC BY-NC-SA 4.0 (Bavarian Center for Applied Energy Research, ZAE Bayern)"
CITATION = """\
Buerhop-Lutz, C., Deitsch, S., Maier, A., Gallwitz, F., Berger, S., Doll, B., Hauch, J., Camus, C., Brabec, C. J. (2018). \
A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery. \
European PV Solar Energy Conference and Exhibition (EU PVSEC). doi:10.4229/35thEUPVSEC20182018-5CV.3.15
Deitsch, S., Christlein, V., Berger, S., Buerhop-Lutz, C., Maier, A., Gallwitz, F., Riess, C. (2019). \
Automatic classification of defective photovoltaic module cells in electroluminescence images. \
Solar Energy 185, 455-468. doi:10.1016/j.solener.2019.02.067
Deitsch, S., Buerhop-Lutz, C., Sovetkin, E., Steland, A., Maier, A., Gallwitz, F., Riess, C. (2021). \
Segmentation of photovoltaic module cells in uncalibrated electroluminescence images. \
Machine Vision and Applications 32(4). doi:10.1007/s00138-021-01191-9"""

BINARY = ("functional", "defective")
GRADES = ("none", "possible", "probable", "certain")  # a defect, at probability 0, 1/3, 2/3 and 1
COARSER = {
    "elpv": dict(zip(GRADES, ("functional", "functional", "defective", "defective"), strict=True))
}


@DATASETS.register
def elpv() -> Source:
    """Two classes: a cell whose defect probability is at least 0.5 is defective."""
    return _load_source(BINARY, labels=lambda probability: (probability >= 0.5).astype(int))


@DATASETS.register(name="elpv:grade")
def elpv_grade() -> Source:
    """Four classes: how sure the experts were of a defect."""
    return _load_source(
        GRADES, labels=lambda probability: (3 * probability).round().astype(int), coarser=COARSER
    )


def _load_source(classes, labels, coarser=None):
    root = Path(str(importlib.resources.files("elpv_dataset") / "data"))
    table = pd.read_csv(
        root / "labels.csv",
        sep=r"\s+",
        header=None,
        names=["source", "defect_probability", "group"],
    )
    samples = pd.DataFrame(
        {
            "sample_id": table["source"].map(lambda file: Path(file).stem),
            "label": labels(table["defect_probability"]).map(dict(enumerate(classes))),
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
        licence=LICENCE,
        citation=CITATION,
        coarser=coarser or {},
    )

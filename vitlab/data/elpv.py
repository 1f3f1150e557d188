"""The built-in data set `elpv`: cells of solar modules, from the package elpv-dataset.

The package does not say which cell belongs to which of the 44 modules. The column `module` is
inferred from the order of its labels.csv, see elpv_modules.csv and benchmarks/elpv_modules.py,
which made it."""

from __future__ import annotations

import importlib.resources
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from vitlab.data.sources import DATASETS, Reader, Source, open_file
from vitlab.data.splits import hash_number

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


SAMPLES = ["sample_id", "label", "group", "source", "defect_probability"]
SAMPLES += ["module", "module_confidence"]
PROBABILITIES = ["prob_functional", "prob_defective"]  # what the experts thought of a cell
# an image at their border may belong to either, so a split keeps both modules together
LINKED = {"m20": "m19"}
FINAL_MODULES = {"mono": 4, "poly": 5}  # of 18 and 25


@DATASETS.register
def elpv() -> Source:
    """2,624 electroluminescence images of solar cells, 300 x 300. A cell whose defect probability
    is at least 0.5 is defective. The column `module` is inferred.
    """
    return _load_elpv(BINARY)


@DATASETS.register(name="elpv:grade")
def elpv_grade() -> Source:
    """The images of `elpv` in four classes: how sure the experts were of a defect."""
    halves = ("functional", "functional", "defective", "defective")
    return _load_elpv(GRADES, coarser={"elpv": dict(zip(GRADES, halves, strict=True))})


def _load_elpv(classes: tuple[str, ...], **facts) -> Source:
    root = Path(str(importlib.resources.files("elpv_dataset") / "data"))
    columns = ["source", "defect_probability", "group"]
    table = pd.read_csv(root / "labels.csv", sep=r"\s+", header=None, names=columns)
    step = 1 / (len(classes) - 1)
    place = (table["defect_probability"] / step).round().astype(int)
    table["sample_id"] = [Path(file).stem for file in table["source"]]
    table["label"] = place.map(dict(enumerate(classes)))
    defective = table["defect_probability"]
    table["prob_functional"], table["prob_defective"] = 1 - defective, defective
    table = table.merge(infer_modules(), on="sample_id", how="left")
    files = [root / file for file in table["source"]]
    return Source(
        location="elpv-dataset",
        version=f"elpv-dataset {version('elpv-dataset')}",
        classes=classes,
        samples=table[[*SAMPLES, *(PROBABILITIES if classes == BINARY else [])]],
        read=Reader(dict(zip(table["sample_id"], files, strict=True)), open_file),
        strata=("defect_probability", "group"),
        licence="images CC BY-NC-SA 4.0 (Bavarian Center for Applied Energy Research, ZAE Bayern)",
        citation=ELPV_CITATION,
        group_column="module",
        linked=LINKED,
        final=final_modules(table),
        **facts,
    )


def infer_modules() -> pd.DataFrame:
    """The module of each cell, m00 to m43: columns sample_id, module, module_confidence (0 to 1).

    Inferred: the images are in the order of their modules, in runs of one cell type whose lengths
    are those of 44 modules of 60 cells (one has 72, one 48, one 54 and one 50). Two are photographs
    of one module, m29, so there is no m38. Where a border inside a run is uncertain, the confidence
    is the posterior probability of the module."""
    path = importlib.resources.files("vitlab.data") / "elpv_modules.csv"
    table = pd.read_csv(str(path), comment="#")
    rows = table.loc[table.index.repeat(table["images"])].reset_index(drop=True)
    rows["sample_id"] = [f"cell{number:04d}" for number in range(1, len(rows) + 1)]
    return rows.rename(columns={"confidence": "module_confidence"})[
        ["sample_id", "module", "module_confidence"]
    ]


def final_modules(table: pd.DataFrame) -> tuple[str, ...]:
    """Nine modules that are kept for the last test, in the order of a hash of their name; none of
    LINKED. table: with columns module and group (the cell type).
    """
    types = table.groupby("module")["group"].first().drop([*LINKED, *LINKED.values()])
    chosen = []
    for kind, count in FINAL_MODULES.items():
        names = sorted(types.index[types == kind], key=lambda name: hash_number("final", name))
        chosen += names[:count]
    return tuple(sorted(chosen))

"""What a data set provides before its images are checked and its splits drawn, the registry of all
data sets, and the smallest one: `digits` (scikit-learn).

A new kind of data set is one function, registered by its name (or by a prefix such as `folder:`),
that returns a `Source`. How it stores its images is known only to the `open` of its `Reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.errors import UserError
from vitlab.pictures import open_picture
from vitlab.registry import Registry

MIN_GROUPS = 10  # a column with fewer values names kinds of images, not where they come from
EXCLUDED_COLUMNS = ("sample_id", "source", "reason")
# name -> function without arguments (with PATH, for a prefix) that gives a Source
DATASETS = Registry("dataset")
# name -> function that gives the version of a set that must first be downloaded
VERSIONS = Registry("dataset")
# sets made of others, PREFIX:NAME: what their version ends in
DERIVED = {"planted:": "planted 1", "shuffled:": "shuffled 1"}


@dataclass(frozen=True)
class Reader:
    """sample_id -> decoded image. places: where each image is stored, in the form that `open`
    takes.
    """

    places: Mapping[str, Any]
    open: Callable[[Any], Image.Image]

    def __call__(self, sample_id: str) -> Image.Image:
        """UserError for an unknown sample_id, and whatever Pillow raises for damaged pixels."""
        if sample_id not in self.places:
            raise UserError(
                f"unknown sample_id {sample_id!r}; the {len(self.places)} known ones are in the"
                " column sample_id of data.samples"
            )
        return self.open(self.places[sample_id])


@dataclass(frozen=True)
class Source:
    """A labelled image set before splitting. Two sources are equal when location and version are.

    samples: sample_id, label, group, source, optionally split, and further columns. strata: columns
    whose combinations the drawn splits keep in proportion. excluded: files left out because of
    their name or place, with EXCLUDED_COLUMNS. flip: whether a mirrored image is still a valid one
    (False for digits, text, upright objects)."""

    location: str
    version: str
    classes: tuple[str, ...] = field(compare=False)
    samples: pd.DataFrame = field(compare=False, repr=False)
    read: Callable[[str], Image.Image] = field(compare=False, repr=False)
    strata: tuple[str, ...] = field(compare=False, default=("label",))
    excluded: pd.DataFrame = field(
        compare=False,
        repr=False,
        default_factory=lambda: pd.DataFrame(columns=EXCLUDED_COLUMNS, dtype=str),
    )
    licence: str = field(compare=False, default="")
    citation: str = field(compare=False, default="")
    coarser: Mapping[str, Mapping[str, str]] = field(compare=False, default_factory=dict)
    flip: bool = field(compare=False, default=True)
    group_column: str = field(compare=False, default="")
    linked: Mapping[str, str] = field(compare=False, default_factory=dict)
    final: tuple[str, ...] = field(compare=False, default=())


def split_derived(name: str) -> tuple[str, str]:
    """The prefix of a set made of another one, and the other one's name; ("", name) otherwise.

    >>> split_derived("planted:digits")
    ('planted:', 'digits')
    """
    prefix, colon, base = name.partition(":")
    return (prefix + colon, base) if prefix + colon in DERIVED else ("", name)


def open_file(path: Path) -> Image.Image:
    """The decoded image of a file, upright according to its EXIF data."""
    if path.stat().st_size == 0:
        raise OSError("the file is empty")
    return open_picture(path)


@DATASETS.register
def digits() -> Source:
    """1,797 handwritten digits, 8 x 8; the grey values 0 to 16 become 0 to 255."""
    labels = [str(target) for target in _load_digits().target]
    rows = range(len(labels))
    # a bare number would come back from CSV as an integer
    ids = [f"digit{row:04d}" for row in rows]
    samples = pd.DataFrame({"sample_id": ids, "label": labels, "group": "all"})
    samples["source"] = [f"sklearn.datasets.load_digits, row {row}" for row in rows]
    return Source(
        location="scikit-learn digits",
        version=f"scikit-learn {version('scikit-learn')}",
        classes=tuple("0123456789"),
        samples=samples,
        read=Reader(dict(zip(ids, rows, strict=True)), _open_digit),
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


def _open_digit(row: int) -> Image.Image:
    return Image.fromarray(np.round(_load_digits().images[row] * (255 / 16)).astype(np.uint8))

"""What a dataset hands over before its images are checked and its splits drawn, and the registry of
all datasets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd
from PIL import Image

from vitlab.registry import Registry

EXCLUDED_COLUMNS = ("sample_id", "source", "reason")
# the reason of images that an earlier run's table does not hold
NOT_CHOSEN = "not in the table given as samples="
# name -> function without arguments (with PATH, for a prefix) that gives a Source
DATASETS = Registry("dataset")
# name -> function that gives the version of a set that must first be downloaded
VERSIONS = Registry("dataset")
# sets made of others, PREFIX:NAME: what their version ends in
DERIVED = {"planted:": "planted 1", "shuffled:": "shuffled 1"}


@dataclass(frozen=True)
class Source:
    """A labelled image set as it lies there. Two sources are equal when they hold the same files in
    the same state.

    samples: sample_id, label, group, source, and further columns. A column `split` where the set
    comes with its own splits. strata: columns whose combinations the drawn splits keep in
    proportion. excluded: files that are left out for what they are called or where they lie, with
    EXCLUDED_COLUMNS. flip: whether an image mirrored left to right or top to bottom could be of the
    set: False for digits, text, upright objects."""

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


def split_derived(name: str) -> tuple[str, str]:
    """The prefix of a set that is made of another one, and the name of that one; an empty prefix
    for all other names.
    """
    prefix, colon, base = name.partition(":")
    return (prefix + colon, base) if prefix + colon in DERIVED else ("", name)

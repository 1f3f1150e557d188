"""What a data set provides before its images are checked and its splits drawn, and the registry of
all data sets.
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


def split_derived(name: str) -> tuple[str, str]:
    """The prefix of a set made of another one, and the other one's name; ("", name) otherwise.

    >>> split_derived("planted:digits")
    ('planted:', 'digits')
    """
    prefix, colon, base = name.partition(":")
    return (prefix + colon, base) if prefix + colon in DERIVED else ("", name)

"""A dataset by its name: labelled, checked, split."""

from __future__ import annotations

from functools import lru_cache

import pandas as pd

from vitlab.data import digits, elpv, folder, torchvision_sets  # noqa: F401  (importing them registers them)
from vitlab.data.quality import find_unreadable
from vitlab.data.sources import DATASETS, EXCLUDED_COLUMNS, OUTLINES, Outline, Source
from vitlab.data.splits import check_class_sizes, complete_splits
from vitlab.data.synthetic import drop_synthetic
from vitlab.schema import DataBundle, check_samples


def available() -> list[str]:
    """Names that load_dataset knows; one that ends in a colon wants something after it, as in folder:PATH."""
    return DATASETS.names()


def check_name(name: str) -> None:
    """Raise ValueError, naming the choices, when there is no data set of this name; nothing is read."""
    DATASETS[name]
    if name in OUTLINES:
        OUTLINES[name]()


def data_version(name: str) -> str:
    """What changes when the data changes: the version of the package it comes in, or a hash of a folder's files."""
    return OUTLINES[name]().version if name in OUTLINES else DATASETS[name]().version


def outline_dataset(name: str, seed: int = 0) -> Outline:
    """Version, number of classes and images in each split, without decoding an image and without downloading anything."""
    if name in OUTLINES:
        return OUTLINES[name]()
    source = DATASETS[name]()
    splits = complete_splits(source.samples, seed=seed, strata=source.strata)
    return Outline(source.version, len(source.classes), splits.value_counts().to_dict())


def load_dataset(name: str, *, seed: int = 0, samples: pd.DataFrame | None = None) -> DataBundle:
    """The image set of this name, with every image decoded once to see that it can be, and with splits drawn from `seed`.

    samples: the table of an earlier run instead (columns sample_id and split; other columns are taken from the data itself).
        Its rows and splits are used as they are, without checking images; what is not in it is listed in `excluded`. Rows of
        synthetic images are passed over: what comes after a training judges real ones.

    Raises ValueError for an unknown name, a folder without images, fewer than two classes, a class with fewer images than
    splits, and `samples` that do not fit the data. In a process, images that did not change are checked once.
    """
    source = DATASETS[name]()
    if samples is None:
        table, left_out = _check_and_split(source, name, seed)
    else:
        table, left_out = _adopt_splits(source, name, samples)
    further = [column for column in table.columns if column not in ("sample_id", "label", "split", "group", "source")]
    return DataBundle(
        name=name,
        classes=source.classes,
        samples=check_samples(table[["sample_id", "label", "split", "group", "source", *further]], source.classes),
        read=source.read,
        excluded=pd.concat([source.excluded, left_out], ignore_index=True),
        licence=source.licence,
        citation=source.citation,
        version=source.version,
    )


def _check_and_split(source: Source, name: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    check_class_sizes(source.samples, source.classes, name)  # before the images are decoded, and again without the unreadable
    unreadable = _find_unreadable_once(source)
    table = source.samples[~source.samples["sample_id"].isin(unreadable["sample_id"])]
    table = table.sort_values("sample_id", ignore_index=True)
    check_class_sizes(table, source.classes, f"{name} without {len(unreadable)} unreadable images" if len(unreadable) else name)
    return table.assign(split=complete_splits(table, seed=seed, strata=source.strata)), unreadable


def _adopt_splits(source: Source, name: str, samples: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    missing = [column for column in ("sample_id", "split") if column not in samples]
    if missing:
        raise ValueError(
            f"samples= for {name} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, samples.columns))}"
        )
    samples = drop_synthetic(samples)
    own = source.samples.drop(columns="split", errors="ignore")
    strange = samples["sample_id"][~samples["sample_id"].isin(own["sample_id"])]
    if len(strange):
        raise ValueError(
            f"samples= holds {len(strange)} sample_ids that {name} does not have, the first is {strange.iloc[0]!r}; "
            "was it made from other data, or did files move?"
        )
    table = samples[["sample_id", "split"]].merge(own, on="sample_id", how="left")
    rest = own[~own["sample_id"].isin(table["sample_id"])].assign(reason="not in the table given as samples=")
    return table, rest[list(EXCLUDED_COLUMNS)]


@lru_cache(maxsize=8)
def _find_unreadable_once(source: Source) -> pd.DataFrame:
    return find_unreadable(source.read, source.samples)

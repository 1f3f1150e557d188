"""A data set by its name: labelled, checked, split."""

from __future__ import annotations

import warnings
from functools import lru_cache, partial

import numpy as np
import pandas as pd

from vitlab.data import elpv, external, local, planted  # noqa: F401  (this registers them)
from vitlab.data.balance import drop_synthetic
from vitlab.data.quality import cluster_table, near_duplicate_table
from vitlab.data.reading import check_images, find_range, read_scaled
from vitlab.data.sources import (
    DATASETS,
    DERIVED,
    EXCLUDED_COLUMNS,
    VERSIONS,
    Source,
    split_derived,
)
from vitlab.data.splits import check_class_sizes, draw_splits
from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import SAMPLE_COLUMNS, SPLITS, DataBundle, check_samples

NO_GROUPS = ("sample_id", "label", "split")  # columns that cannot be split by


def available() -> list[str]:
    """Names that load_dataset knows; one that ends in a colon needs more, as in folder:PATH.

    >>> "elpv" in available()
    True
    """
    return DATASETS.names()


def check_name(name: str) -> None:
    """UserError, naming the choices, when there is no data set of this name; nothing is read."""
    DATASETS[name]
    prefix, base = split_derived(name)
    if prefix and base:
        check_name(base)
    elif name in VERSIONS:
        VERSIONS[name]()


def data_version(name: str) -> str:
    """What changes when the data changes: the version of the package, or a hash of a folder's
    files.
    """
    prefix, base = split_derived(name)
    if prefix and base:
        return f"{data_version(base)}, {DERIVED[prefix]}"
    return VERSIONS[name]() if name in VERSIONS else DATASETS[name]().version


def load_dataset(
    name: str,
    *,
    seed: int = 0,
    samples: pd.DataFrame | None = None,
    split_by: str = "",
    folds: int = 0,
    fold: int = 0,
) -> DataBundle:
    """The image set of this name, every image checked by decoding it once, with splits drawn from
    `seed`.

    >>> import vitlab
    >>> data = vitlab.load_dataset("digits", seed=0)
    >>> len(data.samples), data.classes[:3]
    (1797, ('0', '1', '2'))

    split_by: what the splits must keep together. A column such as "patient" keeps images of one
    value together; "cluster" keeps near-duplicates (by the perceptual hash of
    `near_duplicate_table`) together and adds a column `cluster`; "image" draws image by image; ""
    takes the groups of the data set (`group_column`), or single images if it has none. folds, fold:
    instead of random splits, those of number `fold` (from 0) of a cross-validation of `folds`
    parts. samples: the table of an earlier run (sample_id, split); its rows and splits are used as
    they are, without checking images and without its synthetic rows; the rest is listed in
    `excluded`.

    UserError for an unknown name, data that cannot be split, and `samples` that do not fit. In a
    process, images that did not change are checked once."""
    source = DATASETS[name]()
    if samples is None:
        split_by = split_by or _default_split(source, name)
        table, left_out = _check_and_split(source, name, seed, split_by, folds, fold)
    elif split_by or folds:
        raise UserError(
            f"samples= for {name} has its splits already; leave out split_by= and folds="
        )
    else:
        table, left_out = _adopt_splits(source, name, samples)
    further = [column for column in table if column not in SAMPLE_COLUMNS]
    columns = ["sample_id", "label", "split", "group", "source", *further]
    return DataBundle(
        name=name,
        classes=source.classes,
        samples=check_samples(table[columns], source.classes),
        # a set made of another reads scaled ones
        read=source.read if split_derived(name)[0] else partial(read_scaled, source),
        excluded=pd.concat([source.excluded, left_out], ignore_index=True),
        licence=source.licence,
        citation=source.citation,
        version=source.version,
        coarser=source.coarser,
        flip=source.flip,
        group_column=source.group_column,
        split_by=split_by,
        find_range=partial(find_range, source),
    )


def _check_and_split(
    source: Source, name: str, seed: int, split_by: str, folds: int, fold: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    # before the images are decoded, and again without the unreadable
    check_class_sizes(source.samples, source.classes, name)
    checked = check_images(source)
    if checked.deep:
        low, high = checked.value_range
        warnings.warn(
            f"{name}: {checked.deep} of {len(source.samples)} images have more than 8 bits a pixel;"
            f" their values {low:.6g} to {high:.6g}, estimated over all of them, become black to"
            " white",
            stacklevel=3,
        )
    table = _readable(source)
    reasons = checked.unreadable["reason"].value_counts()
    where = f"{name} without {reasons.sum()} images ({reasons.index[0]})" if len(reasons) else name
    check_class_sizes(table, source.classes, where)
    if split_by == "cluster":
        table = table.assign(cluster=table["sample_id"].map(_find_clusters(source)))
    by_image = split_by == "image"
    if not by_image and (split_by not in table or split_by in NO_GROUPS):
        choices = ["cluster", "image", *(column for column in table if column not in NO_GROUPS)]
        raise UserError(unknown(f"column of {name} to split by", split_by, choices))
    if not by_image and (problem := find_group_problem(table, split_by)):
        raise UserError(f"{name} cannot be split by {split_by}: {problem}; write split_by='image'")
    if folds and "split" in table:
        raise UserError(
            f"{name} comes with its own test split, which folds would mix with the rest; write"
            " folds=0"
        )
    if split_by == source.group_column and source.final and not folds:
        table["split"] = np.where(table[split_by].isin(source.final), "test", "train")
    split = draw_splits(
        table,
        seed=seed,
        strata=source.strata,
        groups=None if by_image else table[split_by].replace(source.linked),
        folds=folds,
        fold=fold,
    )
    table = table.assign(split=split)
    _check_every_split(table, source, name, f"seed={seed}, split_by={split_by!r}, folds={folds}")
    return table, checked.unreadable


def _default_split(source: Source, name: str) -> str:
    """The column to split by where none is asked for: the groups, unless the splits are given or
    groups cannot be split.
    """
    if not source.group_column or "split" in source.samples:
        return "image"
    if problem := find_group_problem(source.samples, source.group_column):
        warnings.warn(
            f"{name} is split image by image, not by {source.group_column}: {problem}", stacklevel=3
        )
        return "image"
    return source.group_column


def find_group_problem(samples: pd.DataFrame, column: str) -> str:
    """Why images cannot be split by the values of a column, "" where they can.

    >>> samples = pd.DataFrame({"label": ["x", "x", "y", "y"], "patient": ["a", "b", "c", "c"]})
    >>> find_group_problem(samples, "patient")
    "all images of the class 'y' have one patient, 'c': they cannot be in training and test"
    """
    values = samples[column]
    if values.nunique() == 1:
        return f"all images have one {column}, {values.iloc[0]!r}"
    if values.is_unique:
        return f"each image has a {column} of its own"
    for label, own in values.groupby(samples["label"]):
        if own.nunique() == 1:
            return (
                f"all images of the class {label!r} have one {column}, {own.iloc[0]!r}: they cannot"
                " be in training and test"
            )
    return ""


def _readable(source: Source) -> pd.DataFrame:
    """The samples whose images can be used, sorted by sample_id."""
    unreadable = check_images(source).unreadable["sample_id"]
    table = source.samples[~source.samples["sample_id"].isin(unreadable)]
    return table.sort_values("sample_id", ignore_index=True)


def _check_every_split(table: pd.DataFrame, source: Source, name: str, drawn: str) -> None:
    given = set(source.samples["split"]) if "split" in source.samples else set()
    for split in SPLITS:
        there = set(table["label"][table["split"] == split])
        empty = ", ".join(repr(label) for label in source.classes if label not in there)
        if empty and split in given:
            raise UserError(
                f"{name} comes with its own split {split}, which holds no readable image of the"
                f" class {empty}; add images of it to {split}, or take the class out of the other"
                " splits"
            )
        if empty:
            raise UserError(
                f"{name}, {drawn}: the split {split} gets no image of the class {empty}; try"
                " another seed, smaller groups or fewer folds"
            )


def _adopt_splits(
    source: Source, name: str, samples: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    missing = [column for column in ("sample_id", "split") if column not in samples]
    if missing:
        raise UserError(
            f"samples= for {name} lacks the columns {', '.join(missing)}; it has"
            f" {', '.join(map(str, samples.columns))}"
        )
    samples = drop_synthetic(samples)
    own = source.samples.drop(columns="split", errors="ignore")
    strange = samples["sample_id"][~samples["sample_id"].isin(own["sample_id"])]
    if len(strange):
        raise UserError(
            f"samples= holds {len(strange)} sample_ids that {name} does not have, the first is"
            f" {strange.iloc[0]!r}; was it made from other data, or did files move?"
        )
    table = samples[["sample_id", "split"]].merge(own, on="sample_id", how="left")
    rest = own[~own["sample_id"].isin(table["sample_id"])]
    rest = rest.assign(reason="not in the table given as samples=")
    return table, rest[list(EXCLUDED_COLUMNS)]


@lru_cache(maxsize=8)
def _find_clusters(source: Source) -> dict[str, str]:
    """sample_id -> cluster of all readable images of a source."""
    table = _readable(source).assign(split="train")
    images = DataBundle("", source.classes, table, partial(read_scaled, source), source.excluded)
    clusters = cluster_table(table, near_duplicate_table(images))
    return dict(zip(clusters["sample_id"], clusters["cluster"], strict=True))

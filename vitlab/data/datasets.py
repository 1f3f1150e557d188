"""A dataset by its name: labelled, checked, split."""

from __future__ import annotations

import warnings
from functools import lru_cache, partial

import pandas as pd

from vitlab.data import (  # noqa: F401  (this registers them)
    digits,
    elpv,
    folder,
    hub_sets,
    planted,
    shuffled,
    torchvision_sets,
)
from vitlab.data.clusters import cluster_table
from vitlab.data.depth import check_images, find_range, read_scaled
from vitlab.data.duplicates import near_duplicate_table
from vitlab.data.folds import split_fold
from vitlab.data.sources import (
    DATASETS,
    DERIVED,
    EXCLUDED_COLUMNS,
    NOT_CHOSEN,
    VERSIONS,
    Source,
    split_derived,
)
from vitlab.data.splits import check_class_sizes, complete_splits
from vitlab.data.synthetic import drop_synthetic
from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import SPLITS, DataBundle, check_samples


def available() -> list[str]:
    """Names that load_dataset knows; one that ends in a colon wants something after it, as in
    folder:PATH.
    """
    return DATASETS.names()


def check_name(name: str) -> None:
    """Raise ValueError, naming the choices, when there is no data set of this name; nothing is
    read.
    """
    DATASETS[name]
    prefix, base = split_derived(name)
    if prefix and base:
        check_name(base)
    elif name in VERSIONS:
        VERSIONS[name]()


def data_version(name: str) -> str:
    """What changes when the data changes: the version of the package it comes in, or a hash of a
    folder's files.
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
    """The image set of this name, with every image decoded once to see that it can be, and with
    splits drawn from `seed`.

    split_by: what must not be torn apart by the splits: "cluster" keeps near-duplicates (by
        perceptual hash, as found by `near_duplicate_table`) together, a column such as "group" all
        images of one value. Empty draws image by image. "cluster" adds a column `cluster` to the
        samples.
    folds, fold: instead of random splits, those of fold number `fold` (from 0) of a
    cross-validation of `folds` parts. samples: the table of an earlier run instead (columns
    sample_id and split; other columns are taken from the data itself).
        Its rows and splits are used as they are, without checking images; what is not in it is
        listed in `excluded`. Rows of synthetic images are passed over: what comes after a training
        judges real ones.

    Raises ValueError for an unknown name, a folder without images, fewer than two classes, a class
    with fewer images than splits, groups or folds that leave a class out of a split, and `samples`
    that do not fit the data. In a process, images that did not change are checked once.

    >>> import vitlab
    >>> data = vitlab.load_dataset("digits", seed=0)
    >>> len(data.samples), data.classes[:3]
    (1797, ('0', '1', '2'))
    """
    source = DATASETS[name]()
    if samples is None:
        table, left_out = _check_and_split(source, name, seed, split_by, folds, fold)
    elif split_by or folds:
        raise UserError(
            f"samples= for {name} has its splits already; leave out split_by= and folds="
        )
    else:
        table, left_out = _adopt_splits(source, name, samples)
    further = [
        column
        for column in table.columns
        if column not in ("sample_id", "label", "split", "group", "source")
    ]
    return DataBundle(
        name=name,
        classes=source.classes,
        samples=check_samples(
            table[["sample_id", "label", "split", "group", "source", *further]], source.classes
        ),
        # a set made of another reads scaled ones
        read=source.read if split_derived(name)[0] else partial(read_scaled, source),
        excluded=pd.concat([source.excluded, left_out], ignore_index=True),
        licence=source.licence,
        citation=source.citation,
        version=source.version,
        coarser=source.coarser,
        flip=source.flip,
        find_range=partial(find_range, source),
    )


def _check_and_split(
    source, name, seed, split_by, folds, fold
) -> tuple[pd.DataFrame, pd.DataFrame]:
    # before the images are decoded, and again without the unreadable
    check_class_sizes(source.samples, source.classes, name)
    checked = check_images(source)
    unreadable = checked.unreadable
    if checked.deep:
        low, high = checked.value_range
        warnings.warn(
            f"{name}: {checked.deep} of {len(source.samples)} images have more than 8 bits a pixel;"
            f" their values {low:.6g} to {high:.6g}, estimated over all of them, become black to"
            " white",
            stacklevel=3,
        )
    if checked.deep_colour:
        warnings.warn(
            f"{name}: of {checked.deep_colour} colour images with 16 bits a channel, only the upper"
            " 8 bits are read; a signal of fewer bits, such as 12, becomes nearly black: save them"
            " with 8 bits a channel",
            stacklevel=3,
        )
    table = source.samples[~source.samples["sample_id"].isin(unreadable["sample_id"])]
    table = table.sort_values("sample_id", ignore_index=True)
    check_class_sizes(
        table,
        source.classes,
        f"{name} without {len(unreadable)} unreadable images" if len(unreadable) else name,
    )
    table, groups = _find_groups(table, source, name, split_by)
    if not folds:
        table = table.assign(
            split=complete_splits(table, seed=seed, strata=source.strata, groups=groups)
        )
    elif "split" in table:
        raise UserError(
            f"{name} comes with its own test split, which folds would mix with the rest; write"
            " folds=0"
        )
    else:
        table = table.assign(
            split=split_fold(table, fold, folds, seed=seed, strata=source.strata, groups=groups)
        )
    given = set(source.samples["split"]) if "split" in source.samples else set()
    _check_every_split(table, source.classes, name, given, seed, split_by, folds)
    return table, unreadable


def _find_groups(table, source, name, split_by) -> tuple[pd.DataFrame, pd.Series | None]:
    if not split_by:
        return table, None
    if split_by == "cluster":
        table = table.assign(cluster=table["sample_id"].map(_cluster_once(source)))
    if split_by not in table or split_by in ("sample_id", "label", "split"):
        choices = [
            column for column in table if column not in ("sample_id", "label", "split", "cluster")
        ]
        raise UserError(unknown(f"column of {name} to split by", split_by, ["cluster", *choices]))
    return table, table[split_by]


def _check_every_split(table, classes, name, given, seed, split_by, folds) -> None:
    counts = pd.crosstab(table["label"], table["split"]).reindex(
        index=list(classes), columns=list(SPLITS), fill_value=0
    )
    for split in SPLITS:
        empty = ", ".join(map(repr, counts.index[counts[split] == 0]))
        if empty and split in given:
            raise UserError(
                f"{name} comes with its own split {split}, which holds no readable image of the"
                f" class {empty}; add images of it to {split}, or take the class out of the other"
                " splits"
            )
        if empty:
            drawn = (
                f"seed={seed}"
                + f", split_by={split_by!r}" * bool(split_by)
                + f", folds={folds}" * bool(folds)
            )
            advice = (
                "another seed" + ", smaller groups" * bool(split_by) + ", fewer folds" * bool(folds)
            )
            raise UserError(
                f"{name}, {drawn}: the split {split} gets no image of the class {empty}; try"
                f" {advice}"
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
    rest = own[~own["sample_id"].isin(table["sample_id"])].assign(reason=NOT_CHOSEN)
    return table, rest[list(EXCLUDED_COLUMNS)]


@lru_cache(maxsize=8)
def _cluster_once(source: Source) -> dict[str, str]:
    """sample_id -> cluster of all readable images of a source."""
    unreadable = check_images(source).unreadable["sample_id"]
    table = source.samples[~source.samples["sample_id"].isin(unreadable)].sort_values(
        "sample_id", ignore_index=True
    )
    images = DataBundle(
        "",
        source.classes,
        table.assign(split="train"),
        partial(read_scaled, source),
        source.excluded,
    )
    clusters = cluster_table(images.samples, near_duplicate_table(images))
    return dict(zip(clusters["sample_id"], clusters["cluster"], strict=True))

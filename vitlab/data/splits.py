"""Splits, folds and subsets that can be drawn again: a hash of seed and sample_id decides, not the
order of files or the machine.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.schema import SPLITS

TEST_SHARE, VAL_SHARE = 0.2, 0.15  # of all samples, and of those that are then left
LIMIT = 1000  # images of a subset that is drawn to keep a training run short
RARE = 6  # images of a stratum that a subset keeps, where there are as many


def draw_splits(
    samples: pd.DataFrame,
    *,
    seed: int,
    strata: Sequence[str] = ("label",),
    groups: Sequence[str] | None = None,
    folds: int = 0,
    fold: int = 0,
) -> pd.Series:
    """The column `split`: a fifth of all samples is test, then 15% of the rest is val, each stratum
    in proportion.

    A stratum is a combination of values in the columns `strata`; one of three samples or more has
    at least one in every split. Samples keep their split when others are added, but for a few that
    rounding moves. Splits that the samples have stay; a missing val or test is drawn from train.
    With `folds`, the test split is part number `fold` of a cross-validation.

    groups: one name for each sample; samples of one name (near-duplicates, cells of one module) go
    to the same split. The test split is then that part of scikit-learn's StratifiedGroupKFold which
    comes closest to the wanted number in each stratum; validation likewise. A group of more than
    twice a split's size stays in train. UserError where a split gets none.

    >>> samples = pd.DataFrame({"sample_id": list("abcdefghij"), "label": ["x"] * 5 + ["y"] * 5})
    >>> sorted(draw_splits(samples, seed=0))
    ['test', 'test', 'train', 'train', 'train', 'train', 'train', 'train', 'val', 'val']
    """
    groups = None if groups is None else _check_groups(samples, groups)
    split = np.array(samples.get("split", ["train"] * len(samples)), dtype=object)
    given = set(split)
    if folds:
        if not 0 <= fold < folds:
            raise UserError(
                f"fold={fold} must be from 0 to {folds - 1}, as there are {folds} folds"
            )
        test = draw_folds(samples, folds, seed=seed, strata=strata, groups=groups) == fold
        split[test.to_numpy()] = "test"
    for name, share in (("test", TEST_SHARE), ("val", VAL_SHARE)):
        if name in given or (folds and name == "test"):
            continue
        rest = np.flatnonzero(split == "train")
        salt, part = f"{seed} {name}", samples.iloc[rest]
        if groups is None:
            chosen = _choose(part, share, salt, strata)
        else:
            chosen = _choose_groups(part, share, salt, strata, groups[rest], name)
        split[rest[chosen]] = name
    return pd.Series(split, index=samples.index, name="split", dtype="str")


def draw_folds(
    samples: pd.DataFrame,
    folds: int,
    *,
    seed: int,
    strata: Sequence[str] = ("label",),
    groups: np.ndarray | None = None,
) -> pd.Series:
    """The column `fold`, 0 to folds - 1, each stratum in proportion; with `groups`, all of a group
    in one fold.

    UserError where a class has fewer samples, or is in fewer groups, than there are folds."""
    if folds < 2:
        raise UserError(f"folds={folds}: cross-validation needs at least 2")
    units = samples["sample_id"].to_numpy() if groups is None else groups
    sizes = pd.Series(units).groupby(samples["label"].to_numpy()).nunique().sort_values()
    if sizes.iloc[0] < folds:
        what = "samples" if groups is None else "groups"
        raise UserError(
            f"folds={folds} is more than the {sizes.iloc[0]} {what} of the class"
            f" {sizes.index[0]!r}; write fewer"
        )
    fold = _cut_in_parts(samples, folds, f"{seed} fold", strata, groups)
    return pd.Series(fold, index=samples.index, name="fold")


def draw_subset(samples: pd.DataFrame, strata: Sequence[str] = ("label",)) -> pd.DataFrame:
    """About 1,000 of the samples in their order, or all where there are no more: strata and the
    groups in them in proportion.

    A hash of the sample_id decides. A small stratum keeps six samples, or all it has.
    """
    share = LIMIT / max(LIMIT, len(samples))
    chosen = []
    for _, part in samples.groupby(list(strata), dropna=False):
        count = max(min(RARE, len(part)), int(share * len(part)))
        mixed = part.index[order_by_hash(part, "subset", ["group"])]
        chosen += mixed[np.arange(count) * len(part) // count].tolist()
    return samples.loc[sorted(chosen)].reset_index(drop=True)


def draw_samples(samples: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """At most `count` rows drawn at random, as far as possible equally many of each class, sorted
    by class.
    """
    mixed = samples.sample(frac=1, random_state=seed)
    # first one of each class, then a second one
    turn = mixed.groupby("label").cumcount().sort_values(kind="stable")
    return mixed.loc[turn.index[:count]].sort_values("label", kind="stable")


def order_by_hash(samples: pd.DataFrame, salt: str, within: Sequence[str] = ()) -> np.ndarray:
    """Positions that bring the samples into a random order within each combination of values in the
    columns `within`.
    """
    number = [hash_number(salt, sample_id) for sample_id in samples["sample_id"]]
    return np.lexsort((number, *(samples[column].astype(str) for column in reversed(within))))


def hash_number(salt: str, name: str) -> int:
    """A number that orders names at random, the same on every machine: 52 bits, exact as a
    float.
    """
    return int(hashlib.sha256(f"{salt} {name}".encode()).hexdigest()[:13], 16)


def check_class_sizes(samples: pd.DataFrame, classes: Sequence[str], name: str) -> None:
    """UserError when there are fewer than two classes, or a class has fewer images than splits are
    to be drawn from it.
    """
    if len(classes) < 2:
        raise UserError(
            f"{name} has one class only, {classes[0]!r}; a classifier needs at least two"
        )
    given, where, drawn_from = {"train"}, "", samples
    if "split" in samples:
        given, where = set(samples["split"]), "in train "
        drawn_from = samples[samples["split"] == "train"]
    needed = 1 + len(set(SPLITS) - given)
    sizes = drawn_from["label"].value_counts().reindex(list(classes), fill_value=0)
    small = sizes[sizes < needed]
    if len(small):
        found = ", ".join(f"{label!r} has {size}" for label, size in small.items())
        raise UserError(
            f"{name}: each class needs at least {needed} readable images {where}for its splits, but"
            f" {found}"
        )


def _check_groups(samples: pd.DataFrame, groups: Sequence[str]) -> np.ndarray:
    """The groups as an array of texts; UserError where a sample has none."""
    groups = pd.Series(np.asarray(groups, dtype=object))
    if groups.isna().any():
        first = samples["sample_id"].iloc[int(groups.isna().argmax())]
        raise UserError(
            f"{groups.isna().sum()} samples have no group, the first is {first!r}; give each one of"
            " its own"
        )
    return groups.astype(str).to_numpy(dtype=object)


def _choose(samples, share, salt, strata) -> np.ndarray:
    """Boolean array: the first `share` of each stratum in the order of a hash."""
    order = pd.Series([hash_number(salt, sample_id) for sample_id in samples["sample_id"]])
    stratum = order.groupby([samples[column].to_numpy() for column in strata], dropna=False)
    size = stratum.transform("size").to_numpy()
    wanted = np.minimum(np.maximum(np.round(share * size), 1), size - 1)
    return stratum.rank(method="first").to_numpy() <= wanted


def _choose_groups(samples, share, salt, strata, groups, split) -> np.ndarray:
    """Boolean array: whole groups are cut into parts of about `share` of all samples; the part that
    is closest to it in every stratum. Groups of more than twice that size stay out.
    """
    wanted = share * len(samples)
    size = pd.Series(groups).groupby(groups).transform("size").to_numpy()
    fitting = np.flatnonzero(size <= 2 * wanted)
    if not len(fitting):
        largest = size.argmax()
        raise UserError(
            f"whole groups leave nothing for {split}: the largest of {len(set(groups))},"
            f" {groups[largest]!r}, has {size[largest]} of {len(samples)} samples; draw by smaller"
            " groups, or write split_by='image'"
        )
    stratum = samples.groupby(list(strata), dropna=False).ngroup().to_numpy()
    number = round(len(fitting) / wanted)
    part = _cut_in_parts(samples.iloc[fitting], number, salt, strata, groups[fitting])
    counts = pd.crosstab(part, stratum[fitting]).reindex(columns=range(stratum.max() + 1))
    distance = (counts.fillna(0) / (share * np.bincount(stratum)) - 1).abs().sum(axis=1)
    chosen = np.zeros(len(samples), dtype=bool)
    chosen[fitting[part == distance.idxmin()]] = True
    return chosen


def _cut_in_parts(samples, number, salt, strata, groups) -> np.ndarray:
    """The part, 0 to number - 1, of each sample, by scikit-learn over the samples (and groups) in
    the order of their hash, so that the order of rows does not matter.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    order = order_by_hash(samples, salt)
    stratum = samples.groupby(list(strata), dropna=False).ngroup().to_numpy()[order]
    # scikit-learn refuses more parts than there are groups, or samples of the largest stratum
    number = min(number, np.bincount(stratum).max(), number if groups is None else len(set(groups)))
    if number < 2:
        return np.zeros(len(samples), dtype=int)
    if groups is None:
        parts = StratifiedKFold(number).split(order, stratum)
    else:
        names = sorted(set(groups), key=lambda name: hash_number(salt, name))
        rank = {name: place for place, name in enumerate(names)}
        ranks = [rank[name] for name in groups[order]]
        # scikit-learn assigns large groups first, whatever their order: halving each stratum at
        # random changes what counts as large, so that each seed draws other parts
        half = np.array([hash_number(salt, name) % 2 for name in samples["sample_id"]])[order]
        parts = StratifiedGroupKFold(number).split(order, 2 * stratum + half, ranks)
    part = np.empty(len(samples), dtype=int)
    with warnings.catch_warnings():
        # strata may be small; `draw_folds` checks the classes
        warnings.filterwarnings("ignore", message="The least populated class")
        for place, (_, rows) in enumerate(parts):
            part[order[rows]] = place
    return part

"""Splits that anyone draws again: a hash of seed and sample_id decides, so file order, machine and
other samples do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.schema import SPLITS

TEST_SHARE, VAL_SHARE = 0.2, 0.15  # of all samples, and of those that are then left
LIMIT = 1000  # images of a subset that is drawn to keep a training short
RARE = 6  # images of a stratum that a subset keeps, where there are as many


def draw_splits(
    samples: pd.DataFrame,
    *,
    seed: int,
    test: float = TEST_SHARE,
    val: float = VAL_SHARE,
    strata: Sequence[str] = ("label",),
    groups: Sequence[str] | None = None,
) -> pd.Series:
    """The column `split`: `test` of all samples, then `val` of those that are left, each stratum in
    proportion.

    A stratum is a combination of values in the columns `strata`. One of three samples or more has
    at least one in every split. Samples keep their place when others are added or removed, but for
    the few that the rounding of a stratum moves. A share of 0 draws nothing.

    groups: one name a sample; samples of one name (near-duplicates, cells of one module) go to the
        same split. The strata then keep their proportions as nearly as whole groups let them; where
        each sample is its own group, named by its sample_id, the draw is the same as without
        groups. Raises ValueError where the groups are so large that a split gets none.
    """
    for name, share in (("test", test), ("val", val)):
        if not 0 <= share < 1:
            raise UserError(
                f"{name}={share} is no share of the samples; write a number from 0 to below 1"
            )
    groups = None if groups is None else check_groups(samples, groups)
    split = np.full(len(samples), "train")
    for name, share in (("test", test), ("val", val)):
        rest = np.flatnonzero(split == "train")
        salt, part = f"{seed} {name}", samples.iloc[rest]
        chosen = (
            _choose(part, share, salt, strata)
            if groups is None
            else _choose_groups(part, share, salt, strata, groups[rest])
        )
        if groups is not None and share and len(part) and not chosen.any():
            sizes = pd.Series(groups).value_counts()
            raise UserError(
                f"whole groups leave nothing for {name}: the largest of {len(sizes)},"
                f" {sizes.index[0]!r}, has {sizes.iloc[0]} of {len(samples)} samples; draw by"
                " smaller groups, or write split_by=''"
            )
        split[rest[chosen]] = name
    return pd.Series(split, index=samples.index, name="split", dtype="str")


def complete_splits(
    samples: pd.DataFrame,
    *,
    seed: int,
    strata: Sequence[str] = ("label",),
    groups: Sequence[str] | None = None,
) -> pd.Series:
    """The column `split` for samples that may have one: what is given stays, a missing val or test
    is drawn from train.
    """
    if "split" not in samples:
        return draw_splits(samples, seed=seed, strata=strata, groups=groups)
    given = set(samples["split"])
    missing = {name: 0.0 for name in ("test", "val") if name in given}
    own = (samples["split"] == "train").to_numpy()
    drawn = draw_splits(
        samples[own],
        seed=seed,
        strata=strata,
        groups=None if groups is None else np.asarray(groups)[own],
        **missing,
    )
    return drawn.reindex(samples.index).fillna(samples["split"])


def draw_subset(
    samples: pd.DataFrame, *, limit: int = LIMIT, strata: Sequence[str] = ("label",)
) -> pd.DataFrame:
    """About `limit` of the samples in their order, or all where there are no more: strata and the
    groups in them in proportion.

    Which ones, a hash of the sample_id decides. A small stratum keeps six samples, or all it has.
    """
    share = limit / max(limit, len(samples))
    chosen = []
    for _, part in samples.groupby(list(strata), dropna=False):
        count = max(min(RARE, len(part)), int(share * len(part)))
        mixed = part.index[order_by_hash(part, "subset", ["group"])]
        chosen += mixed[np.arange(count) * len(part) // count].tolist()
    return samples.loc[sorted(chosen)].reset_index(drop=True)


def order_by_hash(samples: pd.DataFrame, salt: str, within: Sequence[str] = ()) -> np.ndarray:
    """Positions that bring the samples into a random order within each combination of values in the
    columns `within`.
    """
    number = [hash_number(salt, sample_id) for sample_id in samples["sample_id"]]
    return np.lexsort((number, *(samples[column].astype(str) for column in reversed(within))))


def check_groups(samples: pd.DataFrame, groups: Sequence[str]) -> np.ndarray:
    """The groups as an array of texts, or ValueError where there is not one name for each
    sample.
    """
    groups = pd.Series(np.asarray(groups, dtype=object))
    if len(groups) != len(samples):
        raise UserError(
            f"{len(groups)} groups do not fit {len(samples)} samples; there must be one for each"
        )
    if groups.isna().any():
        first = samples["sample_id"].iloc[int(groups.isna().argmax())]
        raise UserError(
            f"{groups.isna().sum()} samples have no group, the first is {first!r}; give each one of"
            " its own"
        )
    return groups.astype(str).to_numpy(dtype=object)


def check_class_sizes(samples: pd.DataFrame, classes: Sequence[str], name: str) -> None:
    """ValueError when there are fewer than two classes, or a class has fewer images than splits are
    to be drawn from it.
    """
    if len(classes) < 2:
        raise UserError(
            f"{name} has one class only, {classes[0]!r}; a classifier needs at least two"
        )
    given = set(samples["split"]) if "split" in samples else {"train"}
    drawn_from = samples[samples["split"] == "train"] if "split" in samples else samples
    needed = 1 + len(set(SPLITS) - given)
    sizes = drawn_from["label"].value_counts().reindex(list(classes), fill_value=0)
    small = sizes[sizes < needed]
    if len(small):
        found = ", ".join(f"{label!r} has {size}" for label, size in small.items())
        where = "in train " if "split" in samples else ""
        raise UserError(
            f"{name}: each class needs at least {needed} readable images {where}for its splits, but"
            f" {found}"
        )


def _choose(samples, share, salt, strata):
    """Boolean array: the first `share` of each stratum in the order of a hash of salt and
    sample_id.
    """
    order = pd.Series([hash_number(salt, sample_id) for sample_id in samples["sample_id"]])
    stratum = order.groupby([samples[column].to_numpy() for column in strata], dropna=False)
    return stratum.rank(method="first").to_numpy() <= _count_wanted(
        share, stratum.transform("size").to_numpy()
    )


def _choose_groups(samples, share, salt, strata, groups):
    """Boolean array: in the order of their hash, groups are taken whole as long as that brings the
    strata nearer to `share`.

    A stratum that would go empty takes the group that brings it least too many, of groups up to
    twice the whole share."""
    names, group = np.unique(groups, return_inverse=True)
    stratum = samples.groupby(list(strata), dropna=False).ngroup().to_numpy()
    wanted = _count_wanted(share, np.bincount(stratum))
    lacking = wanted.copy()  # still wanted of each stratum; below 0 where there are too many
    members = pd.Series(np.arange(len(samples))).groupby(group).indices
    counts = {
        number: np.unique(stratum[rows], return_counts=True) for number, rows in members.items()
    }
    order = sorted(range(len(names)), key=lambda number: hash_number(salt, names[number]))
    taken = np.zeros(len(names), dtype=bool)

    def gain(number):
        held, count = counts[number]
        return np.abs(lacking[held]).sum() - np.abs(lacking[held] - count).sum()

    def take(number):
        held, count = counts[number]
        taken[number] = True
        lacking[held] -= count

    for number in order:
        if gain(number) > 0:
            take(number)
    for empty in np.flatnonzero(wanted > 0):
        if lacking[empty] == wanted[empty]:
            fitting = [
                n for n in order if empty in counts[n][0] and len(members[n]) <= 2 * wanted.sum()
            ]
            if fitting:
                take(max(fitting, key=gain))
    return taken[group]


def _count_wanted(share, size):
    return (
        np.minimum(np.maximum(np.round(share * size), 1), size - 1)
        if share
        else np.zeros(len(size))
    )


def hash_number(salt: str, name: str) -> int:
    """A number that orders names at random, the same on every machine: 52 bits, exact as a
    float.
    """
    return int(hashlib.sha256(f"{salt} {name}".encode()).hexdigest()[:13], 16)

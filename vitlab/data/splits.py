"""Splits that anyone draws again: a hash of seed and sample_id decides, so file order, machine and other samples do not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.schema import SPLITS

TEST_SHARE, VAL_SHARE = 0.2, 0.15  # of all samples, and of those that are then left


def draw_splits(
    samples: pd.DataFrame, *, seed: int, test: float = TEST_SHARE, val: float = VAL_SHARE, strata: Sequence[str] = ("label",)
) -> pd.Series:
    """The column `split`: `test` of all samples, then `val` of those that are left, each stratum in proportion.

    A stratum is a combination of values in the columns `strata`. One of three samples or more has at least one in every split.
    Samples keep their place when others are added or removed, but for the few that the rounding of a stratum moves.
    A share of 0 draws nothing.
    """
    for name, share in (("test", test), ("val", val)):
        if not 0 <= share < 1:
            raise ValueError(f"{name}={share} is no share of the samples; write a number from 0 to below 1")
    split = np.full(len(samples), "train")
    for name, share in (("test", test), ("val", val)):
        rest = np.flatnonzero(split == "train")
        split[rest[_choose(samples.iloc[rest], share, f"{seed} {name}", strata)]] = name
    return pd.Series(split, index=samples.index, name="split", dtype="str")


def complete_splits(samples: pd.DataFrame, *, seed: int, strata: Sequence[str] = ("label",)) -> pd.Series:
    """The column `split` for samples that may have one: what is given stays, a missing val or test is drawn from train."""
    if "split" not in samples:
        return draw_splits(samples, seed=seed, strata=strata)
    given = set(samples["split"])
    missing = {name: 0.0 for name in ("test", "val") if name in given}
    train = samples[samples["split"] == "train"]
    return draw_splits(train, seed=seed, strata=strata, **missing).reindex(samples.index).fillna(samples["split"])


def check_class_sizes(samples: pd.DataFrame, classes: Sequence[str], name: str) -> None:
    """ValueError when there are fewer than two classes, or a class has fewer images than splits are to be drawn from it."""
    if len(classes) < 2:
        raise ValueError(f"{name} has one class only, {classes[0]!r}; a classifier needs at least two")
    given = set(samples["split"]) if "split" in samples else {"train"}
    drawn_from = samples[samples["split"] == "train"] if "split" in samples else samples
    needed = 1 + len(set(SPLITS) - given)
    sizes = drawn_from["label"].value_counts().reindex(list(classes), fill_value=0)
    small = sizes[sizes < needed]
    if len(small):
        found = ", ".join(f"{label!r} has {size}" for label, size in small.items())
        where = "in train " if "split" in samples else ""
        raise ValueError(f"{name}: each class needs at least {needed} readable images {where}for its splits, but {found}")


def _choose(samples, share, salt, strata):
    """Boolean array: the first `share` of each stratum in the order of a hash of salt and sample_id."""
    digests = [hashlib.sha256(f"{salt} {sample_id}".encode()).hexdigest() for sample_id in samples["sample_id"]]
    order = pd.Series([int(digest[:13], 16) for digest in digests])  # 52 bits: exact as a float
    stratum = order.groupby([samples[column].to_numpy() for column in strata], dropna=False)
    size = stratum.transform("size").to_numpy()
    number = np.minimum(np.maximum(np.round(share * size), 1), size - 1) if share else np.zeros(len(size))
    return stratum.rank(method="first").to_numpy() <= number

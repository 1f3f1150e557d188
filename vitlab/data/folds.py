"""Folds for cross-validation: every image is in the test split of exactly one fold."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.data.splits import VAL_SHARE, check_groups, draw_splits, hash_number
from vitlab.errors import UserError


def draw_folds(
    samples: pd.DataFrame,
    folds: int = 5,
    *,
    seed: int,
    strata: Sequence[str] = ("label",),
    groups: Sequence[str] | None = None,
) -> pd.Series:
    """The column `fold`, 0 to folds - 1, each stratum in proportion; with `groups`, all of a group
    in one fold.

    scikit-learn's StratifiedKFold or StratifiedGroupKFold over the samples in the order of a hash
    of seed and sample_id (of the group), so the order of the rows does not matter. Raises
    ValueError where a class has fewer samples, or is in fewer groups, than there are folds."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    groups = None if groups is None else check_groups(samples, groups)
    _check_folds(samples, folds, groups)
    salt = f"{seed} fold"
    order = np.argsort(
        [hash_number(salt, sample_id) for sample_id in samples["sample_id"]], kind="stable"
    )
    stratum = samples.groupby(list(strata), dropna=False).ngroup().to_numpy()[order]
    if groups is None:
        parts = StratifiedKFold(folds).split(order, stratum)
    else:
        rank = {
            name: place
            for place, name in enumerate(
                sorted(set(groups), key=lambda name: hash_number(salt, name))
            )
        }
        parts = StratifiedGroupKFold(folds).split(
            order, stratum, [rank[name] for name in groups[order]]
        )
    fold = np.empty(len(samples), dtype=int)
    with warnings.catch_warnings():
        # a stratum may be; classes are checked above
        warnings.filterwarnings("ignore", message="The least populated class")
        for number, (_, rows) in enumerate(parts):
            fold[order[rows]] = number
    return pd.Series(fold, index=samples.index, name="fold")


def split_fold(
    samples: pd.DataFrame,
    fold: int,
    folds: int = 5,
    *,
    seed: int,
    strata: Sequence[str] = ("label",),
    groups: Sequence[str] | None = None,
) -> pd.Series:
    """The column `split` of one fold: that fold is the test split, and validation is drawn from the
    others as always.
    """
    if not 0 <= fold < folds:
        raise UserError(
            f"fold={fold} is none of {folds} folds; they are counted from 0 to {folds - 1}"
        )
    is_test = (
        draw_folds(samples, folds, seed=seed, strata=strata, groups=groups) == fold
    ).to_numpy()
    rest = None if groups is None else np.asarray(groups, dtype=object)[~is_test]
    drawn = draw_splits(
        samples[~is_test], seed=seed, test=0, val=VAL_SHARE, strata=strata, groups=rest
    )
    return drawn.reindex(samples.index).fillna("test").rename("split")


def _check_folds(samples, folds, groups):
    if folds < 2:
        raise UserError(f"folds={folds}: cross-validation needs at least 2")
    label = samples["label"].to_numpy()
    units = samples["sample_id"].to_numpy() if groups is None else groups
    sizes = pd.Series(units).groupby(label).nunique().sort_values(kind="stable")
    if len(sizes) and sizes.iloc[0] < folds:
        what = "samples" if groups is None else "groups"
        raise UserError(
            f"folds={folds} is more than the {sizes.iloc[0]} {what} of the class"
            f" {sizes.index[0]!r}; write fewer"
        )

"""Class imbalance in numbers: which classes are rare, and weights that let them count more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.registry import unknown

SCHEMES = ("none", "balanced", "effective")


def class_weights(
    labels: Sequence[str], classes: Sequence[str], scheme: str = "balanced", beta: float = 0.999
) -> np.ndarray:
    """One weight a class, in the order of `classes`; a sample weighs 1 on average.

    balanced: the inverse of a class's number of samples, so that all classes weigh the same in sum
    (scikit-learn's "balanced"). effective: the inverse of its effective number of samples, (1 -
    beta^n) / (1 - beta) (arXiv 1901.05555): a further sample
        counts for less the more there are, so frequent classes are held back less. beta 0 is no
        weights; beta towards 1 is balanced. none: all ones.

    Raises ValueError when a class has no label or a label is none of the classes.
    """
    if scheme not in SCHEMES:
        raise UserError(unknown("class weights", scheme, list(SCHEMES)))
    if not 0 <= beta < 1:
        raise UserError(
            f"beta of the effective number must be from 0 to below 1, such as 0.999; it is {beta}"
        )
    counts = count_classes(labels, classes)
    if scheme == "none":
        return np.ones(len(classes))
    effective = counts if scheme == "balanced" else (1 - beta**counts) / (1 - beta)
    return (1 / effective) * counts.sum() / (counts / effective).sum()


def draw_samples(samples: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """At most `count` rows drawn at random, as far as possible equally many of each class, in the
    order of the class names.
    """
    mixed = samples.sample(frac=1, random_state=seed)
    # first one of each class, then a second one
    turn = mixed.groupby("label").cumcount().sort_values(kind="stable")
    return mixed.loc[turn.index[:count]].sort_values("label", kind="stable")


def rare_classes(labels: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The classes with fewer samples than an equal share of them, in the order of `classes`."""
    counts = count_classes(labels, classes)
    return [
        name
        for name, count in zip(classes, counts, strict=True)
        if count * len(classes) < counts.sum()
    ]


def count_classes(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Samples of each class, in the order of `classes`. ValueError when one has none or a label is
    none of the classes.
    """
    labels = np.asarray(labels).astype(str)
    absent, strange = sorted(set(classes) - set(labels)), sorted(set(labels) - set(classes))
    if absent or strange:
        problem = (
            f"no label of the classes {', '.join(absent)}"
            if absent
            else f"labels outside the classes: {', '.join(strange)}"
        )
        raise UserError(f"no weights for {', '.join(classes)}: there are {problem}")
    return np.array([(labels == name).sum() for name in classes])

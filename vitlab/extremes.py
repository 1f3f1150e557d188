"""Of many classes, groups or models, show those with the lowest and the highest values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

MAX_SHOWN = 12  # classes, groups or models that one figure or table names
# classes with a curve each in one panel; of more, the mean, the range and the extremes
MAX_LINES = 5
MAX_PANELS = 8  # panels of a figure that has one for each group


def find_extremes(values: Sequence[float], most: int = MAX_SHOWN) -> np.ndarray:
    """The positions to show: all in their order if there are at most `most`, else half of them with
    the lowest and half with the highest values. NaN is shown only if there are too few others.
    """
    order = np.argsort(np.asarray(values, float), kind="stable")  # NaN comes last
    if len(order) <= most:
        return np.arange(len(order))
    known = int(np.isfinite(np.asarray(values, float)).sum())
    order = order[: max(known, most)]
    return np.concatenate([order[: most - most // 2], order[len(order) - most // 2 :]])


def keep_extremes(table: pd.DataFrame, by: str, most: int = MAX_SHOWN) -> pd.DataFrame:
    """The rows with the lowest and then the highest values in the column `by`."""
    return table.iloc[find_extremes(table[by], most)]


def describe_cut(shown: int, total: int, what: str = "classes", by: str = "value") -> str:
    """A note such as "12 of 100 classes: lowest and highest recall"; empty where all are shown."""
    return f"{shown} of {total:,} {what}: lowest and highest {by}" if shown < total else ""


def find_best(values: pd.Series, most: int = MAX_SHOWN) -> list:
    """The names (index) of the highest values, in the order in which they come; all where there are
    at most `most`.

    >>> find_best(pd.Series({"a": 0.7, "b": 0.9, "c": 0.8}), most=2)
    ['b', 'c']
    """
    best = set(values.sort_values(ascending=False, kind="stable").index[:most])
    return [name for name in values.index if name in best]


def describe_best(shown: int, total: int, by: str, what: str = "models") -> str:
    """A note such as "the best 12 of 40 models by accuracy"; empty where all are shown."""
    return f"the best {shown} of {total:,} {what} by {by}" if shown < total else ""

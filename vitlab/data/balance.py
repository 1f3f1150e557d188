"""Weights against class imbalance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.utils.class_weight import compute_class_weight


def class_weights(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """One weight a class, in the order of `classes`: all classes weigh the same in sum, a sample weighs 1 on average.

    Raises ValueError when a class has no label or a label is none of the classes.
    """
    labels = np.asarray(labels).astype(str)
    absent, strange = sorted(set(classes) - set(labels)), sorted(set(labels) - set(classes))
    if absent or strange:
        problem = (
            f"no label of the classes {', '.join(absent)}" if absent else f"labels outside the classes: {', '.join(strange)}"
        )
        raise ValueError(f"no weights for {', '.join(classes)}: there are {problem}")
    return compute_class_weight("balanced", classes=np.asarray(classes), y=labels)

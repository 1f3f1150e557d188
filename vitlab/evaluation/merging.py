"""Predictions of a coarser task: the grades of a defect, say, merged into defective or not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.schema import check_predictions


def merge_classes(predictions: pd.DataFrame, coarse: Mapping[str, str]) -> pd.DataFrame:
    """The predictions table of the coarser task: probabilities of merged classes are added up, the
    largest sum is the prediction.

    coarse: the coarse class of each class; coarse classes come in the order in which the classes
    first name them. Their logits are log-sum-exp of the logits merged, so that softmax of them is
    the sums. Raises ValueError for a class without a coarse one, a class that does not exist, and
    fewer than two coarse classes."""
    classes = check_predictions(predictions)
    absent, strange = (
        [name for name in classes if name not in coarse],
        [name for name in coarse if name not in classes],
    )
    if absent or strange:
        problem = (
            f"no coarse class for {', '.join(absent)}"
            if absent
            else f"unknown classes {', '.join(strange)}"
        )
        raise UserError(f"cannot merge the classes {', '.join(classes)}: {problem}")
    names = list(dict.fromkeys(coarse[name] for name in classes))
    if len(names) < 2:
        raise UserError(f"merging leaves one class, {names[0]!r}; at least two are needed")
    merged = predictions[
        [name for name in predictions.columns if not name.startswith(("logit_", "prob_"))]
    ].copy()
    members = {name: [fine for fine in classes if coarse[fine] == name] for name in names}
    for name, fine in members.items():
        merged[f"logit_{name}"] = np.logaddexp.reduce(
            predictions[[f"logit_{one}" for one in fine]].to_numpy(float), axis=1
        )
    for name, fine in members.items():
        merged[f"prob_{name}"] = predictions[[f"prob_{one}" for one in fine]].sum(axis=1)
    merged["label"] = predictions["label"].astype(str).map(coarse)
    merged["pred"] = np.array(names)[
        merged[[f"prob_{name}" for name in names]].to_numpy().argmax(axis=1)
    ]
    return merged

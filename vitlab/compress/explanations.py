"""Does the compressed model still look where the full one looks? Rank correlations of their maps.

A model may keep its accuracy and decide by something else. Maps of different images have much in
common too, so the correlation of those is given beside each number: only more than that is evidence
that the model still looks at the same places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from vitlab.errors import UserError
from vitlab.evaluation.inference import mean_interval
from vitlab.explain.methods import explain
from vitlab.explain.similarity import compare_maps
from vitlab.schema import ModelBundle


def explanation_shift_table(
    networks: Mapping[str, ModelBundle], images: torch.Tensor, names: Sequence[str]
) -> pd.DataFrame:
    """Rank correlation of the maps of each network with those of the first one, for the class that
    the first one predicts: means over the images with 95 % t intervals.

    images: (N, 3, h, w), normalised. names: of explanation methods. Columns model, method, value,
    low, high, n, other: the mean correlation of the first network's maps of different images (of
    absolute values). Without a second network the table is empty. ValueError where classes differ,
    or a method cannot explain one of the networks."""
    first, *others = networks
    model = networks[first]
    rows = []
    for method in names:
        before = explain(model, images, method)
        for name in others:
            if tuple(networks[name].classes) != tuple(model.classes):
                raise UserError(
                    f"{first} and {name} have different classes; compare two models of the same"
                    " classes"
                )
            after = explain(networks[name], images, method, before.target)
            table = compare_maps(model, before, after)
            found = mean_interval(table[["similarity"]].to_numpy(float), limits=(-1, 1))
            value, low, high, n = (float(part[0]) for part in found)
            row = {"model": name, "method": method, "value": value, "low": low, "high": high}
            rows.append({**row, "n": int(n), "other": table["other_image"].mean()})
    columns = ["model", "method", "value", "low", "high", "n", "other"]
    return pd.DataFrame(rows, columns=columns)


def describe_shifts(table: pd.DataFrame) -> str:
    """Sentences on an `explanation_shift_table`: which maps are shown to be more alike than maps of
    different images.
    """
    if table.empty:
        return "There is no smaller network whose maps could be compared."
    shown, not_shown = [], []
    for row in table.itertuples():
        name = f"{row.method.replace('_', ' ')} of *{row.model}*"
        (shown if row.low > row.other else not_shown).append(name)
    sentences = []
    if shown:
        sentences.append(f"More alike than maps of different images: {', '.join(shown)}.")
    if not_shown:
        sentences.append(f"Not shown to be more alike than those: {', '.join(not_shown)}.")
    return " ".join(sentences)

"""How the score falls as more of a model is pruned or merged: many variants of it on the same
images, none of them trained again.

Variants of one model differ in their transformer blocks alone. What lies before the blocks is
computed once for all of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import pandas as pd
import torch
from torch import nn

from vitlab.compress.cost import count_cost, count_multiply_adds
from vitlab.compress.latency import latency_table
from vitlab.compress.pruning import plan_pruning, prune
from vitlab.compress.sides import Side, predict_sides
from vitlab.compress.tokens import count_tokens, make_image, merge_tokens
from vitlab.errors import UserError
from vitlab.evaluation import metrics_table
from vitlab.models import split_stages
from vitlab.models.anatomy import evaluating
from vitlab.schema import DataBundle, ModelBundle

KEEPS = (0.6, 0.2)  # of the cost of the blocks
NUMBERS = (0, 8, 32)  # of tokens merged in a block
METRIC = "balanced_accuracy"


def pruning_curve_table(
    model: ModelBundle,
    data: DataBundle,
    importance: Mapping[str, pd.DataFrame],
    keeps: Sequence[float] = KEEPS,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One-shot pruning without recovery: the score on the validation split for each share kept, by
    each importance.

    importance: tables of `importance_table` by name. keeps: shares of the blocks' multiply-adds,
    each between 0 and 1; the model itself comes first, with keep 1. Columns: importance, keep,
    multiply_adds and parameters (shares of the whole model that are left), metric, value, low, high
    (95 %, bootstrap over the images), n. All variants are in memory at a time. ValueError, before
    any image is read, for a share that cannot be reached."""
    _check(data, keeps, "keeps")
    variants: dict[Hashable, ModelBundle] = {"full": model}
    for name, table in importance.items():
        for keep in keeps:
            variants[name, keep] = prune(
                model, plan_pruning(model, table, keep, "multiply_adds", of="blocks")
            )
    scores = _score(model, variants, data, replicates, seed)
    whole = {count: count_cost(model, count) for count in ("multiply_adds", "parameters")}
    rows = []
    for name in importance:
        for keep in (1.0, *keeps):
            variant = "full" if keep == 1 else (name, keep)
            left = {
                count: count_cost(variants[variant], count) / total
                for count, total in whole.items()
            }
            rows.append({"importance": name, "keep": keep, **left, **scores[variant]})
    return pd.DataFrame(rows)


def merging_curve_table(
    model: ModelBundle,
    data: DataBundle,
    numbers: Sequence[int] = NUMBERS,
    *,
    repeats: int = 20,
    threads: int | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Token merging: the score on the validation split and the time of one image in PyTorch, by
    tokens merged in a block.

    numbers: r of `merge_tokens`; 0, the model itself, comes first whether it is among them or not.
    Columns: merged, tokens (that the last block takes in), multiply_adds (share left), metric,
    value, low, high (95 %, bootstrap over the images), n, and those of `latency_table` from
    batch_size on, ratios being to the model itself."""
    _check(data, numbers, "numbers")
    numbers = list(dict.fromkeys((0, *numbers)))
    variants: dict[Hashable, ModelBundle] = {
        r: merge_tokens(model, r) if r else model for r in numbers
    }
    scores = _score(model, variants, data, replicates, seed)
    noise = make_image(model).cpu().numpy()
    latency = latency_table(
        {str(r): variants[r] for r in numbers}, noise, (1,), repeats, threads, seed=seed
    ).drop(columns="side")
    whole = count_multiply_adds(model)
    rows = [
        {
            "merged": r,
            "tokens": count_tokens(one)[-1],
            "multiply_adds": count_multiply_adds(one) / whole,
            **scores[r],
        }
        for r, one in variants.items()
    ]
    return pd.concat([pd.DataFrame(rows), latency], axis=1)


class _SharedFront:
    """Sides of several variants: the stages before the blocks run once for each batch, those behind
    in each variant.
    """

    def __init__(self, model: ModelBundle):
        self.front, _ = _cut(model)
        self.weight = next(model.module.parameters())
        self.pixels: np.ndarray | None = None

    def make_side(self, variant: ModelBundle) -> Side:
        _, rest = _cut(variant)

        def compute(pixels: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                if self.pixels is not pixels:
                    self.pixels = pixels
                    self.tokens = self.front(
                        torch.as_tensor(pixels).to(self.weight.device, self.weight.dtype)
                    )
                return rest(self.tokens).float().cpu().numpy()

        return compute


def _cut(model: ModelBundle) -> tuple[nn.Sequential, nn.Sequential]:
    chain = split_stages(model.module)
    first = [name for name, _ in chain].index("block0")
    before, behind = (
        nn.Sequential(*(stage for _, stage in part)) for part in (chain[:first], chain[first:])
    )
    return before, behind


def _score(model, variants, data, replicates, seed) -> dict[Hashable, dict]:
    with ExitStack() as stack:
        for variant in (model, *variants.values()):
            stack.enter_context(evaluating(variant.module))
        shared = _SharedFront(model)
        sides = {name: shared.make_side(variant) for name, variant in variants.items()}
        predictions = predict_sides(sides, data, model.transform, ("val",))
    found = {}
    for name, table in predictions.items():
        row = (
            metrics_table(table, split="val", replicates=replicates).set_index("metric").loc[METRIC]
        )
        found[name] = {
            "metric": METRIC,
            "value": row["value"],
            "low": row["low"],
            "high": row["high"],
            "n": len(table),
        }
    return found


def _check(data, values, name) -> None:
    if data.split("val").empty:
        raise UserError(
            f"{data.name} has no images in the split 'val', on which variants are compared"
        )
    if not len(values):
        raise UserError(f"{name} is empty, and there would be no curve; give at least one")

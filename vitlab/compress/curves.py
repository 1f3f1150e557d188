"""How the score falls as more of a model is pruned or merged: many variants of it on the same images, none of them trained again.

Variants of one model differ in their transformer blocks alone. What lies before the blocks is computed once for all of them.
"""

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
from vitlab.evaluation.metrics import METRICS
from vitlab.models import pieces
from vitlab.models.anatomy import evaluating
from vitlab.registry import unknown
from vitlab.schema import DataBundle, ModelBundle

KEEPS = (0.8, 0.6, 0.4, 0.2)  # of the cost of the blocks
NUMBERS = (0, 8, 16, 32)  # of tokens merged in a block


def pruning_curve_table(
    model: ModelBundle,
    data: DataBundle,
    importance: pd.DataFrame | Mapping[str, pd.DataFrame],
    keeps: Sequence[float] = KEEPS,
    *,
    by: str = "multiply_adds",
    split: str = "val",
    metric: str = "balanced_accuracy",
    replicates: int = 1000,
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """One-shot pruning without recovery: the score for each share kept, by each importance.

    importance: a table of `importance_table`, or several by name. keeps: shares of the blocks' cost, counted `by` multiply_adds
    or parameters, each between 0 and 1; the model itself comes first, with keep 1. options: of `plan_pruning`.
    Columns: importance, keep, multiply_adds and parameters (shares of the whole model that are left), metric, value, low, high
    (95 %, bootstrap over the images), n. All variants are in memory at a time. ValueError, before any image is read, for a share
    that cannot be reached.
    """
    tables = importance if isinstance(importance, Mapping) else {_name(importance): importance}
    _check(data, split, metric, tables, "importance")
    _check(data, split, metric, keeps, "keeps")
    if by == "latency":
        raise UserError("by='latency': what is kept is counted here; write multiply_adds or parameters")
    variants: dict[Hashable, ModelBundle] = {"full": model}
    for name, table in tables.items():
        for keep in keeps:
            variants[name, keep] = prune(model, plan_pruning(model, table, keep, by, of="blocks", **options))
    scores = _judge(model, variants, data, split, metric, replicates, seed)
    whole = {count: count_cost(model, count) for count in ("multiply_adds", "parameters")}
    rows = []
    for name in tables:
        for keep in (1.0, *keeps):
            variant = "full" if keep == 1 else (name, keep)
            left = {count: count_cost(variants[variant], count) / total for count, total in whole.items()}
            rows.append({"importance": name, "keep": keep, **left, **scores[variant]})
    return pd.DataFrame(rows)


def merging_curve_table(
    model: ModelBundle,
    data: DataBundle,
    numbers: Sequence[int] = NUMBERS,
    *,
    split: str = "val",
    metric: str = "balanced_accuracy",
    repeats: int = 20,
    threads: int | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Token merging: the score and the time of one image in PyTorch, for each number of tokens merged in a block.

    numbers: r of `merge_tokens`; 0, the model itself, comes first whether it is among them or not. Columns: merged, tokens (that
    the last block takes in), multiply_adds (share left), metric, value, low, high (95 %, bootstrap over the images), n, and those
    of `latency_table` from batch_size on, ratios being to the model itself.
    """
    _check(data, split, metric, numbers, "numbers")
    numbers = list(dict.fromkeys((0, *numbers)))
    variants: dict[Hashable, ModelBundle] = {r: merge_tokens(model, r) if r else model for r in numbers}
    scores = _judge(model, variants, data, split, metric, replicates, seed)
    noise = make_image(model).cpu().numpy()
    latency = latency_table({str(r): variants[r] for r in numbers}, noise, (1,), repeats, threads, seed=seed).drop(columns="side")
    whole = count_multiply_adds(model)
    rows = [
        {"merged": r, "tokens": count_tokens(one)[-1], "multiply_adds": count_multiply_adds(one) / whole, **scores[r]}
        for r, one in variants.items()
    ]
    return pd.concat([pd.DataFrame(rows), latency], axis=1)


class _SharedFront:
    """Sides of several variants: the pieces before the blocks run once for each batch, those behind in each variant."""

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
                    self.tokens = self.front(torch.as_tensor(pixels).to(self.weight.device, self.weight.dtype))
                return rest(self.tokens).float().cpu().numpy()

        return compute


def _cut(model: ModelBundle) -> tuple[nn.Sequential, nn.Sequential]:
    chain = pieces(model.module)
    first = [name for name, _ in chain].index("block0")
    before, behind = (nn.Sequential(*(piece for _, piece in part)) for part in (chain[:first], chain[first:]))
    return before, behind


def _judge(model, variants, data, split, metric, replicates, seed) -> dict[Hashable, dict]:
    with ExitStack() as stack:
        for variant in (model, *variants.values()):
            stack.enter_context(evaluating(variant.module))
        shared = _SharedFront(model)
        sides = {name: shared.make_side(variant) for name, variant in variants.items()}
        predictions = predict_sides(sides, data, model.transform, (split,))
    found = {}
    for name, table in predictions.items():
        row = metrics_table(table, split=split, replicates=replicates, seed=seed).set_index("metric").loc[metric]
        found[name] = {"metric": metric, "value": row["value"], "low": row["low"], "high": row["high"], "n": len(table)}
    return found


def _check(data, split, metric, values, name) -> None:
    if metric not in METRICS:
        raise UserError(unknown("metric", metric, list(METRICS)))
    if data.split(split).empty:
        raise UserError(f"{data.name} has no images in the split {split!r}; take one that has some, such as val")
    if not len(values):
        raise UserError(f"{name} is empty, and there would be no curve; give at least one")


def _name(importance: pd.DataFrame) -> str:
    return str(importance["measure"].iloc[0]) if len(importance) else "importance"

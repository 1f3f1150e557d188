"""The score as more of a model is pruned or merged: several variants on the same images, without
further training.

Variants of a model differ only in their transformer blocks. The part before the blocks is computed
once for all of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import pandas as pd
import torch
from torch import nn

from vitlab.compress.latency import latency_table
from vitlab.compress.merging import count_multiply_adds, make_image, merge_tokens
from vitlab.compress.pruning import plan_pruning, prune
from vitlab.compress.variants import Predictor, predict_variants
from vitlab.errors import UserError
from vitlab.evaluation import metrics_table
from vitlab.models import split_stages
from vitlab.models.anatomy import evaluating
from vitlab.schema import DataBundle, ModelBundle

KEEPS = (0.6, 0.2)  # of the parameters of the blocks
MERGED = (0, 8, 32)  # tokens merged in a block
METRIC = "balanced_accuracy"


def pruning_curve_table(
    model: ModelBundle,
    data: DataBundle,
    importance: Mapping[str, pd.DataFrame],
    keeps: Sequence[float] = KEEPS,
    *,
    replicates: int = 1000,
) -> pd.DataFrame:
    """The score on the validation split after one-shot pruning without recovery, for each share
    kept and each importance.

    importance: tables of `part_importance_table` by name. keeps: shares of the blocks' parameters,
    each between 0 and 1; the model itself comes first, with keep 1. Columns: importance, keep,
    multiply_adds (share of the whole model), metric, value, low, high (95 %, bootstrap over the
    images). ValueError, before any image is read, for a share that cannot be reached."""
    _check(data, keeps, "keeps")
    variants: dict[Hashable, ModelBundle] = {"full": model}
    for name, table in importance.items():
        for keep in keeps:
            variants[name, keep] = prune(model, plan_pruning(model, table, keep))
    scores = _score(model, variants, data, replicates)
    rows = []
    for name in importance:
        for keep in (1.0, *keeps):
            scored = scores["full" if keep == 1 else (name, keep)]
            rows.append({"importance": name, "keep": keep, **scored})
    return pd.DataFrame(rows)


def merging_curve_table(
    model: ModelBundle,
    data: DataBundle,
    numbers: Sequence[int] = MERGED,
    *,
    repeats: int = 20,
    threads: int | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Token merging: the score on the validation split and the time for one image in PyTorch, by
    the number of tokens merged in a block.

    numbers: r of `merge_tokens`; 0, the model itself, comes first whether it is among them or not.
    Columns: merged, multiply_adds (share of the whole model), metric, value, low, high (95 %,
    bootstrap over the images), and those of `latency_table` from batch_size on, with ratios to the
    model itself."""
    _check(data, numbers, "numbers")
    numbers = list(dict.fromkeys((0, *numbers)))
    variants = {r: merge_tokens(model, r) if r else model for r in numbers}
    scores = _score(model, variants, data, replicates)
    noise = make_image(model).cpu().numpy()
    timed = {str(r): variant for r, variant in variants.items()}
    latency = latency_table(timed, noise, (1,), repeats, threads, seed=seed)
    table = pd.DataFrame([{"merged": r, **scored} for r, scored in scores.items()])
    return pd.concat([table, latency.drop(columns="variant")], axis=1)


class _SharedFront:
    """Predictors of several variants: the stages before the blocks run once for each batch, the
    others in each variant.
    """

    def __init__(self, model: ModelBundle):
        self.front, _ = _split(model)
        self.weight = next(model.module.parameters())
        self.pixels: np.ndarray | None = None

    def make_predictor(self, variant: ModelBundle) -> Predictor:
        _, rest = _split(variant)

        def compute(pixels: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                if self.pixels is not pixels:
                    self.pixels = pixels
                    images = torch.as_tensor(pixels).to(self.weight.device, self.weight.dtype)
                    self.tokens = self.front(images)
                return rest(self.tokens).float().cpu().numpy()

        return compute


def _split(model: ModelBundle) -> tuple[nn.Sequential, nn.Sequential]:
    """The stages of a model before its first block, and the others."""
    stages = split_stages(model.module)
    first = [name for name, _ in stages].index("block0")
    modules = [stage for _, stage in stages]
    return nn.Sequential(*modules[:first]), nn.Sequential(*modules[first:])


def _score(model, variants, data, replicates) -> dict[Hashable, dict]:
    """For each variant: multiply_adds, metric, value, low and high on the validation split."""
    with ExitStack() as stack:
        for variant in (model, *variants.values()):
            stack.enter_context(evaluating(variant.module))
        shared = _SharedFront(model)
        predictors = {name: shared.make_predictor(variant) for name, variant in variants.items()}
        predictions = predict_variants(predictors, data, model.transform, ("val",))
    whole, found = count_multiply_adds(model), {}
    for name, table in predictions.items():
        scores = metrics_table(table, split="val", replicates=replicates)
        row = scores.set_index("metric").loc[METRIC]
        multiply_adds = count_multiply_adds(variants[name]) / whole
        found[name] = {"multiply_adds": multiply_adds, "metric": METRIC}
        found[name] |= {column: row[column] for column in ("value", "low", "high")}
    return found


def _check(data: DataBundle, values: Sequence, name: str) -> None:
    if data.split("val").empty:
        raise UserError(
            f"{data.name} has no images in the split 'val', on which variants are compared"
        )
    if not len(values):
        raise UserError(f"{name} is empty: give at least one")

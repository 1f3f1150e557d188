"""Token merging (Bolya et al. 2023, arXiv 2210.09461), and the score as more of a model is pruned
or merged, without further training.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitlab.compress.latency import latency_table
from vitlab.compress.pruning import plan_pruning
from vitlab.compress.variants import predict_variants
from vitlab.evaluation import metrics_table
from vitlab.models import shrink_model
from vitlab.models.anatomy import evaluating, find_anatomy
from vitlab.models.merging import check_merging, merge_blocks
from vitlab.schema import DataBundle, ModelBundle

KEEPS = (0.6, 0.2)  # of the parameters of the blocks
MERGED = (8, 32)  # tokens merged in a block
METRIC = "balanced_accuracy"


def pruning_curve_table(
    model: ModelBundle,
    data: DataBundle,
    importance: Mapping[str, pd.DataFrame],
    *,
    replicates: int = 1000,
) -> pd.DataFrame:
    """The score on the validation split after heads and neurons were pruned without recovery, for
    each importance and each share of KEEPS.

    importance: tables of `part_importance_table` by name. Columns: importance, keep (1, the model
    itself, comes first), multiply_adds (share of the whole model), metric, value, low, high (95 %,
    bootstrap over the images). UserError for a share that cannot be reached."""
    variants: dict[Hashable, ModelBundle] = {"whole": model}
    for name, table in importance.items():
        for keep in KEEPS:
            variants[name, keep] = shrink_model(model, plan_pruning(model, table, keep))
    scores = _score(variants, data, replicates)
    rows = []
    for name in importance:
        rows.append({"importance": name, "keep": 1.0, **scores["whole"]})
        rows += [{"importance": name, "keep": keep, **scores[name, keep]} for keep in KEEPS]
    return pd.DataFrame(rows)


def merge_tokens(model: ModelBundle, r: int | Sequence[int]) -> ModelBundle:
    """A copy of the model in which each block merges r tokens into the most similar ones, without
    training; r may be a list, one number for each block.

    A merged token is the mean of the tokens that it stands for, and attention counts it as often.
    Class, distillation and register tokens are never merged, and a block merges at most half of the
    others. Prune first, merge afterwards. Explanations that need one grid of tokens throughout
    (attention maps, rollout) refuse the copy; gradient methods work.

    For timm's ViT and DeiT with a class token, hybrid_vit and vit_scratch; UserError for others
    and for an invalid r.

    >>> from vitlab.models import build_model
    >>> model = build_model("vit_scratch", ["cat", "dog"], size=32, patch_size=8, depth=3)
    >>> merge_tokens(model, 4).options["merged"]
    4
    """
    numbers = check_merging(model.module, r)
    module = copy.deepcopy(model.module)
    merge_blocks(module, numbers)
    options = {**model.options, "merged": r if isinstance(r, int) else numbers}
    anatomy = find_anatomy(module, tuple(model.transform.size))
    return replace(model, module=module, options=options, anatomy=anatomy)


def merging_curve_table(
    model: ModelBundle,
    data: DataBundle,
    *,
    repeats: int = 20,
    threads: int | None = None,
    replicates: int = 1000,
) -> pd.DataFrame:
    """The score on the validation split and the time for one image in PyTorch, by the number of
    tokens merged in a block: 0 and those of MERGED.

    Columns: merged, multiply_adds (share of the whole model), metric, value, low, high (95 %,
    bootstrap over the images), and those of `latency_table` from batch_size on, with ratios to the
    model itself."""
    variants: dict[Hashable, ModelBundle] = {0: model}
    variants |= {number: merge_tokens(model, number) for number in MERGED}
    scores = _score(variants, data, replicates)
    table = pd.DataFrame([{"merged": number, **row} for number, row in scores.items()])
    timed = {str(number): variant for number, variant in variants.items()}
    latency = latency_table(timed, make_image(model).cpu().numpy(), (1,), repeats, threads)
    return pd.concat([table, latency.drop(columns="variant")], axis=1)


def count_multiply_adds(model: ModelBundle) -> int:
    """Multiply-adds of the forward pass of one image: convolutions, matrix products and attention.

    Sums, norms and activations are not counted."""
    with evaluating(model.module), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model.module(make_image(model))
    return counter.get_total_flops() // 2


def make_image(model: ModelBundle) -> torch.Tensor:
    """One image of noise, (1, 3, h, w), at the size of the model."""
    weight = next(model.module.parameters())
    shape = (1, len(model.transform.mean), *model.transform.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(weight.device, weight.dtype)


def _score(
    variants: Mapping[Hashable, ModelBundle], data: DataBundle, replicates: int
) -> dict[Hashable, dict]:
    """For each variant: multiply_adds (share of the first one), metric, value, low and high on the
    validation split.
    """
    first = next(iter(variants.values()))
    predictions = predict_variants(variants, data, first.transform, ("val",))
    whole, found = count_multiply_adds(first), {}
    for name, table in predictions.items():
        scores = metrics_table(table, split="val", replicates=replicates)
        row = scores.set_index("metric").loc[METRIC]
        found[name] = {"multiply_adds": count_multiply_adds(variants[name]) / whole}
        found[name] |= {"metric": METRIC, **row[["value", "low", "high"]].to_dict()}
    return found

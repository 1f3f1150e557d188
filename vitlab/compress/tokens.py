"""Fewer tokens at inference: similar ones merged from block to block, with no training (Bolya et
al. 2023, arXiv 2210.09461).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from vitlab.models import find_anatomy
from vitlab.models.anatomy import evaluating
from vitlab.models.merging import check_merging, merge_blocks
from vitlab.schema import ModelBundle


def merge_tokens(model: ModelBundle, r: int | Sequence[int]) -> ModelBundle:
    """A copy of the model in which every block merges r tokens into those most like them; r may be
    a list, one for each block.

    A merged token is the mean of those it stands for and weighs in attention as many; class,
    distillation and register tokens are never merged, and a block never merges more than half of
    the others. The same weights, saved and loaded like any model. Prune first, merge afterwards.
    Explanations that need one grid of tokens throughout (attention maps, rollout) refuse the copy;
    gradient methods work.

    For timm's ViT and DeiT with a class token, hybrid_vit and vit_scratch; ValueError for others
    and for an r that is no count."""
    numbers = check_merging(model.module, r)
    module = copy.deepcopy(model.module)
    merge_blocks(module, numbers)
    options = {**model.options, "merged": r if isinstance(r, int) else numbers}
    return replace(
        model,
        module=module,
        options=options,
        anatomy=find_anatomy(module, tuple(model.transform.size)),
    )


def count_tokens(model: ModelBundle) -> list[int]:
    """How many tokens each block of the model takes in, prefix tokens among them."""
    found: list[int] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].shape[1]))
        for block in model.module.blocks
    ]
    try:
        with evaluating(model.module), torch.no_grad():
            model.module(make_image(model))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def make_image(model: ModelBundle) -> torch.Tensor:
    """One image of noise, (1, 3, h, w), as the model takes it."""
    weight = next(model.module.parameters())
    noise = torch.randn(
        1,
        len(model.transform.mean),
        *model.transform.size,
        generator=torch.Generator().manual_seed(0),
    )
    return noise.to(weight.device, weight.dtype)

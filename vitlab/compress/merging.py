"""Token merging (Bolya et al. 2023, arXiv 2210.09461), and what a forward pass costs: tokens and
multiply-adds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitlab.models import find_anatomy
from vitlab.models.anatomy import evaluating
from vitlab.models.merging import check_merging, merge_blocks
from vitlab.schema import ModelBundle


def merge_tokens(model: ModelBundle, r: int | Sequence[int]) -> ModelBundle:
    """A copy of the model in which each block merges r tokens into the most similar ones, without
    training; r may be a list, one number for each block.

    A merged token is the mean of the tokens that it stands for, and attention counts it as often.
    Class, distillation and register tokens are never merged, and a block merges at most half of the
    others. Prune first, merge afterwards. Explanations that need one grid of tokens throughout
    (attention maps, rollout) refuse the copy; gradient methods work.

    For timm's ViT and DeiT with a class token, hybrid_vit and vit_scratch; ValueError for others
    and for an invalid r.

    >>> from vitlab.models import build_model
    >>> model = build_model("vit_scratch", ["cat", "dog"], size=32, patch_size=8, depth=3)
    >>> count_tokens(model), count_tokens(merge_tokens(model, 4))
    ([17, 17, 17], [17, 13, 9])
    """
    numbers = check_merging(model.module, r)
    module = copy.deepcopy(model.module)
    merge_blocks(module, numbers)
    options = {**model.options, "merged": r if isinstance(r, int) else numbers}
    anatomy = find_anatomy(module, tuple(model.transform.size))
    return replace(model, module=module, options=options, anatomy=anatomy)


def count_tokens(model: ModelBundle) -> list[int]:
    """Number of tokens that each block of the model takes in, including prefix tokens."""
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

"""Attention rollout: attention followed through all blocks, from what the classifier reads back to the patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vitlab.explain.attention import record_attention
from vitlab.explain.inspection import check_gradient, differentiate_at
from vitlab.explain.methods import explanation

RESIDUAL = 0.5  # share of a token that passes a block unchanged, through the residual connection


def compute_rollout(attention: Sequence[torch.Tensor]) -> torch.Tensor:
    """How much of each input token is in each output token: matrices (B, H, T, T) of all blocks in order -> (B, T, T).

    Heads are averaged, and half of every token takes the residual path: the product of 0.5 A + 0.5 I over the blocks. Rows sum
    to 1. Source: Abnar and Zuidema 2020, arXiv 2005.00928.
    """
    if not len(attention):
        raise ValueError("rollout needs the attention of at least one block")
    num_tokens = attention[0].shape[-1]
    flow = identity = torch.eye(num_tokens, device=attention[0].device)
    for layer in attention:
        flow = ((1 - RESIDUAL) * layer.mean(dim=1) + RESIDUAL * identity) @ flow  # (B, T, T)
    return flow


@explanation(signed=False, needs=("attention",), class_specific=False)
def rollout(model, images, targets):
    """How much of each patch reaches the tokens that the classifier reads; it does not depend on the class asked for.

    Which tokens these are is seen from the gradient at the last block: the class token, class and distillation token, or all
    patches where they are averaged. Attention between blocks is all that counts; values and MLPs are left out. arXiv 2005.00928.
    """
    anatomy = model.anatomy
    with record_attention(model.module, anatomy) as attention:
        _, gradient = differentiate_at(anatomy.blocks[-1], model.module, images, targets)  # (B, T, C)
    check_gradient(gradient, "the tokens of the last block")
    read = (gradient != 0).any(dim=-1).float()  # (B, T)
    share = read / read.sum(dim=1, keepdim=True).clamp(min=1)
    reached = (share[:, None] @ compute_rollout(attention))[:, 0]  # (B, T)
    return reached[:, anatomy.num_prefix_tokens :].unflatten(1, anatomy.grid)

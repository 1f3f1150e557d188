"""Attention followed through all blocks, from the tokens that the classifier reads back to the
patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vitlab.errors import UserError
from vitlab.explain.attention import record_attention
from vitlab.explain.inspection import check_gradient, differentiate_at, select_logits
from vitlab.explain.interception import intercept_attention
from vitlab.explain.methods import explanation
from vitlab.registry import unknown
from vitlab.schema import Anatomy

RESIDUAL = 0.5  # share of a token that passes a block unchanged, through the residual connection
FUSIONS = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}


def compute_rollout(
    attention: Sequence[torch.Tensor],
    head_fusion: str = "mean",
    discard: float = 0.0,
    num_prefix_tokens: int = 1,
) -> torch.Tensor:
    """How much of each input token is in each output token: matrices (B, H, T, T) of all blocks in
    order -> (B, T, T).

    Heads become one by their mean, max or min, and half of every token takes the residual path: the
    product of 0.5 A + 0.5 I over the blocks, rows brought to a sum of 1. discard: the share of the
    entries of A, lowest first, that count as 0; what a prefix token (the class token) keeps for
    itself is always kept. Source: Abnar and Zuidema 2020, arXiv 2005.00928; fusion and discarding
    as in github.com/jacobgil/vit-explain, but rows are divided by their own sums."""
    _check_options(head_fusion, discard)
    if not len(attention):
        raise UserError("rollout needs the attention of at least one block")
    flow = torch.eye(attention[0].shape[-1], device=attention[0].device)
    for layer in attention:
        # (B, T, T)
        flow = (
            _mix_with_residual(_fuse_heads(layer, head_fusion), discard, num_prefix_tokens) @ flow
        )
    return flow


@explanation(
    signed=False,
    needs=("attention",),
    class_specific=False,
    shows=(
        "The brighter a place, the more of it reaches the tokens that the classifier reads, by"
        " attention alone; the map is the same whatever the prediction is."
    ),
)
def rollout(model, images, targets, head_fusion="mean", discard=0.0):
    """How much of each patch reaches the tokens that the classifier reads; it does not depend on
    the class asked for.

    Which tokens these are is seen from the gradient at the last block: the class token, class and
    distillation token, or all patches where they are averaged. Attention between blocks is all that
    counts; values and MLPs are left out. head_fusion, discard: see compute_rollout; max or min and
    a share of 0.5 to 0.9 make the map sparser. arXiv 2005.00928."""
    _check_options(head_fusion, discard)
    anatomy, mixed = model.anatomy, {}

    def keep_mixed(call):
        matrix = call.compute_matrix()  # (B, H, T, T)
        mixed[call.layer] = _mix_with_residual(
            _fuse_heads(matrix, head_fusion), discard, anatomy.num_prefix_tokens
        )
        return call.apply(matrix)

    with intercept_attention(model.module, anatomy, keep_mixed):
        # (B, T, C)
        _, gradient = differentiate_at(anatomy.blocks[-1], model.module, images, targets)
    return _follow_back(
        share_read_tokens(gradient), [mixed[layer].detach() for layer in sorted(mixed)], anatomy
    )


@explanation(
    signed=False,
    needs=("attention",),
    shows=(
        "The brighter a place, the more of it reaches the tokens that the classifier reads through"
        " attention that raises the score of {target}; evidence against it is not shown."
    ),
)
def gradient_rollout(model, images, targets, discard=0.0):
    """Rollout of attention that is weighted by its gradient: heads and places that do not raise the
    target logit drop out.

    In each block A becomes the mean over heads of A times the gradient of the target logit with
    respect to A, negative values cut off; then as in rollout. Source: VITAttentionGradRollout of
    github.com/jacobgil/vit-explain, but rows are divided by their own sums."""
    _check_options("mean", discard)
    attention, gradients, share = _record_gradients(model, images, targets)
    weighted = (
        (layer * gradient).mean(dim=1).relu()
        for layer, gradient in zip(attention, gradients, strict=True)
    )
    # each (B, T, T)
    mixed = [
        _mix_with_residual(layer, discard, model.anatomy.num_prefix_tokens) for layer in weighted
    ]
    return _follow_back(share, mixed, model.anatomy)


@explanation(
    signed=False,
    needs=("attention",),
    shows=(
        "The brighter a place, the more attention to it raises the score of {target}, summed over"
        " the blocks; evidence against it is not shown."
    ),
)
def transformer_attribution(model, images, targets):
    """Relevance of each patch for the target logit, gathered block by block.

    R becomes R + mean over heads of (A dA)+ R, beginning with R = I.

    dA is the gradient of the target logit with respect to the attention A, and ( )+ leaves out
    negative products. This is the authors' later rule, which needs gradients only; their first
    (arXiv 2012.09838) propagates relevance by rules written for each kind of layer, and is not what
    is computed here. Source: Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6."""
    attention, gradients, share = _record_gradients(model, images, targets)
    identity = torch.eye(attention[0].shape[-1], device=share.device)
    # (B, T, T)
    added = [
        (layer * gradient).relu().mean(dim=1)
        for layer, gradient in zip(attention, gradients, strict=True)
    ]
    return _follow_back(share, [identity + layer for layer in added], model.anatomy)


def share_read_tokens(gradient: torch.Tensor) -> torch.Tensor:
    """From the gradient (B, T, C) at the last block, the share of each token in what the classifier
    reads: (B, T), rows sum to 1.

    Tokens without gradient are not read. The rest count alike. Raises ValueError where no token of
    any image is read."""
    check_gradient(gradient, "the tokens of the last block")
    read = (gradient != 0).any(dim=-1).float()  # (B, T)
    return read / read.sum(dim=1, keepdim=True).clamp(min=1)


def _record_gradients(
    model, images, targets
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Attention of all blocks, its gradients, each (B, H, T, T), and the share (B, T) of the tokens
    that are read.
    """
    outputs = []
    last = model.module.get_submodule(model.anatomy.blocks[-1])
    hook = last.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        with record_attention(model.module, model.anatomy, gradients=True) as attention:
            score = select_logits(model.module(images), targets).sum()
    finally:
        hook.remove()
    if not score.requires_grad:
        raise UserError(
            "the logits do not depend on the attention of this model; choose a method that looks at"
            " the pixels"
        )
    *gradients, at_last = torch.autograd.grad(score, [*attention, outputs[-1]])
    return [layer.detach() for layer in attention], gradients, share_read_tokens(at_last)


def _fuse_heads(attention, head_fusion) -> torch.Tensor:
    return FUSIONS[head_fusion](attention.float(), dim=1)  # (B, H, T, T) -> (B, T, T)


def _mix_with_residual(fused, discard, num_prefix_tokens) -> torch.Tensor:
    """0.5 A + 0.5 I of fused attention (B, T, T), its lowest entries left out, rows divided by
    their sums.
    """
    num_tokens = fused.shape[-1]
    dropped = int(num_tokens**2 * discard)
    if dropped:
        flat = fused.flatten(1)
        lowest = flat.topk(dropped, dim=1, largest=False).indices
        # places on the diagonal
        own = torch.arange(num_prefix_tokens, device=fused.device) * (num_tokens + 1)
        fused = flat.scatter(1, lowest, 0).index_copy(1, own, flat[:, own]).view_as(fused)
    mixed = (1 - RESIDUAL) * fused
    mixed.diagonal(dim1=-2, dim2=-1).add_(RESIDUAL)
    return mixed / mixed.sum(dim=-1, keepdim=True)


def _follow_back(share, matrices, anatomy: Anatomy) -> torch.Tensor:
    """Rows `share` (B, T) times the matrices (B, T, T) from the last block to the first, on the
    grid of patches.
    """
    row = share[:, None]  # (B, 1, T)
    for matrix in reversed(matrices):
        row = row @ matrix
    return row[:, 0, anatomy.num_prefix_tokens :].unflatten(1, anatomy.grid)


def _check_options(head_fusion, discard) -> None:
    if head_fusion not in FUSIONS:
        raise UserError(unknown("head_fusion", head_fusion, list(FUSIONS)))
    if not 0 <= discard < 1:
        raise UserError(
            "discard is a share of the attention and must be at least 0 and below 1, not"
            f" {discard!r}"
        )

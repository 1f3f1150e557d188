"""Maps made of attention: one layer as it is, and attention followed through all blocks, from the
tokens that the classifier reads back to the patches.
"""

from __future__ import annotations

import torch

from vitlab.errors import UserError
from vitlab.explain.attention import (
    find_index,
    intercept_attention,
    list_attention,
    list_layouts,
    map_received,
    record_attention,
)
from vitlab.explain.inspection import check_gradient, differentiate_at, select_logits
from vitlab.explain.methods import explanation
from vitlab.schema import Anatomy


@explanation(
    signed=False,
    needs=("attention", "windows"),
    class_specific=False,
    shows=(
        "Brighter areas receive more attention in one layer from the tokens that the classifier"
        " reads; the map does not depend on the predicted class."
    ),
)
def attention(model, images, targets, layer=-1):
    """Where the tokens that the classifier reads look in one layer, averaged over its heads.

    These tokens are the class token, class and distillation token, or all patches where they are
    averaged. Attention to prefix tokens is not shown. The map does not depend on the class. Source:
    on what attention explains and what not, Jain and Wallace 2019, arXiv 1902.10186."""
    anatomy = model.anatomy
    layer = find_index(layer, len(list_attention(anatomy)))
    layout, matrices = list_layouts(anatomy)[layer], []

    def keep(_, call):
        matrices.append(call.form().mean(dim=1, keepdim=True))  # (B * windows, 1, T, T)
        return call.output

    share = None
    with intercept_attention(model.module, anatomy, keep, [layer]):
        if anatomy.attention:
            # (B, T, C)
            _, gradient = differentiate_at(anatomy.blocks[-1], model.module, images, targets)
            share = share_read_tokens(gradient)
        else:
            with torch.no_grad():
                model.module(images)
    return map_received(matrices[-1].detach(), layout, share)[:, 0]  # (B, rows, columns)


@explanation(
    signed=False,
    needs=("attention",),
    class_specific=False,
    shows=(
        "Brighter areas contribute more to the tokens that the classifier reads, by attention"
        " alone; the map does not depend on the predicted class."
    ),
)
def rollout(model, images, targets):
    """How much of each patch reaches the tokens that the classifier reads.

    The product over the blocks of 0.5 A + 0.5 I, with A the attention averaged over heads; half of
    each token takes the residual path. Values and MLPs are ignored. The gradient at the last block
    shows which tokens the classifier reads. The map does not depend on the class. Source: Abnar and
    Zuidema 2020, arXiv 2005.00928."""
    mixed = {}

    def keep(layer, call):
        mixed[layer] = _mix_with_residual(call.form().detach().mean(dim=1))  # (B, T, T)
        return call.output

    with intercept_attention(model.module, model.anatomy, keep):
        # (B, T, C)
        _, gradient = differentiate_at(model.anatomy.blocks[-1], model.module, images, targets)
    matrices = [mixed[layer] for layer in sorted(mixed)]
    return _follow_back(share_read_tokens(gradient), matrices, model.anatomy)


@explanation(
    signed=False,
    needs=("attention",),
    shows=(
        "Brighter areas contribute more to the tokens that the classifier reads, through"
        " attention that raises the score of {target}; evidence against it is not shown."
    ),
)
def gradient_rollout(model, images, targets):
    """Rollout of attention weighted by its gradient: what does not raise the target logit drops
    out.

    In each block A becomes the mean over heads of A times the gradient of the target logit with
    respect to A, without negative values; then as in rollout. Source: VITAttentionGradRollout of
    github.com/jacobgil/vit-explain, but rows are divided by their own sums."""
    attention, gradients, share = _record_gradients(model, images, targets)
    matrices = []
    for layer, gradient in zip(attention, gradients, strict=True):
        matrices.append(_mix_with_residual((layer * gradient).mean(dim=1).relu()))
    return _follow_back(share, matrices, model.anatomy)


@explanation(
    signed=False,
    needs=("attention",),
    shows=(
        "Brighter areas receive more attention that raises the score of {target}, summed over"
        " the blocks; evidence against it is not shown."
    ),
)
def transformer_attribution(model, images, targets):
    """Relevance of each patch for the target logit, gathered block by block.

    R becomes R + mean over heads of (A dA)+ R, beginning with R = I. dA is the gradient of the
    target logit with respect to the attention A, and ( )+ drops negative products. This is the
    authors' later rule, not the layer-wise one of arXiv 2012.09838. Source: Chefer et al. 2021,
    arXiv 2103.15679, equations 5 and 6."""
    attention, gradients, share = _record_gradients(model, images, targets)
    identity = torch.eye(attention[0].shape[-1], device=share.device)
    matrices = []
    for layer, gradient in zip(attention, gradients, strict=True):
        matrices.append(identity + (layer * gradient).relu().mean(dim=1))
    return _follow_back(share, matrices, model.anatomy)


def share_read_tokens(gradient: torch.Tensor) -> torch.Tensor:
    """From the gradient (B, T, C) at the last block, the weight of each token in what the
    classifier reads: (B, T), rows sum to 1.

    Tokens without gradient are not read; the rest count alike. ValueError where none is read."""
    check_gradient(gradient, "the tokens of the last block")
    read = (gradient != 0).any(dim=-1).float()  # (B, T)
    return read / read.sum(dim=1, keepdim=True).clamp(min=1)


def _record_gradients(
    model, images, targets
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Attention of all blocks and its gradients, each (B, H, T, T), and the weights (B, T) of the
    tokens that are read.
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


def _mix_with_residual(attention: torch.Tensor) -> torch.Tensor:
    """0.5 A + 0.5 I of attention (B, T, T), rows divided by their sums."""
    mixed = 0.5 * attention
    mixed.diagonal(dim1=-2, dim2=-1).add_(0.5)
    return mixed / mixed.sum(dim=-1, keepdim=True)


def _follow_back(share, matrices, anatomy: Anatomy) -> torch.Tensor:
    """Rows `share` (B, T) times the matrices (B, T, T) from the last block to the first, on the
    grid of patches.
    """
    row = share[:, None]  # (B, 1, T)
    for matrix in reversed(matrices):
        row = row @ matrix
    return row[:, 0, anatomy.num_prefix_tokens :].unflatten(1, anatomy.grid)

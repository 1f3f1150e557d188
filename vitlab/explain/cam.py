"""Class activation maps: where the features lie that speak for a class."""

from __future__ import annotations

import torch

from vitlab.explain.inspection import check_gradient, differentiate_at
from vitlab.explain.methods import explanation
from vitlab.schema import Anatomy


@explanation(signed=False, needs=("stages", "attention"))
def grad_cam(model, images, targets, layer=None):
    """Sum of a layer's channels, each weighted by the mean gradient of the target logit over the map, negative values cut off.

    layer: name of a module with output (B, C, h, w), or (B, T, C) with the model's tokens. By default the last feature map of a
    CNN or of a hybrid's stem, whose features are still local, and what goes into the last attention of a ViT: behind that,
    nothing flows from the patches to a class token.
    Source: Selvaraju et al. 2017, arXiv 1610.02391.
    """
    anatomy = model.anatomy
    before = layer is None and not anatomy.stages
    advice = "leave layer out for the one that suits this model" if layer else ""
    layer = layer or (anatomy.stages or anatomy.attention)[-1]
    found = differentiate_at(layer, model.module, images, targets, before=before)
    activation, gradient = (_arrange_as_map(tensor, anatomy, layer) for tensor in found)  # (B, C, h, w)
    check_gradient(gradient, f"the patches at layer {layer!r}", advice)
    weights = gradient.mean(dim=(-2, -1), keepdim=True)  # (B, C, 1, 1)
    return (weights * activation).sum(dim=1).relu()


def _arrange_as_map(tensor: torch.Tensor, anatomy: Anatomy, layer: str) -> torch.Tensor:
    """Feature maps (B, C, h, w) as they are; tokens (B, T, C) without the prefix tokens, laid out on the grid."""
    if tensor.ndim == 4:
        return tensor
    rows, columns = anatomy.grid
    if tensor.ndim != 3 or tensor.shape[1] != anatomy.num_prefix_tokens + rows * columns:
        tokens = f"{anatomy.num_prefix_tokens} + {rows}x{columns} tokens"
        raise ValueError(f"layer {layer!r} gives {tuple(tensor.shape)}, neither (B, C, h, w) nor {tokens}; choose another layer")
    return tensor[:, anatomy.num_prefix_tokens :].transpose(1, 2).unflatten(2, anatomy.grid)

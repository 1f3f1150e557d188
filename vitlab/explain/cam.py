"""Class activation maps: where the features are that raise the score of a class."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.explain.inspection import (
    check_count,
    check_gradient,
    compute_at,
    differentiate_at,
    select_logits,
)
from vitlab.explain.methods import explanation
from vitlab.models.hybrid import HybridViT
from vitlab.schema import Anatomy, ModelBundle

NEEDS = ("stages", "attention")
BATCH = 32  # masked images at once in Score-CAM


@explanation(
    signed=False,
    needs=NEEDS,
    shows=(
        "Brighter areas have stronger features that, averaged over the image, raise the score"
        " of {target}; evidence against it is not shown."
    ),
)
def grad_cam(model, images, targets, layer=None):
    """Sum of a layer's channels, each weighted by the mean gradient of the target logit over the
    map, without negative values.

    layer: name of a module with output (B, C, h, w) or (B, h, w, C), or (B, T, C) with the model's
    tokens. By default the last feature map; for a ViT, which has none, the input of the last
    attention: after it, nothing flows from the patches to a class token. For hybrid_vit it is the
    input of the last attention, too. How often the highest point is in the planted stamp (chance
    3%) decided that:

    | Model, trained on the stamp (2026-12-01)                       | Map  | Attention |
    |----------------------------------------------------------------|------|-----------|
    | hybrid_vit, planted:elpv, 40 images                            | 20%  | 77%       |
    | timm vit_tiny_r_s16_p8_224, 3 blocks of 64, planted:digits, 100 | 52%  | 0%        |
    | timm ResNetV2 of 2 blocks and 2 ViT blocks of 64, same images  | 12%  | 6%        |
    | timm efficientformer_l1, depths 1-1-1-3, same images           | 48%  | 42%       |

    The small timm hybrids were trained from random weights to an accuracy above 0.97. LayerCAM,
    Eigen-CAM and Score-CAM take the map in all of them.
    Source: Selvaraju et al. 2017, arXiv 1610.02391. 2.9 times as fast as pytorch-grad-cam
    (benchmarks/bench_explain.py), since the backward pass ends at the layer."""
    activation, gradient = _differentiate(model, images, targets, layer)
    return _combine(gradient.mean(dim=(-2, -1)), activation)


@explanation(
    signed=False,
    needs=NEEDS,
    shows=(
        "Brighter areas have features that raise the score of {target} more at this very"
        " location; evidence against it is not shown."
    ),
)
def layer_cam(model, images, targets, layer=None):
    """Sum of a layer's channels, each place weighted by its own positive gradient: finer than
    Grad-CAM in early layers.

    layer: see grad_cam; in a hybrid, by default the last map of its convolutional part.
    Source: Jiang et al. 2021, doi 10.1109/TIP.2021.3089943.
    """
    activation, gradient = _differentiate(model, images, targets, layer, local=True)
    return (gradient.relu() * activation).sum(dim=1).relu()


@explanation(
    signed=False,
    needs=NEEDS,
    shows=(
        "Brighter areas have stronger features whose region alone gives a high score of"
        " {target}; evidence against it is not shown."
    ),
)
def score_cam(model, images, targets, layer=None, channels=32):
    """Sum of a layer's channels, weighted by the softmax of the target logits of the image masked
    by each; needs no gradient.

    A channel, enlarged to the image and scaled to 0..1, is the mask; the mean colour replaces what
    it hides. channels: the number tried, those of largest variance over the map; None tries all, as
    in the paper, at one forward pass each. layer: see layer_cam. Source: Wang et al. 2020, arXiv
    1910.01279."""
    if channels is not None:
        check_count("channels", channels)
    with torch.no_grad():
        activation = _compute(model, images, layer)
        count = min(channels or activation.shape[1], activation.shape[1])
        chosen = activation.flatten(2).var(dim=2).topk(count, dim=1).indices  # (B, K)
        index = chosen[..., None, None].expand(-1, -1, *activation.shape[2:])
        activation = activation.gather(1, index)  # (B, K, h, w)
        weights = [
            _score_masks(model.module, image, maps, target)
            for image, maps, target in zip(images, activation, targets, strict=True)
        ]
        return _combine(torch.stack(weights).softmax(dim=1), activation)


@explanation(
    signed=False,
    needs=NEEDS,
    class_specific=False,
    shows=(
        "Brighter areas contain more of the main pattern of the features; the map does not"
        " depend on the predicted class."
    ),
)
def eigen_cam(model, images, targets, layer=None):
    """Projection of a layer's features on their first principal component over the map.

    A component has no sign; the map is positive where features are strong, without negative values.
    Features are centred first, as in pytorch-grad-cam. layer: see layer_cam. Source: Muhammad and
    Yeasin 2020, arXiv 2008.00299."""
    with torch.no_grad():
        activation = _compute(model, images, layer).float()
        features = activation.flatten(2).transpose(1, 2)  # (B, N, C)
        centred = features - features.mean(dim=1, keepdim=True)
        left, values, _ = torch.linalg.svd(centred, full_matrices=False)
        projection = left[..., 0] * values[:, :1]  # (B, N)
        strength = features.norm(dim=2)
        strength = strength - strength.mean(dim=1, keepdim=True)
        agreement = (projection * strength).sum(dim=1, keepdim=True)
        signed = torch.where(agreement < 0, -projection, projection)
        return signed.relu().unflatten(1, activation.shape[2:])


def choose_layer(model: ModelBundle, layer: str | None, *, local: bool = False) -> tuple[str, bool]:
    """Name of the layer, and whether its input is meant instead of its output.

    By default the last feature map; where there is none, and for Grad-CAM on hybrid_vit (see
    `grad_cam`), the input of the last attention. local: the method weights each place by itself."""
    anatomy = model.anatomy
    if layer is not None:
        return layer, False
    attends = bool(anatomy.attention) and isinstance(model.module, HybridViT) and not local
    if anatomy.stages and not attends:
        return anatomy.stages[-1], False
    return anatomy.attention[-1], True


def _differentiate(
    model, images, targets, layer, *, local=False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activation and gradient as maps (B, C, h, w)."""
    name, before = choose_layer(model, layer, local=local)
    found = differentiate_at(name, model.module, images, targets, before=before)
    activation, gradient = (
        arrange_as_map(tensor, model.anatomy, name, images.shape[-2:]) for tensor in found
    )
    what = f"the patches at layer {name!r}"
    if layer and model.anatomy.attention:
        what += " (after the last attention, only the tokens that the classifier reads count)"
    check_gradient(gradient, what)
    return activation, gradient


def _compute(model, images, layer) -> torch.Tensor:
    """Activation as maps (B, C, h, w)."""
    name, before = choose_layer(model, layer, local=True)
    found = compute_at(name, model.module, images, before=before)
    return arrange_as_map(found, model.anatomy, name, images.shape[-2:])


def arrange_as_map(
    tensor: torch.Tensor, anatomy: Anatomy, layer: str, size: tuple[int, int]
) -> torch.Tensor:
    """(B, C, h, w) from a map with channels first or last, or from tokens (B, T, C) without the
    prefix tokens, on their grid.

    size: height and width of the images; their proportions show which axes of a map are spatial.
    """
    if tensor.ndim == 4:
        last = not _is_in_proportion(tensor.shape[2:], size) and _is_in_proportion(
            tensor.shape[1:3], size
        )
        return tensor.permute(0, 3, 1, 2) if last else tensor
    rows, columns = anatomy.grid
    if tensor.ndim != 3 or tensor.shape[1] != anatomy.num_prefix_tokens + rows * columns:
        raise UserError(
            f"layer {layer!r} gives {tuple(tensor.shape)}, neither (B, C, h, w), (B, h, w, C) nor"
            f" {anatomy.num_prefix_tokens} + {rows}x{columns} tokens; choose another layer"
        )
    return tensor[:, anatomy.num_prefix_tokens :].transpose(1, 2).unflatten(2, anatomy.grid)


def _is_in_proportion(shape, size) -> bool:
    (rows, columns), (height, width) = shape, size
    # both sides were rounded, up or down
    return abs(rows * width - columns * height) < max(height, width)


def _combine(weights: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
    """(B, C) and (B, C, h, w) to (B, h, w), without negative values."""
    return torch.einsum("bc,bchw->bhw", weights, activation).relu()


def _score_masks(module: nn.Module, image, maps, target) -> torch.Tensor:
    """The target logit of the image (3, h, w) under each of the maps (K, rows, columns) as a mask:
    (K,).
    """
    scores = []
    for part in maps.split(BATCH):
        masks = F.interpolate(
            part[:, None], size=image.shape[-2:], mode="bilinear", align_corners=True
        )  # (K, 1, h, w)
        low, high = masks.amin(dim=(-2, -1), keepdim=True), masks.amax(dim=(-2, -1), keepdim=True)
        masked = image * (masks - low) / (high - low).clamp(min=torch.finfo(masks.dtype).tiny)
        scores.append(select_logits(module(masked), target.expand(len(masked))))
    return torch.cat(scores)

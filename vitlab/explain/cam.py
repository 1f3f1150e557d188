"""Class activation maps: where the features lie that speak for a class."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.explain.inspection import check_gradient, differentiate_at, select_logits
from vitlab.explain.layers import arrange_as_map, choose_layer, compute_until
from vitlab.explain.methods import explanation

NEEDS = ("stages", "attention")
BATCH = 32  # masked images at once in Score-CAM


@explanation(
    signed=False,
    needs=NEEDS,
    shows=(
        "The brighter a place, the stronger are the features there that, averaged over the image,"
        " raise the score of {target}; evidence against it is not shown."
    ),
)
def grad_cam(model, images, targets, layer=None):
    """Sum of a layer's channels, each weighted by the mean gradient of the target logit over the
    map, negative values cut off.

    layer: name of a module with output (B, C, h, w) or (B, h, w, C), or (B, T, C) with the model's
    tokens. By default the last feature map of a CNN or a Swin, and what goes into the last
    attention of a ViT or a hybrid: behind that, nothing flows from the patches to a class token. In
    a hybrid the last convolutional map would be the other choice. On 29 stamped test images of
    planted:elpv that hybrid_vit gets right (2026-11-30), Grad-CAM's highest point lies in the stamp
    in 17 % with that map and in 82 % with this layer, Grad-CAM++'s in 34 and 89 %, LayerCAM's in
    100 and 75 %, Eigen-CAM's in 34 and 0 % (chance 3 %). It is not so in every hybrid: in a tiny
    one (timm's test_resnet and two blocks, from random weights, 100 images of planted:digits)
    Grad-CAM finds 22 % with the map and 6 % with this layer, LayerCAM 10 and 37 %, Score-CAM 57 and
    50 %. Source: Selvaraju et al. 2017, arXiv 1610.02391."""
    activation, gradient = _differentiate(model, images, targets, layer)
    return _combine(gradient.mean(dim=(-2, -1)), activation)


@explanation(
    signed=False,
    needs=NEEDS,
    shows=(
        "The brighter a place, the stronger are the features there that raise the score of {target}"
        " somewhere in the image; evidence against it is not shown."
    ),
)
def grad_cam_plus_plus(model, images, targets, layer=None):
    """Grad-CAM whose weights count the places where a channel speaks for the class, so that several
    objects all show.

    A channel's weight is the sum of its positive gradients g, each times g^2 / (2 g^2 + S g^3) with
    S the channel's sum over the map. The formula supposes activations that are not negative; it is
    applied to those of a ViT as well. layer: see grad_cam. Source: Chattopadhay et al. 2018, arXiv
    1710.11063, equation 19."""
    activation, gradient = _differentiate(model, images, targets, layer)
    # the fraction shortened by g^2
    denominator = 2 + activation.sum(dim=(-2, -1), keepdim=True) * gradient
    # the authors' value where it is not defined
    share = torch.where(denominator == 0, 1, 1 / denominator)
    return _combine((gradient.relu() * share).sum(dim=(-2, -1)), activation)


@explanation(
    signed=False,
    needs=NEEDS,
    shows=(
        "The brighter a place, the more the features at this very place raise the score of"
        " {target}; evidence against it is not shown."
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
        "The brighter a place, the stronger are the features there whose region alone gives a high"
        " score of {target}; evidence against it is not shown."
    ),
)
def score_cam(model, images, targets, layer=None, channels=32):
    """Sum of a layer's channels, weighted by the softmax of the target logits of the image masked
    by each; needs no gradient.

    A channel, enlarged to the image and brought to 0..1, is the mask; what it hides gets the mean
    colour. channels: how many are tried, those of largest variance over the map; None tries all, as
    in the paper, at one forward pass each. layer: see layer_cam. Source: Wang et al. 2020, arXiv
    1910.01279."""
    if channels is not None and (not isinstance(channels, int) or channels < 1):
        raise UserError(
            "channels must be a whole number of at least 1, or None for all of them, not"
            f" {channels!r}"
        )
    with torch.no_grad():
        activation = _compute(model, images, layer, local=True)
        count = min(channels or activation.shape[1], activation.shape[1])
        chosen = activation.flatten(2).var(dim=2).topk(count, dim=1).indices  # (B, K)
        # (B, K, h, w)
        activation = activation.gather(
            1, chosen[..., None, None].expand(-1, -1, *activation.shape[2:])
        )
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
        "The brighter a place, the stronger is the main pattern of the features there; the map is"
        " the same whatever the prediction is."
    ),
)
def eigen_cam(model, images, targets, layer=None):
    """The strongest pattern in a layer's features: their projection on the first principal
    component over the map.

    It does not depend on the class. A component has no sign; the map is positive where features are
    strong, and the rest is cut off. Features are centred first, as in pytorch-grad-cam. layer: see
    layer_cam. Source: Muhammad and Yeasin 2020, arXiv 2008.00299."""
    with torch.no_grad():
        activation = _compute(model, images, layer, local=True).float()
        features = activation.flatten(2).transpose(1, 2)  # (B, N, C)
        projection = _project_on_first(features - features.mean(dim=1, keepdim=True))  # (B, N)
        strength = features.norm(dim=2)
        agreement = (projection * (strength - strength.mean(dim=1, keepdim=True))).sum(
            dim=1, keepdim=True
        )
        return (
            torch.where(agreement < 0, -projection, projection)
            .relu()
            .unflatten(1, activation.shape[2:])
        )


def _differentiate(
    model, images, targets, layer, *, local=False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activation and gradient as maps (B, C, h, w)."""
    name, before = choose_layer(model.anatomy, layer, local=local)
    found = differentiate_at(name, model.module, images, targets, before=before)
    activation, gradient = (
        arrange_as_map(tensor, model.anatomy, name, images.shape[-2:]) for tensor in found
    )
    if not gradient.any():
        check_gradient(
            gradient,
            f"the patches at layer {name!r}",
            layer and _advise(model, images, targets, layer),
        )
    return activation, gradient


def _compute(model, images, layer, *, local=False) -> torch.Tensor:
    """Activation as maps (B, C, h, w); nothing behind the layer is computed."""
    name, before = choose_layer(model.anatomy, layer, local=local)
    return arrange_as_map(
        compute_until(name, model.module, images, before=before),
        model.anatomy,
        name,
        images.shape[-2:],
    )


def _combine(weights: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
    """(B, C) and (B, C, h, w) to (B, h, w), negative values cut off."""
    return torch.einsum("bc,bchw->bhw", weights, activation).relu()


def _score_masks(module, image, maps, target) -> torch.Tensor:
    """The target logit of the image (3, h, w) under each of the maps (K, rows, columns) as a mask:
    (K,).
    """
    scores = []
    for part in maps.split(BATCH):
        # (K, 1, h, w)
        masks = F.interpolate(
            part[:, None], size=image.shape[-2:], mode="bilinear", align_corners=True
        )
        low, high = masks.amin(dim=(-2, -1), keepdim=True), masks.amax(dim=(-2, -1), keepdim=True)
        masked = image * (masks - low) / (high - low).clamp(min=torch.finfo(masks.dtype).tiny)
        scores.append(select_logits(module(masked), target))
    return torch.cat(scores)


def _project_on_first(centred: torch.Tensor) -> torch.Tensor:
    """Projection (B, N) of the rows of (B, N, C) on the first right singular vector, by the smaller
    Gram matrix.
    """
    rows, columns = centred.shape[1:]
    if rows <= columns:
        values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))
        return vectors[..., -1] * values[:, -1:].clamp(min=0).sqrt()
    _, vectors = torch.linalg.eigh(centred.transpose(1, 2) @ centred)
    return (centred @ vectors[..., -1:]).squeeze(2)


def _advise(model, images, targets, layer) -> str:
    """What to write instead of a layer without gradient: the last block that has one; nothing where
    no layer would do.
    """
    anatomy = model.anatomy
    for name in anatomy.blocks[::-1]:
        _, gradient = differentiate_at(name, model.module, images, targets)
        if arrange_as_map(gradient, anatomy, name, images.shape[-2:]).any():
            return (
                f"behind the last attention only the class token counts: use layer={name!r}, or"
                " leave layer out"
            )
    return ""

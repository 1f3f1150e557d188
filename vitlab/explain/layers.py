"""The layer that a class activation map is made of: which one, what it gives, and how that lies on
the image.
"""

from __future__ import annotations

import torch
from torch import nn

from vitlab.errors import UserError
from vitlab.explain.inspection import find_layer
from vitlab.schema import Anatomy


def choose_layer(anatomy: Anatomy, layer: str | None, *, local: bool = False) -> tuple[str, bool]:
    """Name of the layer, and whether what it takes in is meant instead of what it gives out.

    By default what goes into the last attention of a ViT or a hybrid, else the last feature map.
    local: in a hybrid, too, the last map of its convolutional part, whose features depend on a
    smaller part of the image."""
    if layer is not None:
        return layer, False
    if anatomy.stages and (local or not anatomy.attention):
        return anatomy.stages[-1], False
    return anatomy.attention[-1], True


def compute_until(
    layer: str, module: nn.Module, images: torch.Tensor, *, before: bool = False
) -> torch.Tensor:
    """What a layer gives out (with `before`: takes in). The forward pass ends there."""
    part = find_layer(layer, module)

    def stop(tensor):
        raise _Reached(tensor)

    if before:
        hook = part.register_forward_pre_hook(lambda _, inputs: stop(inputs[0]))
    else:
        hook = part.register_forward_hook(lambda _, __, output: stop(output))
    try:
        module(images)
    except _Reached as reached:
        found = reached.tensor
    else:
        raise UserError(f"layer {layer!r} takes no part in the forward pass; choose another one")
    finally:
        hook.remove()
    if not isinstance(found, torch.Tensor):
        raise UserError(
            f"layer {layer!r} passes on a {type(found).__name__}, not one tensor; choose a layer"
            " inside it"
        )
    return found


def arrange_as_map(
    tensor: torch.Tensor, anatomy: Anatomy, layer: str, size: tuple[int, int]
) -> torch.Tensor:
    """(B, C, h, w) from a map with channels first or last, or from tokens (B, T, C) without the
    prefix tokens, on their grid.

    size: height and width of the images, whose proportions tell the two kinds of map apart.
    """
    if tensor.ndim == 4:
        last = not _is_in_proportion(tensor.shape[2:], size) and _is_in_proportion(
            tensor.shape[1:3], size
        )
        return tensor.permute(0, 3, 1, 2) if last else tensor
    rows, columns = anatomy.grid
    if tensor.ndim != 3 or tensor.shape[1] != anatomy.num_prefix_tokens + rows * columns:
        shapes = (
            f"(B, C, h, w), (B, h, w, C) nor {anatomy.num_prefix_tokens} + {rows}x{columns} tokens"
        )
        raise UserError(
            f"layer {layer!r} gives {tuple(tensor.shape)}, neither {shapes}; choose another layer"
        )
    return tensor[:, anatomy.num_prefix_tokens :].transpose(1, 2).unflatten(2, anatomy.grid)


class _Reached(Exception):
    def __init__(self, tensor):
        super().__init__()
        self.tensor = tensor


def _is_in_proportion(shape, size) -> bool:
    (rows, columns), (height, width) = shape, size
    # both sides were rounded, up or down
    return abs(rows * width - columns * height) < max(height, width)

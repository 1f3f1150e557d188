"""Attention as it is: where the tokens that count look, in one layer."""

from __future__ import annotations

import torch

from vitlab.explain.inspection import differentiate_at
from vitlab.explain.interception import choose_indices, intercept_attention, list_attention
from vitlab.explain.layout import list_layouts, map_received
from vitlab.explain.methods import explanation
from vitlab.explain.rollout import share_read_tokens


@explanation(
    signed=False,
    needs=("attention", "windows"),
    class_specific=False,
    shows=(
        "The brighter a place, the more the tokens that the classifier reads attend to it in one"
        " layer; the map is the same whatever the prediction is."
    ),
)
def attention(model, images, targets, layer=-1, head=None):
    """Where the tokens that the classifier reads look in one layer: their attention to each patch.

    They are the class token, class and distillation token, or all patches where these are averaged,
    as in rollout. What they keep for prefix tokens is not shown, so a map may sum to less than 1.
    It does not depend on the class, and where a model looks is not yet why it decides. layer:
    number of the block, negative from the end. head: number of the head; None takes the mean over
    all. Source: for what attention does and does not explain, Jain and Wallace 2019, arXiv
    1902.10186."""
    anatomy = model.anatomy
    (index,) = choose_indices([layer], len(list_attention(anatomy)), "layer")
    layout, matrices = list_layouts(anatomy)[index], []

    def keep(call):
        matrix = call.compute_matrix()  # (B, H, T, T)
        (chosen,) = (
            [slice(None)] if head is None else choose_indices([head], matrix.shape[1], "head")
        )
        matrices.append(
            matrix[:, chosen].reshape(len(matrix), -1, *matrix.shape[2:]).mean(dim=1, keepdim=True)
        )
        return call.compute_output()

    with intercept_attention(model.module, anatomy, keep, layers=[index]):
        if anatomy.attention:
            # (B, T, C)
            _, gradient = differentiate_at(anatomy.blocks[-1], model.module, images, targets)
            share = share_read_tokens(gradient)
        else:
            share = None
            with torch.no_grad():
                model.module(images)
    return map_received(matrices[-1].detach(), layout, share)[:, 0]  # (B, rows, columns)

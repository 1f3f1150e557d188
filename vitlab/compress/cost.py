"""What a transformer's parts cost in parameters and multiply-adds: the whole model, each block,
head and neuron.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitlab.compress.tokens import count_tokens, make_image
from vitlab.errors import UserError
from vitlab.models import count_parameters
from vitlab.models.anatomy import evaluating
from vitlab.models.shrinking import find_blocks
from vitlab.registry import unknown
from vitlab.schema import ModelBundle

COUNTS = ("parameters", "multiply_adds")


def count_multiply_adds(model: ModelBundle) -> int:
    """Multiply-adds of one image's forward pass at the model's size: convolutions, matrix products
    and attention.

    Additions, norms and activations are not counted.
    """
    with evaluating(model.module), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model.module(make_image(model))
    return counter.get_total_flops() // 2


def count_cost(model: ModelBundle, by: str, of: str = "model") -> int:
    """Parameters or multiply-adds (by), of the whole model or of its transformer blocks alone
    (of).
    """
    if by not in COUNTS:
        raise UserError(unknown("by", by, list(COUNTS)))
    if of == "blocks":
        return sum(sum(part.values()) for part in cost_blocks(model, by))
    return count_parameters(model.module) if by == "parameters" else count_multiply_adds(model)


def cost_blocks(model: ModelBundle, by: str) -> list[dict[str, int]]:
    """What each block costs: all its heads ("heads"), all its MLP neurons ("neurons"), and the
    "rest", norms and biases.
    """
    blocks, costs = find_blocks(model.module), cost_parts(model, by)
    rows = []
    for block, cost in zip(blocks, costs, strict=True):
        heads, neurons = (
            block.attn.num_heads * cost["head"],
            block.mlp.fc1.out_features * cost["neuron"],
        )
        rest = count_parameters(block) - heads - neurons if by == "parameters" else 0
        rows.append({"heads": heads, "neurons": neurons, "rest": rest})
    return rows


def cost_parts(model: ModelBundle, by: str) -> list[dict[str, int]]:
    """What one head and one neuron of each block cost, for one image where multiply-adds are
    counted.
    """
    blocks = find_blocks(model.module)
    tokens = count_tokens(model) if by == "multiply_adds" else [0] * len(blocks)
    rows = []
    for block, T in zip(blocks, tokens, strict=True):
        attn, mlp = block.attn, block.mlp
        d = attn.head_dim
        if by == "parameters":
            head = 3 * d * _per_row(attn.qkv) + d * attn.proj.out_features
            neuron = _per_row(mlp.fc1) + mlp.fc2.out_features
        else:
            # q k^T, and weights times values
            head = T * d * (3 * attn.qkv.in_features + attn.proj.out_features) + 2 * T * T * d
            neuron = T * (mlp.fc1.in_features + mlp.fc2.out_features)
        rows.append({"head": head, "neuron": neuron})
    return rows


def _per_row(linear: nn.Linear) -> int:
    return linear.in_features + (linear.bias is not None)

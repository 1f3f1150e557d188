"""Pruning: remove the blocks, heads or MLP neurons of a transformer that matter least.

A part is important if the loss would change without it. Parts of little importance per parameter go
first. They are cut out of the weights (`vitlab.models.shrink_model`), not set to zero, so the model
gets smaller and faster on any machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.explain.inspection import inspecting
from vitlab.models import count_parameters
from vitlab.models.shrinking import find_blocks
from vitlab.registry import unknown
from vitlab.schema import ModelBundle

KINDS = ("head", "neuron", "block")
MEASURES = ("taylor", "magnitude")
MIN_HEADS, MIN_NEURONS = 1, 8  # that each remaining block keeps
GROUP = 8  # neurons of a block that are removed together: widths in multiples of 8 compute faster
BATCH = 16  # images
Masks = Mapping[tuple[str, int], torch.Tensor]
Spec = list[dict[str, list[int]] | None]


def part_importance_table(
    model: ModelBundle,
    images: torch.Tensor | None = None,
    labels: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    measure: str = "taylor",
) -> pd.DataFrame:
    """Importance of each part: columns kind (head, neuron, block), block, index (within the block),
    importance.

    measure: taylor, the mean over images of |d cross-entropy / d mask|, by which the loss changes
    to first order without the part (Michel et al. 2019, arXiv 1905.10650). It needs images (N, 3,
    h, w), normalised, of the validation split, and the class name of each. magnitude, the Euclidean
    norm of the part's weights, needs no images.

    Works on timm's ViT and DeiT, hybrid_vit and vit_scratch, also pruned. UserError for other
    models.

    >>> from vitlab.models import build_model
    >>> model = build_model("vit_scratch", ["cat", "dog"], depth=2)
    >>> part_importance_table(model, kinds=["head"], measure="magnitude").shape
    (8, 4)
    """
    if measure not in MEASURES:
        raise UserError(unknown("measure", measure, list(MEASURES)))
    sizes = count_parts(model.module)
    wanted = {(kind, block): size for kind in kinds for block, size in enumerate(sizes[kind])}
    if measure == "magnitude":
        found = {part: _measure_norms(model.module, *part, wanted[part]) for part in wanted}
    else:
        found = _measure_taylor(model, images, labels, wanted)
    tables = []
    for (kind, block), values in found.items():
        columns = {"kind": kind, "block": block, "index": range(len(values))}
        tables.append(pd.DataFrame(columns | {"importance": values.double().numpy()}))
    table = pd.concat(tables, ignore_index=True)
    if not np.isfinite(table["importance"]).all():
        raise UserError(
            f"{measure} gives NaN or infinite values: the model's logits or weights contain them;"
            " train it again"
        )
    return table


def count_parts(module: nn.Module) -> dict[str, list[int]]:
    """How many heads and neurons each block has (and one block); UserError for a model that cannot
    be pruned.
    """
    blocks = find_blocks(module)
    return {
        "head": [block.attn.num_heads for block in blocks],
        "neuron": [block.mlp.fc1.out_features for block in blocks],
        "block": [1] * len(blocks),
    }


@contextmanager
def masking(module: nn.Module, masks: Masks) -> Iterator[None]:
    """While the model runs, multiply parts by masks: (kind, block) -> (B, parts), or (parts,) for
    all images.

    A head's mask scales its output before `proj`, a neuron's its value before `fc2`, a block's all
    that it adds to the tokens."""
    hooks = []
    try:
        for (kind, number), mask in masks.items():
            block = module.blocks[number]
            mask = torch.atleast_2d(mask)
            if kind == "block":
                hooks.append(block.register_forward_hook(_scale_block(mask)))
            elif kind == "head":
                scale = _scale_input(mask, block.attn.head_dim)
                hooks.append(block.attn.proj.register_forward_pre_hook(scale))
            else:
                hooks.append(block.mlp.fc2.register_forward_pre_hook(_scale_input(mask, 1)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _scale_block(mask):
    # (B, T, C)
    return lambda _, inputs, output: inputs[0] + mask[:, :, None] * (output - inputs[0])


def _scale_input(mask, width):
    # (B, T, parts * width)
    return lambda _, inputs: (inputs[0] * mask.repeat_interleave(width, dim=1)[:, None],)


def _measure_taylor(model, images, labels, wanted) -> dict[tuple[str, int], torch.Tensor]:
    """Means over the images of |d loss / d mask|, (parts,). Every image has masks of its own, so
    that signs do not cancel.
    """
    if images is None or labels is None or len(labels) != len(images):
        raise UserError(
            "taylor is measured on images: pass normalised ones (N, 3, h, w) of the validation"
            " split, and a class name for each"
        )
    targets = torch.tensor([model.classes.index(label) for label in labels])
    weight = next(model.module.parameters())
    total = {part: torch.zeros(size, dtype=torch.float64) for part, size in wanted.items()}
    with inspecting(model.module):
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH].to(weight.device, weight.dtype)
            target = targets[start : start + BATCH].to(weight.device)
            masks = {
                part: torch.ones(len(batch), size, device=weight.device, requires_grad=True)
                for part, size in wanted.items()
            }
            with masking(model.module, masks):
                logits = model.module(batch).float()
                loss = F.cross_entropy(logits, target, reduction="sum")
            gradients = torch.autograd.grad(loss, list(masks.values()))
            for part, gradient in zip(masks, gradients, strict=True):
                total[part] += gradient.abs().sum(dim=0).double().cpu()
    return {part: values / len(images) for part, values in total.items()}


@torch.no_grad()
def _measure_norms(module: nn.Module, kind: str, number: int, size: int) -> torch.Tensor:
    """Euclidean norms (parts,) of the weights of each part: a head's rows of qkv and columns of
    proj, a neuron's of fc1 and fc2.
    """
    block = module.blocks[number]
    if kind == "block":
        return nn.utils.parameters_to_vector(block.parameters()).float().norm()[None].cpu()
    layers = (block.attn.qkv, block.attn.proj) if kind == "head" else (block.mlp.fc1, block.mlp.fc2)
    rows = layers[0].weight.float().square().sum(dim=1)
    if layers[0].bias is not None:
        rows = rows + layers[0].bias.float().square()
    columns = layers[1].weight.float().square().sum(dim=0)
    # q, k and v; heads; numbers of a head
    rows = rows.reshape(-1, size, len(columns) // size).sum(dim=(0, 2))
    return (rows + columns.reshape(size, -1).sum(dim=1)).sqrt().cpu()


@dataclass(frozen=True)
class _Part:
    """A head, a group of neurons or a block that may be removed; parameters: that this saves."""

    kind: str
    block: int
    indices: list[int]
    importance: float
    parameters: int


def plan_pruning(
    model: ModelBundle, importance: pd.DataFrame, keep: float, whole_blocks: bool = False
) -> Spec:
    """What each block keeps, as `shrink_model` takes it: parts with the least importance per
    parameter go until at most `keep` of the parameters of the transformer blocks are left.

    importance: a `part_importance_table` of this model. keep: between 0 and 1. whole_blocks: remove
    whole blocks, all but one; else heads and neurons, of which each block keeps at least one head
    and eight neurons. UserError for a share out of reach, with the smallest one that can be
    reached.

    >>> from vitlab.models import build_model, shrink_model
    >>> model = build_model("vit_scratch", ["cat", "dog"], depth=2)
    >>> table = part_importance_table(model, measure="magnitude")
    >>> smaller = shrink_model(model, plan_pruning(model, table, 0.5, whole_blocks=True))
    >>> len(smaller.module.blocks)
    1
    """
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep < 1:
        raise UserError(
            f"keep={keep!r} must be the share of the blocks' parameters to keep, between 0 (nothing"
            " left) and 1 (nothing pruned)"
        )
    parts = _list_parts(model, importance, whole_blocks)
    sizes = count_parts(model.module)
    kept: Spec = []
    for heads, neurons in zip(sizes["head"], sizes["neuron"], strict=True):
        kept.append({"head": list(range(heads)), "neuron": list(range(neurons))})
    total = left = sum(count_parameters(block) for block in find_blocks(model.module))
    for part in sorted(parts, key=lambda part: part.importance / part.parameters):
        if left <= keep * total:
            break
        if part.kind == "block":
            if sum(entry is not None for entry in kept) == 1:
                break
            kept[part.block] = None
        else:
            entry = kept[part.block]
            entry[part.kind] = sorted(set(entry[part.kind]) - set(part.indices))
        left -= part.parameters
    if left > keep * total:
        raise UserError(
            f"keep={keep:g} of the blocks' parameters cannot be reached: {left / total:.3f} of them"
            f" are left when one block remains, or {MIN_HEADS} head and {MIN_NEURONS} neurons in"
            " each block; keep more, or take a smaller model"
        )
    return [entry and {f"{kind}s": indices for kind, indices in entry.items()} for entry in kept]


def pruning_table(model: ModelBundle, spec: Spec) -> pd.DataFrame:
    """Columns block, heads, heads_kept, neurons, neurons_kept: a row for each block of the model
    before pruning; 0 for a removed block. spec: of `plan_pruning`.
    """
    sizes, rows = count_parts(model.module), []
    for block, entry in enumerate(spec):
        kept = entry or {"heads": [], "neurons": []}
        row = {"block": block, "heads": sizes["head"][block], "heads_kept": len(kept["heads"])}
        row |= {"neurons": sizes["neuron"][block], "neurons_kept": len(kept["neurons"])}
        rows.append(row)
    return pd.DataFrame(rows)


def _list_parts(model: ModelBundle, importance: pd.DataFrame, whole_blocks: bool) -> list[_Part]:
    """The parts that may be removed; of neurons always the least important eight of those left."""
    sizes, parts = count_parts(model.module), []
    blocks = find_blocks(model.module)
    for kind in ("block",) if whole_blocks else ("head", "neuron"):
        for number, block in enumerate(blocks):
            rows = importance[(importance["kind"] == kind) & (importance["block"] == number)]
            value = rows.sort_values("index")["importance"].to_numpy()
            if len(value) != sizes[kind][number]:
                raise UserError(
                    f"importance has other parts of kind {kind} than {model.name}; measure it on"
                    " this very model"
                )
            if kind == "block":
                parts.append(_Part(kind, number, [0], float(value[0]), count_parameters(block)))
                continue
            least, group = (MIN_HEADS, 1) if kind == "head" else (MIN_NEURONS, GROUP)
            cost = _count_head(block.attn) if kind == "head" else _count_neuron(block.mlp)
            order = value.argsort(kind="stable")[: max(0, len(value) - least)]
            for start in range(0, len(order) - group + 1, group):
                indices = order[start : start + group]
                total = float(value[indices].sum())
                parts.append(_Part(kind, number, indices.tolist(), total, group * cost))
    return parts


def _count_head(attn) -> int:
    """Parameters of one head: rows of q, k and v, and columns of the projection."""
    rows = attn.qkv.in_features + (attn.qkv.bias is not None)
    return attn.head_dim * (3 * rows + attn.proj.out_features)


def _count_neuron(mlp) -> int:
    return mlp.fc1.in_features + (mlp.fc1.bias is not None) + mlp.fc2.out_features

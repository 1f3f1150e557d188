"""The importance of each head, MLP neuron and block of a transformer, by which pruning chooses.

A mask of ones multiplies the outputs of heads, the neurons, and what blocks add to their tokens.
Pruning a part sets its mask to 0; its importance is what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.explain.inspection import inspecting
from vitlab.explain.methods import check_images
from vitlab.models.shrinking import find_blocks
from vitlab.registry import unknown
from vitlab.schema import ModelBundle

KINDS = ("head", "neuron", "block")
MEASURES = ("taylor", "magnitude")
Masks = Mapping[tuple[str, int], torch.Tensor]


def part_importance_table(
    model: ModelBundle,
    images: torch.Tensor | None = None,
    labels: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    measure: str = "taylor",
    *,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Importance of each part; columns kind (head, neuron, block), block, index (within the block),
    importance, measure.

    images: (N, 3, h, w), normalised, of the validation split rather than the test split; labels:
    the class name of each. measure: taylor, the mean over images of |d cross-entropy / d mask|, by
    which the loss changes to first order without the part; one backward pass gives all of them.
    magnitude, the Euclidean norm of the part's weights; needs no images. Values of one measure can
    be compared across kinds, those of two measures cannot.

    Works on timm's ViT and DeiT, hybrid_vit and vit_scratch, and on pruned ones. ValueError for
    anything else. Source: Michel et al. 2019, arXiv 1905.10650; Molchanov et al. 2019, arXiv
    1906.10771.

    >>> from vitlab.models import build_model
    >>> model = build_model("vit_scratch", ["cat", "dog"], depth=2)
    >>> part_importance_table(model, kinds=["head"], measure="magnitude").shape
    (8, 5)
    """
    if measure not in MEASURES:
        raise UserError(unknown("measure", measure, list(MEASURES)))
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(unknown("kind", kind, list(KINDS)))
    sizes = count_parts(model.module)
    wanted = {(kind, block): size for kind in kinds for block, size in enumerate(sizes[kind])}
    if measure == "magnitude":
        norms = {
            (kind, block): _measure_weights(model.module.blocks[block], kind, size)
            for (kind, block), size in wanted.items()
        }
        return _tabulate(norms, measure)
    if images is None:
        raise UserError(
            f"{measure} is measured on images; pass normalised ones (N, 3, h, w) of the validation"
            " split"
        )
    check_images(images, None, batch_size)
    targets = _read_labels(model, labels, len(images))
    weight = next(model.module.parameters())
    total = {part: torch.zeros(size, dtype=torch.float64) for part, size in wanted.items()}
    with inspecting(model.module):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(weight.device, weight.dtype)
            labelled = targets[start : start + batch_size].to(batch.device)
            for part, values in _differentiate(model.module, batch, labelled, wanted).items():
                total[part] += values.double().cpu()
    return _tabulate({part: values / len(images) for part, values in total.items()}, measure)


def count_parts(module: nn.Module) -> dict[str, list[int]]:
    """How many heads and neurons each block has (and one block); ValueError for a model that cannot
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
    """While the model runs, multiply parts by masks: (kind, block) -> (parts,) for all images, or
    (B, parts), one for each image.

    A head's mask scales its output before `proj`, a neuron's its value before `fc2`, a block's (one
    part) all that it adds."""
    with ExitStack() as stack:
        for (kind, number), mask in masks.items():
            block = module.blocks[number]
            mask = mask if mask.ndim == 2 else mask[None]
            if kind == "block":
                hook = block.register_forward_hook(_scale_block(mask))
            else:
                linear, width = (
                    (block.attn.proj, block.attn.head_dim) if kind == "head" else (block.mlp.fc2, 1)
                )
                hook = linear.register_forward_pre_hook(_scale_input(mask, width))
            stack.callback(hook.remove)
        yield


def _scale_block(mask):
    # (B, T, C)
    return lambda _, inputs, output: inputs[0] + mask[:, :, None] * (output - inputs[0])


def _scale_input(mask, width):
    # (B, T, parts * width)
    return lambda _, inputs: (inputs[0] * mask.repeat_interleave(width, dim=1)[:, None],)


def _differentiate(module, images, targets, wanted) -> dict[tuple[str, int], torch.Tensor]:
    """Sums over the images of |d loss / d mask|, (parts,); every image has masks of its own, so
    that signs do not cancel.
    """
    masks = {
        part: torch.ones(len(images), size, device=images.device, requires_grad=True)
        for part, size in wanted.items()
    }
    with masking(module, masks):
        loss = F.cross_entropy(module(images).float(), targets, reduction="sum")
    gradients = torch.autograd.grad(loss, list(masks.values()))
    return {
        part: gradient.abs().sum(dim=0) for part, gradient in zip(masks, gradients, strict=True)
    }


def _measure_weights(block, kind, size) -> torch.Tensor:
    """Euclidean norms of what goes with each part: a head's rows of qkv and columns of proj, a
    neuron's of fc1 and fc2.
    """
    with torch.no_grad():
        if kind == "block":
            return (
                torch.stack([parameter.float().square().sum() for parameter in block.parameters()])
                .sum()
                .sqrt()[None]
                .cpu()
            )
        into, out = (
            (block.attn.qkv, block.attn.proj) if kind == "head" else (block.mlp.fc1, block.mlp.fc2)
        )
        rows = into.weight.float().square().sum(dim=1)
        if into.bias is not None:
            rows = rows + into.bias.float().square()
        columns = out.weight.float().square().sum(dim=0)
        # q, k and v; heads; numbers of a head
        rows = rows.reshape(-1, size, len(columns) // size).sum(dim=(0, 2))
        return (rows + columns.reshape(size, -1).sum(dim=1)).sqrt().cpu()


def _tabulate(found: Mapping[tuple[str, int], torch.Tensor], measure: str) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "kind": kind,
                "block": block,
                "index": range(len(values)),
                "importance": values.double().numpy(),
            }
        )
        for (kind, block), values in found.items()
    ]
    table = pd.concat(parts, ignore_index=True).assign(measure=measure)
    if not np.isfinite(table["importance"]).all():
        raise UserError(
            f"{measure} gives NaN or infinite values: the model's logits or weights contain them;"
            " train it again"
        )
    return table


def _read_labels(model, labels, count) -> torch.Tensor:
    if labels is None or isinstance(labels, str) or len(labels) != count:
        raise UserError(
            f"labels must be {count} class names, one for each image, to say what the loss is"
        )
    for label in labels:
        if label not in model.classes:
            raise UserError(unknown("label", str(label), list(model.classes)))
    return torch.tensor([model.classes.index(label) for label in labels])

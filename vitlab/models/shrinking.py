"""Transformer blocks made physically smaller: heads, MLP neurons and whole blocks cut out of the
weight matrices.

A spec is a list with one entry for each block: None (the block is dropped), or a dictionary of what
stays, {"heads": ..., "neurons": ...}, each a list of indices or a number (the first so many); what
it leaves out stays whole. Heads may differ from block to block; their width stays. A spec of
numbers alone is plain JSON, and enough to build the architecture again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import Mlp as TimmMlp
from torch import nn

from vitlab.errors import UserError
from vitlab.models.anatomy import find_anatomy
from vitlab.models.merging import list_plain_blocks
from vitlab.models.vit import Mlp
from vitlab.schema import ModelBundle

Spec = Sequence[dict[str, Any] | None]
KINDS = ("heads", "neurons")


def shrink_model(model: ModelBundle, spec: Spec) -> ModelBundle:
    """A smaller copy of the model that `save_model` and `load_model` can keep; the given model
    stays as it is.

    Blocks, heads and neurons are counted as the model has them now, also where it was shrunk
    before. Its options hold the sizes under "shrunk", counted as the model was built. UserError for
    a spec that does not fit.

    >>> from vitlab.models import build_model, count_parameters
    >>> model = build_model("vit_scratch", ["cat", "dog"], depth=2)
    >>> smaller = shrink_model(model, [{"heads": [0, 3], "neurons": 256}, None])
    >>> count_parameters(model.module), count_parameters(smaller.module)
    (460930, 163906)
    """
    spec = check_spec(model.module, spec)
    module = copy.deepcopy(model.module)
    shrink(module, spec)
    earlier = model.options.get("shrunk") or [{}] * len(spec)
    new = iter(count_sizes(spec))
    sizes = [None if entry is None else next(new) for entry in earlier]
    return replace(
        model,
        module=module,
        options={**model.options, "shrunk": sizes},
        anatomy=find_anatomy(module, tuple(model.transform.size)),
    )


def shrink(module: nn.Module, spec: Spec) -> None:
    """Rewrite the blocks of a ViT or DeiT of timm, of hybrid_vit or vit_scratch in place; the
    logits are those of the same model with the outputs of the removed heads and neurons set to
    zero.

    Of qkv (3*heads*d, C) and fc1 (neurons, C) rows are kept, of proj (C, heads*d) and fc2 (C,
    neurons) columns. UserError, and nothing changed, for a model without such blocks and for a spec
    that names what does not exist or leaves nothing."""
    spec = check_spec(module, spec)
    for block, entry in zip(module.blocks, spec, strict=True):
        if entry is not None:
            _keep_heads(block.attn, entry["heads"])
            _keep_rows(block.mlp.fc1, entry["neurons"])
            _keep_columns(block.mlp.fc2, entry["neurons"])
    kept = [block for block, entry in zip(module.blocks, spec, strict=True) if entry is not None]
    if len(kept) < len(module.blocks):
        module.blocks = nn.Sequential(*kept)
        info = getattr(module, "feature_info", None)
        # timm notes where each block's features come from
        if isinstance(info, list) and len(info) == len(spec):
            module.feature_info = [{**info[i], "module": f"blocks.{i}"} for i in range(len(kept))]


def check_spec(module: nn.Module, spec: Spec) -> list[dict[str, list[int]] | None]:
    """The spec with indices written out, for this module; UserError where the two do not fit."""
    blocks = find_blocks(module)
    if isinstance(spec, str | dict) or len(spec) != len(blocks):
        raise UserError(
            f"a spec has one entry for each of the {len(blocks)} blocks, not {spec!r:.80}"
        )
    if all(entry is None for entry in spec):
        raise UserError(f"the spec drops all {len(blocks)} blocks; keep at least one")
    checked: list[dict[str, list[int]] | None] = []
    for i, (block, entry) in enumerate(zip(blocks, spec, strict=True)):
        if entry is None:
            checked.append(None)
            continue
        if not isinstance(entry, dict) or entry.keys() - set(KINDS):
            raise UserError(
                f"block {i} of the spec is {entry!r}; write None or a dictionary with"
                f" {' and '.join(KINDS)}"
            )
        there = {"heads": block.attn.num_heads, "neurons": block.mlp.fc1.out_features}
        checked.append({kind: _list_kept(entry.get(kind), there[kind], kind, i) for kind in KINDS})
    return checked


def count_sizes(spec: Iterable[dict[str, list[int]] | None]) -> list[dict[str, int] | None]:
    """A checked spec as numbers alone."""
    return [None if entry is None else {kind: len(entry[kind]) for kind in KINDS} for entry in spec]


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks that can be shrunk; UserError where there are none, or they are built
    in another way.
    """
    blocks = list_plain_blocks(module, "be pruned")
    for i, block in enumerate(blocks):
        # a norm between fc1 and fc2 mixes the neurons
        has_norm = not isinstance(getattr(block.mlp, "norm", None), nn.Identity | None)
        if type(block.mlp) not in (Mlp, TimmMlp) or has_norm:
            raise UserError(
                f"the MLP of block {i} is a {type(block.mlp).__name__} that cannot be pruned"
            )
    return blocks


def _list_kept(kept, there: int, kind: str, i: int) -> list[int]:
    if kept is None:
        return list(range(there))
    indices = range(kept) if type(kept) is int else sorted(set(kept))
    if not len(indices) or indices[0] < 0 or indices[-1] >= there:
        raise UserError(
            f"block {i} has {there} {kind}, 0 to {there - 1}; a spec keeps at least one of them,"
            f" not {kept!r}"
        )
    return list(indices)


def _keep_heads(attn: nn.Module, heads: list[int]) -> None:
    size = attn.head_dim
    columns = [head * size + j for head in heads for j in range(size)]
    width = attn.num_heads * size
    _keep_rows(attn.qkv, [part * width + column for part in range(3) for column in columns])
    _keep_columns(attn.proj, columns)
    attn.num_heads = len(heads)
    if hasattr(attn, "attn_dim"):  # timm's word for heads * head_dim
        attn.attn_dim = len(columns)


def _keep_rows(linear: nn.Linear, rows: list[int]) -> None:
    linear.weight = _select(linear.weight, 0, rows)
    if linear.bias is not None:
        linear.bias = _select(linear.bias, 0, rows)
    linear.out_features = len(rows)


def _keep_columns(linear: nn.Linear, columns: list[int]) -> None:
    linear.weight = _select(linear.weight, 1, columns)
    linear.in_features = len(columns)


def _select(parameter: nn.Parameter, axis: int, indices: list[int]) -> nn.Parameter:
    chosen = parameter.detach().index_select(axis, torch.tensor(indices, device=parameter.device))
    return nn.Parameter(chosen.contiguous(), requires_grad=parameter.requires_grad)

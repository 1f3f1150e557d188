"""Pruning: remove the least important blocks, heads or MLP neurons until the target is reached.

They are cut out of the weights (`vitlab.models.shrink_model`), not set to zero, so the model gets
smaller and faster on any machine."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from vitlab.compress.importance import count_parts
from vitlab.errors import UserError
from vitlab.models import count_parameters
from vitlab.models.shrinking import find_blocks, shrink_model
from vitlab.schema import ModelBundle

MIN_HEADS, MIN_NEURONS = 1, 8  # that each remaining block keeps
GROUP = 8  # neurons of a block that are removed together: widths in multiples of 8 compute faster


@dataclass(frozen=True)
class PruningPlan:
    """What is kept.

    spec: what `shrink_model` takes. share: of the parameters of the blocks that is left. table: one
    row for each block with columns block, heads, heads_kept, neurons, neurons_kept (0 for a removed
    block)."""

    spec: list[dict[str, list[int]] | None] = field(repr=False)
    share: float
    table: pd.DataFrame = field(repr=False)


@dataclass(frozen=True)
class _Part:
    """A head, a group of neurons or a block that may be removed; parameters: that this saves."""

    kind: str
    block: int
    indices: list[int]
    importance: float
    parameters: int

    @property
    def price(self) -> float:
        return self.importance / self.parameters


def plan_pruning(model: ModelBundle, importance: pd.DataFrame, keep: float) -> PruningPlan:
    """Remove the parts with the least importance per parameter until at most `keep` of the
    parameters of the transformer blocks are left.

    importance: a `part_importance_table` of this model and one measure. Its rows say what may be
    removed: either whole blocks, all but one, or heads and neurons, of which each block keeps at
    least one head and eight neurons. keep: between 0 and 1. ValueError for a share out of reach,
    with the smallest one that can be reached, and for a table of another model.

    >>> from vitlab.compress import part_importance_table
    >>> from vitlab.models import build_model
    >>> model = build_model("vit_scratch", ["cat", "dog"], depth=2)
    >>> table = part_importance_table(model, kinds=["block"], measure="magnitude")
    >>> plan_pruning(model, table, 0.5).share
    0.5
    """
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep < 1:
        raise UserError(
            f"keep={keep!r} must be the share of the blocks' parameters to keep, between 0 (nothing"
            " left) and 1 (nothing pruned)"
        )
    parts = _list_parts(model, _read_importance(model, importance))
    total = sum(count_parameters(block) for block in find_blocks(model.module))
    left, removed = total, []
    for part in sorted(parts, key=lambda part: part.price):
        if left <= keep * total:
            break
        if part.kind == "block" and len(removed) == len(parts) - 1:
            break  # one block stays
        left -= part.parameters
        removed.append(part)
    if left > keep * total:
        kinds = " or ".join(sorted({part.kind for part in parts}))
        raise UserError(
            f"keep={keep:g} of the blocks' parameters cannot be reached: without any {kinds} that"
            f" may be removed, {left / total:.3f} of them are left. A plan keeps at least one"
            f" block, and {MIN_HEADS} head and {MIN_NEURONS} neurons in each; keep more, or take a"
            " smaller model"
        )
    spec = _write_spec(model, removed)
    return PruningPlan(spec, left / total, _tabulate(model, spec))


def prune(model: ModelBundle, plan: PruningPlan) -> ModelBundle:
    """A copy of the model without the parts that the plan removes; ValueError where the plan was
    made for a model of other sizes.
    """
    sizes = count_parts(model.module)
    planned = {"head": plan.table["heads"].tolist(), "neuron": plan.table["neurons"].tolist()}
    if any(sizes[kind] != numbers for kind, numbers in planned.items()):
        raise UserError(
            f"this plan was made for a model of other sizes than {model.name} has now; plan again"
            " for this model"
        )
    return shrink_model(model, plan.spec)


def _list_parts(model: ModelBundle, values: dict[tuple[str, int], np.ndarray]) -> list[_Part]:
    """The parts that may be removed; of neurons always the least important eight of those left."""
    blocks, parts = find_blocks(model.module), []
    for (kind, number), value in values.items():
        block = blocks[number]
        if kind == "block":
            parts.append(_Part(kind, number, [0], float(value[0]), count_parameters(block)))
            continue
        kept, group = (MIN_HEADS, 1) if kind == "head" else (MIN_NEURONS, GROUP)
        cost = _count_head(block.attn) if kind == "head" else _count_neuron(block.mlp)
        order = value.argsort(kind="stable")[: max(0, len(value) - kept)]
        for start in range(0, len(order) - group + 1, group):
            indices = order[start : start + group]
            importance = float(value[indices].sum())
            parts.append(_Part(kind, number, indices.tolist(), importance, group * cost))
    return parts


def _count_head(attn) -> int:
    """Parameters of one head: rows of q, k and v, and columns of the projection."""
    rows = attn.qkv.in_features + (attn.qkv.bias is not None)
    return attn.head_dim * (3 * rows + attn.proj.out_features)


def _count_neuron(mlp) -> int:
    return mlp.fc1.in_features + (mlp.fc1.bias is not None) + mlp.fc2.out_features


def _write_spec(model: ModelBundle, removed: list[_Part]) -> list[dict[str, list[int]] | None]:
    gone = {(part.kind, part.block, index) for part in removed for index in part.indices}
    sizes, spec = count_parts(model.module), []
    for number in range(len(sizes["block"])):
        if ("block", number, 0) in gone:
            spec.append(None)
            continue
        entry = {}
        for name, kind in (("heads", "head"), ("neurons", "neuron")):
            indices = range(sizes[kind][number])
            entry[name] = [index for index in indices if (kind, number, index) not in gone]
        spec.append(entry)
    return spec


def _read_importance(model: ModelBundle, importance) -> dict[tuple[str, int], np.ndarray]:
    """(kind, block) -> values in the order of the indices; ValueError for a table of another model
    or of kinds that do not go together.
    """
    if importance["measure"].nunique() != 1:
        raise UserError(
            f"importance holds several measures ({', '.join(importance['measure'].unique())}),"
            " whose values cannot be compared; pass the table of one"
        )
    kinds = set(importance["kind"])
    if "block" in kinds and len(kinds) > 1:
        raise UserError(
            "importance holds whole blocks and parts within them; pass the rows of kind block, or"
            " those of heads and neurons"
        )
    sizes, values = count_parts(model.module), {}
    for (kind, block), rows in importance.groupby(["kind", "block"]):
        values[kind, int(block)] = rows.sort_values("index")["importance"].to_numpy()
    given = {part: len(value) for part, value in values.items()}
    for kind in kinds:
        own = {(kind, block): size for block, size in enumerate(sizes.get(kind, []))}
        if own != {part: size for part, size in given.items() if part[0] == kind}:
            raise UserError(
                f"importance has other parts of kind {kind} than {model.name}; measure it on this"
                " very model"
            )
    return values


def _tabulate(model: ModelBundle, spec) -> pd.DataFrame:
    sizes = count_parts(model.module)
    rows = [
        {
            "block": block,
            "heads": sizes["head"][block],
            "heads_kept": len(entry["heads"]) if entry else 0,
            "neurons": sizes["neuron"][block],
            "neurons_kept": len(entry["neurons"]) if entry else 0,
        }
        for block, entry in enumerate(spec)
    ]
    return pd.DataFrame(rows)

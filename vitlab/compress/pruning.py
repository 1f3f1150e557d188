"""Pruning to a target: which heads, MLP neurons and blocks go, those with the least importance per
unit of cost first.

What goes is cut out of the weights (`vitlab.models.shrink_model`), not set to zero, so the model is
smaller and faster on any machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vitlab.compress.cost import COUNTS, cost_blocks, cost_parts, count_cost
from vitlab.compress.importance import count_parts
from vitlab.errors import UserError
from vitlab.models.shrinking import shrink_model
from vitlab.registry import unknown
from vitlab.schema import ModelBundle

MIN_HEADS, MIN_NEURONS = 1, 8  # that every block keeps which stays
GROUP = 8  # neurons of a block that go together: widths that are multiples of 8 compute faster


@dataclass(frozen=True)
class PruningPlan:
    """What is kept, and what it comes to.

    spec: what `shrink_model` takes. by, of: what the target was counted in, and of what. share: of
    it that is left, the model planned for being 1. table: one row a block with columns block,
    heads, heads_kept, neurons, neurons_kept (0 for a block that goes)."""

    spec: list[dict[str, list[int]] | None] = field(repr=False)
    by: str
    of: str
    share: float
    table: pd.DataFrame = field(repr=False)


def plan_pruning(
    model: ModelBundle,
    importance: pd.DataFrame,
    target: float,
    by: str = "parameters",
    *,
    of: str = "model",
    drop_blocks: bool = False,
) -> PruningPlan:
    """Remove what is least important per unit of cost until at most `target` of the model's cost is
    left.

    importance: from `importance_table`, of this model and one measure; kinds that it lacks are left
    alone. target: share kept, between 0 and 1. by: parameters, or multiply_adds (of one image). of:
    model, or blocks for a share of the transformer blocks alone. drop_blocks: whole blocks may go
    too, all but one, where that does not overshoot the target or nothing else is left to go. Every
    block that stays keeps at least one head and eight neurons.

    Raises ValueError for a target out of reach, saying what is reachable, and for a table of
    another model."""
    _check_target(target, by, of)
    values = _read_importance(model, importance, drop_blocks)
    greedy = _Greedy(model, values, by)
    before = count_cost(model, by, of)
    spec, after = greedy.keep(before, target * before)
    if after > target * before:
        raise _refuse(target, after / before, by, of, greedy, drop_blocks)
    return PruningPlan(spec, by, of, after / before, _tabulate(model, spec))


def prune(model: ModelBundle, plan: PruningPlan) -> ModelBundle:
    """A copy of the model without what the plan removes; ValueError where the plan was made for a
    model of other sizes.
    """
    sizes = count_parts(model.module)
    if (
        sizes["head"] != plan.table["heads"].tolist()
        or sizes["neuron"] != plan.table["neurons"].tolist()
    ):
        raise UserError(
            f"this plan was made for a model of other sizes than {model.name} has now; plan again"
            " for this model"
        )
    return shrink_model(model, plan.spec)


class _Greedy:
    """Parts in the order in which they go. Groups of neurons and heads have a fixed price; a
    block's falls as it is emptied.
    """

    def __init__(self, model, values, by):
        self.sizes = count_parts(model.module)
        self.costs, self.parts = (
            [sum(row.values()) for row in cost_blocks(model, by)],
            cost_parts(model, by),
        )
        self.blocks = {
            block: float(value[0]) for (kind, block), value in values.items() if kind == "block"
        }
        # importance per cost, kind, block, indices
        self.queue: list[tuple[float, str, int, list[int]]] = []
        for (kind, block), value in values.items():
            if kind == "block":
                continue
            kept, group = (MIN_HEADS, 1) if kind == "head" else (MIN_NEURONS, GROUP)
            order = value.argsort(kind="stable")[: max(0, len(value) - kept)]
            for start in range(0, len(order) - group + 1, group):
                indices = order[start : start + group]
                price = value[indices].sum() / (group * self.parts[block][kind])
                self.queue.append((float(price), kind, block, indices.tolist()))
        self.queue.sort(key=lambda entry: entry[0])

    def keep(self, cost: float, goal: float) -> tuple[list[dict[str, list[int]] | None], float]:
        """The spec of what is left once the cost has come down to the goal, or nothing more can go;
        and the cost then.
        """
        gone: dict[tuple[str, int], set[int]] = {}
        left = dict(enumerate(self.costs))  # of the blocks that stay
        place = 0
        while cost > goal:
            while place < len(self.queue) and self.queue[place][2] not in left:
                place += 1
            part = self.queue[place] if place < len(self.queue) else None
            fitting = [
                block
                for block in self.blocks.keys() & left
                if part is None or cost - left[block] >= goal
            ]
            drop = (
                min(fitting, key=lambda block: self.blocks[block] / left[block], default=None)
                if len(left) > 1
                else None
            )
            if part is None and drop is None:
                break
            if drop is not None and (part is None or self.blocks[drop] / left[drop] < part[0]):
                cost -= left.pop(drop)
                continue
            _, kind, block, indices = part
            gone.setdefault((kind, block), set()).update(indices)
            saved = len(indices) * self.parts[block][kind]
            cost, left[block], place = cost - saved, left[block] - saved, place + 1
        return [
            self._list_kept(block, gone) if block in left else None
            for block in range(len(self.costs))
        ], cost

    def _list_kept(self, block, gone) -> dict[str, list[int]]:
        pairs = (("heads", "head"), ("neurons", "neuron"))
        return {
            name: [
                index
                for index in range(self.sizes[kind][block])
                if index not in gone.get((kind, block), ())
            ]
            for name, kind in pairs
        }


def _read_importance(model, importance, drop_blocks) -> dict[tuple[str, int], Any]:
    """(kind, block) -> values in the order of the indices; ValueError where they are not all
    there.
    """
    if importance["measure"].nunique() != 1:
        raise UserError(
            f"importance holds several measures ({', '.join(importance['measure'].unique())}),"
            " whose values cannot be compared; hand over the table of one"
        )
    sizes = count_parts(model.module)
    values = {}
    for (kind, block), rows in importance.groupby(["kind", "block"]):
        rows = rows.sort_values("index")
        if (
            kind not in sizes
            or block >= len(sizes[kind])
            or rows["index"].tolist() != list(range(sizes[kind][block]))
        ):
            raise UserError(
                f"importance has other parts ({kind} of block {block}) than {model.name}; measure"
                " it on this very model"
            )
        values[kind, int(block)] = rows["importance"].to_numpy()
    for kind in importance["kind"].unique():
        missing = [block for block in range(len(sizes[kind])) if (kind, block) not in values]
        if missing:
            raise UserError(
                f"importance has no {kind} of block {missing[0]}; measure it on this very model"
            )
    if drop_blocks and not any(kind == "block" for kind, _ in values):
        raise UserError(
            "drop_blocks needs the importance of blocks; measure it with kinds=('head', 'neuron',"
            " 'block')"
        )
    return {part: value for part, value in values.items() if part[0] != "block" or drop_blocks}


def _check_target(target, by, of) -> None:
    if by not in COUNTS:
        raise UserError(unknown("by", by, list(COUNTS)))
    if of not in ("model", "blocks"):
        raise UserError(unknown("of", of, ["model", "blocks"]))
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target < 1:
        raise UserError(
            f"target={target!r} must be the share of {by} to keep, between 0 (all pruned, nothing"
            " left) and 1 (nothing pruned)"
        )


def _refuse(target, reachable, by, of, greedy, drop_blocks) -> UserError:
    kinds = sorted({kind for _, kind, _, _ in greedy.queue} | ({"block"} if drop_blocks else set()))
    outside = ", and nothing outside the blocks goes" if of == "model" else ""
    advice = "" if drop_blocks else ", allow whole blocks to go (drop_blocks=True)"
    return UserError(
        f"target={target:g} of the {by} of the {of} cannot be reached: when all that may go"
        f" ({', '.join(kinds)}) is gone, {reachable:.3f} of them are left. A plan keeps at least"
        f" {MIN_HEADS} head and {MIN_NEURONS} neurons in every block{outside}; ask for more than"
        f" that{advice}, or take a smaller model"
    )


def _tabulate(model, spec) -> pd.DataFrame:
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

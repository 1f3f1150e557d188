"""Pruning to a target: which heads, MLP neurons and blocks go, least important first for what they cost, at once or in steps.

What goes is cut out of the weights (`vitlab.models.shrink_model`), not set to zero, so that the model is smaller and faster on
any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from vitlab.compress.cost import cost_blocks, cost_parts, count_cost, measure_ratio
from vitlab.compress.importance import count_parts, importance_table
from vitlab.errors import UserError
from vitlab.models.shrinking import shrink_model
from vitlab.registry import unknown
from vitlab.schema import ModelBundle

BY = ("parameters", "multiply_adds", "latency")
BISECTIONS = 6  # of the multiply-adds left, for a target of latency: to 1/64 of what can be pruned


@dataclass(frozen=True)
class PruningPlan:
    """What is kept, and what it comes to.

    spec: what `shrink_model` takes. by, of: what the target was counted in, and of what. share: of it that is left, the model
    planned for being 1. table: one row a block with columns block, heads, heads_kept, neurons, neurons_kept (0 for a block that
    goes).
    """

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
    min_heads: int = 1,
    min_neurons: int = 8,
    neurons_at_once: int = 8,
    repeats: int = 15,
) -> PruningPlan:
    """Remove what is least important per unit of cost until at most `target` of the model's cost is left.

    importance: from `importance_table`, of this model and one measure; kinds that it lacks are left alone. target: share kept,
    between 0 and 1. by: parameters, multiply_adds (one image), or latency: the time of one image on this machine, now; there
    the multiply-adds are halved in on until the measured median ratio (over `repeats` pairs of passes) meets the target, and what
    is found is timed once more; on a machine that does other work, more repeats make it sure.
    of: model, or blocks for a share of the transformer blocks alone (not of latency). drop_blocks: whole blocks may go too, all
    but one, where that does not overshoot the target or nothing else is left to go. min_heads, min_neurons: what every block that
    stays keeps. neurons_at_once: neurons of a block go in groups of so many, since widths that are multiples of 8 compute faster.

    Raises ValueError for a target out of reach, saying what is reachable, and for a table of another model.
    """
    _check_target(target, by, of)
    for name, value in {"min_heads": min_heads, "min_neurons": min_neurons, "neurons_at_once": neurons_at_once}.items():
        if type(value) is not int or value < 1:
            raise UserError(
                f"{name} must be a whole number of at least 1, not {value!r}; a block that keeps nothing is drop_blocks"
            )
    values = _read_importance(model, importance, drop_blocks)
    counted = "multiply_adds" if by == "latency" else by
    greedy = _Greedy(model, values, counted, min_heads, min_neurons, neurons_at_once)
    before = count_cost(model, counted, of)
    if by != "latency":
        spec, after = greedy.keep(before, target * before)
        if after > target * before:
            raise _refuse(target, after / before, by, of, greedy, drop_blocks)
        return PruningPlan(spec, by, of, after / before, _tabulate(model, spec))
    spec, share = _halve_in(model, greedy, before, target, repeats)
    if share > target:
        raise _refuse(target, share, by, of, greedy, drop_blocks)
    return PruningPlan(spec, by, of, share, _tabulate(model, spec))


def _halve_in(model, greedy, before, target, repeats) -> tuple[list[dict[str, list[int]] | None], float]:
    """The spec of most multiply-adds whose time meets the target, and its share of the model's; the smallest one if none does.

    Of many noisy ratios around a target the low ones are taken, so what was found is timed once more, and where that fails the
    next smaller one is. The share is of that last time, by which nothing was chosen.
    """

    def measure(spec):
        return measure_ratio(shrink_model(model, spec), model, repeats=repeats)

    spec, low = greedy.keep(before, 0)
    share = measure(spec)
    if share > target:
        return spec, share
    fitting, high = [spec], before
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        spec, _ = greedy.keep(before, middle)
        if measure(spec) <= target:
            low = middle
            fitting.append(spec)
        else:
            high = middle
    while True:
        spec = fitting.pop()
        share = measure(spec)
        if share <= target or not fitting:
            return spec, share


def prune(model: ModelBundle, plan: PruningPlan) -> ModelBundle:
    """A copy of the model without what the plan removes; ValueError where the plan was made for a model of other sizes."""
    sizes = count_parts(model.module)
    if sizes["head"] != plan.table["heads"].tolist() or sizes["neuron"] != plan.table["neurons"].tolist():
        raise UserError(f"this plan was made for a model of other sizes than {model.name} has now; plan again for this model")
    return shrink_model(model, plan.spec)


def prune_iteratively(
    model: ModelBundle,
    images: torch.Tensor,
    labels: Sequence[str],
    target: float,
    steps: int = 3,
    *,
    recover: Callable[[ModelBundle], object] | None = None,
    by: str = "parameters",
    of: str = "model",
    measure: str = "taylor",
    batch_size: int = 16,
    **options,
) -> ModelBundle:
    """Prune to the target in steps, importance measured anew before each and the model recovered after each.

    images, labels: as for `importance_table`. The share left falls by the same factor in every step. recover: trains the pruned
    bundle on, in place, or gives back one of the same sizes; without it only the measuring is repeated.
    options: of `plan_pruning`. A target out of reach is refused before any step.
    """
    if type(steps) is not int or steps < 1:
        raise UserError(f"steps must be a whole number of at least 1, not {steps!r}")
    _check_target(target, by, of)

    def weigh(current):
        return importance_table(current, images, labels, measure=measure, batch_size=batch_size)

    importance = weigh(model)
    plan_pruning(model, importance, target, by, of=of, **options)
    current = model
    for step in range(1, steps + 1):
        left = 1.0 if current is model else _measure_share(current, model, by, of)
        share = target ** (step / steps) / left
        if share >= 1:  # the step before went further than it had to
            continue
        importance = importance if current is model else weigh(current)
        current = prune(current, plan_pruning(current, importance, share, by, of=of, **options))
        if recover is not None:
            trained = recover(current)
            if isinstance(trained, ModelBundle):
                if trained.options.get("shrunk") != current.options["shrunk"]:
                    raise UserError("recover gave back a model of other sizes than it was handed; let it train that very bundle")
                current = trained
    return current


class _Greedy:
    """Parts in the order in which they go. Groups of neurons and heads have a fixed price; a block's falls as it is emptied."""

    def __init__(self, model, values, by, min_heads, min_neurons, neurons_at_once):
        self.sizes = count_parts(model.module)
        self.costs, self.parts = [sum(row.values()) for row in cost_blocks(model, by)], cost_parts(model, by)
        self.limits = f"at least {min_heads} head(s) and {min_neurons} neurons in every block"
        self.blocks = {block: float(value[0]) for (kind, block), value in values.items() if kind == "block"}
        self.queue: list[tuple[float, str, int, list[int]]] = []  # importance per cost, kind, block, indices
        for (kind, block), value in values.items():
            if kind == "block":
                continue
            kept, group = (min_heads, 1) if kind == "head" else (min_neurons, neurons_at_once)
            order = value.argsort(kind="stable")[: max(0, len(value) - kept)]
            for start in range(0, len(order) - group + 1, group):
                indices = order[start : start + group]
                price = value[indices].sum() / (group * self.parts[block][kind])
                self.queue.append((float(price), kind, block, indices.tolist()))
        self.queue.sort(key=lambda entry: entry[0])

    def keep(self, cost: float, goal: float) -> tuple[list[dict[str, list[int]] | None], float]:
        """The spec of what is left once the cost has come down to the goal, or nothing more can go; and the cost then."""
        gone: dict[tuple[str, int], set[int]] = {}
        left = dict(enumerate(self.costs))  # of the blocks that stay
        place = 0
        while cost > goal:
            while place < len(self.queue) and self.queue[place][2] not in left:
                place += 1
            part = self.queue[place] if place < len(self.queue) else None
            fitting = [block for block in self.blocks.keys() & left if part is None or cost - left[block] >= goal]
            drop = min(fitting, key=lambda block: self.blocks[block] / left[block], default=None) if len(left) > 1 else None
            if part is None and drop is None:
                break
            if drop is not None and (part is None or self.blocks[drop] / left[drop] < part[0]):
                cost -= left.pop(drop)
                continue
            _, kind, block, indices = part
            gone.setdefault((kind, block), set()).update(indices)
            saved = len(indices) * self.parts[block][kind]
            cost, left[block], place = cost - saved, left[block] - saved, place + 1
        return [self._list_kept(block, gone) if block in left else None for block in range(len(self.costs))], cost

    def _list_kept(self, block, gone) -> dict[str, list[int]]:
        pairs = (("heads", "head"), ("neurons", "neuron"))
        return {
            name: [index for index in range(self.sizes[kind][block]) if index not in gone.get((kind, block), ())]
            for name, kind in pairs
        }


def _read_importance(model, importance, drop_blocks) -> dict[tuple[str, int], Any]:
    """(kind, block) -> values in the order of the indices; ValueError where they are not all there."""
    if importance["measure"].nunique() != 1:
        raise UserError(
            f"importance holds several measures ({', '.join(importance['measure'].unique())}), whose values cannot be compared; "
            "hand over the table of one"
        )
    sizes = count_parts(model.module)
    values = {}
    for (kind, block), rows in importance.groupby(["kind", "block"]):
        rows = rows.sort_values("index")
        if kind not in sizes or block >= len(sizes[kind]) or rows["index"].tolist() != list(range(sizes[kind][block])):
            raise UserError(
                f"importance has other parts ({kind} of block {block}) than {model.name}; measure it on this very model"
            )
        values[kind, int(block)] = rows["importance"].to_numpy()
    for kind in importance["kind"].unique():
        missing = [block for block in range(len(sizes[kind])) if (kind, block) not in values]
        if missing:
            raise UserError(f"importance has no {kind} of block {missing[0]}; measure it on this very model")
    if drop_blocks and not any(kind == "block" for kind, _ in values):
        raise UserError("drop_blocks needs the importance of blocks; measure it with kinds=('head', 'neuron', 'block')")
    return {part: value for part, value in values.items() if part[0] != "block" or drop_blocks}


def _check_target(target, by, of) -> None:
    if by not in BY:
        raise UserError(unknown("by", by, list(BY)))
    if of not in ("model", "blocks") or (by == "latency" and of != "model"):
        raise UserError(f"of={of!r}: the target is a share of the model" + ("" if by == "latency" else ", or of its blocks"))
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target < 1:
        raise UserError(
            f"target={target!r} must be the share of {by} to keep, between 0 (all pruned, nothing left) and 1 (nothing pruned)"
        )


def _refuse(target, reachable, by, of, greedy, drop_blocks) -> ValueError:
    kinds = sorted({kind for _, kind, _, _ in greedy.queue} | ({"block"} if drop_blocks else set()))
    left = f"the model takes {reachable:.3f} of its time" if by == "latency" else f"{reachable:.3f} of them are left"
    outside = ", and nothing outside the blocks goes" if of == "model" else ""
    advice = "" if drop_blocks else ", allow whole blocks to go (drop_blocks=True)"
    return ValueError(
        f"target={target:g} of the {by} of the {of} cannot be reached: when all is gone that may go ({', '.join(kinds)}), "
        f"{left}. A plan keeps {greedy.limits}{outside}; ask for more than that{advice}, or take a "
        "smaller model"
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


def _measure_share(model, original, by, of) -> float:
    if by == "latency":
        return measure_ratio(model, original)
    return count_cost(model, by, of) / count_cost(original, by, of)

"""Which images make which batch, and every random draw: functions of the seed, the epoch and the
step.

So nothing of the past is needed to carry on in the middle of an epoch, and several processes share
one order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Sampler

from vitlab.errors import UserError
from vitlab.seeds import derive_seed


class BatchOrder(Sampler[list[int]]):
    """Positions of the images of each part of each batch, for one of `processes`; the order is
    drawn anew for each epoch.

    draw: the positions of an epoch, `length` of them, drawn with a generator (see `plan_epoch`); by
    default each once.

    A batch of `batch_size` images is cut into accumulation x processes equal parts; process `rank`
    gets `accumulation` of them. What is left at the end of an epoch and makes no full batch is left
    out. Set `epoch`, and `first_step` to begin further on."""

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
        draw: Callable[[torch.Generator], torch.Tensor] | None = None,
    ):
        parts = accumulation * processes
        self.batch_size = min(batch_size, length) // parts * parts
        if batch_size % parts or self.batch_size == 0:
            raise UserError(
                f"a batch of {min(batch_size, length)} images cannot be cut into {accumulation}"
                f" (accumulation) x {processes} (processes) equal parts; choose a batch_size that"
                f" is a multiple of {parts}"
            )
        self.length, self.seed, self.accumulation, self.rank, self.processes = (
            length,
            seed,
            accumulation,
            rank,
            processes,
        )
        self.draw = draw or (lambda generator: torch.randperm(length, generator=generator))
        self.epoch, self.first_step = 1, 0

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self.length // self.batch_size

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order = self.draw(generator).tolist()
        size = self.batch_size // (self.accumulation * self.processes)
        for step in range(self.first_step, self.steps):
            for part in range(self.accumulation):
                start = step * self.batch_size + (part * self.processes + self.rank) * size
                yield order[start : start + size]


def plan_epoch(
    labels: np.ndarray, resample: str, groups: np.ndarray | None = None
) -> tuple[int, Callable[[torch.Generator], torch.Tensor] | None]:
    """How many images an epoch shows, and how they are drawn, for class indices `labels` (N,);
    None: each once, in any order.

    oversample: each class as often as the largest has images. Each of its images is there equally
        often, but for the rest of the division, which is drawn anew for each epoch. Copies within
        an epoch are alike: what augmentation makes of an image depends on the epoch alone.
        undersample: of each class as many images as the smallest has, drawn anew for each epoch.
    groups: as many images as there are, drawn with replacement: each value of `groups` (N,) equally
        often, and in it each of its classes. The class then says nothing of the group.
    smote: positions from N on stand for the rows that `SmoteFeatures` adds, up to the size of the
    largest class in each."""
    if resample == "none":
        return len(labels), None
    if resample == "groups":
        weights = torch.as_tensor(group_weights(labels, groups))

        def draw_groups(generator: torch.Generator) -> torch.Tensor:
            return torch.multinomial(weights, len(weights), replacement=True, generator=generator)

        return len(labels), draw_groups
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    size = int(counts.min() if resample == "undersample" else counts.max())
    length = size * len(counts)
    if resample == "smote":
        return length, None
    members = [torch.as_tensor(np.flatnonzero(labels == index)) for index in np.unique(labels)]

    def draw(generator: torch.Generator) -> torch.Tensor:
        chosen = []
        for own in members:
            copies, rest = divmod(size, len(own))
            chosen += [
                own.repeat(copies),
                own[torch.randperm(len(own), generator=generator)[:rest]],
            ]
        return torch.cat(chosen)[torch.randperm(length, generator=generator)]

    return length, draw


def group_weights(labels: Sequence, groups: Sequence) -> np.ndarray:
    """How often each image (N,) is drawn, relative to the others: equally often in all groups, and
    in each group equally often for its classes.
    """
    table = pd.DataFrame({"group": np.asarray(groups), "label": np.asarray(labels)})
    classes = table.groupby("group")["label"].transform("nunique")
    images = table.groupby(["group", "label"])["label"].transform("size")
    return (1 / (classes * images)).to_numpy(copy=True)


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Share of the peak learning rate at a step: a straight line up to 1, then half a cosine down
    to 0.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

"""A teacher's logits for the images a student trains on: computed once where the views are fixed,
else beside the student.
"""

from __future__ import annotations

import math

import torch
from torch.utils.data import Dataset

from vitlab.data import ImageDataset, build_augmentation
from vitlab.errors import UserError
from vitlab.schema import ModelBundle, Transform
from vitlab.training import FrozenFeatures, FrozenFront, TrainConfig
from vitlab.training.stage import IN_MEMORY, Stage


class Teacher(FrozenFront):
    """The frozen teacher: (B, 3, h, w) of its own size and normalisation to logits (B,
    num_classes), float32, no gradient.
    """

    def __init__(self, teacher: ModelBundle, precision: str, device: torch.device):
        super().__init__(teacher.module.to(device), precision, device)
        self.teacher, self.dtype = teacher, torch.float32


class WithTeacher(Dataset):
    """The items of a student's training set, each with what the teacher needs or gives: (inputs,
    label, position, more).

    more: the teacher's logits (num_classes,) where the student's views are fixed, read from the
    cache in reports/cache; else the teacher's image (3, h, w) of the same view, which it is shown
    during the step."""

    def __init__(self, items: Dataset, front: Teacher, student: Transform, stage: Stage):
        self.items, self.labels, self.live = items, items.labels, stage.views == 0
        data, config, own = stage.data, stage.config, front.teacher.transform
        augment = None
        if stage.views != 1:
            augment = build_augmentation(
                config.augment, own.size, flip=config.flip, drawn_for=student.size
            )
        if self.live:
            in_memory = len(own.mean) * math.prod(own.size) * len(items) < IN_MEMORY
            self.theirs: Dataset = ImageDataset(
                data, "train", own, augment, seed=config.seed, in_memory=in_memory
            )
        else:
            self.theirs = FrozenFeatures(
                data, "train", front.teacher, front, views=stage.views, augment=augment
            )

    def set_epoch(self, epoch: int) -> None:
        self.items.set_epoch(epoch)
        self.theirs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(
        self, positions: list[int]
    ) -> list[tuple[torch.Tensor, int, int, torch.Tensor]]:
        both = zip(
            self.items.__getitems__(positions), self.theirs.__getitems__(positions), strict=True
        )
        return [(*item, theirs[0]) for item, theirs in both]

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int, int, torch.Tensor]:
        return self.__getitems__([position])[0]


def check_same_views(teacher: Transform, student: Transform, config: TrainConfig) -> None:
    """ValueError where the teacher cannot be shown the student's augmented views."""
    if config.augment == "none":
        return
    (height, width), (rows, columns) = teacher.size, student.size
    if height * columns != width * rows or teacher.fit != student.fit:
        raise UserError(
            f"the teacher takes {height}x{width} pixels with fit={teacher.fit!r} and the student"
            f" {rows}x{columns} with fit={student.fit!r}, so they cannot be shown the same crop;"
            " build one of them with the proportions and the fit of the other, or write"
            " augment='none'"
        )

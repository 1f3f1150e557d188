"""A teacher's logits for the images that a student trains on: computed once where the views are
fixed, else beside the student.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from vitlab.data import ImageDataset, build_augmentation
from vitlab.errors import UserError
from vitlab.schema import ModelBundle, Transform
from vitlab.training.cache import FrozenFeatures, FrozenFront
from vitlab.training.config import TrainConfig

if TYPE_CHECKING:
    from vitlab.training.stage import Stage

TEMPERATURE, ALPHA = 2.0, 0.5


class Teacher:
    """A trained model that another one learns from, `fit(..., teacher=Teacher(model))`.

    temperature softens both outputs; alpha is the teacher's share in the loss (0 to 1)."""

    def __init__(
        self, model: ModelBundle, *, temperature: float = TEMPERATURE, alpha: float = ALPHA
    ):
        if not 0 <= alpha <= 1:
            raise UserError(
                f"alpha={alpha} is the teacher's share in the loss; choose between 0 and 1"
            )
        if temperature <= 0:
            raise UserError(
                f"temperature must be above 0, not {temperature}; 1 leaves the teacher's"
                " probabilities as they are"
            )
        self.model, self.temperature, self.alpha = model, float(temperature), float(alpha)

    def describe(self) -> dict:
        """What it is in plain values: a checkpoint made with another teacher is refused."""
        weights = hashlib.sha256()
        for tensor in self.model.module.state_dict().values():
            weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        own = {"temperature": self.temperature, "alpha": self.alpha}
        named = {"teacher": self.model.name, "teacher_weights": weights.hexdigest()[:16]}
        return {"distillation": {**named, **own}}

    def check(self, student: ModelBundle, config: TrainConfig) -> None:
        """UserError for a student that cannot learn from this teacher, or not in this way."""
        if self.model.classes != student.classes:
            raise UserError(
                f"the teacher {self.model.name} distinguishes {', '.join(self.model.classes)}, and"
                f" the student {student.name} {', '.join(student.classes)}; a teacher must have the"
                " student's classes, in the same order"
            )
        own = {id(parameter) for parameter in student.module.parameters()}
        if any(id(parameter) in own for parameter in self.model.module.parameters()):
            raise UserError(
                "teacher and student are the same module, which would change during training; pass"
                " a deepcopy as teacher"
            )
        _check_same_views(self.model.transform, student.transform, config)
        if config.resample == "smote" or config.mixup_rare:
            name = "mixup_rare" if config.mixup_rare else "resample"
            raise UserError(
                f"{name}={getattr(config, name)!r} makes images that the teacher is not shown;"
                " leave it out"
            )


class WithTeacher(Dataset):
    """The items of a student's training set with one more column: (inputs, label, position, more).

    more: the teacher's logits (num_classes,) where the student's views are fixed, read from the
    cache in reports/cache; else the teacher's image (3, h, w) of the same view, of which `ask`
    makes logits during the step."""

    def __init__(self, items: Dataset, teacher: ModelBundle, stage: Stage):
        self.items, self.labels, self.live = items, items.labels, stage.views == 0
        data, config, own = stage.data, stage.config, teacher.transform
        self.device = stage.accelerator.device
        self.front = FrozenFront(
            teacher.module.to(self.device), config.precision, self.device, torch.float32
        )
        augment = None
        if stage.views != 1:
            size = stage.model.transform.size
            augment = build_augmentation(config.augment, own.size, flip=config.flip, drawn_for=size)
        if self.live:
            in_memory = len(own.mean) * math.prod(own.size) * len(items) < stage.IN_MEMORY
            self.theirs: Dataset = ImageDataset(
                data, "train", own, augment, seed=config.seed, in_memory=in_memory
            )
        else:
            self.theirs = FrozenFeatures(
                data, "train", teacher, self.front, views=stage.views, augment=augment
            )

    def ask(self, more: torch.Tensor) -> torch.Tensor:
        """The teacher's logits (B, num_classes) for a batch of the last column."""
        return self.front(more) if self.live else more.to(self.device)

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


def _check_same_views(teacher: Transform, student: Transform, config: TrainConfig) -> None:
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

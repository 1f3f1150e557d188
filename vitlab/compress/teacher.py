"""A teacher's answers to the images a student trains on: computed once where the views are fixed, else beside the student."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils.data import Dataset

from vitlab.compress.inside import Reader, normalise_maps, resample_maps
from vitlab.data import ImageDataset, build_augmentation
from vitlab.errors import UserError
from vitlab.schema import ModelBundle, Transform
from vitlab.training import FrozenFeatures, FrozenFront, TrainConfig
from vitlab.training.stage import IN_MEMORY, Stage


class TeacherOutputs(nn.Module):
    """A teacher as a function from its images to one row an image: logits, then features and attention where they are asked for.

    The maps are brought to the student's grids first. Features are standardised over the channels of each place, since their
    scale says nothing.
    features, attention: the student's grids (h, w); None leaves that out.
    """

    def __init__(self, teacher: ModelBundle, features: tuple[int, int] | None, attention: tuple[int, int] | None):
        super().__init__()
        self.reader = Reader(teacher.module, teacher, features is not None, attention is not None)
        self.grids = {"features": features, "attention": attention}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def forward(self, images) -> torch.Tensor:
        found = self.reader(images)
        read = {"logits": found["logits"].float()}
        if "features" in found:
            maps = resample_maps(found["features"], self.grids["features"])  # (B, C, h, w)
            read["features"] = nn.functional.layer_norm(maps.movedim(1, -1), maps.shape[1:2]).movedim(-1, 1)
        if "attention" in found:
            read["attention"] = normalise_maps(resample_maps(found["attention"][:, None], self.grids["attention"])[:, 0])
        self.shapes = {name: tuple(values.shape[1:]) for name, values in read.items()}
        return torch.cat([values.flatten(1) for values in read.values()], dim=1)  # (B, K)

    def split(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The inverse of what `forward` puts together: (B, K) to the values by name."""
        parts = rows.split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        return {name: part.unflatten(1, shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


class Teacher(FrozenFront):
    """The frozen teacher: (B, 3, h, w) of its own size and normalisation to rows (B, K), float32, without gradient."""

    def __init__(self, teacher: ModelBundle, outputs: TeacherOutputs, precision: str, device: torch.device):
        super().__init__(outputs.to(device), precision, device)
        self.teacher, self.outputs, self.dtype = teacher, outputs, torch.float32
        blank = torch.zeros(1, len(teacher.transform.mean), *teacher.transform.size)
        self(blank)  # from now on the shapes are known

    def key(self) -> bytes:
        return super().key() + repr(sorted(self.outputs.grids.items())).encode()


class WithTeacher(Dataset):
    """The items of a student's training set, each with what the teacher needs or says: (inputs, label, position, more).

    more: a row of the teacher's outputs (K,) where the student's views are fixed, read from the cache in reports/cache; else the
    teacher's image (3, h, w) of the same view, for it to look at now.
    """

    def __init__(self, items: Dataset, front: Teacher, student: Transform, stage: Stage):
        self.items, self.labels, self.live = items, items.labels, stage.views == 0
        data, config, own = stage.data, stage.config, front.teacher.transform
        augment = None
        if stage.views != 1:
            augment = build_augmentation(config.augment, own.size, flip=config.flip, drawn_for=student.size)
        if self.live:
            in_memory = len(own.mean) * math.prod(own.size) * len(items) < IN_MEMORY
            self.theirs: Dataset = ImageDataset(data, "train", own, augment, seed=config.seed, in_memory=in_memory)
        else:
            self.theirs = FrozenFeatures(data, "train", front.teacher, front, views=stage.views, augment=augment)

    def set_epoch(self, epoch: int) -> None:
        self.items.set_epoch(epoch)
        self.theirs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, positions: list[int]) -> list[tuple[torch.Tensor, int, int, torch.Tensor]]:
        both = zip(self.items.__getitems__(positions), self.theirs.__getitems__(positions), strict=True)
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
            f"the teacher takes {height}x{width} pixels with fit={teacher.fit!r} and the student {rows}x{columns} with "
            f"fit={student.fit!r}, so they cannot be shown the same crop; build one of them with the proportions and the fit of "
            "the other, or write augment='none'"
        )

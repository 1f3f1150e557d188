"""A model cut at one border, ready to be trained behind it: what goes in, what is trained, what is
judged.
"""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

from vitlab.data import ImageDataset, build_augmentation
from vitlab.data.balance import rare_classes
from vitlab.models import split_stages
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training.cache import FrozenFeatures, FrozenFront
from vitlab.training.config import TrainConfig
from vitlab.training.minority import RareMixup, SmoteFeatures
from vitlab.training.scores import arrange
from vitlab.training.strategy import MovingAverage, split_model
from vitlab.training.teacher import Teacher, WithTeacher


class Stage:
    """The frozen front before `border` with its cache, the data sets that feed what is behind it,
    and that as it is trained.

    trained: the trained stages, prepared for device, precision and processes. train_set, val_set:
    features where the front is cached, images elsewhere; in train_set, with what the config does
    for rare classes and, with a teacher, a column for its logits. views: how many fixed versions of
    an image take turns; 0 where each epoch brings a new one."""

    IN_MEMORY = 1_000_000_000  # bytes of decoded images that are kept, for each split

    def __init__(
        self,
        model: ModelBundle,
        data: DataBundle,
        config: TrainConfig,
        border: int,
        accelerator: Accelerator,
        teacher: Teacher | None = None,
    ):
        self.model, self.data, self.config, self.border, self.accelerator = (
            model,
            data,
            config,
            border,
            accelerator,
        )
        frozen, trained = split_model(model.module, border)
        if config.strategy != "lora":
            trained.requires_grad_(True)
        frozen.requires_grad_(False)
        self.front = FrozenFront(frozen, config.precision, accelerator.device) if border else None
        self.cached = border > 0 and config.cache
        self.views = self._count_views()
        self.train_set = self._help_rare(self._open_split("train"))
        if teacher:
            self.train_set = WithTeacher(self.train_set, teacher.model, self)
        self.val_set = self._open_split("val")
        if config.gradient_checkpointing:
            parts = trained if border else [stage for _, stage in split_stages(model.module)]
            trained = nn.Sequential(*[Recomputed(part) for part in parts])
        if config.compile:
            trained = torch.compile(trained)
        self.trained = accelerator.prepare_model(trained)

    def take(self, inputs: torch.Tensor) -> torch.Tensor:
        """A batch of a data set as the trained part wants it, on the device."""
        inputs = inputs.to(self.accelerator.device, non_blocking=True)
        return arrange(
            inputs if self.cached or not self.front else self.front(inputs),
            self.config.channels_last,
        )

    def judged(self, average: MovingAverage | None) -> nn.Module:
        """What is scored on items of `val_set`: the moving average where there is one, else the
        trained part itself.
        """
        module = split_model(average.module if average else self.model.module, self.border)[1]
        return (
            module
            if self.cached or not self.front
            else nn.Sequential(_OnTheFly(self.front), module)
        )

    def _count_views(self) -> int:
        if self.config.augment == "none" or (self.front and self.config.views == 1):
            return 1  # one view is the image itself, cached or not
        return self.config.views if self.cached else 0

    def _open_split(self, split: str) -> Dataset:
        config, transform, views = (
            self.config,
            self.model.transform,
            self.views if split == "train" else 1,
        )
        augment = (
            build_augmentation(config.augment, transform.size, flip=config.flip)
            if views != 1
            else None
        )
        if self.cached:
            return FrozenFeatures(
                self.data, split, self.model, self.front, views=views, augment=augment
            )
        in_memory = (
            len(transform.mean) * math.prod(transform.size) * len(self.data.split(split))
            < self.IN_MEMORY
        )
        return ImageDataset(
            self.data, split, transform, augment, seed=config.seed, in_memory=in_memory
        )

    def _help_rare(self, train_set: Dataset) -> Dataset:
        """The training items, with mixtures of the rare classes where the config asks for them."""
        config, labels = self.config, self.data.split("train")["label"]
        if config.resample == "smote":
            return SmoteFeatures(train_set, config.seed)
        if config.mixup_rare:
            rare = [
                self.data.classes.index(name) for name in rare_classes(labels, self.data.classes)
            ]
            return RareMixup(train_set, rare, config.mixup_rare, config.seed)
        return train_set


class Recomputed(nn.Module):
    """A stage whose inner activations are not kept in training but computed again in the backward
    pass (arXiv 1604.06174).
    """

    def __init__(self, stage: nn.Module):
        super().__init__()
        self.stage = stage

    def forward(self, x):
        return checkpoint(self.stage, x, use_reentrant=False) if self.training else self.stage(x)


class _OnTheFly(nn.Module):
    """The frozen front as a module; it stays in evaluation mode."""

    def __init__(self, front: FrozenFront):
        super().__init__()
        self.front = front

    def forward(self, images):
        return arrange(self.front(images))

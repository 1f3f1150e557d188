"""What a training minimises, as a part that can be exchanged: `fit(..., loss=...)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from vitlab.schema import DataBundle, ModelBundle
from vitlab.training.config import TrainConfig
from vitlab.training.loss import build_loss

if TYPE_CHECKING:
    from vitlab.training.stage import Stage


class Objective:
    """The loss of the config against the labels, and what another objective may change about it."""

    def describe(self) -> dict:
        """What it is made of, in plain values: a checkpoint of a training with another objective is
        refused.
        """
        return {}

    def prepare(
        self, model: ModelBundle, data: DataBundle, config: TrainConfig, border: int
    ) -> None:
        """Called before anything is computed; raises ValueError for what does not fit together.

        border: of the first epoch, the furthest from the input.
        """

    def build(
        self, data: DataBundle, config: TrainConfig, device: torch.device
    ) -> Callable[..., torch.Tensor]:
        """The function (module, inputs, labels, *more) -> loss of a batch. module: the trained
        part; more: from `extend`.
        """
        return build_loss(data, config, device)

    def extend(self, train_set: Dataset, stage: Stage) -> Dataset:
        """The training items (inputs, label, position), with more at their end where the loss wants
        it.
        """
        return train_set

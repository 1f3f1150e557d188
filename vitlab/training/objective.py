"""What a training minimises, as a part that can be exchanged: `fit(..., loss=...)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import Dataset

from vitlab.schema import DataBundle, ModelBundle
from vitlab.training.config import TrainConfig
from vitlab.training.loss import build_loss

if TYPE_CHECKING:
    from vitlab.training.stage import Stage


class Objective:
    """The loss of the config against the labels, and what another objective may change about it.

    module: parameters of its own, trained along with the model and kept in its checkpoints; None for none.
    views: fixed versions of each training image that take turns where nothing is frozen and cached; 0 for a new one each epoch.
    """

    module: nn.Module | None = None
    views = 0

    def describe(self) -> dict:
        """What it is made of, in plain values: a checkpoint of a training with another objective is refused."""
        return {}

    def prepare(self, model: ModelBundle, data: DataBundle, config: TrainConfig, border: int) -> None:
        """Called before anything is computed; raises ValueError for what does not fit together.

        border: of the first epoch, the furthest from the input.
        """

    def build(self, data: DataBundle, config: TrainConfig, device: torch.device) -> Callable[..., torch.Tensor]:
        """The function (module, inputs, labels, *more) -> loss of a batch. module: from `wrap`; more: from `extend`."""
        return build_loss(data, config, device)

    def wrap(self, trained: nn.Module) -> nn.Module:
        """The trained part as the loss calls it. What is scored in validation is the trained part itself."""
        return trained

    def extend(self, train_set: Dataset, stage: Stage) -> Dataset:
        """The training items (inputs, label, position), with more at their end where the loss wants it."""
        return train_set

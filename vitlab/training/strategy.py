"""What moves: the border between frozen and trained stages in each epoch, the learning rate of each
layer behind it, and the moving average of the weights.
"""

from __future__ import annotations

import copy

import pandas as pd
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from vitlab.errors import UserError
from vitlab.models import count_parameters, split_stages
from vitlab.models.stages import block_positions, find_stage
from vitlab.training.config import TrainConfig

TOKENS_AND_POSITIONS = (
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embed",
    "absolute_pos_embed",
    "relative_position_bias_table",
)


def find_border(names: list[str], config: TrainConfig, epoch: int = 1) -> int:
    """The position, among the stages of these names, of the first one that is trained in this epoch
    (from 1).

    0 means the whole model. Raises ValueError for a stage that there is not and for more blocks
    than the model has."""
    blocks, head = block_positions(names), len(names) - 1
    match config.strategy:
        case "full":
            return 0
        case "linear_probe":
            return head
        case "from_stage":
            return find_stage(names, config.train_from)
        case "lora":
            return blocks[0] if blocks else head
    if config.last_blocks > len(blocks):
        raise UserError(
            f"last_blocks={config.last_blocks}, but the model has {len(blocks)} blocks; choose 1 to"
            f" {len(blocks)}"
        )
    if config.strategy == "last_blocks":
        if config.last_blocks == 0:
            raise UserError(
                "strategy='last_blocks' needs last_blocks of at least 1; for none, write"
                " strategy='linear_probe'"
            )
        return blocks[-config.last_blocks]
    # gradual: the head first (arXiv 1801.06146, section 3.3)
    thawed = (epoch - 1) // config.unfreeze_every
    if config.last_blocks:
        thawed = min(thawed, config.last_blocks)
    if thawed == 0:
        return head
    return blocks[-thawed] if thawed <= len(blocks) else 0


def lowest_border(names: list[str], config: TrainConfig) -> int:
    """The border furthest from the head that the training reaches: what lies before it never
    moves.
    """
    return find_border(names, config, epoch=config.epochs)


def strategy_table(module: nn.Module, config: TrainConfig) -> pd.DataFrame:
    """A row for each stage of the model, in order: stage, parameters, trained ("no", "yes", "from
    epoch N" or "rank R").
    """
    chain = split_stages(module)
    names = [name for name, _ in chain]
    borders = [find_border(names, config, epoch) for epoch in range(1, config.epochs + 1)]

    def describe(position):
        if config.strategy == "lora" and position in block_positions(names):
            return f"rank {config.lora_rank}"
        if config.strategy == "lora":
            return "yes" if position == len(names) - 1 else "no"
        first = next((epoch for epoch, border in enumerate(borders, 1) if border <= position), None)
        return "no" if first is None else "yes" if first == 1 else f"from epoch {first}"

    rows = [
        (name, count_parameters(stage), describe(position))
        for position, (name, stage) in enumerate(chain)
    ]
    return pd.DataFrame(rows, columns=["stage", "parameters", "trained"])


def split_model(module: nn.Module, border: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a model before the stage at this position: (frozen part, trained part), both made of the
    model's own modules.
    """
    if border == 0:
        return nn.Sequential(), nn.Sequential(module)
    parts = [part for _, part in split_stages(module)]
    return nn.Sequential(*parts[:border]), nn.Sequential(*parts[border:])


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over the parameters that require a gradient, in timm's groups.

    Weight decay spares norms, biases, positions and tokens. With layer_decay below 1, a layer's
    learning rate shrinks by that factor for each layer between it and the head. Each group's
    `initial_lr` is its peak."""
    spared = [
        name
        for name, _ in module.named_parameters()
        if name.rpartition(".")[2] in TOKENS_AND_POSITIONS
    ]
    if hasattr(module, "no_weight_decay"):
        spared += module.no_weight_decay()
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(
            module, config.weight_decay, spared, layer_decay=config.layer_decay
        )
    else:
        groups = param_groups_weight_decay(module, config.weight_decay, no_weight_decay_list=spared)
    for group in groups:
        group["lr"] = group["initial_lr"] = config.learning_rate * group.pop("lr_scale", 1.0)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


class MovingAverage:
    """An exponential moving average of the model, in a copy. Frozen tensors are not touched, which
    makes a step cheap.

    names: keys of the state dict that move. The decay warms up as in timm's ModelEmaV3:
    1 - (1 + step) ** (-2/3), at most `decay`.
    """

    def __init__(self, module: nn.Module, decay: float, names: set[str]):
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        theirs, ours = module.state_dict(keep_vars=True), self.module.state_dict(keep_vars=True)
        floating = [name for name in ours if name in names and ours[name].is_floating_point()]
        self._averaged = [ours[name] for name in floating], [theirs[name] for name in floating]
        self._counted = [
            (ours[name], theirs[name])
            for name in ours
            if name in names and not ours[name].is_floating_point()
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after this step, counted from 1."""
        ours, theirs = self._averaged
        torch._foreach_lerp_(ours, theirs, 1 - min(self.decay, 1 - (1 + step) ** (-2 / 3)))
        for own, counted in self._counted:
            own.copy_(counted)

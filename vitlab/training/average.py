"""An exponential moving average of the weights that move (arXiv 1803.05407 averages evenly; the
decay here is timm's).
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """A copy of the model whose moving tensors follow the model's; its frozen ones are not touched,
    which makes a step cheap.

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

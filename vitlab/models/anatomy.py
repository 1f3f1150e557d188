"""Where the tokens, blocks and feature maps of a model are: found by watching one forward pass, not by a list of names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from vitlab.schema import Anatomy

PROJECTIONS = ({"qkv"}, {"q", "k", "v"}, {"q_proj", "k_proj", "v_proj"}, {"q", "kv"})
BATCH = 2  # images in the probe: two, so that a module which moves windows into the batch axis gives itself away


@dataclass(frozen=True)
class _Step:
    """One submodule of the forward pass: its name, and the shapes of its first input and of its output."""

    name: str
    transparent: bool  # a plain nn.Sequential: its parts count as parts of what holds it
    input: tuple[int, ...]
    output: tuple[int, ...]

    def is_within(self, others) -> bool:
        return any(self.name == other or self.name.startswith(f"{other}.") for other in others)


def find_anatomy(module: nn.Module, size: tuple[int, int]) -> Anatomy:
    """Send blank images of `size` (height, width) through the model and read off its structure; the model is left as it was.

    kind is "vit" (attention over patches), "hybrid" (attention over the feature map of a CNN), "cnn" (feature maps, no attention)
    or "other": attention that does not see one and the same sequence of all tokens from first to last (Swin's windows, PVT's
    shrinking maps), or no attention and no feature maps either (MLP-Mixer). For "other" blocks, attention and grid stay empty.
    """
    steps = _watch(module, size)
    parts = dict(module.named_modules())
    seeking = [name for name in steps if _projects_tokens(parts[name])]
    attention = [name for name in seeking if len(steps[name].output) != 2]  # attention pooling, a kind of head, gives (B, C)
    blocks = [name.rpartition(".")[0] for name in attention]
    maps = _find_maps(steps, size, inside=(*seeking, *blocks))
    resolutions = {steps[name].output[2:]: name for name in maps}  # the last one of each
    stages = tuple(resolutions.values()) if len(resolutions) > 1 else ()
    if not attention and stages:
        return Anatomy("cnn", (), (), 0, tuple(resolutions)[-1], stages)
    order = list(steps)
    before = [name for name in maps if attention and order.index(name) < order.index(attention[0])]
    grid = steps[before[-1]].output[2:] if before else (0, 0)
    lengths = {_count_tokens(steps.get(name)) for name in (*attention, *blocks)}
    num_tokens = lengths.pop() if len(lengths) == 1 else 0
    if not 0 < grid[0] * grid[1] <= num_tokens:
        return Anatomy("other", (), (), 0, (0, 0), stages)
    return Anatomy("hybrid" if stages else "vit", tuple(blocks), tuple(attention), num_tokens - grid[0] * grid[1], grid, stages)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and give every part its own mode back afterwards."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _watch(module, size) -> dict[str, _Step]:
    """Every submodule that maps a tensor to a tensor, in the order in which they finish: containers after their parts."""
    steps, hooks = {}, []

    def record_as(name):
        def record(part, inputs, output):
            if inputs and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
                steps.pop(name, None)  # a module used twice stands where it was used last
                steps[name] = _Step(name, isinstance(part, nn.Sequential), tuple(inputs[0].shape), tuple(output.shape))

        return record

    entry = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    weight = next(module.parameters())
    images = torch.zeros(BATCH, entry.in_channels if entry else 3, *size, device=weight.device, dtype=weight.dtype)
    try:
        for name, part in module.named_modules():
            if name:
                hooks.append(part.register_forward_hook(record_as(name)))
        with evaluating(module), torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return steps


def _projects_tokens(part) -> bool:
    children = {name for name, _ in part.named_children()}
    return any(names <= children for names in PROJECTIONS)


def _count_tokens(step) -> int:
    """T of a module that maps (B, T, C) to (B, T, C); 0 for any other."""
    return step.output[1] if step and step.input == step.output and len(step.output) == 3 and step.output[0] == BATCH else 0


def _find_maps(steps, size, inside) -> list[str]:
    """Modules with a (B, C, h, w) output of the image's proportions, in order.

    Left out: what lies inside attention and transformer blocks, maps of a single cell, and the inner parts of a block that goes
    on to another resolution (the expansion at the start of EfficientNet's next stage is still of the old one).
    """
    height, width = size

    def is_map(shape):
        if len(shape) != 4 or shape[0] != BATCH:
            return False
        h, w = shape[2:]
        return abs(h * width - w * height) < max(height, width)  # both sides were rounded, up or down

    changing = [
        step.name
        for step in steps.values()
        if is_map(step.input) and is_map(step.output) and step.input[2:] != step.output[2:] and not step.transparent
    ]

    def opens_next_stage(step):
        holders = (steps[name] for name in changing if step.name.startswith(f"{name}."))
        return any(holder.input[2:] == step.output[2:] for holder in holders)

    return [
        name
        for name, step in steps.items()
        if is_map(step.output) and step.output[2:] != (1, 1) and not step.is_within(inside) and not opens_next_stage(step)
    ]

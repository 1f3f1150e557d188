"""Access to what a model computes inside. Modes, parameters and hooks are restored, also after an
error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from vitlab.errors import UserError
from vitlab.models.anatomy import evaluating
from vitlab.seeds import derive_seed


@contextmanager
def inspecting(module: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients on, but not for parameters, which saves time."""
    wanted = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with evaluating(module), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Start the global random generators of torch and NumPy, which Captum draws from, at this seed;
    leave them as they were.
    """
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else []
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(derive_seed(seed))
            np.random.seed(derive_seed(seed) % 2**32)
            yield
    finally:
        np.random.set_state(state)


def select_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The score to explain: each image's logits (B, num_classes), weighted by its row of `targets`
    and summed: (B,).
    """
    return (logits * targets).sum(dim=1)


def find_layer(name: str, module: nn.Module) -> nn.Module:
    """The submodule of this name, or ValueError."""
    parts = dict(module.named_modules())
    if name not in parts:
        raise UserError(
            f"the model has no layer {name!r}; module.named_modules() lists them, the last is"
            f" {list(parts)[-1]!r}"
        )
    return parts[name]


def differentiate_at(
    layer: str,
    module: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    before: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of a layer (with `before`: its input), and the gradient of the target logits with
    respect to it.

    Both have the layer's own shape, (B, ...). The gradient is computed from the logits back to the
    layer and no further."""
    seen: list[torch.Tensor] = []

    def start_graph(tensor):
        seen.append(tensor.detach().requires_grad_())
        # what follows may change its input in place, which a leaf does not allow
        return seen[-1].clone()

    logits = _run_with_hook(layer, module, images, start_graph, before)
    _check_runs(layer, seen)
    score = select_logits(logits, targets).sum()
    if not score.requires_grad:
        raise UserError(
            f"the logits do not depend on layer {layer!r}; choose one on the way from image to"
            " logits"
        )
    (gradient,) = torch.autograd.grad(score, seen[0])
    return seen[0].detach(), gradient


def compute_at(
    layer: str, module: nn.Module, images: torch.Tensor, *, before: bool = False
) -> torch.Tensor:
    """The output of a layer (with `before`: its input)."""
    seen: list[torch.Tensor] = []

    def keep(tensor):
        seen.append(tensor)
        return tensor

    with torch.no_grad():
        _run_with_hook(layer, module, images, keep, before)
    _check_runs(layer, seen)
    return seen[0]


def _run_with_hook(layer, module, images, replace, before) -> torch.Tensor:
    """The logits when `replace` is applied to the layer's output, or to its input."""
    part = find_layer(layer, module)

    def apply(tensor):
        if not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"layer {layer!r} passes on a {type(tensor).__name__}, not one tensor; choose a"
                " layer inside it"
            )
        return replace(tensor)

    def apply_to_inputs(part, inputs):  # torchvision passes one tensor as query, key and value
        replaced = apply(inputs[0])
        return tuple(replaced if other is inputs[0] else other for other in inputs)

    if before:
        hook = part.register_forward_pre_hook(apply_to_inputs)
    else:
        hook = part.register_forward_hook(lambda _, __, output: apply(output))
    try:
        return module(images)
    finally:
        hook.remove()


def _check_runs(layer: str, seen: list) -> None:
    if not seen:
        raise UserError(f"layer {layer!r} takes no part in the forward pass; choose another one")
    if len(seen) > 1:
        raise UserError(
            f"layer {layer!r} runs {len(seen)} times in one forward pass, so no single feature map"
            " belongs to it; choose another one with layer=, or another method"
        )


def check_gradient(gradient: torch.Tensor, what: str, advice: str = "") -> None:
    """ValueError where the gradient is zero everywhere: a map made of it would be blank."""
    if not gradient.any():
        raise UserError(
            f"no target logit reacts to {what}, so there is nothing to show; "
            + (advice or "train the classifier first, its weights may all be zero")
        )


def check_count(name: str, value: int) -> None:
    """ValueError for an option that is not a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")

"""Looking into a model without leaving a trace: modes, parameters and hooks are as before, also
after an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from vitlab.errors import UserError
from vitlab.models.anatomy import evaluating
from vitlab.seeds import derive_seed


@contextmanager
def inspecting(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients switched on, and no parameter asking for one: a backward pass goes
    only where it is needed.
    """
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
    """What is to be explained: each image's sum of logits (B, num_classes), weighted by its row of
    `targets`: (B,).
    """
    return (logits * targets).sum(dim=1)


def score_targets(module: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function (images, targets) -> (B,), as Captum wants it: `targets` goes into
    additional_forward_args.
    """
    return lambda images, targets: select_logits(module(images), targets)


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
    """What a layer gives out (with `before`: takes in), and the gradient of the target logits with
    respect to it.

    Both have the layer's own shape, (B, ...). The gradient is computed from the logits back to the
    layer and no further."""
    part = find_layer(layer, module)
    leaf = None

    def start_graph(tensor):
        nonlocal leaf
        if not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"layer {layer!r} passes on a {type(tensor).__name__}, not one tensor; choose a"
                " layer inside it"
            )
        leaf = tensor.detach().requires_grad_()
        # what follows may change its input in place, which a leaf does not allow
        return leaf.clone()

    def start_all(part, inputs):  # torchvision hands one tensor over as query, key and value
        started = start_graph(inputs[0])
        return tuple(started if other is inputs[0] else other for other in inputs)

    if before:
        hook = part.register_forward_pre_hook(start_all)
    else:
        hook = part.register_forward_hook(lambda _, __, output: start_graph(output))
    try:
        logits = module(images)
    finally:
        hook.remove()
    if leaf is None:
        raise UserError(f"layer {layer!r} takes no part in the forward pass; choose another one")
    score = select_logits(logits, targets).sum()
    if not score.requires_grad:
        raise UserError(
            f"the logits do not depend on layer {layer!r}; choose one on the way from image to"
            " logits"
        )
    (gradient,) = torch.autograd.grad(score, leaf)
    return leaf.detach(), gradient


def check_gradient(gradient: torch.Tensor, what: str, advice: str = "") -> None:
    """Raise ValueError where the gradient is zero throughout: a map made of it would be blank, and
    look like a finding.
    """
    if not gradient.any():
        raise UserError(
            f"no target logit reacts to {what}, so there is nothing to show; "
            + (advice or "train the classifier first, its weights may all be zero")
        )


def check_count(name: str, value: int) -> None:
    """Raise ValueError for an option that is no whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")

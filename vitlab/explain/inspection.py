"""Access to what a model computes inside. Modes, parameters and hooks are always restored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vitlab.errors import UserError
from vitlab.models.anatomy import evaluating


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


def select_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The score to explain: the logit of each image's target. (B, num_classes), (B,) -> (B,)."""
    return logits.gather(1, targets[:, None])[:, 0]


def compute_at(
    layer: str, module: nn.Module, images: torch.Tensor, *, before: bool = False
) -> torch.Tensor:
    """The output of a layer; with `before`, its input."""
    with torch.no_grad():
        _, found = _run(layer, module, images, before, torch.Tensor.detach)
    return found


def differentiate_at(
    layer: str,
    module: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    before: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of a layer (with `before`, its input), and the gradient of the target logits with
    respect to it. The backward pass ends at the layer.
    """
    logits, found = _run(
        layer, module, images, before, lambda tensor: tensor.detach().requires_grad_()
    )
    score = select_logits(logits, targets).sum()
    if not score.requires_grad:
        raise UserError(
            f"the logits do not depend on layer {layer!r}; choose a layer between image and logits"
        )
    (gradient,) = torch.autograd.grad(score, found)
    return found.detach(), gradient


def _run(
    layer: str,
    module: nn.Module,
    images: torch.Tensor,
    before: bool,
    prepare: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits, computed from `prepare` of the layer's output (or input), and that tensor."""
    try:
        part = module.get_submodule(layer)
    except AttributeError as error:
        raise UserError(
            f"the model has no layer {layer!r}; module.named_modules() lists them"
        ) from error
    seen: list[torch.Tensor] = []

    def replace(tensor):
        if not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"layer {layer!r} passes on a {type(tensor).__name__}, not one tensor; choose a"
                " layer inside it"
            )
        seen.append(prepare(tensor))
        # what follows may change its input in place, which a leaf does not allow
        return seen[-1].clone()

    def replace_inputs(part, inputs):  # torchvision passes one tensor as query, key and value
        replaced = replace(inputs[0])
        return tuple(replaced if other is inputs[0] else other for other in inputs)

    if before:
        hook = part.register_forward_pre_hook(replace_inputs)
    else:
        hook = part.register_forward_hook(lambda _, __, output: replace(output))
    try:
        logits = module(images)
    finally:
        hook.remove()
    if len(seen) != 1:
        raise UserError(
            f"layer {layer!r} runs {len(seen)} times in one forward pass, so it has no single"
            " feature map; choose another layer"
        )
    return logits, seen[0]


def check_gradient(gradient: torch.Tensor, what: str) -> None:
    """UserError where the gradient is zero everywhere: its map would be blank."""
    if not gradient.any():
        raise UserError(
            f"no target logit depends on {what}, so there is nothing to show; an untrained"
            " classifier may have weights of zero"
        )


def check_count(name: str, value: int) -> None:
    """UserError for an option that is not a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")

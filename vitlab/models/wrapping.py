"""Your own classifier, or one of torchvision or Hugging Face, as a ModelBundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from vitlab.errors import UserError
from vitlab.models.anatomy import evaluating, find_anatomy
from vitlab.models.zoo import check_classes, check_size
from vitlab.schema import ModelBundle, Transform

IMAGES = 4  # in the trial that a module has to pass


class LogitsOf(nn.Module):
    """The logits alone of a network that returns an object, a dictionary or a tuple."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images):
        return _pick_logits(self.network(images))


def wrap_model(
    module: nn.Module,
    classes: Sequence[str],
    transform: Transform | int | tuple[int, int],
    name: str = "",
) -> ModelBundle:
    """A bundle around any classifier that maps normalised images (B, 3, h, w) to logits (B,
    num_classes).

    Logits may also come as `.logits` of the output (Hugging Face), under the key "logits", or first
    in a tuple. The module is not copied; it is put into evaluation mode, and inside a LogitsOf
    where its output has to be unpacked. classes: in the order of the logits. transform: what the
    weights were trained with; a size in pixels, a number or (height, width), stands for that size
    with ImageNet's mean and standard deviation. name: by default that of the module's class.

    UserError where the module cannot take such images, or gives no logits for these classes.

    >>> from torchvision.models import resnet18
    >>> wrap_model(resnet18(num_classes=2), ["cat", "dog"], 64).anatomy.stages[-1]
    'layer4'
    """
    classes = check_classes(classes)
    if not isinstance(transform, Transform):
        transform = Transform(
            check_size(transform or ()), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        )
    name = name or type(module).__name__
    output = _try(name, module, transform)
    if not isinstance(output, torch.Tensor):
        output, module = _pick_logits(output), LogitsOf(module)
    _check_logits(name, output, classes)
    module.eval()
    return ModelBundle(
        name, module, classes, transform, find_anatomy(module, transform.size), {"wrapped": True}
    )


def _try(name, module, transform):
    """What the module gives for images of noise."""
    weight = next(module.parameters(), None)
    if weight is None:
        raise UserError(f"{name} has no parameters, so it is not a trained classifier")
    shape = (IMAGES, len(transform.mean), *transform.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        with evaluating(module), torch.no_grad():
            return module(images.to(weight.device, weight.dtype))
    except Exception as error:
        raise UserError(f"{name} cannot take images of shape {shape}: {error}") from error


def _pick_logits(output) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, torch.Tensor):
        raise UserError(
            f"the module gives a {type(output).__name__} without logits; wrap it in an nn.Module"
            " whose forward returns them, a tensor (B, num_classes)"
        )
    return found


def _check_logits(name, logits, classes) -> None:
    if logits.shape != (IMAGES, len(classes)):
        raise UserError(
            f"{name} gives {tuple(logits.shape)} for {IMAGES} images, not one logit for each of the"
            f" {len(classes)} classes {', '.join(classes)}"
        )
    sums = logits.float().sum(dim=1)
    if (logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise UserError(f"{name} gives probabilities, not logits; remove the softmax at its end")

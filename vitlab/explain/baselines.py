"""What stands in for a part of an image that is taken away. There is no neutral choice, so it is
always an option.
"""

from __future__ import annotations

import torch
from torchvision.transforms.v2.functional import gaussian_blur

from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import Transform

BASELINES = ("mean", "black", "blur")
BLUR = 0.05  # standard deviation of the blur, as a share of the image's longer side


def make_baseline(kind: str, images: torch.Tensor, transform: Transform) -> torch.Tensor:
    """The images (B, 3, h, w), normalised by this transform, with everything taken away.

    mean: the mean colour of the data that the weights were trained with, which is 0 after
    normalisation. black: black pixels, which takes nothing away from what is black. blur: the image
    itself without detail, closest to what the model has seen."""
    match kind:
        case "mean":
            return torch.zeros_like(images)
        case "black":
            mean, std = (
                images.new_tensor(values)[:, None, None]
                for values in (transform.mean, transform.std)
            )
            return (-mean / std).expand_as(images).clone()
        case "blur":
            sigma = BLUR * max(images.shape[-2:])
            # of the kernel, along w and h
            widths = [2 * min(round(3 * sigma), side - 1) + 1 for side in images.shape[:-3:-1]]
            return gaussian_blur(images, kernel_size=widths, sigma=[sigma, sigma])
    raise UserError(unknown("baseline", kind, BASELINES))

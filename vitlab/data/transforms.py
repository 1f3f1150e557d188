"""From a decoded image of any size and mode to what a model expects, and back to what a figure
shows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from vitlab.errors import UserError
from vitlab.pictures import fit_picture
from vitlab.registry import unknown
from vitlab.schema import Transform

STRENGTHS = ("none", "light", "strong")


def preprocess(image: Image.Image, transform: Transform) -> torch.Tensor:
    """The image as a model takes it: (3, h, w) float, or (1, h, w) for grey, normalised."""
    return normalise(fit_image(image, transform), transform)


def fit_image(image: Image.Image, transform: Transform) -> torch.Tensor:
    """(3, h, w) uint8 in RGB, or (1, h, w) in grey where the transform has one mean; see
    `vitlab.pictures.fit_picture`.
    """
    return v2.functional.pil_to_tensor(fit_picture(image, transform))


def normalise(pixels: torch.Tensor, transform: Transform) -> torch.Tensor:
    """uint8 (..., 3, h, w) to float: values in 0..1, then minus mean, over std, per channel."""
    return (pixels / 255 - _per_channel(transform.mean, pixels)) / _per_channel(
        transform.std, pixels
    )


def denormalise(batch: torch.Tensor, transform: Transform) -> np.ndarray:
    """The inverse of `normalise` for figures: (B, 3 or 1, h, w) to (B, h, w, 3) float in 0..1."""
    pixels = batch.detach() * _per_channel(transform.std, batch) + _per_channel(
        transform.mean, batch
    )
    return pixels.clamp(0, 1).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).float().cpu().numpy()


def build_augmentation(
    strength: str,
    size: tuple[int, int],
    *,
    flip: bool = True,
    drawn_for: tuple[int, int] | None = None,
) -> Callable | None:
    """Random variants of (3, h, w) uint8 pixels, still that size: flips, small rotation, crop,
    colour jitter; None for "none".

    flip: False for what must not be mirrored, such as digits. torch's global generator rules.
    drawn_for: another size of the same proportions; from the same state of the generator, the
    variant is the one that images of
        that size get, its crop included: the same view for two models.
    """
    if strength not in STRENGTHS:
        raise UserError(unknown("strength of augmentation", strength, list(STRENGTHS)))
    if strength == "none":
        return None
    degrees, smallest, jitter = {"light": (5, 0.85, 0.1), "strong": (15, 0.6, 0.3)}[strength]
    height, width = size
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()] if flip else []
    cut = {
        "scale": (smallest, 1.0),
        "ratio": (0.9 * width / height, 1.1 * width / height),
        "antialias": True,
    }
    same = drawn_for is None or tuple(drawn_for) == tuple(size)
    return v2.Compose(
        [
            *flips,
            v2.RandomRotation(degrees, interpolation=v2.InterpolationMode.BILINEAR),
            (
                v2.RandomResizedCrop((height, width), **cut)
                if same
                else _SameCrop((height, width), tuple(drawn_for), **cut)
            ),
            v2.ColorJitter(brightness=jitter, contrast=jitter),
        ]
    )


class _SameCrop(v2.RandomResizedCrop):
    """Cuts the part of an image that RandomResizedCrop draws for images of another size."""

    def __init__(self, size: tuple[int, int], drawn_for: tuple[int, int], **arguments):
        super().__init__(size, **arguments)
        self.drawn_for = drawn_for

    def make_params(self, flat_inputs):
        height, width = flat_inputs[0].shape[-2:]
        drawn = super().make_params([torch.empty(1, *self.drawn_for)])
        rows, columns = height / self.drawn_for[0], width / self.drawn_for[1]
        top, left = round(drawn["top"] * rows), round(drawn["left"] * columns)
        bottom, right = (
            round((drawn["top"] + drawn["height"]) * rows),
            round((drawn["left"] + drawn["width"]) * columns),
        )
        return {
            "top": top,
            "left": left,
            "height": max(1, bottom - top),
            "width": max(1, right - left),
        }


def _per_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    if like.shape[-3] != len(values):
        raise UserError(
            f"images with {like.shape[-3]} channels do not fit a transform with {len(values)}"
        )
    return torch.tensor(values, device=like.device).view(-1, 1, 1)

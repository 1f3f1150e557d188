"""What a step of pretraining learns from: pictures as the student sees them, and what the teacher
says of the same view.

Two ways to draw them. `OnlineLessons` asks the teacher about each new crop ("a good teacher is
patient and consistent", arXiv 2106.05237). `CachedLessons` asks once about each whole image and
cuts the answer as it cuts the image, at places where both grids fall together; that costs nothing a
step, and is how a laptop gets through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from pretraining.images import ImageArray
from pretraining.teacher import Advice, AdviceCache, Teacher, enlarge

STRIDE = 16  # pixels a place of the teacher's map, and a patch of the student


@dataclass(frozen=True)
class Lesson:
    """pixels: (B, 3, h, w) in 0..1. targets: (B, K), the share of each class. advice: the
    teacher's, on the same view.
    """

    pixels: torch.Tensor
    targets: torch.Tensor
    advice: Advice


class OnlineLessons:
    """Random crops, flips, colours and mixup, drawn on the device; the teacher sees exactly what
    the student sees.

    scale: least share of the image's area in a crop. mixup: parameter of the Beta distribution, 0
    for none (arXiv 1710.09412)."""

    def __init__(
        self,
        images: ImageArray,
        teacher: Teacher,
        size: int,
        scale: float = 0.25,
        mixup: float = 0.2,
    ):
        self.images, self.teacher, self.size, self.scale, self.mixup = (
            images,
            teacher,
            size,
            scale,
            mixup,
        )
        self.colours = change_colours()

    def draw(self, places: np.ndarray, device: torch.device) -> Lesson:
        pixels, labels = self.images.take(places, device)
        pixels = self.colours(crop_and_flip(pixels.float() / 255, self.size, self.scale))
        targets = F.one_hot(labels, len(self.images.classes)).float()
        if self.mixup:
            share = float(
                np.random.default_rng(int(torch.randint(2**31, ()))).beta(self.mixup, self.mixup)
            )
            order = torch.randperm(len(pixels), device=device)
            pixels, targets = (
                share * whole + (1 - share) * whole[order] for whole in (pixels, targets)
            )
        return Lesson(pixels, targets, self.teacher(pixels))


class CachedLessons:
    """Windows of `size` pixels out of the image at one of the cached sizes, flipped or not; the
    teacher's map is cut alike.

    The window lies on the grid of 16 pixels, so each patch has its place in the map. Colours change
    for the student alone."""

    def __init__(self, images: ImageArray, caches: list[AdviceCache], size: int):
        self.images, self.caches, self.size = images, caches, size
        self.colours = change_colours()

    def draw(self, places: np.ndarray, device: torch.device) -> Lesson:
        cache = self.caches[int(torch.randint(len(self.caches), ()))]
        pixels, labels = self.images.take(places, device)
        advice = cache.take(places, device)
        top, left = (
            STRIDE * int(torch.randint((cache.size - self.size) // STRIDE + 1, ()))
            for _ in range(2)
        )
        window = enlarge(pixels, cache.size)[..., top : top + self.size, left : left + self.size]
        grid, row, column = self.size // STRIDE, top // STRIDE, left // STRIDE
        features = advice.features[..., row : row + grid, column : column + grid]
        if torch.rand(()) < 0.5:
            window, features = window.flip(-1), features.flip(-1)
        targets = F.one_hot(labels, len(self.images.classes)).float()
        return Lesson(self.colours(window), targets, Advice(features, advice.embedding))


def change_colours() -> v2.Transform:
    """Brightness, contrast and saturation of a batch, and now and then grey or blurred."""
    return v2.Compose(
        [
            v2.ColorJitter(0.3, 0.3, 0.3),
            v2.RandomGrayscale(0.1),
            v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.5))], 0.1),
        ]
    )


def crop_and_flip(pixels: torch.Tensor, size: int, scale: float) -> torch.Tensor:
    """A random part of each image, `scale` to 1 of its area and 3/4 to 4/3 in shape, mirrored or
    not: (B, 3, size, size).

    One sampling of the whole batch where it lies, instead of an image at a time.
    """
    count, device = len(pixels), pixels.device
    area = torch.empty(count, device=device).uniform_(scale, 1)
    ratio = torch.empty(count, device=device).uniform_(np.log(3 / 4), np.log(4 / 3)).exp()
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    down, right = (
        (2 * torch.rand(count, device=device) - 1) * (1 - side) for side in (height, width)
    )
    mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    zero = torch.zeros(count, device=device)
    theta = torch.stack(
        [torch.stack([mirror * width, zero, right], 1), torch.stack([zero, height, down], 1)], 1
    )
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    return F.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )

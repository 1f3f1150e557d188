"""The network that is pretrained, with what only its pretraining needs, and what it is asked to
learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch
from timm.layers import PatchDropoutWithIndices
from torch import nn
from torch.nn import functional as F

from pretraining.lessons import Lesson
from pretraining.teacher import EMBED_DIM, MAP_CHANNELS

MEAN = STD = 0.5
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Weights:
    """How much each part of the loss counts; the smooth L1 terms are some twenty times smaller than
    the others to begin with.
    """

    labels: float = 0.5
    teacher: float = 0.5
    embedding: float = 5.0
    features: float = 10.0


class Student(nn.Module):
    """timm's ViT with class token, and two linear maps from its tokens to what the teacher says.

    patch_drop: share of the patch tokens left out of a step (arXiv 2208.07220, 2212.00794): less to
    learn from an image, and more images in the same time."""

    def __init__(self, num_classes: int, size: int, depth: int, patch_drop: float):
        super().__init__()
        self.network = timm.create_model(
            "vit_tiny_patch16_224", img_size=size, depth=depth, num_classes=num_classes
        )
        self.patch_drop = PatchDropoutWithIndices(patch_drop)
        self.to_embedding = nn.Linear(self.network.embed_dim, EMBED_DIM)
        self.to_features = nn.Linear(self.network.embed_dim, MAP_CHANNELS)

    def forward(self, pixels):
        """(B, 3, h, w) in 0..1 to logits (B, K), embedding (B, 1280), features (B, kept, 112) and
        the places kept (B, kept).
        """
        network = self.network
        tokens = network._pos_embed(network.patch_embed((pixels - MEAN) / STD))  # (B, 1 + T, C)
        tokens, kept = self.patch_drop(tokens)
        tokens = network.norm(network.blocks(tokens))
        return (
            network.head(tokens[:, 0]),
            self.to_embedding(tokens[:, 0]),
            self.to_features(tokens[:, 1:]),
            kept,
        )


def measure_loss(
    outputs, lesson: Lesson, advised: torch.Tensor | None, weights: Weights, smoothing: float = 0.1
) -> dict:
    """The parts of the loss, each a scalar, and their weighted sum as `loss`.

    labels: cross-entropy with smoothed labels. teacher: Kullback-Leibler divergence from the
    teacher's logits of the same classes (arXiv 1503.02531), where it knows them. embedding,
    features: smooth L1 to the teacher's, each standardised over its channels (arXiv 2205.14141).
    """
    logits, embedding, features, kept = (
        part.float() if part is not None and part.is_floating_point() else part for part in outputs
    )
    smoothed = (1 - smoothing) * lesson.targets + smoothing / lesson.targets.shape[1]
    parts = {"labels": F.cross_entropy(logits, smoothed)}
    if advised is not None:
        target = F.log_softmax(advised / TEMPERATURE, dim=1)
        said = F.log_softmax(logits / TEMPERATURE, dim=1)
        parts["teacher"] = (
            F.kl_div(said, target, log_target=True, reduction="batchmean") * TEMPERATURE**2
        )
    parts["embedding"] = F.smooth_l1_loss(embedding, _standardise(lesson.advice.embedding))
    wanted = lesson.advice.features.flatten(2).transpose(1, 2)  # (B, T, 112)
    if kept is not None:
        wanted = wanted.gather(1, kept[..., None].expand(-1, -1, wanted.shape[-1]))
    parts["features"] = F.smooth_l1_loss(features, _standardise(wanted))
    parts["loss"] = sum(getattr(weights, name) * value for name, value in parts.items())
    return parts


def _standardise(values):
    return F.layer_norm(values, values.shape[-1:])

"""A transformer over the feature map of a CNN: the "hybrid" of the ViT paper (arXiv 2010.11929,
section 3.1).

A pretrained convolutional stem already detects edges and textures; the transformer only learns how
they are related. On a few thousand images this does much better than a transformer from scratch."""

from __future__ import annotations

from collections import OrderedDict

import torch
from timm.layers import PatchDropout, trunc_normal_
from torch import nn

from vitlab.models.vit import add_class_token, build_blocks, init_weights, resample_positions

STEM_STAGES = 5  # of EfficientNet's seven: up to stride 16
STEM_STRIDE = 16


def split_stem(network: nn.Module) -> nn.Sequential:
    """timm EfficientNet up to stride 16: (B, 3, h, w) -> (B, C, h/16, w/16), C = 112 for Lite0."""
    stages = [(f"stage{i}", stage) for i, stage in enumerate(network.blocks[:STEM_STAGES])]
    return nn.Sequential(OrderedDict(conv_stem=network.conv_stem, bn1=network.bn1, **dict(stages)))


class FeatureEmbed(nn.Module):
    """Standardise each channel of a feature map and map it linearly to the transformer's width: (B,
    112, h, w) -> (B, h*w, C).

    The stem's channels differ in scale; batch statistics give all of them the same weight."""

    def __init__(self, in_channels: int, embed_dim: int):
        super().__init__()
        # the linear map that follows has scale and bias
        self.norm = nn.BatchNorm1d(in_channels, affine=False)
        self.proj = nn.Linear(in_channels, embed_dim)

    def forward(self, features):
        standardised = self.norm(features.flatten(2))  # (B, 112, h*w)
        return self.proj(standardised.transpose(1, 2))  # (B, h*w, C)


class HybridViT(nn.Module):
    """Image classifier: convolutional stem, then a class token and transformer blocks over the
    stem's feature map.

    stem: gives (B, stem_channels, h/16, w/16). size: height and width in pixels for which the
    positions are made; other sizes resample them. num_heads: by default one for every 64 numbers of
    embed_dim. patch_drop_rate: share of the patch tokens left out in training (arXiv 2208.07220),
    which regularises and saves time. Input (B, 3, h, w), output logits (B, num_classes)."""

    def __init__(
        self,
        stem: nn.Module,
        stem_channels: int,
        num_classes: int,
        size: tuple[int, int],
        embed_dim: int = 192,
        depth: int = 3,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        patch_drop_rate: float = 0.5,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        # the stem pads, so it rounds up
        self.grid = tuple(-(-side // STEM_STRIDE) for side in size)
        self.stem = stem
        self.embed = FeatureEmbed(stem_channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        self.patch_drop = PatchDropout(patch_drop_rate, num_prefix_tokens=1)
        self.blocks = build_blocks(
            depth,
            embed_dim,
            num_heads or max(1, embed_dim // 64),
            mlp_ratio,
            drop_rate,
            drop_path_rate,
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes)
        for part in (self.embed, self.blocks, self.head):
            part.apply(init_weights)
        for parameter in (self.cls_token, self.pos_embed):
            trunc_normal_(parameter, std=0.02)

    def embed_tokens(self, features):
        """From the stem's feature map to tokens with positions: (B, 112, h, w) -> (B, T, C), the
        class token first.
        """
        positions = resample_positions(self.pos_embed, self.grid, features.shape[-2:])
        tokens = add_class_token(self.embed(features), self.cls_token) + positions
        return self.patch_drop(self.pos_drop(tokens))

    def pool(self, tokens):
        """The class token of the last block, which is all that the head sees: (B, T, C) -> (B,
        C).
        """
        return self.norm(tokens)[:, 0]

    def forward(self, images):
        return self.head(
            self.head_drop(self.pool(self.blocks(self.embed_tokens(self.stem(images)))))
        )

    def get_classifier(self) -> nn.Module:
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which parameters belong to which layer, for timm's layer-wise learning rates."""
        return {
            "stem": r"^stem\.(?:conv_stem|bn1)",
            "stages": [(r"^stem\.stage(\d+)", None)],
            "embed": r"^(?:cls_token|pos_embed|embed)",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay."""
        return {"cls_token", "pos_embed"}

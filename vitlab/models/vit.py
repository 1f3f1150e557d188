"""A Vision Transformer written to be read (Dosovitskiy et al. 2021, arXiv 2010.11929).

Its parameters have the names and shapes of timm's VisionTransformer, so a checkpoint of one loads
into the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import DropPath, PatchDropout, resample_abs_pos_embed, trunc_normal_
from torch import nn
from torch.nn import functional as F

from vitlab.errors import UserError

POSITIONS = ("learned", "sincos")


class PatchEmbed(nn.Module):
    """Cut an image into patches and map each one linearly to `embed_dim` numbers: (B, 3, h, w) ->
    (B, C, h/p, w/p).

    A convolution whose stride is its kernel size is that linear map: it sees every patch once, and
    no two at a time."""

    def __init__(self, patch_size: int, embed_dim: int, in_chans: int = 3):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images):
        if any(side % self.patch_size for side in images.shape[-2:]):
            height, width = images.shape[-2:]
            raise UserError(
                f"an image of {height}x{width} pixels cannot be cut into patches of"
                f" {self.patch_size}x{self.patch_size}"
            )
        return self.proj(images)


class Attention(nn.Module):
    """Multi-head self-attention: every token gathers from all tokens, weighted by softmax(q k^T /
    sqrt(head_dim)).

    fused_attn: compute it by one kernel, which is faster and never forms the (B, H, T, T) matrix.
    Both paths agree."""

    def __init__(self, embed_dim: int, num_heads: int, drop_rate: float = 0.0):
        super().__init__()
        if embed_dim % num_heads:
            raise UserError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = True
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.attn_drop = nn.Dropout(drop_rate)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x):
        B, T, _ = x.shape
        qkv = self.qkv(x).reshape(B, T, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(
                q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0
            )
        else:
            # (B, H, T, T): row = the token that looks, column = what it looks at
            scores = q @ k.transpose(-2, -1) * self.scale
            attention = scores.softmax(dim=-1)
            x = self.attn_drop(attention) @ v  # (B, H, T, d)
        # heads side by side again, H*d wide: C, unless heads were pruned
        x = x.transpose(1, 2).reshape(B, T, -1)
        return self.proj_drop(self.proj(x))


class Mlp(nn.Module):
    """Two linear layers with GELU between them, on each token by itself: (B, T, C) -> (B, T, C)."""

    def __init__(self, embed_dim: int, hidden_dim: int, drop_rate: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Block(nn.Module):
    """One pre-norm transformer block: attention over all tokens, then an MLP on each token.

    drop_path_rate: probability, in training, of skipping a branch for a whole image (stochastic
    depth, arXiv 1603.09382)."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads, drop_rate)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio), drop_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))  # (B, T, C)
        return x + self.drop_path(self.mlp(self.norm2(x)))


def build_blocks(
    depth: int,
    embed_dim: int,
    num_heads: int,
    mlp_ratio: float,
    drop_rate: float,
    drop_path_rate: float,
) -> nn.Sequential:
    """A stack of blocks; the rate of skipped branches grows from 0 in the first to `drop_path_rate`
    in the last.
    """
    rates = torch.linspace(0, drop_path_rate, depth).tolist()
    return nn.Sequential(
        *[Block(embed_dim, num_heads, mlp_ratio, drop_rate, rate) for rate in rates]
    )


def sincos_positions(grid: tuple[int, int], embed_dim: int) -> torch.Tensor:
    """Fixed two-dimensional positions, (h*w, embed_dim): sine and cosine of the row, then of the
    column, at falling frequencies.

    Frequencies run from 1 down to 1/10000 as in Vaswani et al. 2017 (arXiv 1706.03762); in two
    dimensions as in arXiv 2205.01580."""
    if embed_dim % 4:
        raise UserError(f"sine-cosine positions need an embed_dim divisible by 4, not {embed_dim}")
    count = embed_dim // 4
    frequencies = 10000.0 ** -(torch.arange(count) / count)
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    row, column = (axis.flatten()[:, None] * frequencies for axis in (row, column))  # each (T, C/4)
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)


class VisionTransformer(nn.Module):
    """Image classifier: patches to tokens, a class token in front, positions added, blocks, and a
    linear head on the class token.

    size: height and width in pixels for which the positions are made; other sizes resample them.
    patch_drop_rate: share of the patch tokens left out in training (arXiv 2208.07220), which
    regularises and saves time. positions: "learned", or "sincos" (fixed, nothing to learn). Input
    (B, 3, h, w), output logits (B, num_classes)."""

    def __init__(
        self,
        num_classes: int,
        size: tuple[int, int],
        patch_size: int = 12,
        embed_dim: int = 128,
        depth: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        positions: str = "learned",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        in_chans: int = 3,
    ):
        super().__init__()
        if size[0] % patch_size or size[1] % patch_size:
            raise UserError(
                f"size {size[0]}x{size[1]} is not divisible by patch_size {patch_size}; choose a"
                " multiple of it"
            )
        if positions not in POSITIONS:
            raise UserError(
                f"unknown positions {positions!r}; choose one of {', '.join(POSITIONS)}"
            )
        self.grid = (size[0] // patch_size, size[1] // patch_size)
        num_patches = self.grid[0] * self.grid[1]
        self.patch_embed = PatchEmbed(patch_size, embed_dim, in_chans)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(
            torch.zeros(1, 1 + num_patches, embed_dim), requires_grad=positions == "learned"
        )
        self.pos_drop = nn.Dropout(drop_rate)
        self.patch_drop = PatchDropout(patch_drop_rate, num_prefix_tokens=1)
        self.blocks = build_blocks(
            depth, embed_dim, num_heads, mlp_ratio, drop_rate, drop_path_rate
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        self.apply(init_weights)
        trunc_normal_(self.cls_token, std=0.02)
        if positions == "learned":
            trunc_normal_(self.pos_embed, std=0.02)
        else:
            # the class token has no position: zeros
            self.pos_embed.data[0, 1:] = sincos_positions(self.grid, embed_dim)

    def embed_tokens(self, images):
        """From pixels to tokens with positions: (B, 3, h, w) -> (B, T, C), the class token
        first.
        """
        patches = self.patch_embed(images)  # (B, C, h/p, w/p)
        positions = resample_positions(self.pos_embed, self.grid, patches.shape[-2:])
        tokens = patches.flatten(2).transpose(1, 2)  # (B, h/p * w/p, C), row by row
        return self.patch_drop(self.pos_drop(add_class_token(tokens, self.cls_token) + positions))

    def pool(self, tokens):
        """The class token of the last block, which is all that the head sees: (B, T, C) -> (B,
        C).
        """
        return self.norm(tokens)[:, 0]

    def forward(self, images):
        return self.head(self.pool(self.blocks(self.embed_tokens(images))))

    def get_classifier(self) -> nn.Module:
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which parameters are of which layer, from the input on, as timm's layer-wise learning
        rates want to know.
        """
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not pull towards zero."""
        return {"cls_token", "pos_embed"}


def add_class_token(tokens: torch.Tensor, cls_token: torch.Tensor) -> torch.Tensor:
    """Put the class token in front of every image's tokens: (B, T, C) -> (B, 1 + T, C)."""
    return torch.cat([cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)


def resample_positions(
    pos_embed: torch.Tensor, old_grid: Sequence[int], new_grid: Sequence[int]
) -> torch.Tensor:
    """Positions (1, 1 + h*w, C) made for one grid of tokens, enlarged or shrunk to another; the
    class token keeps its own.
    """
    if tuple(old_grid) == tuple(new_grid):  # timm checks it too, but not while a graph is exported
        return pos_embed
    return resample_abs_pos_embed(
        pos_embed, new_size=list(new_grid), old_size=list(old_grid), num_prefix_tokens=1
    )


def init_weights(module: nn.Module) -> None:
    """Linear layers start from a narrow normal distribution and zero bias, as in the ViT paper's
    code.
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)

"""Blocks that merge similar tokens, so that later blocks have fewer to process; nothing is
retrained.

Source: Bolya et al. 2023, arXiv 2210.09461 (token merging, ToMe).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from timm.layers import Attention as TimmAttention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.models.vit import Attention, Block

Merge = Callable[[torch.Tensor], torch.Tensor]


def bipartite_soft_matching(
    metric: torch.Tensor, r: int, num_prefix_tokens: int = 1
) -> Merge | None:
    """How to merge r of the T tokens into their most similar ones: a function that sums up (B, T,
    C) to (B, T - r, C).

    metric: (B, T, d), vectors whose cosine is the similarity. Tokens at even places may move, each
    to the most similar token at an odd place; the r most similar pairs do. Prefix tokens neither
    move nor receive others, and stay in front, in order; after them come the even tokens that
    stayed, then the odd ones. At most half of the other tokens can move; None where none can.
    """
    T, p = metric.shape[1], num_prefix_tokens
    r = min(r, (T - p) // 2)
    if r <= 0:
        return None
    even_prefix, odd_prefix = (p + 1) // 2, p // 2
    with torch.no_grad():
        metric = F.normalize(metric, dim=-1)
        source, goal = metric[:, ::2][:, even_prefix:], metric[:, 1::2][:, odd_prefix:]
        best, goal_index = (source @ goal.transpose(1, 2)).max(dim=-1)  # both (B, sources)
        order = best.argsort(dim=-1, descending=True)
        moved, stayed = order[:, :r], order[:, r:].sort(dim=-1).values
        goals = goal_index.gather(1, moved)  # (B, r)

    def merge(tokens):
        C = tokens.shape[-1]
        even, odd = tokens[:, ::2][:, even_prefix:], tokens[:, 1::2][:, odd_prefix:]
        kept = even.gather(1, stayed[..., None].expand(-1, -1, C))
        gone = even.gather(1, moved[..., None].expand(-1, -1, C))
        odd = odd.scatter_add(1, goals[..., None].expand(-1, -1, C), gone)
        return torch.cat([tokens[:, :p], kept, odd], dim=1)  # (B, T - r, C)

    return merge


class TokenSizes(threading.local):
    """How many tokens of the image each token represents, (B, T, 1), passed from block to block;
    None where each represents itself alone. Every thread has its own, so that several can run one
    model.
    """

    value: torch.Tensor | None = None

    def __reduce__(self):
        return TokenSizes, ()  # a copy of the model starts afresh


class MergingAttention(nn.Module):
    """Attention with the parts of another module, in which a merged token counts as often as the
    tokens that it represents: softmax(q k^T + log size). Returns the output (B, T, C), and the
    mean of the keys over the heads (B, T, d), which measures the similarity of tokens.
    """

    def __init__(self, attn: nn.Module):
        super().__init__()
        self.num_heads, self.head_dim = attn.num_heads, attn.head_dim
        for name, part in attn.named_children():
            self.add_module(name, part)
        for name in ("q_norm", "k_norm"):
            if not hasattr(self, name):
                self.add_module(name, nn.Identity())

    def forward(self, x, size):
        B, T, _ = x.shape
        qkv = self.qkv(x).reshape(B, T, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
        q, k = self.q_norm(q), self.k_norm(k)
        mask = None if size is None else size.log()[:, None, None, :, 0]  # (B, 1, 1, T)
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.attn_drop.p if self.training else 0.0
        )
        x = x.transpose(1, 2).reshape(B, T, self.num_heads * self.head_dim)
        return self.proj_drop(self.proj(x)), k.mean(dim=1)


class MergingBlock(nn.Module):
    """A block with the parts of another, named alike, that merges r tokens between attention and
    MLP: (B, T, C) to (B, T-r, C).

    sizes: shared by all blocks of the model. is_first, is_last: where a pass through the blocks
    begins and ends."""

    def __init__(
        self,
        block: nn.Module,
        r: int,
        sizes: TokenSizes,
        num_prefix_tokens: int,
        is_first: bool,
        is_last: bool,
    ):
        super().__init__()
        for name, part in block.named_children():
            self.add_module(name, MergingAttention(part) if name == "attn" else part)
        self.r, self.num_prefix_tokens = r, num_prefix_tokens
        self.sizes, self.is_first, self.is_last = sizes, is_first, is_last

    def forward(self, x):
        size = None if self.is_first else self.sizes.value
        attended, metric = self.attn(self.norm1(x), size)
        x = x + self._finish(attended, 1)
        merge = bipartite_soft_matching(metric, self.r, self.num_prefix_tokens)
        if merge is not None:
            size = torch.ones_like(x[..., :1]) if size is None else size
            x, size = merge(x * size), merge(size)
            x = x / size
        self.sizes.value = None if self.is_last else size
        return x + self._finish(self.mlp(self.norm2(x)), 2)

    def _finish(self, x, branch):
        """Scale and drop a branch, by timm's two pairs of parts or the project's one."""
        if hasattr(self, "drop_path"):
            return self.drop_path(x)
        return getattr(self, f"drop_path{branch}")(getattr(self, f"ls{branch}")(x))


def merge_blocks(module: nn.Module, r: int | Sequence[int]) -> None:
    """Let the blocks of a model of timm's ViT family, of hybrid_vit or vit_scratch merge r tokens
    each, in place.

    r: for all blocks, or one number for each. Names and weights stay. UserError for another model,
    and for one whose head sees more than its prefix tokens (their mean would have to be weighted).
    """
    numbers = check_merging(module, r)
    prefix = getattr(module, "num_prefix_tokens", 1)  # ours have a class token alone
    sizes, last = TokenSizes(), len(numbers) - 1
    blocks = [
        MergingBlock(block, number, sizes, prefix, i == 0, i == last)
        for i, (block, number) in enumerate(zip(module.blocks, numbers, strict=True))
    ]
    module.blocks = nn.Sequential(*blocks).train(module.training)


def check_merging(module: nn.Module, r: int | Sequence[int]) -> list[int]:
    """r for each block; UserError where it is no count or the model cannot merge tokens."""
    blocks = list_plain_blocks(module, "merge tokens")
    pooling = getattr(module, "global_pool", "token")
    if pooling != "token" and not isinstance(module, VisionTransformerDistilled):
        raise UserError(
            f"this model's head sees all tokens (global_pool={pooling!r}); only one that reads a"
            " class token can merge"
        )
    numbers = list(r) if isinstance(r, Sequence) else [r] * len(blocks)
    if len(numbers) != len(blocks) or any(type(one) is not int or one < 0 for one in numbers):
        raise UserError(
            "r is the number of tokens merged in a block, from 0, or a list of one for each of"
            f" the {len(blocks)} blocks; not {r!r}"
        )
    return numbers


def list_plain_blocks(module: nn.Module, what: str) -> list[nn.Module]:
    """The blocks of a ViT; UserError for a model without such blocks, which cannot do `what`."""
    blocks = getattr(module, "blocks", None)
    attentions = [getattr(block, "attn", None) for block in blocks or ()]
    # a norm or gate mixes or weights the heads
    plain = attentions and all(
        type(block) in (Block, TimmBlock)
        and type(attn) in (Attention, TimmAttention)
        and isinstance(getattr(attn, "norm", None), nn.Identity | None)
        and isinstance(getattr(attn, "gate", None), nn.Identity | None)
        for block, attn in zip(blocks, attentions, strict=True)
    )
    if not plain:
        reason = (
            "it merges tokens already"
            if _merges(module)
            else "it has no transformer blocks of a plain ViT"
        )
        raise UserError(
            f"this {type(module).__name__} cannot {what}: {reason}; choose a ViT or DeiT of timm,"
            " hybrid_vit or vit_scratch"
        )
    return list(blocks)


def _merges(module: nn.Module) -> bool:
    return any(isinstance(part, MergingBlock) for part in module.modules())

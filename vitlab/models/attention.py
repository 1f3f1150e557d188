"""Attention seen from outside while a model computes it, by whatever kernel and under whatever
name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SOFTMAX = {torch.softmax, torch.Tensor.softmax, F.softmax}
PRODUCT = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm}
SAME = {
    F.dropout,
    torch.dropout,
    torch.Tensor.to,
    torch.Tensor.type_as,
    torch.Tensor.contiguous,
}  # leave the weights as they are, in evaluation mode


@dataclass(frozen=True)
class AttentionCall:
    """One computation of attention.

    output: what the model got, (B, H, T, d). value: what it is a weighted mean of. weights: gives
    the matrix, (B, H, T, T), float32. A model that folds or leaves out the heads has one axis less
    in each."""

    output: torch.Tensor
    value: torch.Tensor
    weights: Callable[[], torch.Tensor]


class AttentionWatch(TorchFunctionMode):
    """Sees every torch function called while it is active, and passes each computation of attention
    to `attend`, whose result replaces the output of attention.

    It knows the fused kernel, also where nn.MultiheadAttention calls it (which does not take its
    own fast path while a mode is active), and softmax over the last axis followed by a product with
    the values."""

    def __init__(self):
        super().__init__()
        # the latest softmax, as long as it may become attention
        self.softmax: torch.Tensor | None = None

    def attend(self, call: AttentionCall) -> torch.Tensor:
        raise NotImplementedError

    def see_softmax(self, output: torch.Tensor, axis: int) -> None:
        """Called with every softmax and its axis, counted from the end (-1 is the last)."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return self._attend_fused(*args, **kwargs)
        if function is F.multi_head_attention_forward:
            return self._attend_multi_head(*args, **kwargs)
        output = function(*args, **kwargs)
        if function in SOFTMAX and output.ndim > 2:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis is not None:
                axis = axis % output.ndim - output.ndim
                self.softmax = output if axis == -1 else self.softmax
                self.see_softmax(output, axis)
        elif self.softmax is not None and args and args[0] is self.softmax:
            if function in SAME:
                self.softmax = output
            elif function in PRODUCT:
                weights, self.softmax = self.softmax, None
                return self.attend(AttentionCall(output, args[1], weights.float))
        return output

    def _attend_fused(self, query, key, value, *args, **kwargs):
        output = F.scaled_dot_product_attention(query, key, value, *args, **kwargs)
        return self.attend(
            AttentionCall(output, value, lambda: form_weights(query, key, value, *args, **kwargs))
        )

    def _attend_multi_head(self, *args, **kwargs):
        """The function's own code, with the kernel it calls put through `attend`; a mode does not
        see inside it.
        """
        original = F.multi_head_attention_forward
        names = {**original.__globals__, "scaled_dot_product_attention": self._attend_fused}
        inside = FunctionType(original.__code__, names, original.__name__, original.__defaults__)
        output, _ = inside(*args, **{**kwargs, "need_weights": False})
        return output, original(*args, **kwargs)[1] if kwargs.get("need_weights", True) else None


def form_weights(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> torch.Tensor:
    """The matrix (B, H, T, T), float32, behind a call of the fused kernel with these arguments.

    By the formula, softmax(q k^T * scale + mask); for rarer arguments by the kernel itself, applied
    to an identity matrix in place of the values, which takes three times as long."""
    query, key, mask = query.float(), key.float(), attn_mask
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    if dropout_p or is_causal or enable_gqa or (mask is not None and mask.dtype == torch.bool):
        identity = torch.eye(key.shape[-2], device=key.device).expand(*value.shape[:-1], -1)
        return F.scaled_dot_product_attention(
            query, key, identity, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    # (B, H, T, T)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    return (scores if mask is None else scores + mask).softmax(dim=-1)

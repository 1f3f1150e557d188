"""Attention matrices out of a running model.

Models compute attention by one fused kernel that never forms the matrix, so there is nothing for a hook to see. Here every call
of the kernel is watched: its queries and keys give the matrix, whatever the model did to them before (normalisation, rotary
positions), and the matrix counts only if, applied to the values, it gives what the kernel gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitlab.models.anatomy import evaluating
from vitlab.schema import Anatomy

TOLERANCE = 1e-4  # relative to the largest value, in float32


@contextmanager
def record_attention(
    module: nn.Module,
    anatomy: Anatomy,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    gradients: bool = False,
) -> Iterator[list[torch.Tensor]]:
    """Keep the attention of the chosen blocks while the model runs: a list of (B, H, T, T), float32, without gradient.

    layers: indices of the blocks, negative ones from the end, in the order wanted; all of them by default. heads: the same for
    the heads of each. Nothing is kept of the rest. Row i of a matrix says how token i divides its attention over all tokens, and
    sums to 1. The list is filled while the model runs and holds its latest forward pass. Meanwhile the model is in evaluation
    mode; its output does not change, and it is left as it was.
    gradients: let the model compute with the matrices that are kept, so that torch.autograd.grad(score, attention) gives the
    gradient of a score with respect to them.

    Raises ValueError for a model without attention or without such a layer or head; RuntimeError when a chosen block yields no
    matrix, or one that does not reproduce what the model computed.
    """
    names = _choose_layers(anatomy, layers)
    recorder = _Recorder(names, heads, gradients)
    parts = [module.get_submodule(name) for name in names]
    with ExitStack() as stack:
        stack.enter_context(evaluating(module))
        for position, part in enumerate(parts):
            stack.enter_context(_fused(part))
            stack.callback(part.register_forward_pre_hook(recorder.enter(position)).remove)
            stack.callback(part.register_forward_hook(recorder.leave, always_call=True).remove)
        with recorder:
            yield recorder.found
        missing = [name for name, found in zip(names, recorder.found, strict=True) if found is None]
        if missing:
            raise RuntimeError(
                f"no attention caught in {', '.join(missing)}: the model did not run inside the with-block, or "
                f"{type(module.get_submodule(missing[0])).__name__} does not use torch's scaled_dot_product_attention"
            )


class _Recorder(TorchFunctionMode):
    """Sees every torch function called; while a watched module runs, turns its call of fused attention into a matrix."""

    def __init__(self, names: Sequence[str], heads: Sequence[int] | None, gradients: bool):
        super().__init__()
        self.names, self.heads, self.gradients = names, heads, gradients
        self.found: list[torch.Tensor | None] = [None] * len(names)
        self.running: int | None = None

    def enter(self, position: int):
        def hook(module, inputs):
            self.running, self.found[position] = position, None

        return hook

    def leave(self, module, inputs, output):
        self.running = None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is F.scaled_dot_product_attention and self.running is not None:
            name = self.names[self.running]
            if self.found[self.running] is not None:
                raise RuntimeError(f"{name} combines several attention matrices; no single one says where its tokens look")
            with torch.set_grad_enabled(self.gradients):
                found, own = _recompute_attention(name, self.heads, output, *args, **(kwargs or {}))
            self.found[self.running] = found
            output = own if self.gradients else output
        return output


def _recompute_attention(name, heads, output, query, key, value, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices (B, heads, T, T) behind one call of the kernel, proven, and the output computed with them."""
    heads = _choose_heads(heads, query.shape[-3])
    with torch.autocast(output.device.type, enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        identity = torch.eye(key.shape[-2], device=key.device).expand(*value.shape[:-1], -1)
        attention = F.scaled_dot_product_attention(query, key, identity, *args, **kwargs)  # softmax(...) @ 1, mask and all
        groups = attention.shape[-3] // value.shape[-3]  # query heads that share a head of values
        kept = attention if heads is None else attention[..., heads, :, :]
        if torch.is_grad_enabled():
            kept = kept if kept.requires_grad else kept.detach().requires_grad_()
            attention = kept if heads is None else attention.index_copy(-3, torch.tensor(heads, device=kept.device), kept)
        own = attention @ value.repeat_interleave(groups, dim=-3)
        difference = (own - output.float()).abs().max().item()
    tolerance = max(TOLERANCE, 4 * torch.finfo(output.dtype).eps) * max(1.0, value.abs().max().item())
    if not difference <= tolerance:
        raise RuntimeError(f"the attention recomputed for {name} is not what the model used: outputs differ by {difference:.1e}")
    return kept, own.to(output.dtype)


@contextmanager
def _fused(part: nn.Module) -> Iterator[None]:
    """Let a module that has both ways use the fused kernel."""
    before = getattr(part, "fused_attn", None)
    if before is None:
        yield
        return
    try:
        part.fused_attn = True
        yield
    finally:
        part.fused_attn = before


def _choose_layers(anatomy, layers) -> list[str]:
    names = anatomy.attention
    if not names:
        raise ValueError(f"this model ({anatomy.kind}) has no attention over its tokens to record; take a ViT or a hybrid")
    wrong = [layer for layer in layers or () if not -len(names) <= layer < len(names)]
    if wrong:
        raise ValueError(f"no attention layer {wrong[0]}: the model has {len(names)}, 0 to {len(names) - 1} or counted from -1")
    if layers is not None and not len(layers):
        raise ValueError("layers is empty; leave it out to record all")
    return [names[layer] for layer in layers] if layers is not None else list(names)


def _choose_heads(heads, num_heads) -> list[int] | None:
    """Indices of the chosen heads, from 0; None for all of them."""
    if heads is None:
        return None
    wrong = [head for head in heads if not -num_heads <= head < num_heads]
    if wrong:
        raise ValueError(f"no attention head {wrong[0]}: the layer has {num_heads}, 0 to {num_heads - 1} or counted from -1")
    if not len(heads):
        raise ValueError("heads is empty; leave it out to record all")
    return [head % num_heads for head in heads]

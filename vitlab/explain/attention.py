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
def record_attention(module: nn.Module, anatomy: Anatomy, layers: Sequence[int] | None = None) -> Iterator[list[torch.Tensor]]:
    """Keep the attention of the chosen blocks while the model runs: a list of (B, H, T, T), float32, without gradient.

    layers: indices of the blocks, negative ones from the end, in the order wanted; all of them by default. Row i of a matrix says
    how token i divides its attention over all tokens, and sums to 1. The list is filled while the model runs and holds its latest
    forward pass. Meanwhile the model is in evaluation mode; its output does not change, and it is left as it was.

    Raises ValueError for a model without attention or without such a layer; RuntimeError when a chosen block yields no matrix,
    or one that does not reproduce what the model computed.
    """
    names = _choose_layers(anatomy, layers)
    recorder = _Recorder(names)
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

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = names
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
            self.found[self.running] = _recompute_attention(name, output, *args, **(kwargs or {}))
        return output


@torch.no_grad()
def _recompute_attention(name, output, query, key, value, *args, **kwargs) -> torch.Tensor:
    """The (B, H, T, T) matrix behind one call of the kernel, proven against the output of that call."""
    with torch.autocast(output.device.type, enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        identity = torch.eye(key.shape[-2], device=key.device).expand(*value.shape[:-1], -1)
        attention = F.scaled_dot_product_attention(query, key, identity, *args, **kwargs)  # softmax(...) @ 1, mask and all
        groups = attention.shape[-3] // value.shape[-3]  # query heads that share a head of values
        difference = (attention @ value.repeat_interleave(groups, dim=-3) - output.float()).abs().max().item()
    tolerance = max(TOLERANCE, 4 * torch.finfo(output.dtype).eps) * max(1.0, value.abs().max().item())
    if not difference <= tolerance:
        raise RuntimeError(f"the attention recomputed for {name} is not what the model used: outputs differ by {difference:.1e}")
    return attention


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

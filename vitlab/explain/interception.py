"""Stepping in where a running model computes attention, for methods that change it or sum it up and keep no matrix.

`record_attention` keeps matrices and proves them; here a function of the caller answers in place of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitlab.models.anatomy import evaluating
from vitlab.schema import Anatomy


@dataclass(frozen=True)
class AttentionCall:
    """One call of scaled_dot_product_attention: layer is the block's index; query, key and value are (B, H, T, C/H)."""

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    args: tuple = field(repr=False)
    options: dict = field(repr=False)

    def compute_output(self) -> torch.Tensor:
        """What the model would have got: (B, H, T, C/H)."""
        return F.scaled_dot_product_attention(self.query, self.key, self.value, *self.args, **self.options)

    def compute_matrix(self) -> torch.Tensor:
        """The matrix (B, H, T, T): row i says how token i divides its attention; `matrix @ value` is the output."""
        return _compute_matrix(self.query, self.key, self.value, *self.args, **self.options)


@contextmanager
def intercept_attention(
    module: nn.Module, anatomy: Anatomy, answer: Callable[[AttentionCall], torch.Tensor], layers: Sequence[int] | None = None
) -> Iterator[None]:
    """While the model runs, `answer(call)` gives the output of attention, in the chosen blocks (all of them by default).

    The model is in evaluation mode meanwhile, and left as it was. Raises ValueError for a layer that does not exist, RuntimeError
    for a block that calls the kernel twice (no one matrix stands for it then) or, after a run without error, not at all.
    """
    indices = list(range(len(anatomy.attention))) if layers is None else choose_indices(layers, len(anatomy.attention), "layer")
    mode = _Interception(answer, anatomy.attention)
    with ExitStack() as stack:
        stack.enter_context(evaluating(module))
        for index in indices:
            part = module.get_submodule(anatomy.attention[index])
            if hasattr(part, "fused_attn"):  # let a module that has both ways use the kernel
                stack.callback(setattr, part, "fused_attn", part.fused_attn)
                part.fused_attn = True
            stack.callback(part.register_forward_pre_hook(mode.enter(index)).remove)
            stack.callback(part.register_forward_hook(mode.leave, always_call=True).remove)
        with mode:
            yield
        missing = [anatomy.attention[index] for index in indices if index not in mode.calls]
        if missing:
            raise RuntimeError(
                f"no attention was computed in {', '.join(missing)}: the model did not run inside the with-block, or "
                f"{type(module.get_submodule(missing[0])).__name__} does not use torch's scaled_dot_product_attention"
            )


def choose_indices(given: Sequence[int] | int, count: int, what: str) -> list[int]:
    """Indices from 0, of those given (negative ones from the end); ValueError for one that does not exist, or for none."""
    given = [given] if isinstance(given, int) else list(given)
    if not given:
        raise ValueError(f"no attention {what} chosen; leave {what}s out for all of them")
    for index in given:
        if not isinstance(index, int) or not -count <= index < count:
            raise ValueError(f"no attention {what} {index}: there are {count}, 0 to {count - 1} or counted from -1")
    return [index % count for index in given]


class _Interception(TorchFunctionMode):
    """Sees every torch function called; while a watched module runs, answers its call of fused attention."""

    def __init__(self, answer, names):
        super().__init__()
        self.answer, self.names = answer, names
        self.calls: dict[int, int] = {}
        self.running: int | None = None

    def enter(self, index):
        def hook(module, inputs):
            self.running, self.calls[index] = index, 0

        return hook

    def leave(self, module, inputs, output):
        if self.running is not None and not self.calls[self.running]:
            del self.calls[self.running]
        self.running = None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention or self.running is None:
            return function(*args, **kwargs)
        if self.calls[self.running]:
            name = self.names[self.running]
            raise RuntimeError(f"{name} combines several attention matrices; no single one says where its tokens look")
        self.calls[self.running] += 1
        named = dict(zip(("query", "key", "value"), args, strict=False))
        options = {name: value for name, value in kwargs.items() if name not in ("query", "key", "value")}
        parts = [named.get(name, kwargs.get(name)) for name in ("query", "key", "value")]
        return self.answer(AttentionCall(self.running, *parts, tuple(args[3:]), options))


def _compute_matrix(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if is_causal or enable_gqa or dropout_p or (attn_mask is not None and attn_mask.dtype == torch.bool):
        identity = torch.eye(key.shape[-2], dtype=value.dtype, device=key.device).expand(*value.shape[:-1], -1)
        return F.scaled_dot_product_attention(
            query, key, identity, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)  # (B, H, T, T)
    return (scores if attn_mask is None else scores + attn_mask).softmax(dim=-1)

"""Attention matrices of a running model, recorded or replaced.

Models compute attention with one fused kernel that never forms the matrix, so a hook cannot see it.
`intercept_attention` watches every call of the kernel instead: queries and keys give the matrix,
whatever the model did to them before (normalisation, rotary positions)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from vitlab.errors import UserError
from vitlab.models.anatomy import evaluating, place_tokens
from vitlab.models.watching import AttentionCall, AttentionWatch
from vitlab.schema import Anatomy

TOLERANCE = 1e-4  # relative to the largest value, in float32


@contextmanager
def intercept_attention(
    module: nn.Module,
    anatomy: Anatomy,
    handle: Callable[[int, AttentionCall], torch.Tensor],
    layers: Sequence[int] | None = None,
) -> Iterator[None]:
    """While the model runs, `handle(layer, call)` returns the output of each attention layer.

    call.output is what the model computed, (B, H, T, d), and call.form() gives the matrix,
    (B, H, T, T) float32; windows lie in the batch axis. layers: indices, all by default. The model
    is in evaluation mode meanwhile and left as it was. ValueError for a model without attention or
    without such a layer; RuntimeError for a layer that computes attention twice, or not at all.
    """
    names = list_attention(anatomy)
    indices = range(len(names)) if layers is None else [find_index(i, len(names)) for i in layers]
    watch = _Interception(handle, names)
    with ExitStack() as stack:
        stack.enter_context(evaluating(module))
        for index in indices:
            part = module.get_submodule(names[index])
            if hasattr(part, "fused_attn"):  # a module that knows both ways uses the kernel
                stack.callback(setattr, part, "fused_attn", part.fused_attn)
                part.fused_attn = True
            stack.callback(part.register_forward_pre_hook(watch.enter(index)).remove)
            stack.callback(part.register_forward_hook(watch.leave, always_call=True).remove)
        with watch:
            yield
        missing = [names[index] for index in indices if index not in watch.handled]
        if missing:
            raise RuntimeError(
                f"no attention was computed in {', '.join(missing)}: the model did not run inside"
                f" the with-block, or {type(module.get_submodule(missing[0])).__name__} computes it"
                " in a way that cannot be seen from outside"
            )


class _Interception(AttentionWatch):
    """Passes the attention of the layer that is running to `handle`."""

    def __init__(self, handle, names):
        super().__init__()
        self.handle, self.names = handle, names
        self.handled: set[int] = set()
        self.running: int | None = None

    def enter(self, index):
        def hook(module, inputs):
            self.running = index
            self.handled.discard(index)

        return hook

    def leave(self, module, inputs, output):
        self.running = self.weights = None

    def attend(self, call: AttentionCall) -> torch.Tensor:
        if self.running is None:
            return call.output
        if self.running in self.handled:
            raise RuntimeError(
                f"{self.names[self.running]} combines several attention matrices; no single one"
                " says where its tokens look"
            )
        self.handled.add(self.running)
        return self.handle(self.running, call)


@contextmanager
def record_attention(
    module: nn.Module, anatomy: Anatomy, *, gradients: bool = False
) -> Iterator[list[torch.Tensor]]:
    """The attention of all blocks of the latest forward pass: a list of (B, H, T, T), float32.

    Row i of a matrix says how token i divides its attention among all tokens, and sums to 1. The
    list is filled when the model runs; the model's output does not change. A matrix is accepted
    only if, applied to the values, it reproduces the output of the kernel. gradients: let the model
    compute with these matrices, so that torch.autograd.grad(score, attention) works.

    ValueError for a model without attention over all tokens; RuntimeError where a block gives no
    matrix, or one that does not reproduce what the model computed.

    >>> with record_attention(model.module, model.anatomy) as attention:  # doctest: +SKIP
    ...     model.module(images)
    >>> attention[-1].shape  # doctest: +SKIP
    torch.Size([8, 3, 197, 197])
    """
    names = list_attention(anatomy)
    if not anatomy.attention:
        raise UserError(
            f"record_attention needs attention over all tokens, and {anatomy.reason};"
            " explain(model, images, 'attention') and attention_table work with windows"
        )
    found: list[torch.Tensor | None] = [None] * len(names)

    def record(layer: int, call: AttentionCall) -> torch.Tensor:
        with torch.set_grad_enabled(gradients):
            found[layer], output = _recompute(names[layer], call)
        return output if gradients else call.output

    with intercept_attention(module, anatomy, record):
        yield found


def _recompute(name: str, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix (B, H, T, T) behind one computation of attention, and the output it gives."""
    with torch.autocast(call.output.device.type, enabled=False):
        attention, value = call.form(), call.value.float()
        if attention.ndim == 3:  # one head, and no axis for it
            attention, value = attention[:, None], value[:, None]
        if not torch.is_grad_enabled():
            attention = attention.detach()
        elif not attention.requires_grad:
            attention = attention.detach().requires_grad_()
        groups = attention.shape[1] // value.shape[1]  # query heads that share a head of values
        own = (attention @ value.repeat_interleave(groups, dim=1)).view_as(call.output)
        difference = (own - call.output.float()).abs().max().item()
    tolerance = max(TOLERANCE, 4 * torch.finfo(call.output.dtype).eps)
    tolerance *= max(1.0, value.abs().max().item())
    if not difference <= tolerance:
        raise RuntimeError(
            f"the attention recomputed for {name} is not what the model used: outputs differ by"
            f" {difference:.1e}"
        )
    return attention, own.to(call.output.dtype)


def list_attention(anatomy: Anatomy) -> tuple[str, ...]:
    """Names of the attention modules in order, windowed ones too; ValueError if there are none."""
    names = anatomy.attention or tuple(window.attention for window in anatomy.windows)
    if not names:
        raise UserError(
            f"this model has no attention that can be used ({anatomy.reason}); take a ViT, a Swin"
            " or a hybrid"
        )
    return names


def find_index(layer: int, count: int) -> int:
    """The index of an attention layer from 0; negative ones count from the end."""
    if not isinstance(layer, int) or not -count <= layer < count:
        raise UserError(
            f"no attention layer {layer!r}: there are {count}, 0 to {count - 1} or counted from -1"
        )
    return layer % count


@dataclass(frozen=True)
class Layout:
    """Where the patches are in an attention matrix.

    places: (windows, T), the number of each token's patch, row by row over `grid`; -1 for a prefix
    token or padding. Attention over all tokens is one window.
    """

    grid: tuple[int, int]
    places: torch.Tensor

    def split(self, attention: torch.Tensor) -> torch.Tensor:
        """(B * windows, H, T, T) to (B, windows, H, T, T)."""
        return attention.float().unflatten(0, (-1, len(self.places)))


def list_layouts(anatomy: Anatomy) -> list[Layout]:
    """The layout of each attention layer, in order."""
    if anatomy.windows:
        return [Layout(window.grid, place_tokens(window)) for window in anatomy.windows]
    patches = torch.arange(anatomy.grid[0] * anatomy.grid[1])
    places = torch.cat([torch.full((anatomy.num_prefix_tokens,), -1), patches])[None]  # (1, T)
    return [Layout(anatomy.grid, places)] * len(anatomy.attention)


def map_received(
    attention: torch.Tensor, layout: Layout, share: torch.Tensor | None = None
) -> torch.Tensor:
    """How much attention each patch gets: (B * windows, H, T, T) to (B, H, rows, columns).

    share: (B, T), the weight of each token that looks, see `share_read_tokens`; by default all
    patches count alike."""
    attention = layout.split(attention)  # (B, windows, H, T, T)
    known = layout.places.to(attention.device) >= 0  # (windows, T)
    # (1 or B, windows, T)
    looking = (known / known.sum())[None] if share is None else share[:, None]
    got = torch.einsum("bwq,bwhqk->bhwk", looking.expand(len(attention), -1, -1), attention)
    order = layout.places.to(attention.device)[known].argsort()  # each patch has one place
    return got[:, :, known][..., order].unflatten(-1, layout.grid)

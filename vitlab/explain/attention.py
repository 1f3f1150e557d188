"""Attention matrices out of a running model.

Models compute attention by one fused kernel that never forms the matrix, so there is nothing for a
hook to see. Here every call of the kernel is watched: its queries and keys give the matrix,
whatever the model did to them before (normalisation, rotary positions), and the matrix counts only
if, applied to the values, it gives what the kernel gave. Where the model forms the matrix itself,
that one is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from vitlab.errors import UserError
from vitlab.models.anatomy import evaluating, place_tokens
from vitlab.models.watching import AttentionCall, AttentionWatch
from vitlab.schema import Anatomy, Window

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
    """Keep the attention of the chosen blocks while the model runs: a list of (B, H, T, T),
    float32, without gradient.

    layers: indices of the blocks, negative ones from the end, in the order wanted; all of them by
    default. heads: the same for the heads of each. Nothing is kept of the rest. Row i of a matrix
    says how token i divides its attention over all tokens, and sums to 1. The list is filled while
    the model runs and holds its latest forward pass. Meanwhile the model is in evaluation mode; its
    output does not change, and it is left as it was. gradients: let the model compute with the
    matrices that are kept, so that torch.autograd.grad(score, attention) gives the gradient of a
    score with respect to them.

    Attention within windows is put back on the layer's own map, row by row: T is its number of
    tokens, and a token gives 0 to those outside its window. Rows sum to less than 1 only where a
    window reaches past the map: what goes to the filling is left out. These matrices are large, so
    choose layers and heads: Swin at 224 pixels begins with 3136 tokens, 39 MB a head and image.

    Raises ValueError for a model without attention or without such a layer or head; RuntimeError
    when a chosen block yields no matrix, or one that does not reproduce what the model computed.
    """
    names, windows = _choose_layers(anatomy, layers)
    recorder = _Recorder(names, windows, heads, gradients)
    parts = [module.get_submodule(name) for name in names]
    with ExitStack() as stack:
        stack.enter_context(evaluating(module))
        stack.callback(module.register_forward_pre_hook(recorder.start, with_kwargs=True).remove)
        for position, part in enumerate(parts):
            stack.callback(part.register_forward_pre_hook(recorder.enter(position)).remove)
            stack.callback(part.register_forward_hook(recorder.leave, always_call=True).remove)
        with recorder:
            yield recorder.found
        missing = [name for name, found in zip(names, recorder.found, strict=True) if found is None]
        if missing:
            raise RuntimeError(
                f"no attention caught in {', '.join(missing)}: the model did not run inside the"
                f" with-block, or {type(module.get_submodule(missing[0])).__name__} neither uses"
                " torch's scaled_dot_product_attention nor multiplies a softmax with its values"
            )


class _Recorder(AttentionWatch):
    """While a watched module runs, turns its computation of attention into a matrix that is
    kept.
    """

    def __init__(
        self,
        names: Sequence[str],
        windows: Sequence[Window | None],
        heads: Sequence[int] | None,
        gradients: bool,
    ):
        super().__init__()
        self.names, self.windows, self.heads, self.gradients = names, windows, heads, gradients
        self.found: list[torch.Tensor | None] = [None] * len(names)
        self.running: int | None = None
        self.batch = 0

    def start(self, module, inputs, options):
        self.batch = next(
            (
                len(value)
                for value in (*inputs, *options.values())
                if isinstance(value, torch.Tensor)
            ),
            0,
        )

    def enter(self, position: int):
        def hook(module, inputs):
            self.running, self.found[position] = position, None

        return hook

    def leave(self, module, inputs, output):
        self.running = self.weights = None

    def attend(self, call: AttentionCall) -> torch.Tensor:
        if self.running is None:
            return call.output
        name, window = self.names[self.running], self.windows[self.running]
        if self.found[self.running] is not None:
            raise RuntimeError(
                f"{name} combines several attention matrices; no single one says where its tokens"
                " look"
            )
        with torch.set_grad_enabled(self.gradients):
            self.found[self.running], own = _recompute_attention(
                name, call, self.heads, window, self.batch
            )
        return own if self.gradients else call.output


def _recompute_attention(name, call, heads, window, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices (B, heads, T, T) behind one computation of attention, proven, and the output
    computed with them.
    """
    with torch.autocast(call.output.device.type, enabled=False):
        attention, value = call.form(), call.value.float()
        attention = attention if torch.is_grad_enabled() else attention.detach()
        if attention.ndim == 3:  # one head, and no axis for it
            attention, value = attention[:, None], value[:, None]
        heads = _choose_heads(heads, attention.shape[-3])
        chosen = attention if heads is None else attention[:, heads]
        kept = _spread_windows(name, chosen, window, batch) if window else chosen
        if torch.is_grad_enabled():
            kept = kept if kept.requires_grad else kept.detach().requires_grad_()
            chosen = _gather_windows(kept, chosen, window) if window else kept
            attention = (
                chosen
                if heads is None
                else attention.index_copy(1, torch.tensor(heads, device=kept.device), chosen)
            )
        groups = attention.shape[1] // value.shape[1]  # query heads that share a head of values
        own = (attention @ value.repeat_interleave(groups, dim=1)).view_as(call.output)
        difference = (own - call.output.float()).abs().max().item()
    tolerance = max(TOLERANCE, 4 * torch.finfo(call.output.dtype).eps) * max(
        1.0, value.abs().max().item()
    )
    if not difference <= tolerance:
        raise RuntimeError(
            f"the attention recomputed for {name} is not what the model used: outputs differ by"
            f" {difference:.1e}"
        )
    return kept, own.to(call.output.dtype)


def _spread_windows(name, attention: torch.Tensor, window: Window, batch: int) -> torch.Tensor:
    """Attention within windows, (B * windows, H, t, t), on the whole map: (B, H, T, T), tokens row
    by row, 0 across windows.
    """
    places = place_tokens(window)  # (windows, t)
    if len(attention) != batch * len(places) or attention.shape[-1] != places.shape[1]:
        raise RuntimeError(
            f"{name} cut {len(attention)} windows of {attention.shape[-1]} tokens from its maps,"
            f" not {batch * len(places)} of {places.shape[1]}; find_anatomy(module, size) tells for"
            " images of another size"
        )
    num_tokens = window.grid[0] * window.grid[1]
    inside, cells = _pair_tokens(places, num_tokens, attention.device)
    attention = attention.unflatten(0, (batch, -1)).transpose(1, 2)  # (B, H, windows, t, t)
    spread = attention.new_zeros(*attention.shape[:2], num_tokens**2)
    return spread.index_copy(2, cells, attention[..., inside]).unflatten(
        2, (num_tokens, num_tokens)
    )


def _gather_windows(spread: torch.Tensor, attention: torch.Tensor, window: Window) -> torch.Tensor:
    """The inverse: attention within windows, (B * windows, H, t, t), with its values from the map,
    and only the filling's own.
    """
    places = place_tokens(window)
    inside, cells = _pair_tokens(places, spread.shape[-1], spread.device)
    # (B, H, windows, t, t)
    taken = attention.unflatten(0, (-1, len(places))).transpose(1, 2).clone()
    taken[..., inside] = spread.flatten(2)[..., cells]
    return taken.transpose(1, 2).flatten(0, 1)


def _pair_tokens(places, num_tokens, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pairs (windows, t, t) are of two tokens of the map, and where each of these lies in the
    flattened (T, T).
    """
    row, column = places[:, :, None], places[:, None, :]
    inside = (row >= 0) & (column >= 0)
    return inside.to(device), (row * num_tokens + column)[inside].to(device)


def _choose_layers(anatomy, layers) -> tuple[list[str], list[Window | None]]:
    """Names of the chosen attention modules, and how each is cut into windows."""
    windows = anatomy.windows or (None,) * len(anatomy.attention)
    names = [window.attention for window in anatomy.windows] or anatomy.attention
    if not names:
        raise UserError(
            f"this model has no attention that can be recorded ({anatomy.reason}); take a ViT, a"
            " hybrid or a Swin"
        )
    wrong = [layer for layer in layers or () if not -len(names) <= layer < len(names)]
    if wrong:
        raise UserError(
            f"no attention layer {wrong[0]}: the model has {len(names)}, 0 to {len(names) - 1} or"
            " counted from -1"
        )
    if layers is not None and not len(layers):
        raise UserError("layers is empty; leave it out to record all")
    chosen = range(len(names)) if layers is None else layers
    return [names[layer] for layer in chosen], [windows[layer] for layer in chosen]


def _choose_heads(heads, num_heads) -> list[int] | None:
    """Indices of the chosen heads, from 0; None for all of them."""
    if heads is None:
        return None
    wrong = [head for head in heads if not -num_heads <= head < num_heads]
    if wrong:
        raise UserError(
            f"no attention head {wrong[0]}: the layer has {num_heads}, 0 to {num_heads - 1} or"
            " counted from -1"
        )
    if not len(heads):
        raise UserError("heads is empty; leave it out to record all")
    return [head % num_heads for head in heads]

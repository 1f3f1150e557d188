"""Attention matrices of a running model, recorded or replaced, and maps made of them.

Models compute attention with a fused kernel that never forms the matrix, so a hook cannot see it.
`intercept_attention` sees every call of the kernel instead: queries and keys give the matrix,
whatever the model did to them before (normalisation, rotary positions)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from vitlab.errors import UserError
from vitlab.explain.inspection import check_gradient, differentiate_at, select_logits
from vitlab.explain.methods import explanation
from vitlab.models.anatomy import evaluating, place_tokens
from vitlab.models.attention import AttentionCall, AttentionWatch
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

    call.output is what the model computed, (B, H, T, d), and call.weights() the matrix, (B, H, T,
    T) float32; windows are in the batch axis. layers: indices, all by default. The model is in
    evaluation mode meanwhile. UserError for a model without attention; RuntimeError for a layer
    that computes attention twice, or not at all.
    """
    names = list_attention(anatomy)
    indices = range(len(names)) if layers is None else layers
    watch = _Interception(handle, names)
    with ExitStack() as stack:
        stack.enter_context(evaluating(module))
        for index in indices:
            part = module.get_submodule(names[index])
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
        self.running = self.softmax = None

    def attend(self, call: AttentionCall) -> torch.Tensor:
        if self.running is None:
            return call.output
        if self.running in self.handled:
            raise RuntimeError(
                f"{self.names[self.running]} combines several attention matrices, so it has no"
                " single one"
            )
        self.handled.add(self.running)
        return self.handle(self.running, call)


@contextmanager
def record_attention(
    module: nn.Module, anatomy: Anatomy, *, gradients: bool = False
) -> Iterator[list[torch.Tensor]]:
    """The attention of all blocks of the latest forward pass: a list of (B, H, T, T), float32.

    Row i of a matrix is how token i divides its attention among all tokens, and sums to 1. The
    list is filled when the model runs; the model's output does not change. A matrix is accepted
    only if, applied to the values, it reproduces the output of the kernel. gradients: let the model
    compute with these matrices, so that torch.autograd.grad(score, attention) works.

    UserError for a model without attention over all tokens; RuntimeError where a block gives no
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
        attention, value = call.weights(), call.value.float()
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
    """Names of the attention modules in order, windowed ones too; UserError if there are none."""
    names = anatomy.attention or tuple(window.attention for window in anatomy.windows)
    if not names:
        raise UserError(
            f"this model has no attention that can be used ({anatomy.reason}); choose a ViT, a Swin"
            " or a hybrid"
        )
    return names


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

    share: (B, T), the weight of each attending token, see `share_read_tokens`; by default all
    patches have the same weight."""
    attention = layout.split(attention)  # (B, windows, H, T, T)
    known = layout.places.to(attention.device) >= 0  # (windows, T)
    # (1 or B, windows, T)
    attending = (known / known.sum())[None] if share is None else share[:, None]
    got = torch.einsum("bwq,bwhqk->bhwk", attending.expand(len(attention), -1, -1), attention)
    order = layout.places.to(attention.device)[known].argsort()  # each patch has one place
    return got[:, :, known][..., order].unflatten(-1, layout.grid)


def share_read_tokens(gradient: torch.Tensor) -> torch.Tensor:
    """From the gradient (B, T, C) at the last block, the weight of each token in what the
    classifier reads: (B, T), rows sum to 1.

    Tokens without gradient are not read; the others have the same weight. UserError where none is
    read."""
    check_gradient(gradient, "the tokens of the last block")
    read = (gradient != 0).any(dim=-1).float()  # (B, T)
    return read / read.sum(dim=1, keepdim=True).clamp(min=1)


@explanation(
    signed=False,
    needs=("attention", "windows"),
    class_specific=False,
    shows=(
        "Brighter areas receive more attention in one layer from the tokens that the classifier"
        " reads; the map does not depend on the predicted class."
    ),
)
def attention(model, images, targets, layer=-1):
    """Where the tokens that the classifier reads attend in one layer, averaged over its heads.

    These tokens are the class token, class and distillation token, or all patches where they are
    averaged. Attention to prefix tokens is not shown. Source: on what attention explains and what
    not, Jain and Wallace 2019, arXiv 1902.10186."""
    anatomy = model.anatomy
    layers = range(len(list_attention(anatomy)))
    if layer not in range(-len(layers), len(layers)):
        raise UserError(f"no attention layer {layer!r}: the model has layers 0 to {layers[-1]}")
    layer, matrices = layers[layer], []

    def keep(_, call):
        matrices.append(call.weights().mean(dim=1, keepdim=True))  # (B * windows, 1, T, T)
        return call.output

    share = None
    with intercept_attention(model.module, anatomy, keep, [layer]):
        if anatomy.attention:
            # (B, T, C)
            _, gradient = differentiate_at(anatomy.blocks[-1], model.module, images, targets)
            share = share_read_tokens(gradient)
        else:
            with torch.no_grad():
                model.module(images)
    layout = list_layouts(anatomy)[layer]
    return map_received(matrices[-1].detach(), layout, share)[:, 0]  # (B, rows, columns)


@explanation(
    signed=False,
    needs=("attention",),
    class_specific=False,
    shows=(
        "Brighter areas contribute more to the tokens that the classifier reads, by attention"
        " alone; the map does not depend on the predicted class."
    ),
)
def rollout(model, images, targets):
    """How much of each patch reaches the tokens that the classifier reads.

    The product over the blocks of 0.5 A + 0.5 I, with A the attention averaged over heads; half of
    each token takes the residual path. Values and MLPs are ignored. Source: Abnar and Zuidema 2020,
    arXiv 2005.00928."""
    mixed = {}

    def keep(layer, call):
        mixed[layer] = _mix_with_residual(call.weights().detach().mean(dim=1))  # (B, T, T)
        return call.output

    with intercept_attention(model.module, model.anatomy, keep):
        # (B, T, C)
        _, gradient = differentiate_at(model.anatomy.blocks[-1], model.module, images, targets)
    matrices = [mixed[layer] for layer in sorted(mixed)]
    return _follow_back(share_read_tokens(gradient), matrices, model.anatomy)


@explanation(
    signed=False,
    needs=("attention",),
    shows=(
        "Brighter areas contribute more to the tokens that the classifier reads, through"
        " attention that raises the score of {target}; evidence against it is not shown."
    ),
)
def gradient_rollout(model, images, targets):
    """Rollout of attention weighted by its gradient.

    In each block A becomes the mean over heads of A times the gradient of the target logit with
    respect to A, without negative values; then as in rollout. Source: VITAttentionGradRollout of
    github.com/jacobgil/vit-explain, but rows are divided by their own sums."""
    matrices, share = _weigh_by_gradients(model, images, targets)
    mixed = [_mix_with_residual(matrix.mean(dim=1).relu()) for matrix in matrices]
    return _follow_back(share, mixed, model.anatomy)


@explanation(
    signed=False,
    needs=("attention",),
    shows=(
        "Brighter areas receive more attention that raises the score of {target}, summed over"
        " the blocks; evidence against it is not shown."
    ),
)
def transformer_attribution(model, images, targets):
    """Relevance of each patch for the target logit, gathered block by block.

    R becomes R + mean over heads of (A dA)+ R, beginning with R = I. dA is the gradient of the
    target logit with respect to the attention A, and ( )+ drops negative products. This is the
    authors' later rule, not the layer-wise one of arXiv 2012.09838. Source: Chefer et al. 2021,
    arXiv 2103.15679, equations 5 and 6."""
    matrices, share = _weigh_by_gradients(model, images, targets)
    identity = torch.eye(share.shape[1], device=share.device)
    steps = [identity + matrix.relu().mean(dim=1) for matrix in matrices]
    return _follow_back(share, steps, model.anatomy)


def _weigh_by_gradients(model, images, targets) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Attention times its gradient for all blocks, each (B, H, T, T), and the weights (B, T) of the
    tokens that are read.
    """
    outputs = []
    last = model.module.get_submodule(model.anatomy.blocks[-1])
    hook = last.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        with record_attention(model.module, model.anatomy, gradients=True) as recorded:
            score = select_logits(model.module(images), targets).sum()
    finally:
        hook.remove()
    *gradients, at_last = torch.autograd.grad(score, [*recorded, outputs[-1]])
    pairs = zip(recorded, gradients, strict=True)
    return [matrix.detach() * gradient for matrix, gradient in pairs], share_read_tokens(at_last)


def _mix_with_residual(attention: torch.Tensor) -> torch.Tensor:
    """0.5 A + 0.5 I of attention (B, T, T), rows divided by their sums."""
    mixed = 0.5 * attention
    mixed.diagonal(dim1=-2, dim2=-1).add_(0.5)
    return mixed / mixed.sum(dim=-1, keepdim=True)


def _follow_back(share, matrices, anatomy: Anatomy) -> torch.Tensor:
    """Rows `share` (B, T) times the matrices (B, T, T) from the last block to the first, on the
    grid of patches.
    """
    row = share[:, None]  # (B, 1, T)
    for matrix in reversed(matrices):
        row = row @ matrix
    return row[:, 0, anatomy.num_prefix_tokens :].unflatten(1, anatomy.grid)

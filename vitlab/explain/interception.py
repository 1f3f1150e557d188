"""Stepping in where a running model computes attention, for methods that change it, or sum it up
and keep no matrix.

`record_attention` keeps matrices and proves them; here a function of the caller answers in place of
the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.models.anatomy import evaluating
from vitlab.models.watching import AttentionWatch, form_weights
from vitlab.schema import Anatomy


@dataclass(frozen=True)
class AttentionCall:
    """What block number `layer` is about to compute from values (B, H, T, d); windows, if there are
    any, lie in the batch axis.

    compute_output: gives what the model would go on with, (B, H, T, d). compute_matrix: gives the
    weights (B, H, T, T), float32, row i being how token i divides its attention."""

    layer: int
    value: torch.Tensor
    compute_output: Callable[[], torch.Tensor] = field(repr=False)
    compute_matrix: Callable[[], torch.Tensor] = field(repr=False)

    def apply(self, matrix: torch.Tensor) -> torch.Tensor:
        """The output computed with this matrix: all that is needed where the matrix is formed
        anyway.
        """
        # query heads that share a head of values
        groups = matrix.shape[-3] // self.value.shape[-3] if matrix.ndim == 4 else 1
        value = self.value.repeat_interleave(groups, dim=-3) if groups > 1 else self.value
        return matrix.to(value.dtype) @ value


@contextmanager
def intercept_attention(
    module: nn.Module,
    anatomy: Anatomy,
    answer: Callable[[AttentionCall], torch.Tensor],
    layers: Sequence[int] | None = None,
) -> Iterator[None]:
    """While the model runs, `answer(call)` gives the output of attention, in the chosen blocks (all
    of them by default).

    The model is in evaluation mode meanwhile, and left as it was. Raises ValueError for a layer
    that does not exist; RuntimeError for a block that computes attention twice (no one matrix
    stands for it then) or, after a run without error, not at all."""
    names = list_attention(anatomy)
    indices = choose_indices(layers, len(names), "layer")
    watch = _Interception(answer, names)
    with ExitStack() as stack:
        stack.enter_context(evaluating(module))
        for index in indices:
            part = module.get_submodule(names[index])
            if hasattr(part, "fused_attn"):  # let a module that has both ways use the kernel
                stack.callback(setattr, part, "fused_attn", part.fused_attn)
                part.fused_attn = True
            stack.callback(part.register_forward_pre_hook(watch.enter(index)).remove)
            stack.callback(part.register_forward_hook(watch.leave, always_call=True).remove)
        with watch:
            yield
        missing = [names[index] for index in indices if index not in watch.answered]
        if missing:
            raise RuntimeError(
                f"no attention was computed in {', '.join(missing)}: the model did not run inside"
                f" the with-block, or {type(module.get_submodule(missing[0])).__name__} computes it"
                " in a way that cannot be seen from outside"
            )


def list_attention(anatomy: Anatomy) -> tuple[str, ...]:
    """Names of the attention modules in order, windowed ones too; ValueError for a model that has
    none.
    """
    names = anatomy.attention or tuple(window.attention for window in anatomy.windows)
    if not names:
        raise UserError(
            f"this model has no attention that can be used ({anatomy.reason}); take a ViT, a Swin"
            " or a hybrid"
        )
    return names


def choose_indices(given: Sequence[int] | int | None, count: int, what: str) -> list[int]:
    """Indices from 0, of those given (negative ones from the end), all for None; ValueError for one
    that does not exist.
    """
    if given is None:
        return list(range(count))
    given = [given] if isinstance(given, int) else list(given)
    if not given:
        raise UserError(f"no attention {what} chosen; leave {what}s out for all of them")
    for index in given:
        if not isinstance(index, int) or not -count <= index < count:
            raise UserError(
                f"no attention {what} {index!r}: there are {count}, 0 to {count - 1} or counted"
                " from -1"
            )
    return [index % count for index in given]


class _Interception(AttentionWatch):
    """Lets `answer` compute the attention of whichever watched module is running."""

    def __init__(self, answer, names):
        super().__init__()
        self.answer, self.names = answer, names
        self.answered: set[int] = set()
        self.running: int | None = None

    def enter(self, index):
        def hook(module, inputs):
            self.running = index
            self.answered.discard(index)

        return hook

    def leave(self, module, inputs, output):
        self.running = None

    def attend(self, call):
        return self._answer(call.value, lambda: call.output, call.form)

    def _attend_fused(self, query, key, value, *args, **kwargs):
        def compute_output():
            return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)

        return self._answer(
            value, compute_output, lambda: form_weights(query, key, value, *args, **kwargs)
        )

    def _answer(self, value, compute_output, compute_matrix):
        if self.running is None:
            return compute_output()
        if self.running in self.answered:
            name = self.names[self.running]
            raise RuntimeError(
                f"{name} combines several attention matrices; no single one says where its tokens"
                " look"
            )
        self.answered.add(self.running)
        return self.answer(AttentionCall(self.running, value, compute_output, compute_matrix))

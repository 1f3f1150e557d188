"""What distillation reads of a model while it runs: the logits of each head, a feature map, and where it looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.explain.inspection import differentiate_at
from vitlab.explain.layers import arrange_as_map
from vitlab.explain.layout import list_layouts, map_received
from vitlab.explain.rollout import share_read_tokens
from vitlab.models.anatomy import evaluating
from vitlab.models.watching import AttentionCall, AttentionWatch
from vitlab.schema import Anatomy, ModelBundle

IMAGES = 2  # of noise, in the trial that shows which tokens are read


class Reader(nn.Module):
    """A model, or the part of it that is trained, with an output that is a dictionary of all that is asked for.

    logits: (B, num_classes). With a distillation token also label_logits and teacher_logits, those of the two heads, whose mean
    the logits are. features: (B, C, h, w), see `find_feature_layer`. attention: (B, h, w), where the tokens that the classifier
    reads look in the last block, the mean over its heads, with sum 1.
    """

    def __init__(self, network: nn.Module, model: ModelBundle, features: bool = False, attention: bool = False):
        super().__init__()
        self.network, self.model, self.features, self.attention = network, model, features, attention
        self.share = find_read_tokens(model) if attention else None

    def forward(self, x) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        with self._reading(found):
            found["logits"] = self.network(x)
        if self.features:
            layer, _ = find_feature_layer(self.model.anatomy)
            found["features"] = arrange_as_map(found["features"], self.model.anatomy, layer, self.model.transform.size).float()
        if self.attention:
            matrix, layout = found["attention"], list_layouts(self.model.anatomy)[-1]
            share = None if self.share is None else self.share.to(matrix.device).expand(len(matrix), -1)
            found["attention"] = normalise_maps(map_received(matrix, layout, share).mean(dim=1))
        return found

    @contextmanager
    def _reading(self, found) -> Iterator[None]:
        """Hooks on the model's own parts, which the network shares; none is left afterwards."""
        module = self.model.module
        with ExitStack() as stack:
            if has_distillation_token(module):
                for name, part in (("label_logits", module.head), ("teacher_logits", module.head_dist)):
                    stack.callback(part.register_forward_hook(_keep_output(found, name)).remove)
            if self.features:
                layer, before = find_feature_layer(self.model.anatomy)
                part = module.get_submodule(layer)
                if before:
                    stack.callback(part.register_forward_pre_hook(_keep_input(found, "features")).remove)
                else:
                    stack.callback(part.register_forward_hook(_keep_output(found, "features")).remove)
            if self.attention:
                watch = _LastAttention(found)
                part = module.get_submodule(find_attention_layer(self.model.anatomy))
                stack.callback(part.register_forward_pre_hook(watch.enter).remove)
                stack.callback(part.register_forward_hook(watch.leave, always_call=True).remove)
                stack.enter_context(watch)
            yield


class _LastAttention(AttentionWatch):
    """Keeps the matrix (B, H, T, T) of the one module that calls `enter` and `leave`."""

    def __init__(self, found: dict[str, torch.Tensor]):
        super().__init__()
        self.found, self.running = found, False

    def enter(self, module, inputs):
        self.running = True

    def leave(self, module, inputs, output):
        self.running = False

    def attend(self, call: AttentionCall) -> torch.Tensor:
        if self.running:
            with torch.autocast(call.output.device.type, enabled=False):
                self.found["attention"] = call.form().float()
        return call.output


def has_distillation_token(module: nn.Module) -> bool:
    """Whether a second head reads a token of its own, as in DeiT (arXiv 2012.12877) and LeViT."""
    return isinstance(getattr(module, "head_dist", None), nn.Module)


def find_feature_layer(anatomy: Anatomy) -> tuple[str, bool]:
    """The layer whose map counts as the features, and whether what it takes in is meant instead of what it gives out.

    What goes into the last attention over all tokens: behind it, in a model with a class token, nothing reads the patches any
    more. The last feature map of a CNN and of a Swin. ValueError for a model that has neither.
    """
    if anatomy.attention:
        return anatomy.attention[-1], True
    if anatomy.stages:
        return anatomy.stages[-1], False
    raise UserError(f"no feature map is known in a model of this kind ({anatomy.kind}): write features=0")


def find_attention_layer(anatomy: Anatomy) -> str:
    """Name of the last attention module, windowed ones too; ValueError for a model that has none."""
    names = anatomy.attention or tuple(window.attention for window in anatomy.windows)
    if not names:
        raise UserError(f"a model of this kind ({anatomy.kind}) has no attention over its tokens: write attention=0")
    return names[-1]


def find_read_tokens(model: ModelBundle) -> torch.Tensor | None:
    """The share (1, T) of each token of the last block in what the classifier reads; None where all patches count alike."""
    anatomy, module = model.anatomy, model.module
    if not anatomy.attention:
        return None
    shape = (IMAGES, len(model.transform.mean), *model.transform.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(next(module.parameters()).device)
    first = torch.eye(len(model.classes), device=images.device)[:1]  # (1, num_classes): any class will do
    with evaluating(module), torch.enable_grad():
        _, gradient = differentiate_at(anatomy.blocks[-1], module, images, first)
    return share_read_tokens(gradient).mean(dim=0, keepdim=True)


def resample_maps(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, C, h, w) on another grid; coarser cells take the mean of what they cover."""
    if tuple(maps.shape[2:]) == tuple(grid):
        return maps
    return F.interpolate(maps.float(), size=grid, mode="bilinear", antialias=True)


def normalise_maps(maps: torch.Tensor) -> torch.Tensor:
    """(B, h, w) with sum 1."""
    return maps / maps.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def _keep_output(found, name):
    def hook(module, inputs, output):
        found[name] = output

    return hook


def _keep_input(found, name):
    def hook(module, inputs):
        found[name] = inputs[0]

    return hook

"""A classifier as a chain of pieces whose composition gives its output.

Training cuts the chain: what comes before the first trained piece is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Callable

from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from vitlab.models.hybrid import HybridViT
from vitlab.models.vit import VisionTransformer

FAMILIES = (VisionTransformer, HybridViT, TimmVisionTransformer, EfficientNet, ResNet)


class Piece(nn.Module):
    """A step of a model's forward pass, holding the model's own parts that the step uses (shared, not copied)."""

    def __init__(self, step: Callable, parts: dict[str, nn.Module | nn.Parameter]):
        super().__init__()
        self.step = step
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.step(x)


def pieces(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The classifier as an ordered list of (name, module); feeding each one's output to the next gives `module(x)`.

    Every parameter of the model is in exactly one piece, and belongs to the model still. Names: `stem.conv, stem.stage0.., embed,
    block0.., head` for a HybridViT, `embed, block0.., head` for other ViTs, `stem, stage0.., head` for EfficientNets and ResNets.
    """
    match module:
        case HybridViT():
            chain = [*_cut_stem(module.stem), *_cut_transformer(module, module.embed_tokens, module.classify, apart=("stem",))]
        case VisionTransformer():
            chain = _cut_transformer(module, module.embed_tokens, module.classify)
        case TimmVisionTransformer() if _keeps_forward(module, TimmVisionTransformer):
            chain = _cut_transformer(module, *_timm_steps(module))
        case EfficientNet() if _keeps_forward(module, EfficientNet):
            stages = [(f"stage{i}", stage) for i, stage in enumerate(module.blocks)]
            head = (module.conv_head, module.bn2, module.global_pool, nn.Dropout(module.drop_rate), module.classifier)
            chain = [("stem", nn.Sequential(module.conv_stem, module.bn1)), *stages, ("head", nn.Sequential(*head))]
        case ResNet() if _keeps_forward(module, ResNet):
            stem = nn.Sequential(module.conv1, module.bn1, module.act1, module.maxpool)
            stages = [(f"stage{i}", getattr(module, f"layer{i + 1}")) for i in range(4)]
            head = nn.Sequential(module.global_pool, nn.Dropout(float(module.drop_rate or 0)), module.fc)
            chain = [("stem", stem), *stages, ("head", head)]
        case _:
            names = ", ".join(f"{family.__module__.split('.')[0]}'s {family.__name__}" for family in FAMILIES)
            raise ValueError(f"cannot cut a {type(module).__name__} into pieces; these can be cut: {names}")
    own = set(module.modules())
    for _, piece in chain:
        for part in {piece, *piece.modules()} - own:  # wrappers made here start in the model's mode
            part.training = module.training
    return chain


def _keeps_forward(module, family):
    """Whether a subclass leaves the order of the steps as its family has it."""
    return all(getattr(type(module), name) is getattr(family, name) for name in ("forward", "forward_features"))


def _cut_stem(stem):
    entry = nn.Sequential(stem.conv_stem, stem.bn1)
    return [("stem.conv", entry), *((f"stem.{name}", part) for name, part in stem.named_children() if name.startswith("stage"))]


def _cut_transformer(module, embed, classify, apart=()):
    """embed: what comes before the blocks and all bare parameters (class token, positions); head: what comes after."""
    children = {name: child for name, child in module.named_children() if name not in apart}
    names = list(children)
    first = names.index("blocks")
    before = {name: children[name] for name in names[:first]} | dict(module.named_parameters(recurse=False))
    after = {name: children[name] for name in names[first + 1 :]}
    blocks = [(f"block{i}", block) for i, block in enumerate(module.blocks)]
    return [("embed", Piece(embed, before)), *blocks, ("head", Piece(classify, after))]


def _timm_steps(module):
    def embed(images):
        return module.norm_pre(module.patch_drop(module._pos_embed(module.patch_embed(images))))

    def classify(tokens):
        return module.forward_head(module.norm(tokens))

    return embed, classify


def find_piece(names, name):
    for position, known in enumerate(names):
        if known == name or known.startswith(f"{name}."):
            return position
    from vitlab.registry import unknown

    raise ValueError(unknown("piece to train from", name, list(names)))


def block_positions(names):
    return [position for position, name in enumerate(names) if name.rpartition(".")[2].startswith("block")]

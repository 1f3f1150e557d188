"""How the models of each family are cut into pieces: the order of their steps, written down from
timm's `forward_features`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from timm.layers import ClassifierHead, NormMlpClassifierHead
from timm.models.byobnet import ByobNet
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vgg import VGG
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from vitlab.errors import UserError
from vitlab.models.hybrid import HybridViT
from vitlab.models.vit import VisionTransformer

Chain = list[tuple[str, nn.Module]]
STEPS = ("forward", "forward_features", "forward_head")


class Piece(nn.Module):
    """A step of a model's forward pass, holding the model's own parts that the step uses (shared,
    not copied).
    """

    def __init__(self, step: Callable, parts: dict[str, nn.Module | nn.Parameter]):
        super().__init__()
        self.step = step
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.step(x)


def find_cutter(module: nn.Module) -> Callable[[nn.Module], Chain]:
    """The function that cuts this model; ValueError where there is none."""
    for family, cut in CUTTERS.items():
        if isinstance(module, family) and all(
            getattr(type(module), step, None) is getattr(family, step, None) for step in STEPS
        ):
            return cut
    if all(
        hasattr(module, name) for name in ("forward_features", "forward_head", "get_classifier")
    ):
        return cut_once
    raise UserError(
        f"cannot cut a {type(module).__name__} into pieces; the project's own models and those of"
        " timm can be cut"
    )


def cut_vit(module: VisionTransformer) -> Chain:
    return _cut_transformer(module, module.embed_tokens, module.pool, module.head)


def cut_hybrid(module: HybridViT) -> Chain:
    stages = [part for name, part in module.stem.named_children() if name.startswith("stage")]
    stem = [("conv", nn.Sequential(module.stem.conv_stem, module.stem.bn1)), *_cut_stages(stages)]
    head = nn.Sequential(module.head_drop, module.head)
    chain = _cut_transformer(
        module, module.embed_tokens, module.pool, head, apart=("stem", "head_drop")
    )
    return [*((f"stem.{name}", part) for name, part in stem), *chain]


def cut_timm_vit(module: TimmVisionTransformer) -> Chain:
    def pool(tokens):
        return module.fc_norm(module.pool(module.norm(tokens)))

    head = nn.Sequential(module.head_drop, module.head)
    return _cut_transformer(module, _timm_embed(module), pool, head, apart=("head_drop",))


def cut_distilled(module: VisionTransformerDistilled) -> Chain:
    """Its two heads see the class and the distillation token, (B, 2, C); the logits are their
    mean.
    """

    def pool(tokens):
        return module.norm(tokens)[:, :2]

    def classify(pair):
        pair = module.head_drop(pair)
        return (module.head(pair[:, 0]) + module.head_dist(pair[:, 1])) / 2

    head = Piece(
        classify,
        {"head_drop": module.head_drop, "head": module.head, "head_dist": module.head_dist},
    )
    return _cut_transformer(
        module, _timm_embed(module), pool, head, apart=("head_drop", "head_dist")
    )


def cut_mixer(module: MlpMixer) -> Chain:
    def pool(tokens):
        tokens = module.norm(tokens)
        return tokens.mean(dim=1) if module.global_pool == "avg" else tokens

    blocks = [(f"block{i}", block) for i, block in enumerate(module.blocks)]
    head = nn.Sequential(module.head_drop, module.head)
    return [
        ("embed", module.stem),
        *blocks,
        ("neck", Piece(pool, {"norm": module.norm})),
        ("head", head),
    ]


def cut_efficientnet(module: EfficientNet) -> Chain:
    stem = nn.Sequential(module.conv_stem, module.bn1)
    neck = nn.Sequential(module.conv_head, module.bn2, module.global_pool)
    head = nn.Sequential(nn.Dropout(module.drop_rate), module.classifier)
    return [("stem", stem), *_cut_stages(module.blocks), ("neck", neck), ("head", head)]


def cut_resnet(module: ResNet) -> Chain:
    stem = nn.Sequential(module.conv1, module.bn1, module.act1, module.maxpool)
    stages = _cut_stages([module.layer1, module.layer2, module.layer3, module.layer4])
    head = nn.Sequential(nn.Dropout(float(module.drop_rate or 0)), module.fc)
    return [("stem", stem), *stages, ("neck", module.global_pool), ("head", head)]


def cut_convnext(module: ConvNeXt) -> Chain:
    return [
        ("stem", module.stem),
        *_cut_stages(module.stages),
        *_cut_head(module.head, module.norm_pre),
    ]


def cut_swin(module: SwinTransformer) -> Chain:
    return [
        ("embed", module.patch_embed),
        *_cut_stages(module.layers),
        *_cut_head(module.head, module.norm),
    ]


def cut_byobnet(module: ByobNet) -> Chain:
    return [
        ("stem", module.stem),
        *_cut_stages(module.stages),
        *_cut_head(module.head, module.final_conv),
    ]


def cut_vgg(module: VGG) -> Chain:
    """A block is a convolution with its norm and activation; a stage ends with its pooling, which
    belongs to the last block.
    """
    stages: list[list[list[nn.Module]]] = [[]]
    for layer in module.features:
        if isinstance(layer, nn.Conv2d):
            stages[-1].append([])
        stages[-1][-1].append(layer)
        if isinstance(layer, nn.MaxPool2d):
            stages.append([])
    blocks = [
        (f"stage{i}.block{j}", nn.Sequential(*layers))
        for i, stage in enumerate(stages)
        for j, layers in enumerate(stage)
    ]
    return [*blocks, *_cut_head(module.head, module.pre_logits)]


def cut_once(module: nn.Module) -> Chain:
    """Any model of timm: everything up to the classifier, then the classifier."""
    classifier = module.get_classifier()
    if not isinstance(classifier, nn.Linear | nn.Sequential):
        raise UserError(
            f"cannot cut a {type(module).__name__} into pieces: its classifier is a"
            f" {type(classifier).__name__}, not one linear layer; train it with strategy='full'"
        )

    def extract(images):
        return module.forward_head(module.forward_features(images), pre_logits=True)

    parts = {name.replace(".", "_"): part for name, part in _parts_without(module, classifier)}
    return [("features", Piece(extract, parts)), ("head", classifier)]


CUTTERS: dict[type[nn.Module], Callable[..., Chain]] = {
    VisionTransformer: cut_vit,
    HybridViT: cut_hybrid,
    VisionTransformerDistilled: cut_distilled,
    TimmVisionTransformer: cut_timm_vit,
    MlpMixer: cut_mixer,
    EfficientNet: cut_efficientnet,
    ResNet: cut_resnet,
    ConvNeXt: cut_convnext,
    SwinTransformer: cut_swin,
    ByobNet: cut_byobnet,
    VGG: cut_vgg,
}


def _cut_transformer(module, embed, pool, head, apart=()) -> Chain:
    """embed: what comes before the blocks, and all bare parameters (class token, positions); neck:
    what follows the blocks.
    """
    children = {
        name: child for name, child in module.named_children() if name not in (*apart, "head")
    }
    names = list(children)
    first = names.index("blocks")
    before = {name: children[name] for name in names[:first]} | dict(
        module.named_parameters(recurse=False)
    )
    after = {name: children[name] for name in names[first + 1 :]}
    blocks = [(f"block{i}", block) for i, block in enumerate(module.blocks)]
    return [("embed", Piece(embed, before)), *blocks, ("neck", Piece(pool, after)), ("head", head)]


def _timm_embed(module):
    def embed(images):
        return module.norm_pre(module.patch_drop(module._pos_embed(module.patch_embed(images))))

    return embed


def _cut_stages(stages: Iterable[nn.Module]) -> Chain:
    """The blocks of each stage; what a stage does before its blocks, such as downsampling, belongs
    to the first of them.
    """
    chain = []
    for i, stage in enumerate(stages):
        blocks = list(getattr(stage, "blocks", stage.children()))
        if hasattr(stage, "downsample"):
            blocks[0] = nn.Sequential(stage.downsample, blocks[0])
        chain += [(f"stage{i}.block{j}", block) for j, block in enumerate(blocks)]
    return chain


def _cut_head(head: nn.Module, before: nn.Module) -> Chain:
    """neck and head of a model whose classifier is one of timm's head modules; before: the last
    step of its features.
    """
    match head:
        case NormMlpClassifierHead():
            neck, classifier = (
                (head.global_pool, head.norm, head.flatten, head.pre_logits),
                (
                    head.drop,
                    head.fc,
                ),
            )
        case ClassifierHead():
            neck, classifier = (head.global_pool,), (head.drop, head.fc, head.flatten)
        case _:
            raise UserError(
                f"cannot cut a head of type {type(head).__name__}; train the model with"
                " strategy='full'"
            )
    return [("neck", nn.Sequential(before, *neck)), ("head", nn.Sequential(*classifier))]


def _parts_without(
    module: nn.Module, left_out: nn.Module, prefix: str = ""
) -> Iterable[tuple[str, nn.Module | torch.Tensor]]:
    """The largest submodules that do not contain `left_out`, and the bare parameters around
    them.
    """
    yield from ((prefix + name, tensor) for name, tensor in module.named_parameters(recurse=False))
    for name, child in module.named_children():
        if child is left_out:
            continue
        if left_out in child.modules():
            yield from _parts_without(child, left_out, f"{prefix}{name}.")
        else:
            yield prefix + name, child

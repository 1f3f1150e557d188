"""A classifier as an ordered list of stages whose composition gives its output.

Training splits the list: what comes before the first trained stage is computed once and kept. The
order of the steps of each family is that of timm's `forward_features`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from timm.layers import ClassifierHead, NormMlpClassifierHead
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from vitlab.errors import UserError
from vitlab.models.hybrid import HybridViT
from vitlab.models.vit import VisionTransformer
from vitlab.registry import unknown

Stages = list[tuple[str, nn.Module]]
STEPS = ("forward", "forward_features", "forward_head")


def split_stages(module: nn.Module) -> Stages:
    """The classifier as an ordered list of (name, module); feeding each one's output to the next
    gives `module(x)`.

    Every parameter is in exactly one stage and still belongs to the model. Stages are blocks:
    `embed, block0.., neck, head` for a ViT; `stem, stage0.block0.., neck, head` for EfficientNet,
    ResNet and ConvNeXt (`embed` for Swin); `stem.conv, stem.stage0.block0..`, then as a ViT, for a
    HybridViT. `neck` is what lies between the last block and the classifier `head`. Any other model
    of timm is split once, into `features` and `head`. UserError for a model that cannot be split.

    >>> from vitlab.models import build_model
    >>> model = build_model("vit_scratch", ["cat", "dog"], depth=2)
    >>> [name for name, _ in split_stages(model.module)]
    ['embed', 'block0', 'block1', 'neck', 'head']
    """
    stages = _find_splitter(module)(module)
    held = [id(tensor) for _, stage in stages for tensor in _list_tensors(stage)]
    if sorted(held) != sorted(id(tensor) for tensor in _list_tensors(module)):
        raise UserError(
            f"cannot split a {type(module).__name__}: it has parts that none of the stages would"
            " hold"
        )
    own = set(module.modules())
    for _, stage in stages:
        for part in {stage, *stage.modules()} - own:  # new wrappers start in the model's mode
            part.training = module.training
    return stages


def find_stage(names: list[str], name: str) -> int:
    """The position of the first stage of this name, or within it: `stage5` finds `stage5.block0`.
    UserError with all names.
    """
    for position, known in enumerate(names):
        if known == name or known.startswith(f"{name}."):
            return position
    raise UserError(unknown("stage to train from", name, list(names)))


def block_positions(names: list[str]) -> list[int]:
    """The positions of the blocks among the stages of these names."""
    return [
        position
        for position, name in enumerate(names)
        if name.rpartition(".")[2].startswith("block")
    ]


class Stage(nn.Module):
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


def split_vit(module: VisionTransformer) -> Stages:
    return _split_transformer(module, module.embed_tokens, module.pool, module.head)


def split_hybrid(module: HybridViT) -> Stages:
    blocks = [part for name, part in module.stem.named_children() if name.startswith("stage")]
    stem = [("conv", nn.Sequential(module.stem.conv_stem, module.stem.bn1)), *_list_blocks(blocks)]
    head = nn.Sequential(module.head_drop, module.head)
    stages = _split_transformer(
        module, module.embed_tokens, module.pool, head, apart=("stem", "head_drop")
    )
    return [*((f"stem.{name}", part) for name, part in stem), *stages]


def split_timm_vit(module: TimmVisionTransformer) -> Stages:
    def pool(tokens):
        return module.fc_norm(module.pool(module.norm(tokens)))

    head = nn.Sequential(module.head_drop, module.head)
    return _split_transformer(module, _timm_embed(module), pool, head, apart=("head_drop",))


def split_distilled(module: VisionTransformerDistilled) -> Stages:
    """Its two heads see the class and the distillation token, (B, 2, C); the logits are their
    mean.
    """

    def pool(tokens):
        return module.norm(tokens)[:, :2]

    def classify(pair):
        pair = module.head_drop(pair)
        return (module.head(pair[:, 0]) + module.head_dist(pair[:, 1])) / 2

    parts = {name: getattr(module, name) for name in ("head_drop", "head", "head_dist")}
    head = Stage(classify, parts)
    return _split_transformer(module, _timm_embed(module), pool, head, apart=tuple(parts))


def split_efficientnet(module: EfficientNet) -> Stages:
    stem = nn.Sequential(module.conv_stem, module.bn1)
    neck = nn.Sequential(module.conv_head, module.bn2, module.global_pool)
    head = nn.Sequential(nn.Dropout(module.drop_rate), module.classifier)
    return [("stem", stem), *_list_blocks(module.blocks), ("neck", neck), ("head", head)]


def split_resnet(module: ResNet) -> Stages:
    stem = nn.Sequential(module.conv1, module.bn1, module.act1, module.maxpool)
    blocks = _list_blocks([module.layer1, module.layer2, module.layer3, module.layer4])
    head = nn.Sequential(nn.Dropout(float(module.drop_rate or 0)), module.fc)
    return [("stem", stem), *blocks, ("neck", module.global_pool), ("head", head)]


def split_convnext(module: ConvNeXt) -> Stages:
    blocks = _list_blocks(module.stages)
    return [("stem", module.stem), *blocks, *_split_head(module.head, module.norm_pre)]


def split_swin(module: SwinTransformer) -> Stages:
    blocks = _list_blocks(module.layers)
    return [("embed", module.patch_embed), *blocks, *_split_head(module.head, module.norm)]


def split_once(module: nn.Module) -> Stages:
    """Any model of timm: everything up to the classifier, then the classifier."""
    classifier = module.get_classifier()
    if not isinstance(classifier, nn.Linear | nn.Sequential):
        raise UserError(
            f"cannot split a {type(module).__name__}: its classifier is a"
            f" {type(classifier).__name__}, not one linear layer; train it with strategy='full'"
        )

    def extract(images):
        return module.forward_head(module.forward_features(images), pre_logits=True)

    parts = {name.replace(".", "_"): part for name, part in _parts_without(module, classifier)}
    return [("features", Stage(extract, parts)), ("head", classifier)]


SPLITTERS: dict[type[nn.Module], Callable[..., Stages]] = {
    VisionTransformer: split_vit,
    HybridViT: split_hybrid,
    VisionTransformerDistilled: split_distilled,
    TimmVisionTransformer: split_timm_vit,
    EfficientNet: split_efficientnet,
    ResNet: split_resnet,
    ConvNeXt: split_convnext,
    SwinTransformer: split_swin,
}


def _find_splitter(module: nn.Module) -> Callable[[nn.Module], Stages]:
    for family, split in SPLITTERS.items():
        # a subclass with steps of its own may compute something else
        if isinstance(module, family) and all(
            getattr(type(module), step, None) is getattr(family, step, None) for step in STEPS
        ):
            return split
    if all(
        hasattr(module, name) for name in ("forward_features", "forward_head", "get_classifier")
    ):
        return split_once
    raise UserError(
        f"cannot split a {type(module).__name__} into stages; the project's own models and those of"
        " timm can be split"
    )


def _list_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _split_transformer(module, embed, pool, head, apart=()) -> Stages:
    """embed: what comes before the blocks, and all bare parameters (class token, positions); neck:
    what follows the blocks. apart: children that are in other stages.
    """
    children = {
        name: child for name, child in module.named_children() if name not in (*apart, "head")
    }
    names = list(children)
    first = names.index("blocks")
    before = {name: children[name] for name in names[:first]}
    before |= dict(module.named_parameters(recurse=False))
    after = {name: children[name] for name in names[first + 1 :]}
    blocks = [(f"block{i}", block) for i, block in enumerate(module.blocks)]
    return [("embed", Stage(embed, before)), *blocks, ("neck", Stage(pool, after)), ("head", head)]


def _timm_embed(module):
    def embed(images):
        return module.norm_pre(module.patch_drop(module._pos_embed(module.patch_embed(images))))

    return embed


def _list_blocks(stages: Iterable[nn.Module]) -> Stages:
    """The blocks of each resolution; what happens before them, such as downsampling, belongs to the
    first of them.
    """
    listed = []
    for i, stage in enumerate(stages):
        blocks = list(getattr(stage, "blocks", stage.children()))
        if hasattr(stage, "downsample"):
            blocks[0] = nn.Sequential(stage.downsample, blocks[0])
        listed += [(f"stage{i}.block{j}", block) for j, block in enumerate(blocks)]
    return listed


def _split_head(head: nn.Module, before: nn.Module) -> Stages:
    """neck and head of a model whose classifier is one of timm's head modules; before: the last
    step of its features.
    """
    match head:
        case NormMlpClassifierHead():
            neck = (head.global_pool, head.norm, head.flatten, head.pre_logits)
            classifier = (head.drop, head.fc)
        case ClassifierHead():
            neck, classifier = (head.global_pool,), (head.drop, head.fc, head.flatten)
        case _:
            raise UserError(
                f"cannot split a head of type {type(head).__name__}; train the model with"
                " strategy='full'"
            )
    return [("neck", nn.Sequential(before, *neck)), ("head", nn.Sequential(*classifier))]


def _parts_without(
    module: nn.Module, left_out: nn.Module, prefix: str = ""
) -> Iterator[tuple[str, nn.Module | torch.Tensor]]:
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

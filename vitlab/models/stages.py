"""A classifier as an ordered list of stages whose composition gives its output.

Training splits the list: what comes before the first trained stage is computed once and kept.
Neither timm's `forward_intermediates` nor torch.fx can do this: the first gives outputs of blocks,
but cannot go on from them; a traced graph fixes dropout and the batch size of its example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
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
# families of timm whose children run one after the other, and the names of those that hold blocks
CHAINS = {
    EfficientNet: ("blocks",),
    ResNet: ("layer1", "layer2", "layer3", "layer4"),
    ConvNeXt: ("stages",),
    SwinTransformer: ("layers",),
}
TRANSFORMERS = (
    VisionTransformer,
    HybridViT,
    VisionTransformerDistilled,
    TimmVisionTransformer,
)


def split_stages(module: nn.Module) -> Stages:
    """The classifier as an ordered list of (name, module); feeding each one's output to the next
    gives `module(x)`.

    Every parameter is in exactly one stage and still belongs to the model. Stages are blocks:
    `embed, block0.., neck, head` for a ViT; `stem, stage0.block0.., neck, head` for EfficientNet,
    ResNet, ConvNeXt and Swin; `stem.conv, stem.stage0.block0..`, then as a ViT, for a HybridViT.
    `neck` is what lies between the last block and the classifier `head`. Any other model of timm is
    split once, into `features` and `head`. UserError for a model that cannot be split.

    >>> from vitlab.models import build_model
    >>> model = build_model("vit_scratch", ["cat", "dog"], depth=2)
    >>> [name for name, _ in split_stages(model.module)]
    ['embed', 'block0', 'block1', 'neck', 'head']
    """
    family = _find_family(module)
    if family in TRANSFORMERS:
        stages = _split_transformer(module)
    elif family in CHAINS:
        stages = _split_chain(module, CHAINS[family])
    else:
        stages = _split_once(module)
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
            setattr(self, name.replace(".", "_"), part)

    def forward(self, x):
        return self.step(x)


def _find_family(module: nn.Module) -> type | None:
    """The family whose order of steps is known; None for others, also for a subclass with steps of
    its own.
    """
    for family in (*TRANSFORMERS, *CHAINS):
        if isinstance(module, family):
            same = all(
                getattr(type(module), step, None) is getattr(family, step, None) for step in STEPS
            )
            return family if same else None
    return None


def _split_chain(module: nn.Module, holders: tuple[str, ...]) -> Stages:
    """Children in order: those before the blocks are the stem, those after them the neck, up to the
    dropout before the classifier. Heads of ConvNeXt and Swin have their own children.
    """
    children = dict(module.named_children())
    if "head" in children:
        children |= dict(children.pop("head").named_children())
    names = list(children)
    first, last = names.index(holders[0]), names.index(holders[-1])
    if "drop" in children:
        end = names.index("drop")
        head = names[end:]
    else:  # EfficientNet and ResNet have dropout as a function
        classifier = module.get_classifier()
        end = next(i for i, name in enumerate(names) if children[name] is classifier)
        children["drop"] = nn.Dropout(float(module.drop_rate or 0))
        head = ["drop", names[end]]

    def chain(part):
        return nn.Sequential(*(children[name] for name in part))

    resolutions = [children[name] for name in holders]
    blocks = _list_blocks(resolutions if len(resolutions) > 1 else resolutions[0])
    stem, neck = names[:first], names[last + 1 : end]
    return [("stem", chain(stem)), *blocks, ("neck", chain(neck)), ("head", chain(head))]


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


def _split_transformer(module: nn.Module) -> Stages:
    """embed: what comes before the blocks, and all bare parameters (class token, positions); neck:
    what follows the blocks, up to the dropout before the classifier.
    """
    children = dict(module.named_children())
    stem: Stages = []
    if isinstance(module, HybridViT):
        parts = dict(children.pop("stem").named_children())
        stem = [("stem.conv", nn.Sequential(parts.pop("conv_stem"), parts.pop("bn1")))]
        stem += [(f"stem.{name}", block) for name, block in _list_blocks(parts.values())]
    head = {
        name: children.pop(name) for name in ("head_drop", "head", "head_dist") if name in children
    }
    names = list(children)
    first = names.index("blocks")
    before = {name: children[name] for name in names[:first]}
    before |= dict(module.named_parameters(recurse=False))
    after = {name: children[name] for name in names[first + 1 :]}
    embed, pool, classify = _list_steps(module, head)
    blocks = [(f"block{i}", block) for i, block in enumerate(module.blocks)]
    neck = ("neck", Stage(pool, after))
    return [*stem, ("embed", Stage(embed, before)), *blocks, neck, ("head", classify)]


def _list_steps(module, head) -> tuple[Callable, Callable, nn.Module]:
    """Functions for what comes before the blocks and after them, and the classifier."""
    chain = nn.Sequential(*head.values())
    if isinstance(module, VisionTransformer | HybridViT):
        return module.embed_tokens, module.pool, chain

    def embed(images):
        tokens = module._pos_embed(module.patch_embed(images))
        return module.norm_pre(module.patch_drop(tokens))

    def pool(tokens):
        return module.fc_norm(module.pool(module.norm(tokens)))

    def pool_pair(tokens):  # the class and the distillation token, (B, 2, C)
        return module.norm(tokens)[:, :2]

    def classify_pair(pair):
        pair = module.head_drop(pair)
        return (module.head(pair[:, 0]) + module.head_dist(pair[:, 1])) / 2

    if isinstance(module, VisionTransformerDistilled):
        return embed, pool_pair, Stage(classify_pair, head)
    return embed, pool, chain


def _split_once(module: nn.Module) -> Stages:
    """Any model of timm: everything up to the classifier, then the classifier."""
    if not all(
        hasattr(module, name) for name in ("forward_features", "forward_head", "get_classifier")
    ):
        raise UserError(
            f"cannot split a {type(module).__name__} into stages; the project's own models and"
            " those of timm can be split"
        )
    classifier = module.get_classifier()
    if not isinstance(classifier, nn.Linear | nn.Sequential):
        raise UserError(
            f"cannot split a {type(module).__name__}: its classifier is a"
            f" {type(classifier).__name__}, not one linear layer; train it with strategy='full'"
        )

    def extract(images):
        return module.forward_head(module.forward_features(images), pre_logits=True)

    parts = dict(_parts_without(module, classifier))
    return [("features", Stage(extract, parts)), ("head", classifier)]


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


def _list_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]

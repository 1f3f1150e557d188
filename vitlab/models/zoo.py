"""Classifiers by name: the project's own and every model of timm, each with the transform that
feeds it.
"""

from __future__ import annotations

import difflib
import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import timm
import torch
from timm.layers import PatchEmbed, trunc_normal_
from torch import nn

from vitlab.errors import UserError
from vitlab.models.anatomy import find_anatomy
from vitlab.models.hybrid import STEM_STAGES, HybridViT, split_stem
from vitlab.models.merging import merge_blocks
from vitlab.models.shrinking import Spec, check_spec, count_sizes, shrink
from vitlab.models.vit import VisionTransformer
from vitlab.models.weights import (
    AVAILABLE,
    create_network,
    load_hub_model,
    packaged_checkpoint,
    rename_by_order,
    shipped_weights,
)
from vitlab.registry import Registry, unknown
from vitlab.schema import Anatomy, ModelBundle, Transform

models = Registry("model")


def available() -> list[str]:
    """Names of the project's own models; every name of `timm.list_models()` works too."""
    return models.names()


def build_model(
    name: str,
    classes: Sequence[str],
    *,
    pretrained: bool | None = None,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    fit: str = "pad",
    in_chans: int = 3,
    head_hidden: int = 0,
    head_dropout: float = 0.0,
    shrunk: Spec | None = None,
    merged: int | Sequence[int] = 0,
    **options,
) -> ModelBundle:
    """A classifier for these classes, in evaluation mode, with the transform that feeds it and its
    anatomy.

    pretrained: None takes the weights that come with the model (the hub's for a timm name), True
    insists on them, False starts from random weights. seed: the only thing that random weights
    depend on. size: pixels of the input, a number or (height, width); by default what the model was
    made for. fit: how an image of another shape is fitted: `pad` keeps all of it between bars,
    `crop` fills the frame. in_chans: 3 for colour, 1 for grey images; timm adapts pretrained
    weights. head_hidden: 0 for a head of one linear layer, else the width of linear, Tanh, dropout
    (head_dropout), linear. shrunk: what each transformer block keeps of its heads and MLP neurons
    (`shrinking`); pruned models are rebuilt from it. merged: tokens that each block merges
    (`merging`), a number or one for each block. options: of the model's constructor, such as
    embed_dim, depth, drop_rate, drop_path_rate, patch_drop_rate.

    UserError for an unknown name, option or size, and where weights are asked for and cannot be
    found.

    >>> import vitlab
    >>> model = vitlab.build_model("vit_scratch", ["cat", "dog"], size=72)
    >>> model.transform.size, len(model.anatomy.blocks)
    ((72, 72), 6)
    """
    check_name(name)
    classes, size = check_classes(classes), check_size(size)
    if fit not in ("pad", "crop"):
        raise UserError(unknown("fit", fit, ["pad", "crop"]))
    if in_chans not in (1, 3):
        raise UserError(f"in_chans={in_chans}: images have 3 channels (colour) or 1 (grey)")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        build = models[name] if name in models else _timm_builder(name)
        module, transform = build(
            len(classes), pretrained=pretrained, size=size, in_chans=in_chans, **options
        )
        set_head(module, head_hidden, head_dropout)
    if shrunk is not None:
        shrunk = count_sizes(check_spec(module, shrunk))
        shrink(module, shrunk)
    if merged:
        merge_blocks(module, merged)
    module.eval()
    transform = replace(transform, fit=fit)
    if in_chans == 1:
        mean, std = (sum(values) / 3 for values in (transform.mean, transform.std))
        transform = replace(transform, mean=(mean,), std=(std,))
    kept = {"size": list(transform.size), "in_chans": in_chans}
    if pretrained is not None:
        kept["pretrained"] = pretrained
    if head_hidden:
        kept |= {"head_hidden": head_hidden, "head_dropout": head_dropout}
    if shrunk:
        kept["shrunk"] = shrunk
    if merged:
        kept["merged"] = merged
    anatomy = _find_anatomy(name, module, transform.size)
    return ModelBundle(name, module, classes, transform, anatomy, {**kept, **options})


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """The number of parameters; with `trainable`, only those that training changes."""
    parameters = [part for part in module.parameters() if part.requires_grad or not trainable]
    return sum(parameter.numel() for parameter in parameters)


@models.register
def efficientnet_lite0(num_classes, *, pretrained, size, in_chans, **options):
    """The CNN baseline: EfficientNet-Lite0 with packaged ImageNet weights (arXiv 1905.11946)."""
    network = _build_lite0(num_classes, pretrained is not False, in_chans, options)
    return network, _read_transform(network, size)


@models.register
def hybrid_vit(num_classes, *, pretrained, size, in_chans, **options):
    """Transformer blocks over EfficientNet-Lite0's feature map at stride 16, with packaged ImageNet
    weights in the stem.
    """
    _check_options("hybrid_vit", HybridViT, options)
    network = _build_lite0(num_classes, pretrained is not False, in_chans, {})
    transform = _read_transform(network, size)
    stem = split_stem(network)
    channels = {stage["stage"]: stage["num_chs"] for stage in network.feature_info}[STEM_STAGES]
    return HybridViT(stem, channels, num_classes, transform.size, **options), transform


@models.register
def vit_scratch(num_classes, *, pretrained, size, in_chans, **options):
    """The project's own Vision Transformer, from random weights."""
    if pretrained:
        raise UserError(
            "vit_scratch has no pretrained weights: leave pretrained out, or choose another model;"
            f" {AVAILABLE}"
        )
    _check_options("vit_scratch", VisionTransformer, options)
    size = size or (96, 96)
    transform = Transform(size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    return VisionTransformer(num_classes, size, in_chans=in_chans, **options), transform


@models.register
def vit_tiny_vitlab(num_classes, *, pretrained, size, in_chans, **options):
    """ViT-Ti/16 of six blocks for 128 pixels, pretrained by this project: see
    `vitlab/models/shipped/` for its card.
    """
    weights = {} if pretrained is False else shipped_weights("vit_tiny_vitlab")
    size = size or (128, 128)
    arguments = {"img_size": size, "depth": 6, **options}
    arguments |= {"num_classes": num_classes, "in_chans": in_chans}
    try:
        network = create_network("vit_tiny_patch16_224", weights, **arguments)
        missing = set(network.state_dict()) ^ set(weights) if weights else set()
    except RuntimeError:
        missing = {"all"}
    if missing - {"head.weight", "head.bias"}:  # timm accepts weights for a part of the network
        raise UserError(
            "the pretrained weights of vit_tiny_vitlab do not fit these options; pretrained=False"
            " builds any other"
        )
    return network, _read_transform(network, size)


def set_head(module: nn.Module, hidden: int = 0, dropout: float = 0.0) -> None:
    """Replace each linear classifier of the model by linear(hidden), Tanh, dropout, linear.

    hidden=0 changes nothing."""
    if hidden < 0 or not 0 <= dropout < 1 or (dropout and not hidden):
        raise UserError(
            f"head_hidden={hidden}, head_dropout={dropout}: choose a width of at least 0 and a"
            " share below 1; head_dropout needs a hidden layer, so set head_hidden as well"
        )
    if not hidden:
        return
    classifiers = module.get_classifier()
    for classifier in classifiers if isinstance(classifiers, tuple) else (classifiers,):
        if not isinstance(classifier, nn.Linear):
            raise UserError(
                f"head_hidden: the classifier of a {type(module).__name__} is not linear; leave"
                " head_hidden at 0"
            )
        first = nn.Linear(classifier.in_features, hidden)
        last = nn.Linear(hidden, classifier.out_features)
        for layer in (first, last):
            trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        head = OrderedDict(hidden=first, act=nn.Tanh(), drop=nn.Dropout(dropout), out=last)
        path = next(name for name, part in module.named_modules() if part is classifier)
        module.set_submodule(path, nn.Sequential(head))


def _timm_builder(name):
    def build(num_classes, *, pretrained, size, in_chans, **options):
        if size and timm.get_pretrained_cfg(name).fixed_input_size:
            options = {"img_size": size, **options}
        network = load_hub_model(
            name, pretrained is not False, num_classes=num_classes, in_chans=in_chans, **options
        )
        return network, _read_transform(network, size)

    return build


def _build_lite0(num_classes, pretrained, in_chans, options):
    weights = {}
    if pretrained:
        with torch.device("meta"):
            reference = timm.create_model("tf_efficientnet_lite0")
        weights = rename_by_order(packaged_checkpoint(), reference)
    arguments = {"num_classes": num_classes, "in_chans": in_chans, **options}
    return create_network("tf_efficientnet_lite0", weights, **arguments)


def _read_transform(network, size) -> Transform:
    """The transform that the weights were trained with, at `size` where one is given."""
    config = timm.data.resolve_model_data_config(network)
    return Transform(
        size=tuple(size or config["input_size"][1:]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _find_anatomy(name, module, size) -> Anatomy:
    """The anatomy; UserError where the model cannot take images of this size, or would ignore
    pixels at their border.
    """
    stride = max((stage["reduction"] for stage in getattr(module, "feature_info", [])), default=1)
    embeddings = [part for part in module.modules() if isinstance(part, PatchEmbed)]
    try:
        for part in embeddings:
            patches = zip(size, part.patch_size, strict=True)
            if not part.dynamic_img_pad and any(side % patch for side, patch in patches):
                raise UserError(f"its patches have {part.patch_size[0]} pixels")
        return find_anatomy(module, size)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"{name} cannot take images of {size[0]}x{size[1]} pixels; multiples of {stride} suit"
            f" it ({error})"
        ) from error


def check_name(name: str) -> None:
    """UserError with similar names if neither the project nor timm has a model of this name."""
    if name in models or timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=5)
    raise UserError(
        unknown("model", name, [*available(), *near], "Every name of timm.list_models() works too.")
    )


def check_classes(classes) -> tuple[str, ...]:
    if isinstance(classes, str) or len(classes) < 2 or len(set(classes)) != len(classes):
        raise UserError(
            f"a classifier needs a list of at least two different class names, not {classes!r}"
        )
    return tuple(classes)


def check_size(size) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise UserError(f"size {size!r} is neither a number of pixels nor (height, width)")
    return pair


def _check_options(name, constructor, options):
    parameters = inspect.signature(constructor).parameters.values()
    known = {parameter.name for parameter in parameters if parameter.default is not parameter.empty}
    for option in options:
        if option not in known - {"in_chans"}:
            raise UserError(unknown(f"option of {name}", option, sorted(known - {"in_chans"})))

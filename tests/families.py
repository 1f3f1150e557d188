"""The smallest model of each kind that explanations and training have to handle, and what must not
change in a model that is looked at.
"""

from functools import cache

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from vitlab.models import build_model, wrap_model
from vitlab.schema import Transform

CLASSES = ("a", "b", "c")
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
BUILT = {  # options of build_model
    "vit_scratch": {"size": (32, 48), "patch_size": 8, **SMALL},
    "hybrid_vit": {"size": 64, **SMALL},
    "vit_tiny_patch16_224": {"size": 48, "reg_tokens": 2, **SMALL},
    "deit_tiny_distilled_patch16_224": {"size": (48, 64), **SMALL},
    "vit_medium_patch16_gap_240": {"size": 48, **SMALL},
    "swin_tiny_patch4_window7_224": {
        "size": (48, 64),
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "test_resnet": {"size": 64},
    "test_efficientnet": {"size": 64},
    "test_convnext": {"size": 64},
    "mobilevit_xxs": {"size": 64},
    "mixer_s32_224": {"size": 64},
}
WRAPPED = ("hugging_face", "torchvision")
TRANSFORM = Transform(size=(48, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
# a grid of 2x3 patches of 9 pixels, an odd number: the value at a patch's centre is exact
ODD_VIT = {"size": (18, 27), "patch_size": 9, "embed_dim": 24, "depth": 3, "num_heads": 2}


def build_hugging_face(kernel="sdpa"):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=(48, 64),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=len(CLASSES),
        attn_implementation=kernel,
    )
    return transformers.ViTForImageClassification(config)


def build_torchvision():
    module = VisionTransformer(
        48, 16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=len(CLASSES)
    )
    nn.init.normal_(module.heads.head.weight)  # which torchvision sets to zero
    return module


def build_family(name, **options):
    """A new model of the family, from random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "hugging_face":
            return wrap_model(build_hugging_face(), CLASSES, TRANSFORM)
        if name == "torchvision":
            return wrap_model(build_torchvision(), CLASSES, 48)
        return build_model(name, CLASSES, pretrained=False, **{**BUILT[name], **options})


@cache
def family(name):
    """A model of the family that no test may change."""
    return build_family(name)


def draw_images(model, count=3):
    channels = len(model.transform.mean)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, *model.transform.size, generator=generator)


def sharpen(model):
    """Larger weights, so that attention is far from uniform."""
    with torch.no_grad():
        for block in model.module.blocks:
            block.attn.qkv.weight.mul_(20)
    return model


def describe_state(module):
    """All that looking at a model might change and must not."""
    parts, parameters = list(module.modules()), list(module.parameters())
    return {
        "weights": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "modes": [part.training for part in parts],
        "requires_grad": [parameter.requires_grad for parameter in parameters],
        "grad": [parameter.grad for parameter in parameters],
        "hooks": [
            len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks)
            for part in parts
        ],
    }


def assert_same_state(module, before):
    after = describe_state(module)
    weights, expected = after.pop("weights"), before["weights"]
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert after == {key: before[key] for key in after}

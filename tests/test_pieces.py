"""A model in pieces gives what the whole gives, and nothing is copied or lost."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from vitlab.models import build_model, pieces

OWN = ["efficientnet_lite0", "hybrid_vit", "vit_scratch"]
TIMM = [
    "test_vit",
    "test_vit4",
    "test_efficientnet",
    "resnet18",
    "resnet26t",
    "deit_tiny_distilled_patch16_224",
    "vit_tiny_r_s16_p8_224",
]
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
VARIANTS = {
    "average": {"global_pool": "avg", "class_token": False},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "norm before": {"pre_norm": True},
    "any size": {"dynamic_img_size": True},
}


def build(name):
    if name in VARIANTS:
        return TimmVisionTransformer(**TINY, **VARIANTS[name]).eval(), (32, 32)
    model = build_model(name, ["a", "b", "c"], pretrained=name in ("efficientnet_lite0", "hybrid_vit"))
    return model.module, model.transform.size


def compose(module, images):
    for _, piece in pieces(module):
        images = piece(images)
    return images


@pytest.mark.parametrize("name", [*OWN, *TIMM, *VARIANTS])
def test_composition_gives_the_model_and_holds_every_parameter_once(name):
    module, size = build(name)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(compose(module, images), module(images), atol=1e-5, rtol=0)
    held = [parameter for _, piece in pieces(module) for parameter in piece.parameters()]
    assert len(held) == len(list(module.parameters()))
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in module.parameters()}
    buffers = [buffer for _, piece in pieces(module) for buffer in piece.buffers()]
    assert {id(buffer) for buffer in buffers} == {id(buffer) for buffer in module.buffers()}


@pytest.mark.parametrize("name", ["hybrid_vit", "efficientnet_lite0", "vit_scratch"])
def test_composition_gives_the_model_in_training_too(name):
    rates = {"drop_rate": 0.3} | ({"drop_path": 0.2} if name != "efficientnet_lite0" else {})
    module = build_model(name, ["a", "b"], size=96, **rates).module.train()
    images = torch.randn(2, 3, 96, 96)
    results = []
    for forward in (module, lambda images: compose(module, images)):
        torch.manual_seed(1)
        results.append(forward(images))
    torch.testing.assert_close(*results)


def test_names():
    def names(name):
        return [piece for piece, _ in pieces(build_model(name, ["a", "b"], pretrained=False).module)]

    stages = [f"stage{i}" for i in range(7)]
    assert names("efficientnet_lite0") == ["stem", *stages, "head"]
    assert names("resnet18") == ["stem", *stages[:4], "head"]
    stem = ["stem.conv", *(f"stem.stage{i}" for i in range(5))]
    assert names("hybrid_vit") == [*stem, "embed", "block0", "block1", "block2", "head"]
    assert names("vit_scratch") == ["embed", *(f"block{i}" for i in range(6)), "head"]


def test_modes_of_parts_stay_as_they_are_and_new_wrappers_follow_the_model():
    module = build_model("resnet18", ["a", "b"], pretrained=False, drop_rate=0.5).module
    module.layer1.train()
    chain = dict(pieces(module))
    assert chain["stage0"].training and not chain["stem"].training
    assert not any(part.training for part in chain["head"].modules())


def test_mode_of_one_piece_can_be_set_alone():
    module = build_model("hybrid_vit", ["a", "b"], size=64).module
    dict(pieces(module))["embed"].train()
    assert module.patch_drop.training and module.embed.norm.training
    assert not module.training and not module.stem.training


class Backwards(TimmVisionTransformer):
    def forward_features(self, x, **arguments):
        return super().forward_features(x.flip(-1), **arguments)


@pytest.mark.parametrize("make", [lambda: timm.create_model("convnext_atto"), lambda: nn.Linear(2, 2), lambda: Backwards(**TINY)])
def test_other_models_are_refused_by_name(make):
    module = make()
    with pytest.raises(ValueError, match=rf"cannot cut a {type(module).__name__}.*HybridViT.*timm's EfficientNet, timm's ResNet"):
        pieces(module)

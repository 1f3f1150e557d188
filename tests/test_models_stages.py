"""A model in stages gives what the whole gives, and nothing is copied or lost."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from vitlab.models import block_positions, build_model, find_stage, split_stages

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
TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}
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
    model = build_model(
        name, ["a", "b", "c"], pretrained=name in ("efficientnet_lite0", "hybrid_vit")
    )
    return model.module, model.transform.size


def compose(module, images):
    for _, stage in split_stages(module):
        images = stage(images)
    return images


@pytest.mark.parametrize("name", [*OWN, *TIMM, *VARIANTS])
def test_composition_gives_the_model_and_holds_every_parameter_once(name):
    module, size = build(name)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(compose(module, images), module(images), atol=1e-5, rtol=0)
    held = [parameter for _, stage in split_stages(module) for parameter in stage.parameters()]
    assert len(held) == len(list(module.parameters()))
    assert {id(parameter) for parameter in held} == {
        id(parameter) for parameter in module.parameters()
    }
    buffers = [buffer for _, stage in split_stages(module) for buffer in stage.buffers()]
    assert {id(buffer) for buffer in buffers} == {id(buffer) for buffer in module.buffers()}


@pytest.mark.parametrize("name", ["hybrid_vit", "efficientnet_lite0", "vit_scratch"])
def test_composition_gives_the_model_in_training_too(name):
    rates = {"drop_rate": 0.3} | ({"drop_path_rate": 0.2} if name != "efficientnet_lite0" else {})
    module = build_model(name, ["a", "b"], size=96, **rates).module.train()
    images = torch.randn(2, 3, 96, 96)
    results = []
    for forward in (module, lambda images: compose(module, images)):
        torch.manual_seed(1)
        results.append(forward(images))
    torch.testing.assert_close(*results)


def test_names():
    def names(name):
        return [
            stage
            for stage, _ in split_stages(build_model(name, ["a", "b"], pretrained=False).module)
        ]

    def stages(depths):
        return [f"stage{i}.block{j}" for i, depth in enumerate(depths) for j in range(depth)]

    end, lite0 = ["neck", "head"], (1, 2, 2, 3, 3, 4, 1)
    assert names("efficientnet_lite0") == ["stem", *stages(lite0), *end]
    assert names("resnet18") == ["stem", *stages((2, 2, 2, 2)), *end]
    assert names("convnext_atto") == ["stem", *stages((2, 2, 6, 2)), *end]
    assert names("swin_tiny_patch4_window7_224") == ["embed", *stages((2, 2, 6, 2)), *end]
    stem = ["stem.conv", *(f"stem.{name}" for name in stages(lite0[:5]))]
    assert names("hybrid_vit") == [*stem, "embed", "block0", "block1", "block2", *end]
    assert names("vit_scratch") == ["embed", *(f"block{i}" for i in range(6)), *end]
    assert names("mixer_s32_224") == ["features", "head"], "no family of ours"
    assert block_positions(names("hybrid_vit"))[-3:] == [13, 14, 15]
    assert find_stage(names("hybrid_vit"), "stem.stage4") == names("hybrid_vit").index(
        "stem.stage4.block0"
    )


def test_modes_of_parts_stay_as_they_are_and_new_wrappers_follow_the_model():
    module = build_model("resnet18", ["a", "b"], pretrained=False, drop_rate=0.5).module
    module.layer1.train()
    chain = dict(split_stages(module))
    assert chain["stage0.block1"].training and not chain["stem"].training
    assert not any(part.training for part in chain["head"].modules())


def test_mode_of_one_piece_can_be_set_alone():
    module = build_model("hybrid_vit", ["a", "b"], size=64).module
    dict(split_stages(module))["embed"].train()
    assert module.patch_drop.training and module.embed.norm.training
    assert not module.training and not module.stem.training


class Backwards(TimmVisionTransformer):
    def forward_features(self, x, **arguments):
        return super().forward_features(x.flip(-1), **arguments)


def test_a_model_with_another_order_of_steps_is_cut_once_and_right():
    module, images = Backwards(**TINY).eval(), torch.randn(2, 3, 32, 32)
    assert [name for name, _ in split_stages(module)] == ["features", "head"]
    torch.testing.assert_close(compose(module, images), module(images))


def test_what_cannot_be_cut_is_refused_by_name():
    with pytest.raises(
        ValueError,
        match="cannot split a Linear into stages; the project's own models and those of timm",
    ):
        split_stages(nn.Linear(2, 2))
    module = timm.create_model("resnet18", num_classes=0)
    module.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="it has parts that none of the stages would hold"):
        split_stages(module)
    with pytest.raises(ValueError, match=r"unknown stage to train from 'blok0'.*block0"):
        find_stage(["embed", "block0", "head"], "blok0")

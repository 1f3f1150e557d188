"""Anatomy is read from the forward pass: the same for our models and timm's, whatever they call their parts."""

import pytest
import timm
import torch
from torch import nn

from vitlab.models import build_model, find_anatomy


def anatomy_of(name, size=None, **options):
    return build_model(name, ["a", "b"], pretrained=False, size=size, **options).anatomy


@pytest.mark.parametrize(
    ("name", "size", "depth", "num_prefix_tokens", "grid"),
    [
        ("vit_tiny_patch16_224", None, 12, 1, (14, 14)),
        ("vit_tiny_patch16_224", (96, 160), 12, 1, (6, 10)),
        ("deit_tiny_distilled_patch16_224", None, 12, 2, (14, 14)),
        ("vit_little_patch16_reg4_gap_256", None, 14, 4, (16, 16)),  # registers, no class token
        ("vit_medium_patch16_gap_240", (96, 96), 12, 0, (6, 6)),  # averages its tokens
        ("eva02_tiny_patch14_224", (98, 98), 12, 1, (7, 7)),  # separate q, k, v; no VisionTransformer of timm's
        ("vit_scratch", None, 6, 1, (8, 8)),
        ("vit_scratch", (24, 48), 6, 1, (2, 4)),
    ],
)
def test_vision_transformers(name, size, depth, num_prefix_tokens, grid):
    anatomy = anatomy_of(name, size)
    assert (anatomy.kind, anatomy.num_prefix_tokens, anatomy.grid, anatomy.stages) == ("vit", num_prefix_tokens, grid, ())
    assert anatomy.blocks == tuple(f"blocks.{i}" for i in range(depth))
    assert anatomy.attention == tuple(f"blocks.{i}.attn" for i in range(depth))


@pytest.mark.parametrize(("size", "grid"), [(None, (14, 14)), ((96, 160), (6, 10)), ((100, 50), (7, 4))])
def test_hybrid(size, grid):
    anatomy = anatomy_of("hybrid_vit", size)
    assert (anatomy.kind, anatomy.num_prefix_tokens, anatomy.grid) == ("hybrid", 1, grid)
    assert anatomy.attention == ("blocks.0.attn", "blocks.1.attn", "blocks.2.attn")
    assert anatomy.stages == ("stem.stage0", "stem.stage1", "stem.stage2", "stem")


def test_hybrid_of_timm():
    anatomy = anatomy_of("vit_tiny_r_s16_p8_224")
    assert (anatomy.kind, anatomy.num_prefix_tokens, anatomy.grid, len(anatomy.blocks)) == ("hybrid", 1, (7, 7), 12)
    assert anatomy.stages[-1] == "patch_embed.proj"


@pytest.mark.parametrize(
    ("name", "size", "grid", "stages"),
    [
        ("resnet18", None, (7, 7), ("act1", "layer1", "layer2", "layer3", "layer4")),
        ("resnet18", (64, 96), (2, 3), ("act1", "layer1", "layer2", "layer3", "layer4")),
        ("efficientnet_lite0", None, (7, 7), ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2")),
        ("tf_efficientnet_lite0", (96, 160), (3, 5), ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2")),
        ("efficientnet_lite0", (32, 32), (2, 2), ("blocks.0", "blocks.1", "blocks.2", "blocks.4")),  # 1x1 is no map
        ("convnext_atto", None, (7, 7), ("stages.0", "stages.1", "stages.2", "norm_pre")),  # channels-last inside
    ],
)
def test_convolutional_networks(name, size, grid, stages):
    anatomy = anatomy_of(name, size)
    assert (anatomy.kind, anatomy.blocks, anatomy.attention, anatomy.num_prefix_tokens) == ("cnn", (), (), 0)
    assert (anatomy.grid, anatomy.stages) == (grid, stages)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0", "levit_128s", "cait_xxs24_224", "mixer_s32_224"])
def test_what_is_no_single_sequence_of_tokens_is_not_taken_for_one(name):
    anatomy = anatomy_of(name)
    assert (anatomy.kind, anatomy.blocks, anatomy.attention, anatomy.grid) == ("other", (), (), (0, 0))


def test_a_sequence_classified_by_attention_pooling_is_still_a_vit():
    module = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, global_pool="map", class_token=False
    )
    anatomy = find_anatomy(module, (32, 32))
    assert (anatomy.kind, anatomy.attention, anatomy.num_prefix_tokens) == ("vit", ("blocks.0.attn", "blocks.1.attn"), 0)


@pytest.mark.parametrize("name", ["vit_scratch", "hybrid_vit", "deit_tiny_distilled_patch16_224", "resnet18"])
def test_named_parts_give_what_the_anatomy_says(name):
    model = build_model(name, ["a", "b"], pretrained=False)
    anatomy, outputs = model.anatomy, {}
    for part in (*anatomy.blocks, *anatomy.attention, *anatomy.stages):
        model.module.get_submodule(part).register_forward_hook(
            lambda _, __, output, part=part: outputs.update({part: output.shape})
        )
    model.module(torch.randn(3, 3, *model.transform.size))
    num_tokens = anatomy.num_prefix_tokens + anatomy.grid[0] * anatomy.grid[1]
    assert all(outputs[part][:2] == (3, num_tokens) for part in (*anatomy.blocks, *anatomy.attention))
    resolutions = [outputs[part][2:] for part in anatomy.stages]
    assert len(set(resolutions)) == len(resolutions) and all(len(outputs[part]) == 4 for part in anatomy.stages)
    assert not anatomy.stages or resolutions[-1] == anatomy.grid


def count_hooks(module):
    return sum(len(part._forward_hooks) for part in module.modules())


def test_the_model_is_left_as_it_was():
    module = timm.create_model("test_efficientnet").train()
    module.blocks[0].eval()
    modes = [part.training for part in module.modules()]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    find_anatomy(module, (64, 64))
    assert [part.training for part in module.modules()] == modes
    assert count_hooks(module) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_the_model_is_left_as_it_was_after_an_error():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2)).train()
    with pytest.raises(RuntimeError):
        find_anatomy(module, (8, 8))
    assert count_hooks(module) == 0 and all(part.training for part in module.modules())

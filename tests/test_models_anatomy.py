"""Anatomy is read from the forward pass: the same for our models and timm's, whatever they call
their parts.
"""

from types import SimpleNamespace

import pytest
import timm
import torch
from timm.models.swin_transformer import window_partition
from torch import nn
from torch.nn import functional as F
from torchvision import models as torchvision_models

from tests.families import (
    BUILT,
    CLASSES,
    TRANSFORM,
    WRAPPED,
    assert_same_state,
    build_hugging_face,
    build_torchvision,
    describe_state,
    draw_images,
    family,
)
from vitlab.explain import explain
from vitlab.models import build_model, save_model, wrap_model
from vitlab.models.anatomy import find_anatomy, place_tokens
from vitlab.schema import Transform, Window

SWIN = {"img_size": (64, 96), "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}


def anatomy_of(name, size=None, **options):
    return build_model(name, ["a", "b"], pretrained=False, size=size, **options).anatomy


@pytest.mark.parametrize(
    ("name", "size", "depth", "num_prefix_tokens", "grid"),
    [
        ("vit_tiny_patch16_224", (96, 160), 12, 1, (6, 10)),
        ("deit_tiny_distilled_patch16_224", (64, 64), 12, 2, (4, 4)),
        ("vit_medium_patch16_gap_240", (96, 96), 12, 0, (6, 6)),  # averages its tokens
        # separate q, k, v; no VisionTransformer of timm's
        ("eva02_tiny_patch14_224", (98, 98), 12, 1, (7, 7)),
        ("vit_scratch", (24, 48), 6, 1, (2, 4)),
    ],
)
def test_vision_transformers(name, size, depth, num_prefix_tokens, grid):
    anatomy = anatomy_of(name, size)
    assert (anatomy.kind, anatomy.stages) == ("vit", ())
    assert (anatomy.num_prefix_tokens, anatomy.grid) == (num_prefix_tokens, grid)
    assert anatomy.blocks == tuple(f"blocks.{i}" for i in range(depth))
    assert anatomy.attention == tuple(f"blocks.{i}.attn" for i in range(depth))


@pytest.mark.parametrize(("size", "grid"), [((96, 160), (6, 10)), ((100, 50), (7, 4))])
def test_hybrid(size, grid):
    anatomy = anatomy_of("hybrid_vit", size)
    assert (anatomy.kind, anatomy.num_prefix_tokens, anatomy.grid) == ("hybrid", 1, grid)
    assert anatomy.attention == ("blocks.0.attn", "blocks.1.attn", "blocks.2.attn")
    assert anatomy.stages == ("stem.stage0", "stem.stage1", "stem.stage2", "stem")


LITE0 = ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2")


@pytest.mark.parametrize(
    ("name", "size", "grid", "stages"),
    [
        ("resnet18", (64, 96), (2, 3), ("act1", "layer1", "layer2", "layer3", "layer4")),
        ("efficientnet_lite0", (96, 160), (3, 5), LITE0),
        # 1x1 is no map
        ("efficientnet_lite0", (32, 32), (2, 2), LITE0[:4]),
        # channels-last inside
        ("convnext_atto", (64, 64), (2, 2), ("stages.0", "stages.1", "stages.2", "norm_pre")),
    ],
)
def test_convolutional_networks(name, size, grid, stages):
    anatomy = anatomy_of(name, size)
    assert (anatomy.kind, anatomy.blocks, anatomy.attention) == ("cnn", (), ())
    assert (anatomy.num_prefix_tokens, anatomy.grid, anatomy.stages) == (0, grid, stages)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pvt_v2_b0", "neither one sequence of all tokens from first to last nor windows"),
        ("mixer_s32_224", "no attention and no feature maps"),
        ("convit_tiny", "10 of its 12 attention modules, blocks.0.attn"),  # positions mixed in
        ("cait_xxs24_224", "24 of its 26 attention modules"),  # talking heads
        ("xcit_nano_12_p16_224", "attention"),  # channels attend to channels
        # softmax over the keys; modules shared between blocks
        ("coat_lite_tiny", "8 of its 8 attention modules"),
        ("vit_dwee_patch16_reg1_gap_256", "computes attention 2 times"),  # the difference of two
    ],
)
def test_other_models_say_why_they_are_none_of_these(name, reason):
    anatomy = anatomy_of(name)
    assert (anatomy.kind, anatomy.blocks, anatomy.attention) == ("other", (), ())
    assert anatomy.grid == (0, 0) and reason in anatomy.reason


class Tied(nn.Module):
    """One block used again and again, as in ALBERT (arXiv 1909.11942)."""

    def __init__(self, depth):
        super().__init__()
        self.embed, self.depth = nn.Conv2d(3, 16, 8, 8), depth
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        for _ in range(self.depth):
            tokens = self.block(tokens)
        return self.head(tokens.mean(dim=1))


def test_a_block_used_again_is_not_taken_for_one_block():
    assert find_anatomy(Tied(1), (32, 32)).kind == "vit"
    anatomy = find_anatomy(Tied(3), (32, 32))
    assert (anatomy.kind, anatomy.attention) == (
        "other",
        (),
    ) and "computes attention 3 times" in anatomy.reason


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("eva02_tiny_patch14_224", 56, 12),
        ("vit_pwee_patch16_reg1_gap_256", 64, 16),
        ("test_vit3", 64, 9),  # and a pooling head
        ("vit_tiny_r_s16_p8_224", 64, 12),
        ("efficientformer_l1", 224, 1),
        ("swin_tiny_patch4_window7_224", 224, 12),
        ("gcvit_xxtiny", 224, 12),
        ("tiny_vit_5m_224", 224, 10),
        ("swinv2_tiny_window8_256", 256, 12),
    ],
)
def test_all_attention_is_covered_where_any_is(name, size, count):
    anatomy = anatomy_of(name, (size, size))
    assert len(anatomy.attention or anatomy.windows) == len(anatomy.blocks) == count
    assert anatomy.reason == (
        "" if anatomy.attention else "its attention sees windows of the map, never all tokens"
    )


@pytest.mark.parametrize(
    ("name", "window_size", "size", "shift"),
    [
        ("swin_tiny_patch4_window7_224", 4, (4, 4), (2, 2)),
        ("swin_tiny_patch4_window7_224", (2, 6), (2, 6), (1, 3)),
        ("swin_tiny_patch4_window7_224", 5, (5, 5), (2, 2)),  # 16x24 tokens filled up to 20x25
        # cut before the norm, and attention written out
        ("swinv2_tiny_window8_256", 4, (4, 4), (2, 2)),
    ],
)
def test_attention_within_windows(name, window_size, size, shift):
    module = timm.create_model(name, window_size=window_size, **SWIN)
    anatomy = find_anatomy(module, (64, 96))
    blocks = ("layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0", "layers.1.blocks.1")
    assert (anatomy.kind, anatomy.blocks, anatomy.attention) == ("windowed", blocks, ())
    assert (anatomy.grid, anatomy.stages) == ((8, 12), ("layers.0", "norm"))
    grids, shifts = [(16, 24)] * 2 + [(8, 12)] * 2, [(0, 0), shift] * 2
    assert anatomy.windows == tuple(
        Window(f"{block}.attn", grid, size, moved)
        for block, grid, moved in zip(blocks, grids, shifts, strict=True)
    )


@pytest.mark.parametrize(
    ("grid", "size", "shift"),
    [((8, 12), (4, 4), (2, 2)), ((7, 9), (3, 5), (1, 2)), ((4, 4), (4, 4), (0, 0))],
)
def test_places_are_those_of_timm(grid, size, shift):
    numbers = torch.arange(1, grid[0] * grid[1] + 1).view(1, *grid, 1)
    moved = torch.roll(numbers, (-shift[0], -shift[1]), (1, 2))
    filled = F.pad(moved, (0, 0, 0, -grid[1] % size[1], 0, -grid[0] % size[0]))
    assert torch.equal(
        place_tokens(Window("", grid, size, shift)) + 1, window_partition(filled, size).flatten(1)
    )


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_hugging_face(kernel):
    anatomy = find_anatomy(build_hugging_face(kernel), (48, 64))
    assert (anatomy.kind, anatomy.num_prefix_tokens, anatomy.grid) == ("vit", 1, (3, 4))
    assert anatomy.blocks == ("vit.layers.0", "vit.layers.1")
    assert anatomy.attention == ("vit.layers.0.attention", "vit.layers.1.attention")


def test_torchvision():
    anatomy = find_anatomy(build_torchvision(), (48, 48))
    assert (anatomy.kind, anatomy.num_prefix_tokens, anatomy.grid) == ("vit", 1, (3, 3))
    assert anatomy.blocks == tuple(f"encoder.layers.encoder_layer_{i}" for i in range(2))
    assert anatomy.attention == tuple(f"{block}.self_attention" for block in anatomy.blocks)
    resnet = find_anatomy(torchvision_models.resnet18(), (64, 96))
    assert resnet.stages == ("relu", "layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize("name", [*BUILT, *WRAPPED])
def test_named_parts_give_what_the_anatomy_says(name):
    model = family(name)
    anatomy, outputs = model.anatomy, {}
    hooks = [
        model.module.get_submodule(part).register_forward_hook(
            lambda _, __, out, part=part: outputs.update(
                {part: out[0].shape if isinstance(out, tuple) else out.shape}
            )
        )
        for part in {*anatomy.blocks, *anatomy.attention, *anatomy.stages}
    ]
    model.module(draw_images(model))
    for hook in hooks:
        hook.remove()
    if anatomy.attention:
        num_tokens = anatomy.num_prefix_tokens + anatomy.grid[0] * anatomy.grid[1]
        for part in (*anatomy.blocks, *anatomy.attention):
            assert outputs[part][:2] == (3, num_tokens)
    maps = [outputs[part] for part in anatomy.stages]
    sizes = [one[1:3] if anatomy.kind == "windowed" else one[2:] for one in maps]
    assert all(len(one) == 4 for one in maps) and len(set(sizes)) == len(sizes)
    assert not sizes or anatomy.kind == "other" or sizes[-1] == anatomy.grid


def test_the_model_is_left_as_it_was():
    module = timm.create_model("test_efficientnet").train()
    module.blocks[0].eval()
    before = describe_state(module)
    find_anatomy(module, (64, 64))
    assert_same_state(module, before)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2)).train()
    before = describe_state(module)
    with pytest.raises(RuntimeError):
        find_anatomy(module, (8, 8))
    assert_same_state(module, before)


class Small(nn.Module):
    """A CNN whose output is put into whatever `pack` makes of it."""

    def __init__(self, pack=lambda logits: logits, num_logits=3):
        super().__init__()
        self.pack = pack
        self.one = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.two = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, num_logits)

    def forward(self, images):
        return self.pack(self.head(self.two(self.one(images).relu()).relu().mean(dim=(-2, -1))))


def test_a_wrapped_module_that_gives_logits_stays_what_it_is(tmp_path):
    module = torchvision_models.resnet18(num_classes=3).train()
    model = wrap_model(module, list(CLASSES), TRANSFORM)
    assert model.module is module and not module.training
    assert (model.name, model.classes, model.transform) == ("ResNet", CLASSES, TRANSFORM)
    assert (model.anatomy.kind, model.anatomy.grid) == ("cnn", (2, 2))
    named = wrap_model(module, CLASSES, 48, "mine")
    imagenet = Transform((48, 48), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (named.name, named.transform) == ("mine", imagenet)
    with pytest.raises(ValueError, match="ResNet was wrapped, not built by name"):
        save_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "pack",
    [
        lambda logits: SimpleNamespace(loss=None, logits=logits),
        lambda logits: {"logits": logits},
        lambda logits: (logits, logits * 2),
    ],
)
def test_logits_are_taken_out_of_the_output(pack):
    module, images = Small(pack), torch.randn(2, 3, 48, 64)
    model = wrap_model(module, CLASSES, TRANSFORM)
    assert model.module.network is module and model.anatomy.stages == ("network.one", "network.two")
    module.pack = lambda logits: logits
    assert torch.equal(model.module(images), module(images))
    assert explain(model, images, "grad_cam", "b").values.shape == (2, 48, 64)


@pytest.mark.parametrize(
    ("module", "classes", "message"),
    [
        (Small(num_logits=5), CLASSES, r"gives \(4, 5\) .* each of the 3 classes a, b, c"),
        (Small(lambda logits: logits[:, :, None]), CLASSES, r"gives \(4, 3, 1\) for 4 images"),
        (Small(lambda logits: logits.softmax(dim=1)), CLASSES, "gives probabilities, not logits"),
        (Small(lambda logits: {"scores": logits}), CLASSES, "gives a dict without logits; wrap it"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), CLASSES, "Sequential cannot take images"),
        (nn.Flatten(), CLASSES, "Flatten has no parameters"),
        (Small(), "abc", "at least two different class names"),
    ],
)
def test_modules_that_cannot_be_wrapped(module, classes, message):
    module.train()
    with pytest.raises(ValueError, match=message):
        wrap_model(module, classes, TRANSFORM)
    assert module.training
    with pytest.raises(ValueError, match="neither a number of pixels nor"):
        wrap_model(Small(), CLASSES, "48")

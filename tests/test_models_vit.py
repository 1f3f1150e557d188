"""The project's own Vision Transformer, against timm's and against numbers worked out by hand; and
the hybrid: its stem against EfficientNet-Lite0, its tokens.
"""

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

from vitlab.models import build_model
from vitlab.models.hybrid import FeatureEmbed
from vitlab.models.vit import (
    Attention,
    Block,
    PatchEmbed,
    VisionTransformer,
    sincos_positions,
)

SHAPE = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}


def randomise(module):
    """Every parameter away from its start value, so that an unused or misplaced one shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return module.eval()


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("fused", [True, False])
def test_logits_equal_those_of_timm_with_the_same_weights(size, fused):
    reference = randomise(TimmVisionTransformer(img_size=size, num_classes=5, **SHAPE))
    own = VisionTransformer(5, size, **SHAPE).eval()
    own.load_state_dict(reference.state_dict())
    for block in own.blocks:
        block.attn.fused_attn = fused
    images = torch.randn(3, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(own(images), reference(images), atol=1e-5, rtol=0)


def test_logits_equal_those_of_timm_at_a_size_that_needs_resampled_positions():
    reference = randomise(
        TimmVisionTransformer(img_size=16, num_classes=5, dynamic_img_size=True, **SHAPE)
    )
    own = VisionTransformer(5, (16, 16), **SHAPE).eval()
    own.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 24, 32)
    with torch.no_grad():
        torch.testing.assert_close(own(images), reference(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_of_two_tokens_worked_out_by_hand(fused):
    attention = Attention(embed_dim=2, num_heads=1)
    attention.fused_attn = fused
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.eye(2).repeat(3, 1))  # q = k = v = x
        attention.qkv.bias.zero_()
        attention.proj.weight.copy_(torch.eye(2))
        attention.proj.bias.zero_()
        result = attention(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))[0]
    # token 0 scores itself 1/sqrt(2) and token 1 zero; token 1 scores itself 4/sqrt(2) and token 0
    # zero
    first = np.exp(1 / np.sqrt(2)) / (np.exp(1 / np.sqrt(2)) + 1)
    second = np.exp(4 / np.sqrt(2)) / (np.exp(4 / np.sqrt(2)) + 1)
    expected = torch.tensor(
        [[first, 2 * (1 - first)], [1 - second, 2 * second]], dtype=torch.float32
    )
    torch.testing.assert_close(result, expected)


def test_patch_embedding_is_one_linear_map_of_every_patch():
    embed = PatchEmbed(patch_size=4, embed_dim=5)
    images = torch.randn(2, 3, 8, 12)
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4)  # (B, 3, 2, 3, 4, 4)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)  # (B, 2, 3, 48)
    by_hand = patches @ embed.proj.weight.flatten(1).T + embed.proj.bias
    torch.testing.assert_close(embed(images), by_hand.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_sincos_positions_hold_row_then_column():
    positions = sincos_positions((2, 3), embed_dim=8)  # two frequencies: 1 and 1/100
    assert positions.shape == (6, 8)
    row, column = 1, 2
    expected = [
        f(axis * frequency)
        for axis in (row, column)
        for f in (np.sin, np.cos)
        for frequency in (1, 0.01)
    ]
    np.testing.assert_allclose(positions[row * 3 + column], expected, rtol=1e-5)


def test_every_trained_parameter_gets_a_gradient():
    model = VisionTransformer(3, (16, 16), **SHAPE)
    torch.nn.functional.cross_entropy(
        model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 0])
    ).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_drop_path_skips_a_branch_in_training_only():
    block = randomise(Block(8, 2, drop_path_rate=0.999999))
    tokens = torch.randn(4, 5, 8)
    assert not torch.equal(block(tokens), tokens)
    assert torch.equal(block.train()(tokens), tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (16, 18)}, "16x18 is not divisible by patch_size 4"),
        ({"num_heads": 5}, "embed_dim 32 is not divisible by num_heads 5"),
        ({"positions": "sin"}, "choose one of learned, sincos"),
        ({"positions": "sincos", "embed_dim": 30, "num_heads": 3}, "divisible by 4, not 30"),
    ],
)
def test_options_that_do_not_fit_say_so(options, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(2, **{"size": (16, 16), **SHAPE, **options})


def test_an_image_that_cannot_be_cut_into_patches_says_so():
    with pytest.raises(ValueError, match=r"18x16 pixels cannot be cut into patches of 4x4"):
        VisionTransformer(2, (16, 16), **SHAPE)(torch.zeros(1, 3, 18, 16))


@pytest.fixture(scope="module")
def lite0():
    return build_model("efficientnet_lite0", ["a", "b"]).module


@pytest.fixture
def hybrid():
    return build_model("hybrid_vit", ["a", "b", "c"], size=64).module


@pytest.mark.parametrize(("size", "grid"), [((224, 224), (14, 14)), ((200, 72), (13, 5))])
def test_stem_gives_the_features_of_efficientnet_lite0_at_stride_16(lite0, size, grid):
    images = torch.randn(1, 3, *size)
    stem = build_model("hybrid_vit", ["a", "b"], size=size).module.stem
    with torch.no_grad():
        expected = lite0.forward_intermediates(images, indices=[3], intermediates_only=True)[0]
        features = stem(images)
    assert features.shape == (1, 112, *grid)
    torch.testing.assert_close(features, expected)


def test_embedding_standardises_every_channel_before_the_linear_map():
    embed = FeatureEmbed(3, 3)
    torch.nn.init.eye_(embed.proj.weight)
    torch.nn.init.zeros_(embed.proj.bias)
    scale = torch.tensor([0.1, 1.0, 50.0])[:, None, None]
    tokens = embed.train()(torch.randn(8, 3, 4, 4) * scale + 7 * scale)  # (B, T, C)
    torch.testing.assert_close(tokens.mean((0, 1)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.std((0, 1), correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_patches_are_dropped_in_training_only(hybrid):
    lengths = []
    hook = hybrid.blocks[0].register_forward_pre_hook(
        lambda _, inputs: lengths.append(inputs[0].shape[1])
    )
    for training in (False, True):
        hybrid.train(training)
        hybrid(torch.randn(2, 3, 64, 64))
    hook.remove()
    assert lengths == [1 + 16, 1 + 8]  # the class token always stays


def test_positions_are_resampled_for_another_size(hybrid):
    features = torch.randn(2, 112, 3, 6)
    positions = resample_abs_pos_embed(hybrid.pos_embed, new_size=[3, 6], old_size=[4, 4])
    with torch.no_grad():
        tokens = hybrid.embed_tokens(features)
        bare = torch.cat([hybrid.cls_token.expand(2, -1, -1), hybrid.embed(features)], dim=1)
    torch.testing.assert_close(tokens, bare + positions)
    assert hybrid(torch.randn(1, 3, 48, 96)).shape == (1, 3)


def test_every_parameter_gets_a_gradient(hybrid):
    hybrid.train()
    torch.nn.functional.cross_entropy(
        hybrid(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])
    ).backward()
    assert [
        name
        for name, parameter in hybrid.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ] == []

"""The project's own Vision Transformer, against timm's and against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

from vitlab.models.vit import (
    Attention,
    Block,
    PatchEmbed,
    VisionTransformer,
    build_blocks,
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


def test_state_dict_loads_into_timm():
    reference = TimmVisionTransformer(img_size=16, num_classes=5, **SHAPE)
    result = reference.load_state_dict(VisionTransformer(5, (16, 16), **SHAPE).state_dict())
    assert not result.missing_keys and not result.unexpected_keys


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


def test_both_attention_paths_have_the_same_gradients():
    attention = Attention(embed_dim=24, num_heads=3)
    gradients = []
    for fused in (True, False):
        attention.fused_attn = fused
        torch.manual_seed(0)
        tokens = torch.randn(2, 7, 24, requires_grad=True)
        attention(tokens).square().sum().backward()
        gradients.append(tokens.grad)
    torch.testing.assert_close(*gradients)


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


def test_sincos_positions_are_used_and_not_trained():
    model = VisionTransformer(2, (8, 12), positions="sincos", **SHAPE)
    assert not model.pos_embed.requires_grad
    torch.testing.assert_close(model.pos_embed[0, 1:], sincos_positions((2, 3), 32))
    assert not model.pos_embed[0, 0].any()


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


def test_drop_path_grows_with_depth():
    rates = [block.drop_path.drop_prob for block in build_blocks(3, 8, 2, 2.0, 0.0, 0.2)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2])


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

"""The hybrid: its stem against EfficientNet-Lite0, its tokens, and what happens to them in
training.
"""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from vitlab.models import build_model
from vitlab.models.hybrid import FeatureEmbed, HybridViT, split_stem


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


def test_defaults(hybrid):
    assert [hybrid.blocks[0].attn.num_heads, len(hybrid.blocks), hybrid.pos_embed.shape[2]] == [
        3,
        3,
        192,
    ]
    wider = build_model("hybrid_vit", ["a", "b"], size=64, embed_dim=256, depth=1).module
    assert [wider.blocks[0].attn.num_heads, len(wider.blocks)] == [4, 1]


def test_embedding_standardises_every_channel_before_the_linear_map():
    embed = FeatureEmbed(3, 3)
    torch.nn.init.eye_(embed.proj.weight)
    torch.nn.init.zeros_(embed.proj.bias)
    scale = torch.tensor([0.1, 1.0, 50.0])[:, None, None]
    tokens = embed.train()(torch.randn(8, 3, 4, 4) * scale + 7 * scale)  # (B, T, C)
    torch.testing.assert_close(tokens.mean((0, 1)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.std((0, 1), correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_embedding_keeps_rows_and_columns_in_order():
    embed = FeatureEmbed(1, 1).eval()
    torch.nn.init.ones_(embed.proj.weight)
    torch.nn.init.zeros_(embed.proj.bias)
    features = torch.arange(6.0).reshape(1, 1, 2, 3)
    torch.testing.assert_close(embed(features).flatten(), torch.arange(6.0), atol=1e-4, rtol=0)


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


def test_any_timm_efficientnet_can_be_the_stem():
    stem = split_stem(timm.create_model("mnasnet_small"))
    model = HybridViT(
        stem,
        stem_channels=stem[-1][-1].conv_pwl.out_channels,
        num_classes=2,
        size=(64, 64),
        embed_dim=64,
    )
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 2)

"""Recorded attention against softmax(q k^T) worked out from the weights, and against timm's own unfused path."""

import pytest
import timm
import torch
from timm.layers import DiffAttention
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn
from torch.nn import functional as F

from vitlab.explain import record_attention
from vitlab.models import find_anatomy
from vitlab.models.vit import VisionTransformer
from vitlab.schema import Anatomy

SIZE = (16, 24)


def randomise(module):
    """Weights so large that attention is far from uniform."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module.eval()


@pytest.fixture
def vit():
    return randomise(VisionTransformer(3, SIZE, patch_size=8, embed_dim=24, depth=3, num_heads=2))


@pytest.fixture
def anatomy(vit):
    return find_anatomy(vit, SIZE)


def run(module, images=None):
    with torch.no_grad():
        return module(torch.randn(2, 3, *SIZE) if images is None else images)


def count_hooks(module):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_equals_softmax_of_queries_and_keys_from_the_weights(vit, anatomy):
    images = torch.randn(2, 3, *SIZE)
    with record_attention(vit, anatomy) as attention:
        run(vit, images)
    tokens = vit.embed_tokens(images)
    for block, found in zip(vit.blocks, attention, strict=True):
        seen = block.norm1(tokens)  # (B, T, C)
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        for head in range(2):
            rows = slice(12 * head, 12 * (head + 1))  # of the queries; those of the keys lie embed_dim further
            query = seen @ weight[:24][rows].T + bias[:24][rows]
            key = seen @ weight[24:48][rows].T + bias[24:48][rows]
            expected = (query @ key.transpose(1, 2) / 12**0.5).softmax(dim=-1)
            torch.testing.assert_close(found[:, head], expected, atol=1e-5, rtol=0)
        tokens = block(tokens)
    assert [tuple(found.shape) for found in attention] == [(2, 2, 7, 7)] * 3
    assert attention[0].max() > 0.3  # not uniform: the comparison could have failed


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"qk_norm": True, "reg_tokens": 2}),
        ("eva02_tiny_patch14_224", {"patch_size": 16}),  # rotary positions, separate projections
        ("beit_base_patch16_224", {"embed_dim": 32, "num_heads": 2}),  # relative position bias
        ("vit_relpos_small_patch16_224", {"embed_dim": 32, "num_heads": 2}),
    ],
)
def test_equals_what_the_unfused_path_of_timm_forms(name, options):
    module = randomise(timm.create_model(name, img_size=64, depth=2, num_classes=3, **options))
    images, anatomy = torch.randn(2, 3, 64, 64), find_anatomy(module, (64, 64))
    with record_attention(module, anatomy) as attention:
        run(module, images)
    formed = []
    for part in anatomy.attention:
        module.get_submodule(part).fused_attn = False
        module.get_submodule(part).attn_drop.register_forward_pre_hook(lambda _, inputs: formed.append(inputs[0]))
    run(module, images)
    for found, expected in zip(attention, formed, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_output_is_the_same_with_and_without(vit, anatomy):
    images = torch.randn(2, 3, *SIZE)
    with record_attention(vit, anatomy):
        recorded = run(vit, images)
    assert torch.equal(recorded, run(vit, images))


def test_chosen_layers_in_the_order_asked_for(vit, anatomy):
    images = torch.randn(1, 3, *SIZE)
    with record_attention(vit, anatomy) as every:
        run(vit, images)
    with record_attention(vit, anatomy, layers=[-1, 0]) as chosen:
        run(vit, images)
    assert len(chosen) == 2 and torch.equal(chosen[0], every[2]) and torch.equal(chosen[1], every[0])


def test_chosen_heads(vit, anatomy):
    images = torch.randn(2, 3, *SIZE)
    with record_attention(vit, anatomy) as every:
        run(vit, images)
    with record_attention(vit, anatomy, layers=[1], heads=[-1]) as chosen:
        run(vit, images)
    assert chosen[0].shape == (2, 1, 7, 7) and torch.equal(chosen[0][:, 0], every[1][:, 1])
    for heads, message in (([2], "no attention head 2: the layer has 2"), ([], "heads is empty")):
        with pytest.raises(ValueError, match=message), record_attention(vit, anatomy, heads=heads):
            run(vit, images)


@pytest.mark.parametrize("heads", [None, [1]])
def test_gradients_are_those_of_finite_differences(vit, anatomy, heads):
    """The last block's attention moved by hand, block by block from the weights, against autograd through the recording."""
    images = torch.randn(2, 3, *SIZE)
    with record_attention(vit, anatomy, heads=heads, gradients=True) as attention, torch.enable_grad():
        logits = vit(images)
        score = logits[:, 1].sum()
        gradients = torch.autograd.grad(score, attention)
    torch.testing.assert_close(logits.detach(), run(vit, images), atol=1e-4, rtol=1e-4)
    with record_attention(vit, anatomy) as every:
        run(vit, images)
    full, matrix = every[2].double(), attention[2].detach().double()
    vit = vit.double()
    last, tokens = vit.blocks[2], vit.blocks[1](vit.blocks[0](vit.embed_tokens(images.double())))

    def score_with(moved):
        used = full.clone()
        used[:, [0, 1] if heads is None else heads] = moved
        value = last.attn.qkv(last.norm1(tokens))[..., 48:].unflatten(2, (2, 12)).transpose(1, 2)  # (B, H, T, 12)
        out = tokens + last.attn.proj((used @ value).transpose(1, 2).flatten(2))
        out = out + last.mlp(last.norm2(out))
        return vit.head(vit.pool(out))[:, 1].sum().item()

    for place in ((0, 0, 0, 3), (1, 0, 0, 0)):
        step = torch.zeros_like(matrix)
        step[place] = 1e-4
        slope = (score_with(matrix + step) - score_with(matrix - step)) / 2e-4
        assert slope == pytest.approx(gradients[2][place].item(), rel=1e-2, abs=1e-4)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_holds_the_latest_forward_pass(vit, anatomy):
    first, second = torch.randn(1, 3, *SIZE), torch.randn(4, 3, *SIZE)
    with record_attention(vit, anatomy) as alone:
        run(vit, second)
    with record_attention(vit, anatomy) as attention:
        run(vit, first)
        assert len(attention[0]) == 1
        run(vit, second)
    assert torch.equal(attention[2], alone[2])


def test_works_in_bfloat16_and_under_inference_mode(vit, anatomy):
    images = torch.randn(2, 3, *SIZE)
    with record_attention(vit, anatomy) as exact:
        run(vit, images)
    with record_attention(vit, anatomy) as rounded, torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        vit(images)
    assert rounded[0].dtype == torch.float32 and rounded[0].sum(dim=-1).allclose(torch.ones(()), atol=1e-5)
    assert (rounded[0] - exact[0]).abs().max() < 0.1


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was(vit, anatomy, fail):
    vit.train()
    vit.blocks[1].eval()
    vit.blocks[0].attn.fused_attn = False
    modes = [part.training for part in vit.modules()]
    try:
        with record_attention(vit, anatomy):
            assert not any(part.training for part in vit.modules())
            run(vit, torch.randn(1, 3, *((5, 5) if fail else SIZE)))
    except ValueError as error:
        assert fail and "5x5" in str(error)  # the model's own complaint, not one about missing attention
    assert [part.training for part in vit.modules()] == modes
    assert [block.attn.fused_attn for block in vit.blocks] == [False, True, True]
    assert count_hooks(vit) == 0
    before = F.scaled_dot_product_attention(*torch.ones(3, 1, 1, 2, 4))
    assert torch.equal(before, torch.ones(1, 1, 2, 4))


def test_nothing_recorded_is_an_error(vit, anatomy):
    with (
        pytest.raises(RuntimeError, match=r"no attention caught in blocks\.0\.attn.*did not run"),
        record_attention(vit, anatomy),
    ):
        pass


@pytest.mark.parametrize(("layers", "message"), [([3], "has 3, 0 to 2"), ([0, -4], "no attention layer -4"), ([], "empty")])
def test_layers_that_are_not_there(vit, anatomy, layers, message):
    with pytest.raises(ValueError, match=message), record_attention(vit, anatomy, layers):
        pass


def test_a_cnn_has_nothing_to_record():
    module, anatomy = nn.Conv2d(3, 4, 3), Anatomy("cnn", (), (), 0, (2, 2), ("",))
    with pytest.raises(ValueError, match=r"\(cnn\) has no attention"), record_attention(module, anatomy):
        pass


class OddAttention(nn.Module):
    """Attention of one head that forms its output in a way of its own."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        heads = x[:, None]  # (B, 1, T, C)
        if self.way == "by hand":
            return (x @ x.transpose(1, 2)).softmax(dim=-1) @ x
        return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5)[:, 0]


@pytest.mark.parametrize(
    ("way", "message"), [("by hand", "OddAttention does not use"), ("with dropout", "is not what the model used: outputs differ")]
)
def test_a_matrix_that_is_not_the_models_is_refused(way, message):
    module, anatomy = nn.Sequential(OddAttention(way)), Anatomy("vit", ("",), ("0",), 0, (2, 3), ())
    with pytest.raises(RuntimeError, match=message), record_attention(module, anatomy):
        module(torch.randn(1, 6, 4))
    assert count_hooks(module) == 0


def test_attention_made_of_two_matrices_is_refused():
    module = TimmVisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, attn_layer=DiffAttention).eval()
    anatomy = find_anatomy(module, (16, 16))
    with pytest.raises(RuntimeError, match=r"blocks\.0\.attn combines several"), record_attention(module, anatomy):
        run(module, torch.randn(1, 3, 16, 16))

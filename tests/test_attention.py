"""Recorded attention against softmax(q k^T) worked out from the weights, and against what other
libraries form themselves.
"""

from dataclasses import replace

import pytest
import timm
import torch
from timm.layers import DiffAttention
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer as TorchvisionVisionTransformer

from vitlab.explain import record_attention
from vitlab.models import find_anatomy
from vitlab.models.vit import VisionTransformer
from vitlab.models.watching import form_weights
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
            # of the queries; those of the keys lie embed_dim further
            rows = slice(12 * head, 12 * (head + 1))
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
        module.get_submodule(part).attn_drop.register_forward_pre_hook(
            lambda _, inputs: formed.append(inputs[0])
        )
    run(module, images)
    for found, expected in zip(attention, formed, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def catch_inputs(module, names, way=lambda tensor: tensor):
    caught = {}
    for name in names:
        part = module.get_submodule(name)
        part.register_forward_pre_hook(
            lambda _, inputs, name=name: caught.update({name: way(inputs[0])})
        )
    return caught


def build_hugging_face(kernel):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=(48, 64),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        attn_implementation=kernel,
    )
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_equals_what_hugging_face_gives_out(kernel):
    reference = randomise(build_hugging_face("eager"))
    module, images = build_hugging_face(kernel).eval(), torch.randn(2, 3, 48, 64)
    module.load_state_dict(reference.state_dict())
    with record_attention(module, find_anatomy(module, (48, 64))) as attention:
        run(module, images)
    with torch.no_grad():
        expected = reference(images, output_attentions=True).attentions
    for found, matrix in zip(attention, expected, strict=True):
        torch.testing.assert_close(found, matrix, atol=1e-5, rtol=0)
    with (
        record_attention(module, find_anatomy(module, (48, 64)), gradients=True) as attention,
        torch.enable_grad(),
    ):
        gradients = torch.autograd.grad(module(images).logits[:, 1].sum(), attention)
    expected = reference(images, output_attentions=True)
    expected = torch.autograd.grad(expected.logits[:, 1].sum(), expected.attentions)
    for found, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_equals_what_torch_gives_out_for_torchvision(training):
    module = randomise(
        TorchvisionVisionTransformer(48, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    )
    module.train(training)
    images, anatomy = torch.randn(2, 3, 48, 48), find_anatomy(module, (48, 48))
    with record_attention(module, anatomy) as attention:
        recorded = run(module, images)
    assert module.training == training
    # which takes the fast path
    torch.testing.assert_close(recorded, run(module.eval(), images), atol=1e-4, rtol=1e-4)
    seen = catch_inputs(module, anatomy.attention)
    run(module, images)
    for name, found in zip(anatomy.attention, attention, strict=True):
        part, x = module.get_submodule(name), seen[name]
        _, expected = part(x, x, x, need_weights=True, average_attn_weights=False)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_multi_head_attention_that_is_asked_for_its_weights():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    tokens = torch.randn(2, 5, 8)
    module = nn.Sequential(nn.Identity(), Ask(attention)).eval()
    with record_attention(module, Anatomy("vit", ("1",), ("1.attention",), 1, (2, 2), ())) as found:
        output = run(module, tokens)
    expected, weights = attention(tokens, tokens, tokens, average_attn_weights=False)
    torch.testing.assert_close(found[0], weights)
    # the model gets its weights, averaged over heads or not
    torch.testing.assert_close(output, expected + weights.mean())


class Ask(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        output, weights = self.attention(x, x, x)
        return output + weights.mean()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.7},
        {"is_causal": True},
        {"attn_mask": torch.randn(5, 5)},
        {"attn_mask": torch.eye(5).roll(1, 0) + torch.eye(5) > 0},
        {"enable_gqa": True},
    ],
)
def test_weights_are_those_that_the_kernel_used(options):
    query = torch.randn(2, 4, 5, 8)
    key, value = torch.randn(2, 2, 2 if "enable_gqa" in options else 4, 5, 8)
    weights = form_weights(query, key, value, **options)
    output = weights @ value.repeat_interleave(4 // value.shape[1], dim=1)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(query, key, value, **options))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 5))


def test_the_output_is_the_same_with_and_without(vit, anatomy):
    images = torch.randn(2, 3, *SIZE)
    with record_attention(vit, anatomy):
        recorded = run(vit, images)
    assert torch.equal(recorded, run(vit, images))


def test_gradients_are_those_of_finite_differences(vit, anatomy):
    """The last block's attention moved by hand, block by block from the weights, against autograd
    through the recording.
    """
    images = torch.randn(2, 3, *SIZE)
    with (
        record_attention(vit, anatomy, gradients=True) as attention,
        torch.enable_grad(),
    ):
        logits = vit(images)
        score = logits[:, 1].sum()
        gradients = torch.autograd.grad(score, attention)
    torch.testing.assert_close(logits.detach(), run(vit, images), atol=1e-4, rtol=1e-4)
    matrix = attention[2].detach().double()
    vit = vit.double()
    last, tokens = vit.blocks[2], vit.blocks[1](vit.blocks[0](vit.embed_tokens(images.double())))

    def score_with(moved):
        # (B, H, T, 12)
        value = last.attn.qkv(last.norm1(tokens))[..., 48:].unflatten(2, (2, 12)).transpose(1, 2)
        out = tokens + last.attn.proj((moved @ value).transpose(1, 2).flatten(2))
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
    with (
        record_attention(vit, anatomy) as rounded,
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
    ):
        vit(images)
    assert rounded[0].dtype == torch.float32 and rounded[0].sum(dim=-1).allclose(
        torch.ones(()), atol=1e-5
    )
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
        # the model's own complaint, not one about missing attention
        assert fail and "5x5" in str(error)
    assert [part.training for part in vit.modules()] == modes
    assert [block.attn.fused_attn for block in vit.blocks] == [False, True, True]
    assert count_hooks(vit) == 0
    before = F.scaled_dot_product_attention(*torch.ones(3, 1, 1, 2, 4))
    assert torch.equal(before, torch.ones(1, 1, 2, 4))


def test_nothing_recorded_is_an_error(vit, anatomy):
    with (
        pytest.raises(RuntimeError, match=r"computed in blocks\.0\.attn.*did not run"),
        record_attention(vit, anatomy),
    ):
        pass


def test_a_cnn_has_nothing_to_record():
    module, anatomy = (
        nn.Conv2d(3, 4, 3),
        Anatomy("cnn", (), (), 0, (2, 2), ("",), reason="it has none"),
    )
    with (
        pytest.raises(ValueError, match=r"no attention that can be used \(it has none\)"),
        record_attention(module, anatomy),
    ):
        pass


class OddAttention(nn.Module):
    """Attention of one head that forms its output in a way of its own."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        heads = x[:, None]  # (B, 1, T, C)
        if self.way == "halved":
            return (0.5 * (x @ x.transpose(1, 2)).softmax(dim=-1)) @ x
        return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5)[:, 0]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("halved", "OddAttention computes it in a way that cannot be seen"),
        ("with dropout", "is not what the model used: outputs differ"),
    ],
)
def test_a_matrix_that_is_not_the_models_is_refused(way, message):
    module, anatomy = nn.Sequential(OddAttention(way)), Anatomy("vit", ("",), ("0",), 0, (2, 3), ())
    with pytest.raises(RuntimeError, match=message), record_attention(module, anatomy):
        module(torch.randn(1, 6, 4))
    assert count_hooks(module) == 0


def test_attention_made_of_two_matrices_is_refused():
    module = TimmVisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, attn_layer=DiffAttention
    ).eval()
    anatomy = find_anatomy(module, (16, 16))
    with (
        pytest.raises(ValueError, match=r"blocks\.0\.attn computes attention 2 times"),
        record_attention(module, anatomy),
    ):
        pass
    as_if = replace(anatomy, attention=("blocks.0.attn",))
    with (
        pytest.raises(RuntimeError, match=r"blocks\.0\.attn combines several"),
        record_attention(module, as_if),
    ):
        run(module, torch.randn(1, 3, 16, 16))

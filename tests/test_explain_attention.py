"""Recorded attention and maps made of it, against softmax(q k^T) worked out from the weights, what
other libraries form themselves, and the algorithms that the authors published.
"""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tests.families import (
    ODD_VIT,
    build_family,
    build_hugging_face,
    build_torchvision,
    draw_images,
    family,
    sharpen,
)
from vitlab.explain import explain, record_attention
from vitlab.explain.attention import intercept_attention, list_layouts
from vitlab.models import build_model
from vitlab.models.anatomy import find_anatomy
from vitlab.models.attention import form_weights
from vitlab.schema import Anatomy


def randomise(module):
    """Weights so large that attention is far from uniform."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def record(module, anatomy, images):
    with record_attention(module, anatomy) as attention, torch.no_grad():
        module(images)
    return attention


@pytest.fixture
def model():
    return sharpen(build_model("vit_scratch", ["a", "b"], **ODD_VIT))


class Observed:
    """A ViT run block by block from its own weights, with its attention matrices in the graph, as
    the authors' repositories hook them.
    """

    def __init__(self, model, images, target):
        vit = model.module
        tokens, matrices = vit.embed_tokens(images), []
        for block in vit.blocks:
            # (B, H, T, 12)
            q, k, v = (
                block.attn.qkv(block.norm1(tokens)).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
            )
            matrices.append((q @ k.transpose(-2, -1) / 12**0.5).softmax(dim=-1))
            tokens = tokens + block.attn.proj((matrices[-1] @ v).transpose(1, 2).flatten(2))
            tokens = tokens + block.mlp(block.norm2(tokens))
        score = vit.head(vit.pool(tokens))[:, target].sum()
        self.gradients = torch.autograd.grad(score, matrices)
        self.attention = [matrix.detach() for matrix in matrices]

    def pairs(self, i):
        return [
            (matrix[i], gradient[i])
            for matrix, gradient in zip(self.attention, self.gradients, strict=True)
        ]


def test_attention_and_its_gradients_from_the_weights(model):
    images = draw_images(model)
    observed = Observed(model, images, 1)
    with record_attention(model.module, model.anatomy, gradients=True) as attention:
        logits = model.module(images)
        gradients = torch.autograd.grad(logits[:, 1].sum(), attention)
    for i in range(3):
        assert attention[i].shape == (3, 2, 7, 7)
        torch.testing.assert_close(attention[i], observed.attention[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(gradients[i], observed.gradients[i], atol=1e-4, rtol=1e-3)
    assert attention[0].max() > 0.3  # not uniform: the comparison could have failed
    with torch.no_grad():
        torch.testing.assert_close(logits.detach(), model.module(images), atol=1e-4, rtol=1e-4)


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
    attention = record(module, anatomy, images)
    formed = []
    for part in anatomy.attention:
        module.get_submodule(part).fused_attn = False
        module.get_submodule(part).attn_drop.register_forward_pre_hook(
            lambda _, inputs: formed.append(inputs[0])
        )
    unfused = record(module, anatomy, images)
    for found, again, expected in zip(attention, unfused, formed, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_equals_what_hugging_face_gives_out(kernel):
    reference = randomise(build_hugging_face("eager"))
    module, images = build_hugging_face(kernel).eval(), torch.randn(2, 3, 48, 64)
    module.load_state_dict(reference.state_dict())
    with record_attention(module, find_anatomy(module, (48, 64)), gradients=True) as attention:
        gradients = torch.autograd.grad(module(images).logits[:, 1].sum(), attention)
    output = reference(images, output_attentions=True)
    expected = torch.autograd.grad(output.logits[:, 1].sum(), output.attentions)
    for i in range(2):
        torch.testing.assert_close(attention[i], output.attentions[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(gradients[i], expected[i], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_equals_what_torch_gives_out_for_torchvision(training):
    module = randomise(build_torchvision()).train(training)
    images, anatomy = torch.randn(2, 3, 48, 48), find_anatomy(module, (48, 48))
    attention = record(module, anatomy, images)
    assert module.training == training
    module.eval()
    seen = {}
    for name in anatomy.attention:
        module.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0]})
        )
    with torch.no_grad():
        module(images)
        for name, found in zip(anatomy.attention, attention, strict=True):
            part, x = module.get_submodule(name), seen[name]
            _, expected = part(x, x, x, need_weights=True, average_attn_weights=False)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


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


def test_recording_changes_no_output_and_keeps_the_latest_pass(model):
    first, second = draw_images(model, 1), torch.randn(4, 3, *model.transform.size)
    alone = record(model.module, model.anatomy, second)
    with record_attention(model.module, model.anatomy) as attention, torch.no_grad():
        model.module(first)
        assert len(attention[0]) == 1
        recorded = model.module(second)
    assert torch.equal(attention[2], alone[2])
    with torch.no_grad():
        assert torch.equal(recorded, model.module(second))


def test_works_in_bfloat16_and_under_inference_mode(model):
    images = draw_images(model)
    exact = record(model.module, model.anatomy, images)
    with (
        record_attention(model.module, model.anatomy) as rounded,
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model.module(images)
    assert rounded[0].dtype == torch.float32
    assert (rounded[0].sum(dim=-1) - 1).abs().max() < 1e-5
    assert (rounded[0] - exact[0]).abs().max() < 0.1


def test_an_error_inside_leaves_no_hook_behind(model):
    def fail(layer, call):
        raise KeyboardInterrupt

    model.module.train()
    model.module.blocks[1].eval()
    modes = [part.training for part in model.module.modules()]
    with pytest.raises(KeyboardInterrupt), intercept_attention(model.module, model.anatomy, fail):
        model.module(draw_images(model))
    assert not any(
        part._forward_hooks or part._forward_pre_hooks for part in model.module.modules()
    )
    assert [part.training for part in model.module.modules()] == modes


class OddAttention(nn.Module):
    """Attention of one head that forms its output in a way of its own."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        heads = x[:, None]  # (B, 1, T, C)
        if self.way == "halved":
            return (0.5 * (x @ x.transpose(1, 2)).softmax(dim=-1)) @ x
        if self.way == "twice":
            return (F.scaled_dot_product_attention(heads, heads, heads) * 2).sum(1) - (
                F.scaled_dot_product_attention(heads, heads, heads)[:, 0]
            )
        return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5)[:, 0]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("halved", "OddAttention computes it in a way that cannot be seen"),
        ("with dropout", "is not what the model used: outputs differ"),
        ("twice", "combines several attention matrices"),
        ("not run", "the model did not run"),
    ],
)
def test_a_matrix_that_is_not_the_models_is_refused(way, message):
    module, anatomy = nn.Sequential(OddAttention(way)), Anatomy("vit", ("",), ("0",), 0, (2, 3), ())
    with pytest.raises(RuntimeError, match=message), record_attention(module, anatomy):
        if way != "not run":
            module(torch.randn(1, 6, 4))


def test_a_cnn_has_nothing_to_record():
    model = family("test_resnet")
    with (
        pytest.raises(ValueError, match=r"no attention that can be used \(it has no attention\)"),
        record_attention(model.module, model.anatomy),
    ):
        pass


def read_centres(values, grid):
    """The value at the centre of each patch, where enlarging leaves it as it was (patches have an
    odd number of pixels).
    """
    rows, columns = (side // patches for side, patches in zip(values.shape[1:], grid, strict=True))
    return values[:, rows // 2 :: rows, columns // 2 :: columns]


def published_rollout(attention):
    """compute_joint_attention of github.com/samiraabnar/attention_flow, for one image: (L, T, T) ->
    (L, T, T).
    """
    augmented = attention + np.eye(attention.shape[1])[None]
    augmented = augmented / augmented.sum(axis=-1)[..., None]
    joint = np.zeros(augmented.shape)
    joint[0] = augmented[0]
    for i in np.arange(1, len(joint)):
        joint[i] = augmented[i].dot(joint[i - 1])
    return joint


# class token; two heads on two tokens; registers, not read; averaged patches; prefix tokens that
# are no class token
READ_TOKENS = [
    ("vit_tiny_patch16_224", {"reg_tokens": 0}, [0], 1),
    ("deit_tiny_distilled_patch16_224", {}, [0, 1], 2),
    ("vit_tiny_patch16_224", {"reg_tokens": 3}, [0], 4),
    ("vit_medium_patch16_gap_240", {}, range(6), 0),
    ("vit_medium_patch16_gap_240", {"reg_tokens": 2}, range(2, 8), 2),
]


@pytest.mark.parametrize(("name", "options", "rows", "num_prefix_tokens"), READ_TOKENS)
def test_starts_from_the_tokens_that_the_classifier_reads(name, options, rows, num_prefix_tokens):
    model = sharpen(build_family(name, **{**options, "size": (32, 48), "depth": 3}))
    images = draw_images(model)
    attention = torch.stack(record(model.module, model.anatomy, images)).mean(dim=2).double()
    flow = np.stack([published_rollout(attention[:, i].numpy())[-1] for i in range(3)])
    expected = {"rollout": flow, "attention": attention[-1].numpy()}
    for method, matrix in expected.items():
        maps = torch.tensor(matrix[:, list(rows), num_prefix_tokens:].mean(axis=1))
        maps = F.interpolate(maps.reshape(3, 1, 2, 3), size=(32, 48), mode="bilinear")[:, 0]
        np.testing.assert_allclose(explain(model, images, method).values, maps, atol=1e-6)
        assert maps.std() > 1e-3
    assert model.anatomy.num_prefix_tokens == num_prefix_tokens


def test_one_layer(model):
    images = draw_images(model)
    first = record(model.module, model.anatomy, images)[0][:, :, 0, 1:].mean(dim=1)
    found = explain(model, images, "attention", layer=0).values
    np.testing.assert_allclose(read_centres(found, (2, 3)), first.reshape(3, 2, 3), atol=1e-6)
    with pytest.raises(ValueError, match="no attention layer 7"):
        explain(model, images, "attention", layer=7)


def published_gradient_rollout(pairs):
    """grad_rollout of github.com/jacobgil/vit-explain (vit_grad_rollout.py) for one image; rows by
    their own sums.
    """
    result = torch.eye(pairs[0][0].size(-1))
    for attention, grad in pairs:
        fused = (attention * grad).mean(axis=0)
        fused[fused < 0] = 0
        a = (fused + torch.eye(fused.size(-1))) / 2
        result = torch.matmul(a / a.sum(dim=-1, keepdim=True), result)
    return result[0, 1:]


def published_attribution(pairs):
    """generate_relevance of github.com/hila-chefer/Transformer-MM-Explainability , one image."""
    R = torch.eye(pairs[0][0].shape[-1])
    for cam, grad in pairs:
        cam = (grad * cam).clamp(min=0).mean(dim=0)  # avg_heads
        R = R + torch.matmul(cam, R)  # apply_self_attention_rules
    return R[0, 1:]


@pytest.mark.parametrize(
    ("method", "published"),
    [
        ("gradient_rollout", published_gradient_rollout),
        ("transformer_attribution", published_attribution),
    ],
)
def test_gradient_weighted_relevance_as_published(model, method, published):
    # gradients so large that products of several blocks count
    nn.init.normal_(model.module.head.weight, std=3)
    images = draw_images(model, 2)
    maps = {}
    for index, target in enumerate(model.classes):
        observed = Observed(model, images, index)
        expected = torch.stack([published(observed.pairs(i)) for i in range(2)]).reshape(2, 2, 3)
        maps[target] = read_centres(explain(model, images, method, target).values, (2, 3))
        np.testing.assert_allclose(maps[target], expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert np.abs(maps["a"] - maps["b"]).max() > 0.1 * maps["a"].max()


def test_relevance_starts_from_all_averaged_patches():
    """With one block of average pooling the relevance of a patch is its own, 1/T, and what all
    patches took from it.
    """
    model = sharpen(build_family("vit_medium_patch16_gap_240", size=(32, 48), depth=1))
    images = draw_images(model)
    with record_attention(model.module, model.anatomy, gradients=True) as attention:
        (gradient,) = torch.autograd.grad(model.module(images)[:, 1].sum(), attention)
    share = 1 / 6 + (attention[0] * gradient).relu().mean(dim=1).mean(dim=1).detach()  # (B, T)
    expected = F.interpolate(share.reshape(3, 1, 2, 3), size=(32, 48), mode="bilinear")[:, 0]
    found = explain(model, images, "transformer_attribution", "b").values
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_classifier_that_reads_nothing_is_an_error(model):
    nn.init.zeros_(model.module.head.weight)
    with pytest.raises(ValueError, match=r"no target logit depends on the tokens of the last"):
        explain(model, draw_images(model), "rollout")


def test_every_token_of_a_swin_is_counted_once():
    """The attention of all patches together sums to 1, and so does what they receive."""
    model = build_family("swin_tiny_patch4_window7_224", size=64)
    images = draw_images(model)
    for layer, grid in ((0, 16), (1, 16), (-1, 8)):
        found = explain(model, images, "attention", layer=layer).values
        patches = found.reshape(3, grid, 64 // grid, grid, 64 // grid).mean(axis=(2, 4))
        # enlarging loses a little at the border
        np.testing.assert_allclose(patches.sum(axis=(1, 2)), 1, rtol=0.02)
        assert found.std() > 0
    assert [one.grid for one in list_layouts(model.anatomy)] == [(16, 16)] * 2 + [(8, 8)] * 2

"""Rollout and its relatives against the algorithms their authors published, and the rows they start
from in each kind of ViT.
"""

import numpy as np
import pytest
import torch

from vitlab.explain import explain, record_attention
from vitlab.explain.attention import intercept_attention, list_layouts
from vitlab.models import build_model
from vitlab.schema import Anatomy

TIMM_VIT = {"pretrained": False, "depth": 3, "embed_dim": 24, "num_heads": 2, "size": (32, 48)}


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


def sharpen(model):
    """Larger weights, so that attention is far from uniform."""
    with torch.no_grad():
        for block in model.module.blocks:
            block.attn.qkv.weight.mul_(20)
    return model


def record(model, images):
    with record_attention(model.module, model.anatomy) as attention, torch.no_grad():
        model.module(images)
    return attention


def published_rows(model, images):
    """The last layer's published rollout for each image: (B, T, T)."""
    # (L, B, T, T), heads averaged
    attention = torch.stack(record(model, images)).mean(dim=2).double().numpy()
    return np.stack([published_rollout(attention[:, i])[-1] for i in range(len(images))])


def read_cells(values, grid):
    """The value at the centre of each cell, where enlarging leaves it as it was (cells have an odd
    number of pixels).
    """
    rows, columns = (side // cells for side, cells in zip(values.shape[1:], grid, strict=True))
    return values[:, rows // 2 :: rows, columns // 2 :: columns]


def test_class_token_row_over_a_grid_that_is_not_square():
    model = sharpen(
        build_model(
            "vit_scratch",
            ["a", "b"],
            size=(18, 27),
            patch_size=9,
            embed_dim=24,
            depth=3,
            num_heads=2,
        )
    )
    images = torch.randn(2, 3, 18, 27)
    found = explain(model, images, "rollout")
    expected = published_rows(model, images)[:, 0, 1:].reshape(2, 2, 3)
    np.testing.assert_allclose(read_cells(found.values, (2, 3)), expected, atol=1e-6)
    assert expected.std() > 0.01 and not found.signed


@pytest.mark.parametrize(
    ("name", "options", "rows", "num_prefix_tokens"),
    [
        ("vit_tiny_patch16_224", {}, [0], 1),
        # the logits are the mean of two heads on two tokens
        ("deit_tiny_distilled_patch16_224", {}, [0, 1], 2),
        ("vit_tiny_patch16_224", {"reg_tokens": 3}, [0], 4),  # registers are not read
        ("vit_medium_patch16_gap_240", {}, range(6), 0),
        # prefix tokens, none of them a class token
        ("vit_medium_patch16_gap_240", {"reg_tokens": 2}, range(2, 8), 2),
    ],
)
def test_starts_from_the_tokens_that_the_classifier_reads(name, options, rows, num_prefix_tokens):
    model = sharpen(build_model(name, ["a", "b"], **TIMM_VIT, **options))
    images = torch.randn(2, 3, 32, 48)
    values = explain(model, images, "rollout").values
    flow = torch.tensor(
        published_rows(model, images)[:, list(rows)].mean(axis=1)[:, num_prefix_tokens:]
    )
    expected = torch.nn.functional.interpolate(
        flow.reshape(2, 1, 2, 3), size=(32, 48), mode="bilinear"
    )[:, 0]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert model.anatomy.num_prefix_tokens == num_prefix_tokens and expected.std() > 1e-3


def test_a_classifier_that_reads_nothing_is_an_error():
    model = build_model(
        "vit_scratch", ["a", "b"], size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2
    )
    torch.nn.init.zeros_(model.module.head.weight)
    with pytest.raises(
        ValueError,
        match=r"no target logit reacts to the tokens of the last block.*train the classifier first",
    ):
        explain(model, torch.randn(2, 3, 32, 32), "rollout")


class Observed:
    """A ViT run block by block from its own weights, with its attention matrices in the graph, as
    both repositories hook them.
    """

    def __init__(self, model, images, target):
        vit = model.module
        tokens, self.attention = vit.embed_tokens(images), []
        for block in vit.blocks:
            # (B, H, T, 12)
            q, k, v = (
                block.attn.qkv(block.norm1(tokens)).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
            )
            matrix = (q @ k.transpose(-2, -1) / 12**0.5).softmax(dim=-1)
            self.attention.append(matrix)
            tokens = tokens + block.attn.proj((matrix @ v).transpose(1, 2).flatten(2))
            tokens = tokens + block.mlp(block.norm2(tokens))
        score = vit.head(vit.pool(tokens))[:, target].sum()
        self.gradients = [
            gradient.detach() for gradient in torch.autograd.grad(score, self.attention)
        ]
        self.attention = [matrix.detach() for matrix in self.attention]

    def pairs(self, i):
        return [
            (matrix[i], gradient[i])
            for matrix, gradient in zip(self.attention, self.gradients, strict=True)
        ]


def reference_gradient_rollout(pairs):
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


def reference_attribution(pairs):
    """generate_relevance of github.com/hila-chefer/Transformer-MM-Explainability , one image."""
    R = torch.eye(pairs[0][0].shape[-1])
    for cam, grad in pairs:
        cam = (grad * cam).clamp(min=0).mean(dim=0)  # avg_heads
        R = R + torch.matmul(cam, R)  # apply_self_attention_rules
    return R[0, 1:]


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        ("gradient_rollout", reference_gradient_rollout),
        ("transformer_attribution", reference_attribution),
    ],
)
def test_gradient_weighted_relevance_as_published(method, reference):
    model = sharpen(
        build_model(
            "vit_scratch",
            ["a", "b"],
            size=(18, 27),
            patch_size=9,
            embed_dim=24,
            depth=3,
            num_heads=2,
        )
    )
    # gradients so large that products of several blocks count
    torch.nn.init.normal_(model.module.head.weight, std=3)
    images = torch.randn(2, 3, 18, 27)
    maps = {}
    for index, target in enumerate(model.classes):
        observed = Observed(model, images, index)
        expected = torch.stack([reference(observed.pairs(i)) for i in range(2)]).reshape(2, 2, 3)
        maps[target] = read_cells(explain(model, images, method, target).values, (2, 3))
        np.testing.assert_allclose(maps[target], expected, rtol=1e-4, atol=1e-5 * expected.max())
    # unlike rollout, they depend on the class
    assert np.abs(maps["a"] - maps["b"]).max() > 0.1 * maps["a"].max()


def test_averaged_patches_are_all_started_from():
    """With one block of average pooling the relevance of a patch is its own, 1/T, and what all
    patches took from it.
    """
    options = {**TIMM_VIT, "depth": 1}
    model = sharpen(build_model("vit_medium_patch16_gap_240", ["a", "b"], **options))
    images = torch.randn(2, 3, 32, 48)
    with record_attention(model.module, model.anatomy, gradients=True) as attention:
        (gradient,) = torch.autograd.grad(model.module(images)[:, 1].sum(), attention)
    share = 1 / 6 + (attention[0] * gradient).relu().mean(dim=1).mean(dim=1).detach()  # (B, T)
    expected = torch.nn.functional.interpolate(
        share.reshape(2, 1, 2, 3), size=(32, 48), mode="bilinear"
    )[:, 0]
    np.testing.assert_allclose(
        explain(model, images, "transformer_attribution", "b").values, expected, rtol=1e-4
    )


def test_an_error_inside_leaves_no_hook_behind():
    model = build_model(
        "vit_scratch", ["a", "b"], size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2
    )
    model.module.blocks[1].attn.fused_attn = False

    def fail(layer, call):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), intercept_attention(model.module, model.anatomy, fail):
        model.module(torch.randn(1, 3, 16, 16))
    assert not any(
        part._forward_hooks or part._forward_pre_hooks for part in model.module.modules()
    )
    assert [block.attn.fused_attn for block in model.module.blocks] == [True, False]
    nothing = intercept_attention(model.module, model.anatomy, lambda layer, call: call.output)
    with (
        pytest.raises(RuntimeError, match=r"no attention was computed in blocks\.0\.attn"),
        nothing,
    ):
        pass


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": "float"}, {"attn_mask": "bool"}],
)
def test_intercepted_matrices_give_the_output_of_the_kernel(options):
    if "attn_mask" in options:
        mask = torch.randn(5, 5)
        options = {"attn_mask": mask if options["attn_mask"] == "float" else mask > -1}

    class Kernel(torch.nn.Module):
        def forward(self, query):
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)

    def answer(layer, call):
        calls.append((call.form() @ call.value, call.output))
        return 2 * calls[-1][1]

    key, value, calls, module = (
        torch.randn(2, 3, 5, 4),
        torch.randn(2, 3, 5, 4),
        [],
        torch.nn.Sequential(Kernel()),
    )
    with intercept_attention(module, Anatomy("vit", ("0",), ("0",), 0, (1, 5), ()), answer):
        output = module(torch.randn(2, 3, 5, 4))
    ((own, kernel),) = calls
    torch.testing.assert_close(own, kernel, atol=1e-6, rtol=1e-5)
    assert torch.equal(output, 2 * kernel)


def enlarge(maps, size):
    return torch.nn.functional.interpolate(maps[:, None], size=size, mode="bilinear")[:, 0]


@pytest.mark.parametrize(
    ("name", "rows", "prefix"),
    [
        ("vit_tiny_patch16_224", [0], 1),
        ("deit_tiny_distilled_patch16_224", [0, 1], 2),
        ("vit_medium_patch16_gap_240", range(6), 0),
    ],
)
@pytest.mark.parametrize("layer", [-1, 0])
def test_equals_the_recorded_rows_of_the_tokens_that_are_read(name, rows, prefix, layer):
    model, images = sharpen(build_model(name, ["a", "b"], **TIMM_VIT)), torch.randn(2, 3, 32, 48)
    with record_attention(model.module, model.anatomy) as recorded, torch.no_grad():
        model.module(images)
    matrix = recorded[layer].mean(dim=1)  # (B, T, T)
    expected = enlarge(matrix[:, list(rows), prefix:].mean(dim=1).reshape(2, 2, 3), (32, 48))
    found = explain(model, images, "attention", layer=layer).values
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert expected.std() > 1e-3
    with pytest.raises(ValueError, match="no attention layer 7"):
        explain(model, images, "attention", layer=7)


@pytest.fixture
def swin():
    options = {
        "size": 64,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_size": 4,
        "pretrained": False,
    }
    return build_model("swin_tiny_patch4_window7_224", ["a", "b"], **options)


def test_every_token_of_a_swin_is_counted_once(swin):
    """All patches look, each gives away 1 in all, so the map of what is received has a mean of 1
    over the number of patches.
    """
    images = torch.randn(2, 3, 64, 64)
    for layer, grid in ((0, 16), (1, 16), (-1, 8)):
        found = explain(swin, images, "attention", layer=layer).values
        cells = found.reshape(2, grid, 64 // grid, grid, 64 // grid).mean(axis=(2, 4))
        # enlarging loses a little at the border
        np.testing.assert_allclose(cells.sum(axis=(1, 2)), 1, rtol=0.02)
        assert found.std() > 0


def test_layouts_of_a_vit_and_of_a_swin(swin):
    vit = build_model("vit_tiny_patch16_224", ["a", "b"], **TIMM_VIT, reg_tokens=2)
    layout, *others = list_layouts(vit.anatomy)
    assert (
        layout.grid == (2, 3)
        and layout.places.tolist() == [[-1, -1, -1, 0, 1, 2, 3, 4, 5]]
        and len(others) == 2
    )
    assert [one.grid for one in list_layouts(swin.anatomy)] == [(16, 16)] * 2 + [(8, 8)] * 2

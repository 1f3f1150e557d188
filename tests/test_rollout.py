"""Rollout against the algorithm its authors published, and the rows it starts from in each kind of ViT."""

import numpy as np
import pytest
import torch

from vitlab.explain import compute_rollout, explain, record_attention
from vitlab.models import build_model

TIMM_VIT = {"pretrained": False, "depth": 3, "embed_dim": 24, "num_heads": 2, "size": (32, 48)}


def published_rollout(attention):
    """compute_joint_attention of github.com/samiraabnar/attention_flow, for one image: (L, T, T) -> (L, T, T)."""
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
    attention = torch.stack(record(model, images)).mean(dim=2).double().numpy()  # (L, B, T, T), heads averaged
    return np.stack([published_rollout(attention[:, i])[-1] for i in range(len(images))])


def read_cells(values, grid):
    """The value at the centre of each cell, where enlarging leaves it as it was (cells have an odd number of pixels)."""
    rows, columns = (side // cells for side, cells in zip(values.shape[1:], grid, strict=True))
    return values[:, rows // 2 :: rows, columns // 2 :: columns]


def test_flow_equals_the_published_algorithm():
    attention = torch.randn(4, 2, 3, 5, 5).mul(3).softmax(dim=-1)  # (L, B, H, T, T)
    flow = compute_rollout(list(attention))
    for i in range(2):
        expected = published_rollout(attention[:, i].mean(dim=1).double().numpy())[-1]
        np.testing.assert_allclose(flow[i], expected, atol=1e-6)
    np.testing.assert_allclose(flow.sum(dim=-1), 1, atol=1e-6)


def test_the_order_of_the_blocks_counts():
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])[None, None]
    gather = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None]  # both tokens look at the first
    # by hand: 0.5 (gather + I) = [[1, 0], [.5, .5]], 0.5 (swap + I) = [[.5, .5], [.5, .5]]; the last block stands on the left
    torch.testing.assert_close(compute_rollout([gather, swap])[0], torch.tensor([[0.75, 0.25], [0.75, 0.25]]))
    torch.testing.assert_close(compute_rollout([swap, gather])[0], torch.tensor([[0.5, 0.5], [0.5, 0.5]]))


def test_no_blocks():
    with pytest.raises(ValueError, match="at least one block"):
        compute_rollout([])


def test_class_token_row_over_a_grid_that_is_not_square():
    model = sharpen(build_model("vit_scratch", ["a", "b"], size=(18, 27), patch_size=9, embed_dim=24, depth=3, num_heads=2))
    images = torch.randn(2, 3, 18, 27)
    found = explain(model, images, "rollout")
    expected = published_rows(model, images)[:, 0, 1:].reshape(2, 2, 3)
    np.testing.assert_allclose(read_cells(found.values, (2, 3)), expected, atol=1e-6)
    assert expected.std() > 0.01 and not found.signed


@pytest.mark.parametrize(
    ("name", "options", "rows", "num_prefix_tokens"),
    [
        ("vit_tiny_patch16_224", {}, [0], 1),
        ("deit_tiny_distilled_patch16_224", {}, [0, 1], 2),  # the logits are the mean of two heads on two tokens
        ("vit_tiny_patch16_224", {"reg_tokens": 3}, [0], 4),  # registers are not read
        ("vit_medium_patch16_gap_240", {}, range(6), 0),
        ("vit_medium_patch16_gap_240", {"reg_tokens": 2}, range(2, 8), 2),  # prefix tokens, none of them a class token
    ],
)
def test_starts_from_the_tokens_that_the_classifier_reads(name, options, rows, num_prefix_tokens):
    model = sharpen(build_model(name, ["a", "b"], **TIMM_VIT, **options))
    images = torch.randn(2, 3, 32, 48)
    values = explain(model, images, "rollout").values
    flow = torch.tensor(published_rows(model, images)[:, list(rows)].mean(axis=1)[:, num_prefix_tokens:])
    expected = torch.nn.functional.interpolate(flow.reshape(2, 1, 2, 3), size=(32, 48), mode="bilinear")[:, 0]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert model.anatomy.num_prefix_tokens == num_prefix_tokens and expected.std() > 1e-3


def test_does_not_depend_on_the_class():
    model = build_model("vit_scratch", ["a", "b"], size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    images = torch.randn(2, 3, 32, 32)
    np.testing.assert_array_equal(explain(model, images, "rollout", "a").values, explain(model, images, "rollout", "b").values)


def test_a_classifier_that_reads_nothing_is_an_error():
    model = build_model("vit_scratch", ["a", "b"], size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    torch.nn.init.zeros_(model.module.head.weight)
    with pytest.raises(ValueError, match=r"no target logit reacts to the tokens of the last block.*train the classifier first"):
        explain(model, torch.randn(2, 3, 32, 32), "rollout")

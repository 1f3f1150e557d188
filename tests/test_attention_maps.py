"""Raw attention against the recorded matrices, in ViTs and in the windows of a Swin; and where
tokens lie.
"""

import numpy as np
import pytest
import torch

from vitlab.explain import explain, record_attention
from vitlab.explain.layout import Layout, list_layouts, map_received, measure_distance_and_entropy
from vitlab.models import build_model

TIMM = {"pretrained": False, "depth": 3, "embed_dim": 24, "num_heads": 2, "size": (32, 48)}


def sharpen(model):
    with torch.no_grad():
        for block in model.module.blocks:
            block.attn.qkv.weight.mul_(20)
    return model


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
@pytest.mark.parametrize(("layer", "head"), [(-1, None), (0, 1), (1, -2)])
def test_equals_the_recorded_rows_of_the_tokens_that_are_read(name, rows, prefix, layer, head):
    model, images = sharpen(build_model(name, ["a", "b"], **TIMM)), torch.randn(2, 3, 32, 48)
    with record_attention(model.module, model.anatomy) as recorded, torch.no_grad():
        model.module(images)
    matrix = recorded[layer].mean(dim=1) if head is None else recorded[layer][:, head]  # (B, T, T)
    expected = enlarge(matrix[:, list(rows), prefix:].mean(dim=1).reshape(2, 2, 3), (32, 48))
    found = explain(model, images, "attention", layer=layer, head=head).values
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("option", "message"),
    [({"layer": 3}, "no attention layer 3"), ({"head": 2}, "no attention head 2")],
)
def test_what_does_not_exist(option, message):
    model = build_model("vit_tiny_patch16_224", ["a", "b"], **TIMM)
    with pytest.raises(ValueError, match=message):
        explain(model, torch.randn(1, 3, 32, 48), "attention", **option)


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


def test_attention_of_shifted_windows_lands_on_its_token():
    """Two windows of 1x2 on a map of 1x4, shifted by one: they hold tokens 1, 2 and 3, 0."""
    layout = Layout((1, 4), torch.tensor([[1, 2], [3, 0]]))
    # (windows, 1, 2, 2)
    attention = torch.tensor([[[[0.9, 0.1], [0.5, 0.5]]], [[[1.0, 0.0], [0.2, 0.8]]]])
    found = map_received(attention, layout)
    torch.testing.assert_close(found, torch.tensor([[[[0.8, 1.4, 0.6, 1.2]]]]) / 4)
    measured = measure_distance_and_entropy(attention, layout, (10, 40))
    log = np.log
    entropies = [-0.9 * log(0.9) - 0.1 * log(0.1), log(2), 0, -0.2 * log(0.2) - 0.8 * log(0.8)]
    distances = [0.1 * 10, 0.5 * 10, 0, 0.2 * 30]  # tokens 3 and 0 lie 30 pixels apart
    np.testing.assert_allclose(measured, [[[np.mean(distances), np.mean(entropies)]]], rtol=1e-5)


def test_prefix_tokens_and_fillings_are_left_out_of_distance_and_entropy():
    layout = Layout((2, 1), torch.tensor([[-1, 0, 1]]))
    attention = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.25, 0.25], [0.8, 0.2, 0.0]])[None, None]
    found = measure_distance_and_entropy(attention, layout, (16, 8))
    # rows of the patches, prefix left out: (0.5, 0.5) and (1, 0); patches are 8 pixels apart
    np.testing.assert_allclose(found, [[[(0.5 * 8 + 8) / 2, np.log(2) / 2]]], rtol=1e-5)


def test_layouts_of_a_vit_and_of_a_swin(swin):
    vit = build_model("vit_tiny_patch16_224", ["a", "b"], **TIMM, reg_tokens=2)
    layout, *others = list_layouts(vit.anatomy)
    assert (
        layout.grid == (2, 3)
        and layout.places.tolist() == [[-1, -1, -1, 0, 1, 2, 3, 4, 5]]
        and len(others) == 2
    )
    assert [one.grid for one in list_layouts(swin.anatomy)] == [(16, 16)] * 2 + [(8, 8)] * 2

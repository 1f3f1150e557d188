"""Attributions computed by Captum, to pixels and to patches, against linear models, where they are
known, and against models whose patches act together.
"""

import dataclasses
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, KernelShap, Occlusion
from torch import nn

from tests.families import build_family
from tests.toys import linear_model
from vitlab.explain import completeness_table, explain, perturbation
from vitlab.explain.gradients import CUTS
from vitlab.explain.removal import BASELINES, coarsen_grid, make_baseline, number_cells
from vitlab.schema import Anatomy

SIZE = 12
GRID = (2, 3)


@pytest.fixture
def linear():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, 3 * SIZE**2, generator=generator)
    return linear_model(weight, torch.zeros(3), ("a", "b", "c"), SIZE)


def make_images(count=2):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))


def pixel_worths(model, images, target, baseline):
    """Weight of a linear model times the difference between image and baseline: (B, h, w)."""
    blank = make_baseline(baseline, images, model.transform)
    weight = model.module.weight[target].detach().reshape(3, SIZE, SIZE)
    return (weight * (images - blank)).sum(dim=1)


def worths(model, images, target, baseline, grid):
    """The same, summed over each patch: (B, n)."""
    pixels = pixel_worths(model, images, target, baseline)
    cells = number_cells(grid, (SIZE, SIZE))
    patches = [pixels[:, cells == cell].sum(dim=1) for cell in range(grid[0] * grid[1])]
    return torch.stack(patches, dim=1)


def patch_values(found, grid, how="mean"):
    """Each patch's value (its sum with how="sum"), which must be the same at all its pixels: (B,
    n).
    """
    cells = number_cells(grid, (SIZE, SIZE)).numpy()
    groups = [found.values[:, cells == cell] for cell in range(grid[0] * grid[1])]
    assert all((group == group[:, :1]).all() for group in groups)
    return np.stack([getattr(group, how)(axis=1) for group in groups], axis=1)


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_linear_model(linear, baseline):
    images = make_images()
    saliency = explain(linear, images, "saliency", "c").values
    weight = linear.module.weight[2].detach().reshape(3, SIZE, SIZE)
    np.testing.assert_allclose(saliency, weight.abs().amax(dim=0).expand(2, -1, -1), atol=1e-6)
    found = explain(linear, images, "integrated_gradients", "c", baseline=baseline)
    np.testing.assert_allclose(found.values, pixel_worths(linear, images, 2, baseline), atol=1e-4)
    expected = worths(linear, images, 2, baseline, GRID)
    options = {"grid": GRID, "baseline": baseline}
    covered = explain(linear, images, "occlusion", "c", window=1, **options)
    np.testing.assert_allclose(patch_values(covered, GRID), expected, atol=1e-3)
    shapley = explain(linear, images, "kernel_shap", "c", **options)
    np.testing.assert_allclose(patch_values(shapley, GRID, "sum"), expected, atol=0.02)


@pytest.mark.parametrize("name", ["vit_scratch", "test_resnet", "test_efficientnet"])
def test_integrated_gradients_are_those_of_captum_and_add_up(name):
    """Completeness (arXiv 1703.01365, proposition 1), where logits are steep."""
    model = build_family(name)
    with torch.no_grad():
        for part in model.module.modules():
            if isinstance(part, nn.Linear):
                part.weight.mul_(5)
    images = torch.randn(2, 3, *model.transform.size)
    maps = {
        steps: explain(model, images, "integrated_gradients", ["b", "a"], steps=steps)
        for steps in (1, 16)
    }
    method = IntegratedGradients(model.module)
    expected = sum(
        method.attribute(images * far, images * near, [1, 0], n_steps=16)
        for near, far in pairwise(CUTS)
    ).sum(dim=1)
    scale = max(1, expected.abs().max().item())
    np.testing.assert_allclose(maps[16].values, expected.detach(), atol=1e-5 * scale)
    with torch.no_grad():
        difference = model.module(images) - model.module(torch.zeros_like(images))
    difference = difference[[0, 1], [1, 0]].numpy()
    coarse, fine = (completeness_table(model, images, [maps[steps]]).iloc[0] for steps in (1, 16))
    assert fine["difference"] == pytest.approx(np.abs(difference).mean(), rel=1e-4)
    totals = maps[16].values.sum(axis=(1, 2))
    assert fine["total"] == pytest.approx(np.abs(totals).mean(), rel=1e-4)
    assert fine["delta"] == pytest.approx(np.abs(totals - difference).mean(), abs=1e-4 * scale)
    assert fine["delta"] < min(coarse["delta"] + 1e-6, 0.02 * fine["difference"])
    assert completeness_table(model, images, [explain(model, images, "saliency")]).empty


class Leap(nn.Module):
    """A logit that rises to its full height with the first trace of contrast, as those of real
    networks do.
    """

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        height = self.scale * torch.sigmoid(300 * (images.mean(dim=(1, 2, 3)) - 0.04))
        return torch.stack([height, -height, 0 * height], dim=1)


def test_a_leap_close_to_the_blank_image_is_not_stepped_over(linear):
    images = torch.rand(2, 3, SIZE, SIZE) + 0.5
    leaping = dataclasses.replace(linear, module=Leap())
    found = explain(leaping, images, "integrated_gradients", "a")
    np.testing.assert_allclose(found.values.sum(axis=(1, 2)), 1, atol=0.05)
    # as many points, evenly spread
    plain = IntegratedGradients(leaping.module).attribute(images, 0.0, target=0, n_steps=32)
    assert (plain.sum(dim=(1, 2, 3)) - 1).abs().min() > 0.1


def test_windows_that_overlap(linear):
    """A patch has the mean of the windows that cover it; each window has the sum of its patches."""
    images = make_images()
    single = worths(linear, images, 0, "mean", GRID)
    options = {"grid": GRID, "baseline": "mean"}
    found = explain(linear, images, "occlusion", "a", window=2, **options)
    left, right = (single[:, list(cells)].sum(dim=1) for cells in ((0, 1, 3, 4), (1, 2, 4, 5)))
    expected = torch.stack([left, (left + right) / 2, right] * 2, dim=1)
    np.testing.assert_allclose(patch_values(found, GRID), expected, atol=1e-3)
    wide = explain(linear, images, "occlusion", "a", window=(1, 9), **options)
    rows = [single[:, :3].sum(dim=1)] * 3 + [single[:, 3:].sum(dim=1)] * 3
    np.testing.assert_allclose(patch_values(wide, GRID), torch.stack(rows, dim=1), atol=1e-3)


class Both(nn.Module):
    """A logit that is the product of the brightness of the left and the right half, plus that of
    the upper half.
    """

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        left, right = (half.mean(dim=(1, 2, 3)) for half in images.tensor_split(2, dim=3))
        height = self.scale * left * right + images[..., : SIZE // 2, :].mean(dim=(1, 2, 3))
        return torch.stack([height, -height, 0 * height], dim=1)


@pytest.fixture
def both(linear):
    return dataclasses.replace(linear, module=Both())


def test_kernel_shap_comes_to_the_shapley_values(both):
    """Against the mean over all orders of adding the patches, all 24 of them."""
    images, grid = make_images() + 2, (2, 2)
    cells = number_cells(grid, (SIZE, SIZE))
    expected = torch.zeros(2, 4)
    with torch.no_grad():
        orders = list(permutations(range(4)))
        for order in orders:
            shown, before = torch.zeros_like(images), both.module(torch.zeros_like(images))[:, 0]
            for cell in order:
                shown = torch.where(cells == cell, images, shown)
                after = both.module(shown)[:, 0]
                expected[:, cell] += (after - before) / len(orders)
                before = after
    options = {"grid": grid, "baseline": "mean"}
    for samples, tolerance in ((60, 0.25), (1500, 0.05)):
        found = explain(both, images, "kernel_shap", "a", samples=samples, **options)
        values = patch_values(found, grid, "sum")
        np.testing.assert_allclose(values, expected, atol=tolerance * expected.abs().max())
    # the two empty sets weigh so much that the sum is right whatever the samples
    own = explain(both, images, "kernel_shap", "a", grid=grid, samples=60)
    assert completeness_table(both, images, [own])["delta"].max() < 1e-3


def test_the_same_as_captum_on_pixels(both):
    """Captum's classes, given the images themselves and a feature mask, instead of patches."""
    images, cells = make_images(), number_cells(GRID, (SIZE, SIZE))
    options = {"grid": GRID, "baseline": "mean"}
    window = {"sliding_window_shapes": (3, 12, 8), "strides": (3, 6, 4)}
    expected = Occlusion(both.module).attribute(images, target=0, baselines=0.0, **window)[:, 0]
    found = explain(both, images, "occlusion", "a", window=2, **options).values
    np.testing.assert_allclose(found, expected.detach(), atol=1e-6)
    expected = KernelShap(both.module).attribute(
        images[:1], 0.0, 0, feature_mask=cells[None, None], n_samples=500
    )[0, 0]
    found = explain(both, images[:1], "kernel_shap", "a", samples=500, **options).values[0]
    scale = expected.abs().max()
    np.testing.assert_allclose(found * SIZE**2 / 6, expected, atol=0.1 * scale)


def make_patchwork():
    """An image of four flat squares of different grey, whose edges superpixels follow."""
    shades = torch.tensor([[-1.5, 0.5], [1.5, -0.5]])
    squares = shades.repeat_interleave(SIZE // 2, 0).repeat_interleave(SIZE // 2, 1)
    return squares.expand(1, 3, SIZE, SIZE).clone()


def test_lime_of_a_linear_model(linear):
    """Ridge regression shrinks the worths of the segments a little."""
    images = make_patchwork()
    expected = worths(linear, images, 1, "mean", (2, 2))
    options = {"segments": 4, "samples": 400, "compactness": 0.1, "baseline": "mean"}
    found = explain(linear, images, "lime", "b", **options)
    values = patch_values(found, (2, 2))
    np.testing.assert_allclose(values, expected, atol=0.05 * expected.abs().max())
    assert len(np.unique(found.values)) == 4
    with pytest.raises(ValueError, match=r"single superpixel in an image; a compactness above 10"):
        explain(linear, make_images(1), "lime", "b", segments=9)  # noise


@pytest.mark.parametrize("method", ["kernel_shap", "lime"])
def test_draws_come_from_the_seed(both, method):
    images = make_images(1)
    options = {"grid": GRID} if method == "kernel_shap" else {"segments": 6, "compactness": 100.0}
    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    first, again, other = (
        explain(both, images, method, "a", seed=seed, samples=20, **options).values
        for seed in (1, 1, 2)
    )
    assert torch.rand(1).item() == expected
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_the_default_grid(linear):
    cnn = dataclasses.replace(linear, anatomy=Anatomy("cnn", (), (), 0, (1, 1), ("stage",)))
    # 12x12 patches, merged to 6x6
    assert len(np.unique(explain(cnn, make_images(1), "occlusion", window=1).values)) == 36
    # the tokens of a tiny ViT
    assert len(np.unique(explain(linear, make_images(1), "occlusion", window=1).values)) == 16
    grids = [coarsen_grid(grid) for grid in ((14, 14), (4, 6), (13, 30))]
    assert grids == [(7, 7), (4, 6), (4, 8)]


def test_the_memory_is_bounded(linear, monkeypatch):
    monkeypatch.setattr(perturbation, "BATCH", 3)
    sizes = []
    linear.module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for method in ("occlusion", "kernel_shap"):
        explain(linear, make_images(), method, "a")
        assert max(sizes) == 3


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("integrated_gradients", {"steps": 2.5}, "steps must be a whole number"),
        ("integrated_gradients", {"baseline": "white"}, "unknown baseline 'white'.*mean, black"),
        ("occlusion", {"grid": (20, 2)}, "a grid of 20x2 cells does not fit images of 12x12"),
        ("occlusion", {"grid": (2, 2, 2)}, r"grid must be one number or \(rows, columns\)"),
        ("occlusion", {"window": 0}, "window must be a whole number of at least 1, not 0"),
        ("kernel_shap", {"grid": (1, 1)}, "at least two"),
        ("kernel_shap", {"grid": (4, 5), "samples": 10}, "10 samples are too few for 20 patches"),
    ],
)
def test_options_that_make_no_sense(linear, method, options, message):
    with pytest.raises(ValueError, match=message):
        explain(linear, make_images(1), method, **options)


@pytest.mark.parametrize(
    "method", ["saliency", "integrated_gradients", "occlusion", "kernel_shap", "lime"]
)
def test_an_untrained_classifier_of_zeros_is_an_error(linear, method):
    nn.init.zeros_(linear.module.weight)
    with pytest.raises(ValueError, match=r"no target logit depends on the (patch|pixel|superp)"):
        explain(linear, make_patchwork(), method)
    assert not explain(
        linear, torch.zeros(1, 3, SIZE, SIZE), "integrated_gradients"
    ).values.any(), "a blank image owes nothing to any pixel"

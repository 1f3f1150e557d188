"""What taking cells away says of a linear model, where each cell's worth is known, and of models
where cells act together.
"""

import dataclasses
from itertools import permutations

import numpy as np
import pytest
import torch
from captum.attr import KernelShap, Occlusion
from torch import nn

from tests.toys import linear_model
from vitlab.explain import convergence_delta, explain
from vitlab.explain.grid import BASELINES, coarsen_grid, make_baseline, number_cells
from vitlab.schema import Anatomy

SIZE = 12
GRID = (2, 3)


@pytest.fixture
def linear():
    generator = torch.Generator().manual_seed(3)
    return linear_model(
        torch.randn(3, 3 * SIZE**2, generator=generator), torch.zeros(3), ("a", "b", "c"), SIZE
    )


def make_images(count=2):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))


def worths(model, images, target, baseline, grid):
    """Weight times what the image has and the baseline has not, summed over each cell of a linear
    model: (B, n).
    """
    blank = make_baseline(baseline, images, model.transform)
    pixels = model.module.weight[target].detach().reshape(3, SIZE, SIZE) * (images - blank)
    cells = number_cells(grid, (SIZE, SIZE))
    return torch.stack(
        [pixels.sum(dim=1)[:, cells == cell].sum(dim=1) for cell in range(grid[0] * grid[1])], dim=1
    )


def cell_values(found, grid, how="mean"):
    """Each cell's value (its sum with how="sum"), which must be the same at all its pixels: (B,
    n).
    """
    cells = number_cells(grid, (SIZE, SIZE)).numpy()
    groups = [found.values[:, cells == cell] for cell in range(grid[0] * grid[1])]
    assert all((group == group[:, :1]).all() for group in groups)
    return np.stack([getattr(group, how)(axis=1) for group in groups], axis=1)


@pytest.mark.parametrize("baseline", BASELINES)
def test_cells_of_a_linear_model(linear, baseline):
    images = make_images()
    expected = worths(linear, images, 2, baseline, GRID)
    options = {"grid": GRID, "baseline": baseline}
    covered = explain(linear, images, "occlusion", "c", window=1, **options)
    np.testing.assert_allclose(cell_values(covered, GRID), expected, atol=1e-3)
    shapley = explain(linear, images, "kernel_shap", "c", **options)
    np.testing.assert_allclose(cell_values(shapley, GRID, "sum"), expected, atol=0.02)
    assert covered.signed and shapley.signed


def test_windows_that_overlap(linear):
    """A cell has the mean of the windows that cover it; each window has the sum of its cells."""
    images = make_images()
    single = worths(linear, images, 0, "mean", GRID)
    found = cell_values(
        explain(linear, images, "occlusion", "a", grid=GRID, baseline="mean", window=2), GRID
    )
    left, right = (single[:, list(cells)].sum(dim=1) for cells in ((0, 1, 3, 4), (1, 2, 4, 5)))
    np.testing.assert_allclose(
        found, torch.stack([left, (left + right) / 2, right] * 2, dim=1), atol=1e-3
    )
    wide = cell_values(
        explain(
            linear,
            images,
            "occlusion",
            "a",
            grid=GRID,
            baseline="mean",
            window=(1, 9),
        ),
        GRID,
    )
    rows = [single[:, :3].sum(dim=1)] * 3 + [single[:, 3:].sum(dim=1)] * 3
    np.testing.assert_allclose(wide, torch.stack(rows, dim=1), atol=1e-3)


class Both(nn.Module):
    """A logit that is the product of the brightness of the left and the right half, plus that of
    the upper half.
    """

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        left, right = (
            images[..., : SIZE // 2].mean(dim=(1, 2, 3)),
            images[..., SIZE // 2 :].mean(dim=(1, 2, 3)),
        )
        height = self.scale * left * right + images[..., : SIZE // 2, :].mean(dim=(1, 2, 3))
        return torch.stack([height, -height, 0 * height], dim=1)


def test_kernel_shap_comes_to_the_shapley_values(linear):
    """Against the mean over all orders of adding the cells, all 24 of them, for cells that act
    together.
    """
    both, images, grid = dataclasses.replace(linear, module=Both()), make_images() + 2, (2, 2)
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
    found = explain(both, images, "kernel_shap", "a", grid=grid, baseline="mean", samples=60)
    np.testing.assert_allclose(
        cell_values(found, grid, "sum"), expected, atol=0.25 * expected.abs().max()
    )
    many = explain(both, images, "kernel_shap", "a", grid=grid, baseline="mean", samples=1500)
    np.testing.assert_allclose(
        cell_values(many, grid, "sum"), expected, atol=0.05 * expected.abs().max()
    )
    # the two empty sets weigh so much that the sum is right whatever the samples
    for one in (found, many):
        np.testing.assert_allclose(
            convergence_delta(both, images, one, baseline="mean")["delta"], 0, atol=1e-3
        )
    # against its own baseline, the blurred image
    own = explain(both, images, "kernel_shap", "a", grid=grid, samples=60)
    np.testing.assert_allclose(convergence_delta(both, images, own)["delta"], 0, atol=1e-3)


def test_the_same_as_captum_on_pixels(linear):
    """Captum's classes, given the images themselves and a feature mask, instead of cells."""
    images, cells = make_images(), number_cells(GRID, (SIZE, SIZE))
    both = dataclasses.replace(linear, module=Both())
    score = lambda batch: both.module(batch)[:, 0]  # noqa: E731
    window = {"sliding_window_shapes": (3, 12, 8), "strides": (3, 6, 4)}
    expected = Occlusion(score).attribute(images, baselines=0.0, **window)[:, 0]
    found = explain(both, images, "occlusion", "a", grid=GRID, baseline="mean", window=2).values
    np.testing.assert_allclose(found, expected.detach(), atol=1e-6)
    expected = KernelShap(score).attribute(
        images[:1], 0.0, feature_mask=cells[None, None], n_samples=500
    )[0, 0]
    found = (
        explain(
            both, images[:1], "kernel_shap", "a", grid=GRID, samples=500, baseline="mean"
        ).values[0]
        * SIZE**2
        / 6
    )
    np.testing.assert_allclose(found, expected, atol=0.1 * expected.abs().max())


def make_patchwork():
    """Images of four flat squares of different grey, whose edges superpixels follow."""
    shades = torch.tensor([[-1.5, 0.5], [1.5, -0.5]])
    return (
        shades.repeat_interleave(SIZE // 2, 0)
        .repeat_interleave(SIZE // 2, 1)
        .expand(1, 3, SIZE, SIZE)
        .clone()
    )


def test_lime_of_a_linear_model(linear):
    """Ridge regression shrinks the worths of the segments a little."""
    images = make_patchwork()
    expected = worths(linear, images, 1, "mean", (2, 2))
    found = explain(
        linear, images, "lime", "b", segments=4, samples=400, compactness=0.1, baseline="mean"
    )
    np.testing.assert_allclose(
        cell_values(found, (2, 2)), expected, atol=0.05 * expected.abs().max()
    )
    assert len(np.unique(found.values)) == 4 and found.signed


def test_segments_follow_the_image(linear):
    # a ramp from left to right, cut into upright strips
    columns = torch.linspace(-2, 2, SIZE).expand(1, 3, SIZE, SIZE)
    found = explain(linear, columns, "lime", "b", segments=4, samples=40, compactness=0.01).values[
        0
    ]
    assert (found == found[:1]).all() and 2 <= len(np.unique(found)) <= 6
    with pytest.raises(
        ValueError,
        match=r"SLIC cuts image 0 of the batch into a single superpixel; a compactness above 10.0",
    ):
        explain(linear, make_images(1), "lime", "b", segments=9)  # noise
    flat = explain(
        linear,
        torch.full((1, 3, SIZE, SIZE), 0.7),
        "lime",
        "b",
        segments=4,
        samples=40,
        baseline="mean",
    ).values[0]
    assert len(np.unique(flat)) == 4


@pytest.mark.parametrize("method", ["kernel_shap", "lime"])
def test_draws_come_from_the_seed(linear, method):
    images = make_images(1)
    options = {"grid": GRID} if method == "kernel_shap" else {"segments": 6, "compactness": 100.0}
    both = dataclasses.replace(linear, module=Both())
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


def test_cells_that_the_model_does_not_choose(linear):
    cnn = dataclasses.replace(linear, anatomy=Anatomy("cnn", (), (), 0, (1, 1), ("stage",)))
    # 12x12 cells, merged to 6x6
    assert len(np.unique(explain(cnn, make_images(1), "occlusion", window=1).values)) == 36
    # the tokens of a tiny ViT
    assert len(np.unique(explain(linear, make_images(1), "occlusion", window=1).values)) == 16
    assert (
        coarsen_grid((14, 14)) == (7, 7)
        and coarsen_grid((4, 6)) == (4, 6)
        and coarsen_grid((13, 30)) == (4, 8)
    )


def test_the_memory_is_bounded(linear):
    sizes = []
    handle = linear.module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for method in ("occlusion", "kernel_shap", "lime"):
        options = {"compactness": 100.0} if method == "lime" else {}
        whole = explain(linear, make_images(), method, "a", **options).values
        sizes.clear()
        found = explain(linear, make_images(), method, "a", internal_batch_size=3, **options).values
        assert max(sizes) == 3
        np.testing.assert_allclose(found, whole, atol=1e-3 * np.abs(whole).max())
    handle.remove()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("occlusion", {"grid": (20, 2)}, "a grid of 20x2 cells does not fit images of 12x12"),
        (
            "occlusion",
            {"grid": (2, 2, 2)},
            r"grid must be one number or \(rows, columns\), not \(2, 2, 2\)",
        ),
        ("occlusion", {"window": 0}, "window must be a whole number of at least 1, not 0"),
        ("occlusion", {"baseline": "noise"}, "unknown baseline 'noise'"),
        ("occlusion", {"internal_batch_size": 0}, "internal_batch_size must be"),
        ("kernel_shap", {"grid": (1, 1)}, "needs a grid of at least 2 cells"),
        (
            "kernel_shap",
            {"grid": (4, 5), "samples": 10},
            "10 samples cannot tell 20 cells apart; give at least 22",
        ),
        ("lime", {"samples": 0}, "samples must be"),
        ("lime", {"segments": 2.5}, "segments must be"),
    ],
)
def test_options_that_make_no_sense(linear, method, options, message):
    with pytest.raises(ValueError, match=message):
        explain(linear, make_images(1), method, **options)


@pytest.mark.parametrize("method", ["occlusion", "kernel_shap", "lime"])
def test_an_untrained_classifier_of_zeros_is_an_error(linear, method):
    nn.init.zeros_(linear.module.weight)
    with pytest.raises(
        ValueError,
        match=r"no target logit reacts to the (cells|superpixels).*train the classifier first",
    ):
        explain(linear, make_patchwork(), method)

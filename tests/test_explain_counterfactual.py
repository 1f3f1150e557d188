"""Counterfactuals against every set of cells of small models, and what they say when there are
none.
"""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from tests.toys import linear_model
from vitlab.explain import find_counterfactual
from vitlab.explain.removal import make_baseline, number_cells

SIZE, GRID, CLASSES = 6, (2, 3), ("a", "b", "c")


def make_linear(seed=0):
    generator = torch.Generator().manual_seed(100 + seed)
    weight, bias = (
        torch.randn(3, 3 * SIZE**2, generator=generator),
        torch.randn(3, generator=generator),
    )
    return linear_model(weight, bias, CLASSES, SIZE)


def make_images(count=6, seed=4):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def decide(model, images):
    with torch.no_grad():
        return model.module(images).argmax(dim=1)


def change(image, other, removed):
    cells = number_cells(GRID, (SIZE, SIZE))
    return torch.where(torch.isin(cells, torch.tensor(sorted(removed))), other, image)


def list_changing_sets(model, image, other):
    """Every set of cells that changes the decision, smallest first."""
    sets = [set(chosen) for count in range(1, 7) for chosen in combinations(range(6), count)]
    before = decide(model, image[None])
    return [
        chosen for chosen in sets if decide(model, change(image, other, chosen)[None]) != before
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("baseline", ["mean", "black"])
def test_against_all_sets_of_cells(seed, baseline):
    model, images = make_linear(seed), make_images(seed=seed)
    before = decide(model, images)
    found = find_counterfactual(
        model, images, list("uvwxyz"), grid=GRID, baseline=baseline, max_share=1
    )
    blank = make_baseline(baseline, images, model.transform)
    sizes = []
    for i, removed in enumerate(found.removed.reshape(6, -1)):
        sets = list_changing_sets(model, images[i], blank[i])
        chosen = set(removed.nonzero()[0].tolist())
        assert found.found[i] == bool(sets)
        if sets:
            assert chosen in sets and not any(
                smaller < chosen and len(smaller) == len(chosen) - 1 for smaller in sets
            )
            sizes.append((len(chosen), len(sets[0])))
        changed = change(images[i], blank[i], chosen)
        np.testing.assert_allclose(found.images[i], changed)
        assert (found.before[i], found.after[i]) == (
            CLASSES[before[i]],
            CLASSES[decide(model, changed[None])[0]],
        )
    assert sizes and all(ours <= least + 1 for ours, least in sizes)
    assert np.mean([ours == least for ours, least in sizes]) >= 0.6


def test_the_smallest_set_of_two_classes_that_are_linear():
    """With two classes the cells add up, and the greedy way is the best one."""
    for seed in range(5):
        model = make_linear(seed)
        model.module.weight.data[2] = 0
        model.module.bias.data[2] = -1e3
        images = make_images(seed=seed)
        blank = torch.zeros_like(images)
        found = find_counterfactual(model, images, grid=GRID, baseline="mean", max_share=1)
        for i in range(6):
            sets = list_changing_sets(model, images[i], blank[i])
            assert found.removed[i].sum() == (len(sets[0]) if sets else 0)


class Either(nn.Module):
    """Class b where any cell of the upper row is bright, else a."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        # (B, 3) cells of the upper row
        brightness = images[:, :, : SIZE // 2].mean(dim=(1, 2)).unflatten(1, (3, 2)).mean(dim=2)
        height = self.scale * (brightness.amax(dim=1) - 0.5)
        return torch.stack([0 * height, height, 0 * height - 9], dim=1)


def test_cells_that_suffice_alone_must_all_go():
    """What ablation of single cells does not see: two cells of three are bright, and either would
    do.
    """
    model = dataclasses.replace(make_linear(), module=Either())
    images = torch.zeros(1, 3, SIZE, SIZE)
    images[..., :3, :2] = images[..., :3, 4:] = 1
    images[..., 3:, :2] = 5
    found = find_counterfactual(model, images, grid=GRID, baseline="mean")
    assert found.removed[0].tolist() == [[True, False, True], [False, False, False]]
    assert (found.before, found.after, found.found) == (("b",), ("a",), (True,))
    assert found.describe().endswith("it takes 33% to 33% of the patches.")
    too_few = find_counterfactual(model, images, grid=GRID, baseline="mean", max_share=1 / 6)
    assert too_few.found == (False,) and not too_few.removed.any() and too_few.after == ("b",)
    np.testing.assert_array_equal(too_few.images, images)
    assert too_few.describe().startswith("For 0 of 1 images")


def test_the_model_and_the_images_are_left_as_they_were():
    model, images = make_linear(), make_images(3)
    kept, module = images.clone(), model.module.train()
    find_counterfactual(model, images, grid=GRID)
    assert (
        torch.equal(images, kept)
        and module.training
        and module.weight.requires_grad
        and not module._forward_hooks
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_share": 0}, "max_share must be above 0"),
        ({"grid": (7, 2)}, "a grid of 7x2 cells does not fit"),
        ({"baseline": "white"}, "unknown baseline 'white'"),
        ({"sample_ids": ["x"]}, "1 sample_ids for 2 images"),
        ({"images": torch.full((2, 3, SIZE, SIZE), torch.nan)}, "the image of sample 0 holds NaN"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        find_counterfactual(make_linear(), **{"images": make_images(2), **options})

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
from vitlab.explain import explain, find_counterfactual
from vitlab.explain.baselines import make_baseline
from vitlab.explain.grid import number_cells
from vitlab.schema import AttributionMap

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
        found = find_counterfactual(
            model, images, grid=GRID, baseline="mean", max_share=1, candidates=None
        )
        for i in range(6):
            sets = list_changing_sets(model, images[i], blank[i])
            assert found.table()["cells"][i] == (len(sets[0]) if sets else 0)


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
    table = found.table()
    assert list(table.columns) == ["sample_id", "before", "after", "found", "cells", "share"]
    assert table.iloc[0].tolist() == ["0", "b", "a", True, 2, 2 / 6]
    too_few = find_counterfactual(model, images, grid=GRID, baseline="mean", max_share=1 / 6)
    assert too_few.found == (False,) and not too_few.removed.any() and too_few.after == ("b",)
    np.testing.assert_array_equal(too_few.images, images)


def test_a_ranking_is_followed_and_what_it_brings_in_vain_is_put_back():
    model = dataclasses.replace(make_linear(), module=Either())
    images = torch.zeros(1, 3, SIZE, SIZE)
    images[..., :3, :2] = images[..., :3, 4:] = 1
    cells = number_cells(GRID, (SIZE, SIZE))
    for ranking, enough in (
        ([0, 3, 4, 2, 1, 5], True),
        ([2, 0, 1, 3, 4, 5], True),
        ([3, 4, 5, 1, 0, 2], False),
    ):
        values = torch.zeros(6)
        values[ranking] = torch.arange(6, 0, -1.0)
        order = AttributionMap(values[cells][None].numpy(), "own", ("b",), ("0",), True)
        found = find_counterfactual(
            model, images, grid=GRID, baseline="mean", order=order, max_share=5 / 6
        )
        assert found.found == (enough,)
        assert found.removed[0].reshape(-1).nonzero()[0].tolist() == ([0, 2] if enough else [])


def test_a_ranking_costs_fewer_passes():
    model, images = make_linear(1), make_images(4)
    sizes = []
    model.module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    order = explain(model, images, "feature_ablation", grid=(6, 6))
    options = {"grid": (6, 6), "max_share": 1, "baseline": "mean"}
    passes = []
    for further in ({"order": order}, {"candidates": 4}, {"candidates": None}):
        sizes.clear()
        found = find_counterfactual(model, images, **options, **further)
        passes.append(sum(sizes))
        assert found.found[0]
    assert passes[0] < passes[1] < passes[2]
    sizes.clear()
    find_counterfactual(model, images, **options, batch_size=3)
    assert max(sizes) == 3


@pytest.mark.parametrize("nearest", ["pixels", "features"])
def test_cells_of_the_nearest_image_of_another_class(nearest):
    model, images, donors = make_linear(2), make_images(4), make_images(9, seed=8)
    names = [f"donor{i}" for i in range(9)]
    options = {"kind": "swap", "donors": donors, "nearest": nearest, "grid": GRID, "max_share": 1}
    found = find_counterfactual(model, images, donor_ids=names, **options)
    before, theirs = decide(model, images), decide(model, donors)
    for i in range(4):
        distances = (
            (donors - images[i])
            .square()
            .sum(dim=(1, 2, 3))
            .masked_fill(theirs == before[i], torch.inf)
        )
        donor = int(distances.argmin())  # a linear model's features are the pixels
        assert found.donors[i] == names[donor] == found.table()["donor"][i]
        chosen = set(found.removed[i].reshape(-1).nonzero()[0].tolist())
        assert found.found[i] and chosen in list_changing_sets(model, images[i], donors[donor])
        np.testing.assert_allclose(found.images[i], change(images[i], donors[donor], chosen))
    same = find_counterfactual(model, images[:1], **{**options, "donors": images[:1]})
    assert same.found == (False,) and same.donors == ("",) and not same.removed.any()


class Ring(nn.Module):
    """A classifier of one feature, the contrast, in which images near in pixels may be far
    apart.
    """

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0], [-1.0]])

    def forward(self, images):
        return self.head(images.std(dim=(1, 2, 3))[:, None] - 1)


def test_features_are_what_the_classifier_reads():
    model = dataclasses.replace(make_linear(), module=Ring(), classes=("a", "b"))
    noise = make_images(1)
    # of low contrast, the second as contrasty as an image can be
    donors = torch.cat([noise * 0.1, -noise * 0.9])
    image = noise * 1.1 / noise.std()
    donors = donors / noise.std()
    options = {"kind": "swap", "donors": donors, "grid": GRID}
    near, far = (
        find_counterfactual(model, image, nearest=space, **options).donors
        for space in ("features", "pixels")
    )
    assert (near, far) == (("1",), ("0",))


def test_the_model_and_the_images_are_left_as_they_were():
    model, images = make_linear(), make_images(3)
    kept, module = images.clone(), model.module.train()
    find_counterfactual(model, images, grid=GRID, kind="swap", donors=make_images(5, seed=9))
    assert (
        torch.equal(images, kept)
        and module.training
        and module.weight.requires_grad
        and not module._forward_hooks
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "delete"}, "unknown kind 'delete'.*remove, swap"),
        ({"nearest": "label"}, "unknown nearest 'label'.*features, pixels"),
        ({"kind": "swap"}, "kind='swap' takes cells from donors"),
        ({"donors": torch.zeros(2, 3, SIZE, SIZE)}, "kind='swap' takes cells from donors"),
        (
            {"kind": "swap", "donors": torch.zeros(2, 3, 4, 4)},
            r"donors must be images \(M, 3, 6, 6\).*not \(2, 3, 4, 4\)",
        ),
        (
            {"kind": "swap", "donors": torch.zeros(2, 3, SIZE, SIZE), "donor_ids": ["x"]},
            "1 donor_ids for 2 donors",
        ),
        ({"max_share": 0}, "max_share must be a share"),
        ({"candidates": 0}, "candidates must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"grid": (7, 2)}, "a grid of 7x2 cells does not fit"),
        ({"baseline": "white"}, "unknown baseline 'white'"),
        ({"sample_ids": ["x"]}, "1 sample_ids for 2 images"),
        (
            {"order": AttributionMap(np.zeros((2, 3, 3)), "m", ("a",) * 2, ("0", "1"), True)},
            r"order must be.*\(2, 6, 6\)",
        ),
        ({"images": torch.full((2, 3, SIZE, SIZE), torch.nan)}, "the image of sample 0 holds NaN"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        find_counterfactual(make_linear(), **{"images": make_images(2), **options})

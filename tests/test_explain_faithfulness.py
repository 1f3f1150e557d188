"""Cells worked out by hand; faithfulness on a model whose probability is a sum over pixels, where
every curve is known, and against Quantus and pytorch-grad-cam.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.toys import tiny_vit
from vitlab.explain import explain, faithfulness
from vitlab.explain.faithfulness import (
    compute_area,
    compute_fall,
    compute_road,
    compute_sensitivity,
    compute_sparseness,
    curve_table,
    impute,
)
from vitlab.explain.removal import (
    BASELINES,
    CellScorer,
    choose_grid,
    make_baseline,
    number_cells,
    pool_cells,
    replace_cells,
    spread_cells,
)
from vitlab.schema import Anatomy, AttributionMap, Transform

SIZE, GRID = 4, (2, 2)
# what each cell of two images adds to the probability of "b", in hundredths
CELLS = [[4.0, 3.0, 2.0, 1.0], [1.0, -2.0, 0.5, 3.0]]


class Additive(nn.Module):
    """The probability of class b is 0.5 plus a hundredth of the sum of the pixels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.01))

    def forward(self, images):
        share = 0.5 + self.scale * images.sum(dim=(1, 2, 3))
        return torch.stack([1 - share, share], dim=1).log()


def make_additive(cells=CELLS, grid=GRID, size=SIZE):
    """The additive model, and images whose cells add up to `cells`."""
    transform = Transform((size, size), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    model = replace(tiny_vit(), module=Additive(), classes=("a", "b"), transform=transform)
    values = torch.tensor(cells).unflatten(1, grid)
    pixels = values.repeat_interleave(size // grid[0], 1).repeat_interleave(size // grid[1], 2)
    images = (pixels * len(cells[0]) / (3 * size * size))[:, None].repeat(1, 3, 1, 1)
    return model, images


def make_map(values, method="exact", signed=True):
    ids = tuple(f"s{place}" for place in range(len(values)))
    return AttributionMap(np.asarray(values, np.float32), method, ("b",) * len(values), ids, signed)


def make_scorer(count=6):
    """A scorer of random images, the true map, and one with noise."""
    rng = np.random.default_rng(0)
    model, images = make_additive(rng.normal(size=(count, 16)).tolist(), (4, 4), 8)
    exact = make_map(images.sum(dim=1))
    noise = rng.normal(size=(count, 4, 4)).repeat(2, 1).repeat(2, 2) * exact.values.std()
    noisy = replace(exact, values=(exact.values + noise).astype(np.float32), method="noisy")
    return CellScorer(model, images, exact, grid=(4, 4)), exact, noisy


@pytest.fixture
def additive():
    model, images = make_additive()
    found = make_map(images.sum(dim=1))
    return CellScorer(model, images, found, grid=GRID), found


def read(curves, kind, sample_id):
    part = curves[(curves["kind"] == kind) & (curves["sample_id"] == sample_id)]
    return part["share"].tolist(), (part["score"].to_numpy() - 0.5) * 100


def test_cells_by_hand():
    assert number_cells((2, 2), (3, 4)).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    with pytest.raises(ValueError, match="a grid of 4x2 cells does not fit images of 3x4"):
        number_cells((4, 2), (3, 4))
    cells = number_cells((1, 2), (2, 4))
    values = torch.tensor([[[1.0, 3.0, 0.0, 8.0], [2.0, 2.0, 0.0, 0.0]]])
    assert pool_cells(values, cells).tolist() == [[2.0, 2.0]]
    assert spread_cells(torch.tensor([[5.0, 7.0]]), cells).tolist() == [[[5, 5, 7, 7]] * 2]
    images, removed = torch.ones(2, 3, 2, 4), torch.tensor([[True, False], [False, False]])
    found = replace_cells(images, torch.zeros_like(images), removed, cells)
    assert found[0, 1].tolist() == [[0, 0, 1, 1]] * 2 and torch.equal(found[1], images[1])


def test_a_grid_for_every_model():
    assert choose_grid(Anatomy("vit", ("b",), ("a",), 1, (3, 5), ()), (48, 80)) == (3, 5)
    assert choose_grid(Anatomy("cnn", (), (), 0, (7, 7), ("s",)), (224, 112)) == (14, 7)
    assert choose_grid(Anatomy("cnn", (), (), 0, (1, 1), ("s",)), (8, 8)) == (8, 8)


def test_baselines():
    transform = Transform((8, 8), (0.5, 0.4, 0.2), (0.25, 0.2, 0.1))
    images = torch.randn(2, 3, 40, 30)
    made = {kind: make_baseline(kind, images, transform) for kind in BASELINES}
    assert not made["mean"].any()
    torch.testing.assert_close(made["black"][:, :, 0, 0], torch.tensor([[-2.0, -2.0, -2.0]] * 2))
    assert made["blur"].shape == images.shape and made["blur"].std() < 0.3 * images.std()
    ones = torch.ones(1, 3, 5, 9)
    torch.testing.assert_close(make_baseline("blur", ones, transform), ones)


def test_curves_by_hand(additive):
    scorer, found = additive
    curves = curve_table(scorer, [found])
    share, score = read(curves, "deletion", "s0")
    assert share == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(score, [10, 6, 3, 1, 0], atol=1e-4)
    np.testing.assert_allclose(read(curves, "insertion", "s0")[1], [0, 4, 7, 9, 10], atol=1e-4)
    np.testing.assert_allclose(
        read(curves, "deletion", "s1")[1], [2.5, -0.5, -1.5, -2, 0], atol=1e-4
    )
    areas = [compute_area(scorer, [found], kind)[0, 0] for kind in ("deletion", "insertion")]
    expected = [0.5 + (5 + 6 + 3 + 1) / 400, 0.5 + (4 + 7 + 9 + 5) / 400]
    assert areas == pytest.approx(expected, abs=1e-6)
    for steps, shares in ((2, [0, 0.5, 1]), (3, [0, 0.25, 0.75, 1]), (99, [0, 0.25, 0.5, 0.75, 1])):
        assert read(curve_table(scorer, [found], steps=steps), "deletion", "s0")[0] == shares


def test_comprehensiveness_and_sufficiency_by_hand(additive):
    scorer, found = additive
    fall = compute_fall(scorer, [found], "deletion", shares=[0.25, 0.5]) * 100
    np.testing.assert_allclose(fall, [[(4 + 7) / 2, (3 + 4) / 2]], atol=1e-4)
    fall = compute_fall(scorer, [found], "insertion", shares=[0.25, 0.5]) * 100
    np.testing.assert_allclose(fall, [[(6 + 3) / 2, (-0.5 - 1.5) / 2]], atol=1e-4)
    worst = replace(found, values=-found.values, method="worst")
    fall = compute_fall(scorer, [worst], "deletion", shares=[0.25]) * 100
    np.testing.assert_allclose(fall, [[1, -2]], atol=1e-4)


def test_sensitivity_n_is_one_for_the_values_that_add_up():
    scorer, found, noisy = make_scorer(3)
    flat = replace(found, values=np.ones_like(found.values), method="flat")
    turned = replace(found, values=-found.values, method="turned")
    values = compute_sensitivity(scorer, [found, flat, turned, noisy], subsets=10)
    np.testing.assert_allclose(values[0], 1, atol=1e-6)
    np.testing.assert_allclose(values[2], -1, atol=1e-6)
    assert np.isnan(values[1]).all() and (np.abs(values[3]) < 0.99).all()


def test_a_blank_map_is_ordered_by_chance_alike_on_every_machine():
    model, images = make_additive(np.ones((2, 16)).tolist(), (4, 4), 8)
    blank = make_map(np.full((2, 8, 8), 0.1))
    # cells of 4 to 9 pixels, so their means are equal only to rounding
    scorer = CellScorer(model, images, blank, grid=(3, 3))
    order = scorer.order(blank)
    assert sorted(order[0]) == list(range(9)) and order[0].tolist() != list(range(9))
    assert order[0].tolist() != order[1].tolist()
    np.testing.assert_array_equal(order, scorer.order(replace(blank, values=blank.values * 3)))
    assert scorer.order(blank, seed=1).tolist() != order.tolist()
    alone = replace(blank, values=blank.values[1:], target=("b",), sample_ids=("s1",))
    np.testing.assert_array_equal(
        CellScorer(model, images[1:], alone, grid=(3, 3)).order(alone)[0], order[1]
    )


def test_nothing_is_computed_twice_and_the_model_is_left_as_it_was(additive):
    scorer, found = additive
    seen = []
    scorer.model.module.train().register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    twin = replace(found, method="twin")
    curve_table(scorer, [found, twin])
    # whole and empty once for each image, three more of each kind; nothing for the twin
    assert sum(seen) == 2 * (2 + 3 + 3)
    compute_fall(scorer, [found], "deletion", shares=[0.25, 0.5, 0.75])
    assert sum(seen) == 2 * (2 + 3 + 3) and scorer.model.module.training


def test_the_baseline_is_shown_instead():
    model, images = make_additive()
    found = make_map(images.sum(dim=1))
    empty = {}
    for kind in ("mean", "blur"):
        scorer = CellScorer(model, images, found, grid=GRID, baseline=kind)
        empty[kind] = scorer.score_removed(np.array([0]), np.ones((1, 4), bool))[0]
    assert empty["mean"] == pytest.approx(0.5)
    # a blur keeps the brightness, all that this model sees
    assert empty["blur"] == pytest.approx(0.6, abs=0.005)


def flip_with_quantus(scorer, order):
    """Quantus' curve (N, 3 n + 1) while the cells of lowest `order` are flipped: a third of a
    cell's values at a time.

    It flips values, not pixels, and only takes steps that divide the number of pixels: a cell of
    three channels is three steps."""
    quantus = pytest.importorskip("quantus")
    places = scorer.cells.numpy().reshape(1, 1, -1)
    values = -np.take_along_axis(order[:, None], places, axis=2).astype(float)
    options = {"perturb_baseline": 0.0, "normalise": False, "disable_warnings": True}
    metric = quantus.PixelFlipping(features_in_step=scorer.cells.numel() // scorer.count, **options)
    values = np.broadcast_to(values.reshape(-1, 1, *scorer.cells.shape), scorer.images.shape)
    module = scorer.model.module.eval()
    curves = metric(module, scorer.images.numpy(), scorer.targets, values, softmax=True)
    # it leaves out the whole image
    return np.concatenate([scorer.score_clean()[:, None], curves], axis=1)


@pytest.mark.parametrize("grid", [(8, 8), (4, 2)])
def test_curves_and_areas_are_those_of_quantus(grid):
    model = tiny_vit(size=16)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = explain(model, images, "integrated_gradients", steps=1)
    scorer = CellScorer(model, images, found, grid=grid, batch_size=7)
    curves = curve_table(scorer, [found], steps=scorer.count)
    order = scorer.order(found)
    peers = {
        "deletion": flip_with_quantus(scorer, order),
        # the lowest first, read from the end
        "insertion": flip_with_quantus(scorer, scorer.count - 1 - order)[:, ::-1],
    }
    for kind, peer in peers.items():
        ours = curves[curves["kind"] == kind]["score"].to_numpy().reshape(5, -1)
        assert ours.std(axis=1).min() > 1e-4  # the curves do move
        np.testing.assert_allclose(ours, peer[:, ::3], atol=1e-5)
        areas = np.trapezoid(peer, dx=1 / (peer.shape[1] - 1), axis=1)
        found_areas = compute_area(scorer, [found], kind, steps=scorer.count)[0]
        np.testing.assert_allclose(found_areas, areas, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, f: CellScorer(s.model, s.images[:1], f), r"maps \(2, 4, 4\) do not fit images"),
        (lambda s, f: curve_table(s, []), "no maps"),
        (lambda s, f: curve_table(s, [f, f]), "two maps are called 'exact'"),
        (lambda s, f: curve_table(s, [f], steps=0), "steps must be a whole number"),
        (
            lambda s, f: curve_table(s, [replace(f, sample_ids=("x", "y"))]),
            "maps of exact are not of the same images",
        ),
        (lambda s, f: curve_table(s, [replace(f, target=("a", "b"))]), "explain other classes"),
        (lambda s, f: compute_fall(s, [f], "deletion", shares=[1.0]), "between 0 and 1.*got 1.0"),
        (lambda s, f: compute_sensitivity(s, [f], subsets=2), "subsets must be at least 3"),
    ],
)
def test_arguments_that_do_not_fit_are_named(additive, make, message):
    with pytest.raises(ValueError, match=message):
        make(*additive)


def test_a_pixel_is_the_mean_of_its_neighbours_by_hand():
    image = np.arange(9, dtype=float).reshape(1, 3, 3)
    hole = np.zeros((3, 3), bool)
    hole[1, 1] = True
    changed = image.copy()
    changed[0, 1, 1] = 99
    np.testing.assert_allclose(impute(changed, hole), image)
    corner = np.zeros((3, 3), bool)
    corner[0, 0] = True  # neighbours 1 and 3 of weight 1/6, 4 of weight 1/12
    assert impute(image, corner)[0, 0, 0] == pytest.approx((1 / 6 + 3 / 6 + 4 / 12) / (5 / 12))
    np.testing.assert_array_equal(impute(image, np.zeros_like(hole)), image)


def test_scores_by_the_authors_imputation(monkeypatch):
    """On the full resolution: half of score without the lowest less score without the highest."""
    module = pytest.importorskip("pytorch_grad_cam.metrics.road")
    rng = np.random.default_rng(1)
    image, hole = rng.normal(size=(3, 10, 14)), rng.random((10, 14)) < 0.8
    authors = module.NoisyLinearImputer(noise=0)
    expected = authors(torch.tensor(image).float(), torch.tensor(~hole).float())
    np.testing.assert_allclose(impute(image, hole), expected, atol=1e-5)
    scorer, found, _ = make_scorer(2)
    expected = []
    for image, place in zip(scorer.images, scorer.order(found), strict=True):
        scores = []
        for removed in (place >= 16 - 6, place < 6):
            mask = spread_cells(torch.tensor(~removed)[None], scorer.cells)[0].float()
            filled = authors(image, mask)[None]
            scores.append(scorer.model.module(filled).softmax(dim=1)[0, 1].item())
        expected.append((scores[0] - scores[1]) / 2)
    monkeypatch.setattr(faithfulness, "NOISE", 0)
    turned = replace(found, values=-found.values, method="turned")
    values = compute_road(scorer, [found, turned], shares=[0.4])
    np.testing.assert_allclose(values, [expected, -np.array(expected)], atol=1e-5)


def test_sparseness_by_hand():
    cells = [[1.0, 1, 1, 1], [0, 0, 0, -5], [1, 2, 3, 4], [0, 0, 0, 0]]
    model, images = make_additive(cells)
    found = make_map(images.sum(dim=1))
    scorer = CellScorer(model, images, found, grid=GRID)
    larger = replace(found, values=found.values * -30, method="larger")
    expected = [0, 0.75, 0.25, np.nan]
    np.testing.assert_allclose(
        compute_sparseness(scorer, [found, larger]), [expected, expected], atol=1e-6
    )

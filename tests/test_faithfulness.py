"""Faithfulness on a linear model, where every curve is known by hand, and against Quantus' pixel
flipping.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.toys import linear_model, tiny_vit
from vitlab.explain import explain, faithfulness
from vitlab.explain.faithfulness import (
    area_table,
    comprehensiveness,
    compute_gini,
    curve_table,
    impute,
    road,
    sensitivity_n,
    sparseness,
    sufficiency,
)
from vitlab.explain.removal import CellScorer
from vitlab.schema import AttributionMap

SIZE, GRID = 4, (2, 2)
# what each cell of two images adds to the logit of "b"
CELLS = [[4.0, 3.0, 2.0, 1.0], [1.0, -2.0, 0.5, 3.0]]


def make_additive(cells=CELLS, grid=GRID, size=SIZE):
    """A linear model of weight 1 on every pixel for class "b" (nothing for "a"), and images whose
    cells add up to `cells`.
    """
    weight = torch.stack([torch.zeros(3 * size * size), torch.ones(3 * size * size)])
    model = linear_model(weight, torch.tensor([0.0, 0.25]), ("a", "b"), size)
    values = torch.tensor(cells).unflatten(1, grid)
    pixels = values.repeat_interleave(size // grid[0], 1).repeat_interleave(size // grid[1], 2)
    images = (pixels * len(cells[0]) / (3 * size * size))[:, None].repeat(1, 3, 1, 1)
    return model, images


def make_map(values, method="exact", signed=True):
    ids = tuple(f"s{place}" for place in range(len(values)))
    return AttributionMap(np.asarray(values, np.float32), method, ("b",) * len(values), ids, signed)


@pytest.fixture
def additive():
    model, images = make_additive()
    found = make_map(images.sum(dim=1))
    return CellScorer(model, images, found, grid=GRID, score="logit"), found


def read(curves, kind, sample_id):
    return curves[(curves["kind"] == kind) & (curves["sample_id"] == sample_id)]


def test_curves_by_hand(additive):
    scorer, found = additive
    curves = curve_table(scorer, [found])
    assert list(curves.columns) == ["method", "kind", "sample_id", "share", "score"]
    first = read(curves, "deletion", "s0")
    np.testing.assert_allclose(first["share"], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(first["score"] - 0.25, [10, 6, 3, 1, 0], atol=1e-5)
    np.testing.assert_allclose(
        read(curves, "insertion", "s0")["score"] - 0.25, [0, 4, 7, 9, 10], atol=1e-5
    )
    np.testing.assert_allclose(
        read(curves, "deletion", "s1")["score"] - 0.25, [2.5, -0.5, -1.5, -2, 0], atol=1e-5
    )
    table = area_table(curves)
    assert (
        table["metric"].tolist() == ["deletion"] * 2 + ["insertion"] * 2
        and table["sample_id"].tolist() == ["s0", "s1"] * 2
    )
    assert area_table(curves[::-1]).set_index(["metric", "sample_id"])[
        "value"
    ].to_dict() == pytest.approx(table.set_index(["metric", "sample_id"])["value"].to_dict())
    areas = table.set_index(["metric", "sample_id"])["value"]
    assert areas["deletion", "s0"] == pytest.approx((5 + 6 + 3 + 1) / 4 + 0.25, abs=1e-5)
    assert areas["insertion", "s0"] == pytest.approx((4 + 7 + 9 + 5) / 4 + 0.25, abs=1e-5)


def test_probabilities_and_differences_of_two_classes():
    model, images = make_additive()
    found = make_map(images.sum(dim=1))
    logits = np.array([10, 6, 3, 1, 0]) + 0.25
    for maps, score, expected in [
        (found, "probability", 1 / (1 + np.exp(-logits))),
        (replace(found, versus=("a", "a")), "logit", logits),
        (replace(found, target=("a", "a"), versus=("b", "b")), "logit", -logits),
        (
            replace(found, target=("a", "a"), versus=("b", "b")),
            "probability",
            1 / (1 + np.exp(logits)),
        ),
    ]:
        scorer = CellScorer(model, images, maps, grid=GRID, score=score)
        np.testing.assert_allclose(
            read(curve_table(scorer, [maps], ["deletion"]), "deletion", "s0")["score"],
            expected,
            atol=1e-5,
        )


def test_steps_are_at_most_the_cells(additive):
    scorer, found = additive
    assert read(curve_table(scorer, [found], steps=2), "deletion", "s0")["share"].tolist() == [
        0,
        0.5,
        1,
    ]
    assert read(curve_table(scorer, [found], steps=3), "deletion", "s0")["share"].tolist() == [
        0,
        0.25,
        0.75,
        1,
    ]
    assert len(read(curve_table(scorer, [found], steps=99), "deletion", "s0")) == 5


def test_comprehensiveness_and_sufficiency_by_hand(additive):
    scorer, found = additive
    by_image = comprehensiveness(scorer, [found], shares=[0.25, 0.5])
    assert by_image.columns.tolist() == ["method", "metric", "sample_id", "value"]
    np.testing.assert_allclose(by_image["value"], [(4 + 7) / 2, (3 + 4) / 2], atol=1e-5)
    np.testing.assert_allclose(
        sufficiency(scorer, [found], shares=[0.25, 0.5])["value"],
        [(6 + 3) / 2, (-0.5 - 1.5) / 2],
        atol=1e-5,
    )
    worst = replace(found, values=-found.values, method="worst")
    np.testing.assert_allclose(
        comprehensiveness(scorer, [worst], shares=[0.25])["value"], [1, -2], atol=1e-5
    )


def test_sensitivity_n_is_one_for_the_values_that_add_up():
    rng = np.random.default_rng(0)
    model, images = make_additive(rng.normal(size=(3, 16)).tolist(), (4, 4), 8)
    found = make_map(images.sum(dim=1))
    flat, turned = (
        replace(found, values=np.ones_like(found.values), method="flat"),
        replace(found, values=-found.values, method="turned"),
    )
    scorer = CellScorer(model, images, found, grid=(4, 4), score="logit")
    table = sensitivity_n(scorer, [found, flat, turned], subsets=10).set_index("method")["value"]
    np.testing.assert_allclose(table["exact"], 1, atol=1e-6)
    np.testing.assert_allclose(table["turned"], -1, atol=1e-6)
    assert table["flat"].isna().all()
    other = replace(
        found, values=rng.normal(size=found.values.shape).astype(np.float32), method="other"
    )
    assert (sensitivity_n(scorer, [other])["value"].abs() < 0.9).all()


def test_a_blank_map_is_ordered_by_chance_alike_on_every_machine():
    model, images = make_additive(np.ones((2, 16)).tolist(), (4, 4), 10 - 2)
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


def test_nothing_is_computed_twice(additive):
    scorer, found = additive
    seen = []
    handle = scorer.model.module.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    twin = replace(found, method="twin")
    curve_table(scorer, [found, twin])
    handle.remove()
    # whole and empty once an image, three more of each kind; nothing for the twin
    assert sum(seen) == 2 * (2 + 3 + 3)
    before = sum(seen)
    comprehensiveness(scorer, [found], shares=[0.25, 0.5, 0.75])
    assert sum(seen) == before


def test_the_baseline_is_what_is_seen_instead():
    model, images = make_additive()
    found = make_map(images.sum(dim=1))
    empty = {}
    for kind in ("mean", "black", "blur"):
        scorer = CellScorer(model, images, found, grid=GRID, score="logit", baseline=kind)
        empty[kind] = scorer.score_removed(np.array([0]), np.ones((1, 4), bool))[0]
    black = 16 * sum(
        -mean / std for mean, std in zip(model.transform.mean, model.transform.std, strict=True)
    )
    assert empty["mean"] == pytest.approx(0.25) and empty["black"] == pytest.approx(
        0.25 + black, abs=1e-4
    )
    # a blur keeps the brightness, all that this model sees
    assert empty["blur"] == pytest.approx(10.25, abs=0.5)


def flip_with_quantus(scorer, order):
    """Quantus' curve (N, 3 n + 1) while the cells of lowest `order` are flipped: a third of a
    cell's values at a time.

    It flips values, not pixels, and only takes steps that divide the number of pixels: a cell of
    three channels is three steps."""
    quantus = pytest.importorskip("quantus")
    values = -np.take_along_axis(
        order[:, None], scorer.cells.numpy().reshape(1, 1, -1), axis=2
    ).astype(float)
    options = {"perturb_baseline": 0.0, "normalise": False, "disable_warnings": True}
    metric = quantus.PixelFlipping(features_in_step=scorer.cells.numel() // scorer.count, **options)
    values = np.broadcast_to(values.reshape(-1, 1, *scorer.cells.shape), scorer.images.shape)
    curves = metric(
        scorer.model.module.eval(),
        scorer.images.numpy(),
        np.array(scorer.target),
        values,
        softmax=True,
    )
    # it leaves out the whole image
    return np.concatenate([scorer.score_clean()[:, None], curves], axis=1)


@pytest.mark.parametrize("grid", [(8, 8), (4, 2)])
def test_curves_and_areas_are_those_of_quantus(grid):
    model = tiny_vit(size=16)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = explain(model, images, "integrated_gradients", steps=2)
    scorer = CellScorer(model, images, found, grid=grid, batch_size=7)
    curves = curve_table(scorer, [found], steps=scorer.count)
    order = scorer.order(found)
    peers = {
        "deletion": flip_with_quantus(scorer, order),
        # the lowest first, read from the end
        "insertion": flip_with_quantus(scorer, scorer.count - 1 - order)[:, ::-1],
    }
    areas = area_table(curves).pivot(index="sample_id", columns="metric", values="value")
    for kind, peer in peers.items():
        ours = curves[curves["kind"] == kind]["score"].to_numpy().reshape(5, -1)
        assert ours.std(axis=1).min() > 1e-4  # the curves do move
        np.testing.assert_allclose(ours, peer[:, ::3], atol=1e-5)
        np.testing.assert_allclose(
            areas[kind], np.trapezoid(peer, dx=1 / (peer.shape[1] - 1), axis=1), atol=1e-3
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda s, f: CellScorer(s.model, s.images, f, score="odds"),
            "unknown score 'odds'.*probability, logit",
        ),
        (
            lambda s, f: CellScorer(s.model, s.images, f, baseline="white"),
            "unknown baseline 'white'",
        ),
        (
            lambda s, f: CellScorer(s.model, s.images, f, grid=(5, 2)),
            "a grid of 5x2 cells does not fit",
        ),
        (
            lambda s, f: CellScorer(s.model, s.images[:1], f),
            r"maps \(2, 4, 4\) do not fit images \(1, 3, 4, 4\)",
        ),
        (lambda s, f: curve_table(s, []), "no maps"),
        (lambda s, f: curve_table(s, [f, f]), "two maps are called 'exact'"),
        (lambda s, f: curve_table(s, [f], ["erasure"]), "unknown kind 'erasure'"),
        (lambda s, f: curve_table(s, [f], steps=0), "steps must be a whole number"),
        (
            lambda s, f: curve_table(s, [replace(f, sample_ids=("x", "y"))]),
            "maps of exact are not of the images",
        ),
        (lambda s, f: curve_table(s, [replace(f, target=("a", "b"))]), "explain other classes"),
        (
            lambda s, f: comprehensiveness(s, [f], shares=[0.1, 1.0]),
            "between 0 and 1, such as 0.1; got 1.0",
        ),
        (lambda s, f: sensitivity_n(s, [f], subsets=2), "subsets must be at least 3"),
        (lambda s, f: road(s, [f], shares=[1]), "between 0 and 1"),
        (lambda s, f: impute(np.zeros((3, 2, 2)), np.ones((2, 2), bool)), "every pixel is removed"),
    ],
)
def test_what_does_not_fit_is_named(additive, make, message):
    with pytest.raises(ValueError, match=message):
        make(*additive)


def test_the_model_is_left_as_it_was(additive):
    scorer, found = additive
    scorer.model.module.train()
    curve_table(scorer, [found])
    assert scorer.model.module.training and all(
        weight.requires_grad for weight in scorer.model.module.parameters()
    )


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


def test_a_smooth_image_comes_back():
    rows, columns = np.mgrid[:12, :12].astype(float)
    image = np.stack([2 * rows - columns, rows + 3])
    hole = np.zeros((12, 12), bool)
    hole[3:8, 4:9] = True
    np.testing.assert_allclose(impute(np.where(hole, 0, image), hole), image, atol=1e-9)
    np.testing.assert_array_equal(impute(image, np.zeros_like(hole)), image)


def test_impute_is_that_of_the_authors():
    module = pytest.importorskip("pytorch_grad_cam.metrics.road")
    rng = np.random.default_rng(0)
    image, hole = rng.normal(size=(3, 10, 14)), rng.random((10, 14)) < 0.8
    expected = module.NoisyLinearImputer(noise=0)(
        torch.tensor(image).float(), torch.tensor(~hole).float()
    )
    np.testing.assert_allclose(impute(image, hole), expected, atol=1e-5)


def test_scores_by_the_authors_imputation(monkeypatch):
    """On the full resolution: half of score without the lowest less score without the highest."""
    module = pytest.importorskip("pytorch_grad_cam.metrics.road")
    model, images = make_additive(np.random.default_rng(1).normal(size=(2, 16)).tolist(), (4, 4), 8)
    found = make_map(images.sum(dim=1))
    scorer = CellScorer(model, images, found, grid=(4, 4), score="logit")
    places = scorer.order(found)
    expected = []
    for image, place in zip(images, places, strict=True):
        scores = []
        for removed in (place >= 16 - 6, place < 6):
            mask = (
                torch.tensor(~removed)
                .reshape(4, 4)
                .repeat_interleave(2, 0)
                .repeat_interleave(2, 1)
                .float()
            )
            filled = module.NoisyLinearImputer(noise=0)(image, mask)
            scores.append(model.module(filled[None])[0, 1].item())
        expected.append((scores[0] - scores[1]) / 2)
    monkeypatch.setattr(faithfulness, "NOISE", 0)
    table = road(scorer, [found], shares=[0.4])
    np.testing.assert_allclose(table["value"], expected, atol=1e-4)
    assert (table["metric"] == "road").all() and table["sample_id"].tolist() == ["s0", "s1"]
    turned = replace(found, values=-found.values, method="turned")
    np.testing.assert_allclose(
        road(scorer, [turned], shares=[0.4])["value"], -np.array(expected), atol=1e-4
    )


def make_scorer(count=6, seed=0):
    rng = np.random.default_rng(seed)
    model, images = make_additive(rng.normal(size=(count, 16)).tolist(), (4, 4), 8)
    exact = make_map(images.sum(dim=1))
    noisy = (
        exact.values + rng.normal(size=(count, 4, 4)).repeat(2, 1).repeat(2, 2) * exact.values.std()
    )
    return (
        CellScorer(model, images, exact, grid=(4, 4)),
        exact,
        replace(exact, values=noisy.astype(np.float32), method="noisy"),
    )


def test_gini_by_hand():
    values = np.array([[1, 1, 1, 1], [0, 0, 0, -5], [1, 2, 3, 4], [0, 0, 0, 0]], float)
    np.testing.assert_allclose(compute_gini(values), [0, 0.75, 0.25, np.nan])
    np.testing.assert_allclose(compute_gini(values[2:3] * -30), 0.25)


def test_sparseness_is_that_of_quantus():
    quantus = pytest.importorskip("quantus")
    scorer, exact, noisy = make_scorer()
    cells = scorer.pool(exact)
    metric = quantus.Sparseness(abs=True, normalise=False, disable_warnings=True)
    expected = metric(
        scorer.model.module.eval(),
        cells.reshape(-1, 1, 4, 4),
        np.zeros(6, int),
        cells.reshape(-1, 1, 4, 4),
    )
    table = sparseness(scorer, [exact, noisy])
    np.testing.assert_allclose(table[table["method"] == "exact"]["value"], expected, atol=1e-5)
    blank = replace(exact, values=np.zeros_like(exact.values), method="blank")
    assert sparseness(scorer, [blank])["value"].isna().all()

"""Imputation against the authors' code as it comes with pytorch-grad-cam, and by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.test_faithfulness import make_additive, make_map
from vitlab.explain.removal import CellScorer
from vitlab.explain.road import impute, road


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


def test_nothing_left_to_guess_from():
    with pytest.raises(ValueError, match="every pixel is removed"):
        impute(np.zeros((3, 2, 2)), np.ones((2, 2), bool))


def test_scores_by_the_authors_imputation():
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
    table = road(scorer, [found], shares=[0.4], noise=0, detail=2)
    np.testing.assert_allclose(table["value"], expected, atol=1e-4)
    assert (table["metric"] == "road").all() and table["sample_id"].tolist() == ["s0", "s1"]
    turned = replace(found, values=-found.values, method="turned")
    np.testing.assert_allclose(
        road(scorer, [turned], shares=[0.4], noise=0)["value"], -np.array(expected), atol=1e-4
    )


def test_points_between_are_interpolated_and_noise_is_the_same_again():
    model, images = make_additive(np.random.default_rng(1).normal(size=(2, 4)).tolist(), (2, 2), 16)
    found = make_map(images.sum(dim=1))
    scorer = CellScorer(model, images, found, grid=(2, 2), score="logit")
    one, other = road(scorer, [found], [0.5], detail=4), road(scorer, [found], [0.5], detail=4)
    assert one.equals(other) and np.isfinite(one["value"]).all()
    assert not one.equals(road(scorer, [found], [0.5], detail=4, seed=1))
    full = road(scorer, [found], [0.5], detail=8, noise=0)["value"]
    np.testing.assert_allclose(
        road(scorer, [found], [0.5], detail=4, noise=0)["value"], full, rtol=0.1
    )


def test_shares_are_checked():
    model, images = make_additive()
    found = make_map(images.sum(dim=1))
    with pytest.raises(ValueError, match="shares of the cells lie between 0 and 1"):
        road(CellScorer(model, images, found, grid=(2, 2)), [found], shares=[1])

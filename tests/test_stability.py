"""Infidelity and max-sensitivity by hand and against Captum's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum import metrics as captum_metrics

from tests.test_faithfulness import make_additive, make_map
from tests.toys import tiny_vit
from vitlab.explain import explain, stability
from vitlab.explain.removal import CellScorer
from vitlab.explain.stability import draw_squares, infidelity, max_sensitivity


def make_scorer(seed=0):
    model, images = make_additive(np.random.default_rng(seed).normal(size=(3, 16)).tolist(), (4, 4), 8)
    found = make_map(images.sum(dim=1))
    return CellScorer(model, images, found, grid=(4, 4), score="logit"), found


def test_values_that_add_up_forecast_without_error():
    scorer, found = make_scorer()
    scaled = replace(found, values=-7 * found.values, method="scaled")  # no unit and no sign: the best factor is found
    np.testing.assert_allclose(infidelity(scorer, [found, scaled])["value"], 0, atol=1e-9)
    blank = replace(found, values=np.zeros_like(found.values), method="blank")
    removed = draw_squares(scorer, 32, seed=0)
    falls = np.array([(scorer.sum(found)[image] * removed[image]).sum(axis=-1) for image in range(3)])
    np.testing.assert_allclose(infidelity(scorer, [blank])["value"], (falls**2).mean(axis=1), rtol=1e-4)


def test_infidelity_is_that_of_captum():
    model = tiny_vit(size=16)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = explain(model, images, "integrated_gradients", steps=2)
    scorer = CellScorer(model, images, found, grid=(4, 4))
    removed = torch.from_numpy(draw_squares(scorer, 12, seed=3))  # (N, squares, n)
    masks = removed.reshape(-1, 16)[:, scorer.cells][:, None].expand(-1, 3, -1, -1).float()  # (N * squares, 3, h, w)
    values = torch.from_numpy(found.values)[:, None].expand(-1, 3, -1, -1) / 3
    expected = captum_metrics.infidelity(
        lambda pixels: model.module(pixels).softmax(dim=1),
        lambda pixels: (masks, pixels * (1 - masks)),
        images,
        values.contiguous(),
        target=torch.tensor(scorer.target),
        n_perturb_samples=12,
        normalize=True,
    )
    np.testing.assert_allclose(infidelity(scorer, [found], squares=12, seed=3)["value"], expected.detach(), rtol=1e-3)


def test_squares():
    scorer, _ = make_scorer()
    removed = draw_squares(scorer, 40, seed=0).reshape(3, 40, 4, 4)
    for square in removed.reshape(-1, 4, 4):
        rows, columns = np.flatnonzero(square.any(axis=1)), np.flatnonzero(square.any(axis=0))
        assert square.sum() == len(rows) * len(columns) and len(rows) == len(columns) <= 2
        assert np.ptp(rows) == np.ptp(columns) == len(rows) - 1
    assert (removed[0] != removed[1]).any()
    with pytest.raises(ValueError, match="squares must be at least 2"):
        infidelity(scorer, [make_map(scorer.images.sum(dim=1))], squares=1)


def test_max_sensitivity_is_that_of_captum(monkeypatch):
    model = tiny_vit(size=16)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = explain(model, images, "saliency", sample_ids=["x", "y", "z"])
    moved = []

    def spy(model, images, *args, **kwargs):
        moved.append(images.clone())
        return explain(model, images, *args, **kwargs)

    monkeypatch.setattr(stability, "explain", spy)
    table = max_sensitivity(model, images, found, radius=0.1, samples=4)
    assert len(moved) == 4 and all(0.09 < (one - images).abs().max() <= 0.1001 for one in moved)

    def attribute(inputs):
        pixels = inputs[0] if isinstance(inputs, tuple) else inputs
        target = found.target * (len(pixels) // 3) if len(pixels) == 3 else [name for name in found.target for _ in range(4)]
        return (torch.from_numpy(explain(model, pixels, "saliency", target).values),)

    noisy = torch.stack(moved, dim=1).flatten(0, 1)  # in the order of Captum: the samples of one image together
    expected = captum_metrics.sensitivity_max(attribute, images, lambda inputs, radius: (noisy,), n_perturb_samples=4)
    np.testing.assert_allclose(table["value"], expected, rtol=1e-3)
    assert table["sample_id"].tolist() == ["x", "y", "z"] and (table["metric"] == "max_sensitivity").all()


def test_a_gradient_of_a_linear_model_is_steady_and_a_blank_map_is_a_gap():
    scorer, _ = make_scorer()
    found = explain(scorer.model, scorer.images, "saliency", "b")
    np.testing.assert_allclose(max_sensitivity(scorer.model, scorer.images, found, samples=2)["value"], 0, atol=1e-6)
    blank = replace(found, values=np.zeros_like(found.values))
    assert max_sensitivity(scorer.model, scorer.images, blank, samples=1)["value"].isna().all()
    with pytest.raises(ValueError, match="radius must be above 0"):
        max_sensitivity(scorer.model, scorer.images, found, radius=0)


def test_options_and_difference_are_those_of_the_maps():
    model = tiny_vit(size=16)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one, other = model.classes[:2]
    found = explain(model, images, "integrated_gradients", one, versus=other, steps=2)
    table = max_sensitivity(model, images, found, {"steps": 2}, radius=1e-6, samples=1)
    assert (table["value"] < 1e-2).all()  # other options, or another target, would be another map

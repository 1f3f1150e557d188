"""Max-sensitivity by hand and against Captum's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum import metrics as captum_metrics

from tests.test_faithfulness import make_additive
from tests.toys import tiny_vit
from vitlab.explain import explain, stability
from vitlab.explain.stability import max_sensitivity


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
        target = (
            found.target * (len(pixels) // 3)
            if len(pixels) == 3
            else [name for name in found.target for _ in range(4)]
        )
        return (torch.from_numpy(explain(model, pixels, "saliency", target).values),)

    # in the order of Captum: the samples of one image together
    noisy = torch.stack(moved, dim=1).flatten(0, 1)
    expected = captum_metrics.sensitivity_max(
        attribute, images, lambda inputs, radius: (noisy,), n_perturb_samples=4
    )
    np.testing.assert_allclose(table["value"], expected, rtol=1e-3)
    assert (
        table["sample_id"].tolist() == ["x", "y", "z"]
        and (table["metric"] == "max_sensitivity").all()
    )


def test_a_gradient_of_a_linear_model_is_steady_and_a_blank_map_is_a_gap():
    model, images = make_additive(np.random.default_rng(0).normal(size=(3, 16)).tolist(), (4, 4), 8)
    found = explain(model, images, "saliency", "b")
    np.testing.assert_allclose(
        max_sensitivity(model, images, found, samples=2)["value"], 0, atol=1e-6
    )
    blank = replace(found, values=np.zeros_like(found.values))
    assert max_sensitivity(model, images, blank, samples=1)["value"].isna().all()
    with pytest.raises(ValueError, match="radius must be above 0"):
        max_sensitivity(model, images, found, radius=0)


def test_options_and_difference_are_those_of_the_maps():
    model = tiny_vit(size=16)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one, other = model.classes[:2]
    found = explain(model, images, "integrated_gradients", one, versus=other, steps=2)
    table = max_sensitivity(model, images, found, {"steps": 2}, radius=1e-6, samples=1)
    assert (table["value"] < 1e-2).all()  # other options, or another target, would be another map

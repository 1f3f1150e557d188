"""Pixel attributions against their axioms and against a linear model, where they are known."""

import dataclasses

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import nn

from vitlab.explain import explain
from vitlab.models import build_model
from vitlab.schema import Anatomy, ModelBundle, Transform


@pytest.fixture
def linear():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 3)).eval()
    anatomy = Anatomy("other", (), (), 0, (0, 0), ())
    return ModelBundle("linear", module, ("a", "b", "c"), Transform((4, 5), (0.5,) * 3, (0.5,) * 3), anatomy)


def weights_of(linear, target):
    return linear.module[1].weight[target].detach().reshape(3, 4, 5)


def test_integrated_gradients_of_a_linear_model_are_weight_times_pixel(linear):
    images = torch.randn(2, 3, 4, 5)
    found = explain(linear, images, "integrated_gradients", ["c", "a"])
    for i, target in enumerate([2, 0]):
        np.testing.assert_allclose(found.values[i], (weights_of(linear, target) * images[i]).sum(dim=0), atol=1e-6)
    assert found.signed and found.values.min() < 0 < found.values.max()
    shifted = explain(linear, images, "integrated_gradients", "c", baseline=0.5).values
    np.testing.assert_allclose(shifted[1], (weights_of(linear, 2) * (images[1] - 0.5)).sum(dim=0), atol=1e-6)


def test_saliency_of_a_linear_model_is_the_largest_absolute_weight(linear):
    found = explain(linear, torch.randn(2, 3, 4, 5), "saliency", "b")
    for values in found.values:
        np.testing.assert_allclose(values, weights_of(linear, 1).abs().amax(dim=0), atol=1e-7)
    assert not found.signed


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_scratch", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}),
        ("test_resnet", {}),
        ("test_efficientnet", {}),
    ],
)
def test_integrated_gradients_add_up_to_the_difference_of_the_logits(name, options):
    """Completeness (arXiv 1703.01365, proposition 1)."""
    model = build_model(name, ["a", "b"], pretrained=False, size=32, **options)
    images, baseline = torch.randn(2, 3, 32, 32), torch.full((1, 3, 32, 32), -0.3)
    with torch.no_grad():
        for part in model.module.modules():
            if isinstance(part, nn.Linear):
                part.weight.mul_(5)  # logits far apart, and far from linear
        difference = (model.module(images) - model.module(baseline))[:, 1].numpy()
    coarse, fine = (
        explain(model, images, "integrated_gradients", "b", steps=steps, baseline=-0.3).values.sum(axis=(1, 2))
        for steps in (1, 16)
    )
    np.testing.assert_allclose(fine, difference, rtol=0.02, atol=0.02 * np.abs(difference).max())
    assert np.abs(fine - difference).max() < np.abs(coarse - difference).max()


class Leap(nn.Module):
    """A logit that rises to its full height with the first trace of contrast, as those of real networks do."""

    def forward(self, images):
        height = torch.sigmoid(300 * (images.mean(dim=(1, 2, 3)) - 0.04))
        return torch.stack([height, -height, 0 * height], dim=1)


def test_a_leap_close_to_the_blank_image_is_not_stepped_over(linear):
    images = torch.rand(2, 3, 4, 5) + 0.5
    leaping = dataclasses.replace(linear, module=nn.Sequential(Leap(), nn.Linear(3, 3, bias=False)))
    leaping.module[1].weight.data = torch.eye(3)
    found = explain(leaping, images, "integrated_gradients", "a")
    np.testing.assert_allclose(found.values.sum(axis=(1, 2)), 1, atol=0.05)
    plain = IntegratedGradients(leaping.module).attribute(images, 0.0, target=0, n_steps=32)  # as many points, evenly spread
    assert (plain.sum(dim=(1, 2, 3)) - 1).abs().min() > 0.1


def test_more_images_than_fit_the_memory_give_the_same(linear):
    images = torch.randn(11, 3, 4, 5)
    whole, parts = (explain(linear, images, "integrated_gradients", batch_size=size) for size in (11, 2))
    np.testing.assert_allclose(whole.values, parts.values, atol=1e-6)
    assert whole.target == parts.target


@pytest.mark.parametrize("steps", [0, -3, 2.5])
def test_steps_that_are_no_number_of_points(linear, steps):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        explain(linear, torch.randn(1, 3, 4, 5), "integrated_gradients", steps=steps)


@pytest.mark.parametrize("method", ["integrated_gradients", "saliency"])
def test_an_untrained_classifier_of_zeros_is_an_error(linear, method):
    nn.init.zeros_(linear.module[1].weight)
    with pytest.raises(ValueError, match=r"no target logit reacts to the pixels.*train the classifier first"):
        explain(linear, torch.randn(2, 3, 4, 5), method)


def test_a_blank_image_owes_nothing_to_any_pixel(linear):
    assert (explain(linear, torch.zeros(1, 3, 4, 5), "integrated_gradients").values == 0).all()

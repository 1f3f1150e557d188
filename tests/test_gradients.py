"""Pixel attributions against their axioms and against a linear model, where they are known."""

import dataclasses

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import nn

from vitlab.explain import convergence_delta, explain
from vitlab.explain.grid import BASELINES, make_baseline
from vitlab.models import build_model
from vitlab.schema import Anatomy, ModelBundle, Transform


@pytest.fixture
def linear():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 3)).eval()
    anatomy = Anatomy("other", (), (), 0, (0, 0), ())
    return ModelBundle(
        "linear", module, ("a", "b", "c"), Transform((4, 5), (0.5,) * 3, (0.5,) * 3), anatomy
    )


def weights_of(linear, target):
    return linear.module[1].weight[target].detach().reshape(3, 4, 5)


@pytest.mark.parametrize("baseline", BASELINES)
def test_what_a_pixel_adds_to_a_linear_model_against_each_baseline(linear, baseline):
    images = torch.randn(2, 3, 4, 5)
    contrast = images - make_baseline(baseline, images, linear.transform)
    found = explain(linear, images, "integrated_gradients", ["c", "a"], baseline=baseline)
    for i, target in enumerate([2, 0]):
        np.testing.assert_allclose(
            found.values[i], (weights_of(linear, target) * contrast[i]).sum(dim=0), atol=1e-5
        )
    assert found.signed


def test_saliency_of_a_linear_model_is_the_largest_absolute_weight(linear):
    found = explain(linear, torch.randn(2, 3, 4, 5), "saliency", "b")
    for values in found.values:
        np.testing.assert_allclose(values, weights_of(linear, 1).abs().amax(dim=0), atol=1e-7)
    assert not found.signed


class Square(nn.Module):
    """Logit a is half the sum of squares of the pixels, b is its negative: the gradient is the
    image, which noise shifts.
    """

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, images):
        height = self.scale * images.square().sum(dim=(1, 2, 3))
        return torch.stack([height, -height, 0 * height], dim=1)


@pytest.fixture
def square(linear):
    return dataclasses.replace(linear, module=Square())


NETWORKS = [
    ("vit_scratch", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    ("test_resnet", {}),
    ("test_efficientnet", {}),
]


def build_steep(name, options):
    """A model whose logits are far apart, and far from linear."""
    model = build_model(name, ["a", "b"], pretrained=False, size=32, **options)
    with torch.no_grad():
        for part in model.module.modules():
            if isinstance(part, nn.Linear):
                part.weight.mul_(5)
    return model


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_integrated_gradients_add_up_to_the_difference_of_the_logits(name, options):
    """Completeness (arXiv 1703.01365, proposition 1)."""
    model = build_steep(name, options)
    images = torch.randn(2, 3, 32, 32)
    coarse, fine = (
        convergence_delta(
            model,
            images,
            explain(model, images, "integrated_gradients", "b", steps=steps, baseline="black"),
            baseline="black",
        )
        for steps in (1, 16)
    )
    blank = make_baseline("black", images, model.transform)
    with torch.no_grad():
        expected = (model.module(images) - model.module(blank))[:, 1].numpy()
    np.testing.assert_allclose(fine["difference"], expected, atol=1e-5)
    np.testing.assert_allclose(
        fine["total"], expected, rtol=0.02, atol=0.02 * np.abs(expected).max()
    )
    np.testing.assert_allclose(fine["delta"], fine["total"] - fine["difference"])
    assert fine["delta"].abs().max() < coarse["delta"].abs().max()


@pytest.mark.parametrize(("name", "options"), NETWORKS)
@pytest.mark.parametrize("internal_batch_size", [1, 3, 64])
def test_one_part_of_the_way_is_the_class_of_captum(name, options, internal_batch_size):
    model = build_steep(name, options)
    images = torch.randn(2, 3, 32, 32)
    plain = {"steps": 10, "parts": 1, "internal_batch_size": internal_batch_size}
    found = explain(model, images, "integrated_gradients", ["b", "a"], **plain)
    method = IntegratedGradients(model.module.eval())
    expected, delta = method.attribute(
        images, 0.0, [1, 0], n_steps=10, return_convergence_delta=True
    )
    scale = expected.sum(dim=1).abs().max().item()
    np.testing.assert_allclose(found.values, expected.sum(dim=1), atol=1e-5 * max(1, scale))
    np.testing.assert_allclose(
        convergence_delta(model, images, found)["delta"], delta, atol=1e-4 * max(1, scale)
    )


def test_the_memory_is_bounded(linear):
    """No forward pass sees more images than allowed."""
    sizes = []
    linear.module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    images = torch.randn(5, 3, 4, 5)
    whole = explain(linear, images, "integrated_gradients", "a").values
    sizes.clear()
    found = explain(linear, images, "integrated_gradients", "a", internal_batch_size=3)
    assert max(sizes) == 3
    np.testing.assert_allclose(found.values, whole, atol=1e-5)


def test_the_delta_of_a_difference_of_two_logits(square):
    images = torch.randn(3, 3, 4, 5)
    found = explain(
        square, images, "integrated_gradients", "a", ["x", "y", "z"], versus=["b", "c", "b"]
    )
    table = convergence_delta(square, images, found)
    assert list(table.columns) == ["sample_id", "difference", "total", "delta"] and list(
        table["sample_id"]
    ) == ["x", "y", "z"]
    half = 0.5 * images.square().sum(dim=(1, 2, 3))
    np.testing.assert_allclose(table["difference"], half * torch.tensor([2, 1, 2]), rtol=1e-5)
    assert table["delta"].abs().max() < 1e-3


def test_a_map_that_does_not_claim_to_add_up(linear):
    images = torch.randn(2, 3, 4, 5)
    with pytest.raises(
        ValueError,
        match=r"saliency map do not claim.*integrated_gradients, kernel_shap",
    ):
        convergence_delta(linear, images, explain(linear, images, "saliency"))
    with pytest.raises(ValueError, match="1 images for 2 maps"):
        convergence_delta(linear, images[:1], explain(linear, images, "integrated_gradients"))


class Leap(nn.Module):
    """A logit that rises to its full height with the first trace of contrast, as those of real
    networks do.
    """

    def forward(self, images):
        height = torch.sigmoid(300 * (images.mean(dim=(1, 2, 3)) - 0.04))
        return torch.stack([height, -height, 0 * height], dim=1)


def test_a_leap_close_to_the_blank_image_is_not_stepped_over(linear):
    images = torch.rand(2, 3, 4, 5) + 0.5
    leaping = dataclasses.replace(linear, module=nn.Sequential(Leap(), nn.Linear(3, 3, bias=False)))
    leaping.module[1].weight.data = torch.eye(3)
    found = explain(leaping, images, "integrated_gradients", "a")
    np.testing.assert_allclose(found.values.sum(axis=(1, 2)), 1, atol=0.05)
    # as many points, evenly spread
    plain = IntegratedGradients(leaping.module).attribute(images, 0.0, target=0, n_steps=32)
    assert (plain.sum(dim=(1, 2, 3)) - 1).abs().min() > 0.1


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("integrated_gradients", {"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ("integrated_gradients", {"steps": 2.5}, "steps must be a whole number"),
        ("integrated_gradients", {"parts": -3}, "parts must be a whole number"),
        (
            "integrated_gradients",
            {"baseline": "white"},
            "unknown baseline 'white'.*mean, black, blur",
        ),
        ("integrated_gradients", {"internal_batch_size": True}, "internal_batch_size must be"),
    ],
)
def test_options_that_make_no_sense(linear, method, options, message):
    with pytest.raises(ValueError, match=message):
        explain(linear, torch.randn(1, 3, 4, 5), method, **options)


@pytest.mark.parametrize(
    "method",
    ["integrated_gradients", "saliency"],
)
def test_an_untrained_classifier_of_zeros_is_an_error(linear, method):
    nn.init.zeros_(linear.module[1].weight)
    with pytest.raises(
        ValueError, match=r"no target logit reacts to the pixels.*train the classifier first"
    ):
        explain(linear, torch.randn(2, 3, 4, 5), method)


def test_a_blank_image_owes_nothing_to_any_pixel(linear):
    found = explain(linear, torch.zeros(1, 3, 4, 5), "integrated_gradients")
    assert (found.values == 0).all()

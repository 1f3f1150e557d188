"""One contract for every method on every kind of model, and what `explain` says about input that
does not fit.
"""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from tests.families import (
    BUILT,
    CLASSES,
    WRAPPED,
    assert_same_state,
    describe_state,
    draw_images,
    family,
)
from vitlab.explain import describe_methods, explain, suitable_methods
from vitlab.explain.methods import available, describe_map, explanation, methods

OPTIONS = {  # as little work as shows the same
    "integrated_gradients": {"steps": 2},
    "occlusion": {"grid": (2, 3)},
    "kernel_shap": {"grid": (2, 2), "samples": 7},
    "score_cam": {"channels": 3},
    "lime": {"segments": 6, "samples": 8, "compactness": 100.0},
}
FAMILIES = [name for name in BUILT if name not in ("mobilevit_xxs", "mixer_s32_224")]
CASES = [
    (method, name) for name in (*FAMILIES, *WRAPPED) for method in suitable_methods(family(name))
]


def test_every_method_is_tried_on_something():
    assert {method for method, _ in CASES} == set(available())


@pytest.mark.parametrize(("method", "name"), CASES)
def test_maps_keep_the_contract(method, name):
    """Shape and sign; the same maps again, for each image alone, and in another batch."""
    model, options = family(name), OPTIONS.get(method, {})
    images, ids = draw_images(model), ["x", "y", "z"]
    kept = images.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain(model, images, method, ["c", "a", "c"], ids, **options)
    assert found.values.shape == (3, *model.transform.size) and found.values.dtype == np.float32
    assert (found.method, found.target, found.sample_ids) == (method, ("c", "a", "c"), tuple(ids))
    assert found.signed or found.values.min() >= 0
    blank = found.values.reshape(3, -1).std(axis=1) == 0
    # nothing may speak for a class: a blank Grad-CAM is true
    assert not (blank.all() if "cam" in method else blank.any())
    assert torch.equal(images, kept) and not images.requires_grad
    again = explain(model, images, method, ["c", "a", "c"], **options)
    np.testing.assert_array_equal(found.values, again.values)
    turned = explain(
        model, images.flip(0), method, ["c", "a", "c"], batch_size=2, **options
    ).values[::-1]
    for one, other in zip(turned, found.values, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize(
    ("method", "name"),
    [case for case in CASES if case[1] in ("hybrid_vit", "swin_tiny_patch4_window7_224", *WRAPPED)],
)
def test_the_model_is_left_as_it_was(method, name):
    model, options = copy.deepcopy(family(name)), OPTIONS.get(method, {})
    images = draw_images(model, 2)
    expected = explain(model, images, method, "b", **options).values
    module = model.module.train().requires_grad_(True)
    next(module.children()).eval()
    next(module.parameters()).requires_grad_(False)
    before = describe_state(module)
    with torch.inference_mode():
        # the clone is a tensor without gradients for good
        found = explain(model, images.clone(), method, "b", **options)
    assert_same_state(module, before)
    # and dropout, patch dropout and batch statistics were off
    np.testing.assert_array_equal(found.values, expected)


@pytest.mark.parametrize(
    ("method", "name"), [case for case in CASES if case[1] in ("vit_scratch", "test_resnet")]
)
def test_the_model_is_left_as_it_was_after_an_error(method, name, monkeypatch):
    model = copy.deepcopy(family(name))
    module = model.module.train().requires_grad_(True)
    before = describe_state(module)
    reached = next(part for part in module.modules() if isinstance(part, nn.Conv2d))

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(reached, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        explain(model, draw_images(model), method, "a", **OPTIONS.get(method, {}))
    assert_same_state(module, before)


def test_the_target_is_the_predicted_class_unless_named():
    model = family("test_resnet")
    images = draw_images(model, 5)
    with torch.no_grad():
        predicted = tuple(CLASSES[index] for index in model.module(images).argmax(dim=1))
    found = explain(model, images, "saliency", batch_size=2)
    assert found.target == predicted and found.sample_ids == ("0", "1", "2", "3", "4")
    np.testing.assert_allclose(
        found.values, explain(model, images, "saliency", predicted).values, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("name", ["vit_scratch", "test_resnet"])
def test_only_class_specific_methods_depend_on_the_class(name):
    model = family(name)
    images = draw_images(model)
    for method in suitable_methods(model):
        a, b = (
            explain(model, images, method, target, **OPTIONS.get(method, {})).values
            for target in "ab"
        )
        same = np.allclose(a, b, atol=1e-6 * np.abs(a).max())
        assert same != methods[method].class_specific, method


def test_which_methods_suit_which_model():
    names = ("saliency", "rollout", "grad_cam")
    assert suitable_methods(family("hybrid_vit"), among=names) == list(names)
    assert suitable_methods(family("test_resnet"), among=names) == ["saliency", "grad_cam"]
    mixer = suitable_methods(family("mixer_s32_224"))
    assert mixer == [name for name in available() if not methods[name].needs]
    table = describe_methods(family("test_resnet"))
    assert sorted(table["method"]) == suitable_methods(family("test_resnet"))
    assert set(describe_methods()["family"]) == {"attention", "cam", "gradients", "perturbation"}
    with pytest.raises(ValueError, match=r"unknown explanation method 'grad-cam'.* grad_cam"):
        suitable_methods(family("test_resnet"), among=["grad-cam"])


def test_a_new_method_is_a_function(monkeypatch):
    monkeypatch.setattr(methods, "_functions", dict(methods._functions))

    @explanation(signed=True, shows="A test.", needs=("stages",))
    def brightness(model, images, targets, power=1):
        return images.mean(dim=1) ** power

    model = family("test_resnet")
    images = draw_images(model)
    found = explain(model, images, "brightness", power=2)
    np.testing.assert_allclose(found.values, images.mean(dim=1) ** 2, atol=1e-6)
    assert "brightness" not in suitable_methods(family("vit_scratch"))


@pytest.mark.parametrize("name", ["test_resnet", "hybrid_vit"])
def test_images_of_another_size_where_the_model_can(name):
    model = family(name)
    for method in suitable_methods(model):
        found = explain(model, torch.randn(1, 3, 96, 64), method, **OPTIONS.get(method, {}))
        assert found.values.shape == (1, 96, 64)


def test_images_of_another_size_where_the_model_cannot():
    with pytest.raises(ValueError, match=r"takes images of .* and cannot take 30x30.*preprocess"):
        explain(family("vit_scratch"), torch.randn(1, 3, 30, 30), "saliency")


def test_a_weight_that_is_not_a_number_is_named():
    model = copy.deepcopy(family("test_resnet"))
    model.module.layer2[0].conv1.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer2.0.conv1.weight of test_resnet holds NaN"):
        explain(model, draw_images(model), "saliency")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gradcam"}, "unknown explanation method 'gradcam'. Did you mean grad_cam"),
        ({"method": "rollout"}, r"rollout needs attention.*it has no attention.*can.*grad_cam"),
        ({"target": "d"}, "unknown target 'd'.*Choices: a, b, c"),
        ({"target": ["a", "b"]}, "2 targets for 3 images"),
        ({"sample_ids": ["x"]}, "1 sample_ids for 3 images"),
        ({"images": torch.zeros(3, 64, 64)}, r"not torch.float32 \(3, 64, 64\)"),
        ({"images": torch.zeros(0, 3, 64, 64)}, "at least one image"),
        ({"images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "float tensor"),
        ({"images": np.zeros((1, 3, 64, 64))}, "not ndarray"),
        ({"images": torch.full((3, 3, 64, 64), torch.nan)}, "sample 0 holds NaN .*3 of 3"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"layers": "layer4"}, "unknown option of grad_cam 'layers'. Did you mean layer"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, message):
    model = family("test_resnet")
    arguments = {"images": draw_images(model), "method": "grad_cam", **changes}
    with pytest.raises(ValueError, match=message):
        explain(model, **arguments)


@pytest.mark.parametrize("name", available())
def test_the_sentence_on_a_map_agrees_with_the_properties_of_the_method(name):
    method, sentence = methods[name], describe_map(name, "defective")
    assert sentence.endswith(".") and sentence.count(".") == 1 and "{" not in sentence
    assert ("defective" in sentence) == method.class_specific
    assert sentence.startswith("Positive values are" if method.signed else "Brighter areas ")
    assert ("add up" in sentence) == method.complete

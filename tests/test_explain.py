"""One contract for every method on every kind of model, and what `explain` says about input that
does not fit.
"""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torchvision.models import VisionTransformer
from tqdm import tqdm

from vitlab.explain import available, describe_map, describe_methods, explain, suitable_methods
from vitlab.explain.methods import explanation, methods
from vitlab.models import build_model, wrap_model

CLASSES = ("a", "b", "c")
MODELS = {
    "vit_scratch": {"size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "hybrid_vit": {"size": 64, "pretrained": False, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "vit_tiny_patch16_224": {"size": 48, "pretrained": False, "depth": 2, "reg_tokens": 2},
    "resnet18": {"size": 48, "pretrained": False},
    "tf_efficientnet_lite0": {"size": 48, "pretrained": False},
    "deit_tiny_distilled_patch16_224": {
        "size": (48, 64),
        "pretrained": False,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
    },
    "vit_medium_patch16_gap_240": {
        "size": 48,
        "pretrained": False,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
    },
    "swin_tiny_patch4_window7_224": {
        **{
            "size": (48, 64),
            "pretrained": False,
            "embed_dim": 24,
            "depths": (2, 2),
            "num_heads": (2, 4),
            "window_size": 4,
        }
    },
    "hugging_face": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    },
    "torchvision": {"num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48},
}
OPTIONS = {  # as little work as shows the same
    "integrated_gradients": {"steps": 2, "parts": 2},
    "occlusion": {"grid": (2, 3)},
    "kernel_shap": {"grid": (2, 2), "samples": 7},
    "score_cam": {"channels": 3},
    "lime": {"segments": 6, "samples": 8, "compactness": 100.0},
}


@functools.cache
def cached_model(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "hugging_face":
            config = transformers.ViTConfig(
                image_size=48, patch_size=16, num_labels=len(CLASSES), **MODELS[name]
            )
            return wrap_model(transformers.ViTForImageClassification(config), CLASSES, 48)
        if name == "torchvision":
            module = VisionTransformer(48, 16, num_classes=len(CLASSES), **MODELS[name])
            nn.init.normal_(module.heads.head.weight)  # which torchvision sets to zero
            return wrap_model(module, CLASSES, 48)
    return build_model(name, CLASSES, **MODELS[name])


CASES = [(method, name) for name in MODELS for method in suitable_methods(cached_model(name))]


def make_images(model, count=3):
    return torch.randn(count, 3, *model.transform.size, generator=torch.Generator().manual_seed(1))


def describe_state(module):
    """All that an explanation might change and must not."""
    return {
        "weights": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "modes": [part.training for part in module.modules()],
        "requires_grad": [parameter.requires_grad for parameter in module.parameters()],
        "grad": [parameter.grad for parameter in module.parameters()],
        "hooks": [
            len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks)
            for part in module.modules()
        ],
        "fused": [getattr(part, "fused_attn", None) for part in module.modules()],
    }


def assert_same_state(module, before):
    after = describe_state(module)
    weights, expected = after.pop("weights"), before["weights"]
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert after == {key: before[key] for key in after}


def test_every_method_is_tried_on_something():
    assert {method for method, _ in CASES} == set(available())


@pytest.mark.parametrize(("method", "name"), CASES)
def test_maps_keep_the_contract(method, name):
    model, options = cached_model(name), OPTIONS.get(method, {})
    images = make_images(model)
    kept = images.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain(model, images, method, ["c", "a", "c"], ["x", "y", "z"], **options)
    assert found.values.shape == (3, *model.transform.size) and found.values.dtype == np.float32
    assert (found.method, found.target, found.sample_ids) == (
        method,
        ("c", "a", "c"),
        ("x", "y", "z"),
    )
    assert found.signed or found.values.min() >= 0
    blank = found.values.reshape(3, -1).std(axis=1) == 0
    # nothing may speak for a class: a blank Grad-CAM is true
    assert not (blank.all() if method == "grad_cam" else blank.any())
    assert torch.equal(images, kept) and not images.requires_grad
    again = explain(model, images, method, ["c", "a", "c"], **options)
    np.testing.assert_array_equal(found.values, again.values)


@pytest.mark.parametrize(("method", "name"), CASES)
def test_a_map_does_not_depend_on_its_neighbours(method, name):
    model, options = cached_model(name), OPTIONS.get(method, {})
    images = make_images(model)
    together = explain(model, images, method, "b", **options).values
    alone = explain(model, images[1:2], method, "b", **options).values
    parts = explain(model, images.flip(0), method, "b", batch_size=2, **options).values[::-1]
    for other in (alone[0], parts[1]):
        np.testing.assert_allclose(other, together[1], atol=1e-4 * np.abs(together[1]).max())


@pytest.mark.parametrize(("method", "name"), CASES)
def test_the_model_is_left_as_it_was(method, name):
    model, options = copy.deepcopy(cached_model(name)), OPTIONS.get(method, {})
    images = make_images(model, 2)
    expected = explain(model, images, method, "b", **options).values
    module = model.module.train().requires_grad_(True)
    next(module.children()).eval()
    first, *_ = module.parameters()
    first.requires_grad_(False)
    before = describe_state(module)
    with torch.inference_mode():
        # the clone is a tensor without gradients for good
        found = explain(model, images.clone(), method, "b", **options)
    assert_same_state(module, before)
    # and dropout, patch dropout and batch statistics were off
    np.testing.assert_array_equal(found.values, expected)


@pytest.mark.parametrize(
    ("method", "name"), [case for case in CASES if case[1] in ("vit_scratch", "resnet18")]
)
def test_the_model_is_left_as_it_was_after_an_error(method, name, monkeypatch):
    model = copy.deepcopy(cached_model(name))
    module = model.module.train().requires_grad_(True)
    before = describe_state(module)
    parts = list(module.modules())
    stops_early = method == "eigen_cam"
    reached = (
        next(part for part in parts if isinstance(part, nn.Conv2d)) if stops_early else parts[-1]
    )

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(reached, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        explain(model, make_images(model), method, "a", **OPTIONS.get(method, {}))
    assert_same_state(module, before)


def test_the_target_is_the_predicted_class_unless_named():
    model = cached_model("resnet18")
    images = make_images(model, 5)
    with torch.no_grad():
        predicted = tuple(CLASSES[index] for index in model.module(images).argmax(dim=1))
    found = explain(model, images, "saliency", batch_size=2)
    assert found.target == predicted and found.sample_ids == ("0", "1", "2", "3", "4")
    np.testing.assert_allclose(
        found.values, explain(model, images, "saliency", predicted).values, rtol=1e-3, atol=1e-6
    )


def test_the_difference_of_two_logits():
    model = cached_model("resnet18")
    images = make_images(model)
    found = explain(model, images, "integrated_gradients", "a", versus=["b", "c", "b"], steps=2)
    assert (found.target, found.versus) == (("a",) * 3, ("b", "c", "b"))
    a, b, c = (
        explain(model, images, "integrated_gradients", name, steps=2).values for name in CLASSES
    )
    np.testing.assert_allclose(found.values, a - np.stack([b[0], c[1], b[2]]), atol=1e-6)


@pytest.mark.parametrize("name", ["vit_scratch", "resnet18"])
def test_what_depends_on_the_class_is_said_to(name):
    model = cached_model(name)
    images = make_images(model)
    for method in suitable_methods(model):
        a, b = (
            explain(model, images, method, target, **OPTIONS.get(method, {})).values
            for target in "ab"
        )
        assert np.allclose(a, b, atol=1e-6 * np.abs(a).max()) != methods[method].class_specific, (
            method
        )


def test_a_model_in_training_is_explained_in_evaluation_mode_and_trains_on():
    model = copy.deepcopy(cached_model("resnet18"))
    images = make_images(model)
    expected = explain(model, images, "saliency", "a").values
    model.module.train()
    np.testing.assert_array_equal(explain(model, images, "saliency", "a").values, expected)
    assert model.module.training


def test_a_bar_on_request(capsys, monkeypatch):
    # else a fast machine skips it
    monkeypatch.setattr("vitlab.explain.methods.tqdm", functools.partial(tqdm, mininterval=0))
    model = cached_model("resnet18")
    explain(model, make_images(model), "saliency", "a", batch_size=2)
    assert not capsys.readouterr().err
    explain(model, make_images(model), "saliency", "a", batch_size=2, progress=True)
    assert "saliency" in (bar := capsys.readouterr().err) and "2/2" in bar


def test_methods_in_a_table():
    table = describe_methods().set_index("method")
    assert list(table.index.sort_values()) == available() and {
        "attention",
        "cam",
        "gradients",
        "perturbation",
    } <= set(table["family"])
    assert (
        table.loc[
            "integrated_gradients", ["family", "signed", "class_specific", "complete"]
        ].tolist()
        == ["gradients"] + [True] * 3
    )
    assert table.loc["rollout", "family"] == "attention"
    assert not table.loc["rollout", "class_specific"]
    model = cached_model("resnet18")
    assert sorted(describe_methods(model)["method"]) == suitable_methods(model)


def test_a_weight_that_is_not_a_number_is_named():
    model = copy.deepcopy(cached_model("resnet18"))
    model.module.layer2[0].conv1.weight.data[0, 0] = torch.nan
    with pytest.raises(
        ValueError,
        match=r"layer2.0.conv1.weight of resnet18 holds NaN.*load a checkpoint from before",
    ):
        explain(model, make_images(model), "saliency")


def test_a_map_that_is_not_a_number_is_named(monkeypatch):
    monkeypatch.setattr(methods, "_functions", dict(methods._functions))

    @explanation(signed=True, shows="A test.")
    def overflow(model, images, targets):
        maps = images.mean(dim=1)
        maps[-1] *= torch.inf
        return maps

    model = cached_model("resnet18")
    with pytest.raises(
        ValueError,
        match=r"overflow map of sample y holds NaN or infinite values, though image and weights",
    ):
        explain(model, make_images(model), "overflow", "a", ["x", "y", "z"], batch_size=2)


def test_which_methods_suit_which_model():
    assert suitable_methods(
        cached_model("hybrid_vit"), among=("saliency", "rollout", "grad_cam")
    ) == [
        "saliency",
        "rollout",
        "grad_cam",
    ]
    assert suitable_methods(cached_model("resnet18"), among=("rollout", "grad_cam")) == ["grad_cam"]
    mixer = build_model("gmlp_ti16_224", CLASSES, pretrained=False)
    assert suitable_methods(mixer) == [name for name in available() if not methods[name].needs]
    assert {"saliency", "occlusion", "lime"} < set(suitable_methods(mixer)) < set(available())
    with pytest.raises(
        ValueError, match=r"unknown explanation method 'grad-cam'.* Did you mean grad_cam"
    ):
        suitable_methods(mixer, among=["grad-cam"])


def test_a_new_method_is_a_function(monkeypatch):
    monkeypatch.setattr(methods, "_functions", dict(methods._functions))

    @explanation(signed=True, shows="A test.", needs=("stages",))
    def brightness(model, images, targets, power=1):
        return images.mean(dim=1) ** power

    model = cached_model("resnet18")
    images = make_images(model)
    found = explain(model, images, "brightness", power=2)
    np.testing.assert_allclose(found.values, images.mean(dim=1) ** 2, atol=1e-6)
    assert (
        found.signed
        and "brightness" in available()
        and "brightness" not in suitable_methods(cached_model("vit_scratch"))
    )


@pytest.mark.parametrize("name", ["resnet18", "hybrid_vit"])
def test_images_of_another_size_where_the_model_can(name):
    model = cached_model(name)
    for method in suitable_methods(model):
        found = explain(model, torch.randn(1, 3, 96, 64), method, **OPTIONS.get(method, {}))
        assert found.values.shape == (1, 96, 64)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_patch16_224", (64, 64)), ("vit_scratch", (30, 30))]
)
def test_images_of_another_size_where_the_model_cannot(name, size):
    with pytest.raises(
        ValueError, match=rf"takes images of .* and cannot take {size[0]}x{size[1]}.*preprocess"
    ):
        explain(cached_model(name), torch.randn(1, 3, *size), "saliency")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gradcam"}, "unknown explanation method 'gradcam'. Did you mean grad_cam"),
        (
            {"method": "rollout"},
            (
                r"rollout needs attention, and resnet18 has none \(it has no attention\); methods"
                r" that can.*grad_cam,.*saliency"
            ),
        ),
        ({"target": "d"}, "unknown target 'd'.*Choices: a, b, c"),
        (
            {"target": ["a", "b", 1]},
            r"unknown target '1'.*Choices: a, b, c. model.classes\[i\] is the name of class i",
        ),
        (
            {"target": 1},
            r"target takes the names of classes, not the index 1; write target=model.classes\[1\]",
        ),
        ({"target": ["a", "b"]}, "2 names in target for 3 images"),
        ({"versus": "e"}, "unknown versus 'e'"),
        ({"target": ["a", "b", "c"], "versus": "b"}, "target and versus of sample 1 are both 'b'"),
        ({"sample_ids": ["x"]}, "1 sample_ids for 3 images"),
        ({"images": torch.zeros(3, 64, 64)}, r"not torch.float32 \(3, 64, 64\)"),
        ({"images": torch.zeros(0, 3, 64, 64)}, "at least one image"),
        ({"images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "float tensor"),
        ({"images": np.zeros((1, 3, 64, 64))}, "not ndarray"),
        (
            {"images": torch.full((3, 3, 64, 64), torch.nan)},
            "the image of sample 0 holds NaN or infinite values .3 of 3",
        ),
        ({"layer": "layer9"}, "no layer 'layer9'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"layers": "layer4"}, "unknown option of grad_cam 'layers'. Did you mean layer"),
        ({"method": "saliency", "steps": 3}, "saliency has no options; leave steps out"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    model = cached_model("resnet18")
    arguments = {"images": make_images(model), "method": "grad_cam", **changes}
    with pytest.raises(ValueError, match=message):
        explain(model, **arguments)


@pytest.mark.parametrize("name", available())
def test_every_method_has_one_true_sentence_on_its_maps(name):
    """Only a map that depends on the class asked for names it; the sign is explained where there is
    one.
    """
    method, said = methods[name], describe_map(name, "defective")
    assert said.endswith(".") and said.count(".") == 1 and "{" not in said
    assert ("defective" in said) == method.class_specific == ("{target}" in method.shows)
    assert said.startswith("Positive values are" if method.signed else "Brighter areas ")
    assert ("add up" in said) == method.complete
    assert describe_methods().set_index("method").loc[name, "shows"] == describe_map(name)

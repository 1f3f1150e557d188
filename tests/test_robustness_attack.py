"""Attacks: the budget, the closed form for a linear model, the loss, what is left behind, and bad
input.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.toys import linear_digits, linear_model, small_digits, tiny_vit
from vitlab.data import ImageDataset
from vitlab.robustness import ATTACKS, attack_images, attack_table
from vitlab.robustness.attack import loss_gradient
from vitlab.training import TrainConfig, fit


@pytest.fixture(scope="module")
def trained():
    model = tiny_vit()
    fit(
        model,
        small_digits(),
        config=TrainConfig(epochs=4, batch_size=16, learning_rate=3e-3, augment="none"),
    )
    return model


@pytest.fixture(scope="module")
def ids():
    return small_digits().split("test")["sample_id"].tolist()[:12]


def cross_entropy(model, data, ids, images):
    labels = torch.tensor(ImageDataset(data, ids, model.transform).labels)
    pixels = torch.tensor(images).permute(0, 3, 1, 2)[:, : len(model.transform.mean)]
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1)
        for values in (model.transform.mean, model.transform.std)
    )
    with torch.inference_mode():
        return F.cross_entropy(
            model.module((pixels - mean) / std), labels, reduction="none"
        ).numpy()


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
@pytest.mark.parametrize("epsilon", [0.5, 8])
def test_within_the_budget_and_the_range_of_pixels(trained, ids, attack, epsilon):
    before, after, table = attack_images(trained, small_digits(), ids, epsilon, attack)
    assert np.abs(after - before).max() <= epsilon / 255 + 1e-6
    assert np.abs(after - before).max() == pytest.approx(epsilon / 255, rel=1e-3)  # it is used, too
    assert after.min() >= 0
    assert after.max() <= 1
    assert table["sample_id"].tolist() == ids


def test_the_loss_rises_and_many_steps_beat_one(trained, ids):
    data = small_digits()
    before, pgd, _ = attack_images(trained, data, ids, 8, "pgd", steps=10)
    _, fgsm, _ = attack_images(trained, data, ids, 8, "fgsm")
    clean, one, many = (cross_entropy(trained, data, ids, images) for images in (before, fgsm, pgd))
    assert (many > clean).all()
    assert many.mean() > one.mean() > clean.mean()


def random_linear(size=4):
    """Two classes, one linear layer; random weights."""
    weight = torch.randn(2, 3 * size * size, generator=torch.Generator().manual_seed(0))
    return linear_model(weight, torch.zeros(2), ("a", "b"), size)


def colour_data(size=4, count=6):
    pixels = np.random.default_rng(0).integers(40, 215, (count, size, size, 3), dtype=np.uint8)
    ids = [f"s{i}" for i in range(count)]
    samples = pd.DataFrame(
        {
            "sample_id": ids,
            "label": ["a", "b"] * (count // 2),
            "split": "test",
            "group": "all",
            "source": "",
        }
    )
    images = {
        sample_id: Image.fromarray(values) for sample_id, values in zip(ids, pixels, strict=True)
    }
    return replace(small_digits(), classes=("a", "b"), samples=samples, read=images.__getitem__)


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
def test_a_linear_model_has_a_closed_form(attack):
    """The loss rises fastest along the sign of w_other - w_own, to epsilon at every pixel; PGD ends
    there, FGSM starts there.
    """
    model, data = random_linear(), colour_data()
    before, after, _ = attack_images(model, data, data.samples["sample_id"], 4, attack, steps=20)
    weight = model.module.weight.detach()
    sign = (weight[1] - weight[0]).sign().view(3, 4, 4).permute(1, 2, 0).numpy()
    direction = np.array([1 if label == "a" else -1 for label in data.samples["label"]])[
        :, None, None, None
    ]
    assert np.allclose(after, before + 4 / 255 * direction * sign, atol=1e-6)


def test_fgsm_is_one_step_of_pgd_without_a_random_start():
    model = random_linear()
    pixels = torch.rand(3, 3, 4, 4)
    gradient = loss_gradient(model, torch.tensor([0, 1, 0]), grey=False)
    one = ATTACKS["pgd"](gradient, pixels, torch.zeros_like(pixels), 0.01, steps=1, step_size=0.01)
    assert torch.equal(
        one, ATTACKS["fgsm"](gradient, pixels, torch.rand_like(pixels), 0.01, steps=7)
    )
    assert torch.allclose(one, (pixels + 0.01 * gradient(pixels).sign()).clamp(0, 1))


def test_the_gradient_is_that_of_the_loss_in_pixels():
    """Against the slope between two points, in double precision."""
    model = random_linear()
    pixels, labels = torch.rand(1, 3, 4, 4), torch.tensor([1])
    gradient = loss_gradient(model, labels, grey=False)(pixels)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in (model.transform.mean, model.transform.std)
    )
    model.module.double()

    def loss(values):
        return F.cross_entropy(model.module((values.double() - mean) / std), labels)

    step = torch.zeros_like(pixels)
    step[0, 2, 1, 3] = 1e-3
    slope = (loss(pixels + step) - loss(pixels - step)) / 2e-3
    assert gradient[0, 2, 1, 3].item() == pytest.approx(slope.item(), rel=1e-3)


def test_grey_images_stay_grey(ids):
    """A model with three channels, grey images: the channels change together."""
    model = random_linear(8)
    data = replace(small_digits(), classes=("a", "b"))
    data = replace(
        data, samples=data.samples.assign(label=np.where(data.samples["label"] == "1", "b", "a"))
    )
    before, after, _ = attack_images(model, data, ids, 4)
    assert (before == before[..., :1]).all()
    assert (after == after[..., :1]).all()
    assert (after != before).any()


def test_accuracy_falls_with_epsilon():
    table = attack_table(linear_digits(), small_digits(), (4, 0, 16), images=24, steps=5)
    assert table["epsilon"].tolist() == [0, 4, 16]
    assert (np.diff(table["value"]) <= 0).all()
    assert table["value"].iloc[-1] < table["value"].iloc[0]
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert (table["n"] == 24).all()
    pd.testing.assert_frame_equal(
        table, attack_table(linear_digits(), small_digits(), (4, 0, 16), images=24, steps=5)
    )


def test_the_table_agrees_with_the_images():
    """At one epsilon, the share of images that the model is right about before and after."""
    data = small_digits()
    ids = data.split("test")["sample_id"].tolist()
    _, _, after = attack_images(linear_digits(), data, ids, 6, steps=2)
    table = attack_table(linear_digits(), data, [6], steps=2, images=10_000)
    survived = (after["pred"] == after["label"]) & (after["changed_pred"] == after["label"])
    assert 0 < survived.mean() < 1
    assert table["value"].iloc[0] == pytest.approx(survived.mean())


def test_the_model_is_left_as_it_was(trained, ids):
    module = trained.module
    module.train()
    first = next(module.parameters())
    first.requires_grad_(False)
    try:
        state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        attack_table(trained, small_digits(), [2], images=6, steps=2)
        assert all(part.training for part in module.modules())
        assert not first.requires_grad
        assert all(parameter.requires_grad for parameter in list(module.parameters())[1:])
        assert all(parameter.grad is None for parameter in module.parameters())
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
        handle = module.register_forward_pre_hook(fail_on_gradient)
        with pytest.raises(RuntimeError, match="on purpose"):
            attack_images(trained, small_digits(), ids, 2)
        handle.remove()
        assert all(part.training for part in module.modules())
        assert not first.requires_grad
        assert all(parameter.requires_grad for parameter in list(module.parameters())[1:])
    finally:
        first.requires_grad_(True)
        module.eval()


def fail_on_gradient(module, inputs):
    if inputs[0].requires_grad:
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(part.training for part in module.modules())
        raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": "pdg"}, "unknown attack 'pdg'. Did you mean pgd"),
        ({"epsilons": [-1]}, "grey levels"),
        ({"epsilons": []}, "grey levels"),
        ({"epsilons": [float("nan")]}, "grey levels"),
        ({"steps": 0}, "at least one step"),
        ({"images": 0}, "at least 1"),
    ],
)
def test_bad_input(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        attack_table(trained, small_digits(), **arguments)


def test_no_image_and_unknown_images(trained):
    with pytest.raises(ValueError, match="no image to attack"):
        attack_images(trained, small_digits(), [])
    with pytest.raises(ValueError, match="sample_ids are not in"):
        attack_images(trained, small_digits(), ["nothing"])

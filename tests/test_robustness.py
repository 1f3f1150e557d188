"""Corruptions, the scores under them, and attacks, against values by hand and closed forms."""

from dataclasses import replace

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.toys import linear_digits, linear_model, small_digits
from vitlab.evaluation import metrics_table
from vitlab.evaluation.calibration import expected_calibration_error
from vitlab.robustness import (
    CORRUPTIONS,
    attack_images,
    attack_table,
    corrupt_image,
    corruption_cost_table,
    describe_attack,
    describe_corruption_costs,
    robustness_table,
)
from vitlab.robustness.attack import _AttackedImages
from vitlab.robustness.scores import draw_test_images
from vitlab.training import predict


def distance(first, second):
    return np.abs(np.asarray(first, float) - np.asarray(second, float)).mean()


@pytest.fixture(scope="module")
def texture():
    """Grey levels that vary smoothly and sharply, 60 x 48."""
    rows, columns = np.mgrid[:48, :60]
    waves = 90 + 50 * np.sin(rows / 5) * np.cos(columns / 7)
    squares = 60 * ((rows // 12 + columns // 12) % 2)
    return Image.fromarray((waves + squares).astype(np.uint8))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_get_worse_with_the_severity(name, texture):
    changes = [
        distance(texture, corrupt_image(texture, name, severity, sample_id="a"))
        for severity in range(6)
    ]
    assert changes[0] == 0
    assert np.all(np.diff(changes) > 0)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_mode_and_size(name):
    for size in ((1, 1), (31, 17)):
        values = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
        images = {mode: Image.fromarray(values).convert(mode) for mode in ("1", "L", "F", "P")}
        images |= {mode: Image.fromarray(values).convert(mode) for mode in ("RGB", "RGBA", "CMYK")}
        images["I;16"] = Image.fromarray(values.astype(np.uint16) * 257)
        for mode, image in images.items():
            worse = corrupt_image(image, name, 5)
            assert worse.size == size
            assert worse.mode == ("L" if mode in ("1", "L", "I;16", "F") else "RGB")


def test_sixteen_bits_are_not_clipped(texture):
    deep = Image.fromarray(np.asarray(texture).astype(np.uint16) * 257)
    assert distance(corrupt_image(deep, "contrast", 2), corrupt_image(texture, "contrast", 2)) == 0


def test_brightness_by_hand_and_as_in_hsv(gradient_image):
    grey = Image.fromarray(np.array([[0, 100, 200]], dtype=np.uint8))
    assert np.asarray(corrupt_image(grey, "brightness", 2)).tolist() == [[51, 151, 251]]
    assert np.asarray(corrupt_image(grey, "brightness", 4)).tolist() == [[102, 202, 255]]
    hsv = matplotlib.colors.rgb_to_hsv(np.asarray(gradient_image) / 255)
    hsv[..., 2] = np.minimum(hsv[..., 2] + 0.3, 1)
    expected = np.round(matplotlib.colors.hsv_to_rgb(hsv) * 255)
    # halves round either way
    assert np.abs(np.asarray(corrupt_image(gradient_image, "brightness", 3)) - expected).max() <= 1


def test_contrast_by_hand():
    grey = Image.fromarray(np.array([[0, 100, 200]], dtype=np.uint8))
    assert np.asarray(corrupt_image(grey, "contrast", 1)).tolist() == [[60, 100, 140]]


def test_blur_has_its_width():
    """A square of light spreads by a Gaussian: the variances add up."""
    pixels = np.zeros((224, 224), dtype=np.uint8)
    pixels[100:124, 100:124] = 255
    spread = np.asarray(corrupt_image(Image.fromarray(pixels), "blur", 4), float)
    offsets = (np.arange(224) - 111.5) ** 2
    variance = [
        (values.sum(axis=0) * offsets).sum() / values.sum()
        for values in (pixels.astype(float), spread)
    ]
    assert variance[1] - variance[0] == pytest.approx(4**2, rel=0.05)


def test_noise_has_its_deviation_and_colours_are_independent():
    grey = Image.new("L", (200, 200), 128)
    noise = np.asarray(corrupt_image(grey, "gaussian_noise", 1, sample_id="a"), float) / 255
    assert noise.std() == pytest.approx(0.08, rel=0.02)
    colours = np.asarray(corrupt_image(grey.convert("RGB"), "gaussian_noise", 1), float)
    assert abs(np.corrcoef(colours[..., 0].ravel(), colours[..., 1].ravel())[0, 1]) < 0.02


def test_rotation_keeps_the_centre_and_leaves_no_empty_corner():
    white = Image.new("L", (40, 30), 255)
    assert np.asarray(corrupt_image(white, "rotation", 5)).min() == 255
    pixels = np.zeros((101, 101), dtype=np.uint8)
    pixels[49:52, 80:83] = 255  # 31 pixels to the right of the centre
    turned = np.asarray(corrupt_image(Image.fromarray(pixels), "rotation", 5, sample_id="a"), float)
    row, column = (turned.sum(axis=1 - axis) @ np.arange(101) / turned.sum() for axis in (0, 1))
    assert abs(np.degrees(np.arctan2(row - 50, column - 50))) == pytest.approx(30, abs=0.5)


def test_random_numbers_depend_on_the_sample_alone(texture):
    first = corrupt_image(texture, "gaussian_noise", 3, sample_id="a")
    np.random.random(5)
    assert distance(first, corrupt_image(texture, "gaussian_noise", 3, sample_id="a")) == 0
    assert distance(first, corrupt_image(texture, "gaussian_noise", 3, sample_id="b")) > 0


def test_unknown_names_and_severities(texture):
    with pytest.raises(ValueError, match=r"'gausian_noise'.*Did you mean gaussian_noise"):
        corrupt_image(texture, "gausian_noise", 1)
    for severity in (6, -1, 2.5, "3"):
        with pytest.raises(ValueError, match="1 \\(mild\\) to 5"):
            corrupt_image(texture, "blur", severity)


@pytest.fixture
def two_corruptions(monkeypatch):
    kept = {name: CORRUPTIONS[name] for name in ("gaussian_noise", "contrast")}
    monkeypatch.setattr("vitlab.robustness.scores.CORRUPTIONS", kept)
    monkeypatch.setattr("vitlab.robustness.scores.choose_precision", lambda device: "fp32")


def test_scores_are_those_of_predictions(two_corruptions):
    """Clean and corrupted rows are what predict and `vitlab.evaluation` give."""
    data, model = small_digits(), linear_digits()
    table = robustness_table(model, data, [3], images=10_000, replicates=50)
    table = table[table["corruption"] != "contrast"]
    for severity in (0, 3):

        def read(sample_id, severity=severity):
            image = data.read(sample_id)
            return corrupt_image(image, "gaussian_noise", severity, sample_id=sample_id)

        predictions = predict(model, replace(data, read=read), splits=["test"])
        rows = table[table["severity"] == severity].set_index("metric")
        expected = metrics_table(predictions, replicates=50).set_index("metric").loc["accuracy"]
        for column in ("value", "low", "high"):
            assert rows.loc["accuracy", column] == pytest.approx(expected[column], abs=1e-6)
        error = expected_calibration_error(predictions)
        assert rows.loc["calibration_error", "value"] == pytest.approx(error, abs=1e-6)
        confidence = predictions.filter(like="prob_").max(axis=1).mean()
        over = confidence - expected["value"]
        assert rows.loc["overconfidence", "value"] == pytest.approx(over, abs=1e-6)
        assert (rows["n"] == len(predictions)).all()


def test_changes_are_paired(two_corruptions):
    table = robustness_table(linear_digits(), small_digits(), [1, 5], images=40, replicates=200)
    assert table["corruption"].unique().tolist() == ["clean", "gaussian_noise", "contrast"]
    without = table["metric"] == "calibration_error"  # resampling inflates it: no interval
    assert table.loc[without, ["low", "high", "change_low", "change_high"]].isna().all(axis=None)
    clean = table[(table["severity"] == 0) & ~without]
    assert (clean[["change", "change_low", "change_high"]] == 0).all(axis=None)
    worst = table[(table["severity"] == 5) & (table["metric"] == "accuracy")].iloc[-1]
    width = (worst["high"] - worst["low"]) + (clean["high"] - clean["low"]).iloc[0]
    assert worst["change"] < 0
    assert worst["change_high"] - worst["change_low"] < width


def test_images_are_decoded_once_and_clusters_are_drawn_together(two_corruptions):
    data, model, reads = small_digits(), linear_digits(), []

    def read(sample_id):
        reads.append(sample_id)
        return data.read(sample_id)

    model.module.train()
    counted = replace(data, read=read)
    first = robustness_table(model, counted, [1, 2], images=12, replicates=10)
    assert len(reads) == len(set(reads)) == 12
    assert all(part.training for part in model.module.modules())
    model.module.eval()
    again = robustness_table(model, data, [1, 2], images=12, replicates=10)
    pd.testing.assert_frame_equal(first, again)
    one = replace(data, samples=data.samples.assign(cluster="all"))
    table = robustness_table(model, one, [1, 2], images=12, replicates=10)
    np.testing.assert_allclose(table["low"].dropna(), table["high"].dropna(), atol=1e-12)


def test_the_drawn_images_are_stratified():
    ids = [f"s{i}" for i in range(100)]
    samples = pd.DataFrame({"sample_id": ids, "label": ["a"] * 70 + ["b"] * 30, "split": "test"})
    shuffled = samples.sample(frac=1, random_state=0)
    data = replace(small_digits(), classes=("a", "b"), samples=shuffled)
    drawn = draw_test_images(data, 20)
    assert drawn["label"].value_counts().to_dict() == {"a": 14, "b": 6}
    assert drawn.equals(draw_test_images(data, 20))
    assert draw_test_images(data, 1000).equals(shuffled)
    with pytest.raises(ValueError, match="no image in split 'test'"):
        draw_test_images(replace(data, samples=samples.assign(split="val")), 5)


def test_costs_by_hand():
    rows = [
        ("accuracy", "clean", 0, 0.8, 0),
        ("accuracy", "blur", 1, 0.6, -0.1),
        ("accuracy", "blur", 3, 0.4, -0.3),
        ("accuracy", "jpeg", 1, 0.8, 0.1),
        ("accuracy", "jpeg", 3, 0.7, 0.05),
        ("calibration_error", "clean", 0, 0.1, 0),
        ("calibration_error", "blur", 3, 0.3, 0),
    ]
    table = pd.DataFrame(rows, columns=["metric", "corruption", "severity", "value", "change_high"])
    clean = table["metric"].map({"accuracy": 0.8, "calibration_error": 0.1})
    table = table.assign(n=50, change=table["value"] - clean, change_low=-0.5)
    costs = corruption_cost_table(table).set_index(["metric", "corruption"])
    assert costs.loc[("accuracy", "blur"), "corrupted"] == pytest.approx(0.5)
    assert costs.loc[("accuracy", "blur"), "change"] == pytest.approx(-0.3)
    assert costs.loc[("accuracy", "all"), "corrupted"] == pytest.approx(0.625)
    assert costs.loc[("calibration_error", "all"), "change"] == pytest.approx(0.2)
    text = describe_corruption_costs(table, 0.77, 500)
    assert "0.625, and 0.800 on the same 50 images" in text
    assert "under blur of severity 3: -0.400 [-0.500, -0.300]" in text
    assert "shown in 2 of 4 conditions" in text


def colour_data(size=4, count=6):
    pixels = np.random.default_rng(0).integers(40, 215, (count, size, size, 3), dtype=np.uint8)
    ids = [f"s{i}" for i in range(count)]
    samples = pd.DataFrame({"sample_id": ids, "label": ["a", "b"] * (count // 2)})
    samples = samples.assign(split="test", group="all", source="")
    images = dict(zip(ids, map(Image.fromarray, pixels), strict=True))
    return replace(small_digits(), classes=("a", "b"), samples=samples, read=images.__getitem__)


def random_linear(size=4):
    """Two classes, one linear layer, random weights."""
    weight = torch.randn(2, 3 * size * size, generator=torch.Generator().manual_seed(0))
    return linear_model(weight, torch.zeros(2), ("a", "b"), size)


def test_pgd_finds_the_closed_form_of_a_linear_model():
    """The loss rises fastest along the sign of w_other - w_own, to epsilon at every pixel."""
    model, data = random_linear(), colour_data()
    before, after, table = attack_images(model, data, data.samples["sample_id"], 4)
    weight = model.module.weight.detach()
    sign = (weight[1] - weight[0]).sign().view(3, 4, 4).permute(1, 2, 0).numpy()
    direction = np.where(data.samples["label"] == "a", 1, -1)[:, None, None, None]
    assert np.allclose(after, before + 4 / 255 * direction * sign, atol=1e-6)
    assert table["sample_id"].tolist() == data.samples["sample_id"].tolist()


def test_the_gradient_is_that_of_the_loss_in_pixels():
    """Against the slope between two points, in double precision."""
    model, data = random_linear(), colour_data()
    images = _AttackedImages(model, data, ["s1"])
    pixels, labels = images.pixels, torch.tensor(images.labels)
    gradient = images.loss_gradient(pixels, images.labels)
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


@pytest.mark.parametrize("epsilon", [0.5, 300 / 8])
def test_pixels_stay_in_range_and_grey_images_grey(epsilon):
    """A model with three channels, grey images: the channels change together."""
    labels = small_digits().samples["label"]
    samples = small_digits().samples.assign(label=np.where(labels == "1", "b", "a"))
    data = replace(small_digits(), classes=("a", "b"), samples=samples)
    ids = data.split("test")["sample_id"].tolist()[:12]
    before, after, _ = attack_images(random_linear(8), data, ids, epsilon)
    assert np.abs(after - before).max() == pytest.approx(epsilon / 255, rel=1e-3)
    assert after.min() >= 0
    assert after.max() <= 1
    assert (after == after[..., :1]).all()


def test_the_attack_table_agrees_with_the_images(monkeypatch):
    """At one epsilon, the share of images that the model is right about before and after."""
    monkeypatch.setattr("vitlab.robustness.attack.EPSILONS", (0, 6))
    data = small_digits()
    ids = data.split("test")["sample_id"].tolist()
    _, _, after = attack_images(linear_digits(), data, ids, 6)
    table = attack_table(linear_digits(), data, images=10_000)
    survived = (after["pred"] == after["label"]) & (after["changed_pred"] == after["label"])
    assert 0 < survived.mean() < 1
    assert table["epsilon"].tolist() == [0, 6]
    assert table["value"].iloc[1] == pytest.approx(survived.mean())
    assert table["value"].between(table["low"], table["high"]).all()
    text = describe_attack(table.assign(value=[0.9, 0.4]))
    assert "90% are classified correctly. An attack that changes each pixel by at most 6" in text
    assert "at least half of them are still correct" in describe_attack(
        table.assign(value=[0.9, 0.45])
    )


def fail_on_gradient(module, inputs):
    if inputs[0].requires_grad:
        raise RuntimeError("on purpose")


def test_an_attack_leaves_the_model_unchanged():
    data, model = small_digits(), linear_digits()
    module, (first, *others) = model.module, model.module.parameters()
    module.train()
    first.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    attack_table(model, data, images=6)
    handle = module.register_forward_pre_hook(fail_on_gradient)
    with pytest.raises(RuntimeError, match="on purpose"):
        attack_table(model, data, images=6)
    handle.remove()
    assert all(part.training for part in module.modules())
    assert not first.requires_grad
    assert all(one.requires_grad and one.grad is None for one in others)
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (robustness_table, {"severities": [1, 7]}, "not 7"),
        (robustness_table, {"images": 0}, "at least 1"),
        (attack_images, {"sample_ids": ["x"], "epsilon": -1}, "grey levels"),
        (attack_images, {"sample_ids": []}, "no image to attack"),
        (attack_images, {"sample_ids": ["nothing"]}, "sample_ids are not in"),
    ],
)
def test_bad_input(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(linear_digits(), small_digits(), **arguments)

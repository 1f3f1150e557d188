"""Exports give the same predictions on real images, or no file; they run without torch, with a
temperature and limits of their own.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from torch import nn

import vitlab.data as with_torch
from tests.toys import linear_digits, small_digits, tiny_hybrid, tiny_vit
from vitlab.compress import export
from vitlab.compress.calibration import find_calibration, note_calibration
from vitlab.compress.export import Gate, draw_pixels, export_onnx, measure_parity
from vitlab.compress.session import (
    OnnxClassifier,
    description_path,
    fit_image,
    normalise,
    read_description,
)
from vitlab.compress.variants import predict_variants
from vitlab.files import hash_file, write_json
from vitlab.models import build_model
from vitlab.schema import Transform


def tiny_timm():
    options = {"size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3}
    return build_model("vit_tiny_patch16_224", small_digits().classes, pretrained=False, **options)


def tiny_cnn():
    return build_model("test_efficientnet", small_digits().classes, pretrained=False, size=32)


def read_images(count):
    data = small_digits()
    return [data.read(sample_id) for sample_id in data.samples["sample_id"].iloc[:count]]


@pytest.mark.parametrize("build", [tiny_vit, tiny_timm, tiny_hybrid, tiny_cnn])
def test_same_logits_at_any_batch(tmp_path, build):
    model = build()
    exported = export_onnx(model, tmp_path / "model.onnx", small_digits(), limit=8)
    assert exported.summary["agreement"] == 1 and exported.summary["max_difference"] < 1e-4
    classifier = OnnxClassifier(exported.path, threads=1)
    for count in (1, 5):
        images = read_images(count)
        batch = torch.stack([with_torch.preprocess(image, model.transform) for image in images])
        with torch.no_grad():
            logits = model.module(batch).numpy()
        np.testing.assert_allclose(classifier.predict_logits(images), logits, atol=1e-4)


def test_description_and_files(tmp_path):
    model = linear_digits()
    model.module.train()
    path = export_onnx(model, tmp_path / "model.onnx", small_digits(), limit=4).path
    assert model.module.training  # left as it was
    description = read_description(path)
    assert description["classes"] == list(model.classes)
    assert description["transform"]["interpolation"] == "bicubic"
    assert {"python", "torch"} <= description["versions"].keys()
    assert not list(onnx.load(path).graph.value_info)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]


def test_a_failing_gate_says_by_how_much_and_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    export_onnx(linear_digits(), path, small_digits(), limit=4)
    before = path.read_bytes(), description_path(path).read_bytes()
    monkeypatch.setattr(export, "EXPORT_GATE", Gate(1.0, difference=-1.0))
    message = r"fails the gate and was not written: 100\.0% of 4 images.*Worst images: digit"
    with pytest.raises(ValueError, match=message):
        export_onnx(linear_digits(), path, small_digits(), limit=4)
    assert (path.read_bytes(), description_path(path).read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_other_preprocessing_is_noticed(tmp_path, monkeypatch):
    def preprocess_otherwise(image, transform):
        return with_torch.preprocess(image.resize((7, 7), Image.Resampling.NEAREST), transform)

    monkeypatch.setattr(export, "preprocess", preprocess_otherwise)
    message = r"preprocessing without torch differs .* in 4 of 4 images, by up to"
    with pytest.raises(ValueError, match=message):
        export_onnx(linear_digits(), tmp_path / "model.onnx", small_digits(), limit=4)
    assert not list(tmp_path.iterdir())


class BranchOnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 10)

    def forward(self, images):
        logits = self.linear(images.mean((2, 3)))
        return logits if logits.sum() > 0 else -logits


class FixedBatch(BranchOnData):
    def forward(self, images):
        return self.linear(images.mean((2, 3))).reshape(len(images), 10)


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({"module": BranchOnData()}, "model.onnx", "cannot be exported: .*data-dependent"),
        ({"module": FixedBatch()}, "model.onnx", "its code fixes the batch"),
        ({"classes": ("a", "b")}, "model.onnx", "distinguishes a, b; the classes of digits"),
        ({}, "model.bin", "write .*model.onnx"),
    ],
)
def test_what_cannot_be_exported(tmp_path, change, name, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(replace(tiny_vit(), **change), tmp_path / name, small_digits(), limit=4)
    assert not list(tmp_path.iterdir())


def test_parity_by_hand():
    reference = np.array([[2.0, 0.0], [0.0, 4.0], [1.0, 0.0]])
    logits = np.array([[2.0, 0.5], [0.0, 4.0], [0.0, 0.1]])
    found = measure_parity(reference, logits)
    assert found["agreement"] == pytest.approx(2 / 3)
    assert (found["max_difference"], found["relative_difference"]) == (1.0, 0.25)
    assert Gate(0.6, 0.3).passes(found)
    assert not Gate(0.7).passes(found) and not Gate(0.6, 0.2).passes(found)
    assert not Gate(0.0).passes(measure_parity(reference, logits * np.nan))
    signs = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert measure_parity(signs, signs + 0.1)["sqnr_db"] == pytest.approx(20)


def test_images_are_drawn_evenly():
    transform = tiny_vit().transform
    rows, pixels = draw_pixels(small_digits(), transform, 20)
    assert rows["label"].value_counts().tolist() == [2] * 10 and pixels.shape == (20, 16, 16, 3)
    assert list(rows["sample_id"]) != list(
        draw_pixels(small_digits(), transform, 20, 1)[0]["sample_id"]
    )


# Running without torch


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    path = export_onnx(linear_digits(), folder / "model.onnx", small_digits(), limit=4).path
    calibrated = read_description(path) | {"calibration": {"temperature": 2.0}}
    write_json(description_path(path), calibrated)
    return path


@pytest.fixture
def copied(exported, tmp_path):
    for file in (exported, description_path(exported)):
        shutil.copy(file, tmp_path)
    return tmp_path / exported.name


def test_probabilities_are_those_of_torch_at_the_temperature(exported):
    model, images = linear_digits(), read_images(40)
    pixels = torch.stack([with_torch.preprocess(image, model.transform) for image in images])
    expected = torch.softmax(model.module(pixels) / 2, dim=1).detach().numpy()
    np.testing.assert_allclose(OnnxClassifier(exported).predict(images), expected, atol=1e-5)


def test_imports_no_torch(exported):
    code = (
        "import sys; from PIL import Image; from vitlab.compress.session import OnnxClassifier; "
        f"print(OnnxClassifier({str(exported)!r}).predict([Image.new('L', (9, 5))]).shape, "
        "{'torch', 'torchvision', 'timm', 'onnx', 'sklearn'} & set(sys.modules))"
    )
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(1, 10) set()"


def test_damaged_and_missing_files(copied):
    whole, beside = copied.read_bytes(), description_path(copied)
    copied.write_bytes(whole[:500])
    with pytest.raises(ValueError, match="damaged or of another export"):
        OnnxClassifier(copied)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"sha256": hash_file(copied)}))
    with pytest.raises(ValueError, match=r"onnxruntime .* cannot run"):
        OnnxClassifier(copied)
    for text, message in {"{": "damaged", "[]": "damaged", '{"name": 1}': "lacks calibra"}.items():
        beside.write_text(text)
        with pytest.raises(ValueError, match=message):
            OnnxClassifier(copied)
    beside.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.onnx\.json is missing"):
        OnnxClassifier(copied)
    with pytest.raises(FileNotFoundError, match=r"other\.onnx is missing"):
        OnnxClassifier(copied.with_name("other.onnx"))


TRANSFORM = Transform(size=(37, 50), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
DRAWN = np.random.default_rng(0)


def draw_image(mode, size):
    width, height = size
    if mode == "F":
        return Image.fromarray(DRAWN.normal(size=(height, width)).astype(np.float32))
    if mode in ("I", "I;16"):
        kind = np.int32 if mode == "I" else np.uint16
        return Image.fromarray(DRAWN.integers(0, 65536, (height, width)).astype(kind))
    pixels = DRAWN.integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
@pytest.mark.parametrize("channels", [3, 1])
def test_preprocessing_is_that_of_training(mode, channels):
    transform = TRANSFORM if channels == 3 else replace(TRANSFORM, mean=(0.449,), std=(0.226,))
    for fit, size in (("pad", (41, 30)), ("crop", (3, 90))):
        image, fitted = draw_image(mode, size), replace(transform, fit=fit)
        expected = with_torch.preprocess(image, fitted).numpy()
        np.testing.assert_array_equal(normalise(fit_image(image, fitted), fitted), expected)


def test_normalising_by_hand():
    pixels = DRAWN.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(normalise(pixels, TRANSFORM)[1], normalise(pixels[1], TRANSFORM))
    by_hand = (pixels[1, 3, 2, 0] / 255 - 0.485) / 0.229
    assert normalise(pixels, TRANSFORM)[1, 0, 3, 2] == pytest.approx(by_hand, abs=1e-6)


# Temperature and conformal limits

CLASSES = np.array(["a", "b", "c"])
LOGITS = [f"logit_{name}" for name in CLASSES]


def draw(generator, count, signal=1.5, split="val"):
    """Predictions of a model whose logits are four times too large; signal: how well it tells the
    classes apart.
    """
    label = np.arange(count) % 3
    logits = 4 * (generator.normal(size=(count, 3)) + signal * np.eye(3)[label])
    ids = [f"{split}{i}" for i in range(count)]
    table = pd.DataFrame({"sample_id": ids, "split": split, "group": "g"})
    table["label"], table["pred"] = CLASSES[label], CLASSES[logits.argmax(axis=1)]
    table[LOGITS] = logits
    table[[f"prob_{name}" for name in CLASSES]] = softmax(logits, axis=1)
    return table


def cover(found, table):
    """Share of the images of each class whose set holds it."""
    prob = softmax(table[LOGITS].to_numpy() / found["temperature"], axis=1)
    limits = [found["limits"][name] for name in CLASSES]
    inside = 1 - prob <= [np.inf if limit is None else limit for limit in limits]
    label = table["label"].map({name: k for k, name in enumerate(CLASSES)}).to_numpy()
    held = inside[np.arange(len(table)), label]
    return np.array([held[label == k].mean() for k in range(3)])


def test_coverage_by_simulation():
    """150 validation splits of 120 images (20 of each class for the limits), 900 new images each,
    nominal 90 % for each class.

    Split conformal prediction covers between 1 - alpha and 1 - alpha + 1 / (n + 1) on average: 90
    to 94.8 % at n = 20."""
    generator, found = np.random.default_rng(0), []
    for _ in range(150):
        found.append(cover(find_calibration(draw(generator, 120)), draw(generator, 900)))
    mean = np.mean(found, axis=0)
    assert ((mean > 0.89) & (mean < 0.958)).all(), mean


def test_limits_of_another_model_do_not_cover():
    """Each file needs its own limits: those of a better model cover less than the nominal 90 %."""
    generator = np.random.default_rng(1)
    full, weak = draw(generator, 900, 3.0), draw(generator, 900, 1.0)
    new = draw(generator, 6000, 1.0)
    assert cover(find_calibration(full), new).mean() < 0.8
    assert cover(find_calibration(weak), new).mean() == pytest.approx(0.9, abs=0.03)


def test_temperature_and_limits_come_from_disjoint_halves_of_each_class():
    table = draw(np.random.default_rng(2), 90)
    before = find_calibration(table)
    moved = {"temperature": [], "limits": []}
    for i in range(90):
        changed = table.copy()
        # the model is sure of another class now
        changed.loc[i, f"logit_{changed.loc[i, 'label']}"] = changed[LOGITS].to_numpy().min() - 20
        prob = softmax(changed[LOGITS].to_numpy(), axis=1)
        changed[[f"prob_{name}" for name in CLASSES]] = prob
        changed["pred"] = CLASSES[prob.argmax(axis=1)]
        after = find_calibration(changed)
        other = after["temperature"] != before["temperature"]
        moved["temperature" if other else "limits"].append(changed.loc[i, "label"])
    for labels in moved.values():
        assert pd.Series(labels).value_counts().to_dict() == {"a": 15, "b": 15, "c": 15}


def test_a_class_with_too_few_images_is_in_every_set():
    table = draw(np.random.default_rng(4), 90)
    rare = table[(table["label"] != "c") | (table.index < 30)]  # ten of c, five for the limits
    found = find_calibration(rare)
    assert found["limits"]["c"] is None and found["limits"]["a"] is not None
    one_each = find_calibration(table.head(3))
    assert one_each["temperature"] == 1.0 and set(one_each["limits"].values()) == {None}
    with pytest.raises(ValueError, match="no validation rows"):
        find_calibration(draw(np.random.default_rng(5), 9, split="test"))


def test_each_file_carries_what_is_fitted_on_its_own_outputs(tmp_path):
    data, noted = small_digits(), []
    for name, model in {"linear": linear_digits(), "vit": tiny_vit()}.items():
        path = export_onnx(model, tmp_path / f"{name}.onnx", data, limit=4).path
        predictions = predict_variants({name: path}, data, model.transform, ("val",))[name]
        assert note_calibration(path, predictions) == find_calibration(predictions)
        noted.append(read_description(path)["calibration"])
        assert noted[-1] == find_calibration(predictions)
        assert OnnxClassifier(path).temperature == noted[-1]["temperature"]
    assert noted[0] != noted[1]
    with pytest.raises(ValueError, match="other classes"):
        note_calibration(path, draw(np.random.default_rng(6), 30))

"""Exports: the same answers, on real images, or no file."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from tests.toys import linear_digits, small_digits, tiny_hybrid, tiny_vit
from vitlab.compress import export
from vitlab.compress.export import export_onnx, find_calibration
from vitlab.compress.parity import Gate, compare_logits, draw_pixels, measure_sqnr, summarise_parity
from vitlab.compress.session import OnnxClassifier
from vitlab.compress.sidecar import sidecar_path
from vitlab.data import preprocess
from vitlab.evaluation import calibrate, conformal_sets
from vitlab.models import build_model


def tiny_timm():
    options = {"size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3}
    return build_model("vit_tiny_patch16_224", small_digits().classes, pretrained=False, **options)


def tiny_cnn():
    return build_model("test_efficientnet", small_digits().classes, pretrained=False, size=32)


def read_images(count):
    data = small_digits()
    return [data.read(sample_id) for sample_id in data.samples["sample_id"].iloc[:count]]


@pytest.mark.parametrize("preprocessing", ["beside", "inside"])
@pytest.mark.parametrize("build", [tiny_vit, tiny_timm, tiny_hybrid, tiny_cnn])
def test_same_logits_at_any_batch(tmp_path, build, preprocessing):
    if preprocessing == "inside" and build is not tiny_vit:
        pytest.skip("the graph in front is the same for every model")
    model = build()
    exported = export_onnx(model, tmp_path / "model.onnx", small_digits(), preprocessing=preprocessing, limit=8)
    assert exported.summary["passed"] and exported.summary["max_difference"] < 1e-4
    classifier = OnnxClassifier(exported.path, threads=1)
    expected = {"beside": ("tensor(float)", [3, *model.transform.size]), "inside": ("tensor(uint8)", [*model.transform.size, 3])}
    graph_input = classifier.session.get_inputs()[0]
    assert (graph_input.type, graph_input.shape[1:]) == expected[preprocessing]
    for count in (1, 5):
        images = read_images(count)
        batch = torch.stack([preprocess(image, model.transform) for image in images])
        with torch.no_grad():
            logits = model.module(batch).numpy()
        np.testing.assert_allclose(classifier.predict_logits(images), logits, atol=1e-4)


def test_grey_model_with_preprocessing_inside(tmp_path):
    model = tiny_vit(in_chans=1)
    path = export_onnx(model, tmp_path / "grey.onnx", small_digits(), preprocessing="inside", limit=4).path
    assert OnnxClassifier(path).session.get_inputs()[0].shape[1:] == [16, 16, 1]


def test_description_and_files(tmp_path):
    model = linear_digits()
    model.module.train()
    path = export_onnx(model, tmp_path / "model.onnx", small_digits(), limit=4).path
    assert model.module.training  # left as it was
    description = json.loads(sidecar_path(path).read_text())
    assert description["classes"] == list(model.classes)
    assert description["transform"]["interpolation"] == "bicubic"
    assert {"torch", "onnx", "onnxruntime"} <= description["versions"].keys()
    assert description["bytes"] == path.stat().st_size
    assert not list(onnx.load(path).graph.value_info)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]


@pytest.fixture(scope="module")
def predictions():
    """Predictions whose logits are twice too large."""
    import pandas as pd
    from scipy.special import softmax

    drawn = np.random.default_rng(0)
    label = drawn.integers(0, 3, 600)
    logits = drawn.normal(size=(600, 3)) + 1.5 * np.eye(3)[label]
    logits *= 4
    classes = np.array(["a", "b", "c"])
    table = pd.DataFrame({"sample_id": [f"s{i}" for i in range(600)], "split": ["val", "test"] * 300, "group": "g"})
    table["label"], table["pred"] = classes[label], classes[logits.argmax(axis=1)]
    table[["logit_a", "logit_b", "logit_c"]], table[["prob_a", "prob_b", "prob_c"]] = logits, softmax(logits, axis=1)
    return table


@pytest.mark.parametrize("by_class", [True, False])
def test_calibration_gives_the_sets_of_evaluation(predictions, by_class):
    found = find_calibration(predictions, alpha=0.2, by_class=by_class)
    calibrated = calibrate(predictions)
    np.testing.assert_allclose(predictions["logit_a"] / found["temperature"], calibrated["logit_a"], rtol=1e-9)
    sets = conformal_sets(calibrated, alpha=0.2, by_class=by_class)
    test = calibrated[calibrated["split"] == "test"]
    inside = 1 - test[["prob_a", "prob_b", "prob_c"]].to_numpy() <= [found["limits"][name] for name in "abc"]
    np.testing.assert_array_equal(inside, sets[["in_a", "in_b", "in_c"]].to_numpy())


def test_a_class_too_rare_to_promise_anything_is_in_every_set(predictions):
    rare = predictions[(predictions["label"] != "c") | (predictions["split"] == "test") | (predictions.index < 20)]
    assert find_calibration(rare, alpha=0.05)["limits"]["c"] is None


def test_a_failing_gate_says_by_how_much_and_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(linear_digits(), path, small_digits(), limit=4)
    before = path.read_bytes(), sidecar_path(path).read_bytes()
    with pytest.raises(ValueError, match=r"fails the gate and was not written: 100\.0% of 4 images.*Worst images: "):
        export_onnx(linear_digits(), path, small_digits(), limit=4, gate=Gate(1.0, difference=-1.0))
    assert (path.read_bytes(), sidecar_path(path).read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_other_preprocessing_is_noticed(tmp_path, monkeypatch):
    def preprocess_otherwise(image, transform):
        return preprocess(image.resize((7, 7), Image.Resampling.NEAREST), transform)

    monkeypatch.setattr(export, "torch_preprocess", preprocess_otherwise)
    with pytest.raises(ValueError, match=r"preprocessing without torch differs .* in 4 of 4 images, by up to"):
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
    ("module", "message"), [(BranchOnData, "cannot be exported: .*data-dependent"), (FixedBatch, "its code fixes the batch")]
)
def test_a_model_that_cannot_be_traced(tmp_path, module, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(replace(tiny_vit(), module=module()), tmp_path / "model.onnx", small_digits(), limit=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.bin", {}, "write .*model.onnx"),
        ("model.onnx", {"preprocessing": "in"}, "Choices: beside, inside"),
        ("model.onnx", {"opset": 11}, "from 18 to"),
        ("model.onnx", {"calibration": {"temperature": 0}}, "temperature 0"),
        ("model.onnx", {"calibration": {"temperature": 1.0, "limits": {"cat": 0.1}}}, "limits for cat"),
        ("model.onnx", {"split": ["nobody"]}, "no images"),
    ],
)
def test_wrong_arguments(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(tiny_vit(), tmp_path / name, small_digits(), **options)


def test_other_classes(tmp_path):
    with pytest.raises(ValueError, match="tells apart a, b; the classes of digits"):
        export_onnx(replace(tiny_vit(), classes=("a", "b")), tmp_path / "model.onnx", small_digits())


def test_parity_by_hand():
    reference = np.array([[2.0, 0.0], [0.0, 4.0], [1.0, 0.0]])
    logits = np.array([[2.0, 0.5], [0.0, 4.0], [0.0, 0.1]])
    table = compare_logits(["a", "b", "c"], reference, logits, ["no", "yes"])
    assert table["sample_id"].tolist() == ["c", "a", "b"]
    assert table.loc[0, ["reference", "converted", "agrees", "difference", "margin"]].tolist() == ["no", "yes", False, 1.0, 1.0]
    summary = summarise_parity(table, reference, logits, Gate(0.6, 0.3))
    assert (summary["agreement"], summary["relative_difference"], summary["passed"]) == (pytest.approx(2 / 3), 0.25, True)
    assert not summarise_parity(table, reference, logits, Gate(0.7))["passed"]
    assert not summarise_parity(table, reference, logits, Gate(0.6, 0.2))["passed"]


def test_sqnr_by_hand():
    reference = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert measure_sqnr(reference, reference + 0.1) == pytest.approx(20)


def test_images_are_drawn_evenly():
    data = small_digits()
    images = draw_pixels(data, tiny_vit().transform, "train", limit=20)
    assert np.bincount(images.label, minlength=10).tolist() == [2] * 10
    assert images.sample_ids != draw_pixels(data, tiny_vit().transform, "train", limit=20, seed=1).sample_ids

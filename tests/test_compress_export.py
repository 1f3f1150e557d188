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
from vitlab.compress.export import export_onnx
from vitlab.compress.parity import Gate, compare_logits, draw_pixels, measure_sqnr, summarise_parity
from vitlab.compress.session import OnnxClassifier
from vitlab.compress.sidecar import sidecar_path
from vitlab.data import preprocess
from vitlab.models import build_model


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
    assert exported.summary["passed"] and exported.summary["max_difference"] < 1e-4
    classifier = OnnxClassifier(exported.path, threads=1)
    graph_input = classifier.session.get_inputs()[0]
    assert (graph_input.type, graph_input.shape[1:]) == (
        "tensor(float)",
        [3, *model.transform.size],
    )
    for count in (1, 5):
        images = read_images(count)
        batch = torch.stack([preprocess(image, model.transform) for image in images])
        with torch.no_grad():
            logits = model.module(batch).numpy()
        np.testing.assert_allclose(classifier.predict_logits(images), logits, atol=1e-4)


def test_a_grey_model(tmp_path):
    path = export_onnx(tiny_vit(in_chans=1), tmp_path / "grey.onnx", small_digits(), limit=4).path
    assert OnnxClassifier(path).session.get_inputs()[0].shape[1:] == [1, 16, 16]


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


def test_a_failing_gate_says_by_how_much_and_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    export_onnx(linear_digits(), path, small_digits(), limit=4)
    before = path.read_bytes(), sidecar_path(path).read_bytes()
    monkeypatch.setattr(export, "EXPORT_GATE", Gate(1.0, difference=-1.0))
    with pytest.raises(
        ValueError, match=r"fails the gate and was not written: 100\.0% of 4 images.*Worst images: "
    ):
        export_onnx(linear_digits(), path, small_digits(), limit=4)
    assert (path.read_bytes(), sidecar_path(path).read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_other_preprocessing_is_noticed(tmp_path, monkeypatch):
    def preprocess_otherwise(image, transform):
        return preprocess(image.resize((7, 7), Image.Resampling.NEAREST), transform)

    monkeypatch.setattr(export, "torch_preprocess", preprocess_otherwise)
    with pytest.raises(
        ValueError, match=r"preprocessing without torch differs .* in 4 of 4 images, by up to"
    ):
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
    ("module", "message"),
    [
        (BranchOnData, "cannot be exported: .*data-dependent"),
        (FixedBatch, "its code fixes the batch"),
    ],
)
def test_a_model_that_cannot_be_traced(tmp_path, module, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(
            replace(tiny_vit(), module=module()), tmp_path / "model.onnx", small_digits(), limit=4
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.bin", {}, "write .*model.onnx"),
        ("model.onnx", {"split": ["nobody"]}, "no images"),
    ],
)
def test_wrong_arguments(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(tiny_vit(), tmp_path / name, small_digits(), **options)


def test_other_classes(tmp_path):
    with pytest.raises(ValueError, match="distinguishes a, b; the classes of digits"):
        export_onnx(
            replace(tiny_vit(), classes=("a", "b")), tmp_path / "model.onnx", small_digits()
        )


def test_parity_by_hand():
    reference = np.array([[2.0, 0.0], [0.0, 4.0], [1.0, 0.0]])
    logits = np.array([[2.0, 0.5], [0.0, 4.0], [0.0, 0.1]])
    table = compare_logits(["a", "b", "c"], reference, logits, ["no", "yes"])
    assert table["sample_id"].tolist() == ["c", "a", "b"]
    assert table.loc[0, ["reference", "converted", "agrees", "difference", "margin"]].tolist() == [
        "no",
        "yes",
        False,
        1.0,
        1.0,
    ]
    summary = summarise_parity(table, reference, logits, Gate(0.6, 0.3))
    assert (summary["agreement"], summary["relative_difference"], summary["passed"]) == (
        pytest.approx(2 / 3),
        0.25,
        True,
    )
    assert not summarise_parity(table, reference, logits, Gate(0.7))["passed"]
    assert not summarise_parity(table, reference, logits, Gate(0.6, 0.2))["passed"]


def test_sqnr_by_hand():
    reference = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert measure_sqnr(reference, reference + 0.1) == pytest.approx(20)


def test_images_are_drawn_evenly():
    data = small_digits()
    images = draw_pixels(data, tiny_vit().transform, "train", limit=20)
    assert np.bincount(images.label, minlength=10).tolist() == [2] * 10
    assert (
        images.sample_ids
        != draw_pixels(data, tiny_vit().transform, "train", limit=20, seed=1).sample_ids
    )

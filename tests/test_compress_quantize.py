"""Fewer bits, the same answers, or no file."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.toys import linear_digits, small_digits, tiny_vit
from vitlab.compress import quantize as quantizing
from vitlab.compress.converting import Converter, load_graph
from vitlab.compress.export import export_onnx
from vitlab.compress.graph import map_nodes, name_nodes, weight_bytes, weighted_nodes
from vitlab.compress.parity import Gate, draw_pixels
from vitlab.compress.quantize import quantize_onnx
from vitlab.compress.sensitivity import rank_nodes
from vitlab.compress.session import OnnxClassifier, open_session, run_pixels
from vitlab.compress.sidecar import read_sidecar, sidecar_path
from vitlab.runs import write_json


class ConvNet(nn.Module):
    """Convolutions with a residual, then tokens with a residual, then a linear head."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, images):
        maps = torch.clamp(self.first(images), 0, 6)
        maps = maps + self.second(maps)
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = tokens + nn.functional.gelu(self.mix(tokens))
        return 10 * self.head(tokens.mean(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Float exports of logistic regression (linear.onnx), a little CNN (conv.onnx) and a ViT
    (vit.onnx).
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("float")
    models = {
        "linear": linear_digits(),
        "conv": replace(linear_digits(), module=ConvNet().eval()),
        "vit": tiny_vit(),
    }
    for name, model in models.items():
        export_onnx(model, folder / f"{name}.onnx", small_digits(), limit=6)
    return folder


def quantize(folder, name, target, **options):
    return quantize_onnx(folder / f"{name}.onnx", target, small_digits(), split="train", **options)


def test_static_keeps_the_classes(folder, tmp_path):
    result = quantize(folder, "linear", tmp_path / "int8.onnx", gate=Gate(0.95))
    assert result.summary["agreement"] >= 0.95
    assert 15 < result.summary["sqnr_db"] < 80  # noise there is, and no more than 8 bits make
    graph = onnx.load(result.path).graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert read_sidecar(result.path)["method"] == "static"


def test_dynamic_changes_the_linear_layers(folder, tmp_path):
    result = quantize(
        folder, "vit", tmp_path / "small.onnx", method="dynamic", gate=Gate(0.0), gate_images=10
    )
    operators = [node.op_type for node in onnx.load(result.path).graph.node]
    assert operators.count("MatMulInteger") >= 12  # qkv, proj, fc1, fc2 of three blocks
    assert result.summary["max_difference"] > 0
    assert result.summary["share"] > 0.8
    assert read_sidecar(result.path)["parity"]["against"] == "vit.onnx"


def test_the_source_s_temperature_and_limits_are_not_taken_over(folder, tmp_path):
    for file in (folder / "linear.onnx", sidecar_path(folder / "linear.onnx")):
        shutil.copy(file, tmp_path)
    source = tmp_path / "linear.onnx"
    write_json(
        sidecar_path(source),
        read_sidecar(source) | {"calibration": {"temperature": 2.0, "limits": None}},
    )
    result = quantize(tmp_path, "linear", tmp_path / "int8.onnx", gate=Gate(0.0), gate_images=10)
    assert (
        read_sidecar(result.path)["calibration"] is None
        and OnnxClassifier(result.path, threads=1).temperature == 1.0
    )


def test_maps_of_convolutions_are_told_from_tokens(folder):
    proto = name_nodes(onnx.load(folder / "conv.onnx"))
    by_name = {node.name: node.op_type for node in proto.graph.node}
    assert [node.op_type for node in weighted_nodes(proto).values()] == [
        "Conv",
        "Conv",
        "MatMul",
        "Gemm",
    ]
    between = [by_name[name] for name in map_nodes(proto)]
    assert between.count("Add") == 1 and "Clip" in between
    first = next(iter(weighted_nodes(proto)))
    # the activation of a spared convolution is spared
    assert [by_name[name] for name in map_nodes(proto, {first})] == ["Add"]
    # the tokens' sum and a bias stay float
    assert sum(kind == "Add" for kind in by_name.values()) > 1


def test_the_most_sensitive_nodes_are_spared_until_the_gate_passes(folder, tmp_path):
    plain = quantize(folder, "conv", tmp_path / "plain.onnx", gate=Gate(0.0), gate_images=20)
    assert plain.summary["float_nodes"] == [] and plain.summary["share"] == 1.0
    tight = Gate(0.0, difference=plain.summary["relative_difference"] * 0.9)
    spared = quantize(
        folder, "conv", tmp_path / "spared.onnx", gate=tight, on_failure="flag", gate_images=20
    )
    chosen = spared.summary["float_nodes"]
    sizes = weight_bytes(
        load_graph(folder / "conv.onnx"), weighted_nodes(load_graph(folder / "conv.onnx"))
    )
    assert chosen and spared.summary["share"] == pytest.approx(
        1 - sum(sizes[name] for name in chosen) / sum(sizes.values())
    )


def test_ranking_covers_every_weight_and_puts_the_most_sensitive_first(folder, tmp_path):
    data, transform = small_digits(), linear_digits().transform
    images = draw_pixels(data, transform, "train", 40)
    converter = Converter(
        load_graph(folder / "conv.onnx"), "static", images, transform, False, tmp_path
    )
    reference = run_pixels(open_session(folder / "conv.onnx"), images.pixels, transform)
    table = rank_nodes(converter, images, reference, transform)
    assert set(table["node"]) == set(weighted_nodes(name_nodes(onnx.load(folder / "conv.onnx"))))
    assert table["sqnr_db"].is_monotonic_increasing and table["sqnr_db"].max() > 20


def test_notes_of_the_exporter_are_left_out(folder, tmp_path):
    path = quantize(folder, "vit", tmp_path / "int8.onnx", gate=Gate(0.0), gate_images=10).path
    graph = onnx.load(path).graph
    assert any(node.metadata_props for node in onnx.load(folder / "vit.onnx").graph.node)
    assert (
        not any(node.metadata_props or node.doc_string for node in graph.node)
        and not graph.value_info
    )


def test_a_failing_gate_names_the_worst_images_and_writes_nothing(folder, tmp_path):
    tight = {"gate": Gate(1.0, difference=1e-9), "gate_images": 12}
    with pytest.raises(
        ValueError,
        match=r"as static \(vit.onnx\) fails the gate and was not written.*Worst images: \w+",
    ):
        quantize(folder, "vit", tmp_path / "int8.onnx", **tight)
    assert not list(tmp_path.iterdir())
    flagged = quantize(folder, "vit", tmp_path / "int8.onnx", on_failure="flag", **tight)
    assert read_sidecar(flagged.path)["parity"]["passed"] is False


def test_calibration_and_gate_take_different_images(folder, tmp_path):
    result = quantize(folder, "linear", tmp_path / "int8.onnx", gate=Gate(0.0), gate_images=15)
    other = quantize(
        folder, "linear", tmp_path / "other.onnx", gate=Gate(0.0), method="dynamic", gate_images=20
    )
    assert len(result.parity) == 15 and not set(result.parity["sample_id"]) & set(
        other.parity["sample_id"]
    )


def test_calibration_images_of_one_class(folder, tmp_path):
    data = small_digits()
    ones = data.samples.query("label == '1'")["sample_id"].tolist()
    with pytest.raises(ValueError, match="only the class 1"):
        quantize_onnx(folder / "linear.onnx", tmp_path / "int8.onnx", data, split=ones)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "int8"}, "Choices: static, dynamic"),
        ({"on_failure": "warn"}, "refuse, flag"),
    ],
)
def test_wrong_arguments(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        quantize(folder, "linear", tmp_path / "int8.onnx", **options)


def test_what_is_quantised_already(folder, tmp_path):
    small = quantize(
        folder, "linear", tmp_path / "int8.onnx", method="dynamic", gate=Gate(0.0)
    ).path
    with pytest.raises(ValueError, match="is dynamic already"):
        quantize_onnx(small, tmp_path / "twice.onnx", small_digits())
    with pytest.raises(ValueError, match="would replace the float model"):
        quantize_onnx(folder / "linear.onnx", folder / "linear.onnx", small_digits())
    assert sidecar_path(folder / "linear.onnx").is_file()


def test_seven_bits_where_the_processor_lacks_vnni(folder, tmp_path, monkeypatch):
    def largest_weight(reduce_range):
        path = tmp_path / f"{reduce_range}.onnx"
        monkeypatch.setattr(quantizing, "multiplies_int8", lambda: not reduce_range)
        quantize(folder, "linear", path, gate=Gate(0.0), gate_images=10)
        weights = [
            onnx.numpy_helper.to_array(t)
            for t in onnx.load(path).graph.initializer
            if t.data_type == onnx.TensorProto.INT8
        ]
        return max(np.abs(weight.astype(int)).max() for weight in weights)

    assert largest_weight(False) == 127 and largest_weight(True) <= 64

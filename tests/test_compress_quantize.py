"""Fewer bits, the same answers, or no file."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.toys import linear_digits, small_digits, tiny_vit
from vitlab.compress.export import export_onnx
from vitlab.compress.graph import map_nodes, name_nodes, weighted_nodes
from vitlab.compress.parity import Gate
from vitlab.compress.quantize import float_frontier_table, quantize_onnx, sensitivity_table
from vitlab.compress.session import OnnxClassifier, open_session
from vitlab.compress.sidecar import read_sidecar, sidecar_path


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
    """Float exports of logistic regression (linear.onnx), a little CNN (conv.onnx) and a ViT (vit.onnx)."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("float")
    models = {"linear": linear_digits(), "conv": replace(linear_digits(), module=ConvNet().eval()), "vit": tiny_vit()}
    for name, model in models.items():
        calibration = {"temperature": 2.0, "limits": None}
        export_onnx(model, folder / f"{name}.onnx", small_digits(), limit=6, calibration=calibration)
    return folder


def quantize(folder, name, target, **options):
    return quantize_onnx(folder / f"{name}.onnx", target, small_digits(), split="train", **options)


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_static_keeps_the_answers(folder, tmp_path, calibration):
    result = quantize(folder, "linear", tmp_path / "int8.onnx", calibration=calibration, gate=Gate(0.95), calibration_images=40)
    assert result.summary["agreement"] >= 0.95
    assert 15 < result.summary["sqnr_db"] < 80  # noise there is, and no more than 8 bits make
    graph = onnx.load(result.path).graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    description = read_sidecar(result.path)
    assert description["method"] == "static" and description["calibration"]["temperature"] == 2.0
    assert description["quantisation"]["calibration"] == calibration
    assert OnnxClassifier(result.path, threads=1).temperature == 2.0


@pytest.mark.parametrize(
    ("method", "op"), [("dynamic", "MatMulInteger"), ("weights8", "MatMulNBits"), ("weights4", "MatMulNBits")]
)
def test_other_methods_change_the_linear_layers(folder, tmp_path, method, op):
    result = quantize(folder, "vit", tmp_path / "small.onnx", method=method, gate=Gate(0.0), gate_images=10)
    operators = [node.op_type for node in onnx.load(result.path).graph.node]
    assert operators.count(op) >= 12  # qkv, proj, fc1, fc2 of three blocks
    assert result.summary["max_difference"] > 0
    assert result.summary["share"] > 0.8
    assert read_sidecar(result.path)["parity"]["against"] == "vit.onnx"


def test_half_precision(folder, tmp_path):
    result = quantize(folder, "vit", tmp_path / "half.onnx", method="fp16", gate=Gate(0.0, 0.02), gate_images=10)
    halves = [tensor for tensor in onnx.load(result.path).graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) > 20 and result.summary["relative_difference"] < 0.02
    assert open_session(result.path).get_inputs()[0].type == "tensor(float)"


def test_maps_of_convolutions_are_told_from_tokens(folder):
    proto = name_nodes(onnx.load(folder / "conv.onnx"))
    by_name = {node.name: node.op_type for node in proto.graph.node}
    assert [node.op_type for node in weighted_nodes(proto).values()] == ["Conv", "Conv", "MatMul", "Gemm"]
    between = [by_name[name] for name in map_nodes(proto)]
    assert between.count("Add") == 1 and "Clip" in between
    first = next(iter(weighted_nodes(proto)))
    assert [by_name[name] for name in map_nodes(proto, {first})] == ["Add"]  # the activation of a spared convolution is spared
    assert sum(kind == "Add" for kind in by_name.values()) > 1  # the tokens' sum and a bias stay float


def test_named_nodes_stay_in_float(folder, tmp_path):
    names = list(weighted_nodes(name_nodes(onnx.load(folder / "conv.onnx"))))
    result = quantize(folder, "conv", tmp_path / "int8.onnx", float_nodes=names[:1], gate=Gate(0.0), gate_images=10)
    all_of_them = quantize(folder, "conv", tmp_path / "all.onnx", gate=Gate(0.0), gate_images=10)
    assert result.summary["float_nodes"] == names[:1]
    assert all_of_them.summary["share"] == 1.0
    assert result.summary["share"] == pytest.approx(1 - 3 * 8 * 9 / (3 * 8 * 9 + 8 * 8 * 9 + 64 + 80))
    kernels = [
        len(tensor.dims) == 4 and tensor.data_type == onnx.TensorProto.INT8 for tensor in onnx.load(result.path).graph.initializer
    ]
    assert sum(kernels) == 1


def test_sensitivity_ranks_every_weight_and_auto_spares_the_first(folder, tmp_path):
    options = {"calibration_images": 20, "gate_images": 20}
    table = sensitivity_table(folder / "conv.onnx", small_digits(), split="train", **options)
    assert set(table["node"]) == set(weighted_nodes(name_nodes(onnx.load(folder / "conv.onnx"))))
    assert table["sqnr_db"].is_monotonic_increasing and table["sqnr_db"].max() > 20
    assert set(table["module"]) == {"first", "second", "mix", "head"}
    assert table.set_index("module")["kilobytes"].to_dict() == {"first": 0.864, "second": 2.304, "mix": 0.256, "head": 0.32}
    plain = quantize(folder, "conv", tmp_path / "plain.onnx", float_nodes=[], gate=Gate(0.0), **options)
    tight = Gate(0.0, difference=plain.summary["relative_difference"] * 0.9)
    spared = quantize(folder, "conv", tmp_path / "spared.onnx", gate=tight, on_failure="flag", **options)
    assert spared.summary["float_nodes"][0] in set(table["node"][:2])


def test_compensated_rounding_is_closer_than_the_nearest(folder, tmp_path):
    options = {"gate": Gate(0.0), "float_nodes": [], "calibration_images": 40, "gate_images": 40}
    sqnr = {
        rounding: quantize(folder, "conv", tmp_path / f"{rounding}.onnx", rounding=rounding, **options).summary["sqnr_db"]
        for rounding in ("nearest", "compensated")
    }
    assert sqnr["compensated"] > sqnr["nearest"] + 1
    assert read_sidecar(tmp_path / "nearest.onnx")["quantisation"]["rounding"] == "nearest"


def test_the_frontier_of_float_nodes(folder):
    table = float_frontier_table(
        folder / "conv.onnx", small_digits(), split="train", counts=(0, 2, 9), calibration_images=20, gate_images=20, repeats=3
    )
    assert table["float_nodes"].tolist() == [0, 2]  # it has four
    assert table["share"].iloc[0] == 1 and table["share"].iloc[1] < 1
    assert table["sqnr_db"].iloc[1] > table["sqnr_db"].iloc[0]
    assert (table["flips"] == (20 * (1 - table["agreement"])).round()).all()
    assert (table[["size_mb", "p50_ms", "ratio"]] > 0).all(axis=None)


def test_notes_of_the_exporter_are_left_out(folder, tmp_path):
    path = quantize(folder, "vit", tmp_path / "int8.onnx", gate=Gate(0.0), gate_images=10, float_nodes=[]).path
    graph = onnx.load(path).graph
    assert any(node.metadata_props for node in onnx.load(folder / "vit.onnx").graph.node)
    assert not any(node.metadata_props or node.doc_string for node in graph.node) and not graph.value_info


def test_a_failing_gate_names_the_worst_images_and_writes_nothing(folder, tmp_path):
    tight = {"gate": Gate(1.0, difference=1e-9), "gate_images": 12, "float_nodes": []}
    with pytest.raises(ValueError, match=r"as static \(vit.onnx\) fails the gate and was not written.*Worst images: \w+"):
        quantize(folder, "vit", tmp_path / "int8.onnx", **tight)
    assert not list(tmp_path.iterdir())
    flagged = quantize(folder, "vit", tmp_path / "int8.onnx", on_failure="flag", **tight)
    assert read_sidecar(flagged.path)["parity"]["passed"] is False


def test_calibration_and_gate_take_different_images(folder, tmp_path):
    result = quantize(folder, "linear", tmp_path / "int8.onnx", gate=Gate(0.0), calibration_images=20, gate_images=15)
    other = quantize(folder, "linear", tmp_path / "other.onnx", gate=Gate(0.0), method="dynamic", gate_images=20)
    assert len(result.parity) == 15 and not set(result.parity["sample_id"]) & set(other.parity["sample_id"])


def test_calibration_images_of_one_class(folder, tmp_path):
    data = small_digits()
    ones = data.samples.query("label == '1'")["sample_id"].tolist()
    with pytest.raises(ValueError, match="only the class 1"):
        quantize_onnx(folder / "linear.onnx", tmp_path / "int8.onnx", data, split=ones)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "int8"}, "Choices: dynamic, static"),
        ({"calibration": "min-max"}, "Did you mean minmax"),
        ({"rounding": "up"}, "Choices: compensated, nearest"),
        ({"on_failure": "warn"}, "refuse, flag"),
        ({"float_nodes": ["nobody"]}, "unknown node 'nobody'"),
        ({"float_nodes": "all"}, "list of names"),
        ({"float_nodes": ["x"], "method": "fp16"}, "goes with static and dynamic"),
    ],
)
def test_wrong_arguments(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        quantize(folder, "linear", tmp_path / "int8.onnx", **options)


def test_what_is_quantised_already(folder, tmp_path):
    small = quantize(folder, "linear", tmp_path / "int8.onnx", method="dynamic", gate=Gate(0.0)).path
    with pytest.raises(ValueError, match="is dynamic already"):
        quantize_onnx(small, tmp_path / "twice.onnx", small_digits())
    with pytest.raises(ValueError, match="would replace the float model"):
        quantize_onnx(folder / "linear.onnx", folder / "linear.onnx", small_digits())
    assert sidecar_path(folder / "linear.onnx").is_file()


def test_seven_bits_where_the_processor_lacks_vnni(folder, tmp_path):
    def largest_weight(reduce_range):
        path = tmp_path / f"{reduce_range}.onnx"
        quantize(folder, "linear", path, gate=Gate(0.0), reduce_range=reduce_range, calibration_images=20, gate_images=10)
        weights = [
            onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8
        ]
        return max(np.abs(weight.astype(int)).max() for weight in weights)

    assert largest_weight(False) == 127 and largest_weight(True) <= 64

"""Rounding that keeps a layer's outputs: by hand, and against rounding to the nearest."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from vitlab.compress.graph import name_nodes
from vitlab.compress.rounding import (
    Moments,
    collect_moments,
    cut_patches,
    level_logits,
    refine_weights,
    round_weights,
)
from vitlab.compress.session import open_session


def make_inputs(groups=2, n=9, count=400, even=0.95, seed=0):
    """Inputs that are nearly equal, as the pixels under a kernel are: (groups, n, count)."""
    random = np.random.default_rng(seed)
    common = random.normal(3, 1, (groups, 1, count))
    return even * common + (1 - even) * random.normal(size=(groups, n, count))


def test_even_inputs_keep_the_sum_of_the_weights():
    """Four weights of 0.4 steps under equal inputs: to the nearest they all vanish; their sum is
    1.6 steps.
    """
    weight, scale = np.full((1, 1, 4), 0.4), np.ones((1, 1))
    numbers = round_weights(weight, scale, np.ones((1, 4, 4)))
    assert np.abs(np.round(weight)).sum() == 0
    assert numbers.sum() == 2


def test_independent_inputs_round_to_the_nearest():
    weight = np.random.default_rng(0).normal(0, 30, (3, 5, 7))
    numbers = round_weights(weight, np.ones((3, 5)), np.tile(np.eye(7), (3, 1, 1)))
    np.testing.assert_array_equal(numbers, np.round(weight))


@pytest.mark.parametrize("n", [9, 150])  # 150: more than one block of columns
def test_less_error_than_the_nearest_and_within_the_range(n):
    x = make_inputs(2, n, 2000)
    weight = np.random.default_rng(1).normal(size=(2, 6, n))
    scale = np.abs(weight).max(axis=2) / 63
    moments = Moments(x.sum(2), x @ x.transpose(0, 2, 1), x.shape[2])
    numbers = round_weights(weight, scale, moments.spread(centred=False), largest=63)
    assert np.abs(numbers).max() <= 63 and (numbers == np.round(numbers)).all()

    def measure(whole):
        return ((weight @ x - (whole * scale[:, :, None]) @ x) ** 2).mean()

    assert measure(numbers) < 0.25 * measure(np.round(weight / scale[:, :, None]))


def test_dead_inputs_are_no_division_by_zero():
    spread = np.zeros((1, 4, 4))
    assert np.isfinite(round_weights(np.ones((1, 2, 4)) * 0.7, np.ones((1, 2)), spread)).all()


def test_moments_by_hand():
    x = make_inputs(1, 3, 50)
    moments = Moments(np.zeros((1, 3)), np.zeros((1, 3, 3)), 0)
    moments.add(x[:, :, :20])
    moments.add(x[:, :, 20:])
    np.testing.assert_allclose(moments.mean[0], x[0].mean(axis=1))
    np.testing.assert_allclose(moments.spread(True)[0], np.cov(x[0], bias=True))
    np.testing.assert_allclose(moments.spread(False)[0], x[0] @ x[0].T / 50)


@pytest.mark.parametrize(
    ("groups", "stride", "kernel"), [(1, 1, 3), (1, 2, 1), (4, 2, 3), (2, 1, 3)]
)
def test_patches_are_what_the_convolution_multiplies(groups, stride, kernel):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    x = torch.randn(1, 4, 7, 6)
    pads = [kernel // 2] * 4
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=[stride] * 2, pads=pads, group=groups
    )
    patches = cut_patches(node, x.numpy(), layer.weight.shape, np.random.default_rng(0))
    weight = layer.weight.detach().numpy().reshape(groups, 8 // groups, -1)
    np.testing.assert_allclose(
        (weight @ patches).reshape(8, -1), layer(x).detach().numpy()[0].reshape(8, -1), atol=1e-5
    )


def make_graph(head_bias=True):
    """A depthwise convolution, pooling, and MatMul + bias to logits."""
    random = np.random.default_rng(0)
    kernel = random.normal(size=(8, 1, 3, 3)).astype(np.float32)
    shapes = {"kernel": kernel, "kernel_bias": np.zeros(8, np.float32), "axes": np.array([2, 3])}
    shapes |= {
        "matrix": random.normal(size=(8, 3)).astype(np.float32),
        "shift": random.normal(size=3).astype(np.float32),
    }
    nodes = [
        helper.make_node(
            "Conv", ["images", "kernel", "kernel_bias"], ["maps"], group=8, pads=[1] * 4
        ),
        helper.make_node("ReduceMean", ["maps", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "matrix"], ["product" if head_bias else "logits"]),
    ]
    nodes += [helper.make_node("Add", ["product", "shift"], ["logits"])] if head_bias else []
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 8, 12, 12])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    tensors = [numpy_helper.from_array(values, name) for name, values in shapes.items()]
    graph = helper.make_graph(nodes, "tiny", [images], [logits], tensors)
    return name_nodes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    )


def draw_flat(count=12, seed=1):
    """Images of one brightness each, with a little noise."""
    random = np.random.default_rng(seed)
    return (
        random.uniform(0, 5, (count, 1, 1, 1)) + 0.02 * random.normal(size=(count, 8, 12, 12))
    ).astype(np.float32)


def quantise(proto, folder):
    """The convolution in 8 bits, as onnxruntime does it."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    from vitlab.compress.ranges import _Reader, silence

    onnx.save(proto, folder / "float.onnx")
    with silence():
        quantize_static(
            folder / "float.onnx",
            folder / "int8.onnx",
            _Reader(draw_flat()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
        )
    return onnx.load(folder / "int8.onnx")


def run(proto, images):
    return open_session(proto.SerializeToString()).run(None, {"images": images})[0]


def put_back(quantised, proto):
    """The float graph with the kernel and bias of the quantised one, so that no activation is
    rounded.
    """
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    back = onnx.ModelProto()
    back.CopyFrom(proto)
    for tensor in back.graph.initializer[:2]:
        scale = tensors[
            f"{tensor.name}{'_scale' if tensor.name == 'kernel' else '_quantized_scale'}"
        ]
        values = tensors[f"{tensor.name}_quantized"] * scale.reshape(
            -1, *[1] * (len(tensor.dims) - 1)
        )
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return back


def test_a_graph_of_onnxruntime_is_refined(tmp_path):
    proto = make_graph()
    quantised = quantise(proto, tmp_path)
    test, batches = draw_flat(seed=2), [draw_flat()]
    before = np.abs(run(put_back(quantised, proto), test) - run(proto, test)).mean()
    moments = collect_moments(proto, ["Conv_0", "MatMul_2"], batches)
    assert moments["Conv_0"].total.shape == (8, 9) and moments["MatMul_2"].outer.shape == (1, 8, 8)
    refined = refine_weights(quantised, proto, moments)
    assert np.abs(run(put_back(refined, proto), test) - run(proto, test)).mean() < 0.3 * before
    matrix = next(tensor for tensor in refined.graph.initializer if tensor.name == "matrix")
    np.testing.assert_array_equal(
        numpy_helper.to_array(matrix), numpy_helper.to_array(proto.graph.initializer[3])
    )


@pytest.mark.parametrize("head_bias", [True, False])
def test_logits_are_levelled_where_a_bias_can_take_it(head_bias):
    proto, other = make_graph(head_bias), make_graph(head_bias)
    matrix = next(tensor for tensor in other.graph.initializer if tensor.name == "matrix")
    matrix.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(matrix) * np.float32(1.1), "matrix")
    )
    images = draw_flat()
    gap = (run(other, images) - run(proto, images)).mean(axis=0)
    levelled = level_logits(other, proto, [images[:5], images[5:]])
    np.testing.assert_allclose(
        (run(levelled, images) - run(proto, images)).mean(axis=0),
        0 if head_bias else gap,
        atol=1e-4,
    )

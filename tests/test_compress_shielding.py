"""A node that is to stay in float does, in the graph that onnxruntime really runs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitlab.compress.graph import name_nodes
from vitlab.compress.shielding import shield_float_nodes

X = np.random.default_rng(0).uniform(0, 6, (2, 4, 8, 8)).astype(np.float32)


def make_graph(activation, last="QuantizeLinear"):
    """Q, DQ, a float convolution whose channels differ a hundredfold, an activation, Q, DQ."""
    kernel = (
        np.random.default_rng(1).normal(size=(4, 4, 3, 3)).astype(np.float32)
        * np.float32([1, 0.01, 1, 0.01])[:, None, None, None]
    )
    constants = {
        "kernel": kernel,
        "bias": np.zeros(4, np.float32),
        "scale": np.float32(6 / 255),
        "out": np.float32(0.1),
    }
    constants |= {"zero": np.uint8(0), "low": np.float32(0), "high": np.float32(6)}
    pair = [("QuantizeLinear", "images", "scale", "q"), ("DequantizeLinear", "q", "scale", "dq")]
    nodes = [
        helper.make_node(kind, [value, scale, "zero"], [made]) for kind, value, scale, made in pair
    ]
    nodes.append(helper.make_node("Conv", ["dq", "kernel", "bias"], ["maps"], pads=[1] * 4))
    inputs = {"Clip": ["maps", "low", "high"], "Relu": ["maps"]}.get(activation)
    nodes += [helper.make_node(activation, inputs, ["active"])] if inputs else []
    value = "active" if inputs else "maps"
    if last == "QuantizeLinear":
        nodes.append(helper.make_node("QuantizeLinear", [value, "out", "zero"], ["oq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["oq", "out", "zero"], ["logits"]))
    else:
        nodes.append(helper.make_node(last, [value], ["logits"]))
    images, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4, 8, 8])
        for name in ("images", "logits")
    )
    tensors = [
        numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()
    ]
    graph = helper.make_graph(nodes, "one", [images], [logits], tensors)
    return name_nodes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    )


def run(proto, folder, level):
    """The outputs, and the kinds of nodes that onnxruntime made of the graph."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": X})[0], [
        node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node
    ]


@pytest.mark.parametrize("activation", ["Clip", "Relu", None])
def test_a_float_convolution_between_8_bit_maps_stays_float(tmp_path, activation):
    levels = onnxruntime.GraphOptimizationLevel
    expected, _ = run(make_graph(activation), tmp_path, levels.ORT_DISABLE_ALL)
    shielded = shield_float_nodes(make_graph(activation))
    found, kinds = run(shielded, tmp_path, levels.ORT_ENABLE_ALL)
    assert kinds.count("DequantizeLinear") == 2 and not any(
        kind.startswith("QLinear") for kind in kinds
    )
    # half a step of the output: nothing but ties
    assert (np.abs(found - expected) > 0.051).mean() == 0
    onnx.checker.check_model(shielded)


def test_without_a_shield_onnxruntime_quantises_it(tmp_path):
    """Fails once onnxruntime no longer does: then the shield can go."""
    levels = onnxruntime.GraphOptimizationLevel
    expected, _ = run(make_graph("Clip"), tmp_path, levels.ORT_DISABLE_ALL)
    found, kinds = run(make_graph("Clip"), tmp_path, levels.ORT_ENABLE_ALL)
    assert kinds.count("DequantizeLinear") > 2  # those of the kernel and the bias
    assert np.abs(found - expected).max() > 0.051


def test_what_goes_on_in_float_needs_no_shield():
    proto = make_graph("Clip", last="Sigmoid")
    assert len(shield_float_nodes(proto).graph.node) == 5

"""One node of a float graph quantised by itself, as it is in the wholly quantised graph, to see
what it alone does.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitlab.compress.graph import weighted_nodes
from vitlab.compress.rounding import arrange_weight, find_bias

ACTIVATIONS = ("Clip", "Relu")  # within the range of what comes out of the node before


def isolate_node(proto: onnx.ModelProto, whole: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The float graph `proto` with the rounded weight and bias of a node, and its inputs and
    outputs on their 8-bit grids.

    whole: the graph that onnxruntime's static quantiser made of it. This one computes in float, and
    so shows the error of the numbers, not that of a kernel."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    alone = onnx.ModelProto()
    alone.CopyFrom(proto)
    floats = {tensor.name: tensor for tensor in alone.graph.initializer}
    node = weighted_nodes(alone)[name]
    _round_constants(alone, node, tensors, floats)
    takers = [other for other in alone.graph.node if node.output[0] in other.input]
    last = takers[0] if len(takers) == 1 and takers[0].op_type in ACTIVATIONS else node
    _put_on_grid(alone, node.input[0], tensors, before=node, only=node)
    _put_on_grid(alone, last.output[0], tensors, after=last)
    return alone


def _round_constants(alone, node, tensors, floats) -> None:
    key = node.input[1]
    if f"{key}_quantized" not in tensors:
        return
    weight, numbers = (
        numpy_helper.to_array(floats[key]),
        tensors[f"{key}_quantized"].astype(np.float32),
    )
    shaped, back = arrange_weight(node, numbers, 1)
    scale = np.broadcast_to(tensors[f"{key}_scale"], shaped.shape[1])
    bias = find_bias(
        alone, node, {name: numpy_helper.to_array(tensor) for name, tensor in floats.items()}
    )
    floats[key].CopyFrom(
        numpy_helper.from_array(back(shaped * scale[:, None]).astype(weight.dtype), key)
    )
    if bias is None:
        return
    values = (
        tensors[bias]
        if bias in tensors
        else tensors[f"{bias}_quantized"] * tensors[f"{bias}_quantized_scale"]
    )
    floats[bias].CopyFrom(numpy_helper.from_array(values.astype(np.float32), bias))


def _put_on_grid(alone, value: str, tensors, *, before=None, after=None, only=None) -> None:
    """Round a value, in front of one node or behind the one that makes it; nothing where it is not
    quantised.

    Not by a Q and a DQ node: onnxruntime would quantise the weights between such pairs (see
    `vitlab.compress.shielding`)."""
    if f"{value}_scale" not in tensors or f"{value}_zero_point" not in tensors:
        return
    tag = f"{value}_grid_{'in' if only is not None else 'out'}"
    scale, zero = tensors[f"{value}_scale"], tensors[f"{value}_zero_point"]
    limits = np.iinfo(zero.dtype)
    constants = {
        "scale": scale,
        "low": np.float32(int(limits.min) - int(zero)),
        "high": np.float32(int(limits.max) - int(zero)),
    }
    for name, number in constants.items():
        alone.graph.initializer.append(
            numpy_helper.from_array(np.asarray(number, np.float32), f"{tag}_{name}")
        )
    steps = [
        helper.make_node("Div", [value, f"{tag}_scale"], [f"{tag}_steps"]),
        helper.make_node("Round", [f"{tag}_steps"], [f"{tag}_whole"]),
        helper.make_node("Clip", [f"{tag}_whole", f"{tag}_low", f"{tag}_high"], [f"{tag}_clipped"]),
        helper.make_node("Mul", [f"{tag}_clipped", f"{tag}_scale"], [tag]),
    ]
    for node in [only] if only is not None else alone.graph.node:
        for place, name in enumerate(node.input):
            if name == value:
                node.input[place] = tag
    names = [node.name for node in alone.graph.node]
    place = names.index((before or after).name) + (before is None)
    for offset, node in enumerate(steps):
        alone.graph.node.insert(place + offset, node)

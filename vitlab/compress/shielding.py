"""Nodes that are to stay in float, kept from onnxruntime, which would quantise them after all.

When a session is opened, onnxruntime looks for convolutions and Gemms with float weights between an
8-bit input and an 8-bit output, and quantises those weights itself: to the nearest, with one scale
for the whole tensor (its WeightBiasQuantization, seen in 1.32). A node that was spared because it
suffers from 8 bits fares worse by that than if it had not been spared."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitlab.compress.graph import weighted_nodes

LOWEST = "vitlab_lowest"
ACTIVATIONS = ("Clip", "Relu")  # through which onnxruntime looks


def shield_float_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put an operation that changes nothing, max(x, lowest), between the 8-bit input and each float
    node that would be caught.

    The graph itself. Nodes whose output goes on in float are left as they are: onnxruntime does not
    touch them."""
    makers = {value: node for node in proto.graph.node for value in node.output}
    exposed = [
        node
        for node in weighted_nodes(proto).values()
        if node.input[0] in makers
        and makers[node.input[0]].op_type == "DequantizeLinear"
        and _find_next(proto, node).intersection(["QuantizeLinear"])
    ]
    if not exposed:
        return proto
    proto.graph.initializer.append(
        numpy_helper.from_array(np.array(np.finfo(np.float32).min, np.float32), LOWEST)
    )
    for count, node in enumerate(exposed):
        shielded = f"{node.input[0]}_shielded_{count}"
        place = next(
            place for place, other in enumerate(proto.graph.node) if other.name == node.name
        )
        proto.graph.node.insert(
            place,
            helper.make_node("Max", [node.input[0], LOWEST], [shielded], f"{node.name}_shield"),
        )
        node = proto.graph.node[place + 1]
        node.input[0] = shielded
    return proto


def _find_next(proto: onnx.ModelProto, node: onnx.NodeProto) -> set[str]:
    """Kinds of the nodes that take the output, behind an activation where there is one."""
    takers = [other for other in proto.graph.node if node.output[0] in other.input]
    if len(takers) == 1 and takers[0].op_type in ACTIVATIONS:
        return _find_next(proto, takers[0])
    return {other.op_type for other in takers}

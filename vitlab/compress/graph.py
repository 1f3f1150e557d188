"""ONNX graphs: which nodes to quantise, the size of their weights, and float nodes that stay float.
No torch here.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

WEIGHTED = ("Conv", "MatMul", "Gemm")
MAP_OPS = ("Add", "Clip", "Relu", "GlobalAveragePool", "MaxPool", "AveragePool")
LOWEST = "vitlab_lowest"


def load_graph(path: Path | str) -> onnx.ModelProto:
    """The graph with a name for each node, by which quantisers address them, and without the noted
    shapes, on which onnxruntime's quantiser fails.
    """
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    seen = set()
    for position, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{position}"
        seen.add(node.name)
    return proto


def weighted_nodes(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Nodes that multiply by a constant matrix or kernel, by name, in the order of the graph; the
    products of attention are not among them.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    return {
        node.name: node
        for node in proto.graph.node
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in constants
    }


def weight_bytes(proto: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the constant weight of each weighted node."""
    size = {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in proto.graph.initializer}
    return {name: size[node.input[1]] for name, node in weighted_nodes(proto).items()}


def map_nodes(proto: onnx.ModelProto, float_nodes: Collection[str] = ()) -> set[str]:
    """Names of the nodes between convolutions (residuals, activations, pooling) whose maps can stay
    8-bit.

    Nodes that take the map of one of `float_nodes` are left out, because an 8-bit map right behind
    a float node would undo its effect. So are sums in transformer blocks: the residuals of tokens
    have outliers beyond the range of 8 bits."""
    maps, names, exact = set(), set(), set()
    constants = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        inputs = [name for name in node.input if name and name not in constants]
        joins = node.op_type in MAP_OPS and inputs and all(name in maps for name in inputs)
        if node.op_type == "Conv" or joins:
            maps.update(node.output)
        if node.name in float_nodes:
            exact.update(node.output)
        if joins and not exact.intersection(inputs):
            names.add(node.name)
    return names


def shield_float_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put max(x, lowest), which changes nothing, between an 8-bit input and each float node.

    When a session is opened, onnxruntime (its WeightBiasQuantization, in 1.32) quantises float
    convolutions and Gemms between 8-bit values itself, with one scale for the whole tensor, which
    is worse than not leaving them in float. Returns the graph, changed in place."""
    makers = {value: node.op_type for node in proto.graph.node for value in node.output}
    exposed = {
        name
        for name, node in weighted_nodes(proto).items()
        if makers.get(node.input[0]) == "DequantizeLinear"
    }
    if not exposed:
        return proto
    lowest = np.array(np.finfo(np.float32).min, np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(lowest, LOWEST))
    nodes = []
    for node in proto.graph.node:
        if node.name in exposed:
            shielded = f"{node.name}_input"
            nodes.append(
                helper.make_node("Max", [node.input[0], LOWEST], [shielded], f"{node.name}_shield")
            )
            node.input[0] = shielded
        nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def drop_notes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the exporter's notes (modules, lines of code, shapes), a tenth of a small file.

    Returns the graph, changed in place."""
    del proto.graph.value_info[:]
    proto.graph.doc_string = ""
    del proto.graph.metadata_props[:]
    graph = proto.graph
    for entry in [*graph.node, *graph.input, *graph.output, *graph.initializer]:
        entry.doc_string = ""
        del entry.metadata_props[:]
    return proto

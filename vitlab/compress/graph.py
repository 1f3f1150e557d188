"""Which nodes of an ONNX graph are worth quantising, and how much of the model they hold. No torch
here.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import numpy_helper

WEIGHTED = ("Conv", "MatMul", "Gemm")
MAP_OPS = ("Add", "Clip", "Relu", "GlobalAveragePool", "MaxPool", "AveragePool")


def name_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node a name of its own: quantisers address nodes by it."""
    seen = set()
    for position, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{position}"
        seen.add(node.name)
    return proto


def weighted_nodes(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Nodes that multiply by a constant matrix or kernel, by name, in the order of the graph; those
    of attention are not.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    return {
        node.name: node
        for node in proto.graph.node
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in constants
    }


def map_nodes(proto: onnx.ModelProto, float_nodes: Collection[str] = ()) -> set[str]:
    """Names of the nodes that join feature maps of convolutions (residuals, activations, pooling),
    which can stay 8-bit between.

    Those that take the map of one of `float_nodes` are left out: an 8-bit map right behind it would
    undo the sparing.

    Sums in transformer blocks are none of them: residuals of tokens have outliers that 8 bits do
    not hold."""
    maps, names, spared = set(), set(), set()
    constants = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        inputs = [name for name in node.input if name and name not in constants]
        joins = node.op_type in MAP_OPS and inputs and all(name in maps for name in inputs)
        if node.op_type == "Conv" or joins:
            maps.update(node.output)
        if node.name in float_nodes:
            spared.update(node.output)
        if joins and not spared.intersection(inputs):
            names.add(node.name)
    return names


def weight_bytes(proto: onnx.ModelProto, names) -> dict[str, int]:
    """Bytes of the constant weight of each named node."""
    size = {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in proto.graph.initializer}
    return {
        name: size[node.input[1]]
        for name, node in weighted_nodes(proto).items()
        if name in set(names)
    }


def drop_notes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Take off the exporter's notes for readers (modules, lines of code, shapes), a tenth of a
    small file; the graph itself.
    """
    del proto.graph.value_info[:]
    proto.graph.doc_string = ""
    del proto.graph.metadata_props[:]
    for entry in [
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
    ]:
        entry.doc_string = ""
        del entry.metadata_props[:]
    return proto

"""ONNX graphs in 8 bits: which nodes are quantised, biases corrected for the rounding, and float
nodes that stay float. No torch here.

Rounding shifts the mean of each output where the inputs are large and alike, as the pixels of even
areas are. The shift is measured on a few real images and taken off the bias (Nagel et al. 2019,
arXiv 1906.04721, section 4.2). On ELPV (hybrid_vit, seed 0, 525 test images, all nodes in 8 bits)
the classes agree with those of the float graph for 87.2 % of the images without it and for 96.6 %
with it. Rounding by GPTQ (arXiv 2210.17323) added about half a point, and nothing once the most
sensitive nodes stay in float."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitlab.compress.session import open_session

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


def map_nodes(proto: onnx.ModelProto, float_nodes: Collection[str] = ()) -> set[str]:
    """Names of the nodes between convolutions (residuals, activations, pooling) whose maps can stay
    8-bit.

    Without them the int8 graph of hybrid_vit takes 0.85 times the time of the float one instead of
    0.60. Nodes that take the map of one of `float_nodes` are left out, because an 8-bit map right
    behind a float node would undo its effect. So are sums in transformer blocks: the residuals of
    tokens have outliers beyond the range of 8 bits."""
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


def measure_shifts(
    quantised: onnx.ModelProto, proto: onnx.ModelProto, images: np.ndarray
) -> dict[str, tuple[str, np.ndarray]]:
    """For each weighted node, its bias and the mean outputs that the rounding of its weights takes
    away on these images (N, C, h, w).

    quantised: what onnxruntime's static quantiser made of `proto`. Nodes without a bias of their
    own are left out."""
    tensors = {tensor.name: tensor for tensor in quantised.graph.initializer}
    constants = read_constants(proto)
    # the float graph with a second product beside each weighted one, of the same inputs and the
    # errors of the weights
    wider, biases, axes = onnx.ModelProto(), {}, {}
    wider.CopyFrom(proto)
    for name, node in weighted_nodes(proto).items():
        bias, key = find_bias(proto, node, constants), node.input[1]
        if bias is None or f"{key}_quantized" not in tensors:
            continue
        error, value = constants[key] - _dequantise(quantised, tensors, key), f"{name}_error"
        wider.graph.initializer.append(numpy_helper.from_array(error, f"{value}_weight"))
        inputs = [node.input[0], f"{value}_weight"]
        product = helper.make_node(node.op_type, inputs, [value], value)
        product.attribute.extend(node.attribute)
        wider.graph.node.append(product)
        wider.graph.output.append(helper.make_empty_tensor_value_info(value))
        biases[name] = bias
        axes[name] = 1 if node.op_type == "Conv" else -1  # of the outputs
    if not biases:
        return {}
    session = open_session(wider.SerializeToString())
    means: dict[str, list[np.ndarray]] = {name: [] for name in biases}
    values = [f"{name}_error" for name in biases]
    for image in images:
        outputs = session.run(values, {proto.graph.input[0].name: image[None]})
        for name, output in zip(biases, outputs, strict=True):
            last = np.moveaxis(output, axes[name], -1)
            means[name].append(last.reshape(-1, last.shape[-1]).mean(axis=0))
    return {name: (bias, np.mean(means[name], axis=0)) for name, bias in biases.items()}


def add_to_biases(
    quantised: onnx.ModelProto, shifts: Collection[tuple[str, np.ndarray]]
) -> onnx.ModelProto:
    """Add to biases, by name; the quantiser has left them in float or made them int32. Returns the
    graph, changed in place.
    """
    tensors = {tensor.name: tensor for tensor in quantised.graph.initializer}
    for name, shift in shifts:
        if name in tensors:
            values = numpy_helper.to_array(tensors[name])
            _replace(tensors[name], (values + shift).astype(values.dtype))
            continue
        numbers = numpy_helper.to_array(tensors[f"{name}_quantized"]).astype(np.float64)
        scale = numpy_helper.to_array(tensors[f"{name}_quantized_scale"]).astype(np.float64)
        moved = np.round(numbers + shift / scale).clip(-(2**31) + 1, 2**31 - 1)
        _replace(tensors[f"{name}_quantized"], moved.astype(np.int32))
    return quantised


def level_logits(
    quantised: onnx.ModelProto, proto: onnx.ModelProto, images: np.ndarray
) -> onnx.ModelProto:
    """Move the bias of the last layer so that the mean logits on these images are those of the
    float graph.

    A shift of one logit against another moves all images across the decision boundary in one
    direction. On ELPV (efficientnet_lite0, seed 0) the gate passes with 12 nodes in float instead
    of 16, so the file has 4.0 MB instead of 4.7. Nothing is changed where the logits do not come
    from a layer with a bias of its own. Returns the quantised graph, changed in place."""
    makers = {value: node for node in proto.graph.node for value in node.output}
    last = makers[proto.graph.output[0].name]
    if last.op_type == "Add":  # of a MatMul and its bias
        products = [makers[value] for value in last.input if value in makers]
        last = next((node for node in products if node.op_type == "MatMul"), last)
    is_weighted = last.name in weighted_nodes(proto)
    bias = find_bias(proto, last, read_constants(proto)) if is_weighted else None
    if bias is None:
        return quantised
    entry = proto.graph.input[0].name
    before, after = (open_session(graph.SerializeToString()) for graph in (proto, quantised))
    gaps = []
    for image in images:
        batch = {entry: image[None]}
        gaps.append(before.run(None, batch)[0] - after.run(None, batch)[0])
    return add_to_biases(quantised, [(bias, np.concatenate(gaps).mean(axis=0))])


def find_bias(
    proto: onnx.ModelProto, node: onnx.NodeProto, constants: Mapping[str, np.ndarray]
) -> str | None:
    """The constant that is added to the outputs of this node alone: its own third input, or that of
    a sum which follows.
    """
    if len(node.input) > 2 and node.input[2]:
        bias = node.input[2]
    elif node.op_type == "MatMul":
        takers = [other for other in proto.graph.node if node.output[0] in other.input]
        if len(takers) != 1 or takers[0].op_type != "Add":
            return None
        bias = next((name for name in takers[0].input if name != node.output[0]), "")
    else:
        return None
    uses = sum(list(other.input).count(bias) for other in proto.graph.node)
    return bias if bias in constants and uses == 1 and constants[bias].ndim == 1 else None


def read_constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


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
        copied = onnx.NodeProto.FromString(node.SerializeToString())
        if node.name in exposed:
            shielded = f"{node.name}_input"
            inputs = [node.input[0], LOWEST]
            nodes.append(helper.make_node("Max", inputs, [shielded], f"{node.name}_shield"))
            copied.input[0] = shielded
        nodes.append(copied)
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


def _dequantise(quantised: onnx.ModelProto, tensors, key: str) -> np.ndarray:
    """The float values of an 8-bit weight."""
    reader = next(node for node in quantised.graph.node if f"{key}_quantized" in node.input)
    axis = next((entry.i for entry in reader.attribute if entry.name == "axis"), 0)
    numbers = numpy_helper.to_array(tensors[f"{key}_quantized"]).astype(np.float32)
    scale = numpy_helper.to_array(tensors[f"{key}_scale"])
    shape = [1] * numbers.ndim
    shape[axis] = -1
    return numbers * scale.reshape(shape)


def _replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.reshape(tuple(tensor.dims)), tensor.name))

"""Bias correction of 8-bit graphs (Nagel et al. 2019, arXiv 1906.04721, section 4.2).

Rounding shifts the mean of each output where the inputs are large and alike, as the pixels of even
areas are. The shift is measured on a few real images and taken off the bias. On ELPV (hybrid_vit,
seed 0, 525 test images, all nodes in 8 bits) the classes agree with those of the float graph for
87.2 % of the images without it and for 96.6 % with it. Rounding by GPTQ (arXiv 2210.17323) added
about half a point, and nothing once the most sensitive nodes stay in float."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitlab.compress.graph import weighted_nodes
from vitlab.compress.session import open_session


def measure_shifts(
    quantised: onnx.ModelProto, proto: onnx.ModelProto, batches: Iterator[np.ndarray]
) -> dict[str, tuple[str, np.ndarray]]:
    """For each weighted node, its bias and the mean outputs that the rounding of its weights takes
    away on these images.

    quantised: what onnxruntime's static quantiser made of `proto`. batches: inputs of the graph.
    Nodes without a bias of their own are left out."""
    tensors = {tensor.name: tensor for tensor in quantised.graph.initializer}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    # the float graph with a second product beside each weighted one, of the same inputs and the
    # errors of the weights
    wider, found = onnx.ModelProto(), {}
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
        found[name] = (bias, [], 1 if node.op_type == "Conv" else -1)  # axis of the outputs
    if not found:
        return {}
    session = open_session(wider.SerializeToString())
    for batch in batches:
        for image in batch:
            values = [f"{name}_error" for name in found]
            outputs = session.run(values, {proto.graph.input[0].name: image[None]})
            for (_, means, axis), output in zip(found.values(), outputs, strict=True):
                last = np.moveaxis(output, axis, -1)
                means.append(last.reshape(-1, last.shape[-1]).mean(axis=0))
    return {name: (bias, np.mean(means, axis=0)) for name, (bias, means, _) in found.items()}


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
    quantised: onnx.ModelProto, proto: onnx.ModelProto, batches: Iterator[np.ndarray]
) -> onnx.ModelProto:
    """Move the bias of the last layer so that the mean logits on these images are those of the
    float graph.

    A shift of one logit against another moves all images across the decision boundary in one
    direction. Nothing is changed where the logits do not come from a layer with a bias of its own.
    Returns the quantised graph, changed in place."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    makers = {value: node for node in proto.graph.node for value in node.output}
    last = makers[proto.graph.output[0].name]
    if last.op_type == "Add":  # of a MatMul and its bias
        products = [makers[value] for value in last.input if value in makers]
        last = next((node for node in products if node.op_type == "MatMul"), last)
    bias = find_bias(proto, last, constants) if last.name in weighted_nodes(proto) else None
    if bias is None:
        return quantised
    entry = proto.graph.input[0].name
    before, after = (open_session(graph.SerializeToString()) for graph in (proto, quantised))
    gaps = [
        before.run(None, {entry: batch})[0] - after.run(None, {entry: batch})[0]
        for batch in batches
    ]
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

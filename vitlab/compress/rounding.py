"""Weights rounded to 8 bits so that the layer's outputs stay, not each weight by itself.

Rounding to the nearest makes errors that add up where inputs go together. In images with large even
areas they do: the nine pixels under a kernel are nearly equal, and the errors of its nine weights
sum to a shift of the whole map. Two remedies, both computed from the layer's inputs on a few real
images, with no training:

- each rounding error is made good by the weights that are not rounded yet, as far as the inputs are
  correlated (Frantar et al. 2022, arXiv 2210.17323);
- what is left of it in the mean of each output goes into the bias (Nagel et al. 2019, arXiv
1906.04721, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitlab.compress.graph import weighted_nodes
from vitlab.compress.session import open_session

POSITIONS = 256  # of a feature map or of the tokens, drawn at random in each image
DAMPING = 0.01  # added to the diagonal of the covariance, as a share of its mean
LARGEST = 127
COLUMNS = 64  # rounded before their errors go on to the rest


@dataclass
class Moments:
    """Of the inputs of one weight: total (groups, n), outer (groups, n, n) sums over `count`
    positions; n weights an output.
    """

    total: np.ndarray
    outer: np.ndarray
    count: int

    def add(self, patches: np.ndarray) -> None:
        """patches: (groups, n, positions)."""
        # or nothing is left of a small spread around a large mean
        patches = patches.astype(np.float64)
        self.total += patches.sum(axis=2)
        self.outer += patches @ patches.transpose(0, 2, 1)
        self.count += patches.shape[2]

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.count

    def spread(self, centred: bool) -> np.ndarray:
        """Covariance (groups, n, n), or the mean of the products where the mean is not taken
        off.
        """
        products = self.outer / self.count
        return products - self.mean[:, :, None] * self.mean[:, None, :] if centred else products


def collect_moments(
    proto: onnx.ModelProto, names, batches: Iterator[np.ndarray], seed: int = 0
) -> dict[str, Moments]:
    """Moments of the inputs of the named nodes of the float graph; nodes whose kind is not handled
    are left out.

    batches: inputs of the graph, a few images each.
    """
    nodes = {name: node for name, node in weighted_nodes(proto).items() if name in set(names)}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    nodes = {
        name: node for name, node in nodes.items() if _is_handled(node, weights[node.input[1]])
    }
    entry = proto.graph.input[0].name
    wanted = sorted({node.input[0] for node in nodes.values()} - {entry})
    session = open_session(_expose(proto, wanted))
    random, found = np.random.default_rng(seed), {}
    for batch in batches:
        for image in batch:
            values = (
                dict(zip(wanted, session.run(wanted, {entry: image[None]}), strict=True))
                if wanted
                else {}
            )
            values[entry] = image[None]
            for name, node in nodes.items():
                patches = cut_patches(
                    node, values[node.input[0]], weights[node.input[1]].shape, random
                )
                groups, n, _ = patches.shape
                found.setdefault(
                    name, Moments(np.zeros((groups, n)), np.zeros((groups, n, n)), 0)
                ).add(patches)
    return found


def cut_patches(
    node: onnx.NodeProto, values: np.ndarray, shape, random, positions: int = POSITIONS
) -> np.ndarray:
    """What a node's weights are multiplied with: (groups, n, at most `positions`), float32, from
    inputs (1, ...).
    """
    if node.op_type != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        return rows[_draw(len(rows), positions, random)].T[None].astype(np.float32)
    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    top, left, bottom, right = settings.get("pads", (0, 0, 0, 0))
    (down, across), groups = settings.get("strides", (1, 1)), settings.get("group", 1)
    padded = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))  # (C, h, w)
    windows = np.lib.stride_tricks.sliding_window_view(padded, shape[2:], axis=(1, 2))[
        :, ::down, ::across
    ]
    h, w = windows.shape[1:3]
    rows, columns = np.divmod(_draw(h * w, positions, random), w)
    cut = windows[:, rows, columns].astype(np.float32)  # (C, positions, kh, kw)
    return cut.transpose(0, 2, 3, 1).reshape(groups, -1, cut.shape[1])


def round_weights(
    weight: np.ndarray, scale: np.ndarray, spread: np.ndarray, largest: int = LARGEST
) -> np.ndarray:
    """Whole numbers (groups, outputs, n) in -largest..largest, so that numbers * scale gives nearly
    the outputs of `weight`.

    weight: (groups, outputs, n); scale: (groups, outputs); spread: (groups, n, n) of the inputs.
    Weights are rounded one by one, those with the largest inputs first; the error of each is spread
    over the rest by the Cholesky factor of the inverse."""
    groups, _, n = weight.shape
    spread = spread.copy()
    diagonal = np.diagonal(spread, axis1=1, axis2=2)
    spread[:, np.arange(n), np.arange(n)] += DAMPING * diagonal.mean(axis=1, keepdims=True) + 1e-9
    order = np.argsort(-diagonal, axis=1, kind="stable")  # (groups, n)
    each = np.arange(groups)[:, None]
    spread = spread[each[:, :, None], order[:, :, None], order[:, None, :]]
    left = np.take_along_axis(weight.astype(np.float64), order[:, None, :], axis=2)
    factor = np.linalg.cholesky(np.linalg.inv(spread)).transpose(0, 2, 1)  # upper
    numbers, errors = np.empty_like(left), np.empty_like(left)
    # what lies beyond these columns is corrected once, by one product
    for start in range(0, n, COLUMNS):
        end = min(start + COLUMNS, n)
        for k in range(start, end):
            numbers[:, :, k] = np.clip(np.round(left[:, :, k] / scale), -largest, largest)
            errors[:, :, k] = (left[:, :, k] - numbers[:, :, k] * scale) / factor[:, k, k, None]
            left[:, :, k + 1 : end] -= errors[:, :, k, None] * factor[:, None, k, k + 1 : end]
        left[:, :, end:] -= errors[:, :, start:end] @ factor[:, start:end, end:]
    back = np.argsort(order, axis=1)
    return np.take_along_axis(numbers, back[:, None, :], axis=2)


def refine_weights(
    quantised: onnx.ModelProto,
    proto: onnx.ModelProto,
    moments: Mapping[str, Moments],
    largest: int = LARGEST,
):
    """Replace the 8-bit weights and the biases of a graph that onnxruntime's static quantiser made
    of `proto`; the graph itself.

    Scales stay as they are. Weights that several nodes share, and those without moments, keep their
    rounding."""
    tensors = {tensor.name: tensor for tensor in quantised.graph.initializer}
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    nodes = weighted_nodes(proto)
    uses = [node.input[1] for node in nodes.values()]
    for name, node in nodes.items():
        key, scale_key = f"{node.input[1]}_quantized", f"{node.input[1]}_scale"
        if (
            name not in moments
            or key not in tensors
            or scale_key not in tensors
            or uses.count(node.input[1]) > 1
        ):
            continue
        weight, moment = floats[node.input[1]], moments[name]
        scale = numpy_helper.to_array(tensors[scale_key]).astype(np.float64)
        shaped, back = arrange_weight(node, weight, len(moment.total))
        groups, outputs, _ = shaped.shape
        scale = np.broadcast_to(scale, groups * outputs).reshape(groups, outputs)
        bias = find_bias(proto, node, floats)
        numbers = round_weights(shaped, scale, moment.spread(centred=bias is not None), largest)
        _replace(tensors[key], back(numbers).astype(np.int8))
        if bias is not None:
            shift = np.einsum(
                "gon,gn->go", shaped - numbers * scale[:, :, None], moment.mean
            ).reshape(-1)
            _shift_bias(tensors, bias, floats[bias], shift)
    return quantised


def level_logits(
    quantised: onnx.ModelProto, proto: onnx.ModelProto, batches: Iterator[np.ndarray]
) -> onnx.ModelProto:
    """Move the bias of the last layer so that the mean logits on these images are those of the
    float graph; the graph itself.

    A shift of one logit against another moves all images across the border in one direction. Where
    the logits do not come from a layer with a bias of its own, nothing is changed."""
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    last = {value: node for node in proto.graph.node for value in node.output}[
        proto.graph.output[0].name
    ]
    if last.op_type == "Add":  # of a MatMul and its bias
        last = next(
            (
                node
                for node in proto.graph.node
                if node.op_type == "MatMul" and node.output[0] in last.input
            ),
            last,
        )
    bias = find_bias(proto, last, floats) if last.name in weighted_nodes(proto) else None
    if bias is None:
        return quantised
    sessions, entry = (
        [open_session(graph.SerializeToString()) for graph in (proto, quantised)],
        proto.graph.input[0].name,
    )
    gaps = [
        sessions[0].run(None, {entry: batch})[0] - sessions[1].run(None, {entry: batch})[0]
        for batch in batches
    ]
    tensors = {tensor.name: tensor for tensor in quantised.graph.initializer}
    _shift_bias(tensors, bias, _read_bias(tensors, bias), np.concatenate(gaps).mean(axis=0))
    return quantised


def arrange_weight(node: onnx.NodeProto, weight: np.ndarray, groups: int):
    """A weight, or its whole numbers, as (groups, outputs, n), and the way back."""
    if node.op_type == "Conv":
        return weight.reshape(
            groups, weight.shape[0] // groups, -1
        ), lambda numbers: numbers.reshape(weight.shape)
    turned = any(entry.name == "transB" and entry.i for entry in node.attribute)
    if turned:
        return weight[None], lambda numbers: numbers[0]
    return weight.T[None], lambda numbers: np.ascontiguousarray(numbers[0].T)


def find_bias(
    proto: onnx.ModelProto, node: onnx.NodeProto, floats: Mapping[str, np.ndarray]
) -> str | None:
    """The constant that is added to a node's outputs alone: its own third input, or that of a sum
    which follows.
    """
    if len(node.input) > 2 and node.input[2]:
        return node.input[2] if node.input[2] in floats else None
    if node.op_type != "MatMul":
        return None
    takers = [other for other in proto.graph.node if node.output[0] in other.input]
    if len(takers) != 1 or takers[0].op_type != "Add":
        return None
    other = next((name for name in takers[0].input if name != node.output[0]), "")
    used = sum(list(one.input).count(other) for one in proto.graph.node)
    return (
        other
        if other in floats and used == 1 and floats[other].shape == floats[node.input[1]].shape[-1:]
        else None
    )


def _read_bias(tensors: Mapping[str, onnx.TensorProto], name: str) -> np.ndarray:
    if name in tensors:
        return numpy_helper.to_array(tensors[name])
    return numpy_helper.to_array(tensors[f"{name}_quantized"]) * numpy_helper.to_array(
        tensors[f"{name}_quantized_scale"]
    )


def _shift_bias(
    tensors: dict[str, onnx.TensorProto], name: str, before: np.ndarray, shift: np.ndarray
) -> None:
    if f"{name}_quantized" in tensors:
        scale = numpy_helper.to_array(tensors[f"{name}_quantized_scale"]).astype(np.float64)
        numbers = np.round((before + shift) / scale).clip(-(2**31) + 1, 2**31 - 1)
        _replace(tensors[f"{name}_quantized"], numbers.astype(np.int32))
    elif name in tensors:
        _replace(tensors[name], (before + shift).astype(before.dtype))


def _replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.reshape(tuple(tensor.dims)), tensor.name))


def _expose(proto: onnx.ModelProto, names) -> bytes:
    """The graph with inner values as further outputs."""
    wider = onnx.ModelProto()
    wider.CopyFrom(proto)
    wider.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return wider.SerializeToString()


def _is_handled(node: onnx.NodeProto, weight: np.ndarray) -> bool:
    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "Conv":
        plain = settings.get("auto_pad", b"NOTSET") == b"NOTSET" and set(
            settings.get("dilations", (1, 1))
        ) == {1}
        return weight.ndim == 4 and plain
    return weight.ndim == 2 and not settings.get("transA", 0) and settings.get("alpha", 1.0) == 1.0


def _draw(count: int, positions: int, random: np.random.Generator) -> np.ndarray:
    return (
        np.arange(count) if count <= positions else random.choice(count, positions, replace=False)
    )

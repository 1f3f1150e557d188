"""From a float ONNX graph to one with 8-bit weights: two methods, each a call of onnxruntime's
quantisers. No gate here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    QuantFormat,
    QuantType,
    quantize_dynamic as ort_dynamic,
    quantize_static as ort_static,
)

from vitlab.compress.graph import (
    MAP_OPS,
    WEIGHTED,
    drop_notes,
    map_nodes,
    name_nodes,
    weight_bytes,
    weighted_nodes,
)
from vitlab.compress.isolation import isolate_node
from vitlab.compress.parity import PixelSet
from vitlab.compress.ranges import feed_images, measure_ranges, silence
from vitlab.compress.rounding import LARGEST, Moments, collect_moments, level_logits, refine_weights
from vitlab.compress.shielding import shield_float_nodes
from vitlab.errors import UserError

METHODS = {"static": WEIGHTED, "dynamic": ("MatMul", "Gemm")}  # kinds of nodes that each quantises
REDUCED = 64  # largest weight of 7 bits
MOMENTS = 32  # calibration images from which the rounding is computed


def load_graph(path: Path | str) -> onnx.ModelProto:
    """The graph with a name for every node and without noted shapes, which the quantiser of
    onnxruntime trips over.
    """
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    return name_nodes(proto)


class Converter:
    """Quantised files of one float graph, by one method; ranges are measured once, however many
    variants are asked for.

    images: for static, on which ranges are measured. folder: where the files go.
    """

    def __init__(self, proto, method, images: PixelSet, transform, reduce_range, folder: Path):
        self.proto, self.method, self.images = proto, method, images
        self.transform, self.reduce_range, self.folder = transform, reduce_range, folder
        self.source = folder / "source.onnx"
        onnx.save(proto, self.source)
        self.nodes = [
            name for name, node in weighted_nodes(proto).items() if node.op_type in METHODS[method]
        ]
        self._count = 0
        self._moments: dict[str, Moments] | None = None
        self._whole: onnx.ModelProto | None = None

    def share(self, float_nodes: Sequence[str] = ()) -> float:
        """Share of the weights (of linear layers and convolutions) that are quantised."""
        size = weight_bytes(self.proto, weighted_nodes(self.proto))
        return sum(size[name] for name in self.nodes if name not in set(float_nodes)) / max(
            sum(size.values()), 1
        )

    def convert(self, float_nodes: Sequence[str] = (), only: Sequence[str] | None = None) -> Path:
        """The file in which all nodes that the method takes are quantised but `float_nodes`; or
        those of `only`.
        """
        self._count += 1
        target = self.folder / f"{self.method}-{self._count}.onnx"
        names = [
            name for name in (self.nodes if only is None else only) if name not in set(float_nodes)
        ]
        if not names:
            raise UserError(
                f"{self.method} finds nothing to quantise: the graph has no linear layer that it"
                " takes; use static"
            )
        with silence():
            self._static(names, target) if self.method == "static" else self._dynamic(names, target)
        onnx.save(drop_notes(onnx.load(target)), target)
        return target

    def isolate(self, name: str) -> Path | bytes:
        """The graph in which this node alone is quantised, with what goes in and comes out of
        it.
        """
        if self.method != "static":
            return self.convert(only=[name])
        if self._whole is None:
            self._whole = onnx.load(self.convert())
        return isolate_node(self.proto, self._whole, name).SerializeToString()

    def _static(self, names, target):
        between = sorted(map_nodes(self.proto, set(self.nodes) - set(names)))
        ranges = self.folder / "ranges.json"
        if not ranges.exists():
            measure_ranges(self.source, ranges, feed_images(self.images, self.transform))
        ort_static(
            str(self.source),
            str(target),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*WEIGHTED, *MAP_OPS],
            nodes_to_quantize=[*names, *between],
            per_channel=True,
            reduce_range=self.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibration_cache_path=ranges,
            extra_options={
                "MatMulConstBOnly": True,
                # what follows is float: GELU, softmax, sums
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )
        onnx.save(shield_float_nodes(onnx.load(target)), target)
        self._refine(target)

    def _refine(self, target: Path) -> None:
        few = self.images.take(slice(MOMENTS))
        if self._moments is None:
            self._moments = collect_moments(
                self.proto, self.nodes, feed_images(few, self.transform)
            )
        refined = refine_weights(
            onnx.load(target), self.proto, self._moments, REDUCED if self.reduce_range else LARGEST
        )
        onnx.save(
            level_logits(refined, self.proto, feed_images(self.images, self.transform)), target
        )

    def _dynamic(self, names, target):
        ort_dynamic(
            str(self.source),
            str(target),
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=names,
            per_channel=True,
            reduce_range=self.reduce_range,
            weight_type=QuantType.QInt8,
        )

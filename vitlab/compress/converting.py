"""From a float ONNX graph to one with fewer bits: the methods, each a call of onnxruntime's quantisers. No gate here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic as ort_dynamic, quantize_static as ort_static

from vitlab.compress.calibration import CALIBRATIONS, feed_images, measure_ranges, silence
from vitlab.compress.graph import MAP_OPS, WEIGHTED, drop_notes, map_nodes, name_nodes, weight_bytes, weighted_nodes
from vitlab.compress.isolation import isolate_node
from vitlab.compress.parity import PixelSet
from vitlab.compress.rounding import LARGEST, Moments, collect_moments, level_logits, refine_weights
from vitlab.compress.shielding import shield_float_nodes
from vitlab.errors import UserError

METHODS = ("dynamic", "static", "fp16", "weights8", "weights4")
OPS = {"static": WEIGHTED, "fp16": WEIGHTED, "dynamic": ("MatMul", "Gemm")}  # of the others MatMul
BLOCK = {"weights8": 128, "weights4": 32}  # weights that share one scale
REDUCED = 64  # largest weight of 7 bits
MOMENTS = 32  # calibration images from which the rounding is computed


def load_graph(path: Path | str) -> onnx.ModelProto:
    """The graph with a name for every node and without noted shapes, which the quantiser of onnxruntime trips over."""
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    return name_nodes(proto)


class Converter:
    """Quantised files of one float graph, by one method; calibrates once, however many variants are asked for.

    images: calibrate, of static only. rounding: of static, `compensated` (see `vitlab.compress.rounding`) or `nearest`.
    folder: where the files go.
    """

    def __init__(self, proto, method, calibration, images: PixelSet, transform, reduce_range, rounding, folder: Path):
        self.proto, self.method, self.calibration, self.images = proto, method, calibration, images
        self.transform, self.reduce_range, self.rounding, self.folder = transform, reduce_range, rounding, folder
        self.source = folder / "source.onnx"
        onnx.save(proto, self.source)
        ops = OPS.get(method, ("MatMul",))
        self.nodes = [name for name, node in weighted_nodes(proto).items() if node.op_type in ops]
        self._count = 0
        self._moments: dict[str, Moments] | None = None
        self._whole: onnx.ModelProto | None = None

    def share(self, float_nodes: Sequence[str] = ()) -> float:
        """Share of the weights (of linear layers and convolutions) that are quantised."""
        size = weight_bytes(self.proto, weighted_nodes(self.proto))
        if self.method == "fp16":
            return 1.0
        return sum(size[name] for name in self.nodes if name not in set(float_nodes)) / max(sum(size.values()), 1)

    def convert(self, float_nodes: Sequence[str] = (), only: Sequence[str] | None = None) -> Path:
        """The file in which all nodes that the method takes are quantised but `float_nodes`; or those of `only`."""
        self._count += 1
        target = self.folder / f"{self.method}-{self._count}.onnx"
        names = [name for name in (self.nodes if only is None else only) if name not in set(float_nodes)]
        if not names:
            raise UserError(f"{self.method} finds nothing to quantise: the graph has no linear layer that it takes; use static")
        with silence():
            _CONVERT[self.method](self, names, target)
        onnx.save(drop_notes(onnx.load(target)), target)
        return target

    def isolate(self, name: str) -> Path | bytes:
        """The graph in which this node alone is quantised, with what goes in and comes out of it."""
        if self.method != "static":
            return self.convert(only=[name])
        if self._whole is None:
            self._whole = onnx.load(self.convert())
        return isolate_node(self.proto, self._whole, name).SerializeToString()

    def _static(self, names, target):
        between = sorted(map_nodes(self.proto, set(self.nodes) - set(names)))
        ranges = self.folder / "ranges.json"
        if not ranges.exists():
            measure_ranges(self.source, ranges, self.calibration, feed_images(self.proto, self.images, self.transform))
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
            calibrate_method=CALIBRATIONS[self.calibration],
            calibration_cache_path=ranges,
            extra_options={
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],  # what follows is float: GELU, softmax, sums
            },
        )
        onnx.save(shield_float_nodes(onnx.load(target)), target)
        if self.rounding == "compensated":
            self._refine(target)

    def _refine(self, target: Path) -> None:
        few = self.images.take(slice(MOMENTS))
        if self._moments is None:
            self._moments = collect_moments(self.proto, self.nodes, feed_images(self.proto, few, self.transform))
        refined = refine_weights(onnx.load(target), self.proto, self._moments, REDUCED if self.reduce_range else LARGEST)
        onnx.save(level_logits(refined, self.proto, feed_images(self.proto, self.images, self.transform)), target)

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

    def _fp16(self, names, target):
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(self.source), keep_io_types=True), target)

    def _weights(self, names, target):
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.load(self.source),
            bits=int(self.method[-1]),
            block_size=BLOCK[self.method],
            is_symmetric=True,
            accuracy_level=4,  # activations int8, which VNNI multiplies
            nodes_to_include=names,
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), False)


_CONVERT: dict[str, Callable] = {
    "static": Converter._static,
    "dynamic": Converter._dynamic,
    "fp16": Converter._fp16,
    "weights8": Converter._weights,
    "weights4": Converter._weights,
}

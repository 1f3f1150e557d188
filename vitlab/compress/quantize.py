"""An ONNX classifier in 8 bits or fewer, or half precision; written only when it keeps the answers of the original."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization import quantize_dynamic as ort_dynamic
from onnxruntime.quantization import quantize_static as ort_static
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data
from tqdm import tqdm

from vitlab.compress.export import Export
from vitlab.compress.graph import MAP_OPS, WEIGHTED, map_nodes, name_nodes, origin, weight_bytes, weighted_nodes
from vitlab.compress.parity import Gate, PixelSet, compare_logits, draw_pixels, explain_failure, measure_sqnr, summarise_parity
from vitlab.compress.preprocess import normalise
from vitlab.compress.processor import multiplies_int8
from vitlab.compress.session import open_session, run_pixels
from vitlab.compress.sidecar import check_target, read_sidecar, read_transform, write_pair
from vitlab.registry import unknown
from vitlab.schema import DataBundle, Transform

METHODS = ("dynamic", "static", "fp16", "weights8", "weights4")
CALIBRATIONS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
GATES = {"fp16": Gate(0.99, 0.02), "dynamic": Gate(0.99), "static": Gate(0.99), "weights8": Gate(0.99), "weights4": Gate(0.99)}
PERCENTILE = 99.99  # of the activations, with calibration="percentile"; what lies beyond is clipped
CHUNK = 8  # calibration images in memory at a time
RANKING = 32  # images on which nodes are ranked
BLOCK = {"weights8": 128, "weights4": 32}  # weights that share one scale


def quantize_onnx(
    source: Path | str,
    path: Path | str,
    data: DataBundle,
    *,
    method: str = "static",
    calibration: str = "minmax",
    split: str | Sequence[str] = "val",
    calibration_images: int = 64,
    gate_images: int = 256,
    float_nodes: str | Sequence[str] = "auto",
    reduce_range: bool | None = None,
    gate: Gate | None = None,
    on_failure: str = "refuse",
    seed: int = 0,
) -> Export:
    """Write `path` (.onnx) and its JSON from `source`, a file of `export_onnx`; the input and the JSON's temperature stay.

    method: `dynamic`: weights of linear layers int8 per channel, activations quantised as they come (convolutions stay float:
    onnxruntime is slow there). `static`: linear layers and convolutions int8 per channel, with ranges of the activations from
    `calibration` (minmax, percentile, entropy) on real images. `fp16`: half the size. `weights8`, `weights4`: weights of linear
    layers in blocks with a scale each; computed in int8 or float.
    float_nodes: of static and dynamic, names of nodes left in float (see sensitivity_table); `auto` looks for them only when the
    gate fails: the most sensitive 1, 2, 4, ... until it passes.
    reduce_range: 7-bit weights for processors without VNNI, whose 16-bit sums overflow; None: as this processor needs.
    gate: what is let through; by default 99 % of the images keep their class. It takes images of `split` that did not calibrate.
    on_failure: `refuse` raises ValueError with the worst images and writes nothing; `flag` writes with parity.passed = false.
    """
    source, path = Path(source), check_target(path)
    description = read_sidecar(source)
    _check_choices(description, method, calibration, on_failure, source, path, float_nodes)
    transform, classes = read_transform(description), description["classes"]
    if list(data.classes) != list(classes):
        given = ", ".join(data.classes)
        raise ValueError(f"{source.name} tells apart {', '.join(classes)}; the classes of {data.name} are {given}")
    calibrating, testing = _draw_both(data, transform, split, method, calibration_images, gate_images, seed)
    proto = load_graph(source)
    chosen = _choose_float_nodes(proto, float_nodes)
    reduce_range = not multiplies_int8() if reduce_range is None else reduce_range
    reference = run_pixels(open_session(source), testing.pixels, transform)
    gate = gate or GATES[method]
    with tempfile.TemporaryDirectory(prefix="vitlab-quantize-") as folder:
        converter = _Converter(proto, method, calibration, calibrating, transform, reduce_range, Path(folder))
        result = _measure(converter, chosen, testing, reference, transform, classes, gate)
        if not result.summary["passed"] and float_nodes == "auto" and method in ("static", "dynamic"):
            result, chosen = _spare_nodes(converter, result, testing, reference, transform, classes, gate)
        if not result.summary["passed"] and on_failure == "refuse":
            raise ValueError(explain_failure(f"{description['name']} as {method} ({source.name})", result.parity, result.summary))
        details = {"calibration": calibration, "calibration_images": len(calibrating)} if method == "static" else {}
        details |= {"reduce_range": reduce_range} if method in ("static", "dynamic") else {}
        quantized = {
            **description,
            "method": method,
            "quantisation": {**details, "share": converter.share(chosen), "float_nodes": sorted(chosen)},
            "parity": {"against": source.name, "sha256": description["sha256"], **result.summary},
        }
        write_pair(path, lambda temporary: temporary.write_bytes(result.path.read_bytes()), quantized)
    summary = {"method": method, "bytes": path.stat().st_size, **quantized["quantisation"], **result.summary}
    return Export(path, summary, result.parity)


def sensitivity_table(
    source: Path | str,
    data: DataBundle,
    *,
    calibration: str = "minmax",
    split: str | Sequence[str] = "val",
    calibration_images: int = 64,
    gate_images: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """What static int8 costs at each node with a weight, quantised by itself: the most sensitive first.

    Columns node, op, module (of PyTorch), sqnr_db (of the logits: low is bad), agreement (top-1), kilobytes (of the weight).
    """
    source = Path(source)
    description = read_sidecar(source)
    _check_choices(description, "static", calibration, "refuse", source, None, "auto")
    transform = read_transform(description)
    calibrating, testing = _draw_both(data, transform, split, "static", calibration_images, gate_images, seed)
    reference = run_pixels(open_session(source), testing.pixels, transform)
    with tempfile.TemporaryDirectory(prefix="vitlab-quantize-") as folder:
        converter = _Converter(load_graph(source), "static", calibration, calibrating, transform, not multiplies_int8(), Path(folder))
        return _rank_nodes(converter, testing, reference, transform)


def load_graph(path: Path | str) -> onnx.ModelProto:
    """The graph with a name for every node and without noted shapes, which the quantiser of onnxruntime trips over."""
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    return name_nodes(proto)


class _Converter:
    """From a float graph to a quantised file; calibrates once, however many variants are asked for."""

    def __init__(self, proto, method, calibration, images: PixelSet, transform, reduce_range, folder: Path):
        self.proto, self.method, self.calibration, self.images = proto, method, calibration, images
        self.transform, self.reduce_range, self.folder = transform, reduce_range, folder
        self.source = folder / "source.onnx"
        onnx.save(proto, self.source)
        ops = ("Conv", "MatMul", "Gemm") if method == "static" else ("MatMul", "Gemm") if method == "dynamic" else ("MatMul",)
        self.nodes = [name for name, node in weighted_nodes(proto).items() if node.op_type in ops]
        self._count = 0

    def share(self, float_nodes: Sequence[str] = ()) -> float:
        """Share of the weights (of linear layers and convolutions) that are quantised."""
        size = weight_bytes(self.proto, weighted_nodes(self.proto))
        if self.method == "fp16":
            return 1.0
        return sum(size[name] for name in self.nodes if name not in set(float_nodes)) / max(sum(size.values()), 1)

    def convert(self, float_nodes: Sequence[str] = (), only: Sequence[str] | None = None) -> Path:
        self._count += 1
        target = self.folder / f"{self.method}-{self._count}.onnx"
        names = [name for name in (self.nodes if only is None else only) if name not in set(float_nodes)]
        if not names:
            raise ValueError(f"{self.method} finds nothing to quantise: the graph has no linear layer that it takes; use static")
        with _silence():
            _CONVERT[self.method](self, names, target, with_maps=only is None)
        return target

    def _static(self, names, target, with_maps):
        between = sorted(map_nodes(self.proto, set(self.nodes) - set(names))) if with_maps else []
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
            calibration_cache_path=self._calibrate(),
            extra_options={
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],  # what follows is float: GELU, softmax, sums
            },
        )

    def _calibrate(self) -> Path:
        """Ranges of all activations on the images, a few at a time: onnxruntime keeps what it has not yet counted in memory."""
        cache = self.folder / "ranges.json"
        if not cache.exists():
            calibrator = create_calibrator(
                self.source,
                [*WEIGHTED, *MAP_OPS],
                augmented_model_path=str(self.folder / "augmented.onnx"),
                calibrate_method=CALIBRATIONS[self.calibration],
                extra_options={"percentile": PERCENTILE} if self.calibration == "percentile" else {},
            )
            for start in range(0, len(self.images), CHUNK):
                part = self.images.pixels[start : start + CHUNK]
                calibrator.collect_data(_Reader(part if self._takes_pixels() else normalise(part, self.transform)))
            save_tensors_data(calibrator.compute_data(), cache)
        return cache

    def _takes_pixels(self) -> bool:
        return self.proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8

    def _dynamic(self, names, target, with_maps):
        ort_dynamic(
            str(self.source),
            str(target),
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=names,
            per_channel=True,
            reduce_range=self.reduce_range,
            weight_type=QuantType.QInt8,
        )

    def _fp16(self, names, target, with_maps):
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(self.source), keep_io_types=True), target)

    def _weights(self, names, target, with_maps):
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
    "static": _Converter._static,
    "dynamic": _Converter._dynamic,
    "fp16": _Converter._fp16,
    "weights8": _Converter._weights,
    "weights4": _Converter._weights,
}


class _Reader(CalibrationDataReader):
    """Images one by one, as onnxruntime's calibration asks for them."""

    def __init__(self, batch: np.ndarray):
        self._rest = iter(batch)

    def get_next(self):
        image = next(self._rest, None)
        return None if image is None else {"images": image[None]}


def _measure(
    converter: _Converter, float_nodes, testing: PixelSet, reference, transform: Transform, classes, gate: Gate
) -> Export:
    target = converter.convert(float_nodes)
    logits = run_pixels(open_session(target), testing.pixels, transform)
    table = compare_logits(testing.sample_ids, reference, logits, classes)
    return Export(target, summarise_parity(table, reference, logits, gate), table)


def _spare_nodes(converter: _Converter, result: Export, testing, reference, transform, classes, gate) -> tuple[Export, list[str]]:
    """The most sensitive 1, 2, 4, ... nodes left in float until the gate is passed; the best try where half do not help."""
    few = np.arange(min(RANKING, len(testing)))
    ranking = _rank_nodes(converter, testing.take(few), reference[few], transform)["node"].tolist()
    best, spared, count = result, [], 1
    while count <= max(1, len(ranking) // 2) and not best.summary["passed"]:
        tried = _measure(converter, ranking[:count], testing, reference, transform, classes, gate)
        if tried.summary["agreement"] >= best.summary["agreement"]:
            best, spared = tried, ranking[:count]
        count *= 2
    return best, spared


def _rank_nodes(converter: _Converter, testing: PixelSet, reference: np.ndarray, transform: Transform) -> pd.DataFrame:
    nodes = weighted_nodes(converter.proto)
    size = weight_bytes(converter.proto, converter.nodes)
    rows = []
    for name in tqdm(converter.nodes, desc="sensitivity of nodes", unit="node", delay=10, leave=False):
        logits = run_pixels(open_session(converter.convert(only=[name])), testing.pixels, transform)
        rows.append(
            {
                "node": name,
                "op": nodes[name].op_type,
                "module": origin(nodes[name]),
                "sqnr_db": measure_sqnr(reference, logits),
                "agreement": float((reference.argmax(axis=1) == logits.argmax(axis=1)).mean()),
                "kilobytes": size[name] / 1000,
            }
        )
    return pd.DataFrame(rows).sort_values("sqnr_db", ignore_index=True)


def _draw_both(data, transform, split, method, calibration_images, gate_images, seed) -> tuple[PixelSet, PixelSet]:
    """Images to calibrate with, and others for the gate; half of them each where there are not enough for both."""
    wanted = calibration_images if method == "static" else 0
    if wanted == 0 and method != "static":
        images = draw_pixels(data, transform, split, gate_images, seed)
        return images.take(np.arange(0)), images
    images = draw_pixels(data, transform, split, wanted + gate_images, seed)
    count = min(wanted, max(len(images) - gate_images, len(images) // 2))
    calibrating, testing = images.take(np.arange(count)), images.take(np.arange(count, len(images)))
    found = sorted({data.classes[k] for k in calibrating.label})
    if len(found) < 2:
        raise ValueError(
            f"the {count} calibration images hold {f'only the class {found[0]}' if found else 'no class'}: ranges of activations "
            "would suit that class alone; give images of all classes (calibration_images, split)"
        )
    return calibrating, testing


def _choose_float_nodes(proto: onnx.ModelProto, float_nodes: str | Sequence[str]) -> list[str]:
    if float_nodes == "auto":
        return []
    known = list(weighted_nodes(proto))
    for name in float_nodes:
        if name not in known:
            raise ValueError(unknown("node", name, known, "sensitivity_table lists those that matter."))
    return list(float_nodes)


def _check_choices(description, method, calibration, on_failure, source: Path, path: Path | None, float_nodes) -> None:
    if method not in METHODS:
        raise ValueError(unknown("method", method, list(METHODS)))
    if calibration not in CALIBRATIONS:
        raise ValueError(unknown("calibration", calibration, list(CALIBRATIONS)))
    if on_failure not in ("refuse", "flag"):
        raise ValueError(unknown("on_failure", on_failure, ["refuse", "flag"]))
    if isinstance(float_nodes, str) and float_nodes != "auto":
        raise ValueError(f"float_nodes is a list of names of nodes, or 'auto'; not {float_nodes!r}")
    if not isinstance(float_nodes, str) and len(float_nodes) and method not in ("static", "dynamic"):
        raise ValueError(f"float_nodes goes with static and dynamic; {method} has none")
    if description["method"] != "fp32":
        raise ValueError(f"{source.name} is {description['method']} already; start from the file that export_onnx wrote")
    if path is not None and path.resolve() == source.resolve():
        raise ValueError(f"{path.name} would replace the float model; choose another name, such as {path.stem}-int8.onnx")


@contextmanager
def _silence() -> Iterator[None]:
    """onnxruntime's quantiser advises a pre-processing that changes nothing here, and prints its progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)

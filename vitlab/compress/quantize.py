"""An ONNX classifier with 8-bit weights and activations, written only when it predicts the same
classes as the original.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data
from tqdm.auto import tqdm

from vitlab.compress.export import (
    Export,
    Gate,
    check_target,
    describe_failure,
    draw_pixels,
    measure_parity,
    measure_sqnr,
    write_pair,
)
from vitlab.compress.graph import (
    MAP_OPS,
    WEIGHTED,
    add_to_biases,
    drop_notes,
    level_logits,
    load_graph,
    map_nodes,
    measure_shifts,
    shield_float_nodes,
    weighted_nodes,
)
from vitlab.compress.latency import multiplies_int8
from vitlab.compress.session import (
    normalise,
    open_session,
    read_description,
    read_transform,
    run_pixels,
)
from vitlab.errors import UserError
from vitlab.schema import DataBundle

INT8_GATE = Gate(0.99)
CALIBRATION_IMAGES = 64  # on which the ranges of the activations are measured
BIAS_IMAGES = 32  # of these, from which the biases are corrected
RANKING_IMAGES = 16  # on which the sensitivity of nodes is measured
FLOAT_NODES, MORE = 8, 4  # left in float at the second try, and more at each further one
CHUNK = 8  # images in memory at a time


def quantize_onnx(
    source: Path | str,
    path: Path | str,
    data: DataBundle,
    *,
    gate_images: int = 256,
    gate: Gate = INT8_GATE,
    seed: int = 0,
) -> Export:
    """Write `path` (.onnx) and its JSON from `source`, a file of `export_onnx`.

    Linear layers and convolutions get int8 weights per channel, activations 8 bits with ranges
    measured on validation images, and biases a correction for the rounding. gate: what is accepted,
    by default the same class for 99 % of other validation images. Where it fails, the most
    sensitive nodes stay in float, eight at first and four more at each try, up to half of them.
    Where it fails still, UserError with the worst images; then nothing is written. Processors
    without 8-bit instructions get 7-bit weights, because their 16-bit sums overflow. The JSON has
    neither temperature nor conformal limits: those of the source belong to another model (see
    `vitlab.compress.note_calibration`). summary: also float_nodes, the names of nodes in float."""
    source, path = Path(source), check_target(path)
    description = read_description(source)
    _check_source(description, data, source, path)
    transform, classes = read_transform(description), description["classes"]
    rows, pixels = draw_pixels(data, transform, CALIBRATION_IMAGES + gate_images, seed)
    # half of them each where there are not enough for both
    count = min(CALIBRATION_IMAGES, max(len(rows) - gate_images, len(rows) // 2))
    if rows["label"].head(count).nunique() < 2:
        raise UserError(
            f"the {count} images on which ranges are measured hold fewer than two classes; int8"
            " needs more validation images"
        )
    testing, rows = pixels[count:], rows[count:].reset_index(drop=True)
    reference = run_pixels(open_session(source), testing, transform)
    with tempfile.TemporaryDirectory(prefix="vitlab-quantize-") as folder:
        images = normalise(pixels[:count], transform)
        quantizer = _Quantizer(load_graph(source), images, Path(folder))
        most, ranking, float_nodes = len(quantizer.nodes) // 2, [], []
        while True:
            content = quantizer.quantise(float_nodes)
            logits = run_pixels(open_session(content), testing, transform)
            parity = measure_parity(reference, logits)
            if gate.passes(parity) or len(float_nodes) == most:
                break
            few = normalise(testing[:RANKING_IMAGES], transform)
            ranking = ranking or quantizer.rank_nodes(few)
            more = MORE if float_nodes else FLOAT_NODES
            float_nodes = ranking[: min(len(float_nodes) + more, most)]
    if not gate.passes(parity):
        failed = describe_failure(rows, reference, logits, classes, gate)
        raise UserError(f"{description['name']} as int8 ({source.name}) {failed}")
    facts = {"reduce_range": quantizer.reduce_range, "float_nodes": sorted(float_nodes)}
    against = {"against": source.name, "sha256": description["sha256"]}
    changed = {"method": "int8", "quantisation": facts, "calibration": None}
    write_pair(path, content, {**description, **changed, "parity": {**against, **parity}})
    return Export(path, {"method": "int8", "bytes": path.stat().st_size, **facts, **parity})


class _Quantizer:
    """Quantised versions of one float graph; ranges and shifts are measured once for all of them.

    images: (N, C, h, w), normalised. folder: for the files that onnxruntime's quantiser works on.
    """

    def __init__(self, proto: onnx.ModelProto, images: np.ndarray, folder: Path):
        self.proto, self.images, self.folder = proto, images, folder
        self.reduce_range = not multiplies_int8()
        self.source, self.ranges = folder / "source.onnx", folder / "ranges.json"
        onnx.save(proto, self.source)
        self.nodes = list(weighted_nodes(proto))
        if not self.nodes:
            raise UserError("the graph has neither a linear layer nor a convolution to quantise")
        with _silence():
            _measure_ranges(self.source, self.ranges, images)
        self.shifts = measure_shifts(self._convert(self.nodes), proto, images[:BIAS_IMAGES])

    def quantise(self, float_nodes: Collection[str] = ()) -> bytes:
        """The graph in which all weighted nodes but these are quantised, with corrected biases."""
        names = [name for name in self.nodes if name not in set(float_nodes)]
        graph = shield_float_nodes(self._correct(self._convert(names), names))
        level_logits(graph, self.proto, self.images)
        return drop_notes(graph).SerializeToString()

    def rank_nodes(self, images: np.ndarray) -> list[str]:
        """The weighted nodes, most sensitive first: those that add most noise to the logits when
        quantised alone.
        """
        reference, sqnr = _compute(self.proto, images), {}
        for name in tqdm(self.nodes, desc="sensitivity", unit="node", delay=10, leave=False):
            alone = self._correct(self._convert([name]), [name])
            sqnr[name] = measure_sqnr(reference, _compute(alone, images))
        return sorted(sqnr, key=sqnr.get)

    def _correct(self, graph: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
        return add_to_biases(graph, [self.shifts[name] for name in names if name in self.shifts])

    def _convert(self, names: Sequence[str]) -> onnx.ModelProto:
        """The graph with these nodes quantised, as onnxruntime does it."""
        target = self.folder / "converted.onnx"
        between = sorted(map_nodes(self.proto, set(self.nodes) - set(names)))
        with _silence():
            quantize_static(
                str(self.source),
                str(target),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*WEIGHTED, *MAP_OPS],
                nodes_to_quantize=[*names, *between],
                per_channel=True,
                reduce_range=self.reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibration_cache_path=self.ranges,
                extra_options={
                    "MatMulConstBOnly": True,
                    # float follows: GELU, softmax, sums
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                },
            )
        return onnx.load(target)


class _Reader(CalibrationDataReader):
    """Images one by one, as onnxruntime's calibration takes them."""

    def __init__(self, batch: np.ndarray):
        self._rest = iter(batch)

    def get_next(self):
        image = next(self._rest, None)
        return None if image is None else {"images": image[None]}


def _measure_ranges(source: Path, cache: Path, images: np.ndarray) -> None:
    """Write the ranges that onnxruntime's quantiser reads, from a few images at a time: onnxruntime
    keeps all values in memory until it computes ranges.
    """
    calibrator = create_calibrator(
        source,
        [*WEIGHTED, *MAP_OPS],
        augmented_model_path=str(cache.with_name("augmented.onnx")),
        calibrate_method=CalibrationMethod.MinMax,
    )
    for start in range(0, len(images), CHUNK):
        calibrator.collect_data(_Reader(images[start : start + CHUNK]))
    save_tensors_data(calibrator.compute_data(), cache)


def _compute(graph: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """The logits of a few images."""
    return open_session(graph.SerializeToString()).run(None, {"images": images})[0]


@contextmanager
def _silence() -> Iterator[None]:
    """onnxruntime's quantiser recommends a pre-processing that changes nothing here, and prints its
    progress.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _check_source(description: dict, data: DataBundle, source: Path, path: Path) -> None:
    if description["method"] != "fp32":
        raise UserError(
            f"{source.name} is quantised already; start from the file that export_onnx wrote"
        )
    if path.resolve() == source.resolve():
        raise UserError(
            f"{path.name} would replace the float model; choose another name, such as"
            f" {path.stem}-int8.onnx"
        )
    if list(data.classes) != list(description["classes"]):
        own, given = ", ".join(description["classes"]), ", ".join(data.classes)
        raise UserError(
            f"{source.name} distinguishes {own}; the classes of {data.name} are {given}"
        )

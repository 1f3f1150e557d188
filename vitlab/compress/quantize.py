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
from tqdm import tqdm

from vitlab.compress.bias import add_to_biases, level_logits, measure_shifts
from vitlab.compress.export import Export
from vitlab.compress.graph import (
    MAP_OPS,
    WEIGHTED,
    drop_notes,
    load_graph,
    map_nodes,
    shield_float_nodes,
    weight_bytes,
    weighted_nodes,
)
from vitlab.compress.parity import (
    Gate,
    PixelSet,
    compare_logits,
    draw_pixels,
    explain_failure,
    measure_sqnr,
    summarise_parity,
)
from vitlab.compress.preprocess import normalise
from vitlab.compress.processor import multiplies_int8
from vitlab.compress.session import open_session, run_pixels
from vitlab.compress.sidecar import check_target, read_sidecar, read_transform, write_pair
from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import DataBundle

INT8_GATE = Gate(0.99)
CALIBRATION_IMAGES = 64  # on which the ranges of the activations are measured
BIAS_IMAGES = 32  # of these, from which the biases are corrected
RANKING_IMAGES = 16  # on which the sensitivity of nodes is measured
FLOAT_NODES, MORE = 8, 4  # left in float at the first try, and more at each further one
CHUNK = 8  # images in memory at a time


def quantize_onnx(
    source: Path | str,
    path: Path | str,
    data: DataBundle,
    *,
    split: str | Sequence[str] = "val",
    gate_images: int = 256,
    gate: Gate = INT8_GATE,
    on_failure: str = "refuse",
    seed: int = 0,
) -> Export:
    """Write `path` (.onnx) and its JSON from `source`, a file of `export_onnx`.

    Linear layers and convolutions get int8 weights per channel, activations 8 bits with ranges
    measured on images of `split`, and biases a correction for the rounding
    (`vitlab.compress.bias`). gate: what is accepted, by default the same class for 99 % of other
    images of the split. Where it fails, the most sensitive nodes stay in float, eight at first and
    four more at each try, up to half of them. Processors without 8-bit instructions get 7-bit
    weights, because their 16-bit sums overflow. on_failure: `refuse` raises ValueError with the
    worst images and writes nothing; `flag` writes with parity.passed = false. The JSON has neither
    temperature nor conformal limits: those of the source belong to another model (see
    `vitlab.compress.note_calibration`)."""
    source, path = Path(source), check_target(path)
    description = read_sidecar(source)
    _check_choices(description, on_failure, data, source, path)
    transform, classes = read_transform(description), description["classes"]
    ranging, testing = _draw_both(data, transform, split, gate_images, seed)
    reference = run_pixels(open_session(source), testing.pixels, transform)

    def measure(target: Path) -> Export:
        logits = run_pixels(open_session(target), testing.pixels, transform)
        table = compare_logits(testing.sample_ids, reference, logits, classes)
        return Export(target, summarise_parity(table, reference, logits, gate), table)

    with tempfile.TemporaryDirectory(prefix="vitlab-quantize-") as folder:
        quantizer = _Quantizer(load_graph(source), ranging, transform, Path(folder))
        result, float_nodes = measure(quantizer.quantise()), []
        if not result.summary["passed"]:
            few = testing.take(np.arange(min(RANKING_IMAGES, len(testing))))
            ranking = quantizer.rank_nodes(few, reference[: len(few)])
            most, count = len(ranking) // 2, 0
            while not result.summary["passed"] and count < most:
                count = min(count + MORE if count else FLOAT_NODES, most)
                tried = measure(quantizer.quantise(ranking[:count]))
                if tried.summary["passed"] or _quality(tried) > _quality(result):
                    result, float_nodes = tried, sorted(ranking[:count])
        if not result.summary["passed"] and on_failure == "refuse":
            what = f"{description['name']} as int8 ({source.name})"
            raise UserError(explain_failure(what, result.parity, result.summary))
        details = {
            "reduce_range": quantizer.reduce_range,
            "share": quantizer.share(float_nodes),
            "float_nodes": float_nodes,
            "calibration_images": len(ranging),
        }
        parity = {"against": source.name, "sha256": description["sha256"], **result.summary}
        changed = {"quantisation": details, "calibration": None, "parity": parity}
        written = result.path.read_bytes()
        write_pair(
            path,
            lambda temporary: temporary.write_bytes(written),
            {**description, "method": "static", **changed},
        )
    summary = {"method": "static", "bytes": path.stat().st_size, **details, **result.summary}
    return Export(path, summary, result.parity)


class _Quantizer:
    """Quantised files of one float graph in a folder; ranges are measured once for all of them."""

    def __init__(self, proto: onnx.ModelProto, images: PixelSet, transform, folder: Path):
        self.proto, self.images, self.transform, self.folder = proto, images, transform, folder
        self.reduce_range = not multiplies_int8()
        self.source, self.ranges = folder / "source.onnx", folder / "ranges.json"
        onnx.save(proto, self.source)
        self.nodes = list(weighted_nodes(proto))
        if not self.nodes:
            raise UserError("the graph has neither a linear layer nor a convolution to quantise")
        with _silence():
            _measure_ranges(self.source, self.ranges, self._feed(len(images)))
        self.shifts = {}
        whole = self._convert(self.nodes)
        self.shifts = measure_shifts(whole, proto, self._feed(BIAS_IMAGES))

    def share(self, float_nodes: Collection[str]) -> float:
        """Share of the bytes of the weights that are quantised."""
        size = weight_bytes(self.proto)
        return 1 - sum(size[name] for name in float_nodes) / sum(size.values())

    def quantise(self, float_nodes: Collection[str] = ()) -> Path:
        """The file in which all weighted nodes but these are quantised, with corrected biases."""
        names = [name for name in self.nodes if name not in set(float_nodes)]
        graph = shield_float_nodes(self._convert(names))
        level_logits(graph, self.proto, self._feed(len(self.images)))
        target = self.folder / f"{len(names)}.onnx"
        onnx.save(drop_notes(graph), target)
        return target

    def rank_nodes(self, testing: PixelSet, reference: np.ndarray) -> list[str]:
        """The weighted nodes, most sensitive first: those that add most noise to the logits when
        quantised alone.
        """
        sqnr = {}
        for name in tqdm(self.nodes, desc="sensitivity", unit="node", delay=10, leave=False):
            alone = open_session(self._convert([name]).SerializeToString())
            logits = run_pixels(alone, testing.pixels, self.transform)
            sqnr[name] = measure_sqnr(reference, logits)
        return sorted(sqnr, key=sqnr.get)

    def _convert(self, names: Sequence[str]) -> onnx.ModelProto:
        """The graph with these nodes quantised, and with their biases corrected once the shifts are
        known.
        """
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
        shifts = [self.shifts[name] for name in names if name in self.shifts]
        return add_to_biases(onnx.load(target), shifts)

    def _feed(self, count: int) -> Iterator[np.ndarray]:
        """Inputs of the graph (B, C, h, w) from the first images, a few at a time."""
        pixels = self.images.pixels[:count]
        for start in range(0, len(pixels), CHUNK):
            yield normalise(pixels[start : start + CHUNK], self.transform)


class _Reader(CalibrationDataReader):
    """Images one by one, as onnxruntime's calibration takes them."""

    def __init__(self, batch: np.ndarray):
        self._rest = iter(batch)

    def get_next(self):
        image = next(self._rest, None)
        return None if image is None else {"images": image[None]}


def _measure_ranges(source: Path, cache: Path, batches: Iterator[np.ndarray]) -> None:
    """Write the ranges that onnxruntime's quantiser reads, from a few images at a time: onnxruntime
    keeps all values in memory until it computes ranges.
    """
    calibrator = create_calibrator(
        source,
        [*WEIGHTED, *MAP_OPS],
        augmented_model_path=str(cache.with_name("augmented.onnx")),
        calibrate_method=CalibrationMethod.MinMax,
    )
    for batch in batches:
        calibrator.collect_data(_Reader(batch))
    save_tensors_data(calibrator.compute_data(), cache)


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


def _quality(result: Export) -> tuple[float, float]:
    """What the gate compares, larger being better."""
    return result.summary["agreement"], -result.summary["relative_difference"]


def _draw_both(data, transform, split, gate_images, seed) -> tuple[PixelSet, PixelSet]:
    """Images on which ranges are measured, and others for the gate; half of them each where there
    are not enough for both.
    """
    images = draw_pixels(data, transform, split, CALIBRATION_IMAGES + gate_images, seed)
    count = min(CALIBRATION_IMAGES, max(len(images) - gate_images, len(images) // 2))
    ranging, testing = images.take(np.arange(count)), images.take(np.arange(count, len(images)))
    found = sorted({data.classes[k] for k in ranging.label})
    if len(found) < 2:
        held = f"only the class {found[0]}" if found else "no class"
        raise UserError(
            f"the {count} images on which ranges are measured hold {held}: the ranges would suit"
            " that class alone; give a split with images of all classes"
        )
    return ranging, testing


def _check_choices(description, on_failure, data: DataBundle, source: Path, path: Path) -> None:
    if on_failure not in ("refuse", "flag"):
        raise UserError(unknown("on_failure", on_failure, ["refuse", "flag"]))
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

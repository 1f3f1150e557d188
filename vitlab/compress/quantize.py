"""An ONNX classifier in 8 bits or fewer, or half precision; written only when it keeps the answers of the original."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pandas as pd

from vitlab.compress.calibration import CALIBRATIONS
from vitlab.compress.converting import METHODS, Converter, load_graph
from vitlab.compress.export import Export
from vitlab.compress.graph import weighted_nodes
from vitlab.compress.latency import latency_table
from vitlab.compress.parity import Gate, PixelSet, draw_pixels, explain_failure
from vitlab.compress.preprocess import normalise
from vitlab.compress.processor import multiplies_int8
from vitlab.compress.sensitivity import RANKING, measure_variant, rank_nodes, spare_nodes
from vitlab.compress.session import open_session, run_pixels
from vitlab.compress.sidecar import check_target, read_sidecar, read_transform, write_pair
from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import DataBundle, Transform

GATES = {"fp16": Gate(0.99, 0.02), "dynamic": Gate(0.99), "static": Gate(0.99), "weights8": Gate(0.99), "weights4": Gate(0.99)}
ROUNDINGS = ("compensated", "nearest")
COUNTS = (0, 1, 2, 4, 8, 16)  # nodes in float of the frontier


def quantize_onnx(
    source: Path | str,
    path: Path | str,
    data: DataBundle,
    *,
    method: str = "static",
    calibration: str = "minmax",
    rounding: str = "compensated",
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
    rounding: of the weights of static. `compensated`: each error of rounding is made good by the weights that follow, and biases
    take up what is left in the means (see `vitlab.compress.rounding`); `nearest`: each weight by itself.
    float_nodes: of static and dynamic, names of nodes left in float (see sensitivity_table); `auto` looks for them only when the
    gate fails: the most sensitive, as many as their measured noise and the margins of the images call for, until it passes.
    reduce_range: 7-bit weights for processors without VNNI, whose 16-bit sums overflow; None: as this processor needs.
    gate: what is let through; by default 99 % of the images keep their class. It takes images of `split` that did not calibrate.
    on_failure: `refuse` raises ValueError with the worst images and writes nothing; `flag` writes with parity.passed = false.
    """
    source, path = Path(source), check_target(path)
    description = read_sidecar(source)
    _check_choices(description, method, calibration, rounding, on_failure, source, path, float_nodes)
    transform, classes = read_transform(description), description["classes"]
    if list(data.classes) != list(classes):
        given = ", ".join(data.classes)
        raise UserError(f"{source.name} tells apart {', '.join(classes)}; the classes of {data.name} are {given}")
    calibrating, testing = _draw_both(data, transform, split, method, calibration_images, gate_images, seed)
    proto = load_graph(source)
    chosen = _choose_float_nodes(proto, float_nodes)
    reduce_range = not multiplies_int8() if reduce_range is None else reduce_range
    reference = run_pixels(open_session(source), testing.pixels, transform)
    gate = gate or GATES[method]
    with tempfile.TemporaryDirectory(prefix="vitlab-quantize-") as folder:
        converter = Converter(proto, method, calibration, calibrating, transform, reduce_range, rounding, Path(folder))
        result = measure_variant(converter, chosen, testing, reference, transform, classes, gate)
        if not result.summary["passed"] and float_nodes == "auto" and method in ("static", "dynamic"):
            result, chosen = spare_nodes(converter, result, testing, reference, transform, classes, gate)
        if not result.summary["passed"] and on_failure == "refuse":
            raise UserError(explain_failure(f"{description['name']} as {method} ({source.name})", result.parity, result.summary))
        details = {}
        if method == "static":
            details = {"calibration": calibration, "calibration_images": len(calibrating), "rounding": rounding}
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


def sensitivity_table(source: Path | str, data: DataBundle, *, gate_images: int = 64, **options) -> pd.DataFrame:
    """What static int8 costs at each node with a weight, quantised by itself: the most sensitive first.

    Columns node, op, module (of PyTorch), sqnr_db (of the logits: low is bad), noise (mean square of the change in the margin
    between the two likeliest classes; it adds up over nodes), agreement (top-1), kilobytes (of the weight).
    options: calibration, rounding, split, calibration_images, reduce_range, seed, as of `quantize_onnx`.
    """
    with tempfile.TemporaryDirectory(prefix="vitlab-quantize-") as folder:
        converter, testing, reference, transform, _ = _prepare_static(Path(source), data, Path(folder), gate_images, **options)
        return rank_nodes(converter, testing, reference, transform)


def float_frontier_table(
    source: Path | str,
    data: DataBundle,
    *,
    counts: Sequence[int] = COUNTS,
    gate_images: int = 256,
    repeats: int = 20,
    threads: int | None = None,
    **options,
) -> pd.DataFrame:
    """What agreement costs: static int8 with the most sensitive 0, 1, 2, 4, ... nodes left in float.

    Columns float_nodes, share (of the weights quantised), agreement, flips (images whose answer changes), largest_margin (of
    those, in logits), sqnr_db, size_mb, p50_ms, ratio, ratio_low, ratio_high (time at batch 1 against the float graph in the
    same runtime). options: of `sensitivity_table`. Counts beyond the number of nodes are left out.
    """
    gate = Gate(0.0)
    with tempfile.TemporaryDirectory(prefix="vitlab-quantize-") as folder:
        prepared = _prepare_static(Path(source), data, Path(folder), gate_images, **options)
        converter, testing, reference, transform, classes = prepared
        few = np.arange(min(RANKING, len(testing)))
        names = rank_nodes(converter, testing.take(few), reference[few], transform)["node"].tolist()
        sides, rows = {"float": Path(source)}, []
        for count in [count for count in counts if count < len(names)]:
            result = measure_variant(converter, names[:count], testing, reference, transform, classes, gate)
            flipped = result.parity.query("not agrees")
            row = {"float_nodes": count, "share": converter.share(names[:count]), "agreement": result.summary["agreement"]}
            row |= {"flips": len(flipped), "largest_margin": flipped["margin"].max() if len(flipped) else 0.0}
            rows.append(row | {"sqnr_db": result.summary["sqnr_db"], "size_mb": result.path.stat().st_size / 1e6})
            sides[str(count)] = result.path
        entry = open_session(source).get_inputs()[0]
        image = testing.pixels[:1] if entry.type == "tensor(uint8)" else normalise(testing.pixels[:1], transform)
        times = latency_table(sides, image, (1,), repeats, threads).iloc[1:].reset_index(drop=True)
    return pd.concat([pd.DataFrame(rows), times[["p50_ms", "ratio", "ratio_low", "ratio_high"]]], axis=1)


def _prepare_static(
    source: Path,
    data: DataBundle,
    folder: Path,
    gate_images: int,
    *,
    calibration: str = "minmax",
    rounding: str = "compensated",
    split: str | Sequence[str] = "val",
    calibration_images: int = 64,
    reduce_range: bool | None = None,
    seed: int = 0,
) -> tuple[Converter, PixelSet, np.ndarray, Transform, list[str]]:
    """Converter, images that did not calibrate, the float graph's logits for them, transform and classes."""
    description = read_sidecar(source)
    _check_choices(description, "static", calibration, rounding, "refuse", source, None, "auto")
    transform = read_transform(description)
    calibrating, testing = _draw_both(data, transform, split, "static", calibration_images, gate_images, seed)
    reference = run_pixels(open_session(source), testing.pixels, transform)
    reduce_range = not multiplies_int8() if reduce_range is None else reduce_range
    converter = Converter(load_graph(source), "static", calibration, calibrating, transform, reduce_range, rounding, folder)
    return converter, testing, reference, transform, description["classes"]


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
        raise UserError(
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
            raise UserError(unknown("node", name, known, "sensitivity_table lists those that matter."))
    return list(float_nodes)


def _check_choices(description, method, calibration, rounding, on_failure, source: Path, path: Path | None, float_nodes) -> None:
    if method not in METHODS:
        raise UserError(unknown("method", method, list(METHODS)))
    if calibration not in CALIBRATIONS:
        raise UserError(unknown("calibration", calibration, list(CALIBRATIONS)))
    if rounding not in ROUNDINGS:
        raise UserError(unknown("rounding", rounding, list(ROUNDINGS)))
    if on_failure not in ("refuse", "flag"):
        raise UserError(unknown("on_failure", on_failure, ["refuse", "flag"]))
    if isinstance(float_nodes, str) and float_nodes != "auto":
        raise UserError(f"float_nodes is a list of names of nodes, or 'auto'; not {float_nodes!r}")
    if not isinstance(float_nodes, str) and len(float_nodes) and method not in ("static", "dynamic"):
        raise UserError(f"float_nodes goes with static and dynamic; {method} has none")
    if description["method"] != "fp32":
        raise UserError(f"{source.name} is {description['method']} already; start from the file that export_onnx wrote")
    if path is not None and path.resolve() == source.resolve():
        raise UserError(f"{path.name} would replace the float model; choose another name, such as {path.stem}-int8.onnx")

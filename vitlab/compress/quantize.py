"""An ONNX classifier with 8-bit weights; written only when it keeps the predictions of the
original.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitlab.compress.converting import METHODS, Converter, load_graph
from vitlab.compress.export import Export
from vitlab.compress.parity import Gate, PixelSet, draw_pixels, explain_failure
from vitlab.compress.processor import multiplies_int8
from vitlab.compress.sensitivity import measure_variant, spare_nodes
from vitlab.compress.session import open_session, run_pixels
from vitlab.compress.sidecar import check_target, read_sidecar, read_transform, write_pair
from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import DataBundle

INT8_GATE = Gate(0.99)
CALIBRATION_IMAGES = 64  # on which static int8 measures the ranges of the activations


def quantize_onnx(
    source: Path | str,
    path: Path | str,
    data: DataBundle,
    *,
    method: str = "static",
    split: str | Sequence[str] = "val",
    gate_images: int = 256,
    gate: Gate = INT8_GATE,
    on_failure: str = "refuse",
    seed: int = 0,
) -> Export:
    """Write `path` (.onnx) and its JSON from `source`, a file of `export_onnx`. The JSON has no
    temperature and no conformal limits: those of the source are of another model (see
    `vitlab.compress.note_calibration`).

    method: `static`: linear layers and convolutions int8 per channel, with ranges of the
    activations from real images, and rounding that keeps the outputs of each layer (see
    `vitlab.compress.rounding`). `dynamic`: weights of linear layers int8 per channel, activations
    quantised as they come; convolutions stay float, because onnxruntime is slow there. gate: what
    is let through; by default 99 % of the images keep their class. It takes images of `split` on
    which no range was measured. Where it fails, the most sensitive nodes stay in float, as many as
    their measured noise and the margins of the images call for, until it passes. Processors without
    8-bit instructions get 7-bit weights, or their 16-bit sums overflow. on_failure: `refuse` raises
    ValueError with the worst images and writes nothing; `flag` writes with parity.passed = false.
    """
    source, path = Path(source), check_target(path)
    description = read_sidecar(source)
    _check_choices(description, method, on_failure, source, path)
    transform, classes = read_transform(description), description["classes"]
    if list(data.classes) != list(classes):
        given = ", ".join(data.classes)
        raise UserError(
            f"{source.name} tells apart {', '.join(classes)}; the classes of {data.name} are"
            f" {given}"
        )
    ranging, testing = _draw_both(data, transform, split, method, gate_images, seed)
    reference = run_pixels(open_session(source), testing.pixels, transform)
    reduce_range, chosen = not multiplies_int8(), []
    with tempfile.TemporaryDirectory(prefix="vitlab-quantize-") as folder:
        converter = Converter(
            load_graph(source), method, ranging, transform, reduce_range, Path(folder)
        )
        result = measure_variant(converter, chosen, testing, reference, transform, classes, gate)
        if not result.summary["passed"]:
            result, chosen = spare_nodes(
                converter, result, testing, reference, transform, classes, gate
            )
        if not result.summary["passed"] and on_failure == "refuse":
            raise UserError(
                explain_failure(
                    f"{description['name']} as {method} ({source.name})",
                    result.parity,
                    result.summary,
                )
            )
        details = {
            "reduce_range": reduce_range,
            "share": converter.share(chosen),
            "float_nodes": sorted(chosen),
        }
        quantized = {
            **description,
            "method": method,
            "quantisation": (
                details | ({"calibration_images": len(ranging)} if method == "static" else {})
            ),
            "calibration": None,
            "parity": {"against": source.name, "sha256": description["sha256"], **result.summary},
        }
        write_pair(
            path, lambda temporary: temporary.write_bytes(result.path.read_bytes()), quantized
        )
    summary = {
        "method": method,
        "bytes": path.stat().st_size,
        **quantized["quantisation"],
        **result.summary,
    }
    return Export(path, summary, result.parity)


def _draw_both(data, transform, split, method, gate_images, seed) -> tuple[PixelSet, PixelSet]:
    """Images on which ranges are measured, and others for the gate; half of them each where there
    are not enough for both.
    """
    wanted = CALIBRATION_IMAGES if method == "static" else 0
    images = draw_pixels(data, transform, split, wanted + gate_images, seed)
    count = min(wanted, max(len(images) - gate_images, len(images) // 2))
    ranging, testing = images.take(np.arange(count)), images.take(np.arange(count, len(images)))
    found = sorted({data.classes[k] for k in ranging.label})
    if wanted and len(found) < 2:
        raise UserError(
            f"the {count} images on which ranges are measured hold"
            f" {f'only the class {found[0]}' if found else 'no class'}: the ranges would suit that"
            " class alone; give a split with images of all classes"
        )
    return ranging, testing


def _check_choices(description, method, on_failure, source: Path, path: Path) -> None:
    if method not in METHODS:
        raise UserError(unknown("method", method, list(METHODS)))
    if on_failure not in ("refuse", "flag"):
        raise UserError(unknown("on_failure", on_failure, ["refuse", "flag"]))
    if description["method"] != "fp32":
        raise UserError(
            f"{source.name} is {description['method']} already; start from the file that"
            " export_onnx wrote"
        )
    if path.resolve() == source.resolve():
        raise UserError(
            f"{path.name} would replace the float model; choose another name, such as"
            f" {path.stem}-int8.onnx"
        )

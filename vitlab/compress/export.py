"""A classifier as an ONNX file that any language can run; written only when it gives the same
predictions on real images.
"""

from __future__ import annotations

import copy
import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch

from vitlab.compress.session import (
    INPUT,
    description_path,
    fit_image,
    normalise,
    open_session,
    run_pixels,
)
from vitlab.data.loading import preprocess
from vitlab.errors import UserError
from vitlab.files import atomic, hash_file, write_json
from vitlab.runs import list_versions
from vitlab.schema import DataBundle, ModelBundle, Transform

OPSET = 20  # LayerNormalization came with 17, Gelu with 20; onnxruntime 1.32 handles up to 24
LARGEST = 2**31 - 2**24  # bytes in one ONNX file: protobuf's limit, less room for the graph
PIXEL_TOLERANCE = 1e-5  # of normalised values, which are about 1


@dataclass(frozen=True)
class Gate:
    """What a converted model may differ by.

    agreement: smallest share of images with the same most probable class (top-1). difference:
    largest difference of a logit, as a share of the largest logit of the reference; infinite where
    only the class counts."""

    agreement: float = 0.99
    difference: float = np.inf

    def passes(self, parity: dict) -> bool:
        """Whether numbers of `measure_parity` are within the limits."""
        return bool(
            parity["agreement"] >= self.agreement
            and parity["relative_difference"] <= self.difference
            and np.isfinite(parity["max_difference"])
        )


EXPORT_GATE = Gate(agreement=0.99, difference=1e-3)


@dataclass(frozen=True)
class Export:
    """An ONNX file that was written. summary: method, bytes, and the numbers of its gate."""

    path: Path
    summary: dict


def export_onnx(
    model: ModelBundle, path: Path | str, data: DataBundle, *, limit: int = 32, seed: int = 0
) -> Export:
    """Write `path` (.onnx) and `path`.json: float32, any number of images at once, one file.

    The graph takes `images`, normalised floats (B, C, h, w), and gives `logits` (B, num_classes).
    The JSON says how an image of any size becomes its input, and has room for temperature and
    conformal limits (`vitlab.compress.note_calibration`). data, limit: the validation images of the
    gate, which compares preprocessing with vitlab's pixel by pixel, and logits with PyTorch's, one
    image at a time and in batches. UserError, by how much and on which images, when one fails, and
    where the model cannot be traced; then nothing is written."""
    path = check_target(path)
    if tuple(data.classes) != tuple(model.classes):
        known, given = ", ".join(model.classes), ", ".join(data.classes)
        raise UserError(
            f"{model.name} distinguishes {known}; the classes of {data.name} are {given}"
        )
    rows, pixels = draw_pixels(data, model.transform, limit, seed)
    module = copy.deepcopy(model.module).cpu().float().eval()
    proto = trace_module(module, model.transform, model.name)
    _check_preprocessing(data, rows, pixels, model.transform)
    serialized = proto.SerializeToString()
    session = open_session(serialized)
    with torch.no_grad():
        images = torch.from_numpy(normalise(pixels, model.transform))
        reference = torch.cat([module(part) for part in images.split(16)]).numpy()
    # one image by itself, then a batch: a graph for one number of images does not pass
    parts = (pixels[:1], pixels[1:]) if len(pixels) > 1 else (pixels,)
    logits = np.concatenate([run_pixels(session, part, model.transform) for part in parts])
    parity = measure_parity(reference, logits)
    if not EXPORT_GATE.passes(parity):
        failed = describe_failure(rows, reference, logits, model.classes, EXPORT_GATE)
        raise UserError(f"{model.name} as ONNX {failed}")
    description = {
        "name": model.name,
        "classes": list(model.classes),
        "transform": asdict(model.transform),
        "input": INPUT,
        "method": "fp32",
        "opset": OPSET,
        "calibration": None,
        "parity": {"against": "PyTorch", **parity},
    }
    write_pair(path, serialized, description)
    return Export(path, {"method": "fp32", "bytes": path.stat().st_size, **parity})


def trace_module(module: torch.nn.Module, transform: Transform, name: str) -> onnx.ModelProto:
    """The graph of a module in evaluation mode, `images` (B, C, h, w) to `logits`, B left open.

    UserError with the cause where the exporter cannot follow the code, or where the code fixes the
    batch."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > LARGEST:
        raise UserError(
            f"{name} holds {size / 1e9:.1f} GB; one ONNX file takes 2 GB at most: export a smaller"
            " model"
        )
    # two images: a batch of one would be taken for a constant
    example = torch.zeros(2, len(transform.mean), *transform.size)
    try:
        # the exporter prints the whole graph of every failed attempt, past the logging module
        with (
            redirect_stderr(io.StringIO()),
            redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                verbose=False,
            )
    # the exporter raises its own kinds, and whatever the traced code raises
    except Exception as error:
        raise UserError(f"{name} cannot be exported: {_find_cause(error)}") from error
    proto = program.model_proto
    del proto.graph.value_info[:]  # shapes that the quantiser of onnxruntime trips over
    if not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise UserError(
            f"{name} cannot be exported for any number of images: its code fixes the batch, as"
            " len(images) or int(images.shape[0]) do; write images.shape[0]"
        )
    return proto


def draw_pixels(
    data: DataBundle, transform: Transform, limit: int, seed: int = 0
) -> tuple[pd.DataFrame, np.ndarray]:
    """At most `limit` validation images, drawn at random, evenly over the classes: their rows, and
    their pixels as a model takes them (N, h, w, C) uint8.

    Classes take turns, so the first images hold as many of each class as there are. UserError for a
    split without images."""
    rows = data.split("val").sample(frac=1, random_state=seed)
    if rows.empty:
        raise UserError(f"{data.name} has no validation images, on which an export is checked")
    turn = rows.groupby("label", observed=True).cumcount()
    rows = rows.assign(turn=turn).sort_values("turn", kind="stable").head(limit)
    pixels = [fit_image(data.read(sample_id), transform) for sample_id in rows["sample_id"]]
    return rows[["sample_id", "label"]].reset_index(drop=True), np.stack(pixels)


def measure_parity(reference: np.ndarray, logits: np.ndarray) -> dict:
    """How alike two models' logits (N, num_classes) are: images, agreement (share of images with
    the same most probable class), max_difference (of logits), relative_difference (of the largest
    logit), sqnr_db."""
    largest = float(np.abs(reference - logits).max())
    return {
        "images": len(reference),
        "agreement": float((reference.argmax(axis=1) == logits.argmax(axis=1)).mean()),
        "max_difference": largest,
        "relative_difference": largest / max(float(np.abs(reference).max()), 1e-12),
        "sqnr_db": measure_sqnr(reference, logits),
    }


def measure_sqnr(reference: np.ndarray, values: np.ndarray) -> float:
    """Signal to quantisation noise in decibels: 10 log10 (sum reference^2 / sum error^2), the mean
    logit of each class taken off.

    200 at most, for values that are equal."""
    signal = ((reference - reference.mean(axis=0)) ** 2).sum(dtype=np.float64)
    noise = ((reference - values) ** 2).sum(dtype=np.float64)
    return float(min(200.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))


def describe_failure(
    rows: pd.DataFrame, reference: np.ndarray, logits: np.ndarray, classes, gate: Gate
) -> str:
    """Why a model fails the gate: by how much, and on which images."""
    parity = measure_parity(reference, logits)
    before, after = reference.argmax(axis=1), logits.argmax(axis=1)
    difference = np.abs(reference - logits).max(axis=1)
    worst = np.lexsort((-difference, before == after))[:5]
    named = [
        f"{rows['sample_id'][k]}: {classes[before[k]]} -> {classes[after[k]]}, logits off by"
        f" {difference[k]:.3g}"
        for k in worst
    ]
    limit = f" (at most {gate.difference:.3g})" if np.isfinite(gate.difference) else ""
    return (
        f"fails the gate and was not written: {parity['agreement']:.1%} of {parity['images']}"
        f" images keep their class (at least {gate.agreement:.1%}), and logits differ by up to"
        f" {parity['relative_difference']:.2%} of the largest{limit}. Worst images:"
        f" {'; '.join(named)}"
    )


def check_target(path: Path | str) -> Path:
    """The path, when an ONNX file can be written there; UserError before time is spent."""
    path = Path(path)
    if path.suffix != ".onnx":
        raise UserError(f"{path} does not end in .onnx; write {path.with_suffix('.onnx')}")
    return path


def write_pair(path: Path, content: bytes, description: dict) -> None:
    """Write an ONNX file and its description, with its checksum and the versions of packages.

    Each file appears whole or not at all; a pair of which only one was replaced is noticed by the
    checksum."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)
        noted = {"sha256": hash_file(temporary), "versions": list_versions()}
        write_json(description_path(path), {**description, **noted})


def _check_preprocessing(
    data: DataBundle, rows: pd.DataFrame, pixels: np.ndarray, transform: Transform
) -> None:
    """Compare the preprocessing of `OnnxClassifier` with that of training, from the decoded image
    on.
    """
    ours = normalise(pixels, transform)
    theirs = [preprocess(data.read(name), transform).numpy() for name in rows["sample_id"]]
    off = np.abs(ours - np.stack(theirs)).reshape(len(pixels), -1).max(axis=1)
    if not off.max() <= PIXEL_TOLERANCE:
        raise UserError(
            "preprocessing without torch differs from vitlab.data.preprocess in"
            f" {(off > PIXEL_TOLERANCE).sum()} of {len(pixels)} images, by up to {off.max():.3g}"
            f" in {rows['sample_id'][off.argmax()]} (at most {PIXEL_TOLERANCE:g}); nothing was"
            " written"
        )


def _find_cause(error: BaseException) -> str:
    """The innermost error's first telling line: the exporter wraps it several times."""
    while error.__cause__ is not None or (
        error.__context__ is not None and not error.__suppress_context__
    ):
        error = error.__cause__ or error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"

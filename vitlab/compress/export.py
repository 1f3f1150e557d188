"""A classifier as an ONNX file that any language can run; written only when it gives the same
predictions on real images.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch

from vitlab.compress.parity import (
    Gate,
    PixelSet,
    compare_logits,
    draw_pixels,
    explain_failure,
    summarise_parity,
)
from vitlab.compress.preprocess import normalise
from vitlab.compress.session import open_session, run_pixels
from vitlab.compress.sidecar import INPUT, check_target, describe_transform, write_pair
from vitlab.data import preprocess as torch_preprocess
from vitlab.errors import UserError
from vitlab.schema import DataBundle, ModelBundle, Transform

OPSET = 20  # LayerNormalization came with 17, Gelu with 20; onnxruntime 1.32 handles up to 24
LARGEST = 2**31 - 2**24  # bytes in one ONNX file: protobuf's limit, less room for the graph
EXPORT_GATE = Gate(agreement=0.99, difference=1e-3)
PIXEL_TOLERANCE = 1e-5  # of normalised values, which are about 1


@dataclass(frozen=True)
class Export:
    """An ONNX file that was written: path; summary (agreement, differences, size, method); parity:
    a row for each image of the gate, the worst first (see compare_logits)."""

    path: Path
    summary: dict
    parity: pd.DataFrame = field(repr=False)


def export_onnx(
    model: ModelBundle,
    path: Path | str,
    data: DataBundle,
    *,
    split: str | Sequence[str] = "val",
    limit: int = 32,
    seed: int = 0,
) -> Export:
    """Write `path` (.onnx) and `path`.json: float32, any number of images at once, one file.

    The graph takes `images`, normalised floats (B, C, h, w), and gives `logits` (B, num_classes).
    The JSON says how an image of any size becomes its input, and has room for temperature and
    conformal limits (`vitlab.compress.note_calibration`). data, split, limit: the real images of
    the gate, which compares preprocessing with vitlab's pixel by pixel, and logits with PyTorch's,
    one image at a time and in batches. ValueError, by how much and on which images, when one fails,
    and where the model cannot be traced; then nothing is written."""
    path = check_target(path)
    if tuple(data.classes) != tuple(model.classes):
        known, given = ", ".join(model.classes), ", ".join(data.classes)
        raise UserError(
            f"{model.name} distinguishes {known}; the classes of {data.name} are {given}"
        )
    images = draw_pixels(data, model.transform, split, limit, seed)
    module = copy.deepcopy(model.module).cpu().float().eval()
    proto = trace_module(module, model.transform, model.name)
    _check_preprocessing(data, images, model.transform)
    serialized = proto.SerializeToString()
    reference = _run_torch(module, images, model.transform)
    logits = _run_both_ways(open_session(serialized), images, model.transform)
    table = compare_logits(images.sample_ids, reference, logits, model.classes)
    summary = summarise_parity(table, reference, logits, EXPORT_GATE)
    if not summary["passed"]:
        raise UserError(explain_failure(f"{model.name} as ONNX", table, summary))
    description = {
        "name": model.name,
        "classes": list(model.classes),
        "transform": describe_transform(model.transform),
        "input": INPUT,
        "method": "fp32",
        "opset": OPSET,
        "calibration": None,
        "parity": {"against": "PyTorch", **summary},
    }
    write_pair(path, lambda temporary: temporary.write_bytes(serialized), description)
    return Export(path, {"method": "fp32", "bytes": path.stat().st_size, **summary}, table)


def trace_module(module: torch.nn.Module, transform: Transform, name: str) -> onnx.ModelProto:
    """The graph of a module in evaluation mode, `images` (B, C, h, w) to `logits`, B left open.

    ValueError with the cause where the exporter cannot follow the code, or where the code fixes the
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


def _check_preprocessing(data: DataBundle, images: PixelSet, transform: Transform) -> None:
    """Compare the preprocessing of `OnnxClassifier` with that of training, from the decoded image
    on.
    """
    ours = normalise(images.pixels, transform)
    theirs = [torch_preprocess(data.read(name), transform).numpy() for name in images.sample_ids]
    off = np.abs(ours - np.stack(theirs)).reshape(len(images), -1).max(axis=1)
    if not off.max() <= PIXEL_TOLERANCE:
        worst = int(off.argmax())
        raise UserError(
            "preprocessing without torch differs from vitlab.data.preprocess in"
            f" {(off > PIXEL_TOLERANCE).sum()} of {len(images)} images, by up to {off[worst]:.3g}"
            f" in {images.sample_ids[worst]} (at most {PIXEL_TOLERANCE:g}); nothing was written"
        )


@torch.no_grad()
def _run_torch(module, images: PixelSet, transform: Transform, batch: int = 16) -> np.ndarray:
    parts = [
        normalise(images.pixels[start : start + batch], transform)
        for start in range(0, len(images), batch)
    ]
    return np.concatenate([module(torch.from_numpy(part)).numpy() for part in parts])


def _run_both_ways(
    session: onnxruntime.InferenceSession, images: PixelSet, transform: Transform
) -> np.ndarray:
    """The first image by itself, the others in batches of another size: a graph for one number of
    images only does not pass.
    """
    alone = run_pixels(session, images.pixels[:1], transform)
    rest = [run_pixels(session, images.pixels[1:], transform, batch=5)] if len(images) > 1 else []
    return np.concatenate([alone, *rest])


def _find_cause(error: BaseException) -> str:
    """The innermost error's first telling line: the exporter wraps it several times."""
    while error.__cause__ is not None or (
        error.__context__ is not None and not error.__suppress_context__
    ):
        error = error.__cause__ or error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"

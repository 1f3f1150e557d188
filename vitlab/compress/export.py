"""A classifier as an ONNX file that any language can run; written only when it gives the same answers on real images."""

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
from onnx import TensorProto, compose, helper, numpy_helper

from vitlab.compress.parity import Gate, PixelSet, compare_logits, draw_pixels, explain_failure, summarise_parity
from vitlab.compress.preprocess import normalise
from vitlab.compress.session import open_session, run_pixels
from vitlab.compress.sidecar import PREPROCESSING, check_target, describe_transform, write_pair
from vitlab.data import normalise as torch_normalise, preprocess as torch_preprocess
from vitlab.errors import UserError
from vitlab.evaluation.conformal import find_limits
from vitlab.evaluation.recalibration import calibrate
from vitlab.registry import unknown
from vitlab.schema import DataBundle, ModelBundle, Transform

OPSETS = (18, 24)  # what both the exporter and onnxruntime 1.32 handle; LayerNormalization came with 17, Gelu with 20
LARGEST = 2**31 - 2**24  # bytes in one ONNX file: protobuf's limit, less room for the graph
EXPORT_GATE = Gate(agreement=0.99, difference=1e-3)
PIXEL_TOLERANCE = 1e-5  # of normalised values, which are about 1


@dataclass(frozen=True)
class Export:
    """An ONNX file that was written: path; summary (agreement, differences, size, method); parity: a row for each image of the
    gate, the worst first (see compare_logits)."""

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
    preprocessing: str = "beside",
    calibration: dict | None = None,
    opset: int = 20,
    gate: Gate = EXPORT_GATE,
    seed: int = 0,
) -> Export:
    """Write `path` (.onnx) and `path`.json: float32, any number of images at once, one file.

    data, split, limit: the real images of the gate. preprocessing: what the graph takes (the input is called `images`, the
    output `logits`): `beside` takes normalised floats (B, C, h, w); `inside` takes uint8 (B, h, w, C), already at the model's
    size, and scales and normalises them itself. Fitting an image of any size to the model's stays outside in both.
    calibration: from `find_calibration`: temperature and conformal limits, kept in the JSON.

    The gate: preprocessing is compared with vitlab's pixel by pixel, logits with PyTorch's, one image at a time and in batches.
    ValueError, by how much and on which images, when one fails, and where the model cannot be traced; then nothing is written.
    """
    path = check_target(path)
    if preprocessing not in PREPROCESSING:
        raise UserError(unknown("preprocessing", preprocessing, list(PREPROCESSING)))
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise UserError(f"opset={opset}: write a number from {OPSETS[0]} to {OPSETS[1]}; 20 suits most")
    _check_calibration(calibration, model.classes)
    if tuple(data.classes) != tuple(model.classes):
        known, given = ", ".join(model.classes), ", ".join(data.classes)
        raise UserError(f"{model.name} tells apart {known}; the classes of {data.name} are {given}")
    images = draw_pixels(data, model.transform, split, limit, seed)
    module = copy.deepcopy(model.module).cpu().float().eval()
    proto = trace_module(module, model.transform, opset, model.name)
    _check_preprocessing(data, images, model.transform)
    if preprocessing == "inside":
        proto = put_preprocessing_inside(proto, model.transform, images)
    serialized = proto.SerializeToString()
    reference = _run_torch(module, images, model.transform)
    logits = _run_both_ways(open_session(serialized), images, model.transform)
    table = compare_logits(images.sample_ids, reference, logits, model.classes)
    summary = summarise_parity(table, reference, logits, gate)
    if not summary["passed"]:
        raise UserError(explain_failure(f"{model.name} as ONNX", table, summary))
    description = {
        "name": model.name,
        "classes": list(model.classes),
        "transform": describe_transform(model.transform),
        "preprocessing": preprocessing,
        "input": PREPROCESSING[preprocessing],
        "method": "fp32",
        "opset": opset,
        "calibration": calibration,
        "parity": {"against": "PyTorch", **summary},
    }
    write_pair(path, lambda temporary: temporary.write_bytes(serialized), description)
    return Export(path, {"method": "fp32", "bytes": path.stat().st_size, **summary}, table)


def find_calibration(predictions: pd.DataFrame, alpha: float = 0.1, by_class: bool = True) -> dict:
    """Temperature and conformal limits for the JSON of an export, both fitted on the validation split of a predictions table.

    Keys temperature, alpha, by_class, limits: for each class the largest 1 - probability (after the temperature) that is let
    into a set, None where the class is in every set.
    """
    calibrated = calibrate(predictions, "temperature")
    columns = [name for name in predictions.columns if name.startswith("logit_")]
    before, after = (table[columns].to_numpy(float) for table in (predictions, calibrated))
    limits, _ = find_limits(calibrated, alpha, by_class)
    classes = [name.removeprefix("logit_") for name in columns]
    return {
        "temperature": float((before * before).sum() / max((before * after).sum(), 1e-300)),
        "alpha": alpha,
        "by_class": by_class,
        "limits": {name: float(limit) if np.isfinite(limit) else None for name, limit in zip(classes, limits, strict=True)},
    }


def trace_module(module: torch.nn.Module, transform: Transform, opset: int, name: str) -> onnx.ModelProto:
    """The graph of a module in evaluation mode, `images` (B, C, h, w) to `logits`, B left open.

    ValueError with the cause where the exporter cannot follow the code, or where the code fixes the batch.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > LARGEST:
        raise UserError(f"{name} holds {size / 1e9:.1f} GB; one ONNX file takes 2 GB at most: export a smaller model")
    example = torch.zeros(2, len(transform.mean), *transform.size)  # two images: a batch of one would be taken for a constant
    try:
        # the exporter prints the whole graph of every failed attempt, past the logging module
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # the exporter raises its own kinds, and whatever the traced code raises
        raise UserError(f"{name} cannot be exported: {_find_cause(error)}") from error
    proto = program.model_proto
    del proto.graph.value_info[:]  # shapes that the quantiser of onnxruntime trips over
    if not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise UserError(
            f"{name} cannot be exported for any number of images: its code fixes the batch, as len(images) or "
            "int(images.shape[0]) do; write images.shape[0]"
        )
    return proto


def put_preprocessing_inside(proto: onnx.ModelProto, transform: Transform, images: PixelSet) -> onnx.ModelProto:
    """The graph with scaling and normalisation in front: `images` becomes uint8 (B, h, w, C).

    What is put in front is run by itself on the images and compared with vitlab's, pixel by pixel; ValueError where they differ.
    """
    front = _build_preprocessing(transform, proto)
    ours = open_session(front.SerializeToString()).run(None, {"images": images.pixels})[0]
    theirs = torch_normalise(torch.from_numpy(images.pixels.copy()).permute(0, 3, 1, 2), transform).numpy()
    _compare_pixels(ours, theirs, images, "the preprocessing in the graph")
    whole = compose.merge_models(
        compose.add_prefix(front, "preprocess_", rename_inputs=False, rename_outputs=False),
        compose.add_prefix(proto, "", rename_nodes=False, rename_edges=False, rename_inputs=True),
        io_map=[("normalised", proto.graph.input[0].name)],
    )
    return whole


def _build_preprocessing(transform: Transform, like: onnx.ModelProto) -> onnx.ModelProto:
    """uint8 `images` (B, h, w, C) to float32 `normalised` (B, C, h, w): /255, - mean, / std."""
    height, width = transform.size
    constants = {"scale": 255.0, "mean": transform.mean, "std": transform.std}
    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["values", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["standardised"]),
        helper.make_node("Transpose", ["standardised"], ["normalised"], perm=[0, 3, 1, 2]),
    ]
    channels = len(transform.mean)
    graph = helper.make_graph(
        nodes,
        "preprocessing",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", height, width, channels])],
        [helper.make_tensor_value_info("normalised", TensorProto.FLOAT, ["batch", channels, height, width])],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=like.opset_import, ir_version=like.ir_version)


def _check_preprocessing(data: DataBundle, images: PixelSet, transform: Transform) -> None:
    """Compare what `OnnxClassifier` will do with what the model was trained on, from the decoded image on."""
    ours = normalise(images.pixels, transform)
    theirs = np.stack([torch_preprocess(data.read(sample_id), transform).numpy() for sample_id in images.sample_ids])
    _compare_pixels(ours, theirs, images, "preprocessing without torch")


def _compare_pixels(ours: np.ndarray, theirs: np.ndarray, images: PixelSet, what: str) -> None:
    off = np.abs(ours - theirs).reshape(len(images), -1).max(axis=1)
    if not off.max() <= PIXEL_TOLERANCE:
        worst = int(off.argmax())
        raise UserError(
            f"{what} differs from vitlab.data.preprocess in {(off > PIXEL_TOLERANCE).sum()} of {len(images)} images, by up to "
            f"{off[worst]:.3g} in {images.sample_ids[worst]} (at most {PIXEL_TOLERANCE:g}); nothing was written"
        )


@torch.no_grad()
def _run_torch(module, images: PixelSet, transform: Transform, batch: int = 16) -> np.ndarray:
    parts = [normalise(images.pixels[start : start + batch], transform) for start in range(0, len(images), batch)]
    return np.concatenate([module(torch.from_numpy(part)).numpy() for part in parts])


def _run_both_ways(session: onnxruntime.InferenceSession, images: PixelSet, transform: Transform) -> np.ndarray:
    """The first image by itself, the others in batches of another size: a graph for one number of images only does not pass."""
    alone = run_pixels(session, images.pixels[:1], transform)
    rest = [run_pixels(session, images.pixels[1:], transform, batch=5)] if len(images) > 1 else []
    return np.concatenate([alone, *rest])


def _check_calibration(calibration: dict | None, classes: Sequence[str]) -> None:
    if calibration is None:
        return
    temperature = calibration.get("temperature")
    if not (isinstance(temperature, int | float) and temperature > 0):
        raise UserError(f"calibration has temperature {temperature!r}; find_calibration(predictions) makes what is needed here")
    limits = calibration.get("limits")
    if limits is not None and set(limits) != set(classes):
        raise UserError(f"calibration has limits for {', '.join(limits)}, the model tells apart {', '.join(classes)}")


def _find_cause(error: BaseException) -> str:
    """The innermost error's first telling line: the exporter wraps it several times."""
    while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        error = error.__cause__ or error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"

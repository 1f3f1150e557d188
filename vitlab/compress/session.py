"""An exported classifier, run with ONNX Runtime, NumPy and Pillow, without torch.

`model.onnx` has a description beside it, `model.onnx.json`: classes, transform, checksum, and the
temperature and conformal limits of this very file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from vitlab.errors import MissingFileError, UserError
from vitlab.files import hash_file
from vitlab.pictures import fit_picture
from vitlab.places import count_cores
from vitlab.schema import Transform

INPUT = "images: float32 (B, C, h, w), fitted to size, scaled to 0..1, minus mean, divided by std"
FIELDS = {"name", "classes", "transform", "input", "method", "sha256", "calibration", "parity"}
BATCH = 32  # images computed together, so that memory does not grow with their number


class OnnxClassifier:
    """Images to calibrated probabilities, by an ONNX file and its description.

    threads: within one operation; by default one for each core. description: the content of the
    JSON; classes, transform and temperature (1 where none was fitted) are read from it.

    MissingFileError where a file is missing; UserError where one is damaged, or the two do not
    belong together."""

    def __init__(self, path: Path | str, threads: int | None = None):
        self.description = read_description(path)
        self.classes = tuple(self.description["classes"])
        self.transform = read_transform(self.description)
        calibration = self.description["calibration"] or {}
        self.temperature = float(calibration.get("temperature", 1.0))
        self.session = open_session(path, threads)

    def predict_logits(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, num_classes) float32, as the graph gives them."""
        logits = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            pixels = np.stack([fit_image(image, self.transform) for image in batch])
            logits.append(run_pixels(self.session, pixels, self.transform))
        return np.concatenate(logits)

    def predict(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Probabilities (N, num_classes), calibrated by the temperature."""
        scaled = self.predict_logits(images).astype(np.float64) / self.temperature
        raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True)


def open_session(
    path: Path | str | bytes, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the processor; UserError with the cause where the file cannot be
    run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or count_cores()
    options.inter_op_num_threads = 1
    # threads that spin between operations take time from those at work where two share a core, and
    # from other sessions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    model = path if isinstance(path, bytes) else str(path)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the classes of onnxruntime's errors have no public name
        where = "the model" if isinstance(path, bytes) else path
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} cannot run {where}:"
            f" {str(error).splitlines()[0]}"
        ) from error


def run_pixels(
    session: onnxruntime.InferenceSession, pixels: np.ndarray, transform: Transform
) -> np.ndarray:
    """Logits (N, num_classes) float32 of fitted pixels (N, h, w, C) uint8."""
    name, logits = session.get_inputs()[0].name, []
    for start in range(0, len(pixels), BATCH):
        batch = normalise(pixels[start : start + BATCH], transform)  # (B, C, h, w)
        logits.append(session.run(None, {name: batch})[0].astype(np.float32))
    return np.concatenate(logits)


def fit_image(image: Image.Image, transform: Transform) -> np.ndarray:
    """(h, w, 3) uint8 in RGB, or (h, w, 1) in grey where the transform has one mean; see
    `vitlab.pictures.fit_picture`.
    """
    height, width = transform.size
    return np.asarray(fit_picture(image, transform)).reshape(height, width, len(transform.mean))


def normalise(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    """uint8 (..., h, w, C) to float32 (..., C, h, w): values in 0..1, then minus mean, over std,
    per channel.
    """
    mean, std = (np.array(values, np.float32) for values in (transform.mean, transform.std))
    values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(values, -1, -3))


def description_path(path: Path | str) -> Path:
    """Where the description of an ONNX file lies: its name with .json at the end."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def read_description(path: Path | str) -> dict:
    """The description of an ONNX file, checked against the file.

    MissingFileError where one of the two is missing; UserError where one is damaged or they do not
    belong together."""
    path, beside = Path(path), description_path(path)
    for file in (path, beside):
        if not file.is_file():
            raise MissingFileError(
                f"{file} is missing; export_onnx(model, {str(path)!r}, data) writes {path.name} and"
                f" {beside.name}"
            )
    try:
        description = json.loads(beside.read_text(encoding="utf-8"))
        missing = FIELDS - description.keys()
    except (ValueError, AttributeError) as error:
        raise UserError(f"{beside} is damaged: {error}") from error
    if missing:
        raise UserError(
            f"{beside} does not describe an exported model: it lacks {', '.join(sorted(missing))}"
        )
    if description["input"] != INPUT:
        raise UserError(
            f"{path} takes other inputs than this version of vitlab gives ({description['input']});"
            " export it again"
        )
    if hash_file(path) != description["sha256"]:
        raise UserError(
            f"{path} is damaged or of another export than {beside.name}: its checksum is not the"
            " one noted there"
        )
    return description


def read_transform(description: dict) -> Transform:
    """The transform in a description."""
    fields = {}
    for name, value in description["transform"].items():
        fields[name] = tuple(value) if isinstance(value, list) else value
    return Transform(**fields)

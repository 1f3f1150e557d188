"""A classifier from an ONNX file, with neither torch nor timm: what runs where the model is
used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from PIL import Image, UnidentifiedImageError

from vitlab.compress.preprocess import fit_image, normalise
from vitlab.compress.sidecar import available_threads, read_sidecar, read_transform
from vitlab.errors import MissingFileError, UserError
from vitlab.pictures import open_picture

BATCH = 32  # images computed together, so that memory does not grow with their number
MAX_PIXELS = 50_000_000  # of one image file: 150 MB decoded


def open_session(
    path: Path | str | bytes, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the processor; ValueError with the cause where the file cannot be
    run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
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
    session: onnxruntime.InferenceSession, pixels: np.ndarray, transform, batch: int = BATCH
) -> np.ndarray:
    """Logits (N, num_classes) float32 of fitted pixels (N, h, w, C) uint8."""
    name, logits = session.get_inputs()[0].name, []
    for start in range(0, len(pixels), batch):
        part = normalise(pixels[start : start + batch], transform)  # (B, C, h, w)
        logits.append(session.run(None, {name: part})[0].astype(np.float32))
    return np.concatenate(logits)


class OnnxClassifier:
    """Images to calibrated probabilities, by `model.onnx` and the `model.onnx.json` beside it.

    threads: within one operation; by default all cores that the process may use. description: what
    the JSON holds; classes, transform, temperature (1 where none was fitted) and limits (of
    conformal sets, None where there are none) are read from it.

    FileNotFoundError where a file is missing; ValueError where one is damaged, or the two do not
    belong together."""

    def __init__(self, path: Path | str, threads: int | None = None):
        if threads is not None and threads < 1:
            raise UserError(
                f"threads={threads}: write a number from 1 on, or leave it out for all cores"
            )
        self.path = Path(path)
        self.description = read_sidecar(path)
        self.classes = tuple(self.description["classes"])
        self.transform = read_transform(self.description)
        calibration = self.description["calibration"] or {}
        self.temperature = float(calibration.get("temperature") or 1.0)
        self.limits = calibration.get("limits")
        self.session = open_session(path, threads)

    def predict_logits(self, images: Sequence[Image.Image | Path | str]) -> np.ndarray:
        """(N, num_classes) float32, as the graph gives them. images: decoded ones or paths;
        ValueError for what is no image.
        """
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        if not len(images):
            return np.zeros((0, len(self.classes)), np.float32)
        logits = []
        for start in range(0, len(images), BATCH):
            pixels = np.stack(
                [
                    fit_image(read_image(image), self.transform)
                    for image in images[start : start + BATCH]
                ]
            )
            logits.append(run_pixels(self.session, pixels, self.transform))
        return np.concatenate(logits)

    def predict(self, images: Sequence[Image.Image | Path | str]) -> np.ndarray:
        """Probabilities (N, num_classes), calibrated by the temperature."""
        scaled = self.predict_logits(images).astype(np.float64) / self.temperature
        raised = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
        return raised / raised.sum(axis=1, keepdims=True)

    def find_sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each class is in the conformal set of each image: (N, num_classes), True or
        False; a set may be empty.

        The limits were found by `vitlab.evaluation.conformal` on the validation split, as was
        the temperature."""
        if self.limits is None:
            raise UserError(
                f"{self.path.name} has no conformal limits; export it with"
                " calibration=find_calibration(predictions, alpha=0.1)"
            )
        limits = np.array(
            [np.inf if self.limits[name] is None else self.limits[name] for name in self.classes]
        )
        return 1 - probabilities <= limits

    def predict_table(
        self, images: Sequence[Image.Image | Path | str], sample_ids: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """A row an image: sample_id, pred, confidence, prob_<class>; and, with conformal limits,
        in_<class>, size, sure.

        sample_ids: by default the paths, or numbers. sure: the set holds one class.
        """
        if sample_ids is None:
            sample_ids = [
                str(image) if isinstance(image, str | Path) else str(i)
                for i, image in enumerate(images)
            ]
        if len(sample_ids) != len(images):
            raise UserError(
                f"{len(sample_ids)} sample_ids do not name {len(images)} images; give one of each"
            )
        prob = self.predict(images)
        table = pd.DataFrame(
            {"sample_id": list(sample_ids), "pred": np.array(self.classes)[prob.argmax(axis=1)]}
        )
        table["confidence"] = prob.max(axis=1, initial=0)
        table[[f"prob_{name}" for name in self.classes]] = prob
        if self.limits is not None:
            inside = self.find_sets(prob)
            table[[f"in_{name}" for name in self.classes]] = inside
            table = table.assign(size=inside.sum(axis=1), sure=inside.sum(axis=1) == 1)
        return table


def read_image(image: Image.Image | Path | str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a file as `open_picture` does for training; an image in memory is given back as it is.

    The size is checked before anything is decoded. ValueError for what is no image, is damaged, or
    is too large."""
    if isinstance(image, Image.Image):
        return image
    path = Path(image)
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}")

    def check(opened: Image.Image) -> None:
        width, height = opened.size
        if width * height > max_pixels:
            raise UserError(
                f"{path.name} has {width} x {height} pixels; at most {max_pixels:,} are taken: make"
                " it smaller"
            )

    try:
        return open_picture(path, check)
    except UnidentifiedImageError as error:
        raise UserError(f"{path.name} is not an image that can be read") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path.name} is too large: {error}") from error
    # Pillow's words for a file that ends early or is damaged
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path.name} is damaged: {error}") from error

"""Predictions for images and files, a class where its conformal set allows one and else "not
sure", and maps of what they depend on.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.app.overlay import OCCLUSION_SHOWS, occlusion_map, paint_overlay
from vitlab.app.uploads import UploadError, UploadLimits, read_upload
from vitlab.compress.session import OnnxClassifier, fit_image
from vitlab.errors import MissingFileError, UserError
from vitlab.places import count_cores

if TYPE_CHECKING:
    from vitlab.app.torch_model import TorchModel

ONNX = "model.onnx"
WEIGHTS = "model.safetensors"
MIN_SIDE = 420  # pixels of an overlay, so that it is sharp on a screen
BATCH = 16  # images decoded and computed together
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets compute a cell that begins with one


@dataclass(frozen=True)
class Prediction:
    """classes: most probable first, with their probabilities. members: those in the conformal set.
    coverage: the nominal coverage of the set; None without limits.
    """

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    members: tuple[str, ...] = ()
    coverage: float | None = None

    @property
    def sure(self) -> bool:
        """Whether the set holds the most probable class alone; always true without limits."""
        return self.members == self.classes[:1] or self.coverage is None

    @property
    def headline(self) -> str:
        return self.classes[0] if self.sure else "Not sure"

    @property
    def reason(self) -> str:
        """A sentence for the reader."""
        if self.coverage is None:
            return "This model has no conformal limits, so it always gives one class."
        start = f"The set that contains the true class with {self.coverage:.0%} probability"
        if self.sure:
            return f"{start} contains only this class."
        if not self.members:
            return f"{start} is empty: this image is unlike the validation images of every class."
        return f"{start} contains {', '.join(self.members)}."

    def as_dict(self) -> dict:
        """For programs: answer, sure, set, probabilities by class."""
        pairs = zip(self.classes, self.probabilities, strict=True)
        return {
            "answer": self.classes[0],
            "sure": self.sure,
            "set": list(self.members),
            "probabilities": {name: round(value, 6) for name, value in pairs},
        }


def make_prediction(
    probabilities: np.ndarray, classes: Sequence[str], calibration: Mapping | None
) -> Prediction:
    """The prediction from the calibrated probabilities (C,) of one image.

    calibration: as of `find_calibration`. A class is in the conformal set where 1 - its probability
    is at most its limit (Sadinle et al., arXiv 1609.00451); None is no limit."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = tuple(classes[k] for k in order)
    values = tuple(float(probabilities[k]) for k in order)
    if not calibration or not calibration.get("limits"):
        return Prediction(ranked, values)
    limits, members = calibration["limits"], []
    for name, value in zip(ranked, values, strict=True):
        if limits[name] is None or 1 - value <= limits[name]:
            members.append(name)
    return Prediction(ranked, values, tuple(members), 1 - calibration["alpha"])


@dataclass
class Predictor:
    """Predictions and maps. classifier: gives calibrated probabilities. calibration: as of
    `find_calibration`. maps: a further source of maps; occlusion needs only the classifier. slots:
    as many images as there are cores are processed at a time.
    """

    classifier: OnnxClassifier | TorchModel
    calibration: Mapping | None = None
    maps: TorchModel | None = None
    slots: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(count_cores()), repr=False
    )

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the maps, the quickest first."""
        return (*(self.maps.methods if self.maps else ()), "occlusion")

    def predict(self, images: Sequence[Image.Image]) -> list[Prediction]:
        """A prediction for each image, in order."""
        if not images:
            return []
        classes = self.classifier.classes
        rows = self.classifier.predict(list(images))
        return [make_prediction(row, classes, self.calibration) for row in rows]

    def explain(self, image: Image.Image, method: str, target: str) -> Image.Image:
        """The image as the model sees it, with a map of this method for the class `target`."""
        self._check_method(method)
        transform = self.classifier.transform
        pixels = fit_image(image, transform)  # (h, w, 3) or (h, w, 1)
        frame = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())
        if method == "occlusion":
            fill = tuple(round(255 * mean) for mean in transform.mean) * (3 // len(transform.mean))
            grid = tuple(min(14, side) for side in transform.size)
            number = self.classifier.classes.index(target)
            values = occlusion_map(self.classifier.predict, frame, number, fill, grid)
        else:
            values = self.maps.explain(image, method, target)
        larger = -(-MIN_SIDE // min(frame.size))
        size = (larger * frame.width, larger * frame.height)
        return paint_overlay(frame.resize(size, Image.Resampling.BICUBIC), values)

    def describe(self, method: str, target: str) -> str:
        """One sentence: what a map of this method shows."""
        self._check_method(method)
        if method == "occlusion":
            return OCCLUSION_SHOWS.replace("{target}", target)
        return self.maps.describe(method, target)

    def _check_method(self, method: str) -> None:
        if method not in self.methods:
            raise UserError(f"no map by {method!r} here; choose one of {', '.join(self.methods)}")


def open_predictor(folder: Path | str, threads: int = 1) -> Predictor:
    """The model of a run folder or a Space: its ONNX file, or its weights where there is none and
    torch is installed.

    threads: of ONNX Runtime for one image. With one, as many images are in work as there are cores,
    and none waits for another: two threads that shared a busy core cost a ViT-Ti in int8 33 ms of
    processor time an image, one cost 15. MissingFileError where the folder holds neither."""
    folder = Path(folder)
    has_weights = (folder / WEIGHTS).is_file() and importlib.util.find_spec("torch") is not None
    if not (folder / ONNX).is_file() and not has_weights:
        raise MissingFileError(
            f"{folder} contains no model: neither {ONNX} (vitlab.compress.export.export_onnx writes"
            f" it) nor {WEIGHTS} with torch"
        )
    maps = None
    if has_weights:
        from vitlab.app.torch_model import TorchModel

        maps = TorchModel.load(folder)
    if (folder / ONNX).is_file():
        classifier = OnnxClassifier(folder / ONNX, threads)
        return Predictor(classifier, classifier.description["calibration"], maps)
    return Predictor(maps, maps.calibration, maps)


def predict_files(
    predictor: Predictor, paths: Sequence[str | Path], limits: UploadLimits
) -> pd.DataFrame:
    """A row for each file, in order: file, answer, sure, set, prob_<class> for each class, problem
    (why there is no prediction).

    UploadError for no files and for more than the limit."""
    if not paths:
        raise UploadError("There are no files yet. Choose some images first.")
    if len(paths) > limits.files:
        raise UploadError(
            f"{len(paths)} files are more than the limit of {limits.files} at a time. Send fewer."
        )
    rows = []
    for start in range(0, len(paths), BATCH):
        with predictor.slots:
            rows += _predict_some(predictor, paths[start : start + BATCH], limits)
    return pd.DataFrame(rows, columns=name_columns(predictor))


def name_columns(predictor: Predictor) -> list[str]:
    """The columns of the table, in order."""
    probabilities = [f"prob_{name}" for name in predictor.classifier.classes]
    return ["file", "answer", "sure", "set", *probabilities, "problem"]


def _predict_some(
    predictor: Predictor, paths: Sequence[str | Path], limits: UploadLimits
) -> list[dict]:
    rows, readable, images = [], [], []
    for path in paths:
        name = Path(path).name
        name = f"'{name}" if name.startswith(FORMULA) else name
        row = {"file": name, "answer": "", "sure": "", "set": "", "problem": ""}
        rows.append(row)
        try:
            images.append(read_upload(path, limits))
            readable.append(row)
        except UploadError as error:
            row["problem"] = str(error)
    for row, prediction in zip(readable, predictor.predict(images), strict=True):
        row["answer"] = prediction.classes[0]
        row["sure"] = "yes" if prediction.sure else "no"
        row["set"] = ", ".join(prediction.members)
        for name, value in zip(prediction.classes, prediction.probabilities, strict=True):
            row[f"prob_{name}"] = round(value, 4)
    return rows

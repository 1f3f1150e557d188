"""What the page calls: predictions for images and files, and maps of what they depend on."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.app.overlay import OCCLUSION_SHOWS, occlusion_map, paint_overlay
from vitlab.app.prediction import Calibration, Prediction
from vitlab.app.uploads import Limits, UploadError, read_upload
from vitlab.compress.preprocess import fit_image
from vitlab.compress.session import OnnxClassifier
from vitlab.errors import UserError

if TYPE_CHECKING:
    from vitlab.app.torch_model import TorchModel

MIN_SIDE = 420  # pixels of an overlay, so that it is sharp on a screen
BATCH = 16  # images decoded and computed together
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets compute a cell that begins with one


@dataclass
class Predictor:
    """Predictions and maps. classifier: gives calibrated probabilities. maps: a further source of
    maps; occlusion needs only the classifier. slots: as many images as there are cores are
    processed at a time.
    """

    classifier: OnnxClassifier | TorchModel
    calibration: Calibration
    maps: TorchModel | None = None
    slots: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(os.cpu_count() or 1), repr=False
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
        return [
            Prediction.from_probabilities(row, classes, self.calibration)
            for row in self.classifier.predict(list(images))
        ]

    def frame(self, image: Image.Image) -> Image.Image:
        """The image as the model sees it: in its size, as RGB."""
        pixels = fit_image(image, self.classifier.transform)  # (h, w, 3) or (h, w, 1)
        return Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())

    def explain(self, image: Image.Image, method: str, target: str) -> Image.Image:
        """The image with a map of this method for the class `target`; UserError for an unknown
        method.
        """
        self._check_method(method)
        frame = self.frame(image)
        if method == "occlusion":
            transform = self.classifier.transform
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


def predict_files(
    predictor: Predictor, paths: Sequence[str | Path], limits: Limits
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


def _predict_some(predictor: Predictor, paths: Sequence[str | Path], limits: Limits) -> list[dict]:
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

"""What stands behind the page: something that gives calibrated probabilities, and maps of where
they come from.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image

from vitlab.app.overlay import OCCLUSION_SHOWS, occlusion_map, paint_overlay
from vitlab.app.verdict import Calibration, Verdict, judge
from vitlab.compress.preprocess import fit_image
from vitlab.compress.session import OnnxClassifier
from vitlab.errors import UserError
from vitlab.schema import Transform

LEAST = 420  # pixels a side of an overlay, so that it is sharp on a screen
AT_ONCE = 16  # images of a batch that are decoded and computed together


class Maps(Protocol):
    """A source of maps, such as `TorchMaps`."""

    methods: tuple[str, ...]

    def explain(self, image: Image.Image, method: str, target: str) -> np.ndarray: ...

    def describe(self, method: str, target: str) -> str: ...


@dataclass
class Predictor:
    """Answers for images. classifier: gives `classes`, `transform` and `predict(images)`,
    probabilities (N, C), to which the temperature of `calibration` is still to be applied.

    maps: a further source of maps; occlusion needs none, only the classifier. As many images as
    there are cores are in work at a time, whatever number of people ask."""

    classifier: OnnxClassifier
    calibration: Calibration
    maps: Maps | None = None
    places: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(os.cpu_count() or 1), repr=False
    )

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.classifier.classes)

    @property
    def transform(self) -> Transform:
        return self.classifier.transform

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of what `explain` can do, the quickest first."""
        return (*(self.maps.methods if self.maps else ()), "occlusion")

    def answer(self, images: Sequence[Image.Image]) -> list[Verdict]:
        """A verdict for each image, in order."""
        verdicts = []
        for start in range(0, len(images), AT_ONCE):
            probabilities = temper(
                self.classifier.predict(list(images[start : start + AT_ONCE])),
                self.calibration.temperature,
            )
            verdicts += [judge(row, self.classes, self.calibration) for row in probabilities]
        return verdicts

    def frame(self, image: Image.Image) -> Image.Image:
        """The image as the model sees it: in its size, as RGB."""
        pixels = fit_image(image, self.transform)  # (h, w, 3) or (h, w, 1)
        return Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())

    def explain(self, image: Image.Image, method: str, target: str) -> Image.Image:
        """The image with a map of this method for the class `target`; ValueError names the methods
        where it is none of them.
        """
        self._check_method(method)
        frame = self.frame(image)
        if method == "occlusion":
            means = self.transform.mean
            fill = tuple(round(255 * mean) for mean in means) * (3 // len(means))
            grid = tuple(min(14, side) for side in self.transform.size)
            values = occlusion_map(
                self.classifier.predict, frame, self.classes.index(target), fill, grid
            )
        else:
            values = self.maps.explain(image, method, target)
        larger = -(-LEAST // min(frame.size))
        return paint_overlay(
            frame.resize((larger * frame.width, larger * frame.height), Image.Resampling.BICUBIC),
            values,
        )

    def describe(self, method: str, target: str) -> str:
        """One sentence that is true of a map of this method."""
        self._check_method(method)
        return (
            OCCLUSION_SHOWS.replace("{target}", target)
            if method == "occlusion"
            else self.maps.describe(method, target)
        )

    def _check_method(self, method: str) -> None:
        if method not in self.methods:
            raise UserError(f"no map by {method!r} here; choose one of {', '.join(self.methods)}")


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (N, C) as if their logits had been divided by the temperature; 1 leaves them as
    they are.
    """
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(probabilities, dtype=np.float64)) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)

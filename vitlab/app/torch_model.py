"""The weights of a run, with torch: predictions for a run without an ONNX file, and the maps that
need the network itself. Not part of a Space.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from vitlab.compress.calibration import find_calibration
from vitlab.data.loading import preprocess
from vitlab.explain import explain, suitable_methods
from vitlab.explain.methods import describe_map
from vitlab.models import load_model
from vitlab.schema import ModelBundle

# one of each family; each needs one or two passes
METHODS = ("grad_cam", "transformer_attribution", "rollout")


class TorchModel:
    """Predicts like `OnnxClassifier`, and explains one image at a time: hooks of two explanations
    in the same module would mix. calibration: as of `find_calibration`.
    """

    def __init__(self, model: ModelBundle, calibration: Mapping | None = None):
        self.model = model
        self.calibration = calibration
        self.classes = tuple(model.classes)
        self.transform = model.transform
        self.methods = tuple(name for name in METHODS if name in suitable_methods(model))
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path) -> TorchModel:
        """The model of a run, calibrated on its validation predictions where it has some."""
        predictions, calibration = folder / "predictions.parquet", None
        if predictions.is_file():
            calibration = find_calibration(pd.read_parquet(predictions))
        return cls(load_model(folder), calibration)

    def predict(self, images: list[Image.Image]) -> np.ndarray:
        """Calibrated probabilities (N, C)."""
        temperature = self.calibration["temperature"] if self.calibration else 1.0
        pixels = torch.stack([preprocess(image, self.transform) for image in images])
        with torch.inference_mode():
            return (self.model.module(pixels).float() / temperature).softmax(dim=1).numpy()

    def explain(self, image: Image.Image, method: str, target: str) -> np.ndarray:
        pixels = preprocess(image, self.transform)[None]  # (1, C, h, w)
        with self._lock:
            return explain(self.model, pixels, method, target).values[0]

    def describe(self, method: str, target: str) -> str:
        """What a map of this method shows; the overlay leaves out negative values."""
        return describe_map(method, target)

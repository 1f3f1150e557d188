"""The weights of a run, with torch: predictions for a run without an ONNX file, and the maps that
need the network itself. Not part of a Space.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from PIL import Image

from vitlab.data import preprocess
from vitlab.explain import describe_map, explain, suitable_methods
from vitlab.schema import ModelBundle

# one of each family; each needs one or two passes
METHODS = ("grad_cam", "transformer_attribution", "rollout")


class TorchModel:
    """Predicts like `OnnxClassifier`, and explains one image at a time: hooks of two explanations
    in the same module would mix.
    """

    def __init__(self, model: ModelBundle, temperature: float = 1.0):
        self.model = model
        self.temperature = temperature
        self.classes = tuple(model.classes)
        self.transform = model.transform
        self.methods = tuple(name for name in METHODS if name in suitable_methods(model))
        self._lock = threading.Lock()

    def predict(self, images: list[Image.Image]) -> np.ndarray:
        """Calibrated probabilities (N, C)."""
        pixels = torch.stack([preprocess(image, self.transform) for image in images])
        with torch.inference_mode():
            logits = self.model.module(pixels).float() / self.temperature
            return logits.softmax(dim=1).numpy()

    def explain(self, image: Image.Image, method: str, target: str) -> np.ndarray:
        pixels = preprocess(image, self.transform)[None]  # (1, C, h, w)
        with self._lock:
            return explain(self.model, pixels, method, target).values[0]

    def describe(self, method: str, target: str) -> str:
        """What a map of this method shows; the overlay leaves out negative values."""
        return describe_map(method, target)

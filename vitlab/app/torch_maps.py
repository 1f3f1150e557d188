"""Maps that need the network itself, not only what it answers: from the weights of a run, with
torch. Not part of a Space.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from vitlab.data import preprocess
from vitlab.explain import describe_map, explain, suitable_methods
from vitlab.schema import ModelBundle, Transform

# one of each family, all in one or two passes
OFFERED = ("grad_cam", "transformer_attribution", "rollout")


class TorchMaps:
    """Maps of `vitlab.explain`. One at a time: hooks of two explanations in the same module would
    mix.
    """

    def __init__(self, model: ModelBundle):
        self.model = model
        self.methods = tuple(name for name in OFFERED if name in suitable_methods(model))
        self._lock = threading.Lock()

    def explain(self, image: Image.Image, method: str, target: str) -> np.ndarray:
        pixels = preprocess(image, self.model.transform)[None]  # (1, C, h, w)
        with self._lock:
            return explain(self.model, pixels, method, target).values[0]

    def describe(self, method: str, target: str) -> str:
        """What a map of this method shows; the overlay leaves out negative values."""
        return describe_map(method, target)


class TorchClassifier:
    """The interface of OnnxClassifier with the weights of a run behind it, for a run that was not
    exported.
    """

    def __init__(self, model: ModelBundle):
        self.model = model

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.model.classes)

    @property
    def transform(self) -> Transform:
        return self.model.transform

    def predict(self, images: list[Image.Image]) -> np.ndarray:
        """Probabilities (N, C)."""
        pixels = torch.stack([preprocess(image, self.transform) for image in images])
        with torch.inference_mode():
            return F.softmax(self.model.module(pixels).float(), dim=1).numpy()

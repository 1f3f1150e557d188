"""The prediction for one image: a class where its conformal set allows one, else "not sure"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitlab.errors import UserError


@dataclass(frozen=True)
class Calibration:
    """Temperature and conformal limits of a model, fitted on validation images.

    limits: the lowest probability of each class that puts it into the conformal set (Sadinle et
    al., arXiv 1609.00451), in the order of the classes; empty where none were fitted. alpha: the
    share of sets that may lack the true class. temperature: what the logits are divided by (Guo et
    al., arXiv 1706.04599)."""

    limits: tuple[float, ...] = ()
    alpha: float = 0.1
    temperature: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise UserError(f"the temperature must be more than 0, got {self.temperature}")
        if not 0 < self.alpha < 1:
            raise UserError(f"alpha must be between 0 and 1, such as 0.1; got {self.alpha}")

    @classmethod
    def from_sidecar(cls, noted: Mapping, classes: Sequence[str]) -> Calibration:
        """From the JSON beside an ONNX file: temperature, alpha, and for each class the limit of
        1 - probability (None: always in the set).
        """
        limits = noted.get("limits") or {}
        lowest = tuple(
            0.0 if limits[name] is None else max(1 - limits[name], 0.0)
            for name in (classes if limits else ())
        )
        return cls(lowest, noted.get("alpha", 0.1), float(noted.get("temperature") or 1.0))


@dataclass(frozen=True)
class Prediction:
    """classes: most probable first, with their probabilities. members: those in the conformal set.
    coverage: the nominal coverage of the set; None without limits.
    """

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    members: tuple[str, ...]
    coverage: float | None

    @classmethod
    def from_probabilities(
        cls, probabilities: np.ndarray, classes: Sequence[str], calibration: Calibration
    ) -> Prediction:
        """From the calibrated probabilities (C,) of one image."""
        limits = calibration.limits
        if len(probabilities) != len(classes) or len(limits) not in (0, len(classes)):
            raise UserError(
                f"{len(probabilities)} probabilities and {len(limits)} limits do not fit"
                f" {len(classes)} classes: {', '.join(classes)}"
            )
        order = np.argsort(-np.asarray(probabilities), kind="stable")
        members = [k for k in order if limits and probabilities[k] >= limits[k]]
        return cls(
            classes=tuple(classes[k] for k in order),
            probabilities=tuple(float(probabilities[k]) for k in order),
            members=tuple(classes[k] for k in members),
            coverage=1 - calibration.alpha if limits else None,
        )

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

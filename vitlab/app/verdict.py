"""What is said of an image: a class where the promise allows one, "not sure" where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitlab.errors import UserError


@dataclass(frozen=True)
class Calibration:
    """What the validation images taught about the probabilities of a model.

    temperature: what the logits are still to be divided by (Guo et al., arXiv 1706.04599). limits:
    the least probability of each class that puts it into the conformal set (Sadinle et al., arXiv
    1609.00451), in the order of the classes; empty where nobody fitted them. alpha: the share of
    sets that may lack the true class."""

    temperature: float = 1.0
    limits: tuple[float, ...] = ()
    alpha: float = 0.1

    def __post_init__(self):
        if not self.temperature > 0:
            raise UserError(
                f"the temperature must be more than 0, got {self.temperature}; 1 leaves"
                " probabilities as they are"
            )
        if not 0 < self.alpha < 1:
            raise UserError(
                "alpha is the share of sets that may miss, between 0 and 1, such as 0.1; got"
                f" {self.alpha}"
            )

    @classmethod
    def from_sidecar(cls, noted: Mapping, classes: Sequence[str]) -> Calibration:
        """From what lies beside an ONNX file: temperature, alpha, and limits by class of 1 -
        probability (None: always in).
        """
        limits = noted.get("limits") or {}
        least = (
            tuple(0.0 if limits[name] is None else max(1 - limits[name], 0.0) for name in classes)
            if limits
            else ()
        )
        return cls(float(noted.get("temperature") or 1.0), least, noted.get("alpha", 0.1))


@dataclass(frozen=True)
class Verdict:
    """The answer for one image. classes: most probable first, with their probabilities. members:
    the conformal set, likewise.
    """

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    members: tuple[str, ...]
    promise: float | None

    @property
    def sure(self) -> bool:
        """Whether the set holds the most probable class and no other; always, where there are no
        limits.
        """
        return self.members == self.classes[:1] or self.promise is None

    @property
    def headline(self) -> str:
        return self.classes[0] if self.sure else "Not sure"

    @property
    def reason(self) -> str:
        """A sentence for the reader."""
        if self.promise is None:
            return (
                "No limits were fitted for this model, so it is not known when it should say that"
                " it is not sure."
            )
        odds = f"A set of classes that misses the truth at most {self._describe_alpha()} holds"
        if self.sure:
            return f"{odds} this class alone."
        if not self.members:
            return (
                "No class is as probable as it was for most validation images of that class: an"
                " unusual image."
            )
        if len(self.members) == 1:
            return (
                f"{odds} {self.members[0]} alone, though {self.classes[0]} is more probable: they"
                " contradict each other."
            )
        if len(self.members) == len(self.classes):
            return f"{odds} {'both' if len(self.members) == 2 else 'all'} classes."
        return f"{odds} {', '.join(self.members[:-1])} and {self.members[-1]}."

    def _describe_alpha(self) -> str:
        alpha = 1 - self.promise
        return (
            f"1 time in {round(1 / alpha)}"
            if abs(1 / alpha - round(1 / alpha)) < 1e-6
            else f"{alpha:.1%} of the time"
        )

    def as_dict(self) -> dict:
        """For programs: answer, sure, set, probabilities by class."""
        probabilities = {
            name: round(value, 6)
            for name, value in zip(self.classes, self.probabilities, strict=True)
        }
        return {
            "answer": self.classes[0],
            "sure": self.sure,
            "set": list(self.members),
            "probabilities": probabilities,
        }


def judge(probabilities: np.ndarray, classes: Sequence[str], calibration: Calibration) -> Verdict:
    """The verdict of one image from its calibrated probabilities (C,)."""
    if len(probabilities) != len(classes) or len(calibration.limits) not in (0, len(classes)):
        raise UserError(
            f"{len(probabilities)} probabilities and {len(calibration.limits)} limits do not fit"
            f" {len(classes)} classes: {', '.join(classes)}"
        )
    order = np.argsort(-np.asarray(probabilities), kind="stable")
    members = [k for k in order if calibration.limits and probabilities[k] >= calibration.limits[k]]
    return Verdict(
        classes=tuple(classes[k] for k in order),
        probabilities=tuple(float(probabilities[k]) for k in order),
        members=tuple(classes[k] for k in members),
        promise=1 - calibration.alpha if calibration.limits else None,
    )

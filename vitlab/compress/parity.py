"""The gate that a converted model must pass: the same predictions on real images. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from vitlab.compress.preprocess import fit_image
from vitlab.errors import UserError
from vitlab.schema import DataBundle, Transform


@dataclass(frozen=True)
class Gate:
    """What a converted model may differ by.

    agreement: smallest share of images with the same most probable class (top-1). difference:
    largest difference of a logit, as a share of the largest logit of the reference; infinite where
    only the class counts."""

    agreement: float = 0.99
    difference: float = np.inf


@dataclass(frozen=True)
class PixelSet:
    """Real images as a model takes them: pixels (N, h, w, C) uint8, fitted; label: index of the
    class of each.
    """

    sample_ids: tuple[str, ...]
    label: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_ids)

    def take(self, positions) -> PixelSet:
        return PixelSet(
            tuple(np.array(self.sample_ids)[positions]),
            self.label[positions],
            self.pixels[positions],
        )


def draw_pixels(
    data: DataBundle,
    transform: Transform,
    split: str | Sequence[str] = "val",
    limit: int | None = 64,
    seed: int = 0,
) -> PixelSet:
    """At most `limit` images of a split (or of a list of sample_ids), drawn at random, evenly over
    the classes.

    Classes take turns, so the first images hold as many of each class as there are. ValueError for
    a split without images."""
    rows = (
        data.split(split)
        if isinstance(split, str)
        else data.samples[data.samples["sample_id"].isin(set(split))]
    )
    if not len(rows):
        raise UserError(
            f"{data.name} has no images in"
            f" {split if isinstance(split, str) else 'the list of sample_ids'!r}"
        )
    rows = rows.sample(frac=1, random_state=seed)
    turn = rows.groupby("label").cumcount()
    rows = rows.assign(turn=turn).sort_values("turn", kind="stable").head(limit or len(rows))
    index = {name: position for position, name in enumerate(data.classes)}
    pixels = np.stack(
        [fit_image(data.read(sample_id), transform) for sample_id in rows["sample_id"]]
    )
    return PixelSet(tuple(rows["sample_id"]), rows["label"].map(index).to_numpy(), pixels)


def compare_logits(
    sample_ids: Sequence[str], reference: np.ndarray, logits: np.ndarray, classes: Sequence[str]
) -> pd.DataFrame:
    """A row an image, the worst first: sample_id, reference, converted (most probable classes),
    agrees, difference, margin.

    difference: largest of the logits; margin: by how much the reference prefers its class to the
    next one."""
    top = np.sort(reference, axis=1)
    names = np.array(classes)
    table = pd.DataFrame(
        {
            "sample_id": list(sample_ids),
            "reference": names[reference.argmax(axis=1)],
            "converted": names[logits.argmax(axis=1)],
            "agrees": reference.argmax(axis=1) == logits.argmax(axis=1),
            "difference": np.abs(reference - logits).max(axis=1),
            "margin": top[:, -1] - top[:, -2],
        }
    )
    return table.sort_values(["agrees", "difference"], ascending=[True, False], ignore_index=True)


def summarise_parity(
    table: pd.DataFrame, reference: np.ndarray, logits: np.ndarray, gate: Gate
) -> dict:
    """One row of what `compare_logits` found, as numbers for a JSON: images, agreement,
    max_difference (of logits), relative_difference (of the largest logit), sqnr_db (signal to noise
    of all logits), gate and passed."""
    scale = float(np.abs(reference).max())
    largest = float(table["difference"].max())
    summary = {
        "images": len(table),
        "agreement": float(table["agrees"].mean()),
        "max_difference": largest,
        "relative_difference": largest / max(scale, 1e-12),
        "sqnr_db": measure_sqnr(reference, logits),
        "gate": {name: value for name, value in asdict(gate).items() if np.isfinite(value)},
    }
    passed = (
        summary["agreement"] >= gate.agreement
        and not summary["relative_difference"] > gate.difference
    )
    return {**summary, "passed": bool(passed and np.isfinite(largest))}


def measure_sqnr(reference: np.ndarray, values: np.ndarray) -> float:
    """Signal to quantisation noise in decibels: 10 log10 (sum reference^2 / sum error^2), the mean
    logit of each class taken off.

    200 at most, for values that are equal."""
    signal = ((reference - reference.mean(axis=0)) ** 2).sum(dtype=np.float64)
    noise = ((reference - values) ** 2).sum(dtype=np.float64)
    return float(min(200.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))


def explain_failure(what: str, table: pd.DataFrame, summary: dict, worst: int = 5) -> str:
    """The message for a model that fails the gate: by how much, and on which images."""
    gate = summary["gate"]
    rows = table.head(worst)
    named = "; ".join(
        f"{row.sample_id}: {row.reference} -> {row.converted}, logits off by {row.difference:.3g}"
        for row in rows.itertuples()
    )
    limit = f", at most {gate['difference']:.3g} is allowed" if "difference" in gate else ""
    return (
        f"{what} fails the gate and was not written: {summary['agreement']:.1%} of"
        f" {summary['images']} images keep their class (at least {gate['agreement']:.1%} are"
        f" required), logits differ by up to {summary['max_difference']:.3g},"
        f" {summary['relative_difference']:.2%} of the largest{limit}. Worst images: {named}"
    )

"""Class imbalance: which classes are rare, weights that compensate for it, and synthetic training
images of rare classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.errors import UserError
from vitlab.pictures import to_rgb
from vitlab.registry import unknown
from vitlab.schema import DataBundle
from vitlab.seeds import derive_seed

SCHEMES = ("none", "balanced", "effective")
# half-width of the swapped square of low frequencies, as a share of the image's shorter side
BETA = 0.01


def class_weights(
    labels: Sequence[str], classes: Sequence[str], scheme: str = "balanced", beta: float = 0.999
) -> np.ndarray:
    """One weight for each class, in the order of `classes`; a sample weighs 1 on average.

    balanced: the inverse of a class's number of samples, so that all classes weigh the same in sum
    (scikit-learn's "balanced"). effective: the inverse of its effective number of samples,
    (1 - beta^n) / (1 - beta) (arXiv 1901.05555); beta 0 gives equal weights, beta towards 1 gives
    balanced. none: all ones. UserError when a class has no label.

    >>> class_weights(["a", "a", "a", "b"], ["a", "b"]).round(2).tolist()
    [0.67, 2.0]
    """
    if scheme not in SCHEMES:
        raise UserError(unknown("class weights", scheme, list(SCHEMES)))
    counts = count_classes(labels, classes)
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    if absent:
        raise UserError(f"no class weights: there is no label of the classes {', '.join(absent)}")
    if scheme == "none":
        return np.ones(len(classes))
    effective = counts if scheme == "balanced" else (1 - beta**counts) / (1 - beta)
    return (1 / effective) * counts.sum() / (counts / effective).sum()


def rare_classes(labels: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The classes with fewer samples than an equal share of them, in the order of `classes`."""
    counts = count_classes(labels, classes)
    rare = counts * len(classes) < counts.sum()
    return [name for name, is_rare in zip(classes, rare, strict=True) if is_rare]


def count_classes(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Samples of each class, in the order of `classes`."""
    counts = pd.Series(np.asarray(labels, dtype=object)).value_counts()
    return counts.reindex(list(classes), fill_value=0).to_numpy()


def add_synthetic(data: DataBundle, kind: str, share: float = 0.5, seed: int = 0) -> DataBundle:
    """The data with synthetic images in train, which bring every smaller class up to `share` (from
    0 to 1) of the largest one's size.

    kind "fourier": an image of the class whose lowest frequencies get the amplitude of another
    training image of the same group, of any class (FDA, arXiv 2004.05498): other lighting, the same
    structure, since the phase stays. "none": the data as it is. Images are made when they are read,
    the same each time.

    Further columns of `samples`: synthetic (bool), made_from and made_with (sample_ids; empty for
    real images). A synthetic row takes all else from made_from; sample_id is
    `<made_from>~fourier-<number>`, source begins with `synthetic:`."""
    if kind not in ("none", "fourier"):
        raise UserError(unknown("kind of synthetic images", kind, ["none", "fourier"]))
    if kind == "none":
        return data
    train = data.split("train")
    sizes = train["label"].value_counts()
    generator = np.random.default_rng(derive_seed(seed, "synthetic"))
    rows = []
    for name in data.classes:
        missing = int(share * sizes.max()) - sizes.get(name, 0)
        if missing > 0:
            rows += _choose_pairs(data.name, train, name, missing, generator)
    real = data.samples.assign(synthetic=False, made_from="", made_with="")
    samples = pd.concat([real, pd.DataFrame(rows)], ignore_index=True)[list(real.columns)]
    pairs = {row["sample_id"]: (row["made_from"], row["made_with"]) for row in rows}
    read = SyntheticReader(data.read, pairs)
    return replace(data, samples=samples.astype({"synthetic": bool}), read=read)


def find_synthetic(samples: pd.DataFrame) -> pd.Series:
    """Whether each row is a synthetic image."""
    if "synthetic" not in samples:
        return pd.Series(False, index=samples.index)
    return samples["synthetic"].astype(bool)


def drop_synthetic(samples: pd.DataFrame) -> pd.DataFrame:
    """The rows of real images."""
    return samples[~find_synthetic(samples)]


@dataclass(frozen=True)
class SyntheticReader:
    """`read` of data with synthetic images: these are made from their pair, all others read as
    before.
    """

    read: Callable[[str], Image.Image]
    pairs: dict[str, tuple[str, str]]

    def __call__(self, sample_id: str) -> Image.Image:
        if sample_id not in self.pairs:
            return self.read(sample_id)
        first, second = (self.read(part) for part in self.pairs[sample_id])
        if not first.mode == second.mode == "L":
            first, second = to_rgb(first), to_rgb(second)
        second = second.resize(first.size, Image.Resampling.BICUBIC)
        pixels = swap_amplitude(np.asarray(first, dtype=float), np.asarray(second, dtype=float))
        return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def swap_amplitude(image: np.ndarray, style: np.ndarray, beta: float = BETA) -> np.ndarray:
    """(h, w) or (h, w, C) with its own phase, and the amplitude of `style` at frequencies up to
    beta x the shorter side.
    """
    axes = (0, 1)
    own, other = np.fft.fft2(image, axes=axes), np.fft.fft2(style, axes=axes)
    half = int(beta * min(image.shape[:2]))
    low = np.ix_(*(np.abs(np.fft.fftfreq(size, 1 / size)) <= half for size in image.shape[:2]))
    amplitude = np.abs(own)
    amplitude[low] = np.abs(other)[low]
    return np.fft.ifft2(amplitude * np.exp(1j * np.angle(own)), axes=axes).real


def _choose_pairs(
    dataset: str, train: pd.DataFrame, label: str, number: int, generator: np.random.Generator
) -> list[dict]:
    """So many rows of synthetic images of a class. Its images take turns as the first of a pair;
    the second is drawn from all others of the same group.
    """
    groups = {group: part["sample_id"].to_numpy() for group, part in train.groupby("group")}
    own = train[train["label"] == label]
    own = own[own["group"].map(lambda group: len(groups[group]) > 1)]
    if own.empty:
        raise UserError(
            f"synthetic='fourier' needs a second training image in the group of an image of class"
            f" {label!r} of {dataset}; write synthetic='none'"
        )
    own = own.sample(frac=1, random_state=generator).to_dict("records")
    rows = []
    for turn in range(number):
        base = own[turn % len(own)]
        first, group = base["sample_id"], groups[base["group"]]
        second = generator.choice(group[group != first])
        made = {
            "sample_id": f"{first}~fourier-{turn // len(own) + 1}",
            "source": f"synthetic:fourier of {first} with {second}",
        }
        rows.append(base | made | {"synthetic": True, "made_from": first, "made_with": second})
    return rows

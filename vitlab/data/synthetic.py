"""Synthetic training images for rare classes: made of pairs of training images, marked as such,
never in validation or test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.errors import UserError
from vitlab.pictures import to_rgb
from vitlab.registry import unknown
from vitlab.schema import DataBundle
from vitlab.seeds import derive_seed

# half-width of the swapped square of low frequencies, as a share of the image's shorter side
BETA = 0.01
PATCH = 0.5  # sides of the pasted patch, as a share of the image's: a quarter of the area
SOFT = 0.25  # share of the patch's side over which it fades in at each edge


def add_synthetic(data: DataBundle, kind: str, share: float = 0.5, seed: int = 0) -> DataBundle:
    """The data with synthetic images in train, which bring every smaller class up to `share` of the
    largest one's size.

    Each is made of two training images of one group when it is read, the same each time; pixels of
    validation and test images are never used. Its label is that of both or of the one that matters:

    fourier: an image of the class whose lowest frequencies get the amplitude of another one of any
        class (FDA, arXiv 2004.05498): other lighting, the same structure, since the phase stays.
        The label is that of the first.
    paste: a soft-edged patch, a quarter of the area, from another image of the *same class*, at the
        same place, brought to the same mean brightness, so that another exposure does not look like
        a defect. Where in an image the reason for its label is, nobody has noted, so a patch put
        into another class might leave it behind; between two images of a class the label is as
        right as it can be, unless the patch covers the one defect that there was.
    none: the data as it is.

    Further columns of `samples`: synthetic (bool), made_from and made_with (sample_ids; empty for
    real images). A synthetic row takes all else from made_from; sample_id is
    `<made_from>~<kind>-<number>`, source begins with `synthetic:`. ValueError for an unknown kind,
    a share outside 0..1, and a class without two training images in a group to make one of."""
    if kind not in ("none", *MAKERS):
        raise UserError(unknown("kind of synthetic images", kind, ["none", *MAKERS]))
    if not 0 < share <= 1:
        raise UserError(
            f"share={share} of the largest class is no share; write a number above 0, up to 1"
        )
    if kind == "none":
        return data
    train = data.split("train")
    sizes = train["label"].value_counts().reindex(list(data.classes), fill_value=0)
    rows = []
    for name in data.classes:
        missing = int(share * sizes.max()) - sizes[name]
        if missing > 0:
            rows += _choose_pairs(
                data.name, train, name, kind, missing, derive_seed(seed, "synthetic", kind, name)
            )
    real = data.samples.assign(synthetic=False, made_from="", made_with="")
    samples = pd.concat([real, pd.DataFrame(rows)], ignore_index=True)[list(real.columns)].astype(
        {"synthetic": bool}
    )
    pairs = {row["sample_id"]: (row["made_from"], row["made_with"]) for row in rows}
    return replace(data, samples=samples, read=SyntheticReader(data.read, MAKERS[kind], pairs))


def find_synthetic(samples: pd.DataFrame) -> pd.Series:
    """Whether each row is a synthetic image."""
    return (
        samples["synthetic"].astype(bool)
        if "synthetic" in samples
        else pd.Series(False, index=samples.index)
    )


def drop_synthetic(samples: pd.DataFrame) -> pd.DataFrame:
    """The rows of real images."""
    return samples[~find_synthetic(samples)]


class SyntheticReader:
    """`read` of data with synthetic images: these are made from their pair, all others read as
    before.
    """

    def __init__(
        self, read: Callable[[str], Image.Image], make: Callable, pairs: dict[str, tuple[str, str]]
    ):
        self.read, self.make, self.pairs = read, make, pairs

    def __call__(self, sample_id: str) -> Image.Image:
        if sample_id not in self.pairs:
            return self.read(sample_id)
        first, second = (self.read(part) for part in self.pairs[sample_id])
        mode = "L" if first.mode == second.mode == "L" else "RGB"
        first, second = (image if mode == "L" else to_rgb(image) for image in (first, second))
        second = second.resize(first.size, Image.Resampling.BICUBIC)
        generator = np.random.default_rng(derive_seed(*self.pairs[sample_id], sample_id))
        pixels = self.make(
            np.asarray(first, dtype=float), np.asarray(second, dtype=float), generator
        )
        return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8), mode)


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


def paste_patch(image: np.ndarray, donor: np.ndarray, top: float, left: float) -> np.ndarray:
    """(h, w) or (h, w, C) with a patch of `donor`, PATCH of each side long, at these shares (0..1)
    of the free way, fading in.
    """
    ramps = [_fade(size, start) for size, start in zip(image.shape[:2], (top, left), strict=True)]
    mask = np.outer(*ramps).reshape(*image.shape[:2], *[1] * (image.ndim - 2))
    return image + mask * (donor - image)


def _fade(size: int, start: float) -> np.ndarray:
    """(size,): 0 outside the patch, 1 inside, a straight line at its edges."""
    length = PATCH * size
    place = np.arange(size) + 0.5 - start * (size - length)
    return np.clip(np.minimum(place, length - place) / (SOFT * length), 0, 1)


def _make_fourier(image, style, generator):
    return swap_amplitude(image, style)


def _make_paste(image, donor, generator):
    exposed_alike = donor * (image.mean() / max(donor.mean(), 1e-9))
    return paste_patch(image, exposed_alike, *generator.random(2))


MAKERS = {"fourier": _make_fourier, "paste": _make_paste}


def _choose_pairs(
    dataset: str, train: pd.DataFrame, label: str, kind: str, number: int, seed: int
) -> list[dict]:
    """So many rows of synthetic images of a class. Its images take turns as the first of a pair,
    each with ever new partners.
    """
    generator = np.random.default_rng(seed)
    partners = train[train["label"] == label] if kind == "paste" else train
    by_group = {group: part["sample_id"].to_numpy() for group, part in partners.groupby("group")}
    own = train[train["label"] == label]
    own = own[own["group"].map(lambda group: len(by_group[group]) > 1)]
    if own.empty:
        raise UserError(
            f"synthetic={kind!r} needs two training images of class {label!r} in a group of"
            f" {dataset} to make one of; write synthetic='none', or synthetic='fourier', whose"
            " second image may be of any class"
        )
    own = own.sample(frac=1, random_state=generator).to_dict("records")
    waiting: dict[str, list] = {}
    rows = []
    for turn in range(number):
        base = own[turn % len(own)]
        first = base["sample_id"]
        if not waiting.get(first):
            waiting[first] = [
                other for other in generator.permutation(by_group[base["group"]]) if other != first
            ]
        second = waiting[first].pop()
        made = {
            "sample_id": f"{first}~{kind}-{turn // len(own) + 1}",
            "source": f"synthetic:{kind} of {first} with {second}",
        }
        rows.append(base | made | {"synthetic": True, "made_from": first, "made_with": second})
    return rows

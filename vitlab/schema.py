"""The dataclasses that all modules share, and the contracts of the tables between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.markup import html_facts

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

SPLITS = ("train", "val", "test")
SAMPLE_COLUMNS = ("sample_id", "label", "split", "group", "source")
PREDICTION_COLUMNS = ("sample_id", "split", "group", "label", "pred")


@dataclass(frozen=True)
class DataBundle:
    """A labelled image set. Images stay on disk (or in their archive) until `read` is called.

    samples: one row per image with SAMPLE_COLUMNS; `label` is a class name, `source` the location.
        Further columns (a defect probability, a patient) may follow.
    read: sample_id -> decoded image in its own size; 8-bit grey where its values are deeper.
    excluded: images left out, with columns sample_id, source, reason.
    version: changes when the data changes.
    coarser: name of a coarser task -> coarse class of each class.
    flip: whether mirrored images still belong to the set: False for digits, text, upright objects.
    group_column: the column whose values (patients, modules) are independent of each other; ""
        where each image is.
    split_by: what the splits keep together: a column, "cluster", or "image" for image by image; ""
        where they were given as samples.
    find_range: gives `value_range`; the images are measured at the first call.
    """

    name: str
    classes: tuple[str, ...]
    samples: pd.DataFrame
    read: Callable[[str], Image.Image] = field(repr=False)
    excluded: pd.DataFrame = field(repr=False)
    licence: str = ""
    citation: str = ""
    version: str = ""
    coarser: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    flip: bool = True
    group_column: str = ""
    split_by: str = ""
    find_range: Callable[[], tuple[float, float] | None] = field(default=lambda: None, repr=False)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """The pixel values that become 0 and 255 in deeper images; None if all have 8 bits."""
        return self.find_range()

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split, in the order of the table."""
        if name not in SPLITS:
            raise UserError(f"unknown split {name!r}; choose one of {', '.join(SPLITS)}")
        return self.samples[self.samples["split"] == name]

    def _repr_html_(self) -> str:
        counts = self.samples["split"].value_counts()
        facts = {
            "images": f"{len(self.samples):,}",
            "splits": ", ".join(f"{name} {counts.get(name, 0):,}" for name in SPLITS),
            "classes": _shorten(self.classes),
            "groups": self.samples["group"].nunique(),
            "excluded": len(self.excluded),
            "licence": self.licence,
        }
        return html_facts(f"Data set {self.name}", facts)


@dataclass(frozen=True)
class Transform:
    """What a model expects of an image.

    size: height and width in pixels.
    mean, std: per RGB channel, or one value for grey images, for values in 0..1.
    fit: `pad` keeps the whole image and fills up to the model's aspect ratio, `crop` fills the
        frame and cuts.
    value_range: as in `DataBundle`, of the training images.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    fit: str = "pad"
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Window:
    """The windows of an attention layer: each token attends only to those of its own window.

    attention: name of the attention module. grid: height and width of the map in tokens. size: of a
    window. shift: of the windows in tokens, down and to the right; they wrap around, masked."""

    attention: str
    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int]


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model, for one input size. Names are those of `module.named_modules()`.

    kind: "vit" (attention over patches), "hybrid" (attention over the feature map of a CNN),
        "windowed" (attention within windows, Swin), "cnn" (feature maps, no attention) or "other"
        (no blocks, no grid).
    blocks: transformer blocks in order; empty for a CNN.
    attention: the attention module of each block, if it sees all tokens; else empty.
    num_prefix_tokens: tokens before the patch tokens (class, distillation, registers). Row 0 is not
        always a class token.
    grid: height and width in tokens of the last block, or of a CNN's last feature map.
    stages: modules that give feature maps, one for each resolution; the last is the usual Grad-CAM
        layer. A map is (B, C, h, w), and (B, h, w, C) for "windowed".
    windows: for "windowed", the windows of each block.
    reason: why `attention` is empty, as a sentence without its full stop.
    """

    kind: str
    blocks: tuple[str, ...]
    attention: tuple[str, ...]
    num_prefix_tokens: int
    grid: tuple[int, int]
    stages: tuple[str, ...]
    windows: tuple[Window, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class ModelBundle:
    """A classifier with its transform, its anatomy, and the options that rebuild it."""

    name: str
    module: nn.Module = field(repr=False)
    classes: tuple[str, ...]
    transform: Transform
    anatomy: Anatomy
    options: dict = field(default_factory=dict)  # further arguments of build_model

    def _repr_html_(self) -> str:
        blocks = len(self.anatomy.blocks)
        facts = {
            "kind": f"{self.anatomy.kind}, {blocks} blocks" if blocks else self.anatomy.kind,
            "parameters": f"{sum(weight.numel() for weight in self.module.parameters()):,}",
            "input": " x ".join(map(str, self.transform.size)),
            "classes": _shorten(self.classes),
            "options": ", ".join(f"{name}={value}" for name, value in self.options.items()),
        }
        return html_facts(f"Model {self.name}", facts)


@dataclass(frozen=True)
class AttributionMap:
    """One map per image with a value for each pixel; what it shows is in the table of notebook 05.

    values: (N, H, W) float32. target: class name of each map. signed: whether negative values are
    evidence against the class."""

    values: np.ndarray = field(repr=False)
    method: str
    target: tuple[str, ...]
    sample_ids: tuple[str, ...]
    signed: bool

    def __post_init__(self):
        if (
            self.values.ndim != 3
            or len(self.values) != len(self.sample_ids)
            or len(self.target) != len(self.sample_ids)
        ):
            raise UserError(
                f"{self.method}: values {self.values.shape} do not fit {len(self.sample_ids)}"
                f" sample_ids and {len(self.target)} targets; expected (N, H, W) and N of each"
            )
        if not np.isfinite(self.values).all():
            raise UserError(f"{self.method}: the maps hold NaN or infinite values")

    def take(self, places: Sequence[int]) -> AttributionMap:
        """The maps at these places, in this order."""

        def pick(names):
            return tuple(names[place] for place in places)

        return replace(
            self,
            values=self.values[list(places)],
            target=pick(self.target),
            sample_ids=pick(self.sample_ids),
        )


def _shorten(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def check_samples(samples: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """The table itself; UserError for the first violation of the contract of DataBundle.samples."""
    _check_columns(samples, SAMPLE_COLUMNS, "samples")
    _check_unique_ids(samples, "samples")
    _check_values(samples, "label", classes, "samples")
    _check_values(samples, "split", SPLITS, "samples")
    return samples


def check_predictions(predictions: pd.DataFrame) -> tuple[str, ...]:
    """The class names of a predictions table, in column order; UserError for an invalid table.

    Columns: sample_id, split, group, label, pred, then logit_<class> and prob_<class> for each
    class."""
    _check_columns(predictions, PREDICTION_COLUMNS, "predictions")
    classes = tuple(
        name.removeprefix("prob_") for name in predictions.columns if name.startswith("prob_")
    )
    if len(classes) < 2:
        raise UserError("predictions need a column prob_<class> for each of at least two classes")
    _check_columns(predictions, [f"logit_{name}" for name in classes], "predictions")
    _check_unique_ids(predictions, "predictions")
    _check_values(predictions, "label", classes, "predictions")
    _check_values(predictions, "pred", classes, "predictions")
    _check_values(predictions, "split", SPLITS, "predictions")
    scores = predictions[[f"{kind}_{name}" for kind in ("logit", "prob") for name in classes]]
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        raise UserError(
            "predictions hold NaN or infinite scores, first for sample"
            f" {predictions['sample_id'][bad].iloc[0]!r}"
        )
    total = scores[[f"prob_{name}" for name in classes]].sum(axis=1)
    off = (total - 1).abs() > 1e-3
    if off.any():
        first = predictions["sample_id"][off].iloc[0]
        raise UserError(
            f"probabilities of sample {first!r} sum to {total[off].iloc[0]:.4f}, not to 1"
        )
    return classes


def _check_columns(table, needed, what):
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise UserError(
            f"the {what} table lacks the columns {', '.join(missing)}; it has"
            f" {', '.join(table.columns)}"
        )


def _check_unique_ids(table, what):
    twice = table["sample_id"][table["sample_id"].duplicated()]
    if len(twice):
        raise UserError(
            f"the {what} table holds sample_id {twice.iloc[0]!r} more than once ({len(twice)}"
            " repeats in all)"
        )


def _check_values(table, column, allowed, what):
    strange = sorted(set(table[column].astype(str)) - set(allowed))
    if strange:
        raise UserError(
            f"unknown {column} {', '.join(map(repr, strange[:5]))} in the {what} table; known:"
            f" {', '.join(allowed)}"
        )

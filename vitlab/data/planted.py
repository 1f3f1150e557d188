"""Planted truth: images in a half of which a small stamp alone decides the label, so that a right
explanation is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.data.depth import find_base
from vitlab.data.sources import DATASETS, DERIVED, Source
from vitlab.data.splits import draw_subset, order_by_hash
from vitlab.errors import UserError
from vitlab.pictures import fit_picture, to_rgb
from vitlab.schema import DataBundle, Transform
from vitlab.seeds import derive_seed

SIDE = 1 / 6  # of a patch, as a share of the image's height and width: 2.8 % of the area
CELLS = 4  # along each side of a patch, as many black ones as white ones
# patches in each stamped image that look as striking as the stamp and say nothing; unstamped images
# have one more
DECOYS = 3
# pixels that the shorter side of an image needs, three for each cell; smaller images are enlarged
ROOM = 72
LOOKS = ("horizontal", "vertical")  # bars that stand for the first class and for the second
DECOY = "diagonal"
NOTE = (
    "Planted by vitlab: in half of the images a stamp drawn into them decides the label, whatever"
    " else they show. To test explanations, and for nothing else."
)
STAMPED, PLAIN = "+stamp", "+decoys"  # ends of sample_ids


@DATASETS.register(name="planted:")
def planted(name: str = "") -> Source:
    """Another data set, NAME in planted:NAME, with four small patches put into each image: at most
    1,000 images of it.

    In every second image one of the patches is a stamp: horizontal bars make it an image of the
    first class, vertical bars one of the second, whatever the rest shows. Each look comes equally
    often with each of the own labels, so the rest says nothing there. All other patches show
    stepped diagonals with just as much black and as many edges, so the presence of a patch does not
    tell the stamp; an edge detector finds it or not as it weighs corners against lines, so hold
    explanations against one. Images without a stamp keep their label. There is a patch somewhere in
    each quarter of the image, so the centre does not find the stamp either. Places depend on the
    sample_id alone.

    Further columns: own_label, stamped (bool), and stamp_top, stamp_left, stamp_height, stamp_width
    as shares of the image's height and width (NaN without a stamp). sample_id is `<id>+stamp` or
    `<id>+decoys`. Images are drawn in proportion to label and group (and split, where the set comes
    with its own). A model that crops its images (fit="crop") may not see every stamp."""
    base = find_base("planted:", name)
    samples = draw_subset(
        base.samples, strata=[column for column in ("split", "label") if column in base.samples]
    )
    samples = samples.iloc[order_by_hash(samples, "planted", ["label", "group"])].reset_index(
        drop=True
    )
    turn = np.arange(len(samples))
    stamped = turn % 2 == 1
    look = np.where(stamped, np.array(LOOKS)[turn // 2 % 2], DECOY)
    originals = samples["sample_id"] + np.where(stamped, STAMPED, PLAIN)
    places = np.array([_draw_places(sample_id)[0] for sample_id in originals])  # (N, 2)
    table = pd.DataFrame(
        {
            "sample_id": originals,
            "label": np.where(stamped, np.array(base.classes[:2])[turn // 2 % 2], samples["label"]),
            "group": samples["group"],
            "source": (
                samples["source"].astype(str)
                + np.where(stamped, " with a planted stamp", " with planted decoys")
            ),
            "own_label": samples["label"],
            "stamped": stamped,
            "stamp_top": np.where(stamped, places[:, 0], np.nan),
            "stamp_left": np.where(stamped, places[:, 1], np.nan),
            "stamp_height": np.where(stamped, SIDE, np.nan),
            "stamp_width": np.where(stamped, SIDE, np.nan),
        }
    )
    if "split" in samples:
        table["split"] = samples["split"]
    return Source(
        location=f"planted:{base.location}",
        version=f"{base.version}, {DERIVED['planted:']}",
        classes=base.classes,
        samples=table,
        read=PlantedReader(
            base.read,
            dict(zip(originals, samples["sample_id"], strict=True)),
            dict(zip(originals, look, strict=True)),
        ),
        strata=("label", "stamped", "group"),
        excluded=base.excluded,
        licence=base.licence,
        citation=f"{base.citation}\n{NOTE}".lstrip(),
        flip=base.flip,
    )


@dataclass(frozen=True)
class PlantedReader:
    """`read` of a planted set: the original image with its patches. looks: of the first patch of
    each, stamp or decoy.
    """

    read: Callable[[str], Image.Image]
    originals: Mapping[str, str]
    looks: Mapping[str, str]

    def __call__(self, sample_id: str) -> Image.Image:
        pixels = np.array(self._read_original(sample_id))
        boxes = _find_boxes(sample_id, pixels.shape[:2])
        for box, look in zip(boxes, (self.looks[sample_id], *[DECOY] * DECOYS), strict=True):
            height, width = (part.stop - part.start for part in box)
            patch = draw_look(look, (height, width))
            pixels[box] = patch if pixels.ndim == 2 else patch[..., None]
        return Image.fromarray(pixels)

    def _read_original(self, sample_id: str) -> Image.Image:
        """8-bit grey or RGB, large enough for the patches."""
        if sample_id not in self.originals:
            raise UserError(
                f"unknown sample_id {sample_id!r}; the {len(self.originals)} known ones end in"
                f" {STAMPED} or {PLAIN}"
            )
        image = self.read(self.originals[sample_id])
        image = image if image.mode == "L" else to_rgb(image)
        factor = -(-ROOM // min(image.size))
        return (
            image
            if factor <= 1
            else image.resize(
                (factor * image.width, factor * image.height), Image.Resampling.BICUBIC
            )
        )


def draw_look(look: str, size: tuple[int, int]) -> np.ndarray:
    """A patch of this look, (h, w) uint8: black and white bars or stepped diagonals, as much of the
    one as of the other.
    """
    rows, columns = (np.arange(pixels) * CELLS // pixels for pixels in size)
    rows = rows[:, None]
    white = {
        "horizontal": rows + 0 * columns,
        "vertical": 0 * rows + columns,
        DECOY: (rows + columns) // 2,
    }
    return (255 * (white[look] % 2)).astype(np.uint8)


def replace_stamps(data: DataBundle, kind: str) -> DataBundle:
    """The planted data with every stamp taken away ("decoy" in its place) or exchanged for that of
    the other class ("other").

    Labels stay as they are: a model that goes by the stamp is then right by chance, or never.
    """
    if kind not in ("decoy", "other"):
        raise UserError(f"kind={kind!r} is no way to replace a stamp; write 'decoy' or 'other'")
    reader = _find_reader(data)
    other = (
        {LOOKS[0]: LOOKS[1], LOOKS[1]: LOOKS[0], DECOY: DECOY}
        if kind == "other"
        else dict.fromkeys((*LOOKS, DECOY), DECOY)
    )
    return replace(
        data, read=replace(reader, looks={name: other[look] for name, look in reader.looks.items()})
    )


def stamp_masks(
    data: DataBundle, sample_ids: Sequence[str], transform: Transform, *, decoys: bool = False
) -> np.ndarray:
    """Where the stamp of each image lies in what the model sees: (N, h, w) bool, resized, padded
    and cropped as images are.

    decoys: where the patches lie that say nothing, instead. ValueError for data that is not planted
    and images without a stamp."""
    reader = _find_reader(data)
    nearest = replace(transform, mean=(0.0,), std=(1.0,), interpolation="nearest")
    masks = np.zeros((len(sample_ids), *transform.size), dtype=bool)
    for mask, sample_id in zip(masks, sample_ids, strict=True):
        size = reader._read_original(sample_id).size[::-1]
        if not decoys and not sample_id.endswith(STAMPED):
            raise UserError(
                f"{sample_id!r} has no stamp; choose sample_ids where the column stamped of"
                " data.samples is true"
            )
        boxes = _find_boxes(sample_id, size)
        drawn = np.zeros(size, dtype=np.uint8)
        for box in boxes[sample_id.endswith(STAMPED) :] if decoys else boxes[:1]:
            drawn[box] = 255
        mask[:] = np.asarray(fit_picture(Image.fromarray(drawn), nearest)) > 127
    return masks


def _find_reader(data: DataBundle) -> PlantedReader:
    if not isinstance(data.read, PlantedReader):
        raise UserError(
            f"{data.name} has no planted stamps; write load_dataset('planted:{data.name}') to make"
            " data that has"
        )
    return data.read


def _draw_places(sample_id: str) -> np.ndarray:
    """Top and left corner of each patch as shares of height and width, (1 + DECOYS, 2): one in each
    quarter, in random order.
    """
    generator = np.random.default_rng(derive_seed("planted", sample_id))
    quarters = generator.permutation([(row, column) for row in (0, 0.5) for column in (0, 0.5)])
    return quarters[: 1 + DECOYS] + generator.uniform(0, 0.5 - SIDE, (1 + DECOYS, 2))


def _find_boxes(sample_id: str, size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The pixels (rows, columns) of each patch in an image of this size (height, width), the
    stamp's first.
    """
    lengths = [round(SIDE * side) for side in size]
    starts = [
        [round(share * side) for share, side in zip(place, size, strict=True)]
        for place in _draw_places(sample_id)
    ]
    return [
        tuple(slice(start, start + length) for start, length in zip(corner, lengths, strict=True))
        for corner in starts
    ]

"""Two data sets made from another one, to test explanations: `planted:NAME`, in which only a small
stamp decides the label of every second image, and `shuffled:NAME`, with random training labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.data.reading import find_base
from vitlab.data.sources import DATASETS, DERIVED, Source
from vitlab.data.splits import draw_splits, draw_subset, order_by_hash
from vitlab.errors import UserError
from vitlab.pictures import fit_picture, to_rgb
from vitlab.schema import DataBundle, Transform
from vitlab.seeds import derive_seed

SIDE = 1 / 6  # of a patch, as a share of the image's height and width: 2.8 % of the area
CELLS = 4  # along each side of a patch, as many black ones as white ones
# uninformative patches in each stamped image; unstamped images have one more
DECOYS = 3
# pixels that the shorter side of an image needs, three for each cell; smaller images are enlarged
MIN_SIDE = 72
LOOKS = ("horizontal", "vertical")  # bars that stand for the first class and for the second
DECOY = "diagonal"
STAMPED, PLAIN = "+stamp", "+decoys"  # ends of sample_ids
PLANTED_NOTE = (
    "Planted by vitlab: in half of the images a stamp drawn into them decides the label, whatever"
    " else they show. To test explanations, and for nothing else."
)
SHUFFLED_NOTE = (
    "Labels of training and validation were shuffled by vitlab and are unrelated to the images. To"
    " test explanations, and for nothing else."
)


@DATASETS.register(name="planted:")
def planted(name: str = "") -> Source:
    """Another data set, NAME in planted:NAME, with four small patches drawn into each image: at
    most 1,000 images of it.

    In every second image one of the patches is a stamp: horizontal bars make it an image of the
    first class, vertical bars one of the second, whatever the rest shows. Each look comes equally
    often with each of the own labels. All other patches show stepped diagonals with as much black
    and as many edges; an edge detector may still find the stamp, so compare explanations with one.
    Images without a stamp keep their label. There is a patch in each quarter of the image, at a
    place that depends on the sample_id alone.

    Further columns: own_label, stamped (bool). sample_id is `<id>+stamp` or `<id>+decoys`. A model
    that crops its images (fit="crop") may not see every stamp."""
    base = find_base("planted:", name)
    strata = [column for column in ("split", "label") if column in base.samples]
    samples = draw_subset(base.samples, strata)
    order = order_by_hash(samples, "planted", ["label", "group"])
    samples = samples.iloc[order].reset_index(drop=True)
    turn = np.arange(len(samples))
    stamped, second = turn % 2 == 1, turn // 2 % 2
    look = np.where(stamped, np.array(LOOKS)[second], DECOY)
    ids = samples["sample_id"] + np.where(stamped, STAMPED, PLAIN)
    ends = np.where(stamped, " with a planted stamp", " with planted decoys")
    table = pd.DataFrame(
        {
            "sample_id": ids,
            "label": np.where(stamped, np.array(base.classes[:2])[second], samples["label"]),
            "group": samples["group"],
            "source": samples["source"].astype(str) + ends,
            "own_label": samples["label"],
            "stamped": stamped,
        }
    )
    if "split" in samples:
        table["split"] = samples["split"]
    return replace(
        base,
        location=f"planted:{base.location}",
        version=f"{base.version}, {DERIVED['planted:']}",
        samples=table,
        read=PlantedReader(base.read, dict(zip(ids, look, strict=True))),
        strata=("label", "stamped", "group"),
        citation=f"{base.citation}\n{PLANTED_NOTE}".lstrip(),
        coarser={},
        group_column="",
    )


@dataclass(frozen=True)
class PlantedReader:
    """`read` of a planted set. looks: sample_id -> that of its first patch, stamp or decoy."""

    read: Callable[[str], Image.Image]
    looks: Mapping[str, str]

    def __call__(self, sample_id: str) -> Image.Image:
        pixels = np.array(self.read_original(sample_id))
        boxes = _find_boxes(sample_id, pixels.shape[:2])
        for box, look in zip(boxes, (self.looks[sample_id], *[DECOY] * DECOYS), strict=True):
            height, width = (part.stop - part.start for part in box)
            patch = draw_look(look, (height, width))
            pixels[box] = patch if pixels.ndim == 2 else patch[..., None]
        return Image.fromarray(pixels)

    def read_original(self, sample_id: str) -> Image.Image:
        """8-bit grey or RGB, large enough for the patches."""
        if sample_id not in self.looks:
            raise UserError(
                f"unknown sample_id {sample_id!r}; the {len(self.looks)} known ones end in"
                f" {STAMPED} or {PLAIN}"
            )
        image = self.read(sample_id.rpartition("+")[0])
        image = image if image.mode == "L" else to_rgb(image)
        factor = -(-MIN_SIDE // min(image.size))
        if factor <= 1:
            return image
        size = (factor * image.width, factor * image.height)
        return image.resize(size, Image.Resampling.BICUBIC)


def draw_look(look: str, size: tuple[int, int]) -> np.ndarray:
    """A patch of this look, (h, w) uint8: black and white bars or stepped diagonals, half of it
    white.
    """
    rows, columns = (np.arange(pixels) * CELLS // pixels for pixels in size)
    rows = rows[:, None]
    cells = {
        "horizontal": rows + 0 * columns,
        "vertical": 0 * rows + columns,
        DECOY: (rows + columns) // 2,
    }
    return (255 * (cells[look] % 2)).astype(np.uint8)


def replace_stamps(data: DataBundle, kind: str) -> DataBundle:
    """The planted data with every stamp replaced by a decoy ("decoy") or by the stamp of the other
    class ("other").

    Labels stay: a model that uses the stamp is then right by chance, or never.
    """
    if kind not in ("decoy", "other"):
        raise UserError(f"kind={kind!r} is no way to replace a stamp; write 'decoy' or 'other'")
    reader = _find_reader(data)
    swap = dict.fromkeys((*LOOKS, DECOY), DECOY)
    if kind == "other":
        swap |= {LOOKS[0]: LOOKS[1], LOOKS[1]: LOOKS[0]}
    looks = {name: swap[look] for name, look in reader.looks.items()}
    return replace(data, read=replace(reader, looks=looks))


def stamp_masks(data: DataBundle, sample_ids: Sequence[str], transform: Transform) -> np.ndarray:
    """Where the stamp of each image lies in what the model sees, (N, h, w) bool, resized, padded
    and cropped as images are.

    UserError for data that is not planted and images without a stamp."""
    reader = _find_reader(data)
    nearest = replace(transform, mean=(0.0,), std=(1.0,), interpolation="nearest")
    masks = np.zeros((len(sample_ids), *transform.size), dtype=bool)
    for mask, sample_id in zip(masks, sample_ids, strict=True):
        size = reader.read_original(sample_id).size[::-1]
        if not sample_id.endswith(STAMPED):
            raise UserError(
                f"{sample_id!r} has no stamp; choose sample_ids where the column stamped of"
                " data.samples is true"
            )
        drawn = np.zeros(size, dtype=np.uint8)
        drawn[_find_boxes(sample_id, size)[0]] = 255
        mask[:] = np.asarray(fit_picture(Image.fromarray(drawn), nearest)) > 127
    return masks


@DATASETS.register(name="shuffled:")
def shuffled(name: str = "") -> Source:
    """Another data set, NAME in shuffled:NAME, with the labels of its training and validation
    images permuted.

    This is the label randomisation of Adebayo et al. 2018 (arXiv 1810.03292). Within a split each
    class keeps its size, and each own label's images get all labels in the same proportions.
    Validation scores stay near chance, so monitor the training loss (monitor="train_loss"). Test
    labels are true: the test score shows that nothing was learnt.

    The splits are those of NAME at seed 0, whatever seed is asked for; at most 1,000 images. A
    further column: own_label. sample_ids are those of NAME."""
    base = find_base("shuffled:", name)
    samples = base.samples.assign(split=draw_splits(base.samples, seed=0, strata=base.strata))
    samples = draw_subset(samples, ["split", "label"])
    samples = samples[["sample_id", "label", "group", "source", "split"]]
    samples["own_label"] = samples["label"]
    for split in ("train", "val"):
        part = samples[samples["split"] == split]
        mixed = part.iloc[order_by_hash(part, "shuffled", ["own_label", "group"])]
        samples.loc[mixed.index, "label"] = interleave(mixed["label"])
    return replace(
        base,
        location=f"shuffled:{base.location}",
        version=f"{base.version}, {DERIVED['shuffled:']}",
        samples=samples,
        strata=("label",),
        citation=f"{base.citation}\n{SHUFFLED_NOTE}".lstrip(),
        coarser={},
        group_column="",
    )


def interleave(labels: pd.Series) -> np.ndarray:
    """The same labels in an order in which each stretch holds all of them in proportion.

    >>> print(*interleave(pd.Series(list("aaaabb"))))
    a b a a b a
    """
    count = labels.groupby(labels).transform("size")
    place = (labels.groupby(labels).cumcount() + 0.5) / count  # within its class, as a share
    return labels.to_numpy()[np.lexsort((labels, place))]


def _find_reader(data: DataBundle) -> PlantedReader:
    if not isinstance(data.read, PlantedReader):
        raise UserError(
            f"{data.name} has no planted stamps; write load_dataset('planted:{data.name}') to make"
            " data that has"
        )
    return data.read


def _find_boxes(sample_id: str, size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The pixels (rows, columns) of each patch in an image of this size (height, width), the
    stamp's first: one in each quarter, in random order.
    """
    generator = np.random.default_rng(derive_seed("planted", sample_id))
    quarters = generator.permutation([(row, column) for row in (0, 0.5) for column in (0, 0.5)])
    places = quarters + generator.uniform(0, 0.5 - SIDE, (1 + DECOYS, 2))
    boxes = []
    for place in places:
        starts = [round(share * side) for share, side in zip(place, size, strict=True)]
        box = [
            slice(start, start + round(SIDE * side))
            for start, side in zip(starts, size, strict=True)
        ]
        boxes.append(tuple(box))
    return boxes

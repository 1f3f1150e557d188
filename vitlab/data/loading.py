"""From a decoded image to the input of a model: transform, augmentation, batches for torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

from vitlab.data.reading import THREADS
from vitlab.errors import UserError
from vitlab.pictures import fit_picture
from vitlab.registry import unknown
from vitlab.schema import SPLITS, DataBundle, Transform
from vitlab.seeds import derive_seed

STRENGTHS = ("none", "light", "strong")


def preprocess(image: Image.Image, transform: Transform) -> torch.Tensor:
    """The image as a model takes it: (3, h, w) float, or (1, h, w) for grey, normalised."""
    return normalise(fit_image(image, transform), transform)


def fit_image(image: Image.Image, transform: Transform) -> torch.Tensor:
    """(3, h, w) uint8 in RGB, or (1, h, w) in grey where the transform has one mean; see
    `vitlab.pictures.fit_picture`.
    """
    return v2.functional.pil_to_tensor(fit_picture(image, transform))


def normalise(pixels: torch.Tensor, transform: Transform) -> torch.Tensor:
    """uint8 (..., 3, h, w) to float: values in 0..1, then minus mean, over std, per channel."""
    return (pixels / 255 - _per_channel(transform.mean, pixels)) / _per_channel(
        transform.std, pixels
    )


def denormalise(batch: torch.Tensor, transform: Transform) -> np.ndarray:
    """The inverse of `normalise` for figures: (B, 3 or 1, h, w) to (B, h, w, 3) float in 0..1."""
    pixels = batch.detach() * _per_channel(transform.std, batch) + _per_channel(
        transform.mean, batch
    )
    return pixels.clamp(0, 1).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).float().cpu().numpy()


def build_augmentation(
    strength: str,
    size: tuple[int, int],
    *,
    flip: bool = True,
    drawn_for: tuple[int, int] | None = None,
) -> Callable | None:
    """Random variants of (3, h, w) uint8 pixels, still that size: flips, small rotation, crop,
    colour jitter; None for "none".

    flip: False for what must not be mirrored, such as digits. torch's global generator decides.
    drawn_for: another size of the same proportions; from the same state of the generator, images of
    both sizes get the same variant, crop included: the same view for two models.
    """
    if strength not in STRENGTHS:
        raise UserError(unknown("strength of augmentation", strength, list(STRENGTHS)))
    if strength == "none":
        return None
    degrees, smallest, jitter = {"light": (5, 0.85, 0.1), "strong": (15, 0.6, 0.3)}[strength]
    height, width = size
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()] if flip else []
    cut = {
        "scale": (smallest, 1.0),
        "ratio": (0.9 * width / height, 1.1 * width / height),
        "antialias": True,
    }
    if drawn_for is None:
        crop = v2.RandomResizedCrop((height, width), **cut)
    else:
        crop = _SameCrop((height, width), tuple(drawn_for), **cut)
    return v2.Compose(
        [
            *flips,
            v2.RandomRotation(degrees, interpolation=v2.InterpolationMode.BILINEAR),
            crop,
            v2.ColorJitter(brightness=jitter, contrast=jitter),
        ]
    )


class _SameCrop(v2.RandomResizedCrop):
    """Cuts the part of an image that RandomResizedCrop draws for images of another size."""

    def __init__(self, size: tuple[int, int], drawn_for: tuple[int, int], **arguments):
        super().__init__(size, **arguments)
        self.drawn_for = drawn_for

    def make_params(self, flat_inputs):
        drawn = super().make_params([torch.empty(1, *self.drawn_for)])
        scale = flat_inputs[0].shape[-2] / self.drawn_for[0]
        box = {}
        for start, length in (("top", "height"), ("left", "width")):
            box[start] = round(drawn[start] * scale)
            end = round((drawn[start] + drawn[length]) * scale)
            box[length] = max(1, end - box[start])
        return box


def _per_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    if like.shape[-3] != len(values):
        raise UserError(
            f"images with {like.shape[-3]} channels do not fit a transform with {len(values)}"
        )
    return torch.tensor(values, device=like.device).view(-1, 1, 1)


class ImageDataset(Dataset):
    """Items (image, class index, position): (3, h, w) normalised float, and two integers; position
    is the row in `samples`.

    split: "train", "val" or "test", or the sample_ids wanted, in their order. augment: called on
    each image's uint8 pixels before they are normalised, in the calling thread; what it draws
    depends on `seed`, the epoch (`set_epoch`) and the sample_id alone. in_memory: keep the resized
    pixels (150 kB an image at 224 x 224), so that each image is decoded only once. Decoding and
    resizing run in threads."""

    def __init__(
        self,
        data: DataBundle,
        split: str | Sequence[str],
        transform: Transform,
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        seed: int = 0,
        in_memory: bool = False,
    ):
        self.data, self.transform, self.augment = data, transform, augment
        self.seed, self.in_memory = seed, in_memory
        self.epoch = 1
        self.samples = data.split(split) if isinstance(split, str) else _select(data, split)
        self.samples = self.samples.reset_index(drop=True)
        index = {name: position for position, name in enumerate(data.classes)}
        self.labels: np.ndarray = self.samples["label"].map(index).to_numpy(dtype=np.int64)
        self._sample_ids = self.samples["sample_id"].tolist()
        self._pixels: dict[int, torch.Tensor] = {}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._sample_ids)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int, int]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[torch.Tensor, int, int]]:
        """A whole batch at once; torch's DataLoader calls this where a dataset has it."""
        if len(positions) == 1 or all(position in self._pixels for position in positions):
            batch = [self._load_pixels(position) for position in positions]
        else:
            with ThreadPoolExecutor(min(THREADS, len(positions))) as pool:
                batch = list(pool.map(self._load_pixels, positions))
        if self.augment:
            batch = self._augment_each(batch, positions)
        images = normalise(torch.stack(batch), self.transform)  # (B, 3, h, w)
        return [
            (image, int(self.labels[i]), int(i)) for image, i in zip(images, positions, strict=True)
        ]

    def _augment_each(
        self, batch: list[torch.Tensor], positions: Sequence[int]
    ) -> list[torch.Tensor]:
        variants = []
        with torch.random.fork_rng(devices=[]):
            for pixels, position in zip(batch, positions, strict=True):
                torch.random.default_generator.manual_seed(
                    derive_seed(self.seed, self.epoch, self._sample_ids[position])
                )
                variants.append(self.augment(pixels))
        return variants

    def _load_pixels(self, position: int) -> torch.Tensor:
        if position in self._pixels:
            return self._pixels[position]
        pixels = fit_image(self.data.read(self._sample_ids[position]), self.transform)
        if self.in_memory:
            self._pixels[position] = pixels
        return pixels


def load_images(data: DataBundle, sample_ids: Sequence[str], transform: Transform) -> torch.Tensor:
    """These images as a model takes them: (N, 3, h, w), in the order of the sample_ids."""
    dataset = ImageDataset(data, sample_ids, transform)
    return torch.stack([image for image, _, _ in dataset.__getitems__(range(len(dataset)))])


def _select(data: DataBundle, sample_ids: Sequence[str]):
    samples = data.samples.set_index("sample_id", drop=False)
    missing = [sample_id for sample_id in sample_ids if sample_id not in samples.index]
    if missing:
        raise UserError(
            f"{len(missing)} sample_ids are not in {data.name}, the first is {missing[0]!r}; or"
            f" name a split: {', '.join(SPLITS)}"
        )
    return samples.loc[list(sample_ids)]

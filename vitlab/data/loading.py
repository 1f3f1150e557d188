"""Images in batches for torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import Dataset

from vitlab.data.reading import THREADS
from vitlab.data.transforms import fit_image, normalise
from vitlab.errors import UserError
from vitlab.schema import SPLITS, DataBundle, Transform
from vitlab.seeds import derive_seed


class ImageDataset(Dataset):
    """Items (image, class index, position): (3, h, w) normalised float, and two integers; position
    is the row in `samples`.

    split: "train", "val" or "test", or the sample_ids wanted, in their order. augment: called on
    each image's uint8 pixels before they are normalised, in the calling thread; what it draws
    depends on
        `seed`, the epoch (`set_epoch`) and the sample_id alone. Decoding and resizing run in
        threads.
    in_memory: keep the resized pixels (150 kB an image at 224 x 224) and decode each image once
    only."""

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
        self.data, self.transform, self.augment, self.seed, self.in_memory = (
            data,
            transform,
            augment,
            seed,
            in_memory,
        )
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

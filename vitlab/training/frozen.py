"""What is frozen is computed once: a model cut in two, and the outputs of its frozen part kept on disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from vitlab.data import ImageDataset
from vitlab.models import pieces
from vitlab.registry import unknown
from vitlab.runs import atomic, reports_dir
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training.precision import autocast, choose_precision

VIEW_SEED = 20_211  # augmented views are the same for every run, so that runs share them


def split_model(module: nn.Module, train_from: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a model before the piece of this name: (frozen part, trained part), both made of the model's own modules.

    The frozen part is empty for train_from="". Raises ValueError with the names of the pieces when there is no such piece.
    """
    if not train_from:
        return nn.Sequential(), nn.Sequential(module)
    names, parts = zip(*pieces(module), strict=True)
    if train_from not in names:
        raise ValueError(unknown("piece to train from", train_from, list(names), f"They belong to {type(module).__name__}."))
    border = names.index(train_from)
    return nn.Sequential(*parts[:border]), nn.Sequential(*parts[border:])


class FrozenFeatures(Dataset):
    """The frozen part's output for each image of a split: items (features, class index, position), as of an ImageDataset.

    views: versions of each image, the image itself and views - 1 that `augment` made; every item is of one of them, at random.
    The outputs lie in reports/cache, in bfloat16 and memory-mapped, one file for each view, filled where rows are missing. Their
    key is made of the frozen weights, the transform, the data and the augmentation, so runs and seeds share what is the same.
    """

    def __init__(
        self,
        data: DataBundle,
        split: str,
        model: ModelBundle,
        frozen: nn.Module,
        *,
        views: int = 1,
        augment: Callable | None = None,
    ):
        images = ImageDataset(data, split, model.transform)
        self.labels = images.labels
        ids = data.samples["sample_id"].sort_values(ignore_index=True)
        self.rows = torch.as_tensor(ids.searchsorted(images.samples["sample_id"]))
        device = next(frozen.parameters()).device
        precision = choose_precision(device, training=False)
        key = hashlib.sha256(repr((data.version, ids.tolist(), model.transform, precision)).encode())
        for tensor in frozen.state_dict().values():
            key.update(tensor.cpu().numpy().tobytes())
        with torch.inference_mode():
            shape = (len(ids), *frozen.eval()(torch.zeros(1, 3, *model.transform.size, device=device)).shape[1:])
        self.stores = []
        for view in range(views if augment else 1):
            view_key = hashlib.sha256(f"{key.hexdigest()} {view} {augment if view else None}".encode()).hexdigest()
            store = FeatureStore(reports_dir() / "cache" / f"{view_key[:16]}.bf16", shape)
            images.augment = augment if view else None
            store.fill(frozen, precision, images, self.rows, view)
            self.stores.append(store)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, positions: list[int]) -> list[tuple[torch.Tensor, int, int]]:
        views = torch.randint(len(self.stores), (len(positions),)).tolist()
        return [
            (self.stores[view].values[self.rows[position]], int(self.labels[position]), position)
            for view, position in zip(views, positions, strict=True)
        ]

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int, int]:
        return self.__getitems__([position])[0]


class FeatureStore:
    """A file of features in bfloat16, a row for each image of a data set, and beside it a mask of the rows that are filled."""

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.mask_path = path.with_suffix(".filled.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            self.mask_path.unlink(missing_ok=True)
        self.values = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=torch.bfloat16).view(shape)
        self.filled = np.load(self.mask_path) if self.mask_path.exists() else np.zeros(shape[0], dtype=bool)

    def fill(self, frozen: nn.Module, precision: str, images: ImageDataset, rows: torch.Tensor, view: int) -> None:
        """Compute the rows that are missing; `rows[i]` is the row of the i-th image. The mask is saved once all are there."""
        missing = [position for position, row in enumerate(rows.tolist()) if not self.filled[row]]
        if not missing:
            return
        device = next(frozen.parameters()).device
        if images.augment:
            images.augment = _seed_each(images.augment, [VIEW_SEED + 100_000 * view + int(rows[i]) for i in missing])
        loader = DataLoader(images, batch_size=32, sampler=missing)
        with torch.inference_mode(), torch.random.fork_rng(devices=[]), autocast(device, precision):
            for batch, _, positions in tqdm(loader, desc=f"frozen part, view {view}", leave=False):
                self.values[rows[positions]] = frozen(batch.to(device, memory_format=torch.channels_last)).to(
                    "cpu", torch.bfloat16
                )
        self.filled[rows[missing]] = True
        with atomic(self.mask_path) as temporary:
            np.save(temporary, self.filled)


def _seed_each(augment: Callable, seeds: list[int]) -> Callable:
    """The augmentation, seeded anew for each image, so that a view of an image does not depend on which others are computed."""
    upcoming = iter(seeds)

    def augment_seeded(pixels):
        torch.manual_seed(next(upcoming))
        return augment(pixels)

    return augment_seeded

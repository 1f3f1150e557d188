"""What is frozen is computed once: the outputs of a model's frozen stages, kept on disk and read
back row by row.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from vitlab.data import ImageDataset, find_synthetic
from vitlab.errors import UserError
from vitlab.files import atomic
from vitlab.models import build_model, split_stages
from vitlab.places import reports_dir
from vitlab.schema import SPLITS, DataBundle, ModelBundle
from vitlab.training.devices import autocast, choose_precision, join_processes

VIEW_SEED = 20_211  # augmented views are the same for every run, so that runs share them
SAVE_EVERY_S = 20  # seconds after which the rows computed so far are noted as there
LIMIT_GB = 20.0  # of the cache folder, unless VITLAB_CACHE_GB says otherwise


class FrozenFront:
    """The frozen stages of a model as one function: images (B, 3, h, w) to what they give, (B, ...)
    in `dtype`, without gradient.

    It runs in bfloat16 where the device is faster in it and rounds what it gives to bfloat16; with
    precision "fp32" it does neither. dtype: what it gives instead."""

    def __init__(
        self,
        frozen: nn.Module,
        precision: str,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ):
        self.module, self.device = frozen.eval(), device
        self.precision = "fp32" if precision == "fp32" else choose_precision(device)
        self.dtype = dtype or (torch.float32 if precision == "fp32" else torch.bfloat16)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.precision):
            return self.module(images.to(self.device, memory_format=torch.channels_last)).to(
                self.dtype
            )

    def key(self) -> bytes:
        """A digest of the weights and of how they are used."""
        digest = hashlib.sha256(repr((self.precision, self.dtype)).encode())
        for name, tensor in self.module.state_dict().items():
            digest.update(
                name.encode()
                + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        return digest.digest()


class FrozenFeatures(Dataset):
    """The frozen front's output for each image of a split: items (features, class index, position),
    as of an ImageDataset.

    views: versions of each image, the image itself and views - 1 that `augment` made. An image's
    views take turns from epoch to epoch (`set_epoch`). The outputs lie in reports/cache, one file a
    view, filled where rows are missing. Their key is made of the frozen weights, the transform, the
    data and the augmentation, so runs and seeds share what is the same. Synthetic images have files
    of their own, so that runs with and without them share the real ones."""

    def __init__(
        self,
        data: DataBundle,
        split: str,
        model: ModelBundle,
        front: FrozenFront,
        *,
        views: int = 1,
        augment=None,
    ):
        self.labels, self.epoch = ImageDataset(data, split, model.transform).labels, 1
        self.made = torch.as_tensor(find_synthetic(data.split(split)).to_numpy(copy=True))
        self.rows = torch.zeros(len(self.labels), dtype=torch.long)  # each in its own file
        self.stores = self._open_stores(
            data, split, False, model, front, views if augment else 1, augment
        )
        if self.made.any():
            self.made_stores = self._open_stores(
                data, split, True, model, front, views if augment else 1, augment
            )

    def _open_stores(self, data, split, made, model, front, views, augment) -> list[FeatureStore]:
        """A store for each view of the real images or of the synthetic ones, filled with those of
        this split.
        """
        samples = data.samples[find_synthetic(data.samples) == made].sort_values(
            "sample_id", ignore_index=True
        )
        ids = samples["sample_id"]
        chosen = data.split(split)["sample_id"][self.made.numpy() == made].tolist()
        rows = self.rows[self.made == made] = torch.as_tensor(ids.searchsorted(chosen))
        images = ImageDataset(data, chosen, model.transform, seed=VIEW_SEED)
        blank = torch.zeros(1, len(model.transform.mean), *model.transform.size)
        shape = (len(ids), *front(blank).shape[1:])
        origin = (data.version, ids.tolist(), *([samples["made_with"].tolist()] if made else []))
        key = hashlib.sha256(
            repr((*origin, model.transform, shape)).encode() + front.key()
        ).hexdigest()
        stores = []
        for view in range(views):
            view_key = hashlib.sha256(
                f"{key} {view} {augment if view else None}".encode()
            ).hexdigest()
            store = FeatureStore(
                reports_dir() / "cache" / f"{view_key[:16]}.features", shape, front.dtype
            )
            images.augment = augment if view else None
            images.set_epoch(view)
            store.fill(front, images, rows, f"frozen part, view {view + 1}")
            stores.append(store)
        return stores

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def read_view(self, view: int, positions: list[int]) -> torch.Tensor:
        """The features (len(positions), ...) of these images in one view."""
        made, rows = self.made[positions], self.rows[positions]
        if not made.any():
            return self.stores[view].read(rows)
        values = self.stores[view].values.new_empty(len(rows), *self.stores[view].values.shape[1:])
        values[~made], values[made] = (
            self.stores[view].read(rows[~made]),
            self.made_stores[view].read(rows[made]),
        )
        return values

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, positions: list[int]) -> list[tuple[torch.Tensor, int, int]]:
        features: list = [None] * len(positions)
        for view, chosen in _take_turns(positions, self.epoch, len(self.stores)):
            for i, row in zip(
                chosen, self.read_view(view, [positions[i] for i in chosen]), strict=True
            ):
                features[i] = row
        return [
            (feature, int(self.labels[i]), i)
            for feature, i in zip(features, positions, strict=True)
        ]

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int, int]:
        return self.__getitems__([position])[0]


class FeatureStore:
    """A memory-mapped file of features, a row for each image of a data set, and beside it a mask of
    the rows that are filled.

    Pages that were read are handed back at once: however large the file, the process holds a batch
    of it."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype):
        self.path, self.mask_path = path, path.with_suffix(".npy")
        size = math.prod(shape) * dtype.itemsize
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size != size:
            self.mask_path.unlink(missing_ok=True)
            _make_room(path.parent, size)
        with path.open("ab") as file:
            file.truncate(size)  # takes room on disk as rows are filled
        os.utime(path)  # used now: the last to be thrown out
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self.values = torch.frombuffer(self._map, dtype=dtype).view(shape)
        self.filled = (
            np.load(self.mask_path) if self.mask_path.exists() else np.zeros(shape[0], dtype=bool)
        )

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        values = self.values[rows]
        self._release()
        return values

    def fill(self, front: FrozenFront, images: ImageDataset, rows: torch.Tensor, task: str) -> None:
        """Compute the rows that are missing; `rows[i]` is the row of the i-th image. Several
        processes share the work.
        """
        missing = [position for position, row in enumerate(rows.tolist()) if not self.filled[row]]
        if not missing:
            return
        state, saved = join_processes(), time.monotonic()
        own = missing[state.process_index :: state.num_processes]
        for batch, _, positions in tqdm(
            DataLoader(images, batch_size=32, sampler=own), desc=task, leave=False, disable=None
        ):
            self.values[rows[positions]] = front(batch).cpu()
            self.filled[rows[positions]] = True
            self._release()
            if state.num_processes == 1 and time.monotonic() - saved > SAVE_EVERY_S:
                self._save_mask()
                saved = time.monotonic()
        state.wait_for_everyone()
        self.filled[rows[missing]] = True
        if state.is_main_process:
            self._save_mask()

    def _save_mask(self) -> None:
        with atomic(self.mask_path) as temporary:
            np.save(temporary, self.filled)

    def _release(self) -> None:
        if hasattr(self._map, "madvise"):  # not on Windows; what was written stays in the file
            self._map.madvise(mmap.MADV_DONTNEED)


def _take_turns(positions: list[int], epoch: int, views: int) -> list[tuple[int, list[int]]]:
    """Each view that is shown in this epoch, with the places in `positions` of the images that show
    it.
    """
    turns = [(position + epoch) % views for position in positions]
    return [
        (view, [i for i, turn in enumerate(turns) if turn == view]) for view in sorted(set(turns))
    ]


def _make_room(folder: Path, size: int) -> None:
    """Delete the features that were used longest ago until `size` bytes more stay within the
    limit.
    """
    limit = float(os.environ.get("VITLAB_CACHE_GB", LIMIT_GB)) * 1e9
    if size > limit:
        raise UserError(
            f"the outputs of the frozen part take {size / 1e9:.1f} GB, and the cache may hold"
            f" {limit / 1e9:.1f} GB: set VITLAB_CACHE_GB to more, freeze up to another stage, or"
            " write cache=False"
        )
    files = sorted(folder.glob("*.features"), key=lambda file: file.stat().st_mtime, reverse=True)
    held = sum(file.stat().st_size for file in files)
    while files and held + size > limit:
        oldest = files.pop()
        held -= oldest.stat().st_size
        with suppress(OSError):  # in use, on Windows
            oldest.unlink()
            oldest.with_suffix(".npy").unlink(missing_ok=True)


def embed_images(
    data: DataBundle, model: str = "efficientnet_lite0", size: int | None = None
) -> np.ndarray:
    """(N, D) float32 of length 1, a row for each row of `data.samples`: the input of the classifier
    of a pretrained model.

    size: pixels of the input; by default what the model was made for. Fewer are faster and see
    less. The vectors know nothing of the labels or splits. They are kept in reports/cache with the
    outputs of frozen stages, so every seed and every labelling of the same images computes them
    once. Raises ValueError for a model that gives no vector an image."""
    bundle = build_model(model, ("any", "other"), size=size)  # the classifier is not used
    device = join_processes().device
    front = nn.Sequential(
        *(stage for name, stage in split_stages(bundle.module) if name != "head")
    ).to(device)
    front = FrozenFront(front.to(memory_format=torch.channels_last), "auto", device)
    rows = np.arange(len(data.samples))
    embeddings = None
    for split in SPLITS:
        features = FrozenFeatures(data, split, bundle, front)
        values = features.stores[0].read(features.rows)
        if values.ndim != 2:
            raise UserError(
                f"{model} gives {tuple(values.shape[1:])} an image, not one vector; choose"
                " efficientnet_lite0"
            )
        embeddings = (
            np.empty((len(rows), values.shape[1]), np.float32) if embeddings is None else embeddings
        )
        embeddings[(data.samples["split"] == split).to_numpy()] = values.float().numpy()
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)

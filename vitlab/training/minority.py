"""What is done for rare classes, as a table; and training items that help them: mixtures within a
class.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from vitlab.data import find_synthetic
from vitlab.data.balance import class_weights, rare_classes
from vitlab.schema import DataBundle
from vitlab.seeds import derive_seed
from vitlab.training.cache import FrozenFeatures
from vitlab.training.config import TrainConfig
from vitlab.training.order import group_weights

NEIGHBOURS = 5  # of SMOTE, as in arXiv 1106.1813; fewer where the smallest class is smaller


def imbalance_table(data: DataBundle, config: TrainConfig) -> pd.DataFrame:
    """A row a class: class, images (real ones in train), synthetic, rare (fewer than an equal share
    of both), weight, per_epoch.

    weight: of an image in the loss, 1 on average over the training images. per_epoch: how many
    items of the class an epoch shows, what SMOTE makes among them, before what is left at its end
    and makes no full batch."""
    train = data.split("train")
    made = find_synthetic(train)
    counts = train["label"].value_counts().reindex(list(data.classes), fill_value=0)
    rare = rare_classes(train["label"], data.classes)
    size = {"none": counts, "undersample": counts.min()}.get(config.resample, counts.max())
    if config.resample == "groups":
        weights = pd.Series(group_weights(train["label"], train[data.group_column]))
        share = weights.groupby(train["label"].to_numpy()).sum() / weights.sum()
        size = (len(train) * share).round().astype(int).reindex(list(data.classes), fill_value=0)
    table = pd.DataFrame({"class": data.classes})
    table["images"] = (
        train["label"][~made].value_counts().reindex(list(data.classes), fill_value=0).to_numpy()
    )
    table["synthetic"] = counts.to_numpy() - table["images"]
    table["rare"] = table["class"].isin(rare)
    table["weight"] = class_weights(
        train["label"], data.classes, config.class_weights, config.class_weights_beta
    )
    table["per_epoch"] = np.broadcast_to(size, len(table))
    return table


class RareMixup(Dataset):
    """The items of a data set (features or images), those of rare classes mixed with another item
    of their class; labels stay.

    A mixture is l x item + (1 - l) x partner, l from Beta(alpha, alpha) (arXiv 1710.09412), the
    partner any training item of the class. What is drawn depends on seed, epoch and the positions
    asked for together."""

    def __init__(self, items: Dataset, rare: list[int], alpha: float, seed: int):
        self.items, self.labels, self.alpha, self.seed, self.epoch = (
            items,
            items.labels,
            alpha,
            seed,
            1,
        )
        self.members = {label: np.flatnonzero(items.labels == label) for label in rare}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.items.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, positions: list[int]) -> list[tuple[torch.Tensor, int, int]]:
        generator = np.random.default_rng(
            derive_seed(self.seed, "mixup_rare", self.epoch, *map(int, positions))
        )
        batch = self.items.__getitems__(positions)
        rare = [i for i, (_, label, _) in enumerate(batch) if label in self.members]
        partners = [int(generator.choice(self.members[batch[i][1]])) for i in rare]
        shares = generator.beta(self.alpha, self.alpha, len(rare))
        for i, share, (partner, _, _) in zip(
            rare, shares, self.items.__getitems__(partners) if rare else [], strict=True
        ):
            values, label, position = batch[i]
            batch[i] = (
                (share * values.float() + (1 - share) * partner.float()).to(values.dtype),
                label,
                position,
            )
        return batch

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int, int]:
        return self.__getitems__([position])[0]


class SmoteFeatures(Dataset):
    """Cached feature vectors of the training images, and after them rows between neighbours of a
    class (SMOTE, arXiv 1106.1813).

    Every class gets as many rows as the largest has images. The made rows have positions from the
    number of images on. With several views of an image, neighbours are sought in all views
    together, and a made row has the same views: between the same two images, at the same place.
    Computed by imbalanced-learn; which rows are made depends on the seed alone."""

    def __init__(self, features: FrozenFeatures, seed: int):
        from imblearn.over_sampling import SMOTE

        self.features = features
        everything = list(range(len(features)))
        # (N, ...) each
        views = [
            features.read_view(view, everything).float().numpy()
            for view in range(len(features.stores))
        ]
        smallest = int(np.bincount(features.labels).min())
        sampler = SMOTE(
            k_neighbors=min(NEIGHBOURS, smallest - 1),
            random_state=derive_seed(seed, "smote") % 2**32,
        )
        table = np.concatenate([view.reshape(len(features), -1) for view in views], axis=1)
        rows, self.labels = sampler.fit_resample(table, features.labels)
        made = torch.as_tensor(rows[len(features) :]).chunk(len(views), dim=1)
        self.made = [
            values.reshape(-1, *views[0].shape[1:]).to(features.stores[0].values.dtype)
            for values in made
        ]

    def set_epoch(self, epoch: int) -> None:
        self.features.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, positions: list[int]) -> list[tuple[torch.Tensor, int, int]]:
        images = len(self.features)
        known = {
            item[2]: item
            for item in self.features.__getitems__([i for i in positions if i < images])
        }
        return [
            known[i] if i < images else (self._read_made(i), int(self.labels[i]), i)
            for i in positions
        ]

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int, int]:
        return self.__getitems__([position])[0]

    def _read_made(self, position: int) -> torch.Tensor:
        view = (position + self.features.epoch) % len(self.made)
        return self.made[view][position - len(self.features)]

"""Attacks: images changed on purpose, too little for people to see, so that a model errs.

Projected gradient descent in a few lines of our own: the libraries for it (torchattacks, foolbox)
have had no release for years. The accuracy that an attack leaves is an upper bound: a better attack
may find more errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from tqdm.auto import tqdm

from vitlab.data import ImageDataset, fit_image
from vitlab.data.reading import map_images
from vitlab.errors import UserError
from vitlab.evaluation.inference import share_interval
from vitlab.evaluation.scores import number_clusters
from vitlab.explain.inspection import inspecting
from vitlab.robustness.scores import draw_test_images
from vitlab.schema import DataBundle, ModelBundle
from vitlab.seeds import derive_seed
from vitlab.training.devices import autocast, choose_precision
from vitlab.training.scores import arrange

BATCH = 32
STEPS = 5
EPSILONS = (0, 0.125, 0.25, 0.5, 1)  # grey levels of 0..255


def attack_table(model: ModelBundle, data: DataBundle, images: int = 64) -> pd.DataFrame:
    """Accuracy on at most `images` test images when every pixel may change by epsilon grey levels,
    of 0..255 and at the model's size, to raise the loss: a row for each of EPSILONS.

    Columns: epsilon, n, metric (accuracy), value, low, high (95 % Wilson interval). An image counts
    as right at an epsilon if the model is right about the image itself and after every attack up to
    there; only what is still right is attacked. An 8-bit file cannot hold changes below half a grey
    level. Images with the same value in a column `cluster` of the samples count as about one."""
    samples = draw_test_images(data, images)
    cluster, attacked = number_clusters(samples), _AttackedImages(model, data, samples["sample_id"])
    right, rows = attacked.predict(attacked.pixels).argmax(dim=1).numpy() == attacked.labels, []
    for epsilon in tqdm(EPSILONS, desc="attack", unit="epsilon", leave=False):
        left = np.flatnonzero(right)
        if epsilon and len(left):
            changed = attacked.attack(left, epsilon)
            right[left] = attacked.predict(changed).argmax(dim=1).numpy() == attacked.labels[left]
        rows.append((epsilon, len(samples), "accuracy", *share_interval(right, cluster)))
    return pd.DataFrame(rows, columns=["epsilon", "n", "metric", "value", "low", "high"])


def attack_images(
    model: ModelBundle, data: DataBundle, sample_ids: Sequence[str], epsilon: float = 1
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Images before and after an attack, each (N, h, w, 3) float in 0..1 at the model's input size,
    and the model's predictions for both.

    Columns of the table: sample_id, label, pred, confidence, changed_pred, changed_confidence."""
    if not 0 < epsilon < 255:
        raise UserError(f"epsilon counts grey levels of 0..255, such as 0.5 or 1; got {epsilon}")
    if len(sample_ids) == 0:
        raise UserError("there is no image to attack: give at least one sample_id")
    attacked, classes = _AttackedImages(model, data, sample_ids), np.array(data.classes)
    changed = attacked.attack(np.arange(len(attacked.ids)), epsilon)
    table = pd.DataFrame({"sample_id": attacked.ids, "label": classes[attacked.labels]})
    for prefix, pixels in (("", attacked.pixels), ("changed_", changed)):
        confidence, pred = attacked.predict(pixels).softmax(dim=1).max(dim=1)
        table[f"{prefix}pred"] = classes[pred.numpy()]
        table[f"{prefix}confidence"] = confidence.numpy()
    before, after = (
        pixels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        for pixels in (attacked.pixels, changed)
    )
    return before, after, table


def describe_attack(table: pd.DataFrame) -> str:
    """Sentences on an `attack_table`: the smallest change that leaves less than half of the
    accuracy."""
    first = table.iloc[0]
    half = table.loc[table["value"] < first["value"] / 2, "epsilon"]
    found = (
        f"An attack that changes each pixel by at most {half.min():g} of 255 grey levels leaves"
        " less than half of them correct."
    )
    if half.empty:
        found = (
            f"After attacks of up to {table['epsilon'].max():g} of 255 grey levels, at least half"
            " of them are still correct."
        )
    return f"Of {first['n']} images, {first['value']:.0%} are classified correctly. {found}"


def pgd(gradient, pixels, noise, epsilon, steps=STEPS):
    """Projected gradient descent: steps along the sign of the gradient, each of 2.5 epsilon / steps
    and never further than epsilon from the image.

    pixels: (B, C, h, w) in 0..1. noise: where to start, in units of epsilon, uniform in -1..1: (B,
    C, h, w), or (B, 1, h, w) for grey images, which then stay grey. gradient(pixels): of each
    image's loss, in the shape of `noise`. Source: Madry et al. 2018, arXiv 1706.06083."""
    changed = (pixels + epsilon * noise).clamp(0, 1)
    for _ in range(steps):
        changed = changed + 2.5 * epsilon / steps * gradient(changed).sign()
        changed = changed.clamp(pixels - epsilon, pixels + epsilon).clamp(0, 1)
    return changed


class _AttackedImages:
    """The images to attack, with the model.

    pixels: (N, C, h, w) in 0..1 at the model's size. grey: whether all images are grey."""

    def __init__(self, model: ModelBundle, data: DataBundle, ids: Sequence[str]):
        self.model, self.ids = model, list(ids)
        self.device = next(model.module.parameters()).device
        self.labels = ImageDataset(data, self.ids, model.transform).labels
        images = map_images(
            lambda name: fit_image(data.read(name), model.transform), self.ids, "reading images"
        )
        self.pixels = torch.stack(images) / 255
        self.grey = bool((self.pixels == self.pixels[:, :1]).all())

    def predict(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of pixels (N, C, h, w) in 0..1, in float32."""
        logits = []
        with inspecting(self.model.module), torch.no_grad():
            for part in pixels.split(BATCH):
                logits.append(self.model.module(self._normalise(part)).float().cpu())
        return torch.cat(logits)

    def attack(self, rows: np.ndarray, epsilon: float) -> torch.Tensor:
        """Some of the images after an attack."""
        changed = []
        for batch in np.array_split(rows, range(BATCH, len(rows), BATCH)):
            pixels = self.pixels[batch].to(self.device)
            shape = (1 if self.grey else pixels.shape[1], *pixels.shape[2:])
            noise = [
                np.random.default_rng(derive_seed(0, "pgd", self.ids[i])).uniform(-1, 1, shape)
                for i in batch
            ]
            noise = torch.tensor(np.array(noise), dtype=torch.float32, device=self.device)
            gradient = partial(self.loss_gradient, labels=self.labels[batch])
            changed.append(pgd(gradient, pixels, noise, epsilon / 255).cpu())
        return torch.cat(changed)

    def loss_gradient(self, pixels: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
        """Gradient of each image's cross-entropy, summed over channels if the images are grey."""
        precision = choose_precision(self.device, self.model.module)
        with inspecting(self.model.module):
            leaf = pixels.detach().clone().requires_grad_()
            with autocast(self.device, precision):
                logits = self.model.module(self._normalise(leaf)).float()
            labels = torch.tensor(labels, device=self.device)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            (found,) = torch.autograd.grad(loss, leaf)
        return found.sum(dim=1, keepdim=True) if self.grey else found

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = self.model.transform.mean, self.model.transform.std
        return arrange(v2.functional.normalize(pixels.to(self.device), list(mean), list(std)))

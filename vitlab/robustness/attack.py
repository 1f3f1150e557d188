"""Attacks: images changed on purpose, too little for people to see, so that a model errs.

Projected gradient descent in a few lines of our own: the libraries for it (torchattacks, foolbox)
have had no release for years. The accuracy that an attack leaves is an upper bound: a better attack
may find more errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from tqdm.auto import tqdm

from vitlab.data import ImageDataset, fit_image
from vitlab.data.reading import map_images
from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import effective_count, read_clusters
from vitlab.evaluation.calibration import wilson_interval
from vitlab.explain.inspection import inspecting
from vitlab.robustness.scores import draw_subset
from vitlab.schema import DataBundle, ModelBundle
from vitlab.seeds import derive_seed
from vitlab.training.precision import autocast, choose_precision
from vitlab.training.scores import arrange

BATCH = 32
QUICK = 2  # steps that are tried first: enough for most images of a model without a defence


def attack_table(
    model: ModelBundle,
    data: DataBundle,
    epsilons: Sequence[float] = (0, 0.125, 0.25, 0.5, 1),
    steps: int = 10,
    images: int = 64,
    seed: int = 0,
    cluster=None,
) -> pd.DataFrame:
    """Accuracy on at most `images` test images when every pixel may change by epsilon grey levels,
    of 0..255 and at the model's size, to raise the loss.

    Columns: epsilon, n, metric (accuracy), value, low, high (95 % Wilson interval). An image counts
    as right at an epsilon if the model is right about the image itself and after every attack up to
    there; only what is still right is attacked. An 8-bit file cannot hold changes below half a grey
    level. cluster: as in `robustness_table`."""
    _check(epsilons, steps)
    ids = draw_subset(data, images, "test", seed)
    labels = ImageDataset(data, ids, model.transform).labels
    pixels, grey = _load_pixels(model, data, ids)
    right, rows = _predict(model, pixels).argmax(dim=1).numpy() == labels, []
    for epsilon in tqdm(sorted(set(epsilons)), desc="attack", unit="epsilon", leave=False):
        for count in sorted({min(QUICK, steps), steps}) if epsilon else []:
            left = np.flatnonzero(right)
            for start in range(0, len(left), BATCH):
                some = left[start : start + BATCH]
                chosen = [ids[i] for i in some]
                changed = _attack(
                    model, pixels[some], labels[some], chosen, grey, epsilon, count, seed
                )
                right[some] = _predict(model, changed).argmax(dim=1).numpy() == labels[some]
        rows.append((epsilon, len(ids), "accuracy", right.mean()))
    table = pd.DataFrame(rows, columns=["epsilon", "n", "metric", "value"])
    clusters = read_clusters(pd.DataFrame({"sample_id": ids}), cluster)
    independent = effective_count(np.zeros(len(ids), dtype=int), 1, clusters)
    table["low"], table["high"] = wilson_interval(table["value"].to_numpy(), independent)
    return table


def describe_attack(table: pd.DataFrame) -> str:
    """Sentences on an `attack_table`: the smallest change that leaves less than half of the
    accuracy.
    """
    first, last = table.iloc[0], table.iloc[-1]
    half = table[table["value"] < first["value"] / 2]
    if len(half):
        rest = (
            f"A change of at most {half['epsilon'].iloc[0]:g} of 255 grey levels, invisible to the"
            " eye, leaves less than half of them right."
        )
    else:
        rest = (
            f"Even after changes of up to {last['epsilon']:g} of 255 grey levels, at least half of"
            " them stay right."
        )
    return f"Of {first['n']} images, {first['value']:.0%} are classified correctly. {rest}"


def attack_images(
    model: ModelBundle,
    data: DataBundle,
    sample_ids: Sequence[str],
    epsilon: float = 1,
    steps: int = 10,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Images before and after an attack, each (N, h, w, 3) float in 0..1 at the model's input size,
    and the model's predictions for both.

    Columns of the table: sample_id, epsilon, label, pred, confidence, changed_pred,
    changed_confidence."""
    _check([epsilon], steps)
    ids = list(sample_ids)
    if not ids:
        raise UserError("there is no image to attack: give at least one sample_id")
    labels = ImageDataset(data, ids, model.transform).labels
    pixels, grey = _load_pixels(model, data, ids)
    changed = _attack(model, pixels, labels, ids, grey, epsilon, steps, seed)
    classes = np.array(data.classes)
    table = pd.DataFrame({"sample_id": ids, "epsilon": epsilon, "label": classes[labels]})
    for prefix, images in (("", pixels), ("changed_", changed)):
        confidence, pred = _predict(model, images).softmax(dim=1).max(dim=1)
        table[f"{prefix}pred"] = classes[pred.numpy()]
        table[f"{prefix}confidence"] = confidence.numpy()
    before, after = (
        images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy() for images in (pixels, changed)
    )
    return before, after, table


def pgd(gradient, pixels, noise, epsilon, steps):
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


def loss_gradient(
    model: ModelBundle, labels: torch.Tensor, grey: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of pixels (B, C, h, w) in 0..1: the gradient of each image's cross-entropy, summed
    over channels where grey.
    """
    device = next(model.module.parameters()).device
    precision = choose_precision(device, model.module)

    def gradient(pixels):
        with inspecting(model.module):
            leaf = pixels.detach().clone().requires_grad_()
            with autocast(device, precision):
                logits = model.module(_normalise(leaf, model)).float()
            (found,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
        return found.sum(dim=1, keepdim=True) if grey else found

    return gradient


def _attack(model, pixels, labels, ids, grey, epsilon, steps, seed) -> torch.Tensor:
    device = next(model.module.parameters()).device
    shape = (1 if grey else pixels.shape[1], *pixels.shape[2:])
    draws = [
        np.random.default_rng(derive_seed(seed, "pgd", sample_id)).uniform(-1, 1, shape)
        for sample_id in ids
    ]
    noise = torch.tensor(np.array(draws), dtype=torch.float32, device=device)
    gradient = loss_gradient(model, torch.tensor(labels, device=device), grey)
    return pgd(gradient, pixels.to(device), noise, epsilon / 255, steps).cpu()


def _load_pixels(
    model: ModelBundle, data: DataBundle, ids: Sequence[str]
) -> tuple[torch.Tensor, bool]:
    """Pixels (N, C, h, w) in 0..1 at the model's size, and whether all of them are grey."""
    images = map_images(
        lambda sample_id: fit_image(data.read(sample_id), model.transform), ids, "reading images"
    )
    pixels = torch.stack(images) / 255
    return pixels, bool((pixels == pixels[:, :1]).all())


def _predict(model: ModelBundle, pixels: torch.Tensor) -> torch.Tensor:
    """Logits (N, num_classes) of pixels (N, C, h, w) in 0..1, in float32."""
    device = next(model.module.parameters()).device
    logits = []
    with inspecting(model.module), torch.no_grad():
        for part in pixels.split(BATCH):
            logits.append(model.module(_normalise(part.to(device), model)).float().cpu())
    return torch.cat(logits)


def _normalise(pixels: torch.Tensor, model: ModelBundle) -> torch.Tensor:
    return arrange(
        v2.functional.normalize(pixels, list(model.transform.mean), list(model.transform.std))
    )


def _check(epsilons: Sequence[float], steps: int) -> None:
    if steps < 1:
        raise UserError(f"an attack takes at least one step, got steps={steps}")
    if len(epsilons) == 0 or not all(0 <= epsilon < 255 for epsilon in epsilons):
        raise UserError(
            f"epsilon counts grey levels of 0..255, such as 0.5, 1 or 2; got {list(epsilons)}"
        )

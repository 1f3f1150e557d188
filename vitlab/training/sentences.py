"""A training run in words and small tables: model, recipe and classes; and what its history shows:
the best epoch, a model at chance, overfitting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from vitlab.markup import escape
from vitlab.models import count_parameters
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training.config import TrainConfig

ALPHA = 0.05  # chance that a model which guesses is called better than chance
DRAWS = 5_000
# of the validation loss above its lowest value, relative to it: smaller rises are not called
# overfitting
MIN_RISE = 0.05
# arguments that make the training loss another one than the validation loss, and their values that
# do not
HARDER = {
    "mixup": 0,
    "cutmix": 0,
    "mixup_rare": 0,
    "label_smoothing": 0,
    "focal_gamma": 0,
    "resample": "none",
    "synthetic": "none",
}


def describe_training(
    history: pd.DataFrame, config: TrainConfig, data: DataBundle, facts: Mapping
) -> str:
    """The result of a training run in a few sentences of Markdown.

    history: as of `fit`. facts: those that `fit` records in a run (best_epoch, train_s, frozen_s,
    precision, device)."""
    best = history.set_index("epoch").loc[facts["best_epoch"]]
    labels = data.split("val")["label"]
    recalls = [best[f"val_recall_{name}"] for name in data.classes]
    limit = chance_limit(
        recalls, [int((labels == name).sum()) for name in data.classes], len(history)
    )
    accuracy = best["val_balanced_accuracy"]
    text = (
        f"The best epoch is number {facts['best_epoch']} of {len(history)}, with a validation ROC"
        f" AUC of {best['val_roc_auc']:.3f} and a balanced accuracy of {accuracy:.3f}. Training"
        f" took {facts['train_s']:.0f} s, {facts['frozen_s']:.0f} s of it to read the images and to"
        f" pass them through the frozen stages, in {facts['precision']} on {facts['device']}."
    )
    if accuracy <= limit:
        return (
            f"{text}\n\n**This model is at chance.** With these {len(labels)} validation images,"
            f" the best of {len(history)} epochs of a model that guesses has a balanced accuracy of"
            f" up to {limit:.3f} in {1 - ALPHA:.0%} of cases. Try more epochs, another learning"
            " rate or pretrained weights before you draw conclusions from its results."
        )
    return f"{text} {describe_losses(history, config)}"


def describe_losses(history: pd.DataFrame, config: TrainConfig) -> str:
    """What the two losses show of overfitting; they are only compared where they measure the
    same.
    """
    table = history.set_index("epoch")[["train_loss", "val_loss"]]
    lowest, last = table["val_loss"].idxmin(), table.index[-1]
    if lowest == last:
        return "The validation loss still fell at the end: more epochs may help."
    (train, val), (train_end, val_end) = table.loc[lowest], table.loc[last]
    text = f"The validation loss is lowest after epoch {lowest}"
    if val_end <= (1 + MIN_RISE) * val:
        return f"{text} and hardly changes after that."
    text += f" ({val:.3f}) and {val_end:.3f} at the end"
    changed = [name for name, usual in HARDER.items() if getattr(config, name) != usual]
    if changed:
        names = ", ".join(f"`{name}`" for name in changed)
        return f"{text}. The training loss includes {names}, so the two losses cannot be compared."
    if train_end < train:
        return (
            f"{text}, while the training loss falls from {train:.3f} to {train_end:.3f}: the model"
            f" overfits after epoch {lowest}."
        )
    return (
        f"{text}; the training loss rises as well, so this is not overfitting: try a smaller"
        " learning rate."
    )


def chance_limit(recalls: Sequence[float], counts: Sequence[int], epochs: int = 1) -> float:
    """The balanced accuracy that the best of `epochs` epochs of a model that guesses exceeds in at
    most ALPHA of cases.

    recalls: of each class, from which is estimated how often the model names each class. counts:
    images of each class. A model that guesses names class k with probability q_k for an image of
    any class, so its recalls are binomial shares around q_k. Taking the best of several epochs is
    corrected for by Bonferroni. Drawn with a fixed seed."""
    shares = np.asarray(recalls, dtype=float)
    # guessing: recalls add up to 1
    named = shares / shares.sum() if shares.any() else np.full(len(shares), 1 / len(shares))
    draws = np.random.default_rng(0).binomial(counts, named, (DRAWS, len(named))) / np.asarray(
        counts
    )
    return float(np.quantile(draws.mean(axis=1), 1 - ALPHA / epochs, method="higher"))


def describe_model(model: ModelBundle, data: DataBundle) -> str:
    """The model that is trained and the number of images, in two sentences of Markdown."""
    height, width = model.transform.size
    rows, columns = model.anatomy.grid
    counts = [f"{len(data.split(name)):,} {name}" for name in ("train", "val", "test")]
    return (
        f"**{escape(model.name)}** takes images of {height} × {width} pixels"
        f" ({model.transform.fit}), has {count_parameters(model.module):,} parameters, and works on"
        f" a grid of {rows} × {columns} positions. Images: {', '.join(counts)}."
    )


def recipe_table(config: TrainConfig) -> pd.DataFrame:
    """The training arguments and their values, two of them in a row."""
    rows = [(name, str(value) or "none") for name, value in asdict(config).items()]
    half = (len(rows) + 1) // 2
    right = rows[half:] + [("", "")] * (2 * half - len(rows))
    table = pd.DataFrame([first + second for first, second in zip(rows[:half], right, strict=True)])
    return table.set_axis(["argument", "value", "argument ", "value "], axis=1).set_index(
        "argument"
    )


def describe_imbalance(balance: pd.DataFrame) -> str:
    """How much larger the largest class is than the smallest, and how many images are synthetic.

    balance: of `imbalance_table`."""
    images = balance.set_index("class")["images"]
    ratio = images.max() / max(1, images.min())
    text = (
        f"The largest class, *{escape(images.idxmax())}*, has {ratio:.1f} times as many images as"
        f" the smallest, *{escape(images.idxmin())}*"
    )
    synthetic = balance["synthetic"].sum()
    return f"{text}; {synthetic} images are synthetic." if synthetic else f"{text}."

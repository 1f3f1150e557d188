"""Short trainings on data whose truth is known, for tests of explanations: planted stamps, and
labels that say nothing.
"""

from __future__ import annotations

from vitlab.runs import Run, find_runs
from vitlab.schema import ModelBundle
from vitlab.training.experiment import find_or_train, finetune

# later than the recipes: a stamp is easy to learn
TRAINED_FROM = {"hybrid_vit": "embed", "efficientnet_lite0": "stage6"}
# a stamp must keep its look, and nothing is to be learnt but the images at hand
PLAIN = {"views": 1, "mixup": 0.0}
STAMP = {"epochs": 4}
MEMORY = {"epochs": 4, "ema": 0.0, "monitor": "train_loss"}


def ensure_planted_run(dataset: str, like: ModelBundle, seed: int = 0) -> Run:
    """The newest finished run on `planted:dataset` (`vitlab.data.planted`) of a model like this
    one; else one trained now.

    Like: the same name and options (size, depth, ...), not the same weights. Four epochs of the
    model's recipe on at most 1,000 images, without mixup; of models with a recipe only the last
    stages. Whether the model has learnt to go by the stamp is for
    `vitlab.explain.stamp_effect_table` to say."""
    return _ensure(f"planted:{dataset}", like, seed, STAMP)


def ensure_shuffled_run(dataset: str, like: ModelBundle, seed: int = 0) -> Run:
    """The newest finished run on `shuffled:dataset` (`vitlab.data.planted`) of a model like this
    one; else one trained now.

    Four epochs, judged by the training loss, since nothing but the images themselves can be learnt.
    A small CNN learns them by heart in that time, a transformer does not; either way it has learnt
    nothing true."""
    return _ensure(f"shuffled:{dataset}", like, seed, MEMORY)


def _ensure(dataset: str, like: ModelBundle, seed: int, overrides: dict) -> Run:
    options = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in like.options.items()
    }
    part = {"train_from": TRAINED_FROM[like.name]} if like.name in TRAINED_FROM else {}
    return find_or_train(
        lambda: find_runs(dataset, model=like.name, seed=seed, **options),
        lambda: finetune(dataset, like.name, seed, options=options, **overrides, **PLAIN, **part),
    )

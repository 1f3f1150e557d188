"""Knowledge distillation, and the short training run that recovers a pruned model."""

from __future__ import annotations

import pandas as pd

from vitlab.data import ImageDataset
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training import TrainConfig, fit, recipe
from vitlab.training.devices import join_processes
from vitlab.training.loop import Training
from vitlab.training.loss import build_weight
from vitlab.training.scores import compute_logits, score_logits
from vitlab.training.teacher import ALPHA, TEMPERATURE, Teacher

SHARE_OF_EPOCHS, SHARE_OF_RATE = 0.25, 0.2  # of the model's own recipe


def distill(
    teacher: ModelBundle,
    student: ModelBundle,
    data: DataBundle,
    config: TrainConfig | None = None,
    *,
    temperature: float = TEMPERATURE,
    alpha: float = ALPHA,
) -> pd.DataFrame:
    """Train the student in place, as `fit` does, on the labels and on a teacher of the same
    classes; return its history.

    The loss of a batch is (1 - alpha) x loss of the config + alpha x temperature^2 x KL(teacher ||
    student), both softened by the temperature (Hinton et al. 2015, arXiv 1503.02531). train_loss is
    the sum, all other columns are as of any training run. The teacher is not changed and is shown
    the same views as the student, crop included (arXiv 2106.05237), at its own size and
    normalisation. Where the views are fixed (augment="none", a cached frozen part), its logits are
    computed once and kept in reports/cache; else it runs beside the student. With mixup and CutMix
    its probabilities are mixed as the labels are.

    To measure the student on images that its teacher has not seen, both must be trained on the same
    split. Raises ValueError, before anything is computed, for a teacher of other classes and for
    what does not fit together."""
    chosen = Teacher(teacher, temperature=temperature, alpha=alpha)
    return fit(student, data, config=config, teacher=chosen)


def recovery_recipe(model: str, data: DataBundle | None = None, **overrides) -> TrainConfig:
    """The recipe of a model, shortened: a quarter of its epochs, a fifth of its learning rate, a
    short warm-up; with overrides.

    A cosine from there to zero recovers more than the last, smallest rate (Renda et al. 2020, arXiv
    2003.02389)."""
    usual = recipe(model, data)
    short = {
        "epochs": max(2, round(SHARE_OF_EPOCHS * usual.epochs)),
        "learning_rate": SHARE_OF_RATE * usual.learning_rate,
        "warmup_epochs": 0.25,
    }
    return recipe(
        model,
        data,
        **(short | {name: value for name, value in overrides.items() if value is not None}),
    )


def recover(
    model: ModelBundle,
    data: DataBundle,
    config: TrainConfig | None = None,
    teacher: ModelBundle | None = None,
) -> pd.DataFrame:
    """Fine-tune a pruned model in place, by `recovery_recipe` where no config is given; its
    history, as of `fit`.

    The history begins with a row for epoch 0, before any step. Where no epoch is better than that
    by config.monitor, the model keeps its weights, so recovery never makes it worse on the
    validation images. teacher: the model before pruning, or any other of the same classes, from
    which it learns as in `distill`."""
    config = config or recovery_recipe(model.name, data)
    before = {
        name: tensor.detach().cpu().clone() for name, tensor in model.module.state_dict().items()
    }
    # checks all arguments
    training = Training(model, data, None, config, Teacher(teacher) if teacher else None)
    row = _score(model, data, config)
    training.resume()
    history = training.complete()
    sign = -1 if config.monitor.endswith("loss") else 1
    better = (
        config.monitor not in row
        or (sign * history[config.monitor]).max() > sign * row[config.monitor]
    )
    if not better:
        model.module.load_state_dict(before)
    return pd.concat(
        [pd.DataFrame([row]).reindex(columns=history.columns), history], ignore_index=True
    )


def _score(model: ModelBundle, data: DataBundle, config: TrainConfig) -> dict:
    """The row of the history before any training."""
    state = join_processes()
    images = ImageDataset(data, "val", model.transform)
    logits, labels = compute_logits(
        model.module, images, state.device, rank=state.process_index, processes=state.num_processes
    )
    scores = score_logits(logits, labels, data.classes, build_weight(data, config))
    return {"epoch": 0, "seconds": 0.0, "learning_rate": 0.0, **scores}

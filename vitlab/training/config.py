"""What decides a training run: one frozen dataclass, and the values that suit each registered model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from vitlab.registry import unknown

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """Arguments of `fit`. Build one with `recipe`, which starts from values that suit the model."""

    epochs: int = 12  # most epochs; early stopping may end before
    batch_size: int = 64
    learning_rate: float = 1e-4  # the peak, after warm-up; cosine to zero from there
    weight_decay: float = 0.05  # not on norms, biases, positions and class token
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    class_weights: bool = True  # a rare class weighs more in the loss, so that both count alike
    augment: str = "light"  # none, light or strong: flips, small rotation, crop, colour jitter
    flip: bool = True  # False for what must not be mirrored, such as digits
    mixup: float = 0.0  # alpha of mixup (arXiv 1710.09412); 0 means none
    train_from: str = ""  # first piece (vitlab.models.pieces) that is trained; what lies before is frozen and computed once
    views: int = 1  # versions of each training image that pass the frozen part: the image itself and views - 1 augmented ones
    ema: float = 0.0  # decay of an exponential moving average of the weights, which is then what counts; 0 means none
    clip: float = 1.0  # greatest norm of the gradient
    monitor: str = "val_roc_auc"  # column of the history that chooses the best epoch; a loss is minimised, all else maximised
    patience: int = 6  # epochs without a better value before training stops
    precision: str = "auto"  # fp32, bf16, or auto: bf16 where this device trains faster in it
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "views", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, list(PRECISIONS)))


PARTLY_FROZEN = {"mixup": 0.2, "views": 2, "ema": 0.99, "batch_size": 32, "learning_rate": 1e-3}
RECIPES = {
    "hybrid_vit": PARTLY_FROZEN | {"train_from": "stem.stage4", "epochs": 6},
    "efficientnet_lite0": PARTLY_FROZEN | {"train_from": "stage5", "epochs": 4},
    "vit_scratch": {"epochs": 8, "warmup_epochs": 2.0, "learning_rate": 1e-3},
}


def recipe(model: str, **overrides) -> TrainConfig:
    """The training arguments that suit a model, by name, with `overrides` on top; an override of None changes nothing.

    Models that are not registered get the defaults: full fine-tuning at a small learning rate.
    """
    names = [field.name for field in fields(TrainConfig)]
    for name in overrides:
        if name not in names:
            raise ValueError(unknown("training argument", name, names))
    chosen = {name: value for name, value in overrides.items() if value is not None}
    return replace(TrainConfig(**RECIPES.get(model, {})), **chosen)

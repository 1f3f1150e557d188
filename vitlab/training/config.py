"""What decides a training run: one frozen dataclass, and the values that suit each registered
model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import DataBundle

CHOICES = {
    "strategy": ("full", "linear_probe", "last_blocks", "gradual", "from_stage", "lora"),
    "augment": ("none", "light", "strong"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "tracker": ("", "tensorboard", "trackio", "wandb"),
    "class_weights": ("none", "balanced", "effective"),
    "resample": ("none", "oversample", "undersample", "smote", "groups"),
    "synthetic": ("none", "fourier"),
}
AT_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "accumulation": 1,
    "views": 1,
    "patience": 1,
    "last_blocks": 0,
    "unfreeze_every": 1,
    "lora_rank": 1,
}
# within 0..1
SHARES = ("layer_decay", "label_smoothing", "ema", "class_weights_beta", "synthetic_share")
NOT_NEGATIVE = (
    "weight_decay",
    "warmup_epochs",
    "mixup",
    "cutmix",
    "mixup_rare",
    "focal_gamma",
    "clip",
    "checkpoint_minutes",
)


def setting(default, meaning: str):
    """A field of `TrainConfig`: its default, and its meaning for help texts and `list_options`."""
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class TrainConfig:
    """Arguments of `fit`. Build one with `recipe`, which starts from values that suit the model."""

    strategy: str = setting(
        "full", "what is trained: full, linear_probe, last_blocks, gradual, from_stage or lora"
    )
    epochs: int = setting(12, "most epochs; early stopping may end before")
    batch_size: int = setting(64, "images per step of the optimizer, over all devices and parts")
    learning_rate: float = setting(
        1e-4, "its peak, after warm-up; from there it falls to zero as a cosine"
    )
    augment: str = setting(
        "light", "none, light or strong: flips, small rotation, crop, colour jitter"
    )
    seed: int = setting(0, "of the batch order, augmentation, dropout and mixup")
    last_blocks: int = setting(
        1, "last_blocks: how many are trained; gradual: how many in the end, 0 for the whole model"
    )
    train_from: str = setting(
        "", "from_stage: the first stage that is trained, a name from the model's table of stages"
    )
    unfreeze_every: int = setting(1, "gradual: epochs after which one more block is trained")
    lora_rank: int = setting(8, "lora: rank of the matrices that each linear layer learns")
    cache: bool = setting(
        True, "compute what is frozen once and keep it on disk; False: in every epoch"
    )
    views: int = setting(
        1, "cached versions of each training image: the image itself and views - 1 augmented ones"
    )
    flip: bool = setting(
        True, "mirror images; False for what must not be mirrored, such as digits (by data set)"
    )
    mixup: float = setting(0.0, "alpha of mixup (arXiv 1710.09412); 0 for none")
    cutmix: float = setting(
        0.0, "alpha of CutMix (arXiv 1905.04899); 0 for none; with mixup, each step takes one"
    )
    label_smoothing: float = setting(0.0, "share of the target spread over all classes")
    accumulation: int = setting(
        1, "parts in which each batch is computed one after the other, to save memory"
    )
    layer_decay: float = setting(
        1.0, "factor on the learning rate for each layer further from the head (arXiv 2106.08254)"
    )
    weight_decay: float = setting(0.05, "not on norms, biases, positions and class token")
    warmup_epochs: float = setting(1.0, "epochs in which the learning rate rises")
    clip: float = setting(1.0, "largest norm of the gradient; 0 for no limit")
    ema: float = setting(
        0.0, "decay of a moving average of the weights, which then replaces them; 0 for none"
    )
    class_weights: str = setting(
        "balanced",
        "weights of the classes in the loss: none, balanced (all count alike), effective",
    )
    class_weights_beta: float = setting(
        0.999, "of effective (arXiv 1901.05555): 0 is no weights, towards 1 is balanced"
    )
    focal_gamma: float = setting(
        0.0, "focal loss (arXiv 1708.02002): confident predictions count less; 0: cross-entropy"
    )
    resample: str = setting(
        "none",
        "equal classes in each epoch: none, oversample, undersample, smote (linear_probe), or"
        " groups: equal classes within each group (arXiv 2110.14503)",
    )
    soft_labels: bool = setting(
        False, "train towards the columns prob_<class> of the data instead of the label"
    )
    mixup_rare: float = setting(
        0.0, "alpha of mixup between two images of the same rare class; 0 for none"
    )
    synthetic: str = setting("none", "synthetic training images of rare classes: none or fourier")
    synthetic_share: float = setting(
        0.5, "size to which synthetic images bring a rare class, as a share of the largest class"
    )
    precision: str = setting(
        "auto", "fp32, bf16, fp16 (GPU), or auto: bf16 where this device trains faster in it"
    )
    gradient_checkpointing: bool = setting(
        False, "compute activations again in the backward pass instead of keeping them"
    )
    channels_last: bool = setting(True, "the memory layout in which convolutions are fastest")
    compile: bool = setting(False, "torch.compile: worth it on a GPU and over many epochs")
    monitor: str = setting(
        "val_roc_auc",
        "column of the history that chooses the best epoch: its highest value, or lowest loss",
    )
    patience: int = setting(6, "epochs without a better value before training stops")
    checkpoint_minutes: float = setting(
        0.0, "time between checkpoints; 0: one at the end of each epoch"
    )
    tracker: str = setting(
        "", "log to tensorboard, trackio or wandb as well (extra: vitlab[tracking])"
    )

    def __post_init__(self):
        for argument in fields(self):
            value, kind = getattr(self, argument.name), type(argument.default)
            if not (type(value) is kind or (kind is float and type(value) is int)):
                raise UserError(
                    f"{argument.name} must be of type {kind.__name__}, like {argument.default!r},"
                    f" not {value!r}"
                )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(
                    unknown(name, getattr(self, name), [repr(choice) for choice in choices])
                )
        for name, least in AT_LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative; it is {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate must be above 0, not {self.learning_rate}")
        if self.layer_decay == 0 or self.ema == 1:
            raise UserError("layer_decay must be above 0, and ema below 1: else nothing is learnt")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch_size {self.batch_size} cannot be computed in {self.accumulation} equal"
                " parts (accumulation)"
            )
        self._check_imbalance()
        if bool(self.train_from) != (self.strategy == "from_stage"):
            raise UserError(
                f"train_from={self.train_from!r} does not go with strategy={self.strategy!r}; "
                "write strategy='from_stage' with the name of a stage, or leave train_from empty"
            )

    def _check_imbalance(self):
        if self.class_weights_beta == 1:
            raise UserError(
                "class_weights_beta must be below 1, such as 0.999; at 1, write"
                " class_weights='balanced' instead"
            )
        if self.resample != "none" and self.class_weights != "none":
            raise UserError(
                f"resample={self.resample!r} makes the classes equal already, and"
                f" class_weights={self.class_weights!r} would do it a second time: write"
                " class_weights='none' with it, or resample='none'"
            )
        if self.resample == "smote" and not (self.strategy == "linear_probe" and self.cache):
            raise UserError(
                "resample='smote' mixes features that never change, so it needs"
                f" strategy='linear_probe' and cache=True, not strategy={self.strategy!r} and"
                f" cache={self.cache}; write these, or resample='oversample'"
            )
        if self.resample == "smote" and self.mixup_rare:
            raise UserError(
                "resample='smote' mixes within the rare classes already; write mixup_rare=0 with it"
            )
        made = self.synthetic != "none" or self.resample == "smote" or self.mixup_rare > 0
        if self.soft_labels and made:
            raise UserError(
                "soft_labels are known for real images only; write synthetic='none', mixup_rare=0"
                " and no resample='smote' with it"
            )
        if self.resample == "groups" and self.synthetic != "none":
            raise UserError(
                "resample='groups' knows the groups of real images only; write synthetic='none'"
            )
        if self.synthetic != "none" and self.synthetic_share == 0:
            raise UserError(
                f"synthetic={self.synthetic!r} with synthetic_share=0 makes no image; write a share"
                " such as 0.5"
            )


PARTLY_FROZEN = {
    "strategy": "from_stage",
    "mixup": 0.2,
    "views": 2,
    "ema": 0.99,
    "batch_size": 32,
    "learning_rate": 1e-3,
}
RECIPES = {
    "hybrid_vit": PARTLY_FROZEN | {"train_from": "stem.stage4", "epochs": 6},
    "efficientnet_lite0": PARTLY_FROZEN | {"train_from": "stage5", "epochs": 4},
    "vit_tiny_vitlab": {"batch_size": 32, "epochs": 6, "learning_rate": 5e-4, "layer_decay": 0.8},
    "vit_scratch": {"epochs": 8, "warmup_epochs": 2.0, "learning_rate": 1e-3},
}
PRESETS = ("quick", "standard", "thorough")
# quick, for a model without a recipe: only the head, on features computed once
PROBE = {
    "strategy": "linear_probe",
    "train_from": "",
    "epochs": 20,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "views": 1,
}
# pixels, training images: vit_scratch is fitted to sets of so small and so few images
SMALL_SIDE, FEW_IMAGES = 48, 5_000
# input size, batch size, and steps of the optimizer at the least
SMALL_SIZE, SMALL_BATCH, SMALL_STEPS = 48, 32, 600


def training_arguments() -> list[str]:
    """The names of all arguments of `TrainConfig`."""
    return [argument.name for argument in fields(TrainConfig)]


def recipe(
    model: str, data: DataBundle | None = None, preset: str = "standard", **overrides
) -> TrainConfig:
    """The training arguments that suit a model, by name, and a data set; `overrides` come first,
    but None changes nothing.

    preset: "quick" for a first answer (half the epochs and one view; a linear probe of models
    without a recipe), "thorough" for three times the epochs, and twice the views and the patience.
    Models without a recipe get the defaults: full fine-tuning at a small learning rate. Images that
    must not be mirrored (`data.flip`) are not; vit_scratch trains longer on small images (see
    `fit_options`). Another `strategy` than the recipe's drops the recipe's `train_from`, a
    `train_from` alone means strategy="from_stage", and a `resample` alone means
    class_weights="none".

    >>> import vitlab
    >>> vitlab.recipe("vit_scratch", epochs=3).epochs
    3
    """
    for name in overrides:
        if name not in training_arguments():
            raise UserError(unknown("training argument", name, training_arguments()))
    chosen = {name: value for name, value in overrides.items() if value is not None}
    if "strategy" in chosen:
        chosen = {"train_from": ""} | chosen
    elif chosen.get("train_from"):
        chosen["strategy"] = "from_stage"
    if chosen.get("resample", "none") != "none":
        chosen = {"class_weights": "none"} | chosen
    usual = RECIPES.get(model, {})
    if data is not None and not data.flip:
        usual = usual | {"flip": False}
    if data is not None and _is_fitted(model, data):
        batch_size = chosen.get("batch_size", SMALL_BATCH)
        steps = max(1, len(data.split("train")) // batch_size)
        usual = usual | {
            "batch_size": batch_size,
            "epochs": max(usual["epochs"], -(-SMALL_STEPS // steps)),
        }
    config = TrainConfig(**usual)
    probe = model not in RECIPES and "strategy" not in chosen
    return replace(config, **(_preset_changes(preset, config, probe) | chosen))


def _preset_changes(preset: str, config: TrainConfig, probe: bool) -> dict:
    """What a preset changes in the recipe. probe: whether quick trains only the head."""
    if preset == "standard":
        return {}
    if preset == "quick":
        epochs = math.ceil(config.epochs / 2)
        shorter = {"epochs": epochs, "warmup_epochs": min(config.warmup_epochs, epochs / 4)}
        return PROBE if probe else {**shorter, "views": 1}
    if preset == "thorough":
        views = 2 * config.views if config.views > 1 else 1
        return {"epochs": 3 * config.epochs, "views": views, "patience": 2 * config.patience}
    raise UserError(unknown("preset", preset, list(PRESETS)))


def fit_options(model: str, data: DataBundle, options: Mapping) -> dict:
    """Options of `build_model`, for vit_scratch on small images with an input size near theirs
    where none is given.

    At 96 pixels, which suits photographs, an epoch on 8x8 digits takes four times as long and
    teaches no more."""
    given = {"size", "patch_size"} & set(options)
    return {**options, **({"size": SMALL_SIZE} if not given and _is_fitted(model, data) else {})}


def _is_fitted(model: str, data: DataBundle) -> bool:
    train = data.split("train")
    return (
        model == "vit_scratch"
        and len(train) <= FEW_IMAGES
        and max(data.read(train["sample_id"].iloc[0]).size) <= SMALL_SIDE
    )

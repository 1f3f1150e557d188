"""What decides a training run: one frozen dataclass, and the values that suit each registered
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import DataBundle

CHOICES = {
    "strategy": ("full", "linear_probe", "last_blocks", "gradual", "from_stage"),
    "augment": ("none", "light", "strong"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "tracker": ("", "tensorboard", "trackio", "wandb"),
    "class_weights": ("none", "balanced", "effective"),
    "resample": ("none", "oversample", "undersample", "smote"),
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


@dataclass(frozen=True)
class TrainConfig:
    """Arguments of `fit`. Build one with `recipe`, which starts from values that suit the model."""

    epochs: int = 12  # most epochs; early stopping may end before
    batch_size: int = 64  # images behind one step of the optimizer, over all devices and parts
    # parts in which each batch is computed one after the other: less memory, the same step
    accumulation: int = 1
    learning_rate: float = 1e-4  # the peak, after warm-up; cosine to zero from there
    # factor on the learning rate for each layer further from the head (arXiv 2106.08254, appendix)
    layer_decay: float = 1.0
    weight_decay: float = 0.05  # not on norms, biases, positions and class token
    warmup_epochs: float = 1.0
    clip: float = 1.0  # greatest norm of the gradient; 0 means no limit
    # what is trained: full, linear_probe, last_blocks, gradual or from_stage
    strategy: str = "full"
    # last_blocks: how many, with all that follows; gradual: how many in the end (0 means the whole
    # model)
    last_blocks: int = 1
    train_from: str = ""  # from_stage: the first stage (vitlab.models.split_stages) that is trained
    unfreeze_every: int = 1  # gradual: epochs after which one more block is trained
    # compute what is frozen once, and keep it on disk; False computes it in every epoch
    cache: bool = True
    # cached versions of each training image: the image itself and views - 1 augmented ones
    views: int = 1
    augment: str = "light"  # none, light or strong: flips, small rotation, crop, colour jitter
    # False for what must not be mirrored, such as digits; recipes follow the data set
    flip: bool = True
    mixup: float = 0.0  # alpha of mixup (arXiv 1710.09412); 0 means none
    # alpha of CutMix (arXiv 1905.04899); 0 means none; with mixup, each step takes one of the two
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    # weights in the loss from the classes' sizes: none, balanced (all count alike) or effective
    class_weights: str = "balanced"
    # of effective (arXiv 1901.05555): 0 is no weights, towards 1 is balanced
    class_weights_beta: float = 0.999
    # focal loss (arXiv 1708.02002): what is recognised well counts less; 0 is cross-entropy
    focal_gamma: float = 0.0
    # equal classes in each epoch: none, oversample, undersample, or smote (linear probe)
    resample: str = "none"
    # alpha of mixup between two images of the same rare class, whose label stays; 0 means none
    mixup_rare: float = 0.0
    # images made of training images of rare classes (vitlab.data.add_synthetic): none or fourier
    synthetic: str = "none"
    # size that synthetic images bring a rare class to, as a share of the largest class
    synthetic_share: float = 0.5
    # decay of an exponential moving average of the weights, which is then what counts; 0 means none
    ema: float = 0.0
    # fp32, bf16, fp16 (GPU), or auto: bf16 where this device trains faster in it
    precision: str = "auto"
    # compute activations again in the backward pass instead of keeping them
    gradient_checkpointing: bool = False
    channels_last: bool = True  # memory layout that convolutions are fastest in
    compile: bool = False  # torch.compile: pays on a GPU and over many epochs
    # column of the history that chooses the best epoch; a loss is minimised, all else maximised
    monitor: str = "val_roc_auc"
    patience: int = 6  # epochs without a better value before training stops
    # time between checkpoints; 0 means one at the end of each epoch
    checkpoint_minutes: float = 0.0
    tracker: str = ""  # log to tensorboard, trackio or wandb as well (extra: vitlab[tracking])
    seed: int = 0

    def __post_init__(self):
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if not (type(value) is kind or (kind is float and type(value) is int)):
                raise UserError(
                    f"{field.name} must be of type {kind.__name__}, like {field.default!r}, not"
                    f" {value!r}"
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
# pixels, training images: vit_scratch is fitted to sets of so small and so few images
SMALL_SIDE, FEW_IMAGES = 48, 5_000
# input size, batch size, and steps of the optimizer at the least
SMALL_SIZE, SMALL_BATCH, SMALL_STEPS = 48, 32, 600


def training_arguments() -> list[str]:
    """The names of all arguments, as notebook 03 has them for parameters."""
    return [field.name for field in fields(TrainConfig)]


def check_arguments(parameters: Mapping[str, object]) -> None:
    """UserError where the training arguments among these parameters of a notebook (with `model`) do
    not fit together.
    """
    recipe(
        parameters["model"],
        **{name: parameters[name] for name in training_arguments() if name in parameters},
    )


def recipe(model: str, data: DataBundle | None = None, **overrides) -> TrainConfig:
    """The training arguments that suit a model, by name, and a data set; `overrides` come first,
    but None changes nothing.

    Models that are not registered get the defaults: full fine-tuning at a small learning rate.
    Images that must not be mirrored (`data.flip`) are not; vit_scratch trains longer on small
    images (see `fit_options`). Another `strategy` than the recipe's drops the recipe's
    `train_from`, a `train_from` alone means strategy="from_stage", and a `resample` alone means
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
    return replace(TrainConfig(**usual), **chosen)


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

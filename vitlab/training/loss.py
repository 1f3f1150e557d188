"""The loss of a batch, and the record of an epoch's losses that notices when they are no longer
numbers.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from vitlab.data.balance import class_weights
from vitlab.errors import UserError
from vitlab.schema import DataBundle
from vitlab.training.config import TrainConfig
from vitlab.training.teacher import Teacher


def build_loss(
    data: DataBundle, config: TrainConfig, device, teacher: Teacher | None = None
) -> Loss:
    """The loss that a config asks for, and a teacher."""
    weight = build_weight(data, config)
    weight = None if weight is None else weight.to(device)
    return Loss(len(data.classes), config, weight, teacher)


def build_weight(data: DataBundle, config: TrainConfig) -> torch.Tensor | None:
    """The weight of each class in the loss (K,), 1 on average over the training images; None where
    all are 1.
    """
    if config.class_weights == "none":
        return None
    labels = data.split("train")["label"]
    values = class_weights(labels, data.classes, config.class_weights, config.class_weights_beta)
    return torch.tensor(values, dtype=torch.float32)


def soft_targets(data: DataBundle) -> torch.Tensor:
    """The columns prob_<class> of the training images, (N, K); UserError where they are missing."""
    columns = [f"prob_{name}" for name in data.classes]
    missing = [name for name in columns if name not in data.samples]
    if missing:
        raise UserError(f"soft_labels: {data.name} has no column {missing[0]}")
    return torch.as_tensor(data.split("train")[columns].to_numpy(float), dtype=torch.float32)


class Loss:
    """Mean cross entropy or focal loss of a batch against its labels; with class weights,
    smoothing, mixup, CutMix. With a teacher: (1 - alpha) x this + alpha x temperature^2 x
    KL(teacher || student), both softened by the temperature (arXiv 1503.02531).

    Called with (module, inputs, labels, teacher_logits). The sum is divided by the number of
    images: the loss of a
    batch is the mean of the losses of its parts, on however many devices they are computed."""

    def __init__(
        self,
        num_classes: int,
        config: TrainConfig,
        weight: torch.Tensor | None = None,
        teacher: Teacher | None = None,
    ):
        self.num_classes, self.config, self.weight = num_classes, config, weight
        self.teacher = teacher
        mixers = [v2.MixUp(alpha=config.mixup)] if config.mixup else []
        mixers += [v2.CutMix(alpha=config.cutmix)] if config.cutmix else []
        self.mixer = v2.RandomChoice(mixers) if mixers else None

    def __call__(
        self,
        module,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        teacher_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        inputs, shares = self.mix(inputs)
        logits = module(inputs)
        loss = self.score(logits, self.spread(labels, shares))
        if teacher_logits is None:
            return loss
        temperature, alpha = self.teacher.temperature, self.teacher.alpha
        targets = (teacher_logits / temperature).softmax(dim=1)
        targets = targets if shares is None else shares @ targets
        softened = (logits.float() / temperature).log_softmax(dim=1)
        divergence = F.kl_div(softened, targets, reduction="batchmean")
        return (1 - alpha) * loss + alpha * temperature**2 * divergence

    def mix(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Inputs as mixup or CutMix mix them, and how much of image j is in mixture i: (B, B), rows
        sum to 1; else None.
        """
        if not self.mixer:
            return inputs, None
        if self.config.cutmix and inputs.ndim != 4:
            raise UserError(
                "CutMix needs images or feature maps, and what is trained here takes tokens"
                f" {tuple(inputs.shape)}: use mixup instead, or train the whole model"
            )
        # mixup only asks for four axes
        images = inputs if inputs.ndim == 4 else inputs.flatten(1)[:, :, None, None]
        mixed, shares = self.mixer(images, torch.eye(len(inputs), device=inputs.device))
        return mixed if inputs.ndim == 4 else mixed.reshape(inputs.shape), shares

    def spread(self, labels: torch.Tensor, shares: torch.Tensor | None) -> torch.Tensor:
        """Targets (B, num_classes) of labels (B,), or such targets, mixed as the inputs were."""
        soft = labels.ndim == 2
        targets = labels if soft else F.one_hot(labels, self.num_classes).float()
        return targets if shares is None else shares @ targets

    def score(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of logits against targets, both (B, num_classes)."""
        logits, smoothing = logits.float(), self.config.label_smoothing
        if self.config.focal_gamma:
            targets = targets * (1 - smoothing) + smoothing / self.num_classes
            return focal_loss(logits, targets, self.config.focal_gamma, self.weight)
        return F.cross_entropy(logits, targets, weight=self.weight, label_smoothing=smoothing)


def focal_loss(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the batch of the sum over classes of target x weight x (1 - p)^gamma x -log p
    (arXiv 1708.02002).

    logits, targets: (B, num_classes), the targets being shares of each class, as mixup makes them.
    gamma 0 is cross-entropy."""
    log_p = logits.log_softmax(dim=1)
    losses = targets * (-torch.expm1(log_p)).clamp_min(1e-12) ** gamma * -log_p
    return (losses if weight is None else losses * weight).sum(dim=1).mean()


class DivergenceError(UserError, FloatingPointError):
    """The training diverged: its numbers are NaN or infinite. Made by `diverged`."""


def diverged(what: str, epoch: int, learning_rate: float, further: str = "") -> DivergenceError:
    return DivergenceError(
        f"{what} in epoch {epoch} at learning rate {learning_rate:.1e}. Try a learning_rate ten"
        " times smaller, clip=1.0, or precision='fp32'; the weights of the last checkpoint are"
        f" kept.{further and ' ' + further}"
    )


class LossRecord:
    """Losses of an epoch, read from the device one step late, so that a GPU need not wait for the
    processor.

    `add` raises DivergenceError, with what is known of the batch, when the loss of the step before
    was NaN or infinite."""

    def __init__(self, data: DataBundle, values: list[float] | None = None):
        self.sample_ids = data.split("train")["sample_id"].to_numpy()
        self.values: list[float] = list(values or [])
        self._pending: list[tuple] = []

    def add(
        self, loss: torch.Tensor, positions: torch.Tensor, epoch: int, learning_rate: float
    ) -> None:
        self._pending.append((loss, positions, epoch, learning_rate))
        self._read(keep=1 if loss.device.type == "cuda" else 0)

    def mean(self) -> float:
        """Over all steps so far."""
        self._read()
        return sum(self.values) / len(self.values)

    def _read(self, keep: int = 0) -> None:
        while len(self._pending) > keep:
            loss, positions, epoch, learning_rate = self._pending.pop(0)
            value = loss.item()
            if not -torch.inf < value < torch.inf:
                # rows that SMOTE made come after the images
                known = positions[positions < len(self.sample_ids)]
                names = self.sample_ids[known.cpu().numpy()]
                samples = f"Samples of the batch: {', '.join(names[:8])}"
                raise diverged(f"the loss became {value}", epoch, learning_rate, samples)
            self.values.append(value)

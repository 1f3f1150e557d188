"""Knowledge distillation: a student learns from the labels and from a trained teacher's
probabilities for the same views.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from vitlab.compress.teacher import Teacher, WithTeacher, check_same_views
from vitlab.errors import UserError
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training import TrainConfig, fit
from vitlab.training.loss import build_loss
from vitlab.training.objective import Objective
from vitlab.training.stage import Stage

TEMPERATURE, ALPHA = 2.0, 0.5


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
    return fit(
        student,
        data,
        config=config,
        loss=Distillation(teacher, temperature=temperature, alpha=alpha),
    )


class Distillation(Objective):
    """The loss of `distill`, for `fit(..., loss=Distillation(teacher, ...))`."""

    def __init__(
        self, teacher: ModelBundle, *, temperature: float = TEMPERATURE, alpha: float = ALPHA
    ):
        if not 0 <= alpha <= 1:
            raise UserError(
                f"alpha={alpha} is the teacher's share in the loss; choose between 0 and 1"
            )
        if temperature <= 0:
            raise UserError(
                f"temperature must be above 0, not {temperature}; 1 leaves the teacher's"
                " probabilities as they are"
            )
        self.teacher, self.temperature, self.alpha = teacher, float(temperature), float(alpha)

    def describe(self) -> dict:
        weights = hashlib.sha256()
        for tensor in self.teacher.module.state_dict().values():
            weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        own = {"temperature": self.temperature, "alpha": self.alpha}
        return {
            "distillation": {
                "teacher": self.teacher.name,
                "teacher_weights": weights.hexdigest()[:16],
                **own,
            }
        }

    def prepare(
        self, model: ModelBundle, data: DataBundle, config: TrainConfig, border: int
    ) -> None:
        check_teacher(self.teacher, model)
        check_same_views(self.teacher.transform, model.transform, config)
        if config.resample == "smote" or config.mixup_rare:
            name = "mixup_rare" if config.mixup_rare else "resample"
            raise UserError(
                f"{name}={getattr(config, name)!r} makes images that the teacher is not shown;"
                " leave it out"
            )
        self.student = model

    def build(
        self, data: DataBundle, config: TrainConfig, device: torch.device
    ) -> Callable[..., torch.Tensor]:
        self.front = Teacher(self.teacher, config.precision, device)
        self.labels = build_loss(data, config, device)
        return self.compute_loss

    def extend(self, train_set: Dataset, stage: Stage) -> Dataset:
        both = WithTeacher(train_set, self.front, self.student.transform, stage)
        self.live = both.live
        return both

    def compute_loss(
        self, student: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, more: torch.Tensor
    ) -> torch.Tensor:
        """The loss of a batch; more: the teacher's images (B, 3, h, w), or its logits (B,
        num_classes).
        """
        teacher_logits = self.front(more) if self.live else more.to(inputs.device)
        inputs, shares = self.labels.mix(inputs)
        logits = student(inputs)
        targets = (teacher_logits / self.temperature).softmax(dim=1)
        targets = targets if shares is None else shares @ targets
        softened = (logits.float() / self.temperature).log_softmax(dim=1)
        from_teacher = self.temperature**2 * F.kl_div(softened, targets, reduction="batchmean")
        return (1 - self.alpha) * self.labels.score(
            logits, self.labels.spread(labels, shares)
        ) + self.alpha * from_teacher


def check_teacher(teacher: ModelBundle, student: ModelBundle) -> None:
    """ValueError for a teacher that this student cannot learn from."""
    if teacher.classes != student.classes:
        raise UserError(
            f"the teacher {teacher.name} distinguishes {', '.join(teacher.classes)}, and the"
            f" student {student.name} {', '.join(student.classes)}; a teacher must have the"
            " student's classes, in the same order"
        )
    own = {id(parameter) for parameter in student.module.parameters()}
    if any(id(parameter) in own for parameter in teacher.module.parameters()):
        raise UserError(
            "teacher and student are the same module, which would change during training; pass a"
            " deepcopy as teacher"
        )

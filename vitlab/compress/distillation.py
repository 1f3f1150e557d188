"""Knowledge distillation: a student learns from the labels and from what a trained teacher says of the same views."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch
from timm.layers import PatchDropout
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from vitlab.compress.inside import Reader, find_attention_layer, find_feature_layer, has_distillation_token
from vitlab.compress.teacher import Teacher, TeacherOutputs, WithTeacher, check_same_views
from vitlab.errors import UserError
from vitlab.models import build_model
from vitlab.models.anatomy import evaluating
from vitlab.runs import Run
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training import TrainConfig, fit, recipe, split_model
from vitlab.training.devices import join_processes
from vitlab.training.loss import build_loss
from vitlab.training.objective import Objective
from vitlab.training.stage import Stage

TEMPERATURE, ALPHA = 2.0, 0.5


def distill(
    teacher: ModelBundle,
    student: ModelBundle,
    data: DataBundle,
    run: Run | None = None,
    config: TrainConfig | None = None,
    *,
    temperature: float = TEMPERATURE,
    alpha: float = ALPHA,
    hard: bool = False,
    features: float = 0.0,
    attention: float = 0.0,
    views: int = 0,
    on_epoch: Callable[[dict], None] | None = None,
) -> pd.DataFrame:
    """Train the student in place, as `fit` does, on the labels and on a teacher of the same classes; return its history.

    The loss of a batch is (1 - alpha) x loss of the config + alpha x temperature^2 x KL(teacher || student), both softened by
    the temperature (Hinton et al. 2015, arXiv 1503.02531), + features x and attention x the losses of `Distillation`. train_loss
    is the sum, all other columns are as of any training. The teacher is not changed and is shown the same views as the student,
    crop included (arXiv 2106.05237), at its own size and normalisation. Where the views are fixed (augment="none", a cached
    frozen part), its outputs are computed once and kept in reports/cache; else it runs beside the student.

    hard: cross-entropy to the teacher's most probable class in place of the softened one (arXiv 2012.12877, section 4).
    views: where the whole student is trained with augmentation, show this many fixed versions of each image, so that a slow
        teacher runs that often and no more; 0 shows a new one in each epoch.

    The class head of a student with a distillation token (deit_*_distilled) learns from the labels, the other from the teacher.
    To judge the student by images that its teacher has not seen, both must be trained on the same split.
    Raises ValueError, before anything is computed, for a teacher of other classes and for what does not fit together.
    """
    arguments = {"temperature": temperature, "alpha": alpha, "hard": hard, "features": features, "attention": attention}
    objective = Distillation(teacher, **arguments, views=views)
    history = fit(student, data, run, config, loss=objective, on_epoch=on_epoch)
    if run and join_processes().is_main_process:
        run.record(**objective.describe())
    return history


def born_again(
    teacher: ModelBundle,
    data: DataBundle,
    run: Run | None = None,
    config: TrainConfig | None = None,
    *,
    seed: int | None = None,
    pretrained: bool | None = None,
    **arguments,
) -> tuple[ModelBundle, pd.DataFrame]:
    """A new model of the teacher's architecture that learns from it, and its history (Furlanello et al. 2018, arXiv 1805.04770).

    seed: of the new weights, by default one more than that of the config. pretrained: of `build_model`; None starts from the
    weights that come with the model, where there are any. arguments: of `distill`. For another generation, call it with the
    student as the teacher.
    """
    if teacher.options.get("wrapped"):
        raise UserError(f"{teacher.name} was wrapped, not built by name; build its twin yourself and call distill(teacher, twin)")
    config = config or recipe(teacher.name, data)
    options = {**teacher.options, "size": tuple(teacher.options["size"]), "fit": teacher.transform.fit}
    seed = config.seed + 1 if seed is None else seed
    student = build_model(teacher.name, teacher.classes, pretrained=pretrained, seed=seed, **options)
    student = replace(student, transform=teacher.transform)
    return student, distill(teacher, student, data, run, config, **arguments)


class Distillation(Objective):
    """The loss of `distill`, for `fit(..., loss=Distillation(teacher, ...))`.

    features: weight of the mean squared distance between the teacher's feature map, standardised at each place and brought to
        the student's grid, and the student's, mapped to as many channels by a linear layer that is learnt along (FitNets, arXiv
        1412.6550). See `vitlab.compress.inside.find_feature_layer` for where it is taken.
    attention: weight of KL(teacher || student) between the maps of where the tokens that the classifier reads look in the last
        block, means over heads (as in MiniLM, arXiv 2002.10957, which wants the same number of heads).
    With mixup and CutMix the teacher's answers are mixed as the labels are.
    """

    def __init__(
        self,
        teacher: ModelBundle,
        *,
        temperature: float = TEMPERATURE,
        alpha: float = ALPHA,
        hard: bool = False,
        features: float = 0.0,
        attention: float = 0.0,
        views: int = 0,
    ):
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha={alpha} is the teacher's share in the loss of the logits; choose between 0 and 1")
        if temperature <= 0:
            raise UserError(f"temperature must be above 0, not {temperature}; 1 leaves the teacher's probabilities as they are")
        for name, weight in (("features", features), ("attention", attention), ("views", views)):
            if weight < 0:
                raise UserError(f"{name} must not be negative; it is {weight}")
        self.teacher, self.temperature, self.alpha, self.hard = teacher, float(temperature), float(alpha), hard
        self.features, self.attention, self.views = float(features), float(attention), views
        self.student: ModelBundle | None = None

    def describe(self) -> dict:
        names = ("temperature", "alpha", "hard", "features", "attention", "views")
        weights = hashlib.sha256()
        for tensor in self.teacher.module.state_dict().values():
            weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        own = {name: getattr(self, name) for name in names}
        return {"distillation": {"teacher": self.teacher.name, "teacher_weights": weights.hexdigest()[:16], **own}}

    def prepare(self, model: ModelBundle, data: DataBundle, config: TrainConfig, border: int) -> None:
        check_teacher(self.teacher, model)
        check_same_views(self.teacher.transform, model.transform, config)
        if config.resample == "smote" or config.mixup_rare:
            name = "mixup_rare" if config.mixup_rare else "resample"
            raise UserError(f"{name}={getattr(config, name)!r} makes images that the teacher is not shown; leave it out")
        if self.features or self.attention or has_distillation_token(model.module):
            self._check_reading(model, config, border)
        self.student = model

    def _check_reading(self, model: ModelBundle, config: TrainConfig, border: int) -> None:
        for name in ("compile", "gradient_checkpointing"):
            if getattr(config, name):
                raise UserError(f"this distillation looks inside the student, which {name}=True hides; write {name}=False")
        layers = []
        for bundle in (self.teacher, model):
            if self.features:
                layers.append(find_feature_layer(bundle.anatomy)[0])
            if self.attention:
                layers.append(find_attention_layer(bundle.anatomy))
        if not (self.features or self.attention):
            return
        if config.mixup or config.cutmix:
            raise UserError(
                "features and attention of mixed images are no mixture: leave them out, or write mixup=0 and cutmix=0"
            )
        if any(isinstance(part, PatchDropout) and part.prob for part in model.module.modules()):
            raise UserError(f"{model.name} drops patches in training, so its maps have holes; build it with patch_drop_rate=0")
        trained = set(split_model(model.module, border)[1].modules())
        if model.module.get_submodule(layers[-1]) not in trained:
            raise UserError(
                f"the student's {layers[-1]} is frozen, at least in the beginning, and cannot learn the teacher's maps; train "
                "from a piece before it, or write features=0 and attention=0"
            )

    def build(self, data: DataBundle, config: TrainConfig, device: torch.device) -> Callable[..., torch.Tensor]:
        for bundle in (self.teacher, self.student):
            bundle.module.to(device)
        reader = Reader(self.student.module, self.student, bool(self.features), bool(self.attention))
        shapes = _probe(reader, self.student, device)
        grids = [shapes[name][-2:] if name in shapes else None for name in ("features", "attention")]
        self.front = Teacher(self.teacher, TeacherOutputs(self.teacher, *grids), config.precision, device)
        if self.features:
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(config.seed)
                channels = shapes["features"][0], self.front.outputs.shapes["features"][0]
                self.module = nn.ModuleDict({"projection": nn.Conv2d(*channels, kernel_size=1).to(device)})
        self.labels = build_loss(data, config, device)
        return self.compute_loss

    def wrap(self, trained: nn.Module) -> nn.Module:
        return _Student(Reader(trained, self.student, bool(self.features), bool(self.attention)), self.module)

    def extend(self, train_set: Dataset, stage: Stage) -> Dataset:
        both = WithTeacher(train_set, self.front, self.student.transform, stage)
        self.live = both.live
        return both

    def compute_loss(self, student: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        """The loss of a batch; more: the teacher's images (B, 3, h, w), or its outputs (B, K)."""
        told = self.front.outputs.split(self.front(more) if self.live else more.to(inputs.device))
        inputs, shares = self.labels.mix(inputs)
        found = student(inputs)
        loss = (1 - self.alpha) * self.labels.score(
            found.get("label_logits", found["logits"]), self.labels.spread(labels, shares)
        )
        loss = loss + self.alpha * self._score_answers(found.get("teacher_logits", found["logits"]), told["logits"], shares)
        if self.features:
            loss = loss + self.features * F.mse_loss(found["features"].float(), told["features"])
        if self.attention:
            loss = loss + self.attention * _divergence(
                told["attention"].flatten(1), found["attention"].float().flatten(1).clamp_min(1e-8).log()
            )
        return loss

    def _score_answers(self, logits: torch.Tensor, told: torch.Tensor, shares: torch.Tensor | None) -> torch.Tensor:
        if self.hard:
            return F.cross_entropy(logits.float(), self.labels.spread(told.argmax(dim=1), shares))
        targets = (told / self.temperature).softmax(dim=1)
        targets = targets if shares is None else shares @ targets
        return self.temperature**2 * _divergence(targets, (logits.float() / self.temperature).log_softmax(dim=1))


class _Student(nn.Module):
    """A student's outputs, its features mapped to the teacher's width; in one module, so that processes share its gradients."""

    def __init__(self, reader: Reader, module: nn.ModuleDict | None):
        super().__init__()
        self.reader, self.module = reader, module

    def forward(self, inputs) -> dict[str, torch.Tensor]:
        found = self.reader(inputs)
        if "features" in found:
            found["features"] = self.module["projection"](found["features"])
        return found


def check_teacher(teacher: ModelBundle, student: ModelBundle) -> None:
    """ValueError for a teacher that this student cannot learn from."""
    if teacher.classes != student.classes:
        raise UserError(
            f"the teacher {teacher.name} tells apart {', '.join(teacher.classes)}, and the student {student.name} "
            f"{', '.join(student.classes)}; a teacher must have the student's classes, in the same order"
        )
    own = {id(parameter) for parameter in student.module.parameters()}
    if any(id(parameter) in own for parameter in teacher.module.parameters()):
        raise UserError("teacher and student are one module, which would change while it teaches; pass a deepcopy as teacher")


@torch.no_grad()
def _probe(reader: Reader, model: ModelBundle, device: torch.device) -> dict[str, tuple[int, ...]]:
    """The shapes of what a reader finds in one image."""
    with evaluating(model.module):
        found = reader(torch.zeros(1, len(model.transform.mean), *model.transform.size, device=device))
    return {name: tuple(values.shape[1:]) for name, values in found.items()}


def _divergence(targets: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
    """KL(targets || probabilities), mean over the batch: both (B, N)."""
    return F.kl_div(log_probabilities, targets, reduction="batchmean")

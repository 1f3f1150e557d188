"""The training loop, on Accelerate: one device or many, fp32 or bf16, the frozen part of the model from the cache."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import set_seed
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm.auto import tqdm

from vitlab.data import ImageDataset, build_augmentation, class_weights
from vitlab.models import count_parameters
from vitlab.registry import unknown
from vitlab.runs import Run
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training.config import TrainConfig, recipe
from vitlab.training.frozen import FrozenFeatures, split_model
from vitlab.training.precision import choose_precision

IN_MEMORY = 1_000_000_000  # bytes of decoded images that are kept from epoch to epoch, for each split


def fit(model: ModelBundle, data: DataBundle, run: Run | None = None, config: TrainConfig | None = None) -> pd.DataFrame:
    """Train the model in place and return its history, a row an epoch; the weights of the best epoch are what it ends with.

    Columns: epoch, seconds (since the start), learning_rate, train_loss, val_loss, val_accuracy, val_balanced_accuracy,
    val_roc_auc (one against the rest for more than two classes), and val_recall_<class> for each class.
    With a run, history.csv and the facts of the training are kept there. Raises FloatingPointError, with the sample_ids of the
    batch, when the loss is no longer a number.
    """
    config = config or recipe(model.name)
    columns = _history_columns(data.classes)
    if config.monitor not in columns:
        raise ValueError(unknown("monitor", config.monitor, columns))
    set_seed(config.seed)
    start = time.perf_counter()
    model.module.to(memory_format=torch.channels_last)
    frozen, trained = split_model(model.module, config.train_from)
    model.module.requires_grad_(True)
    frozen.requires_grad_(False)
    train_set, val_set = (_open_split(model, data, split, frozen, config) for split in ("train", "val"))
    frozen_s = time.perf_counter() - start

    AcceleratorState._reset_state(reset_partial_state=True)  # a process may train several models, each in its own precision
    precision = config.precision
    if precision == "auto":
        precision = choose_precision(PartialState().device, training=True)
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no")
    loader = DataLoader(
        train_set,
        batch_size=min(config.batch_size, len(train_set)),
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(config.seed),
    )
    optimizer, schedule = build_optimizer(trained, config, len(loader))
    ema = ModelEmaV3(model.module, decay=config.ema, use_warmup=True) if config.ema else None
    trained, optimizer, loader, schedule = accelerator.prepare(trained, optimizer, loader, schedule)
    judged = split_model(ema.module, config.train_from)[1] if ema else trained
    compute_loss = build_loss(data, config, accelerator.device)

    history, best = [], _Best(config.monitor)
    progress = tqdm(total=config.epochs * len(loader), desc=f"train {model.name}", unit="step", mininterval=1.0)
    for epoch in range(1, config.epochs + 1):
        trained.train()
        losses = []
        for inputs, labels, positions in loader:
            loss = compute_loss(trained, arrange(inputs), labels)
            if not torch.isfinite(loss):
                raise FloatingPointError(_describe_divergence(loss, epoch, schedule, data, positions))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained.parameters(), config.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.update()
            losses.append(loss.item())
            if ema:
                ema.update(model.module, step=progress.n)
        row = {
            "epoch": epoch,
            "seconds": round(time.perf_counter() - start, 1),
            "learning_rate": schedule.get_last_lr()[0],
            "train_loss": sum(losses) / len(losses),
            **score_logits(*compute_logits(judged, val_set, accelerator.device, precision), data.classes),
        }
        history.append(row)
        progress.set_postfix({config.monitor: f"{row[config.monitor]:.3f}"})
        best.see(row, ema.module if ema else model.module)
        if epoch - best.epoch >= config.patience:
            break
    progress.close()
    model.module.load_state_dict(best.state)
    model.module.requires_grad_(True).eval()

    table = pd.DataFrame(history, columns=columns)
    if run:
        run.write_table("history.csv", table)
        run.record(
            best_epoch=best.epoch,
            train_s=round(time.perf_counter() - start, 1),
            frozen_s=round(frozen_s, 1),
            precision=precision,
            device=str(accelerator.device),
            parameters=count_parameters(model.module),
            trained_parameters=count_parameters(accelerator.unwrap_model(trained)),
        )
    return table


class _Best:
    """The epoch with the best value of one column, and its weights. A loss is best when low, all else when high."""

    def __init__(self, column: str):
        self.column, self.sign = column, -1 if column.endswith("loss") else 1
        self.value, self.epoch, self.state = -math.inf, 0, None

    def see(self, row: dict, module: nn.Module) -> None:
        value = self.sign * row[self.column]
        if value > self.value:
            self.value, self.epoch, self.state = value, row["epoch"], copy.deepcopy(module.state_dict())


def arrange(inputs: torch.Tensor) -> torch.Tensor:
    """float32, and (B, C, h, w) with the channels last in memory: several times faster for convolutions, the same numbers."""
    return inputs.float().contiguous(memory_format=torch.channels_last if inputs.ndim == 4 else torch.contiguous_format)


def build_optimizer(module: nn.Module, config: TrainConfig, steps_per_epoch: int):
    """AdamW (arXiv 1711.05101) and its schedule by the step. Weight decay spares norms, biases, positions and class token."""
    spared = [name for name, _ in module.named_parameters() if name.rpartition(".")[2] in ("pos_embed", "cls_token")]
    groups = param_groups_weight_decay(module, config.weight_decay, no_weight_decay_list=spared)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    steps, warmup = config.epochs * steps_per_epoch, round(config.warmup_epochs * steps_per_epoch)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))


def build_loss(data: DataBundle, config: TrainConfig, device) -> Callable:
    """A function (module, inputs, labels) -> cross entropy, with class weights, label smoothing and mixup as configured."""
    num_classes = len(data.classes)
    weight = None
    if config.class_weights:
        weight = torch.tensor(class_weights(data.split("train")["label"], data.classes), dtype=torch.float32, device=device)
    mixup = v2.MixUp(alpha=config.mixup, num_classes=num_classes) if config.mixup else None

    def compute_loss(module, inputs, labels):
        targets = F.one_hot(labels, num_classes).float()  # (B, num_classes)
        if mixup:
            inputs, targets = mixup(inputs, labels)
        logits = module(inputs).float()
        return F.cross_entropy(logits, targets, weight=weight, label_smoothing=config.label_smoothing)

    return compute_loss


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Share of the peak learning rate at a step: a straight line up to 1, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def compute_logits(module, dataset: Dataset, device, precision: str = "fp32") -> tuple[torch.Tensor, np.ndarray]:
    """Logits (N, num_classes) float32 and class indices (N,) of a dataset, in its order."""
    module.eval()
    logits = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for inputs, _, _ in DataLoader(dataset, batch_size=64):
            logits.append(module(arrange(inputs).to(device)).float().cpu())
    return torch.cat(logits), dataset.labels


def score_logits(logits: torch.Tensor, labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """The validation columns of the history."""
    probabilities = logits.softmax(dim=1).numpy()
    predicted = probabilities.argmax(axis=1)
    indices = range(len(classes))
    ranking = probabilities[:, 1] if len(classes) == 2 else probabilities
    return {
        "val_loss": F.cross_entropy(logits, torch.tensor(labels)).item(),
        "val_accuracy": float((predicted == labels).mean()),
        "val_balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "val_roc_auc": roc_auc_score(labels, ranking, multi_class="ovr", labels=indices if len(classes) > 2 else None),
        **dict(
            zip(
                [f"val_recall_{name}" for name in classes],
                recall_score(labels, predicted, labels=indices, average=None, zero_division=0),
                strict=True,
            )
        ),
    }


def _open_split(model, data, split, frozen, config) -> Dataset:
    train = split == "train"
    augment = build_augmentation(config.augment, model.transform.size, flip=config.flip) if train else None
    if len(frozen):
        return FrozenFeatures(data, split, model, frozen, views=config.views if train else 1, augment=augment)
    pixels = 3 * math.prod(model.transform.size) * len(data.split(split))  # bytes
    return ImageDataset(data, split, model.transform, augment, in_memory=pixels < IN_MEMORY)


def _describe_divergence(loss, epoch, schedule, data, positions) -> str:
    sample_ids = data.split("train")["sample_id"].iloc[positions.cpu().numpy()].tolist()
    return (
        f"the loss became {loss.item()} in epoch {epoch} at learning rate {schedule.get_last_lr()[0]:.1e}; lower "
        f"learning_rate or set precision='fp32'. Samples of the batch: {', '.join(sample_ids[:8])}"
    )


def _history_columns(classes) -> list[str]:
    scores = ["val_loss", "val_accuracy", "val_balanced_accuracy", "val_roc_auc", *(f"val_recall_{name}" for name in classes)]
    return ["epoch", "seconds", "learning_rate", "train_loss", *scores]

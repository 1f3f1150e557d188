"""The training loop, on Accelerate: one device or many, fp32 or bf16, the frozen part of the model from the cache."""

from __future__ import annotations

import copy
import math
import time

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
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
    frozen, trained = split_model(model.module, config.train_from)
    model.module.requires_grad_(True)
    frozen.requires_grad_(False)
    train_set, val_set = (_open_split(model, data, split, frozen, config) for split in ("train", "val"))
    cache_s = time.perf_counter() - start

    precision = config.precision
    if precision == "auto":
        precision = _choose_precision(model, train_set, config)
    AcceleratorState._reset_state(reset_partial_state=True)  # a process may train several models, each in its own precision
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no")
    order = torch.Generator().manual_seed(config.seed)
    batch_size = min(config.batch_size, len(train_set))
    loader = DataLoader(train_set, batch_size=batch_size, shuffle=True, drop_last=True, generator=order)
    groups = param_groups_weight_decay(trained, config.weight_decay, no_weight_decay_list=_undecayed(trained))
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    steps, warmup = config.epochs * len(loader), round(config.warmup_epochs * len(loader))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
    ema = ModelEmaV3(model.module, decay=config.ema, use_warmup=True) if config.ema else None
    trained, optimizer, loader, schedule = accelerator.prepare(trained, optimizer, loader, schedule)
    judged = split_model(ema.module, config.train_from)[1] if ema else trained
    weight = torch.tensor(class_weights(data.split("train")["label"], data.classes), dtype=torch.float32, device=accelerator.device)
    mixup = v2.MixUp(alpha=config.mixup, num_classes=len(data.classes)) if config.mixup else None

    history, best, best_state = [], None, None
    progress = tqdm(total=steps, desc=f"train {model.name}", unit="step", mininterval=1.0)
    for epoch in range(1, config.epochs + 1):
        trained.train()
        total = 0.0
        for inputs, labels, positions in loader:
            inputs, targets = inputs.float(), F.one_hot(labels, len(data.classes)).float()
            if mixup:
                inputs, targets = mixup(inputs, labels)
            logits = trained(inputs)
            loss = F.cross_entropy(
                logits.float(), targets, weight=weight if config.class_weights else None, label_smoothing=config.label_smoothing
            )
            if not torch.isfinite(loss):
                ids = data.split("train")["sample_id"].iloc[positions.cpu().numpy()].tolist()
                raise FloatingPointError(
                    f"the loss became {loss.item()} in epoch {epoch} at learning rate {schedule.get_last_lr()[0]:.1e}; "
                    f"lower learning_rate or set precision='fp32'. Samples of the batch: {', '.join(ids[:8])}"
                )
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained.parameters(), config.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if ema:
                ema.update(model.module, step=(epoch - 1) * len(loader) + progress.n % len(loader) + 1)
            total += loss.item()
            progress.update()
        scores = score_logits(*compute_logits(judged, val_set, accelerator.device, precision), data.classes)
        row = {
            "epoch": epoch,
            "seconds": round(time.perf_counter() - start, 1),
            "learning_rate": schedule.get_last_lr()[0],
            "train_loss": total / len(loader),
            **scores,
        }
        history.append(row)
        progress.set_postfix({config.monitor: f"{row[config.monitor]:.3f}"})
        value = -row[config.monitor] if config.monitor.endswith("loss") else row[config.monitor]
        if best is None or value > best[0]:
            best = (value, epoch)
            best_state = copy.deepcopy((ema.module if ema else model.module).state_dict())
        elif epoch - best[1] >= config.patience:
            break
    progress.close()
    model.module.load_state_dict(best_state)
    model.module.requires_grad_(True).eval()

    table = pd.DataFrame(history, columns=columns)
    if run:
        run.write_table("history.csv", table)
        run.record(
            best_epoch=best[1],
            train_s=round(time.perf_counter() - start, 1),
            frozen_s=round(cache_s, 1),
            precision=precision,
            device=str(accelerator.device),
            parameters=count_parameters(model.module),
            trained_parameters=sum(parameter.numel() for group in groups for parameter in group["params"]),
        )
    return table


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
            logits.append(module(inputs.float().to(device)).float().cpu())
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
    if len(frozen):
        dataset = FrozenFeatures(data, split, model, frozen, views=config.views if train else 1, augment=config.augment)
        dataset.view = -1 if train else 0
        return dataset
    augment = build_augmentation(config.augment, model.transform.size) if train else None
    return ImageDataset(data, split, model.transform, augment, in_memory=True)


def _choose_precision(model, train_set, config) -> str:
    _, trial = split_model(copy.deepcopy(model.module), config.train_from)
    device = next(trial.parameters()).device
    batch = torch.stack([item[0] for item in train_set.__getitems__(list(range(min(config.batch_size, len(train_set)))))])
    return choose_precision(trial.train(), batch.float().to(device), training=True)


def _undecayed(trained) -> list[str]:
    """Names of parameters outside layers (positions, class token), which weight decay would only pull towards zero."""
    return [name for name, _ in trained.named_parameters() if name.rpartition(".")[2] in ("pos_embed", "cls_token")]


def _history_columns(classes) -> list[str]:
    scores = ["val_loss", "val_accuracy", "val_balanced_accuracy", "val_roc_auc", *(f"val_recall_{name}" for name in classes)]
    return ["epoch", "seconds", "learning_rate", "train_loss", *scores]

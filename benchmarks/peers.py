"""The other sides of bench_training: a bare PyTorch loop, and Hugging Face's Trainer around the
same model.
"""

from __future__ import annotations

import tempfile
import time

import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vitlab.data import ImageDataset
from vitlab.models import split_stages
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training import TrainConfig, build_optimizer, find_border, split_model
from vitlab.training.order import BatchOrder, warmup_cosine


def bare_loop(model: ModelBundle, data: DataBundle, config: TrainConfig) -> list[float]:
    """What one would write without a library; the losses of all steps."""
    images = ImageDataset(data, "train", model.transform, in_memory=True)
    order = BatchOrder(len(images), config.batch_size, config.seed)
    optimizer = build_optimizer(model.module, config)
    model.module.train()
    losses = []
    for epoch in range(1, config.epochs + 1):
        order.epoch = epoch
        for inputs, labels, _ in DataLoader(images, batch_sampler=order):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * warmup_cosine(
                    len(losses), 0, config.epochs * order.steps
                )
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                logits = model.module(inputs)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.module.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


class ForTrainer(nn.Module):
    """The interface that Trainer asks of a model: a dict with loss and logits."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, images, labels):
        logits = self.module(images).float()
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class InOrder(Trainer):
    """Trainer with the batches of a BatchOrder."""

    def __init__(self, *arguments, order: BatchOrder | None, **options):
        self.order = order
        super().__init__(*arguments, **options)

    def get_train_dataloader(self):
        if self.order is None:
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset, batch_sampler=self.order, collate_fn=self.data_collator
        )


class Watch(TrainerCallback):
    """Keeps the loss of each step, tells the order which epoch it is, and, for a curve, scores the
    model now and then.
    """

    def __init__(self, order, score=None, limit_s: float = float("inf"), every: int = 1):
        self.order, self.score, self.limit_s, self.every = order, score, limit_s, every
        self.losses: list[float] = []
        self.start = time.perf_counter()

    def on_epoch_begin(self, args, state, control, **_):
        if self.order is not None:
            self.order.epoch = int(state.epoch or 0) + 1

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_step_end(self, args, state, control, **_):
        if self.score and (state.global_step % self.every == 0):
            self.score(time.perf_counter() - self.start)
        control.should_training_stop |= time.perf_counter() - self.start > self.limit_s


def collate(items) -> dict[str, torch.Tensor]:
    return {
        "images": torch.stack([item[0] for item in items]),
        "labels": torch.tensor([item[1] for item in items]),
    }


def train_with_trainer(
    model: ModelBundle,
    data: DataBundle,
    config: TrainConfig | None,
    limit_s: float = float("inf"),
    curve: list | None = None,
) -> list[float]:
    """The losses of all steps. config: as for `fit`, frozen parts included; None trains everything
    by Trainer's defaults.
    """
    images = ImageDataset(data, "train", model.transform, in_memory=True)
    order, optimizers = None, (None, None)
    options = {"num_train_epochs": 20}
    if config:
        order = BatchOrder(len(images), config.batch_size, config.seed)
        names = [name for name, _ in split_stages(model.module)]
        frozen, _ = split_model(model.module, find_border(names, config))
        frozen.requires_grad_(False)
        optimizer, steps = build_optimizer(model.module, config), config.epochs * order.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, 0, steps)
        )
        optimizers = (optimizer, schedule)
        options = {
            "num_train_epochs": config.epochs,
            "max_grad_norm": config.clip,
            "bf16": config.precision == "bf16",
        }
        options["per_device_train_batch_size"] = config.batch_size
    watch = Watch(order)
    if curve is not None:
        watch = Watch(
            None,
            lambda seconds: curve.append((seconds, score(model, data))),
            limit_s,
            every=len(images) // 16,
        )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            **options,
        )
        trainer = InOrder(
            ForTrainer(model.module),
            arguments,
            order=order,
            train_dataset=images,
            data_collator=collate,
            optimizers=optimizers,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return watch.losses


def score(model: ModelBundle, data: DataBundle) -> float:
    """Validation ROC AUC."""
    images = ImageDataset(data, "val", model.transform)
    model.module.eval()
    with torch.inference_mode():
        logits = torch.cat(
            [model.module(inputs) for inputs, _, _ in DataLoader(images, batch_size=64)]
        )
    model.module.train()
    return roc_auc_score(images.labels, logits.softmax(dim=1)[:, 1].numpy())

"""The training loop, on Accelerate: one device or several, any precision, the frozen part cached,
resumable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vitlab.errors import Interrupted, UserError
from vitlab.models import count_parameters, split_stages
from vitlab.registry import unknown
from vitlab.runs import Run
from vitlab.schema import DataBundle, ModelBundle
from vitlab.seeds import derive_seed
from vitlab.training.checkpoint import Checkpoints, flatten_optimizer, restore_optimizer
from vitlab.training.config import TrainConfig, recipe
from vitlab.training.devices import (
    GpuWatch,
    count_loader_workers,
    join_processes,
    resolve_precision,
    seed_device,
)
from vitlab.training.live import check_tracker, show_training, tracking
from vitlab.training.lora import add_lora, merge_lora
from vitlab.training.loss import LossRecord, build_loss, build_weight, diverged, soft_targets
from vitlab.training.order import BatchOrder, plan_epoch, warmup_cosine
from vitlab.training.scores import compute_logits, score_columns, score_logits
from vitlab.training.stage import Stage
from vitlab.training.strategy import (
    MovingAverage,
    build_optimizer,
    find_border,
    lowest_border,
    split_model,
)
from vitlab.training.teacher import Teacher

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
NOT_PART_OF_IDENTITY = ("checkpoint_minutes", "tracker")


def fit(
    model: ModelBundle,
    data: DataBundle,
    run: Run | None = None,
    config: TrainConfig | None = None,
    *,
    teacher: Teacher | None = None,
    on_epoch: Callable[[dict], None] | None = None,
    show: bool = True,
) -> pd.DataFrame:
    """Train the model in place and return its history, a row an epoch; the weights of the best
    epoch are what it ends with.

    Columns: epoch, seconds (since the start), learning_rate, train_loss, val_loss (with the class
    weights of the training loss), val_accuracy, val_balanced_accuracy, val_roc_auc (one against the
    rest for more than two classes), val_recall_<class> for each class, and on a GPU its memory and
    utilisation. With a run, history.csv, the facts of the training and its checkpoints are kept
    there, and a training that was broken off carries on from the newest checkpoint. on_epoch:
    called with each row; what it raises ends the training. teacher: a trained model to learn from
    (see `vitlab.compress.distill`). show: a table by epoch in Jupyter, else a progress bar.

    Stopped by Ctrl+C or Jupyter's Stop button, it raises Interrupted, which says how to go on.
    Raises UserError for a config that does not suit model, data or device, before anything is
    computed, and DivergenceError when the loss or an output on validation is no longer a number.

    >>> import vitlab
    >>> data = vitlab.load_dataset("digits")
    >>> model = vitlab.build_model("vit_scratch", data.classes, size=24, embed_dim=48, depth=1)
    >>> history = vitlab.fit(model, data, config=vitlab.recipe("vit_scratch", epochs=1))
    >>> history["epoch"].tolist()
    [1]
    """
    training = Training(model, data, run, config or recipe(model.name, data), teacher)
    training.resume()
    return training.complete(on_epoch, show)


@dataclass
class Progress:
    """How far a training is: all of it that is not a tensor. Epochs count from 1, steps within the
    epoch from 0.
    """

    epoch: int = 1
    step: int = 0  # of this epoch, done
    seconds: float = 0.0  # on the clock, earlier sessions included
    frozen_s: float = 0.0  # of these, for the frozen part
    best_epoch: int = 0
    best_value: float = -math.inf
    losses: list[float] = field(default_factory=list)  # of this epoch
    history: list[dict] = field(default_factory=list)


class Training:
    """A training under way. Its state is the moving tensors, the optimizer and `progress`; all else
    follows from the config.
    """

    def __init__(
        self,
        model: ModelBundle,
        data: DataBundle,
        run: Run | None,
        config: TrainConfig,
        teacher: Teacher | None = None,
    ):
        self.model, self.data, self.run = model, data, run
        self.config, self.teacher = config, teacher
        whole = config.strategy == "full" and not config.gradient_checkpointing
        self.names = ["model"] if whole else [name for name, _ in split_stages(model.module)]
        lowest = self._check_arguments()
        set_seed(config.seed)
        state = join_processes()
        shares = {
            "accumulation": config.accumulation,
            "rank": state.process_index,
            "processes": state.num_processes,
        }
        groups = data.split("train")[data.group_column] if config.resample == "groups" else None
        length, draw = plan_epoch(self._train_labels(), config.resample, groups)
        self.soft = soft_targets(data) if config.soft_labels else None
        self.order = BatchOrder(length, config.batch_size, config.seed, **shares, draw=draw)
        lowest_part = split_model(model.module, lowest)[1]
        self.precision = resolve_precision(config.precision, state.device, lowest_part)
        # a process may train several models, each in its own precision
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=MIXED_PRECISION[self.precision],
            log_with=config.tracker or None,
            project_dir=str(run.path) if run else None,
        )
        model.module.to(state.device)
        if config.channels_last:
            model.module.to(memory_format=torch.channels_last)
        model.module.requires_grad_(False)
        if config.strategy == "lora":
            add_lora(model, config.lora_rank)
        else:
            lowest_part.requires_grad_(True)
        self.moving = _list_tensors(model.module, split_model(model.module, lowest)[1])
        self.trained_parameters = count_parameters(model.module, trainable=True)
        self.compute_loss = build_loss(data, config, state.device, teacher)
        self.optimizer = self.accelerator.prepare_optimizer(
            build_optimizer(self.model.module, self.config)
        )
        self.average = MovingAverage(model.module, config.ema, self.moving) if config.ema else None
        self.best: dict[str, torch.Tensor] = {}
        self.progress, self.watch = Progress(), GpuWatch(state.device)
        self.stage: Stage | None = None
        self.checkpoints = Checkpoints(run.path / "checkpoints", self._identity()) if run else None
        self.columns = [
            "epoch",
            "seconds",
            "learning_rate",
            "train_loss",
            *score_columns(data.classes),
            *self.watch.columns,
        ]

    def resume(self) -> None:
        """Take over the state of the newest checkpoint of the run, if there is one."""
        found = self.checkpoints.load() if self.checkpoints else None
        if not found:
            return
        tensors, progress = found
        self._load(self.model.module, tensors, "model.")
        if self.average:
            self._load(self.average.module, tensors, "average.")
        self.best = {
            name.removeprefix("best."): tensor
            for name, tensor in tensors.items()
            if name.startswith("best.")
        }
        restore_optimizer(self.optimizer.optimizer, tensors, progress.pop("groups"))
        scaler = progress.pop("scaler")
        if scaler:
            self.accelerator.scaler.load_state_dict(scaler)
        self.progress = Progress(**progress)

    def complete(
        self, on_epoch: Callable[[dict], None] | None = None, show: bool = True
    ) -> pd.DataFrame:
        """Train the epochs that are left, put the best weights into the model, and return the
        history.
        """
        start = time.perf_counter() - self.progress.seconds
        main, steps = self.accelerator.is_main_process, self.order.steps
        about = (self.model.name, self.config.monitor, self.config.epochs, steps)
        display = show_training(*about, visible=main and show)
        done = (self.progress.epoch - 1) * steps + self.progress.step
        display.start(done, self.progress.history, self.progress.best_epoch)
        try:
            with tracking(self.accelerator, self.config, self.run) as track:
                while not self._finished():
                    epoch = self.progress.epoch
                    self._open_stage()
                    self._train_epoch(start, display)
                    row = self._score_epoch(start)
                    self._close_epoch(row)
                    display.epoch(row, self.progress.best_epoch)
                    self._save_checkpoint(start)
                    track(row, epoch)
                    if on_epoch:
                        on_epoch(row)
        except KeyboardInterrupt:
            raise Interrupted(self._describe_stop()) from None
        finally:
            display.close()
        self.model.module.load_state_dict(self.best, strict=False)
        merge_lora(self.model.module)
        self.model.module.requires_grad_(True).eval()
        if self.run and main:
            self.run.record(
                best_epoch=self.progress.best_epoch,
                train_s=round(self.progress.seconds, 1),
                frozen_s=round(self.progress.frozen_s, 1),
                precision=self.precision,
                device=str(self.accelerator.device),
                processes=self.accelerator.num_processes,
                parameters=count_parameters(self.model.module),
                trained_parameters=self.trained_parameters,
            )
        return self._write_history()  # here, too: a resumed training may have no epoch left

    def _describe_stop(self) -> str:
        epoch = self.progress.epoch
        if not self.run:
            return f"Stopped in epoch {epoch}. Nothing is kept, since there is no run."
        return (
            f"Stopped in epoch {epoch}. The last checkpoint is kept in {self.run.path}; run the"
            " same again to continue from it."
        )

    def _open_stage(self) -> None:
        """Move the border to where this epoch wants it."""
        border = (
            0
            if self.names == ["model"]
            else find_border(self.names, self.config, self.progress.epoch)
        )
        if self.stage is None or self.stage.border != border:
            began = time.perf_counter()
            self.stage = Stage(
                self.model, self.data, self.config, border, self.accelerator, self.teacher
            )
            self.progress.frozen_s += time.perf_counter() - began

    def _train_epoch(self, start: float, display) -> None:
        config, progress, device = self.config, self.progress, self.accelerator.device
        train_set, trained = self.stage.train_set, self.stage.trained
        train_set.set_epoch(progress.epoch)
        self.order.epoch, self.order.first_step = progress.epoch, progress.step
        workers = 0 if self.stage.cached else count_loader_workers(device)
        loader = DataLoader(
            train_set,
            batch_sampler=self.order,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        losses, saved = LossRecord(self.data, progress.losses), time.perf_counter()
        trained.train()
        self.watch.restart()
        parts, total = [], config.epochs * self.order.steps
        for inputs, labels, positions, *more in loader:
            parts.append(positions)
            if len(parts) == 1:
                step = (progress.epoch - 1) * self.order.steps + progress.step
                rate = warmup_cosine(step, round(config.warmup_epochs * self.order.steps), total)
                for group in self.optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * rate
                # what dropout and mixup draw
                seed_device(device, derive_seed(config.seed, "step", step, self.order.rank))
                loss_sum = torch.zeros((), device=device)
            last = len(parts) == config.accumulation
            with nullcontext() if last else self.accelerator.no_sync(trained):
                # of the teacher, if there is one
                logits = [train_set.ask(column) for column in more]
                labels = labels if self.soft is None else self.soft[positions]
                batch = (self.stage.take(inputs), labels.to(device), *logits)
                loss = self.compute_loss(trained, *batch) / config.accumulation
                self.accelerator.backward(loss)
            loss_sum += loss.detach()
            if not last:
                continue
            if config.clip:
                self.accelerator.clip_grad_norm_(trained.parameters(), config.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            progress.step += 1
            if self.average:
                self.average.update(step + 1)
            losses.add(
                self._mean_over_processes(loss_sum),
                torch.cat(parts),
                progress.epoch,
                config.learning_rate * rate,
            )
            parts.clear()
            self.watch.sample()
            display.step()
            if (
                config.checkpoint_minutes
                and time.perf_counter() - saved > 60 * config.checkpoint_minutes
            ):
                losses.mean()  # reads what is left, and raises where the loss is no longer a number
                progress.losses = losses.values
                self._save_checkpoint(start)
                saved = time.perf_counter()
        losses.mean()
        progress.losses = losses.values

    def _score_epoch(self, start: float) -> dict:
        judged = self.stage.judged(self.average)
        own = {"rank": self.order.rank, "processes": self.order.processes}
        logits, labels = compute_logits(
            judged, self.stage.val_set, self.accelerator.device, self.precision, **own
        )
        if not logits.isfinite().all():
            what = "the outputs for validation images are no longer numbers"
            raise diverged(what, self.progress.epoch, self.config.learning_rate)
        return {
            "epoch": self.progress.epoch,
            "seconds": round(time.perf_counter() - start, 1),
            "learning_rate": max(group["lr"] for group in self.optimizer.param_groups),
            "train_loss": sum(self.progress.losses) / len(self.progress.losses),
            **score_logits(logits, labels, self.data.classes, build_weight(self.data, self.config)),
            **self.watch.row(),
        }

    def _close_epoch(self, row: dict) -> None:
        progress, config = self.progress, self.config
        value = -row[config.monitor] if config.monitor.endswith("loss") else row[config.monitor]
        if value > progress.best_value or not self.best:
            progress.best_value, progress.best_epoch = value, progress.epoch
            self.best = self._snapshot(self.average.module if self.average else self.model.module)
        progress.history.append(row)
        progress.epoch, progress.step, progress.losses = progress.epoch + 1, 0, []
        self._write_history()

    def _write_history(self) -> pd.DataFrame:
        history = pd.DataFrame(self.progress.history, columns=self.columns)
        if self.run and self.accelerator.is_main_process:
            self.run.write_table("history.csv", history)
        return history

    def _finished(self) -> bool:
        done = self.progress.epoch - 1
        stopped = bool(done) and done - self.progress.best_epoch >= self.config.patience
        return done >= self.config.epochs or stopped

    def _save_checkpoint(self, start: float) -> None:
        self.progress.seconds = time.perf_counter() - start
        if not self.checkpoints or not self.accelerator.is_main_process:
            return
        tensors, groups = flatten_optimizer(self.optimizer.optimizer)
        for prefix, state in (
            ("model", self._tensors(self.model.module)),
            ("average", self._tensors(self.average.module) if self.average else {}),
            ("best", self.best),
        ):
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in state.items()}
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        step = (self.progress.epoch - 1) * self.order.steps + self.progress.step
        if not self.checkpoints.save(
            step, tensors, {**asdict(self.progress), "groups": groups, "scaler": scaler}
        ):
            tqdm.write(
                f"no room for a checkpoint in {self.checkpoints.folder}; the training goes on"
                " without it"
            )

    def _mean_over_processes(self, loss: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(loss, reduction="mean") if self.order.processes > 1 else loss

    def _tensors(self, module: nn.Module) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in module.state_dict().items() if name in self.moving}

    def _snapshot(self, module: nn.Module) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._tensors(module).items()}

    def _load(self, module: nn.Module, tensors: dict[str, torch.Tensor], prefix: str) -> None:
        module.load_state_dict(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)},
            strict=False,
        )

    def _identity(self) -> dict:
        arguments = {
            name: value
            for name, value in asdict(self.config).items()
            if name not in NOT_PART_OF_IDENTITY
        }
        return {
            "model": self.model.name,
            "classes": list(self.data.classes),
            "options": self.model.options,
            "data": [
                self.data.name,
                self.data.version,
                derive_seed(*self.data.split("train")["sample_id"]),
            ],
            "arguments": arguments | (self.teacher.describe() if self.teacher else {}),
        }

    def _check_arguments(self) -> int:
        """The lowest border; ValueError for what cannot be trained so."""
        columns = ["train_loss", *score_columns(self.data.classes)]
        if self.config.monitor not in columns:
            raise UserError(unknown("monitor", self.config.monitor, columns))
        if self.model.classes != self.data.classes:
            raise UserError(
                f"the model tells apart {', '.join(self.model.classes)}, but {self.data.name} has"
                f" the classes {', '.join(self.data.classes)}; build the model with data.classes"
            )
        check_tracker(self.config.tracker)
        self._check_imbalance()
        if self.teacher:
            self.teacher.check(self.model, self.config)
        if self.names == ["model"]:
            return 0
        find_border(self.names, self.config)  # raises for what the model does not have
        return lowest_border(self.names, self.config)

    def _check_imbalance(self) -> None:
        config, counts = (
            self.config,
            np.bincount(self._train_labels(), minlength=len(self.data.classes)),
        )
        if config.synthetic != "none" and "synthetic" not in self.data.samples:
            raise UserError(
                f"synthetic={config.synthetic!r}, but {self.data.name} was loaded without synthetic"
                f" images: write data = add_synthetic(data, {config.synthetic!r},"
                f" {config.synthetic_share}, seed) of vitlab.data before"
            )
        if config.resample == "groups" and not self.data.group_column:
            raise UserError(
                f"resample='groups', but {self.data.name} has no groups; write"
                " resample='oversample'"
            )
        if (config.resample == "smote" and counts.min() < 2) or (
            config.resample != "none" and counts.min() < 1
        ):
            name, count = self.data.classes[counts.argmin()], counts.min()
            raise UserError(
                f"resample={config.resample!r} needs {2 if config.resample == 'smote' else 1}"
                f" training images of each class, and {name!r} has {count}; write resample='none'"
            )

    def _train_labels(self) -> np.ndarray:
        return self.data.split("train")["label"].map(self.data.classes.index).to_numpy()


def _list_tensors(module: nn.Module, part: nn.Module) -> set[str]:
    """Names, in the module's state dict, of the parameters and buffers that a part made of its
    modules holds.

    A tensor that several modules share has one of its names here, so that it is saved and averaged
    once."""
    held = {id(tensor) for tensor in part.state_dict(keep_vars=True).values()}
    names = {
        id(tensor): name
        for name, tensor in module.state_dict(keep_vars=True).items()
        if id(tensor) in held
    }
    return set(names.values())

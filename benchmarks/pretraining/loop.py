"""The pretraining itself: steps along a cosine, a moving average, a log a person can plot,
checkpoints to carry on from.
"""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from tqdm import tqdm

from pretraining.images import ImageArray
from pretraining.lessons import CachedLessons, OnlineLessons
from pretraining.recipe import Recipe
from pretraining.student import Student, measure_loss
from pretraining.teacher import enlarge
from vitlab.errors import UserError
from vitlab.training.checkpoint import Checkpoints, flatten_optimizer, restore_optimizer
from vitlab.training.devices import autocast
from vitlab.training.strategy import MovingAverage

CHECKPOINT_S = 300  # so much work is lost at most


def pretrain(
    lessons: OnlineLessons | CachedLessons,
    classifier: torch.Tensor | None,
    validation: ImageArray,
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    precision: str = "bf16",
) -> Student:
    """Train a student as the recipe says and return the moving average of its weights.

    classifier: rows (K, 1281) of the teacher's linear classifier, weights and bias, for the K
    classes; None where it has others. folder: log.csv gets a row an epoch (losses, learning rate,
    validation accuracy in 0..1, seconds); checkpoints/ lets the same
        call carry on where another one ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = lessons.images
    torch.manual_seed(recipe.seed)
    student = Student(len(images.classes), recipe.size, recipe.depth, recipe.patch_drop).to(device)
    optimizer = create_optimizer_v2(
        student, "adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    average = MovingAverage(student, recipe.average, set(student.state_dict()))
    per_epoch = len(images) // recipe.batch_size
    if not per_epoch:
        raise UserError(
            f"{len(images)} images do not fill a batch of {recipe.batch_size}; give more images"
        )
    total = recipe.epochs * per_epoch
    checkpoints = Checkpoints(
        folder / "checkpoints", {"recipe": recipe.describe(), "images": len(images)}
    )
    step = _restore(checkpoints, student, average, optimizer)
    parts, began, saved = [], time.monotonic(), time.monotonic()
    with tqdm(total=total, initial=step, desc="pretrain", mininterval=10) as bar:
        while step < total:
            epoch, place = divmod(step, per_epoch)
            # what a step draws depends on its number alone, after a restart too
            torch.manual_seed(recipe.seed + step)
            order = np.random.default_rng((recipe.seed, epoch)).permutation(len(images))
            places = np.sort(order[place * recipe.batch_size : (place + 1) * recipe.batch_size])
            rate = recipe.learning_rate * shape_rate(step / total, recipe.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            student.patch_drop.prob = (
                recipe.patch_drop if step < (1 - recipe.finish) * total else 0.0
            )
            parts.append(
                _take_step(
                    student,
                    lessons.draw(places, device),
                    classifier,
                    optimizer,
                    recipe.weights,
                    precision,
                )
            )
            step += 1
            average.update(step)
            bar.update()
            if step % per_epoch == 0:
                means = {
                    name: round(float(np.mean([part[name] for part in parts])), 5)
                    for name in parts[0]
                }
                facts = {"accuracy": validate(average.module, validation, device), "rate": rate}
                log_epoch(
                    folder / "log.csv",
                    {
                        "epoch": epoch + 1,
                        **means,
                        **facts,
                        "seconds": round(time.monotonic() - began, 1),
                    },
                )
                parts, began = [], time.monotonic()
            if time.monotonic() - saved > CHECKPOINT_S or step == total:
                _save(checkpoints, step, student, average, optimizer)
                saved = time.monotonic()
    return average.module


def _take_step(student, lesson, classifier, optimizer, weights, precision) -> dict[str, float]:
    student.train()
    with autocast(lesson.pixels.device, precision):
        outputs = student(lesson.pixels)
    advised = (
        None
        if classifier is None
        else lesson.advice.embedding @ classifier[:, :-1].T + classifier[:, -1]
    )
    parts = measure_loss(outputs, lesson, advised, weights)
    parts["loss"].backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return {name: value.item() for name, value in parts.items()}


@torch.inference_mode()
def validate(
    student: Student, images: ImageArray, device: torch.device, batch_size: int = 250
) -> float:
    """Share of the images whose class the student names, each seen whole at the student's size."""
    student.eval()
    size = student.network.patch_embed.img_size[0]
    right = 0
    for start in range(0, len(images), batch_size):
        pixels, labels = images.take(np.arange(start, min(start + batch_size, len(images))), device)
        with autocast(device, "bf16"):
            right += int((student(enlarge(pixels, size))[0].argmax(1) == labels).sum())
    return right / len(images)


def shape_rate(progress: float, warmup: float) -> float:
    """The learning rate's share of its peak: a line up over `warmup`, then half a cosine down to
    zero. progress: 0..1.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _save(checkpoints, step, student, average, optimizer):
    state, groups = flatten_optimizer(optimizer)
    tensors = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.module.state_dict().items()}
    checkpoints.save(step, {**tensors, **state}, {"step": step, "groups": groups})


def _restore(checkpoints, student, average, optimizer) -> int:
    found = checkpoints.load()
    if found is None:
        return 0
    tensors, progress = found
    for module, kind in ((student, "student."), (average.module, "average.")):
        module.load_state_dict(
            {
                name.removeprefix(kind): tensor
                for name, tensor in tensors.items()
                if name.startswith(kind)
            }
        )
    restore_optimizer(optimizer, tensors, progress["groups"])
    return progress["step"]


def log_epoch(path: Path, row: dict) -> None:
    """Add an epoch; those from it on that an ended call has left are dropped: their checkpoint was
    never written.
    """
    rows = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [old for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([*rows, row])

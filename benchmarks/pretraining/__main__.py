"""`python -m pretraining FOLDER OUTPUT`, in the folder benchmarks/: pretrain a small ViT on a set
of images.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from pretraining.images import load_images
from pretraining.lessons import CachedLessons, OnlineLessons
from pretraining.loop import pretrain, validate
from pretraining.recipe import RECIPES, find_recipe
from pretraining.ship import write_weights
from pretraining.teacher import AdviceCache, Teacher


def main(
    folder: Annotated[
        Path,
        typer.Argument(
            help="train*.parquet and val*.parquet, or train/ and val/ of one folder a class."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Where log, checkpoints and weights go.")],
    recipe: Annotated[str, typer.Option(help=f"One of {', '.join(RECIPES)}.")] = "laptop",
    cache: Annotated[
        Path | None,
        typer.Option(help="For decoded images and the teacher's answers. Default: OUTPUT/cache"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the processor. Default: all.")
    ] = None,
):
    """Pretrain, carrying on from the last checkpoint in OUTPUT, and write
    vit_tiny_vitlab.safetensors there.
    """
    if threads:
        torch.set_num_threads(threads)
    chosen = find_recipe(recipe)
    chosen = replace(chosen, epochs=epochs or chosen.epochs)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cache = cache or output / "cache"
    images, validation = (
        load_images(folder, split, chosen.stored, cache) for split in ("train", "val")
    )
    teacher = Teacher().eval().to(device)
    known = teacher.find_classes(images.classes)
    linear = teacher.classifier
    classifier = (
        None
        if known is None
        else torch.cat([linear.weight, linear.bias[:, None]], 1)[known].float()
    )
    if chosen.lessons == "cached":
        caches = [AdviceCache(images, teacher, size, cache, device) for size in chosen.cached_sizes]
        lessons = CachedLessons(images, caches, chosen.size)
    else:
        lessons = OnlineLessons(images, teacher, chosen.size)
    student = pretrain(lessons, classifier, validation, chosen, output, device)
    accuracy = validate(student, validation, device)
    path = write_weights(student.network, output, chosen, accuracy)
    typer.echo(f"{path}: {accuracy:.1%} on {len(validation):,} validation images")


if __name__ == "__main__":
    typer.run(main)

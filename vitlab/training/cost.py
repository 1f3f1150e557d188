"""What a training costs before it has begun: FLOPs counted on a model without weights, and how fast this machine computes.

A multiply-add is two FLOPs. Additions, norms and activations are not counted, nor is the backward pass run: it is taken as twice
the forward one, since each product of a forward pass has two in the backward pass, for inputs and for weights.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitlab.data import outline_dataset
from vitlab.models import build_model, pieces
from vitlab.schema import ModelBundle
from vitlab.training.config import TrainConfig, recipe
from vitlab.training.precision import TYPES, resolve_precision
from vitlab.training.strategy import find_border, split_model

BUILD_OPTIONS = ("drop_rate", "drop_path_rate", "patch_drop_rate", "head_hidden", "head_dropout")
SAMPLES = 2  # in the counted batch: batch norms want more than one
PRODUCT_SIDES = (256, 512, 1024, 2048, 4096, 8192)  # of the square matrices whose product is timed


def estimate_training(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Training images, epochs and FLOPs of a fine-tuning with these parameters, those of notebook 03.

    Nothing is downloaded and no weights are loaded. Validation, early stopping, resampling, synthetic images, and what lies in
    the cache of the frozen part already are left out of account. Where images or model cannot be had, `problem` says why and
    `flops` is None.
    ValueError for training arguments that do not fit together.
    """
    names = {field.name for field in fields(TrainConfig)}
    config = recipe(parameters["model"], **{name: value for name, value in parameters.items() if name in names})
    estimate = {"images": None, "epochs": config.epochs, "precision": config.precision, "flops": None, "problem": ""}
    outline = outline_dataset(parameters["dataset"], seed=config.seed)
    if not outline.sizes:
        return estimate | {"problem": "how many images there are is not known before they are downloaded"}
    estimate["images"] = outline.sizes["train"]
    options = {name: parameters[name] for name in BUILD_OPTIONS if parameters.get(name) is not None}
    try:
        model = build_blank(parameters["model"], outline.num_classes, size=parameters.get("size"), **options)
        return estimate | {"flops": training_flops(model, config, estimate["images"])}
    except (ValueError, RuntimeError) as error:
        return estimate | {"problem": str(error).splitlines()[0]}


def build_blank(name: str, num_classes: int, **options) -> ModelBundle:
    """The model of this name with tensors that have a shape and no content."""
    arguments = {"classes": [str(number) for number in range(num_classes)], "pretrained": False, **options}
    try:
        with torch.device("meta"):
            return build_model(name, **arguments)
    except NotImplementedError:  # its constructor reads numbers out of a tensor
        model = build_model(name, **arguments)
        model.module.to("meta")
        return model


def training_flops(model: ModelBundle, config: TrainConfig, images: int) -> int:
    """FLOPs of all epochs over so many images: three forward passes of the trained part, one of the frozen part.

    The frozen part is passed once for each view of an image where it is cached, else in each epoch. With gradient checkpointing
    the trained part is passed forward once more.
    """
    names = ["model"] if config.strategy == "full" else [name for name, _ in pieces(model.module)]
    borders = Counter(find_border(names, config, epoch) for epoch in range(1, config.epochs + 1))
    views = config.views if config.augment != "none" else 1
    total = 0
    for border, epochs in borders.items():
        frozen, trained = forward_flops(model, border)
        total += images * (views if config.cache else epochs) * frozen
        total += images * epochs * (4 if config.gradient_checkpointing else 3) * trained
    return total


def forward_flops(model: ModelBundle, border: int = 0) -> tuple[int, int]:
    """FLOPs of one image's forward pass through the frozen part, before the piece at `border`, and through the trained part.

    The trained part is counted as it trains, the tokens that it drops left out. Its tensors must be on the device `meta`.
    """
    counts = []
    values = torch.zeros(SAMPLES, len(model.transform.mean), *model.transform.size, device="meta")
    for part, training in zip(split_model(model.module, border), (False, True), strict=True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            values = part.train(training)(values)
        counts.append(counter.get_total_flops() // SAMPLES)
    model.module.eval()
    return counts[0], counts[1]


def measure_speed(precision: str, seconds: float = 1.0) -> dict[str, Any]:
    """How many FLOPs a second this machine's matrix products reach in the precision of a training, measured for about a second.

    On a processor it is always fp32: matrix units make products in bf16 many times faster, and little else of a training. The
    models of notebooks/batches/elpv.yml, trained in bf16 on two cores with AMX, reach 0.2 to 0.4 of their fp32 rate.
    Keys: device, precision (that was measured), flops_per_s (None where this device cannot train so) and problem.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    label = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} thread(s)"
    try:
        chosen = resolve_precision(precision, device)
    except ValueError as error:
        return {"device": label, "precision": precision, "flops_per_s": None, "problem": str(error)}
    chosen = "fp32" if device.type == "cpu" else chosen
    rate = _time_products(device, TYPES.get(chosen, torch.float32), seconds)
    return {"device": label, "precision": chosen, "flops_per_s": rate, "problem": ""}


def _time_products(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """The best rate over matrices of growing side, as long as there is time for three products of twice the side."""
    end, best = time.perf_counter() + seconds, 0.0
    for side in PRODUCT_SIDES:
        matrix = torch.rand(side, side, device=device, dtype=dtype)
        elapsed = min(_time_product(matrix) for _ in range(3))
        best = max(best, 2 * side**3 / elapsed)
        if time.perf_counter() + 3 * 8 * elapsed > end:
            break
    return best


def _time_product(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # waits for a GPU
    return time.perf_counter() - start

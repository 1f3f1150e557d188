"""Explanations of a ViT-S/16 at 224 pixels: how fast, and are they those of others?

Grad-CAM and Eigen-CAM against pytorch-grad-cam (PyPI `grad-cam`) on the same layer, images and
targets: nothing before the layer needs a gradient, nothing behind it a forward pass where no
gradient is asked for, and the first component comes from the smaller Gram matrix in the place of a
full decomposition. pytorch-grad-cam has no batch size: it gets all images in one call, as its
documentation has it, and in a second record the same batches as ours. Rollout against a plain
forward pass of timm with unfused attention, the least that any code must do which forms the
matrices. Integrated gradients against Captum's own class, with as many steps on one straight way,
neither with more than `--batch` images in memory. Sides take turns; a ratio is the median of those
of all turns. The first turn is thrown away.

    taskset -c 0,1 python benchmarks/bench_explain.py [--images N] [--batch N] [--repeats N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytorch_grad_cam
import torch
from captum.attr import IntegratedGradients
from pytorch_grad_cam import eigen_cam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from records import record, write_records

from vitlab.explain import explain, gradients
from vitlab.models import build_model

MODEL, LAYER, TARGET = "vit_small_patch16_224", "blocks.11.norm1", 1
BARS = {"grad_cam": ("GradCAM", ">= 3"), "eigen_cam": ("EigenCAM", ">= 1.5")}
ROLLOUT, DIFFERENCE = ">= 0.9", "<= 1e-4"
STEPS, GRADIENTS, EXACT = 16, ">= 1", "<= 1e-5"  # of integrated gradients


def apply_peer(model, method: str, images: torch.Tensor, batch: int) -> np.ndarray:
    """Maps of pytorch-grad-cam, (N, h, w) in 0..1."""
    layer = model.module.get_submodule(LAYER)

    def reshape(tokens):
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, *model.anatomy.grid)

    with getattr(pytorch_grad_cam, BARS[method][0])(model.module, [layer], reshape) as cam:
        return np.concatenate(
            [
                cam(part, [ClassifierOutputTarget(TARGET)] * len(part))
                for part in images.split(batch)
            ]
        )


def run_unfused(model, images: torch.Tensor) -> None:
    """A forward pass in which every block forms its attention matrix."""
    for block in model.module.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        model.module(images)
    for block in model.module.blocks:
        block.attn.fused_attn = True


def take_turns(ours: Callable, peer: Callable, repeats: int) -> tuple[float, float, float]:
    """Median seconds of each side, and the median of peer / ours, turn by turn."""
    seconds = []
    for turn in range(repeats + 1):
        times = []
        for side in (ours, peer) if turn % 2 else (peer, ours):
            start = time.perf_counter()
            side()
            times.append(time.perf_counter() - start)
        seconds.append(times if turn % 2 else times[::-1])
    mine, others = zip(*seconds[1:], strict=True)
    return (
        statistics.median(mine),
        statistics.median(others),
        statistics.median(b / a for a, b in seconds[1:]),
    )


def normalise(maps: np.ndarray) -> np.ndarray:
    """Each map brought to 0..1."""
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return (maps - low) / np.maximum(high - low, np.finfo(np.float32).tiny)


def compare_maps(model, method: str, images: torch.Tensor, batch: int) -> float:
    """Largest difference between the normalised maps of both sides. A component has no sign: of
    Eigen-CAM the nearer counts.
    """
    found = normalise(
        explain(model, images, method, model.classes[TARGET], batch_size=batch).values
    )
    sides = [apply_peer(model, method, images, batch)]
    if method == "eigen_cam":
        original = eigen_cam.get_2d_projection
        eigen_cam.get_2d_projection = lambda activations: -original(activations)
        sides.append(apply_peer(model, method, images, batch))
        eigen_cam.get_2d_projection = original
    return float(np.min([np.abs(found - side).max(axis=(1, 2)) for side in sides], axis=0).max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64, help="images (default: %(default)s)")
    parser.add_argument(
        "--batch",
        type=int,
        default=8,
        help="images that ours works on at once (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="turns that count (default: %(default)s)"
    )
    options = parser.parse_args()
    model = build_model(MODEL, [str(i) for i in range(10)], pretrained=False, seed=0)
    generator = torch.Generator().manual_seed(0)
    # timm's initial head is next to nothing
    torch.nn.init.normal_(model.module.head.weight, generator=generator)
    images = torch.randn(options.images, 3, 224, 224, generator=generator)
    case, target = f"{MODEL}, {options.images} images", model.classes[TARGET]

    records = []
    for method, (peer_name, bar) in BARS.items():
        name = f"pytorch-grad-cam {peer_name}"
        for batch, how in (
            (options.images, "all at once"),
            (options.batch, f"{options.batch} at once"),
        ):
            seconds, peer, ratio = take_turns(
                lambda method=method: explain(
                    model, images, method, target, batch_size=options.batch
                ),
                lambda method=method, batch=batch: apply_peer(model, method, images, batch),
                options.repeats,
            )
            rates = options.images / seconds, options.images / peer
            metric = f"images a second, peer {how}"
            records.append(record(f"{method}, {case}", metric, *rates, name, ratio, bar))
        difference = compare_maps(model, method, images, options.batch)
        records.append(
            record(f"{method}, {case}", "largest difference", 0, 0, name, difference, DIFFERENCE)
        )
    some = images[: options.batch]
    seconds, peer, ratio = take_turns(
        lambda: explain(model, some, "rollout", target, batch_size=options.batch),
        lambda: run_unfused(model, some),
        3 * options.repeats,
    )
    name = "timm's forward pass, attention unfused"
    records.append(
        record(
            f"rollout, {MODEL}, {len(some)} images",
            "images a second",
            len(some) / seconds,
            len(some) / peer,
            name,
            ratio,
            ROLLOUT,
        )
    )
    few = images[: options.batch // 2]
    records += measure_integrated_gradients(model, few, options)
    write_records("explain", records)


def measure_integrated_gradients(model, images: torch.Tensor, options) -> list[dict]:
    """Speed against Captum's class, and the largest difference as a share of the largest value."""
    captum = IntegratedGradients(model.module)
    gradients.CUTS = (0, 1)  # the whole line in one part, as Captum
    gradients.BATCH = options.batch
    settings = {"steps": STEPS, "batch_size": len(images)}

    def ours():
        return explain(
            model, images, "integrated_gradients", model.classes[TARGET], **settings
        ).values

    def peer():
        return (
            captum.attribute(
                images, target=TARGET, n_steps=STEPS, internal_batch_size=options.batch
            )
            .sum(dim=1)
            .detach()
            .numpy()
        )

    seconds, others, ratio = take_turns(ours, peer, options.repeats)
    expected = peer()
    difference = float(np.abs(ours() - expected).max() / np.abs(expected).max())
    case, name = (
        f"integrated_gradients, {MODEL}, {len(images)} images, {STEPS} steps",
        "captum IntegratedGradients",
    )
    rates = len(images) / seconds, len(images) / others
    return [
        record(case, "images a second", *rates, name, ratio, GRADIENTS),
        record(case, "largest relative difference", 0, 0, name, difference, EXACT),
    ]


if __name__ == "__main__":
    main()

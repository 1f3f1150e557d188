"""Insertion and deletion against Quantus' pixel flipping: the same cells in the same order, curves
and areas compared.

Quantus flips values, not pixels, in steps that divide the number of pixels, so that a cell of 16 x
16 pixels in three channels takes it three steps; after each third one both have the same image. We
take `--steps` steps for the whole curve. Its measure by regions (RegionPerturbation) takes one step
a cell, and is timed beside ours with just as many. The last layer is enlarged until the
probabilities move, or any area would be the same. Sides are interleaved; ratios are medians.

    taskset -c 0,1 python benchmarks/bench_faithfulness.py [--model NAME] [--images N] [--steps N]
        [--repeats N]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import quantus
import torch
from records import record, write_records

from vitlab.explain import CellScorer
from vitlab.explain.faithfulness import compute_area
from vitlab.models import build_model
from vitlab.schema import AttributionMap

CELL = 16
LOGITS = 2.0  # spread of the logits over classes and images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default="vit_small_patch16_224",
        help="a timm ViT of 16-pixel patches (default: %(default)s)",
    )
    parser.add_argument("--images", type=int, default=4, help="images (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=98, help="steps of our curve (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="how often both are timed (default: %(default)s)"
    )
    options = parser.parse_args()
    model, images, found = make_case(options.model, options.images)

    times = {"ours": [], "all": [], "flipping": [], "regions": []}
    for _ in range(options.repeats):
        ours = time_call(times["ours"], lambda: measure_areas(model, images, found, options.steps))
        whole = time_call(times["all"], lambda: measure_areas(model, images, found, steps=None))
        peer = time_call(times["flipping"], lambda: flip_pixels(model, images, found))
        regions = time_call(times["regions"], lambda: flip_regions(model, images, found))
        print({name: round(values[-1], 1) for name, values in times.items()}, flush=True)

    def compare(one, other):
        return statistics.median(b / a for a, b in zip(times[one], times[other], strict=True))

    one, all_, flipping, by_region = (statistics.median(times[name]) for name in times)
    case = (
        f"insertion and deletion, {options.model}, {options.images} images,"
        f" {found.values.shape[1] // CELL}^2 cells"
    )
    name = "Quantus PixelFlipping"
    difference, difference_all = np.abs(ours - peer).max(), np.abs(whole - regions).max()
    write_records(
        "explain",
        [
            record(
                f"{case}, {options.steps} steps",
                "times as fast",
                one,
                flipping,
                name,
                compare("ours", "flipping"),
                ">= 5",
            ),
            record(
                f"{case}, {options.steps} steps",
                "largest difference of an area",
                0,
                0,
                name,
                difference,
                "<= 0.001",
            ),
            record(
                f"{case}, a step a cell",
                "times as fast",
                all_,
                flipping,
                name,
                compare("all", "flipping"),
                ">= 1",
            ),
            record(
                f"{case}, a step a cell",
                "times as fast (regions)",
                all_,
                by_region,
                "Quantus RegionPerturbation",
                compare("all", "regions"),
                ">= 1",
            ),
            record(
                f"{case}, a step a cell",
                "largest difference of an area",
                0,
                0,
                "Quantus RegionPerturbation",
                difference_all,
                "<= 0.001",
            ),
        ],
        range_of_areas=[round(float(peer.min()), 4), round(float(peer.max()), 4)],
    )


def make_case(name: str, count: int):
    """A model of two classes whose probabilities move, images, and maps that are constant in cells
    and without ties.
    """
    model = build_model(name, ("a", "b"), pretrained=False, seed=0)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 7, 7, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=model.transform.size, mode="bilinear")
    images += 0.3 * torch.randn(images.shape, generator=generator)
    with torch.inference_mode():
        logits = model.module.eval()(images)
    last = model.module.get_classifier()
    gap = logits[:, 0] - logits[:, 1]
    last.weight.data *= LOGITS / gap.std()
    last.bias.data = -torch.stack([gap.mean() / 2, -gap.mean() / 2]) * LOGITS / gap.std()
    rows, columns = (side // CELL for side in images.shape[-2:])
    values = np.stack(
        [np.random.default_rng(place).permutation(rows * columns) for place in range(count)]
    ) / (rows * columns)
    values = (
        values.reshape(count, rows, columns)
        .repeat(CELL, axis=1)
        .repeat(CELL, axis=2)
        .astype(np.float32)
    )
    ids = tuple(map(str, range(count)))
    return model, images, AttributionMap(values, "permutation", ("a",) * count, ids, signed=False)


def measure_areas(model, images, found, steps) -> np.ndarray:
    """Ours: (2, N), deletion and insertion."""
    grid = tuple(side // CELL for side in images.shape[-2:])
    scorer = CellScorer(model, images, found, grid=grid)
    steps = steps or scorer.count
    return np.concatenate(
        [compute_area(scorer, [found], kind, steps) for kind in ("deletion", "insertion")]
    )


def flip_pixels(model, images, found) -> np.ndarray:
    """Quantus' PixelFlipping, the highest first, and for the insertion the lowest first, read from
    the end.
    """
    metric = quantus.PixelFlipping(
        features_in_step=CELL * CELL,
        perturb_baseline=0.0,
        normalise=False,
        disable_warnings=True,
        display_progressbar=False,
    )
    clean = score_clean(model, images)
    curves = []
    for values in (found.values, -found.values):
        wide = np.repeat(values[:, None], 3, axis=1)
        curve = np.array(
            metric(model.module, images.numpy(), np.zeros(len(images), int), wide, softmax=True)
        )
        curves.append(np.concatenate([clean[:, None], curve], axis=1))
    return average(curves)


def flip_regions(model, images, found) -> np.ndarray:
    """Quantus' RegionPerturbation, which gives the falls of the score cell by cell."""
    clean = score_clean(model, images)
    curves = []
    for order in ("morf", "lerf"):
        metric = quantus.RegionPerturbation(
            patch_size=CELL,
            order=order,
            regions_evaluation=found.values[0].size // CELL**2,
            perturb_baseline=0.0,
            normalise=False,
            disable_warnings=True,
            display_progressbar=False,
        )
        falls = np.array(
            metric(
                model.module,
                images.numpy(),
                np.zeros(len(images), int),
                found.values[:, None],
                softmax=True,
            )
        )
        curves.append(np.concatenate([clean[:, None], clean[:, None] - falls], axis=1))
    return average(curves)


def average(curves) -> np.ndarray:
    return np.stack([np.trapezoid(curve, dx=1 / (curve.shape[1] - 1), axis=1) for curve in curves])


@torch.inference_mode()
def score_clean(model, images) -> np.ndarray:
    return model.module.eval()(images).softmax(dim=1)[:, 0].numpy()


def time_call(times: list, call):
    start = time.perf_counter()
    value = call()
    times.append(time.perf_counter() - start)
    return value


if __name__ == "__main__":
    main()

"""Attribution to cells of the image by taking them away, computed by Captum. No gradients, and no
look inside the model.

Captum is given the cells as its input, all ones, and zero stands for the baseline in a cell. Every
map has a cell's value at all of its pixels. `grid` is (rows, columns); by default the model's token
grid, or a grid of about its kind for a CNN, with neighbours merged until no side has more than 8:
each cell costs a forward pass or more. `baseline` is the blurred image by default, which looks
least unlike what a model has seen; cells of one colour have edges of their own.
internal_batch_size: changed images in memory at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnLinearModel
from captum.attr import FeatureAblation, KernelShap, Lime, Occlusion
from captum.attr._core.lime import get_exp_kernel_similarity_function

from vitlab.errors import UserError
from vitlab.explain.baselines import make_baseline
from vitlab.explain.grid import choose_grid, coarsen_grid, number_cells, replace_cells, spread_cells
from vitlab.explain.inspection import check_count, check_gradient, seeded, select_logits
from vitlab.explain.methods import explanation

BATCH = 16
# of LIME's weights: copies with few segments removed count most; the value of the authors' own code
KERNEL_WIDTH = 0.25


@explanation(
    signed=True,
    shows=(
        "Positive values are places whose covering lowers the score of {target}, and covering"
        " negative ones raises it."
    ),
)
def occlusion(
    model,
    images,
    targets,
    grid=None,
    window=2,
    stride=1,
    baseline="blur",
    internal_batch_size=BATCH,
):
    """How far the target logit falls when a window of cells is covered, averaged over the windows
    that cover a cell.

    window, stride: in cells, for both sides or (rows, columns); no window is larger than the grid.
    Source: Zeiler and Fergus 2013, arXiv 1311.2901."""
    rows, columns = _choose_cells(model, images, grid, internal_batch_size)
    window = tuple(
        min(size, side) for size, side in zip(_pair("window", window), (rows, columns), strict=True)
    )
    stride = _pair("stride", stride)
    if any(step > size for step, size in zip(stride, window, strict=True)):
        raise UserError(
            f"a stride of {stride} cells skips some between windows of {window}; take at most the"
            " window's size"
        )
    options = {"sliding_window_shapes": window, "strides": stride}
    return _cover(
        Occlusion, model, images, targets, (rows, columns), baseline, internal_batch_size, **options
    )


@explanation(
    signed=True,
    shows=(
        "Positive values are places whose removal, one at a time, lowers the score of {target}, and"
        " removing negative ones raises it."
    ),
)
def feature_ablation(model, images, targets, grid=None, baseline="blur", internal_batch_size=BATCH):
    """How far the target logit falls when one cell alone is taken away.

    What two cells say together is not seen: where either suffices, taking one away changes nothing.
    """
    grid = _choose_cells(model, images, grid, internal_batch_size)
    return _cover(FeatureAblation, model, images, targets, grid, baseline, internal_batch_size)


@explanation(
    signed=True,
    complete=True,
    shows=(
        "Positive values are places that raise the score of {target}, averaged over all orders in"
        " which places are added, and negative ones lower it; all add up to the difference."
    ),
)
def kernel_shap(
    model,
    images,
    targets,
    grid=None,
    samples=None,
    baseline="blur",
    seed=0,
    internal_batch_size=BATCH,
):
    """Shapley values of the cells: what each adds to the target logit, averaged over all orders in
    which cells could be added.

    Estimated by a weighted regression on `samples` random sets of cells (three for each cell by
    default, which gives a rough estimate). A cell's value is divided evenly among its pixels, so
    that the map adds up to the difference between the logits of the image and of the baseline. The
    sets are the same for every image. Source: Lundberg and Lee 2017, arXiv 1705.07874."""
    grid = _choose_cells(model, images, grid, internal_batch_size)
    count = grid[0] * grid[1]
    if count < 2:
        raise UserError(
            "kernel_shap needs a grid of at least 2 cells; leave grid out, or give (rows, columns)"
        )
    samples = 3 * count + 2 if samples is None else samples
    check_count("samples", samples)
    if samples < count + 2:
        raise UserError(
            f"{samples} samples cannot tell {count} cells apart; give at least {count + 2}, or a"
            " coarser grid"
        )
    cells = number_cells(grid, images.shape[-2:]).to(images.device)
    blank = make_baseline(baseline, images, model.transform)
    values = []
    for i in range(len(images)):
        with seeded(seed, images.device), torch.no_grad():
            method = KernelShap(_score_kept(model, images, blank, targets, cells, i))
            options = {
                "n_samples": samples,
                "perturbations_per_eval": internal_batch_size,
                "return_input_shape": False,
            }
            values.append(
                method.attribute(images.new_ones(1, count), images.new_zeros(1, count), **options)
            )
    values = torch.cat(values).to(images)  # (B, n)
    check_gradient(values, "the cells")
    return spread_cells(values / torch.bincount(cells.flatten()), cells)


@explanation(
    signed=True,
    shows=(
        "Positive values are segments whose presence raises the score of {target} in a linear model"
        " fitted around this image, and negative ones lower it."
    ),
)
def lime(
    model,
    images,
    targets,
    segments=40,
    samples=150,
    compactness=10.0,
    baseline="blur",
    seed=0,
    internal_batch_size=BATCH,
):
    """Weights of a linear model of the target logit, fitted to copies of the image that lack random
    superpixels.

    segments: about so many, cut out by SLIC along the image's edges; compactness: the more, the
    squarer. Copies lacking few of them count most; ridge regression, as in the authors' code. The
    choice of copies is the same for every image. Source: Ribeiro et al. 2016, arXiv 1602.04938;
    Achanta et al. 2012, 10.1109/TPAMI.2012.120 (SLIC)."""
    for name, value in {
        "segments": segments,
        "samples": samples,
        "internal_batch_size": internal_batch_size,
    }.items():
        check_count(name, value)
    blank = make_baseline(baseline, images, model.transform)
    maps = []
    for i in range(len(images)):
        cells = _cut_superpixels(images[i], model.transform, segments, compactness)
        count = int(cells.max()) + 1
        if count < 2:
            raise UserError(
                f"SLIC cuts image {i} of the batch into a single superpixel; a compactness above"
                f" {compactness} makes more of them"
            )
        with seeded(seed, images.device), torch.no_grad():
            method = Lime(
                _score_kept(model, images, blank, targets, cells, i),
                interpretable_model=SkLearnLinearModel("linear_model.Ridge", alpha=1.0),
                similarity_func=get_exp_kernel_similarity_function("cosine", KERNEL_WIDTH),
            )
            options = {
                "n_samples": samples,
                "perturbations_per_eval": internal_batch_size,
                "return_input_shape": False,
            }
            values = method.attribute(
                images.new_ones(1, count), images.new_zeros(1, count), **options
            )
        maps.append(spread_cells(values.reshape(1, count).to(images), cells))
    found = torch.cat(maps)
    check_gradient(found, "the superpixels")
    return found


def _cover(
    captum, model, images, targets, grid, baseline, internal_batch_size, **options
) -> torch.Tensor:
    """Maps (B, h, w) of a method of Captum that covers one part of the grid after another."""
    cells = number_cells(grid, images.shape[-2:]).to(images.device)
    blank = make_baseline(baseline, images, model.transform)
    options = {"baselines": 0.0, "perturbations_per_eval": internal_batch_size, **options}
    kept = images.new_ones(1, *grid)
    methods = (
        captum(_score_kept(model, images, blank, targets, cells, i)) for i in range(len(images))
    )
    # (B, rows, columns)
    values = torch.cat([method.attribute(kept, **options) for method in methods]).to(images)
    check_gradient(values, "the cells")
    return spread_cells(values.flatten(1), cells)


def _score_kept(model, images, blank, targets, cells, i) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of which cells of image i are kept, (K, n) or (K, rows, columns) of ones and
    zeros, to the score (K,).
    """
    image, baseline, weights = images[i : i + 1], blank[i : i + 1], targets[i : i + 1]
    return lambda kept: select_logits(
        model.module(replace_cells(image, baseline, kept.flatten(1) < 0.5, cells)), weights
    )


def _choose_cells(model, images, grid, internal_batch_size) -> tuple[int, int]:
    check_count("internal_batch_size", internal_batch_size)
    if grid is None:
        return coarsen_grid(choose_grid(model.anatomy, tuple(images.shape[-2:])))
    return _pair("grid", grid)


def _pair(name, value) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise UserError(f"{name} must be one number or (rows, columns), not {value!r}")
    for side in pair:
        check_count(name, side)
    return pair


def _cut_superpixels(image, transform, segments, compactness) -> torch.Tensor:
    """The number of each pixel's superpixel, (h, w) int64, from 0 without gaps."""
    from skimage.segmentation import slic

    mean, std = (
        image.new_tensor(values)[:, None, None] for values in (transform.mean, transform.std)
    )
    # (h, w, 3)
    pixels = (image.detach() * std + mean).clamp(0, 1).float().cpu().numpy().transpose(1, 2, 0)
    labels = slic(pixels, n_segments=segments, compactness=compactness, start_label=0)
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(labels.shape)).to(
        image.device
    )

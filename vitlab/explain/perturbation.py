"""Attribution to cells of the image by removing them, computed by Captum. No gradients, and no
look inside the model.

Captum gets the cells as its input, all ones, and zero stands for the baseline in a cell. A map has
a cell's value at all of its pixels. `grid` is (rows, columns); by default the model's token grid,
or a similar one for a CNN, with neighbours merged until no side has more than 8 cells: each cell
costs a forward pass or more. `baseline` is the blurred image by default, which looks most like what
a model has seen; cells of one colour have edges of their own. internal_batch_size: changed images
in memory at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnLinearModel
from captum.attr import KernelShap, Lime, Occlusion
from captum.attr._core.lime import get_exp_kernel_similarity_function

from vitlab.errors import UserError
from vitlab.explain.grid import (
    choose_grid,
    coarsen_grid,
    make_baseline,
    number_cells,
    replace_cells,
    spread_cells,
)
from vitlab.explain.inspection import check_count, check_gradient, seeded, select_logits
from vitlab.explain.methods import explanation

BATCH = 16
# of LIME's weights: copies with few segments removed count most; the value of the authors' own code
KERNEL_WIDTH = 0.25


@explanation(
    signed=True,
    shows=(
        "Positive values are areas that lower the score of {target} when covered, and negative"
        " ones raise it when covered."
    ),
)
def occlusion(
    model, images, targets, grid=None, window=2, baseline="blur", internal_batch_size=BATCH
):
    """How far the target logit falls when a window of cells is covered, averaged over the windows
    that cover a cell.

    window: cells along each side, or (rows, columns), at most the grid; it moves by one cell.
    Source: Zeiler and Fergus 2013, arXiv 1311.2901."""
    rows, columns = _choose_cells(model, images, grid)
    check_count("internal_batch_size", internal_batch_size)
    height, width = _pair("window", window)
    cells = number_cells((rows, columns), images.shape[-2:]).to(images.device)
    blank = make_baseline(baseline, images, model.transform)
    values = []
    for i in range(len(images)):
        method = Occlusion(_score_kept(model, images[i], blank[i], targets[i], cells))
        values.append(
            method.attribute(
                images.new_ones(1, rows, columns),
                sliding_window_shapes=(min(height, rows), min(width, columns)),
                strides=1,
                baselines=0.0,
                perturbations_per_eval=internal_batch_size,
            )
        )
    values = torch.cat(values).to(images)  # (B, rows, columns)
    check_gradient(values, "the cells")
    return spread_cells(values.flatten(1), cells)


@explanation(
    signed=True,
    complete=True,
    shows=(
        "Positive values are areas that raise the score of {target}, averaged over all orders"
        " of adding areas, and negative ones lower it; all values add up to the difference."
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
    default, a rough estimate), the same sets for every image. A cell's value is divided evenly
    among its pixels, so that the map adds up to the difference between the logits of image and
    baseline. Source: Lundberg and Lee 2017, arXiv 1705.07874."""
    grid = _choose_cells(model, images, grid)
    check_count("internal_batch_size", internal_batch_size)
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
        method = KernelShap(_score_kept(model, images[i], blank[i], targets[i], cells))
        values.append(_sample_cells(method, images, count, samples, seed, internal_batch_size))
    values = torch.cat(values)  # (B, n)
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

    segments: their approximate number, found by SLIC along the image's edges; higher compactness
    makes squarer ones. Copies that lack few of them have the largest weights; ridge regression, as
    in the authors' code. The choice of copies is the same for every image. Source: Ribeiro et al.
    2016, arXiv 1602.04938; Achanta et al. 2012, 10.1109/TPAMI.2012.120 (SLIC)."""
    check_count("segments", segments)
    check_count("samples", samples)
    check_count("internal_batch_size", internal_batch_size)
    blank = make_baseline(baseline, images, model.transform)
    maps = []
    for i in range(len(images)):
        cells = _find_superpixels(images[i], model.transform, segments, compactness)
        count = int(cells.max()) + 1
        if count < 2:
            raise UserError(
                f"SLIC cuts image {i} of the batch into a single superpixel; a compactness above"
                f" {compactness} makes more of them"
            )
        method = Lime(
            _score_kept(model, images[i], blank[i], targets[i], cells),
            interpretable_model=SkLearnLinearModel("linear_model.Ridge", alpha=1.0),
            similarity_func=get_exp_kernel_similarity_function("cosine", KERNEL_WIDTH),
        )
        values = _sample_cells(method, images, count, samples, seed, internal_batch_size)
        maps.append(spread_cells(values, cells))
    found = torch.cat(maps)
    check_gradient(found, "the superpixels")
    return found


def _sample_cells(method, images, count, samples, seed, internal_batch_size) -> torch.Tensor:
    """Values (1, n) of the cells by a method of Captum that draws random sets of them."""
    with seeded(seed, images.device), torch.no_grad():
        values = method.attribute(
            images.new_ones(1, count),
            images.new_zeros(1, count),
            n_samples=samples,
            perturbations_per_eval=internal_batch_size,
            return_input_shape=False,
        )
    return values.reshape(1, count).to(images)


def _score_kept(model, image, blank, weights, cells) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from the cells of one image that are kept, ones and zeros (K, n) or (K, rows,
    columns), to the score (K,).
    """
    image, blank, weights = image[None], blank[None], weights[None]
    return lambda kept: select_logits(
        model.module(replace_cells(image, blank, kept.flatten(1) < 0.5, cells)), weights
    )


def _choose_cells(model, images, grid) -> tuple[int, int]:
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


def _find_superpixels(image, transform, segments, compactness) -> torch.Tensor:
    """The number of each pixel's superpixel, (h, w) int64, from 0 without gaps."""
    from skimage.segmentation import slic

    mean = image.new_tensor(transform.mean)[:, None, None]
    std = image.new_tensor(transform.std)[:, None, None]
    # (h, w, 3)
    pixels = (image.detach() * std + mean).clamp(0, 1).float().cpu().numpy().transpose(1, 2, 0)
    labels = slic(pixels, n_segments=segments, compactness=compactness, start_label=0)
    _, numbers = np.unique(labels, return_inverse=True)
    return torch.from_numpy(numbers.reshape(labels.shape)).to(image.device)

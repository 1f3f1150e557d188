"""Attribution to pixels by gradients, computed by Captum, and whether the values add up."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from captum.attr import IntegratedGradients, Saliency

from vitlab.explain.inspection import check_count, check_gradient, inspecting
from vitlab.explain.methods import explanation, methods
from vitlab.explain.removal import make_baseline
from vitlab.schema import AttributionMap, ModelBundle

BATCH = 16  # images in memory at once, with all that a backward pass keeps of them
# where the line from the baseline is cut; logits rise steeply near the baseline
CUTS = (0, 1 / 64, 1 / 16, 1 / 4, 1)


@explanation(
    signed=False,
    shows=(
        "Brighter areas are pixels whose small changes have a larger effect on the score of"
        " {target}, up or down."
    ),
)
def saliency(model, images, targets):
    """The absolute gradient of the target logit at each pixel, the largest of its channels.

    Source: Simonyan et al. 2013, arXiv 1312.6034.
    """
    found = Saliency(model.module).attribute(images.requires_grad_(), targets)  # (B, 3, h, w)
    check_gradient(found, "the pixels")
    return found.amax(dim=1)


@explanation(
    signed=True,
    complete=True,
    shows=(
        "Positive values are pixels that raise the score of {target} on the path from a"
        " baseline image to this one, and negative ones lower it; all values add up to the"
        " difference."
    ),
)
def integrated_gradients(model, images, targets, steps=8, baseline="mean"):
    """The difference between the target logits of image and baseline, divided among the pixels
    (channels summed).

    The gradient is averaged along the straight line from the baseline. The line is cut into four
    parts, each longer than the one before, with `steps` points of Gauss-Legendre quadrature each;
    more of them come closer to the exact division (see `completeness_table`). Evenly spread points,
    as in Captum alone, miss the steep rise of the logits near the baseline. Source: Sundararajan et
    al. 2017, arXiv 1703.01365."""
    check_count("steps", steps)
    blank = make_baseline(baseline, images, model.transform)
    method = IntegratedGradients(model.module)
    found = torch.zeros_like(images)
    for near, far in pairwise(torch.lerp(blank, images, share) for share in CUTS):
        found += method.attribute(
            far, near, targets, n_steps=steps, internal_batch_size=BATCH
        )  # (B, 3, h, w)
    if (images != blank).any():  # an image that is the baseline has a true map of zeros
        check_gradient(found, "the pixels")
    return found.sum(dim=1)


def completeness_table(
    model: ModelBundle, images: torch.Tensor, maps: Sequence[AttributionMap]
) -> pd.DataFrame:
    """Whether the values of the maps add up: one row for each map of a complete method, made with
    the method's own baseline.

    Columns method, difference, total, delta, each the mean of absolute values over the images
    (N, 3, h, w). difference: the target logit of the image minus that of the baseline. total: the
    sum of the map. delta: total minus difference, 0 where the division is exact. Source:
    Sundararajan et al. 2017, arXiv 1703.01365."""
    weight = next(model.module.parameters())
    rows = []
    for found in maps:
        if not methods[found.method].complete:
            continue
        options = inspect.signature(methods[found.method].compute).parameters
        changes = []
        with inspecting(model.module), torch.no_grad():
            for batch in images.to(weight.device, weight.dtype).split(BATCH):
                blank = make_baseline(options["baseline"].default, batch, model.transform)
                changes.append((model.module(batch) - model.module(blank)).double().cpu())
        change = torch.cat(changes).numpy()  # (N, num_classes)
        targets = [model.classes.index(name) for name in found.target]
        difference = change[range(len(change)), targets]
        total = found.values.sum(axis=(1, 2), dtype="float64")
        values = (difference, total, total - difference)
        rows.append((found.method, *(np.abs(value).mean() for value in values)))
    return pd.DataFrame(rows, columns=["method", "difference", "total", "delta"])

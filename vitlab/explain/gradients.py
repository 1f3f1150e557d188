"""Attribution to pixels by gradients, computed by Captum, and whether the values add up."""

from __future__ import annotations

import inspect
from itertools import pairwise

import pandas as pd
import torch
from captum.attr import IntegratedGradients, Saliency

from vitlab.errors import UserError
from vitlab.explain.grid import make_baseline
from vitlab.explain.inspection import check_count, check_gradient, inspecting, select_logits
from vitlab.explain.methods import available, explanation, methods
from vitlab.schema import AttributionMap, ModelBundle

BATCH = 16  # images in memory at once, with all that a backward pass keeps of them
# each part of the way is 4 times shorter than the next: logits rise steeply near the baseline
SHORTER = 4


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
    method = Saliency(_score_targets(model.module))
    # (B, 3, h, w)
    found = method.attribute(images.requires_grad_(), additional_forward_args=targets)
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
def integrated_gradients(
    model, images, targets, steps=8, parts=4, baseline="mean", internal_batch_size=BATCH
):
    """The difference between the target logits of image and baseline, divided among the pixels
    (channels summed).

    The gradient is averaged along the straight line from the baseline. The line is cut into
    `parts`, each four times as long as the one before, with `steps` points of Gauss-Legendre
    quadrature each; more of them come closer to the exact division (see convergence_delta). With
    parts=1 it is Captum's IntegratedGradients. Evenly spread points miss the steep rise of the
    logits near the baseline, which is why Captum alone is not used. internal_batch_size: images in
    memory at once. Source: Sundararajan et al. 2017, arXiv 1703.01365."""
    check_count("steps", steps)
    check_count("parts", parts)
    check_count("internal_batch_size", internal_batch_size)
    blank = make_baseline(baseline, images, model.transform)
    method = IntegratedGradients(_score_targets(model.module))
    shares = [0.0, *(SHORTER**-part for part in reversed(range(parts)))]  # 0, 1/64, 1/16, 1/4, 1
    found = []
    for start, end, weights in zip(
        *(each.split(internal_batch_size) for each in (blank, images, targets)), strict=True
    ):
        points = [start, *(torch.lerp(start, end, share) for share in shares[1:-1]), end]
        options = {
            "additional_forward_args": weights,
            "n_steps": steps,
            "internal_batch_size": internal_batch_size,
        }
        # (b, 3, h, w)
        found.append(sum(method.attribute(far, near, **options) for near, far in pairwise(points)))
    found = torch.cat(found)
    if (images != blank).any():  # an image that is the baseline has a true map of zeros
        check_gradient(found, "the pixels")
    return found.sum(dim=1)


def convergence_delta(
    model: ModelBundle,
    images: torch.Tensor,
    found: AttributionMap,
    *,
    baseline: str | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Whether maps of a complete method add up: one row an image, sample_id, difference, total,
    delta.

    difference: the target logit of the image minus that of the baseline (with `versus`, of the
    difference of the two logits). total: the sum of the map. delta: total minus difference, 0 where
    the division is exact. baseline: the one that the maps were made with, by default that of the
    method. ValueError for a method that does not claim to add up.
    Source: Sundararajan et al. 2017, arXiv 1703.01365."""
    if not methods[found.method].complete:
        claims = ", ".join(name for name in available() if methods[name].complete)
        raise UserError(
            f"the values of a {found.method} map do not claim to add up to a difference; those that"
            f" do: {claims}"
        )
    if len(images) != len(found.sample_ids):
        raise UserError(
            f"{len(images)} images for {len(found.sample_ids)} maps; give those explained, in the"
            " same order"
        )
    if baseline is None:
        baseline = inspect.signature(methods[found.method].compute).parameters["baseline"].default
    weight = next(model.module.parameters())
    changes = []
    with inspecting(model.module), torch.no_grad():
        for batch in images.split(batch_size):
            batch = batch.to(weight.device, weight.dtype)
            blank = make_baseline(baseline, batch, model.transform)
            changes.append((model.module(batch) - model.module(blank)).double().cpu())
    change = torch.cat(changes).numpy()  # (N, num_classes)
    rows = range(len(change))
    difference = change[rows, [model.classes.index(name) for name in found.target]]
    if found.versus:
        difference = difference - change[rows, [model.classes.index(name) for name in found.versus]]
    total = found.values.sum(axis=(1, 2), dtype="float64")
    return pd.DataFrame(
        {
            "sample_id": list(found.sample_ids),
            "difference": difference,
            "total": total,
            "delta": total - difference,
        }
    )


def _score_targets(module):
    """A function (images, targets) -> (B,), as Captum wants it."""
    return lambda images, targets: select_logits(module(images), targets)

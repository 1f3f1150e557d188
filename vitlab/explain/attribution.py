"""Attribution to pixels by gradients, computed by Captum."""

from __future__ import annotations

from itertools import pairwise

from captum.attr import IntegratedGradients, Saliency

from vitlab.explain.inspection import check_gradient, score_targets
from vitlab.explain.methods import explanation

BATCH = 8  # interpolated images in memory at once
BREAKS = (0, 1 / 64, 1 / 16, 1 / 4, 1)  # of the way from the blank image: with the first trace of contrast, logits leap


@explanation(signed=True)
def integrated_gradients(model, images, targets, steps=8, baseline=0.0):
    """The difference between the target logit of the image and that of a blank one, divided among the pixels (channels summed).

    The gradient is averaged on the straight way from the blank image, which is cut into four parts, short ones first; each takes
    `steps` points of Gauss-Legendre quadrature, and more of them come closer to the exact division. baseline: the blank image, a
    number or a tensor in normalised values; 0 is the mean colour of the data that the weights were trained with. (Black would
    give every black pixel nothing.)
    Source: Sundararajan et al. 2017, arXiv 1703.01365.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, not {steps!r}")
    method = IntegratedGradients(score_targets(model.module))
    points = [baseline + share * (images - baseline) for share in BREAKS]
    options = {"additional_forward_args": targets, "n_steps": steps, "internal_batch_size": max(BATCH, len(images))}
    found = sum(method.attribute(end, start, **options) for start, end in pairwise(points))  # (B, 3, h, w)
    if (images != baseline).any():
        check_gradient(found, "the pixels")
    return found.sum(dim=1)


@explanation(signed=False)
def saliency(model, images, targets):
    """How strongly the target logit reacts to each pixel: the largest absolute gradient of its channels.

    Source: Simonyan et al. 2013, arXiv 1312.6034.
    """
    found = Saliency(score_targets(model.module)).attribute(
        images.requires_grad_(), additional_forward_args=targets
    )  # (B, 3, h, w)
    check_gradient(found, "the pixels")
    return found.amax(dim=1)

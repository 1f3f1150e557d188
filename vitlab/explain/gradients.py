"""Attribution to pixels by gradients, computed by Captum."""

from __future__ import annotations

from itertools import pairwise

import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency

from vitlab.errors import UserError
from vitlab.explain.baselines import make_baseline
from vitlab.explain.inspection import check_count, check_gradient, score_targets, seeded
from vitlab.explain.methods import explanation

BATCH = 16  # images in memory at once, with all that a backward pass keeps of them
# each part of the way is so many times shorter than the next: with the first trace of contrast,
# logits leap
SHORTER = 4


@explanation(
    signed=False,
    shows=(
        "The brighter a place, the more a small change of its pixels changes the score of {target},"
        " up or down."
    ),
)
def saliency(model, images, targets):
    """How strongly the target logit reacts to each pixel: the largest absolute gradient of its
    channels.

    Source: Simonyan et al. 2013, arXiv 1312.6034.
    """
    method = Saliency(score_targets(model.module))
    # (B, 3, h, w)
    found = method.attribute(images.requires_grad_(), additional_forward_args=targets)
    check_gradient(found, "the pixels")
    return found.amax(dim=1)


@explanation(
    signed=True,
    shows=(
        "Positive values are pixels that raise the score of {target} above that of a baseline"
        " image, and negative ones lower it, as far as the model is linear."
    ),
)
def input_x_gradient(model, images, targets, baseline="mean"):
    """What each pixel would add to the target logit, against the baseline, if the model were linear
    (channels summed).

    It is integrated gradients with the gradient of one point, the image itself, and adds up to the
    difference of the logits only for a linear model. Source: Shrikumar et al. 2016, arXiv
    1605.01713."""
    blank = make_baseline(baseline, images, model.transform)
    score = score_targets(model.module)
    method = InputXGradient(lambda contrast, weights, start: score(start + contrast, weights))
    # (B, 3, h, w)
    found = method.attribute(
        (images - blank).requires_grad_(), additional_forward_args=(targets, blank)
    )
    _check_contrast(found, images, blank)
    return found.sum(dim=1)


@explanation(
    signed=True,
    complete=True,
    shows=(
        "Positive values are pixels that raise the score of {target} on the way from a baseline"
        " image to this one, and negative ones lower it; all add up to the difference."
    ),
)
def integrated_gradients(
    model, images, targets, steps=8, parts=4, baseline="mean", internal_batch_size=BATCH
):
    """The difference between the target logit of the image and that of the baseline, divided among
    the pixels (channels summed).

    The gradient is averaged on the straight way from the baseline, which is cut into `parts`, each
    four times as long as the one before; each takes `steps` points of Gauss-Legendre quadrature,
    and more of them come closer to the exact division (convergence_delta says how close). With
    parts=1 it is Captum's own IntegratedGradients. internal_batch_size: images between the two that
    are in memory at once. Source: Sundararajan et al. 2017, arXiv 1703.01365."""
    for name, value in {
        "steps": steps,
        "parts": parts,
        "internal_batch_size": internal_batch_size,
    }.items():
        check_count(name, value)
    blank = make_baseline(baseline, images, model.transform)
    method = IntegratedGradients(score_targets(model.module))
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
    _check_contrast(found, images, blank)
    return found.sum(dim=1)


@explanation(
    signed=False,
    shows=(
        "The brighter a place, the more a small change of its pixels changes the score of {target},"
        " up or down, averaged over noisy copies of the image."
    ),
)
def smooth_grad(model, images, targets, samples=16, noise=0.15, seed=0, internal_batch_size=BATCH):
    """The gradient, averaged over noisy copies of the image; then, as saliency, the largest
    absolute value of its channels.

    noise: its standard deviation, as a share of the range of the image's values. The noise is the
    same for every image. internal_batch_size: copies in memory at once. Source: Smilkov et al.
    2017, arXiv 1706.03825."""
    for name, value in {"samples": samples, "internal_batch_size": internal_batch_size}.items():
        check_count(name, value)
    if not noise >= 0:
        raise UserError(
            f"noise must be a share of the range of the image's values, 0 or more, not {noise!r}"
        )
    method = NoiseTunnel(Saliency(score_targets(model.module)))
    found = []
    for image, weights in zip(images.split(1), targets.split(1), strict=True):
        width = noise * (image.max() - image.min()).item()
        with seeded(seed, images.device):
            gradient = method.attribute(
                image.requires_grad_(),
                nt_samples=samples,
                nt_samples_batch_size=internal_batch_size,
                stdevs=width,
                additional_forward_args=weights,
                abs=False,
            )  # (1, 3, h, w)
        found.append(gradient.detach())
    found = torch.cat(found)
    check_gradient(found, "the pixels")
    return found.abs().amax(dim=1)


@explanation(
    signed=True,
    complete=True,
    shows=(
        "Positive values are pixels that raise the score of {target} above that of random reference"
        " images, and negative ones lower it; all add up to the mean difference."
    ),
)
def gradient_shap(
    model,
    images,
    targets,
    samples=16,
    baseline="mean",
    references=None,
    seed=0,
    internal_batch_size=BATCH,
):
    """Expected gradients: integrated gradients at random points on the ways from random references
    (channels summed).

    samples: points for each image. references: normalised images (M, 3, h, w) to draw from, say
    some of the training set: the map then divides the difference to their mean logit. Without them
    the baseline is the only reference. The draws are the same for every image. 16 are few where
    logits leap close to the baseline: convergence_delta says how few, and integrated_gradients come
    closer with 32 gradients. internal_batch_size: points in memory at once. Source: Lundberg and
    Lee 2017, arXiv 1705.07874; Erion et al. 2019, 1906.10670."""
    for name, value in {"samples": samples, "internal_batch_size": internal_batch_size}.items():
        check_count(name, value)
    blank = make_baseline(baseline, images, model.transform)
    if references is not None:
        references = torch.as_tensor(references).to(images)
        if references.shape[1:] != images.shape[1:] or not len(references):
            raise UserError(
                f"references must be images (M, {', '.join(map(str, images.shape[1:]))}) as those"
                f" explained, at least one, not {tuple(references.shape)}"
            )
    method = GradientShap(score_targets(model.module))
    found = torch.zeros_like(images)
    for i in range(len(images)):
        drawn = blank[i : i + 1] if references is None else references
        with seeded(seed, images.device):
            for start in range(0, samples, internal_batch_size):
                count = min(internal_batch_size, samples - start)
                options = {"n_samples": count, "additional_forward_args": targets[i : i + 1]}
                found[i] += (
                    count
                    / samples
                    * method.attribute(images[i : i + 1], drawn, **options)[0].detach()
                )
    _check_contrast(found, images, blank if references is None else references[:1])
    return found.sum(dim=1)


def _check_contrast(found, images, blank) -> None:
    """An image that is the baseline itself owes nothing to any pixel; any other map must not be
    blank.
    """
    if (images != blank).any():
        check_gradient(found, "the pixels")

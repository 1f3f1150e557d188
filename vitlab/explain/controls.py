"""Maps that do not depend on the model. A method that is not better than these has not shown that
it explains anything.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from vitlab.schema import AttributionMap, ModelBundle
from vitlab.seeds import derive_seed

CONTROLS = ("random", "centre", "edges")
# standard deviation of the blur of the edges, as a share of the longer side: half a patch of a
# usual ViT
SMOOTH = 1 / 28
WIDTH = 0.25  # standard deviation of the centred Gaussian, as a share of each side


def control_maps(
    model: ModelBundle, images: torch.Tensor, like: AttributionMap, seed: int = 0
) -> list[AttributionMap]:
    """Three maps of each image, for the same targets as `like`: random, centre, edges. None is
    signed.

    random: independent uniform values. centre: a Gaussian in the middle, where photographers put
    things. edges: the gradient of the grey image (Scharr's filter), which looks like many
    explanations (Adebayo et al. 2018, arXiv 1810.03292), blurred by half a patch: a control must be
    as good as it can be without the model. images: those of `like`, (N, 3, h, w), normalised."""
    height, width = images.shape[-2:]
    random = [
        np.random.default_rng(derive_seed(seed, "random", name)).random((height, width))
        for name in like.sample_ids
    ]
    rows, columns = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    centre = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * WIDTH**2))
    values = {
        "random": np.stack(random),
        "centre": np.repeat(centre[None], len(images), axis=0),
        "edges": _find_edges(images.float().cpu(), model.transform.std),
    }
    return [
        replace(like, values=values[name].astype(np.float32), method=name, signed=False)
        for name in CONTROLS
    ]


def _find_edges(images: torch.Tensor, std) -> np.ndarray:
    """Size of the gradient of the grey images: normalised (N, 3, h, w) to (N, h, w); the mean
    colour does not matter.
    """
    grey = (images * images.new_tensor(std)[:, None, None]).mean(dim=1).numpy()
    smooth, slope = np.array([3, 10, 3]) / 16, np.array([1, 0, -1]) / 2
    down, across = (
        ndimage.correlate1d(ndimage.correlate1d(grey, slope, axis=axis), smooth, axis=3 - axis)
        for axis in (1, 2)
    )
    return ndimage.gaussian_filter(
        np.hypot(down, across), SMOOTH * max(grey.shape[1:]), axes=(1, 2)
    )

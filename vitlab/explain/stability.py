"""Is a map steady under small changes of the image?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from vitlab.errors import UserError
from vitlab.explain.methods import explain
from vitlab.schema import AttributionMap, ModelBundle
from vitlab.seeds import derive_seed

RADIUS = 0.05
SAMPLES = 5


def max_sensitivity(
    model: ModelBundle,
    images: torch.Tensor,
    found: AttributionMap,
    options: dict | None = None,
    radius: float = RADIUS,
    samples: int = SAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """The largest change of a map, as a share of its size, under noise too small to be seen. Low is
    steady, not right.

    found: the maps of these images by explain(model, images, found.method, **options), explained
    again `samples` times with uniform noise up to `radius` (in normalised values), for the same
    targets. A map that ignores the image is steady, so the controls say nothing here. NaN for a
    blank map. A scores table. Source: Yeh et al. 2019, arXiv 1901.09392; as
    captum.metrics.sensitivity_max."""
    if not radius > 0 or samples < 1:
        raise UserError(
            f"radius must be above 0 and samples at least 1, not {radius} and {samples}"
        )
    largest = np.zeros(len(images))
    size = np.sqrt((found.values.astype(float) ** 2).sum(axis=(1, 2)))
    for sample in range(samples):
        generators = [
            np.random.default_rng(derive_seed(seed, "noise", sample, name))
            for name in found.sample_ids
        ]
        noise = np.stack(
            [generator.uniform(-radius, radius, images.shape[1:]) for generator in generators]
        )
        moved = images + torch.from_numpy(noise).to(images)
        again = explain(
            model,
            moved,
            found.method,
            found.target,
            found.sample_ids,
            versus=found.versus or None,
            **(options or {}),
        )
        change = np.sqrt(((again.values - found.values.astype(float)) ** 2).sum(axis=(1, 2)))
        largest = np.maximum(largest, change)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(size > 0, largest / size, np.nan)
    return pd.DataFrame(
        {
            "method": found.method,
            "metric": "max_sensitivity",
            "sample_id": list(found.sample_ids),
            "value": value,
        }
    )

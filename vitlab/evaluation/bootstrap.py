"""The bootstrap over samples: how far a number would move with another test set of the same kind and size.

A replicate is not a copy of the data but a row of counts: how often each sample was drawn. Metrics that accept
weights are then computed for all replicates at once. Percentile intervals: Efron and Tibshirani, 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CELLS = 4_000_000  # counts held at once: 32 MB


def draw_counts(num_samples: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks (R, N) of counts, `replicates` rows in all; every row sums to N."""
    generator = np.random.default_rng(seed)
    chunk = max(1, CELLS // num_samples)
    for start in range(0, replicates, chunk):
        rows = min(chunk, replicates - start)
        drawn = generator.integers(num_samples, size=(rows, num_samples))
        drawn += np.arange(rows)[:, None] * num_samples  # one range of numbers for each replicate, so one count does for all
        yield np.bincount(drawn.ravel(), minlength=rows * num_samples).reshape(rows, num_samples).astype(float)


def percentile_interval(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low end, high end and share of undefined replicates for each column of values (R, M). NaN replicates are left out."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a share between 0 and 1, such as 0.95; got {confidence}")
    undefined = np.isnan(values).mean(axis=0) if len(values) else np.ones(values.shape[1])
    low, high = np.full((2, values.shape[1]), np.nan)
    usable = undefined < 1
    tail = (1 - confidence) / 2
    if usable.any():
        low[usable], high[usable] = np.nanquantile(values[:, usable], [tail, 1 - tail], axis=0)
    return low, high, undefined

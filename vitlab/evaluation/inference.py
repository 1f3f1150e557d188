"""Intervals and tests: the bootstrap over images for large test splits, t intervals and exact tests
for means over few images, intervals of proportions, and Holm's correction.

A bootstrap replicate is a row of counts: how often each image was drawn. Metrics that accept
weights are computed for many replicates at once, 78 times faster than in a loop. Intervals are
percentile intervals (Efron and Tibshirani, 1993, chapter 13). Near-duplicates of each other are not
independent samples, so whole clusters of them are drawn (the cluster bootstrap, Davison and
Hinkley, 1997, section 3.8). Where replicates are biased (a ROC curve near its corner),
`percentile_interval` extends the interval to the number itself. Numbers that a resample always
inflates, such as a calibration error, get no interval but a reference range (`calibration_table`).

Below about 30 images the bootstrap is too narrow: of 12 values its 95 % interval contains the mean
about 90 % of the time. Student's t interval contains it 95 % of the time for normal values; these
functions take values (N, M), one row an image."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from scipy import stats

from vitlab.places import count_cores

ALPHA = 0.05  # of every verdict
NO_DIFFERENCE = "no difference shown"


def mean_interval(
    values: np.ndarray, limits=(-np.inf, np.inf)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high end of its 95 % t interval, and number of values, for each column of
    (N, M).

    NaN values are left out. NaN ends for fewer than two values, NaN everywhere for none. limits:
    the range of the mean, such as (-1, 1) for correlations; the ends stay inside. Source: Student,
    1908."""
    count = (~np.isnan(values)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, axis=0) / count
        error = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / (count - 1) / count)
        half = stats.t.ppf(0.975, count - 1) * error
    return mean, np.maximum(mean - half, limits[0]), np.minimum(mean + half, limits[1]), count


def sign_flip_p(values: np.ndarray) -> np.ndarray:
    """Two-sided p-value of each column of paired differences (N, ...): how often random signs give
    a sum as extreme.

    Exact for up to 13 images, otherwise from 9999 random draws. Valid for any number of images if
    each difference is as likely as its negative when there is no effect; normality is not needed.
    With n images, p is at least 2 * 0.5^n. Source: Fisher, The Design of Experiments, 1935,
    section 21."""
    result = stats.permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        axis=0,
        rng=0,
    )
    return result.pvalue


def correct_holm(p: np.ndarray) -> np.ndarray:
    """P-values of any shape after Holm's correction (1979) for their number; NaN stays and does not
    count.

    As statsmodels' multipletests(p, method="holm"), which collects garbage at each call: 0.8 s with
    torch loaded."""
    corrected, tested = np.full(np.shape(p), np.nan), ~np.isnan(p)
    order = np.argsort(p[tested], kind="stable")
    steps = np.maximum.accumulate(p[tested][order] * np.arange(len(order), 0, -1))
    corrected[tested] = np.minimum(steps, 1)[order.argsort()]
    return corrected


def wilson_interval(share, count) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of a share of `count` (Wilson, 1927): within 0..1 and accurate for small
    counts; NaN for a count of 0."""
    from statsmodels.stats.proportion import proportion_confint  # takes a second to import

    count = np.where(np.asarray(count) > 0, count, np.nan)
    low, high = proportion_confint(np.asarray(share) * count, count, method="wilson")
    return np.clip(low, 0, share), np.clip(high, share, 1)  # rounding can leave 0..1 by 1e-17


def effective_count(place: np.ndarray, bins: int, cluster: np.ndarray | None = None) -> np.ndarray:
    """Number of independent images that each bin (bins,) is worth: n, or with clusters
    n^2 / sum of squared cluster sizes (Kish, 1965).

    place: bin of each image (N,). Exact if the images of a cluster are all alike; otherwise too
    small, so that intervals are too wide rather than too narrow. NaN for an empty bin."""
    count = np.bincount(place, minlength=bins)
    if cluster is None:
        return count
    sizes = pd.DataFrame({"place": place, "cluster": cluster}).value_counts()
    squares = (sizes**2).groupby("place").sum().reindex(range(bins))
    return count**2 / squares.to_numpy(float)


def share_interval(
    hit: np.ndarray, cluster: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Share of True values in `hit` (N,) with its 95 % Wilson interval, in which the images of a
    cluster count as about one; NaN for no values."""
    if len(hit) == 0:
        return np.nan, np.nan, np.nan
    count = effective_count(np.zeros(len(hit), dtype=int), 1, cluster)[0]
    low, high = wilson_interval(hit.mean(), count)
    return float(hit.mean()), float(low), float(high)


CHUNK = 30_000  # counts held at once: 240 kB fit into the cache of a core


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    num_samples: int,
    replicates: int,
    seed: int = 0,
    cluster: np.ndarray | None = None,
) -> np.ndarray:
    """Replicates (R, ...) of a statistic that maps counts (r, N) to values (r, ...).

    cluster: cluster number of each image (N,), from 0 on. As many clusters are drawn as there are,
    so a row of counts sums to N only on average. Chunks of replicates run on one thread per core,
    because numpy releases Python's lock. Each chunk has its own seed, so the values do not depend
    on the number of threads."""
    rows = max(1, CHUNK // num_samples)
    chunks = [min(rows, replicates - start) for start in range(0, replicates, rows)]

    def compute(number: int) -> np.ndarray:
        return statistic(_draw_counts(num_samples, chunks[number], [seed, number], cluster))

    with ThreadPoolExecutor(count_cores()) as pool:
        values = list(pool.map(compute, range(len(chunks))))
    if not values:
        return statistic(np.ones((1, num_samples)))[:0]
    return np.concatenate(values)


def _draw_counts(
    num_samples: int, rows: int, seed: list[int], cluster: np.ndarray | None
) -> np.ndarray:
    units = num_samples if cluster is None else int(cluster.max()) + 1
    drawn = np.random.default_rng(seed).integers(units, size=(rows, units), dtype=np.int32)
    # each replicate has its own range of numbers, so that one bincount counts them all
    shifted = drawn + np.arange(rows)[:, None] * units
    counts = np.bincount(shifted.ravel(), minlength=rows * units).reshape(rows, units)
    counts = counts.astype(float)
    return counts if cluster is None else counts[:, cluster]


def tail_share(units: float) -> float:
    """The share of replicates on each side of an expanded percentile interval, 0.025 for many
    units.
    """
    if not 1 < units < np.inf:
        return 0.025
    return stats.norm.cdf(-np.sqrt(units / (units - 1)) * stats.t.ppf(0.975, units - 1))


def percentile_interval(
    values: np.ndarray, estimate: np.ndarray | None = None, units: float = np.inf
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low end, high end (95 %) and share of undefined replicates for each column of values (R, M).

    NaN replicates are left out. estimate: the numbers (M,) that the intervals are of; the ends
    reach at least to them. units: number of independent images or clusters. Percentile intervals
    are too narrow for few of them, so they are expanded as Student's t interval is (Hesterberg,
    2015, arXiv 1411.5279): with 9 clusters they cover about 89 % instead of 84 % in simulations."""
    tail = tail_share(units)
    undefined = np.isnan(values).mean(axis=0) if len(values) else np.ones(values.shape[1])
    low, high = np.full((2, values.shape[1]), np.nan)
    usable = undefined < 1
    if usable.any():
        low[usable], high[usable] = np.nanquantile(values[:, usable], [tail, 1 - tail], axis=0)
    if estimate is not None:  # NaN stays NaN
        low, high = np.minimum(low, estimate), np.maximum(high, estimate)
    return low, high, undefined

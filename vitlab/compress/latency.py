"""The time of a prediction in use: warm, one image or a batch at a time, variants in turn.

Processors change their speed with heat and with other processes. So all variants are called in each
turn, in a new random order, and ratios are computed within turns."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vitlab.compress.variants import Predictor, make_predictor
from vitlab.errors import UserError
from vitlab.places import count_cores
from vitlab.schema import ModelBundle

MIN_TURNS = 3  # whatever the seconds allowed
WARM_UP = 3  # calls of each variant before any is timed
PAUSE = 0.01  # seconds before a variant's turn, until the threads of the one before stop spinning
REPLICATES = 2000  # of turns, for the interval of a ratio


def latency_table(
    variants: Mapping[str, ModelBundle | Path | Predictor],
    images: np.ndarray,
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 30,
    threads: int | None = None,
    *,
    seconds: float = 60.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Time of a call for each variant and batch size, with ratios to the first variant.

    variants: what `make_predictor` takes, by name. images: (N, 3, h, w), repeated where a batch is
    larger. repeats: turns; in a turn each variant is called twice and the second call is timed, for
    which its weights are in the cache as in steady use. threads: None is one for each core.
    seconds: after which no further turn begins; three turns run in any case. Columns: variant,
    batch_size, threads, repeats, p50_ms, p90_ms, images_per_second (at the median), ratio (median
    over turns of the time divided by that of the first variant), ratio_low, ratio_high (95 % by
    bootstrap).

    >>> table = latency_table({"a": lambda x: x, "b": lambda x: x}, np.zeros((1, 3, 8, 8)), (1,), 3)
    >>> table[["variant", "repeats"]].values.tolist()
    [['a', 3], ['b', 3]]
    """
    threads = check_threads(threads)
    if not variants or not batch_sizes or np.ndim(images) != 4 or not len(images):
        raise UserError(
            "timing needs at least one variant, one batch size and pixels (N, 3, h, w); got"
            f" {len(variants)} variants, batch sizes {list(batch_sizes)} and pixels"
            f" {np.shape(images)}"
        )
    if min(repeats, *batch_sizes) < 1:
        raise UserError(f"repeats ({repeats}) and batch sizes ({batch_sizes}) must be at least 1")
    generator, tables = np.random.default_rng(seed), []
    with torch_threads(threads):
        predictors = {name: make_predictor(model, threads) for name, model in variants.items()}
        for size in batch_sizes:
            batch = images[np.arange(size) % len(images)]  # (B, 3, h, w)
            times = time_variants(predictors, batch, repeats, seconds, generator)
            tables.append(summarise_times(times, size, threads, seed))
    return pd.concat(tables, ignore_index=True)


def time_variants(
    predictors: Mapping[str, Predictor],
    batch: np.ndarray,
    repeats: int,
    seconds: float,
    generator: np.random.Generator,
) -> dict[str, list[float]]:
    """Seconds of each timed call of each variant, turn by turn."""
    for predictor in predictors.values():
        for _ in range(WARM_UP):
            predictor(batch)
    times: dict[str, list[float]] = {name: [] for name in predictors}
    names, began = list(predictors), time.perf_counter()
    for turn in range(repeats):
        if turn >= MIN_TURNS and time.perf_counter() - began > seconds:
            break
        for place in generator.permutation(len(names)):
            predictor = predictors[names[place]]
            time.sleep(PAUSE)
            predictor(batch)
            start = time.perf_counter()
            predictor(batch)
            times[names[place]].append(time.perf_counter() - start)
    return times


def summarise_times(
    times: Mapping[str, Sequence[float]], batch_size: int, threads: int, seed: int = 0
) -> pd.DataFrame:
    """The rows of `latency_table` from seconds turn by turn, equally many for each variant."""
    first = np.asarray(next(iter(times.values())), float)
    drawn = np.random.default_rng(seed).integers(len(first), size=(REPLICATES, len(first)))
    rows = []
    for name, values in times.items():
        values = np.asarray(values, float)
        ratios = values / first
        low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
        p50, p90 = np.quantile(values, [0.5, 0.9])
        row = {"variant": name, "batch_size": batch_size, "threads": threads}
        row |= {"repeats": len(values), "p50_ms": 1000 * p50, "p90_ms": 1000 * p90}
        row |= {"images_per_second": batch_size / p50, "ratio": np.median(ratios)}
        rows.append(row | {"ratio_low": low, "ratio_high": high})
    return pd.DataFrame(rows)


def check_threads(threads: int | None) -> int:
    """The number of threads, by default one a core; UserError for more than there are cores."""
    cores = count_cores()
    if threads is None:
        return cores
    if not 1 <= threads <= cores:
        raise UserError(
            f"threads={threads}: this process may use {cores} core{'s' * (cores > 1)}, and more"
            f" threads than cores wait for each other; write a number from 1 to {cores}"
        )
    return threads


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch compute with so many threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


# products that are summed in 32 bits: VNNI and AMX on x86, dot products and matrices on Arm
INT8 = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def read_instructions(file: Path = Path("/proc/cpuinfo")) -> list[str] | None:
    """Those of INT8 that this processor has; None where there is no /proc/cpuinfo to read."""
    if not file.is_file():
        return None
    for line in file.read_text().splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):  # of the first core, on x86 and on Arm
            return [flag for flag in INT8 if flag in flags.split()]
    return None


def multiplies_int8() -> bool:
    """Whether 8-bit products are summed in 32 bits here, as on any 64-bit Arm.

    Otherwise x86 sums pairs in 16 bits, which overflow unless the weights have 7 bits. False where
    the processor is unknown, because 7-bit weights are right on every machine."""
    return platform.machine().lower() in ("arm64", "aarch64") or bool(read_instructions())

"""How long a prediction takes as a user meets it: warm, one image or a batch at a time, contenders
taking turns.

Processors change their speed with heat and with what else runs. Whoever times one side today and
the other one tomorrow compares two days. Here all sides are called in each turn, in an order drawn
anew, and what is quoted is the ratio within turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd

from vitlab.compress.sides import Side, make_side
from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import count_cores

LEAST_TURNS = 3  # whatever the seconds allowed
PAUSE = 0.01  # seconds before a side's turn, in which the threads of the one before stop to spin
DRAWS = 2000  # of turns, for the interval of a ratio


def latency_table(
    sides: Mapping[str, object],
    images: np.ndarray,
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 30,
    threads: int | None = None,
    *,
    warmup: int = 3,
    seconds: float = 60.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Time of a call for each side and batch size, the ratios being to the first side.

    sides: what `make_side` takes, by name: models, paths of ONNX files, functions on a batch.
    images: (N, 3, h, w), repeated where a batch is larger. threads: of torch and of sessions that
    are opened here (None: one a core); a function or a session that comes ready-made keeps its own.
    warmup: calls of each side before any is timed; in a turn each side is called twice and the
    second call is timed, which then finds its weights in the cache as in steady use. seconds: after
    which no further turn begins (three there are at least). Columns: side, batch_size, threads,
    repeats (turns), p50_ms, p90_ms (of a call, linear between ranks), images_per_second (at the
    median), ratio (median over turns of the time by that of the first side), ratio_low, ratio_high
    (95 % by bootstrap)."""
    threads = check_threads(threads)
    _check(sides, images, batch_sizes, repeats)
    generator, tables = np.random.default_rng(seed), []
    with torch_threads(threads):
        called = {name: make_side(model, threads=threads) for name, model in sides.items()}
        for size in batch_sizes:
            batch = images[np.arange(size) % len(images)]  # (B, 3, h, w)
            times = time_sides(
                called, batch, repeats, warmup=warmup, seconds=seconds, generator=generator
            )
            tables.append(summarise_times(times, size, threads, seed))
    return pd.concat(tables, ignore_index=True)


def time_sides(
    sides: Mapping[str, Side],
    batch,
    repeats: int,
    *,
    warmup: int,
    seconds: float,
    generator: np.random.Generator,
) -> dict[str, list[float]]:
    """Seconds of each timed call of each side, turn by turn."""
    for side in sides.values():
        for _ in range(warmup):
            side(batch)
    times: dict[str, list[float]] = {name: [] for name in sides}
    names, began = list(sides), time.perf_counter()
    for turn in range(repeats):
        if turn >= LEAST_TURNS and time.perf_counter() - began > seconds:
            break
        for place in generator.permutation(len(names)):
            side = sides[names[place]]
            time.sleep(PAUSE)
            side(batch)
            start = time.perf_counter()
            side(batch)
            times[names[place]].append(time.perf_counter() - start)
    return times


def summarise_times(
    times: Mapping[str, Sequence[float]], batch_size: int, threads: int, seed: int = 0
) -> pd.DataFrame:
    """The rows of `latency_table` from seconds turn by turn, as many for each side."""
    first = np.asarray(next(iter(times.values())), float)
    drawn = np.random.default_rng(seed).integers(len(first), size=(DRAWS, len(first)))
    rows = []
    for name, values in times.items():
        values = np.asarray(values, float)
        ratios = values / first
        low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
        p50, p90 = np.quantile(values, [0.5, 0.9])
        row = {"side": name, "batch_size": batch_size, "threads": threads, "repeats": len(values)}
        row |= {"p50_ms": 1000 * p50, "p90_ms": 1000 * p90, "images_per_second": batch_size / p50}
        rows.append(row | {"ratio": np.median(ratios), "ratio_low": low, "ratio_high": high})
    return pd.DataFrame(rows)


def check_threads(threads: int | None) -> int:
    """The number of threads, by default that of the cores this process may use; ValueError for one
    it cannot have.
    """
    cores = count_cores()
    if threads is None:
        return cores
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= cores:
        raise UserError(
            f"threads={threads!r}: this process may use {cores} core{'s' * (cores > 1)}, and more"
            f" threads than cores wait for each other; write a number from 1 to {cores}, or run it"
            " under another taskset"
        )
    return threads


@contextmanager
def torch_threads(threads: int):
    """Let torch compute with so many threads; where it is not imported, there is nothing to set."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def _check(sides, images, batch_sizes, repeats) -> None:
    if not sides:
        raise UserError("there is nothing to time: give at least one side, {'fp32': model}")
    if np.ndim(images) != 4 or not len(images):
        raise UserError(
            f"images must be pixels (N, 3, h, w), at least one; their shape is {np.shape(images)}"
        )
    for name, value in [("repeats", repeats), *(("a batch size", size) for size in batch_sizes)]:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
    if not batch_sizes:
        raise UserError("batch_sizes is empty; write (1, 32)")

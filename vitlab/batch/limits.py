"""The budget of a notebook, in minutes and memory, and the watch that ends one which goes over it.

```yaml limits: {minutes: 30, memory: 6 GB}   # of each notebook of the batch; a step of the chain
may have its own ```"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from vitlab.errors import UserError
from vitlab.registry import unknown

if TYPE_CHECKING:
    from vitlab.batch.execute import Execution

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
LIMIT_KEYS = ["minutes", "memory"]
PERIOD = 0.5  # seconds between two looks


class Stopped(Exception):
    """An execution was ended from outside; what it did counts for nothing."""


@dataclass(frozen=True)
class Limits:
    """What one notebook may take: minutes on the clock, and memory in bytes of its kernel with all
    it starts. None: no limit.
    """

    minutes: float | None = None
    memory: int | None = None


def read_limits(content: Any, where: str, base: Limits | None = None) -> Limits:
    """`{minutes: 30, memory: 6 GB}` as Limits; what it does not name is as in `base`, null is no
    limit.

    ValueError for anything else.
    """
    base = base or Limits()
    if content is None:
        return base
    if not isinstance(content, dict):
        raise UserError(
            f"limits of {where} must be written as {{minutes: 30, memory: 6 GB}}; they are"
            f" {content!r}"
        )
    for key in content:
        if key not in LIMIT_KEYS:
            raise UserError(unknown(f"key in limits of {where}:", str(key), LIMIT_KEYS))
    minutes = content.get("minutes", base.minutes)
    if minutes is not None and (
        isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes > 0
    ):
        raise UserError(f"minutes in limits of {where} must be a number above 0; it is {minutes!r}")
    memory = content.get("memory", base.memory)
    if "memory" in content and memory is not None:
        memory = read_size(memory, f"memory in limits of {where}")
    return replace(base, minutes=minutes, memory=memory)


def read_size(value: Any, where: str) -> int:
    """Bytes of `6 GB`, `512 MB` or `5.5 GiB`."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})", str(value).strip())
    if not match or float(match[1]) == 0:
        raise UserError(
            f"{where} must be a number and a unit, like 6 GB or 512 MB; it is {value!r}"
        )
    return round(float(match[1]) * UNITS[match[2]])


def format_size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def measure_memory(pid: int, enough: float = 0) -> int:
    """Bytes that a process and all its descendants hold; pages that several of them share count
    once, as far as the system tells.

    enough: a sum up to which the quick count will do, in which shared pages count more than once.
    """
    processes, quick, fair = [], 0, 0
    with suppress(psutil.Error):
        processes = [psutil.Process(pid)]
        processes += processes[0].children(recursive=True)
    for process in processes:
        with suppress(psutil.Error):
            quick += process.memory_info().rss
    if quick <= enough:
        return quick
    for process in processes:
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            fair += getattr(memory, "pss", memory.rss)
    return fair


class Watch:
    """Looks after an execution while its `with` block lasts: its peak of memory, its limits, and
    whether it is still wanted.
    """

    def __init__(
        self, execution: Execution, limits: Limits, unwanted: Callable[[], bool] | None = None
    ):
        self.execution, self.limits, self.unwanted = execution, limits, unwanted
        self._start, self._over = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="vitlab-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        asked = 0
        while not self._over.wait(PERIOD):
            if self.unwanted is not None and self.unwanted():
                # an interrupt that falls between two cells is lost: send it again
                self.execution.stop(force=asked >= 8)
                asked += 1
                continue
            self._note_peak()
            minutes, memory = self.limits.minutes, self.limits.memory
            if minutes is not None and time.monotonic() - self._start > minutes * 60:
                self.execution.end(
                    "OverTime",
                    f"it took longer than the {minutes:g} minutes that the batch file gives it",
                )
            elif memory is not None and self.execution.pid:
                held = measure_memory(self.execution.pid, enough=memory)
                if held > memory:
                    told = (
                        f"it held {format_size(held)} of memory; the batch file gives it"
                        f" {format_size(memory)}"
                    )
                    self.execution.end("OverMemory", told)

    def _note_peak(self) -> None:
        peak = read_peak_mb(self.execution.pid)
        self.execution.peak_memory_mb = peak or self.execution.peak_memory_mb


def read_peak_mb(pid: int | None) -> int | None:
    """Peak of resident memory of a process in MB, from Linux; nowhere else does the system keep it
    for another process.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) // 1000
    return None

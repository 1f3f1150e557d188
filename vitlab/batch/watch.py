"""Watches a running notebook: ends one that exceeds its limits, and notes its peak of memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from vitlab.batch.specs import Limits

if TYPE_CHECKING:
    from vitlab.batch.execute import Execution

PERIOD = 0.5  # seconds between two looks
END_SECONDS = 30  # to wait for the watching thread; a look takes milliseconds


class Stopped(Exception):
    """An execution was ended from outside; what it did is no result."""


class Watch:
    """Watches an execution: its peak of memory, its limits, and whether it is still wanted."""

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
        self._thread.join(END_SECONDS)

    def _look_on(self) -> None:
        interrupts = 0
        while not self._over.wait(PERIOD):
            if self.unwanted is not None and self.unwanted():
                # an interrupt between two cells is lost: send it again
                self.execution.stop(force=interrupts >= 8)
                interrupts += 1
                continue
            pid = self.execution.pid
            self.execution.peak_memory_mb = read_peak_mb(pid) or self.execution.peak_memory_mb
            minutes, memory = self.limits.minutes, self.limits.memory
            if minutes is not None and time.monotonic() - self._start > minutes * 60:
                took = f"it took longer than the {minutes:g} minutes that the batch file gives it"
                self.execution.end("OverTime", took)
            elif memory is not None and pid:
                held = measure_memory(pid, enough=memory)
                if held > memory:
                    used = f"it held {_format_size(held)} of memory"
                    given = f"the batch file gives it {_format_size(memory)}"
                    self.execution.end("OverMemory", f"{used}; {given}")


def measure_memory(pid: int, enough: float = 0) -> int:
    """Bytes that a process and all its descendants hold; pages that several of them share count
    once, where the system tells.

    enough: up to this sum the quick count is used, in which shared pages count more than once.
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


def read_peak_mb(pid: int | None) -> int | None:
    """Peak of resident memory of a process in MB; None on other systems than Linux."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) // 1000
    return None


def _format_size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"

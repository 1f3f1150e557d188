"""The devices and processes that train together, and what a GPU is used for in an epoch."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

GPU_COLUMNS = ("peak_allocated_mb", "peak_reserved_mb", "utilisation_percent")


def join_processes() -> PartialState:
    """This process among those that `accelerate launch` or `torchrun` started (rank, number, device); alone without them."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def seed_device(device: torch.device, seed: int) -> None:
    """Seed processor and GPU. (torch.manual_seed takes milliseconds to note the seed for kinds of device that are not there.)"""
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def count_loader_workers(device: torch.device) -> int:
    """Processes that prepare batches: none beside a processor that trains, up to eight to keep a GPU fed."""
    return min(8, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 0


class GpuWatch:
    """Peaks since `restart`, and the mean of the utilisation at the moments when `sample` was called; nothing without a GPU."""

    def __init__(self, device: torch.device):
        self.device, self._samples = device, []
        self.columns = GPU_COLUMNS if device.type == "cuda" else ()

    def restart(self) -> None:
        self._samples.clear()
        if self.columns:
            torch.cuda.reset_peak_memory_stats(self.device)

    def sample(self) -> None:
        if self.columns:
            try:
                self._samples.append(torch.cuda.utilization(self.device))
            except (ImportError, RuntimeError):  # the driver's Python package is not installed
                self._samples.append(float("nan"))

    def row(self) -> dict[str, float]:
        if not self.columns:
            return {}
        peaks = torch.cuda.max_memory_allocated(self.device) / 1e6, torch.cuda.max_memory_reserved(self.device) / 1e6
        mean = sum(self._samples) / len(self._samples) if self._samples else float("nan")
        return dict(zip(GPU_COLUMNS, (*map(round, peaks), mean), strict=True))

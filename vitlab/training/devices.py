"""The devices and processes that train together, the number format they compute in (bfloat16 where
the device has it and where it pays), and what a GPU is used for in an epoch.
"""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import get_int_from_env, parse_flag_from_env
from torch import nn

from vitlab.errors import UserError

GPU_COLUMNS = ("peak_allocated_mb", "peak_reserved_mb", "utilisation_percent")


# set by torchrun, and by MPI
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
TORCHRUN = "torchrun --nproc_per_node NUMBER -m vitlab.training ..."


def join_processes() -> PartialState:
    """This process among those that `torchrun` or `accelerate launch` started (rank, number,
    device); alone without them.

    Without a GPU they train on the processor together (gloo). Raises UserError where they cannot
    train together: each would train alone, and all would write into one run."""
    if PartialState._shared_state:
        return PartialState()
    asked, forced = get_int_from_env(WORLD_SIZES, 1), parse_flag_from_env("ACCELERATE_USE_CPU")
    if asked == 1 and "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes and started one, as it does on a"
            f" machine without several GPUs; write {TORCHRUN} instead"
        )
    if asked > 1 and get_int_from_env(RANKS, -1) < 0 and not torch.distributed.is_initialized():
        raise UserError(
            f"WORLD_SIZE={asked} asks for several processes, but no launcher started this one;"
            f" write {TORCHRUN}"
        )
    gpus = torch.cuda.device_count() if asked > 1 and not forced else 0
    if 0 < gpus < get_int_from_env(["LOCAL_WORLD_SIZE"], 1):
        raise UserError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes, but {gpus} GPU(s): start at most one"
            " process for each GPU, or set ACCELERATE_USE_CPU=1 to train on the processor"
        )
    state = PartialState(cpu=forced or (asked > 1 and not _share_accelerators()))
    if state.num_processes < asked:
        raise UserError(
            f"{asked} processes were asked for, and this one would train alone; write {TORCHRUN}"
        )
    return state


def _share_accelerators() -> bool:
    """Whether this machine has accelerators that several processes can train on; Apple's cannot."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type != "mps"


def seed_device(device: torch.device, seed: int) -> None:
    """Seed processor and GPU. (torch.manual_seed takes milliseconds to note the seed for kinds of
    device that are not there.)
    """
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def count_loader_workers(device: torch.device) -> int:
    """Processes that prepare batches: none beside a processor that trains, up to eight to keep a
    GPU fed.
    """
    return min(8, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 0


class GpuWatch:
    """Peaks since `restart`, and the mean of the utilisation at the moments when `sample` was
    called; nothing without a GPU.
    """

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
        peaks = (
            torch.cuda.max_memory_allocated(self.device) / 1e6,
            torch.cuda.max_memory_reserved(self.device) / 1e6,
        )
        mean = sum(self._samples) / len(self._samples) if self._samples else float("nan")
        return dict(zip(GPU_COLUMNS, (*map(round, peaks), mean), strict=True))


WIDE = 256  # inputs and outputs of a linear layer from which on AMX pays
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(device: torch.device, trained: nn.Module | None = None) -> str:
    """`bf16` or `fp32`, whichever is faster on this device: to train a module, or without one for
    forward passes alone.

    On a GPU with bfloat16: always bf16. On a processor it depends. With AVX512_BF16, forward passes
    are 2 to 4 times faster. The backward pass is slower than in float32 (0.3 to 0.8 of the speed
    for our models) unless the processor has matrix units (AMX) and most of what is trained are
    linear layers wide enough to keep them busy, as in a ViT-S."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    if trained is None:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        fast = torch.cpu._is_amx_tile_supported() and _is_mostly_wide(trained)
    return "bf16" if fast else "fp32"


def _is_mostly_wide(module: nn.Module) -> bool:
    linear = (part for part in module.modules() if isinstance(part, nn.Linear))
    wide = sum(part.weight.numel() for part in linear if min(part.weight.shape) >= WIDE)
    return 2 * wide > sum(parameter.numel() for parameter in module.parameters())


def resolve_precision(
    precision: str, device: torch.device, trained: nn.Module | None = None
) -> str:
    """The precision to train a module in on this device, `auto` decided; ValueError for one that it
    cannot train in.
    """
    if precision == "auto":
        return choose_precision(device, trained)
    if precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"precision='fp16' needs a GPU, and this is a {device.type}; write precision='bf16' or"
            " 'fp32'"
        )
    if (
        precision == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise UserError(
            "precision='bf16' needs a GPU of the Ampere generation or newer; write precision='fp16'"
            " or 'fp32'"
        )
    return precision


def autocast(device: torch.device, precision: str):
    """A context in which the forward pass runs in this precision, whatever holds outside of it."""
    return torch.autocast(
        device.type, TYPES.get(precision, torch.bfloat16), enabled=precision in TYPES
    )

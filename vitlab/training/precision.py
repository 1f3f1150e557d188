"""Which number format to compute in: bfloat16 where the device has it and where it pays."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
from torch import nn

WORTHWHILE = 1.2  # bf16 must be this much faster in a trial, so that noise does not decide


def supports_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself rather than through float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def autocast(device: torch.device, precision: str):
    """A context in which the forward pass runs in this precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def choose_precision(module: nn.Module, batch: torch.Tensor, *, training: bool, repeats: int = 3) -> str:
    """`bf16` or `fp32`, by a timed trial on this batch, interleaved; with `training` the backward pass counts too.

    A processor without matrix units can convolve faster in bfloat16 and yet train a transformer more slowly: only a trial tells.
    """
    device = batch.device
    if not supports_bf16(device):
        return "fp32"
    if device.type == "cuda":
        return "bf16"
    seconds = {"fp32": [], "bf16": []}
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training):
        for _ in range(repeats):
            for precision, times in seconds.items():
                start = time.perf_counter()
                with autocast(device, precision):
                    output = module(batch)
                if training:
                    output.float().sum().backward()
                    module.zero_grad(set_to_none=True)
                times.append(time.perf_counter() - start)
    return "bf16" if min(seconds["fp32"]) > WORTHWHILE * min(seconds["bf16"]) else "fp32"

"""Which number format to compute in: bfloat16 where the device has it and where it pays."""

from __future__ import annotations

import torch

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(device: torch.device, *, training: bool) -> str:
    """`bf16` or `fp32` for this device.

    On a GPU with bfloat16: always bf16. On a processor it depends. With AVX512_BF16, convolutions run forward
    2 to 4 times faster. Training, though, is slower than in float32 (0.3 to 0.6 of the speed for the backward pass of our models)
    unless the processor has matrix units as well (AMX).
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    fast = torch.cpu._is_amx_tile_supported() or (not training and torch.cpu._is_avx512_bf16_supported())
    return "bf16" if fast else "fp32"


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision of a training on this device, `auto` decided; ValueError for one that it cannot train in."""
    if precision == "auto":
        return choose_precision(device, training=True)
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision='fp16' needs a GPU, and this is a {device.type}; write precision='bf16' or 'fp32'")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("precision='bf16' needs a GPU of the Ampere generation or newer; write precision='fp16' or 'fp32'")
    return precision


def autocast(device: torch.device, precision: str):
    """A context in which the forward pass runs in this precision, whatever holds outside of it."""
    return torch.autocast(device.type, TYPES.get(precision, torch.bfloat16), enabled=precision in TYPES)

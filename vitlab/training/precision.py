"""Which number format to compute in: bfloat16 where the device has it and where it pays."""

from __future__ import annotations

import torch
from torch import nn

from vitlab.errors import UserError

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

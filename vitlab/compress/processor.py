"""Which 8-bit instructions this processor has."""

from __future__ import annotations

import platform
from pathlib import Path

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

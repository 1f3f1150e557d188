"""What this processor can do with small numbers: its instruction sets, and what they mean for 8-bit
products.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pandas as pd

X86 = {
    "avx2": "8-bit products in three instructions; without VNNI pairs of them may saturate",
    "avx512f": "vectors of 512 bits",
    "avx_vnni": "8-bit products summed in one instruction, 256 bits",
    "avx512_vnni": "8-bit products summed in one instruction, 512 bits",
    "amx_int8": "8-bit products of whole tiles",
    "avx512_bf16": "bfloat16 products",
    "amx_bf16": "bfloat16 products of whole tiles",
    "avx512_fp16": "float16 arithmetic",
}
ARM = {
    "asimd": "vectors of 128 bits (Neon)",
    "asimddp": "8-bit products summed in one instruction",
    "i8mm": "8-bit products of small matrices",
    "bf16": "bfloat16 products",
    "asimdhp": "float16 arithmetic",
    "sve": "vectors of any length",
}
SYSCTL = {
    "asimd": "AdvSIMD",
    "asimddp": "FEAT_DotProd",
    "i8mm": "FEAT_I8MM",
    "bf16": "FEAT_BF16",
    "asimdhp": "FEAT_FP16",
}
INT8 = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
# of py-cpuinfo
ALIASES = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "avx512bf16": "avx512_bf16"}


def read_instructions() -> frozenset[str] | None:
    """Instruction sets of this processor by the names of Linux; None where they cannot be told.

    From /proc/cpuinfo, on a Mac from sysctl, else from the package py-cpuinfo where it is
    installed."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        return parse_flags(info.read_text())
    if sys.platform == "darwin":
        return _ask_sysctl()
    try:
        from cpuinfo import get_cpu_info  # type: ignore[import-not-found]
    except ImportError:
        return None
    return frozenset(ALIASES.get(flag, flag) for flag in get_cpu_info().get("flags", ())) or None


def parse_flags(text: str) -> frozenset[str] | None:
    """The flags of the first processor in the text of /proc/cpuinfo (`flags` on x86, `Features` on
    Arm).
    """
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return None


def _ask_sysctl() -> frozenset[str] | None:
    names = {f"hw.optional.arm.{key}": name for name, key in SYSCTL.items()}
    done = subprocess.run(["sysctl", *names], capture_output=True, text=True, check=False)
    lines = (line.partition(":") for line in done.stdout.splitlines())
    return (
        frozenset(names[key] for key, _, value in lines if key in names and value.strip() == "1")
        or None
    )


def instruction_table(instructions: frozenset[str] | None = None) -> pd.DataFrame:
    """Columns instruction, present (True, False, or None where unknown), meaning: those that matter
    to small number formats.

    instructions: as of `read_instructions`, which is asked without them.
    """
    found = read_instructions() if instructions is None else instructions
    arm = (
        bool(found & {"asimd"})
        if found is not None
        else platform.machine().lower() in ("arm64", "aarch64")
    )
    rows = [
        (name, None if found is None else name in found, meaning)
        for name, meaning in (ARM if arm else X86).items()
    ]
    return pd.DataFrame(rows, columns=["instruction", "present", "meaning"]).astype(
        {"present": object}
    )


def multiplies_int8(instructions: frozenset[str] | None = None) -> bool:
    """Whether 8-bit products have instructions of their own here, which sum in 32 bits: VNNI and
    AMX on x86, any 64-bit Arm.

    Without them x86 sums pairs in 16 bits, which overflow unless the weights have 7. Where the
    processor is not known: False on x86. instructions: as of `read_instructions`, which is asked
    without them."""
    found = read_instructions() if instructions is None else instructions
    if found is None:
        return platform.machine().lower() in ("arm64", "aarch64")
    return bool(found & {*INT8, "asimd"})

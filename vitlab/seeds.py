"""A seed for each random draw, derived from the run's seed and the purpose of the draw."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed below 2**63 that depends on the parts and their order, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1

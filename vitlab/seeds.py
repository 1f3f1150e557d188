"""One seed for each thing that is drawn, derived from the run's seed and from what the draw is
for.
"""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed below 2**63 that depends on all the parts and their order, the same on every
    machine.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1

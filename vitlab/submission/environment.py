"""The environment of the results: every installed package, and the code of vitlab."""

from __future__ import annotations

import hashlib
from importlib.metadata import distributions
from pathlib import Path

import vitlab


def list_packages() -> dict[str, str]:
    """Name (lower case, as pip writes it) -> version of every package installed here."""
    found = {}
    for package in distributions():
        name = (package.metadata["Name"] or "").lower().replace("_", "-")
        if name:
            found.setdefault(name, package.version)
    return dict(sorted(found.items()))


def hash_package() -> str:
    """SHA-256 of the Python files of this vitlab. It differs where the code was changed, even in
    the same version.
    """
    root, digest = Path(vitlab.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(
            path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
        )
    return digest.hexdigest()

"""The environment of the results: versions of Python and of every installed package, the machine, the commit."""

from __future__ import annotations

import hashlib
import platform
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import vitlab

DECISIVE = ("vitlab", "torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "pillow", "accelerate")


def list_packages() -> dict[str, str]:
    """Name (lower case, as pip writes it) -> version of every package installed here."""
    found = {}
    for package in distributions():
        name = (package.metadata["Name"] or "").lower().replace("_", "-")
        if name:
            found.setdefault(name, package.version)
    return dict(sorted(found.items()))


def hash_package() -> str:
    """SHA-256 of the Python files of this vitlab. It differs where the code was changed, even in the same version."""
    root, digest = Path(vitlab.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def describe_environment(commit: str) -> dict[str, Any]:
    """Python, system, commit of vitlab and the packages, for environment.json."""
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "system": f"{platform.system()} {platform.machine()}",
        "commit": commit,
        "vitlab_sha256": hash_package(),
        "packages": list_packages(),
    }


def compare_environments(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """The versions that differ, of those that results depend on: `torch 2.14 there, 2.15 here`."""
    pairs = [("python", theirs.get("python"), ours["python"])]
    pairs += [(name, theirs.get("packages", {}).get(name), ours["packages"].get(name)) for name in DECISIVE]
    different = [f"{name} {there or 'none'} there, {here or 'none'} here" for name, there, here in pairs if there != here]
    if theirs.get("vitlab_sha256") != ours["vitlab_sha256"]:
        different.append(f"the code of vitlab (commit {theirs.get('commit') or 'unknown'} there)")
    return different

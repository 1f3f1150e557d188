"""The JSON beside an ONNX file: what one must know to use it. `model.onnx` has `model.onnx.json`.
No torch here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vitlab.errors import MissingFileError, UserError
from vitlab.files import atomic, hash_file, write_json
from vitlab.schema import Transform

FIELDS = (
    "name",
    "classes",
    "transform",
    "input",
    "method",
    "sha256",
    "versions",
    "calibration",
    "parity",
)
PACKAGES = ("vitlab", "torch", "timm", "onnx", "onnxruntime", "numpy", "pillow")
INPUT = "images: float32 (B, C, h, w), fitted to size, scaled to 0..1, minus mean, divided by std"


def sidecar_path(path: Path | str) -> Path:
    """Where the description of an ONNX file lies: its name with .json at the end."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def write_pair(path: Path, save: Callable[[Path], object], description: dict) -> None:
    """Let `save` write the ONNX file, note its checksum in the description, and put both in place.

    Each file appears whole or not at all; a pair of which only one was replaced is noticed by the
    checksum."""
    with atomic(path) as temporary:
        save(temporary)
        description = {
            **description,
            "sha256": hash_file(temporary),
            "bytes": temporary.stat().st_size,
        }
        write_json(sidecar_path(path), {**description, "versions": _versions()})


def read_sidecar(path: Path | str) -> dict:
    """The description of an ONNX file, checked against the file.

    FileNotFoundError where one of the two is missing; ValueError where one is damaged or they do
    not belong together."""
    path, beside = Path(path), sidecar_path(path)
    for file in (path, beside):
        if not file.is_file():
            raise MissingFileError(
                f"{file} is missing; export_onnx(model, {str(path)!r}, data) writes {path.name} and"
                f" {beside.name}"
            )
    try:
        description = json.loads(beside.read_text(encoding="utf-8"))
        missing = set(FIELDS) - description.keys()
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"{beside} is damaged: {error}") from error
    if missing:
        raise UserError(
            f"{beside} does not describe an exported model: it lacks {', '.join(sorted(missing))}"
        )
    if description["input"] != INPUT:
        raise UserError(
            f"{path} takes other inputs than this version of vitlab gives ({description['input']});"
            " export it again"
        )
    if hash_file(path) != description["sha256"]:
        raise UserError(
            f"{path} is damaged or of another export than {beside.name}: its checksum is not the"
            " one noted there"
        )
    return description


def read_transform(description: dict) -> Transform:
    """The transform in a description."""
    fields = description["transform"]
    return Transform(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
    )


def describe_transform(transform: Transform) -> dict:
    return asdict(transform)


def check_target(path: Path | str) -> Path:
    """The path, when an ONNX file can be written there; ValueError before time is spent."""
    path = Path(path)
    if path.suffix != ".onnx":
        raise UserError(f"{path} does not end in .onnx; write {path.with_suffix('.onnx')}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; write the name of a file that ends in .onnx")
    return path


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def available_threads() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""A classifier in a folder: model.safetensors holds the weights, model.json how to build it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from vitlab.errors import MissingFileError, UserError
from vitlab.files import hash_file
from vitlab.models.zoo import build_model
from vitlab.schema import ModelBundle, Transform

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
FIELDS = {"name", "classes", "options", "transform", "weights_sha256", "versions"}


def save_model(model: ModelBundle, folder: Path | str) -> None:
    """Write weights and description, replacing earlier ones.

    Each file appears whole or not at all, and two files that do not belong together do not load.
    """
    if model.options.get("wrapped"):
        raise UserError(
            f"{model.name} was wrapped, not built by name, and cannot be built again from a folder;"
            " save it by its own code"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS
    _write(
        weights,
        lambda path: safetensors.torch.save_model(
            model.module, str(path), metadata={"format": "pt"}
        ),
    )
    description = {
        "name": model.name,
        "classes": model.classes,
        "options": model.options,
        "transform": asdict(model.transform),
        "weights_sha256": hash_file(weights),
        "versions": {
            package: version(package) for package in ("vitlab", "torch", "timm", "safetensors")
        },
    }
    _write(
        folder / DESCRIPTION,
        lambda path: path.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8"),
    )


def load_model(folder: Path | str, classes: Sequence[str] | None = None) -> ModelBundle:
    """The classifier that `save_model` wrote, in evaluation mode. Nothing is unpickled.

    classes: raise ValueError when the model was trained for others. Raises FileNotFoundError where
    a file is missing, and ValueError where one is damaged or the two do not belong together.

    >>> import tempfile, vitlab
    >>> folder = tempfile.mkdtemp()
    >>> vitlab.models.save_model(vitlab.build_model("vit_scratch", ["cat", "dog"]), folder)
    >>> vitlab.load_model(folder).classes
    ('cat', 'dog')
    """
    folder = Path(folder)
    for file in (DESCRIPTION, WEIGHTS):
        if not (folder / file).is_file():
            raise MissingFileError(
                f"{folder} holds no saved model: {file} is missing; save_model(model, folder)"
                " writes it"
            )
    description = _read_description(folder / DESCRIPTION)
    if classes is not None and tuple(classes) != tuple(description["classes"]):
        raise UserError(
            f"the model in {folder} tells apart {', '.join(description['classes'])}, not"
            f" {', '.join(classes)}"
        )
    if hash_file(folder / WEIGHTS) != description["weights_sha256"]:
        raise UserError(
            f"{folder / WEIGHTS} is damaged or of another run than {DESCRIPTION}: its checksum is"
            " not the one noted there"
        )
    options = description["options"]
    # built without pretrained weights, as its own are loaded below
    model = build_model(
        description["name"], description["classes"], **{**options, "pretrained": False}
    )
    try:
        safetensors.torch.load_model(model.module, str(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        versions = description["versions"].items()
        built = ", ".join(f"{package} {number}" for package, number in versions)
        raise UserError(
            f"the weights in {folder} do not fit {description['name']} as built now (saved with"
            f" {built}): {error}"
        ) from error
    built = {name: value for name, value in model.options.items() if name != "pretrained"}
    if "pretrained" in options:
        built["pretrained"] = options["pretrained"]
    return replace(model, options=built, transform=_read_transform(description["transform"]))


def _read_description(path: Path) -> dict:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        missing = FIELDS - description.keys()
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if missing:
        raise UserError(
            f"{path} is not a description of a model: it lacks {', '.join(sorted(missing))}"
        )
    return description


def _read_transform(fields: dict) -> Transform:
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Transform(**{**fields, **lists})


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, and rename it when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""A classifier in a folder: model.safetensors holds the weights, model.json how to build it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from vitlab.errors import MissingFileError, UserError
from vitlab.files import atomic, hash_file, write_json
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
            " save it with its own code"
        )
    folder = Path(folder)
    weights = folder / WEIGHTS
    with atomic(weights) as temporary:
        safetensors.torch.save_model(model.module, str(temporary), metadata={"format": "pt"})
    packages = ("vitlab", "torch", "timm", "safetensors")
    description = {
        "name": model.name,
        "classes": model.classes,
        "options": model.options,
        "transform": asdict(model.transform),
        "weights_sha256": hash_file(weights),
        "versions": {package: version(package) for package in packages},
    }
    write_json(folder / DESCRIPTION, description)


def load_model(folder: Path | str, classes: Sequence[str] | None = None) -> ModelBundle:
    """The classifier that `save_model` wrote, in evaluation mode. Nothing is unpickled.

    classes: UserError if the model was trained for others. MissingFileError where a file is
    missing, UserError where one is damaged or the two do not belong together.

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
            f"the model in {folder} has the classes {', '.join(description['classes'])}, not"
            f" {', '.join(classes)}"
        )
    if hash_file(folder / WEIGHTS) != description["weights_sha256"]:
        raise UserError(
            f"{folder / WEIGHTS} is damaged or from another run than {DESCRIPTION}: its checksum"
            " differs"
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

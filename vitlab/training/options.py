"""The options of a training run: settings of notebook 03 that have no parameter of their own.

One text holds them, such as `mixup=0.2, ema=0.999`. Every option has a name, a type, a default and
a meaning; `list_options` shows them all."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.training.config import TrainConfig, recipe, training_arguments

if TYPE_CHECKING:
    import pandas as pd

# training arguments that are parameters of notebook 03
PARAMETERS = ("strategy", "epochs", "batch_size", "learning_rate", "augment", "seed")
# a notebook that declares all of these trains a model by its recipe
TRAINS = {"model", "epochs", "learning_rate"}
WORDS = {"true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True)
class Option:
    """kind: the type of its values. default: its value where a recipe says nothing else, in words
    for the options of a model."""

    kind: type
    default: Any
    meaning: str


MODEL_OPTIONS = {
    "size": Option(int, "the model's", "pixels of the input"),
    "pretrained": Option(
        bool,
        "if there are any",
        "True: fail unless there are pretrained weights; False: start from random weights",
    ),
    "fit": Option(str, "pad", "pad keeps the whole image, crop fills the frame"),
    "drop_rate": Option(
        float, 0.0, "share of activations dropped before the head (and in vitlab's own blocks)"
    ),
    "drop_path_rate": Option(
        float, "the model's", "stochastic depth: chance that a block is skipped for an image"
    ),
    "patch_drop_rate": Option(
        float, "the model's", "share of the patches left out in training (ViTs)"
    ),
    "head_hidden": Option(
        int, 0, "width of a hidden layer (linear, Tanh, dropout, linear) in the head; 0 for none"
    ),
    "head_dropout": Option(float, 0.0, "dropout within that head"),
    "depth": Option(int, "the model's", "transformer blocks"),
    "embed_dim": Option(int, "the model's", "length of a token"),
    "num_heads": Option(int, "the model's", "attention heads in a block"),
    "patch_size": Option(int, "the model's", "pixels of a patch's side"),
}
OPTIONS = {
    argument.name: Option(type(argument.default), argument.default, argument.metadata["meaning"])
    for argument in fields(TrainConfig)
    if argument.name not in PARAMETERS
} | MODEL_OPTIONS


def list_options() -> pd.DataFrame:
    """All options of a training run. Columns: option, default (a recipe may set another), meaning.

    >>> from vitlab.training import list_options
    >>> list_options().set_index("option")["default"]["label_smoothing"]
    0.0
    """
    import pandas as pd

    rows = [(name, option.default, option.meaning) for name, option in OPTIONS.items()]
    return pd.DataFrame(rows, columns=["option", "default", "meaning"])


def parse_options(text: str) -> dict[str, Any]:
    """Name -> value for a text such as `mixup=0.2, ema=0.999`, sorted by name.

    A value that contains a comma goes in quotes. UserError for what is not NAME=VALUE, an unknown
    or repeated name, and a value of another type.

    >>> from vitlab.training.options import parse_options
    >>> parse_options("mixup=0.2, cache=false")
    {'cache': False, 'mixup': 0.2}
    """
    words = shlex.shlex(text, posix=True)
    words.whitespace, words.whitespace_split, words.commenters = ",\n", True, ""
    values = {}
    try:
        parts = [part.strip() for part in words]
    except ValueError as error:  # a quotation mark without its partner
        raise UserError(f"options {text!r} cannot be read: {error}") from None
    for part in filter(None, parts):
        name, equals, word = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(
                f"{part!r} in options is not NAME=VALUE; an example is 'mixup=0.2, ema=0.999'"
            )
        if name in values:
            raise UserError(f"{name} is given twice in options {text!r}")
        values[name] = _read_value(name, word)
    return dict(sorted(values.items()))


def format_options(values: Mapping[str, Any]) -> str:
    """The text that `parse_options` reads these values from; None is left out.

    >>> from vitlab.training.options import format_options
    >>> format_options({"mixup": 0.2, "cache": False})
    'cache=False, mixup=0.2'
    """
    given = {name: str(value) for name, value in sorted(values.items()) if value is not None}
    return ", ".join(f"{name}={_quote(value)}" for name, value in given.items())


def spread_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a notebook with each option as an entry of its own, in its own type.

    UserError for an option that is given twice."""
    spread = {
        name: float(value) if type(value) is int and _is_float(name) else value
        for name, value in parameters.items()
    }
    options = parse_options(spread.pop("options", "") or "")
    for name in options:
        if spread.get(name) is not None:
            raise UserError(f"{name} is given twice: by itself and in options")
    return spread | options


def read_settings(model: str, options: str = "", **parameters) -> tuple[dict, dict]:
    """The training arguments and the options of the model for a run, by their names.

    options: as of `parse_options`. parameters: training arguments and `preset`. None and
    preset="standard" change nothing and are left out. UserError where the settings do not fit
    together.

    >>> from vitlab.training import read_settings
    >>> read_settings("vit_scratch", "mixup=0.2, size=48", epochs=3, strategy=None)
    ({'epochs': 3, 'mixup': 0.2}, {'size': 48})
    """
    given = spread_options({**parameters, "options": options})
    if given.get("preset") == "standard":
        del given["preset"]
    given = {name: value for name, value in given.items() if value is not None}
    model_options = {name: value for name, value in given.items() if name in MODEL_OPTIONS}
    arguments = {name: value for name, value in given.items() if name not in model_options}
    probe = recipe(model, **arguments).strategy == "linear_probe"
    if probe and "strategy" not in arguments and model_options.get("pretrained") is False:
        raise UserError(
            "preset='quick' trains only the head of a pretrained model; with pretrained=False,"
            " write a strategy too, such as strategy='full'"
        )
    return arguments, model_options


def check_arguments(parameters: Mapping[str, Any]) -> None:
    """UserError where the training arguments among these parameters of a notebook do not fit
    together.
    """
    names = {"preset", *training_arguments(), *MODEL_OPTIONS}
    given = {name: value for name, value in parameters.items() if name in names}
    read_settings(parameters["model"], parameters.get("options", ""), **given)


def _is_float(name: str) -> bool:
    return name in OPTIONS and OPTIONS[name].kind is float


def _read_value(name: str, word: str) -> Any:
    if name in PARAMETERS:
        raise UserError(f"{name} is a parameter of its own: set {name}={word} outside of options")
    if name not in OPTIONS:
        raise UserError(unknown("option", name, list(OPTIONS)))
    kind = OPTIONS[name].kind
    try:
        return WORDS[word.lower()] if kind is bool else kind(word)
    except (KeyError, ValueError):
        raise UserError(f"option {name} is {word!r}; it must be of type {kind.__name__}") from None


def _quote(value: str) -> str:
    if value.strip() == value and not any(letter in value for letter in ",'\"\\\n"):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

"""Names of runs and of the folders of data sets."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path

from vitlab.errors import UserError

# of the 255 that file systems allow: hidden files beside the run need a few more
MAX_NAME_BYTES = 200
MAX_READABLE = 60  # characters of a made name that a person reads; a hash follows
FORBIDDEN = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f]')  # by Windows and POSIX together
# also of a set made of another, as planted:folder:PATH
PATH_NAME = re.compile(r"((?:[a-z]+:)*(?:folder|csv):)(.+)", re.DOTALL)


def check_run_name(name: str, parameter: str = "run_name") -> str:
    """The name, if it is a plain folder name; otherwise UserError.

    >>> check_run_name("first try")
    'first try'
    >>> check_run_name("../other")
    Traceback (most recent call last):
    vitlab.errors.UserError: run_name '../other' contains '/'; write one plain folder name, such as first-try
    """  # noqa: E501
    if not isinstance(name, str):
        problem = f"is of type {type(name).__name__}"
    elif forbidden := FORBIDDEN.search(name):
        problem = f"contains {forbidden[0]!r}"
    elif not name.strip():
        problem = "is empty"
    elif name[0] in ". " or name[-1] in ". ":
        problem = "begins or ends with a dot or a blank"
    elif any(unicodedata.category(letter) == "Cs" for letter in name):
        problem = "is not valid Unicode"
    elif len(name.encode()) > MAX_NAME_BYTES:
        problem = f"is longer than {MAX_NAME_BYTES} bytes"
    else:
        return name
    raise UserError(
        f"{parameter} {name!r} {problem}; write one plain folder name, such as first-try"
    )


def run_name(parameters: dict) -> str:
    """Model, variant, seed and a short hash of all parameters: `hybrid_vit-seed0-1a2b3c4d`."""
    digest = _hash(json.dumps(parameters, sort_keys=True, default=str))
    names = [str(parameters.get("model", "run")), str(parameters.get("variant") or "")]
    readable = "-".join(_readable(name) for name in names if name)
    return f"{readable}-seed{_readable(str(parameters.get('seed', 0)))}-{digest}"


def canonical_dataset(dataset: str) -> str:
    """One spelling for one data set: Unicode in its composed form (NFC), and the absolute path for
    folder:PATH and csv:PATH, without following symbolic links.

    >>> canonical_dataset("planted:folder:/data/./cats/")
    'planted:folder:/data/cats'
    """
    dataset = unicodedata.normalize("NFC", str(dataset))
    found = PATH_NAME.fullmatch(dataset)
    return f"{found[1]}{os.path.abspath(Path(found[2]).expanduser())}" if found else dataset


def dataset_folder(dataset: str) -> str:
    """The folder of a data set's runs: readable name and hash, `folder_data_cats-1a2b3c4d`."""
    dataset = canonical_dataset(dataset)
    return f"{_readable(dataset)}-{_hash(dataset)}"


def _readable(text: str) -> str:
    """Portable characters; of a long text more of its end, where a path names the data."""
    text = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
    if len(text) > MAX_READABLE:
        text = f"{text[:20]}_{text[21 - MAX_READABLE :]}"
    return text.strip("_.") or "other"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]

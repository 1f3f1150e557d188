"""torchvision:NAME: the image sets of torchvision.datasets that are made with (root, train,
download), such as CIFAR10.

Their files lie in reports/cache/datasets, or in $VITLAB_DATA, in torchvision's own layout, so a
folder that torchvision has filled before serves as it is. What is missing is downloaded once;
without a network that is a quick error, never a long wait."""

from __future__ import annotations

import inspect
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image

from vitlab.data.sources import DATASETS, VERSIONS, Source
from vitlab.errors import MissingFileError, UserError
from vitlab.places import reports_dir
from vitlab.registry import unknown

NETWORK_TIMEOUT_S = 10  # without a word from the server; a long download is no matter
PARTS = {"train": True, "test": False}  # split -> torchvision's argument `train`
DIGITS = 5  # of the number in a sample_id: train00017
SAMPLE_ID = re.compile(rf"(train|test)(\d{{{DIGITS}}})", re.ASCII)
WITHOUT_CLASSES = ("Kitti",)  # boxes around objects instead


@dataclass(frozen=True)
class Published:
    """What the authors of a set say of it: the licence, and where to read more."""

    licence: str
    citation: str


_TINY_IMAGES = (
    "Krizhevsky, A. (2009). Learning Multiple Layers of Features from Tiny Images. Technical"
    " report, University of Toronto. https://www.cs.toronto.edu/~kriz/cifar.html"
)
PUBLISHED = {
    "CIFAR10": Published("none stated; see the source", _TINY_IMAGES),
    "CIFAR100": Published("none stated; see the source", _TINY_IMAGES),
    "MNIST": Published(
        "none stated; see the source",
        "LeCun, Y., Bottou, L., Bengio, Y., Haffner, P. (1998). Gradient-based learning applied to"
        " document recognition. Proceedings of the IEEE 86(11), 2278-2324. doi:10.1109/5.726791",
    ),
    "FashionMNIST": Published(
        "MIT (Zalando SE)",
        "Xiao, H., Rasul, K., Vollgraf, R. (2017). Fashion-MNIST: a Novel Image Dataset for"
        " Benchmarking Machine Learning Algorithms. arXiv:1708.07747",
    ),
    "KMNIST": Published(
        "CC BY-SA 4.0 (Center for Open Data in the Humanities)",
        "Clanuwat, T., Bober-Irizar, M., Kitamoto, A., Lamb, A., Yamamoto, K., Ha, D. (2018). Deep"
        " Learning for Classical Japanese Literature. arXiv:1812.01718",
    ),
    "USPS": Published(
        "none stated; see the source",
        "Hull, J. J. (1994). A database for handwritten text recognition research. IEEE"
        " Transactions on Pattern Analysis and Machine Intelligence 16(5), 550-554."
        " doi:10.1109/34.291440",
    ),
}


@DATASETS.register(name="torchvision:")
def torchvision_set(name: str = "") -> Source:
    """The class NAME of torchvision.datasets with its own test part; a sample_id is train00017 or
    test00003.

    Raises ValueError for a NAME that there is not or that holds no classes, and FileNotFoundError,
    within seconds, where files are missing and cannot be downloaded."""
    _find_class(name)
    parts = {split: _load_part(name, data_folder(), split) for split in PARTS}
    facts = PUBLISHED.get(name)
    page = f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{name}.html"
    return Source(
        location=f"{data_folder().absolute()} {name}",
        version=_version(name),
        classes=_class_names(parts["train"]),
        samples=pd.concat(
            [_list_samples(name, split, part) for split, part in parts.items()], ignore_index=True
        ),
        read=partial(_read_image, name, data_folder()),
        licence=facts.licence if facts else "see the source",
        citation=facts.citation if facts else page,
        flip=False,  # characters, and objects that stand upright
    )


@VERSIONS.register(name="torchvision:")
def torchvision_version(name: str = "") -> str:
    """Changes with the set and with torchvision; nothing is read or downloaded."""
    _find_class(name)
    return _version(name)


def data_folder() -> Path:
    """Where torchvision's files are kept: $VITLAB_DATA, or reports/cache/datasets."""
    return (
        Path(os.environ["VITLAB_DATA"]).expanduser()
        if os.environ.get("VITLAB_DATA")
        else reports_dir() / "cache" / "datasets"
    )


def set_names() -> list[str]:
    """The names of torchvision that work here: sets of labelled images that need no further
    argument.
    """
    return [name for name in _torchvision().__all__ if _is_usable(name)]


def _torchvision():
    """torchvision.datasets, imported when a set of it is asked for: it takes seconds, torch being
    with it.
    """
    from torchvision import datasets

    return datasets


def _is_usable(name: str) -> bool:
    if name in WITHOUT_CLASSES:
        return False
    arguments = inspect.signature(getattr(_torchvision(), name)).parameters
    needed = {key for key, argument in arguments.items() if argument.default is argument.empty}
    return needed == {"root"} and {"train", "download"} <= set(arguments)


def _find_class(name: str) -> type:
    if name not in set_names():
        raise UserError(
            unknown("image set of torchvision", name, set_names(), "Write torchvision:NAME.")
        )
    return getattr(_torchvision(), name)


def _version(name: str) -> str:
    return f"torchvision {version('torchvision')} {name}"  # which holds the checksums of the files


@lru_cache(maxsize=8)
def _load_part(name: str, folder: Path, split: str) -> Any:
    """The torchvision dataset of one part, its arrays in memory; downloaded where its files are
    missing.
    """
    build = partial(_find_class(name), folder, train=PARTS[split])
    try:
        return build(download=False)
    # missing, incomplete, or on its way in another process: each set says so in its own words
    except Exception:
        return _download(name, folder, build)


def _download(name: str, folder: Path, build: Callable) -> Any:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # notebooks side by side download once
        with FileLock(folder / f".{name}.lock"), _network_timeout():
            return build(download=True)
    except Exception as error:  # no network, no room, a file that is not what it should be
        reason = str(error).strip() or type(error).__name__
        raise MissingFileError(
            f"torchvision:{name} is not (whole) in {folder.absolute()}, and to download it failed:"
            f" {reason.splitlines()[-1]}. {_describe_files(name, folder)} Another folder can be"
            " named in VITLAB_DATA. At hand without a network are elpv, digits and folder:PATH."
        ) from error


def _describe_files(name: str, folder: Path) -> str:
    """What to put where by hand, as far as the class tells."""
    dataset_class = getattr(_torchvision(), name)
    if hasattr(dataset_class, "filename"):
        return f"By hand: put {dataset_class.url} there, as it is."
    if hasattr(dataset_class, "resources"):
        files = ", ".join(file for file, _ in dataset_class.resources)
        return (
            f"By hand: put {files} from {dataset_class.mirrors[0]} into {name}/raw there, as they"
            " are."
        )
    return "By hand: put its files there, laid out as torchvision does."


@contextmanager
def _network_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _list_samples(name: str, split: str, part: Any) -> pd.DataFrame:
    targets = np.asarray(getattr(part, "targets", ()))
    if targets.shape != (len(part),) or targets.dtype.kind not in "iu":
        raise UserError(
            f"torchvision:{name} gives no class number for each image; choose another of"
            " torchvision's sets"
        )
    classes = _class_names(part)
    numbers = range(len(part))
    return pd.DataFrame(
        {
            "sample_id": [f"{split}{number:0{DIGITS}d}" for number in numbers],
            "label": [classes[target] for target in targets],
            "group": "all",
            "source": [
                f"torchvision.datasets.{name}, {split}, number {number}" for number in numbers
            ],
            "split": split,
        }
    )


def _class_names(part: Any) -> tuple[str, ...]:
    names = getattr(part, "classes", None) or range(int(np.max(part.targets)) + 1)
    return tuple(str(name) for name in names)


def _read_image(name: str, folder: Path, sample_id: str) -> Image.Image:
    found = SAMPLE_ID.fullmatch(sample_id)
    part = _load_part(name, folder, found[1]) if found else ()
    if not found or int(found[2]) >= len(part):
        raise UserError(
            f"unknown sample_id {sample_id!r}; those of torchvision:{name} are like train00017 and"
            " test00003"
        )
    return part[int(found[2])][0]

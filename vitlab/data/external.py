"""torchvision:NAME and hub:NAME, image sets that come as numbered rows with their own splits.

`hub:owner/name` comes from the Hugging Face hub through `datasets`, `hub:PATH` from a folder
written by `save_to_disk`. torchvision's files lie in reports/cache/datasets, or in $VITLAB_DATA, in
torchvision's own layout. What is missing is downloaded once; without a network that is a quick
error. Images are decoded one by one when they are asked for."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image

from vitlab.data.local import NO_LABEL, SPLIT_NAMES
from vitlab.data.sources import DATASETS, EXCLUDED_COLUMNS, VERSIONS, Reader, Source
from vitlab.errors import MissingFileError, UserError
from vitlab.pictures import open_picture
from vitlab.places import reports_dir
from vitlab.registry import unknown

TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")
NETWORK_TIMEOUT_S = 10  # for an answer of the server; a long download is allowed
OTHER_SPLIT = "its split is none of train, validation, test"
AT_HAND = "At hand without a network are elpv, digits, folder:PATH and csv:FILE."

# save_to_disk writes one of these into every folder
SAVED = ("state.json", "dataset_dict.json")
HUB_HELP = "Write hub:owner/name, or hub:PATH with a folder that save_to_disk has written"
SAVE_HELP = 'Write datasets.load_dataset(NAME, CONFIG).save_to_disk("FOLDER"), then hub:FOLDER.'


def numbered_source(
    name: str,
    labels: Mapping[str, Sequence[str]],
    groups: Mapping[str, Sequence[str] | str],
    open_row: Callable[[tuple[str, int]], Image.Image],
    **facts,
) -> Source:
    """The source of a set whose images are rows of named parts: row 17 of train is train00017.

    labels: part -> the label of each row, "" for none. groups: part -> one for each row, or one for
    all. open_row: the image of (part, row). facts: the other fields of Source. Parts called train,
    val or test are splits, a single part has none. Rows of another part or without a label are
    excluded."""
    tables, places = [], {}
    for part in labels:
        rows = range(len(labels[part]))
        ids = [f"{part}{row:05d}" for row in rows]
        places.update({sample_id: (part, row) for sample_id, row in zip(ids, rows, strict=True)})
        table = pd.DataFrame({"sample_id": ids, "label": labels[part], "group": groups[part]})
        table["source"] = [f"{name}, {part}, row {row}" for row in rows]
        table["split"] = SPLIT_NAMES.get(part.lower(), "")
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    if len(labels) > 1 and "train" not in set(table["split"]):
        raise UserError(
            f"{name} has the splits {', '.join(labels)}, none of them train; save it with one"
            " called train"
        )
    table["reason"] = np.where(table["label"] == "", NO_LABEL, "")
    if len(labels) == 1:
        table = table.drop(columns="split")
    else:
        table.loc[table["split"] == "", "reason"] = OTHER_SPLIT
    used = table["reason"] == ""
    return Source(
        samples=table[used].drop(columns="reason").reset_index(drop=True),
        excluded=table.loc[~used, list(EXCLUDED_COLUMNS)].reset_index(drop=True),
        read=Reader(places, open_row),
        **facts,
    )


# torchvision


@DATASETS.register(name="torchvision:")
def torchvision_set(name: str = "") -> Source:
    """The class NAME of torchvision.datasets, one of TORCHVISION, with its own test part.

    MissingFileError where files are missing and cannot be downloaded."""
    _check_torchvision(name)
    parts = {part: _load_torchvision(name, data_folder(), part) for part in ("train", "test")}
    classes = tuple(map(str, getattr(parts["train"], "classes", range(10))))
    labels = {
        part: [classes[target] for target in np.asarray(images.targets)]
        for part, images in parts.items()
    }
    return numbered_source(
        f"torchvision.datasets.{name}",
        labels,
        dict.fromkeys(parts, "all"),
        partial(_open_torchvision, parts),
        location=f"{data_folder().absolute()} {name}",
        version=torchvision_version(name),
        classes=classes,
        licence="see the source",
        citation=f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{name}.html",
        flip=False,  # characters, and objects that stand upright
    )


@VERSIONS.register(name="torchvision:")
def torchvision_version(name: str = "") -> str:
    """Changes with the set and with torchvision, which holds the checksums of the files; nothing is
    read or downloaded.
    """
    _check_torchvision(name)
    return f"torchvision {version('torchvision')} {name}"


def data_folder() -> Path:
    """Where torchvision's files are kept: $VITLAB_DATA, or reports/cache/datasets."""
    folder = os.environ.get("VITLAB_DATA")
    return Path(folder).expanduser() if folder else reports_dir() / "cache" / "datasets"


def _check_torchvision(name: str) -> None:
    if name not in TORCHVISION:
        advice = "Write torchvision:NAME."
        raise UserError(unknown("image set of torchvision", name, list(TORCHVISION), advice))


@lru_cache(maxsize=8)
def _load_torchvision(name: str, folder: Path, part: str) -> Any:
    """The torchvision dataset of one part, its arrays in memory; downloaded where files miss."""
    from torchvision import datasets  # takes seconds to import

    build = partial(getattr(datasets, name), folder, train=part == "train")
    try:
        return build(download=False)
    # missing, incomplete, or on its way in another process: each set raises something else
    except Exception:
        pass
    before = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
        with FileLock(folder / f".{name}.lock"):  # notebooks side by side download once
            return build(download=True)
    except Exception as error:  # no network, no room, a damaged file
        raise MissingFileError(
            f"torchvision:{name} is not complete in {folder.absolute()}, and its download failed:"
            f" {_last_line(error)} Put its files there as torchvision does, or name another folder"
            f" in VITLAB_DATA. {AT_HAND}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _open_torchvision(parts: Mapping[str, Any], place: tuple[str, int]) -> Image.Image:
    part, row = place
    return parts[part][row][0]


# Hugging Face


@DATASETS.register(name="hub:")
def hub_set(name: str = "") -> Source:
    """The set with its own splits train, validation (val, dev) and test; missing ones are drawn.

    It has one column of the type Image, one of the type ClassLabel, and perhaps one called group.
    Another set can be changed with `datasets` and saved with save_to_disk. Images without a label,
    and those of another split, are listed in `excluded`.

    UserError for an unknown set, one that needs a login, and ambiguous columns;
    MissingFileError where the set is not at hand and cannot be downloaded."""
    import datasets  # takes a second to import

    _check_hub(name)
    parts = _load_hub(name)
    first = next(iter(parts.values()))
    image = _find_column(name, first.features, datasets.Image)
    label = _find_column(name, first.features, datasets.ClassLabel)
    classes = tuple(first.features[label].names)
    labels, groups, encoded = {}, {}, {}
    for part, rows in parts.items():
        targets = _read_column(rows, label)
        labels[part] = ["" if t is None or t < 0 else classes[t] for t in targets]
        groups[part] = "all"
        if "group" in first.features:
            groups[part] = [str(value) for value in _read_column(rows, "group")]
        # bytes instead of decoded images: Pillow opens them as all others
        images = rows.select_columns([image]).with_format(None)
        encoded[part] = images.cast_column(image, datasets.Image(decode=False))
    page = "" if _is_saved(name) else f"https://huggingface.co/datasets/{name}"
    return numbered_source(
        f"hub:{name}",
        labels,
        groups,
        partial(_open_hub, encoded, image),
        location=f"hub:{name}",
        version=hub_version(name),
        classes=classes,
        licence=str(first.info.license or ""),
        citation=str(first.info.citation or first.info.homepage or page),
    )


@VERSIONS.register(name="hub:")
def hub_version(name: str = "") -> str:
    """For a saved folder a hash of its fingerprints, for a set on the hub its name. No image is
    decoded and nothing is downloaded.
    """
    _check_hub(name)
    if not _is_saved(name):
        return f"datasets {version('datasets')} {name}"
    state = [(part, rows._fingerprint, rows.num_rows) for part, rows in _load_hub(name).items()]
    return hashlib.sha256(str(state).encode()).hexdigest()[:16]


def _check_hub(name: str) -> None:
    path = Path(name).expanduser()
    if name and (path.is_absolute() or name.startswith((".", "~")) or path.is_dir()):
        if not _is_saved(name):
            what = "does not exist" if not path.exists() else f"holds neither {' nor '.join(SAVED)}"
            raise UserError(
                f"hub:{name}: {path.absolute()} {what}. {HUB_HELP}; a folder of image files is"
                " folder:PATH."
            )
    elif not name or name.count("/") > 1 or name.strip("/") != name:
        raise UserError(f"hub:{name} is no name of a data set on the hub. {HUB_HELP}.")


def _is_saved(name: str) -> bool:
    return any((Path(name).expanduser() / file).is_file() for file in SAVED)


@lru_cache(maxsize=4)
def _load_hub(name: str) -> Mapping[str, Any]:
    """The set's parts (datasets.Dataset) by split name; one that was never split is `all`."""
    import datasets

    if _is_saved(name):
        found = datasets.load_from_disk(str(Path(name).expanduser()))
        return found if isinstance(found, Mapping) else {"all": found}
    try:
        return datasets.load_dataset(name)
    except datasets.exceptions.DatasetNotFoundError as error:  # the hub has answered
        raise UserError(
            f"hub:{name}: {_last_line(error)} Look the name up on https://huggingface.co/datasets;"
            " where a set asks you to accept its terms, do so there, and log in here with `hf auth"
            " login`."
        ) from error
    except ValueError as error:  # it has several configurations; the message lists them
        raise UserError(f"hub:{name}: {error} Load one, and save it. {SAVE_HELP}") from error
    except Exception as error:  # no network, no room, a damaged file
        raise MissingFileError(
            f"hub:{name} is not on this machine, and its download failed: {_last_line(error)}"
            f" Save it where there is a network, and copy the folder here. {SAVE_HELP} {AT_HAND}"
        ) from error


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].rstrip(". ") + "."


def _find_column(name: str, features: Mapping, kind: type) -> str:
    """The only column of this type."""
    fitting = [key for key, feature in features.items() if isinstance(feature, kind)]
    if len(fitting) != 1:
        raise UserError(
            f"hub:{name} has {len(fitting)} columns ({', '.join(fitting)}) of the type"
            f" {kind.__name__}, not one; its columns are {', '.join(features)}. Change a copy with"
            f" select_columns or class_encode_column, and save it. {SAVE_HELP}"
        )
    return fitting[0]


def _read_column(rows: Any, column: str) -> list:
    return list(rows.select_columns([column]).with_format(None)[column])


def _open_hub(parts: Mapping[str, Any], column: str, place: tuple[str, int]) -> Image.Image:
    part, row = place
    stored = parts[part][row][column]
    if stored is None:
        raise OSError("there is no image in this row")
    return open_picture(stored["bytes"] or stored["path"])

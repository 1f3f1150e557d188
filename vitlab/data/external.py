"""hub:NAME and torchvision:NAME, image sets that come as numbered rows with their own splits.

`hub:owner/name` comes from the Hugging Face hub through `datasets`, `hub:PATH` from a folder
written by `save_to_disk`. torchvision's files lie in reports/cache/datasets, or in $VITLAB_DATA, in
torchvision's own layout. What is missing is downloaded once; without a network that is a quick
error. Images are decoded one by one when they are asked for."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image

from vitlab.data.folder import SPLIT_FOLDERS
from vitlab.data.sources import DATASETS, EXCLUDED_COLUMNS, VERSIONS, Source
from vitlab.errors import MissingFileError, UserError
from vitlab.pictures import open_picture
from vitlab.places import reports_dir
from vitlab.registry import unknown

NETWORK_TIMEOUT_S = 10  # for an answer of the server; a long download is allowed
SAMPLE_ID = re.compile(r"(.+?)(\d{5,})", re.ASCII)  # split and number: train00017
SPLIT_NAMES = SPLIT_FOLDERS | {"dev": "val"}
OTHER_SPLIT, NO_LABEL = "its split is none of train, validation, test", "it has no label"
AT_HAND = "At hand without a network are elpv, digits and folder:PATH."

HUB_OPTIONS = ("image", "label", "group", "config", "revision")
# save_to_disk writes one of these into every folder
SAVED = ("state.json", "dataset_dict.json")
HUB_HELP = "Write hub:owner/name, or hub:PATH with a folder that save_to_disk has written"
Options = tuple[tuple[str, str], ...]  # hashable, for the cache


def make_table(name: str, parts: Mapping[str, tuple[Sequence[str], Any]]) -> pd.DataFrame:
    """The samples of numbered rows: sample_id, label, group, source, split, reason.

    parts: the set's own split names -> labels ("" for none) and groups (one for each row, or one
    for all). reason: why a row cannot be used, or empty. A single part gets the split ""."""
    tables = []
    for part, (labels, groups) in parts.items():
        rows = range(len(labels))
        table = pd.DataFrame(
            {
                "sample_id": [f"{part}{row:05d}" for row in rows],
                "label": labels,
                "group": groups,
                "source": [f"{name}, {part}, row {row}" for row in rows],
            }
        )
        table["split"] = "" if len(parts) == 1 else SPLIT_NAMES.get(part.lower(), OTHER_SPLIT)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    if len(parts) > 1 and "train" not in set(table["split"]):
        raise UserError(
            f"{name} has the splits {', '.join(parts)}, none of them train; save it with one called"
            " train"
        )
    no_label = np.where(table["label"] == "", NO_LABEL, "")
    return table.assign(reason=np.where(table["split"] == OTHER_SPLIT, OTHER_SPLIT, no_label))


def build_source(table: pd.DataFrame, **facts) -> Source:
    """The source of a `make_table`; facts: the other fields of Source."""
    used = table["reason"] == ""
    samples = table[used].drop(columns="reason").reset_index(drop=True)
    return Source(
        samples=samples if samples["split"].all() else samples.drop(columns="split"),
        excluded=table.loc[~used, list(EXCLUDED_COLUMNS)].reset_index(drop=True),
        **facts,
    )


def find_row(name: str, sample_id: str, parts: Mapping[str, Sequence]) -> tuple[str, int]:
    """The part and the row of a sample_id."""
    found = SAMPLE_ID.fullmatch(sample_id)
    if not found or found[1] not in parts or int(found[2]) >= len(parts[found[1]]):
        first = next(iter(parts))
        raise UserError(
            f"unknown sample_id {sample_id!r}; those of {name} are like {first}00000 and"
            f" {first}00017"
        )
    return found[1], int(found[2])


# torchvision


@DATASETS.register(name="torchvision:")
def torchvision_set(name: str = "") -> Source:
    """The class NAME of torchvision.datasets, such as CIFAR10, with its own test part.

    UserError for a NAME that does not exist or has no classes; MissingFileError where files are
    missing and cannot be downloaded."""
    _find_class(name)
    parts = {split: _load_torchvision(name, data_folder(), split) for split in ("train", "test")}
    classes = _torchvision_classes(parts["train"])
    labels = {
        split: ([classes[target] for target in np.asarray(part.targets)], "all")
        for split, part in parts.items()
    }
    return build_source(
        make_table(f"torchvision.datasets.{name}", labels),
        location=f"{data_folder().absolute()} {name}",
        version=torchvision_version(name),
        classes=classes,
        read=partial(_read_torchvision, name, data_folder()),
        licence="see the source",
        citation=f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{name}.html",
        flip=False,  # characters, and objects that stand upright
    )


@VERSIONS.register(name="torchvision:")
def torchvision_version(name: str = "") -> str:
    """Changes with the set and with torchvision, which holds the checksums of the files; nothing is
    read or downloaded.
    """
    _find_class(name)
    return f"torchvision {version('torchvision')} {name}"


def data_folder() -> Path:
    """Where torchvision's files are kept: $VITLAB_DATA, or reports/cache/datasets."""
    folder = os.environ.get("VITLAB_DATA")
    return Path(folder).expanduser() if folder else reports_dir() / "cache" / "datasets"


def set_names() -> list[str]:
    """The sets of torchvision that work here: made with (root, train, download) and labelled."""
    from torchvision import datasets  # takes seconds to import

    def is_usable(name: str) -> bool:
        arguments = inspect.signature(getattr(datasets, name)).parameters
        needed = {key for key, argument in arguments.items() if argument.default is argument.empty}
        # Kitti has boxes around objects instead of classes
        return needed == {"root"} and {"train", "download"} <= set(arguments) and name != "Kitti"

    return [name for name in datasets.__all__ if is_usable(name)]


def _find_class(name: str) -> type:
    from torchvision import datasets

    names = set_names()
    if name not in names:
        raise UserError(unknown("image set of torchvision", name, names, "Write torchvision:NAME."))
    return getattr(datasets, name)


@lru_cache(maxsize=8)
def _load_torchvision(name: str, folder: Path, split: str) -> Any:
    """The torchvision dataset of one part, its arrays in memory; downloaded where files miss."""
    build = partial(_find_class(name), folder, train=split == "train")
    try:
        return build(download=False)
    # missing, incomplete, or on its way in another process: each set raises something else
    except Exception:
        pass
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # notebooks side by side download once
        with FileLock(folder / f".{name}.lock"), _network_timeout():
            return build(download=True)
    except Exception as error:  # no network, no room, a damaged file
        raise MissingFileError(
            f"torchvision:{name} is not complete in {folder.absolute()}, and its download failed:"
            f" {_last_line(error)} Put its files there as torchvision does, or name another folder"
            f" in VITLAB_DATA. {AT_HAND}"
        ) from error


@contextmanager
def _network_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _torchvision_classes(part: Any) -> tuple[str, ...]:
    names = getattr(part, "classes", None) or range(int(np.max(part.targets)) + 1)
    return tuple(str(name) for name in names)


def _read_torchvision(name: str, folder: Path, sample_id: str) -> Image.Image:
    parts = {split: _load_torchvision(name, folder, split) for split in ("train", "test")}
    split, row = find_row(f"torchvision:{name}", sample_id, parts)
    return parts[split][row][0]


# Hugging Face


@DATASETS.register(name="hub:")
def hub_set(name: str = "") -> Source:
    """The set with its own splits train, validation (val, dev) and test; missing ones are drawn.

    NAME may end in options, as in hub:uoft-cs/cifar100?label=fine_label&revision=main: the columns
    `image`, `label` and `group` (by default the only ones of the types Image and ClassLabel, and
    one group for all), and the hub's `config` and `revision`. Images without a label, and those of
    another split, are listed in `excluded`.

    UserError for an unknown set, one that needs a login, and ambiguous columns;
    MissingFileError where the set is not at hand and cannot be downloaded."""
    where, options = _read_name(name)
    parts = _load_hub(where, options)
    image, label, group = _find_columns(name, parts, dict(options))
    labels = {
        split: (
            _read_labels(part, label),
            [str(value) for value in _read_column(part, group)] if group else "all",
        )
        for split, part in parts.items()
    }
    first = next(iter(parts.values()))
    named = getattr(first.features[label], "names", None)
    found = {text for texts, _ in labels.values() for text in texts if text}
    info = first.info
    page = "" if _is_saved(where) else f"https://huggingface.co/datasets/{where}"
    return build_source(
        make_table(f"hub:{name}", labels),
        location=f"hub:{name}",
        version=hub_version(name),
        classes=tuple(named or sorted(found)),
        read=partial(_read_hub, where, options, image),
        licence=str(info.license or ""),
        citation=str(info.citation or info.homepage or page),
    )


@VERSIONS.register(name="hub:")
def hub_version(name: str = "") -> str:
    """For a saved folder a hash of its fingerprints, for a set on the hub its name with the
    revision. No image is decoded and nothing is downloaded.
    """
    where, options = _read_name(name)
    if not _is_saved(where):
        return f"datasets {version('datasets')} {name}"
    state = [
        (split, part._fingerprint, part.num_rows)
        for split, part in _load_hub(where, options).items()
    ]
    return hashlib.sha256(f"{state} {options}".encode()).hexdigest()[:16]


def _read_name(name: str) -> tuple[str, Options]:
    """`owner/name?label=x` as ("owner/name", (("label", "x"),))."""
    where, _, query = name.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in HUB_OPTIONS:
            raise UserError(unknown("option of hub:", option, list(HUB_OPTIONS), f"{HUB_HELP}."))
    path = Path(where).expanduser()
    if where and (path.is_absolute() or where.startswith((".", "~")) or path.is_dir()):
        if not _is_saved(where):
            what = "does not exist" if not path.exists() else f"holds neither {' nor '.join(SAVED)}"
            raise UserError(
                f"hub:{name}: {path.absolute()} {what}. {HUB_HELP}; a folder of image files is"
                " folder:PATH."
            )
    elif not where or where.count("/") > 1 or where.strip("/") != where:
        raise UserError(f"hub:{name} is no name of a data set on the hub. {HUB_HELP}.")
    return where, tuple(sorted(options.items()))


def _is_saved(where: str) -> bool:
    return any((Path(where).expanduser() / file).is_file() for file in SAVED)


@lru_cache(maxsize=4)
def _load_hub(where: str, options: Options) -> Mapping[str, Any]:
    """The set's parts (datasets.Dataset) by split name; one that was never split is `all`."""
    import datasets  # takes a second to import

    if _is_saved(where):
        found = datasets.load_from_disk(str(Path(where).expanduser()))
        return found if isinstance(found, Mapping) else {"all": found}
    chosen = dict(options)
    try:
        return datasets.load_dataset(where, chosen.get("config"), revision=chosen.get("revision"))
    except datasets.exceptions.DatasetNotFoundError as error:  # the hub has answered
        raise UserError(
            f"hub:{where}: {_last_line(error)} Look the name up on https://huggingface.co/datasets;"
            " where a set asks you to accept its terms, do so there, and log in here with `hf auth"
            " login`."
        ) from error
    except ValueError as error:  # config is missing or unknown; the message lists the choices
        raise UserError(f"hub:{where}: {error} Write it as hub:{where}?config=NAME.") from error
    except Exception as error:  # no network, no room, a damaged file
        raise MissingFileError(
            f"hub:{where} is not on this machine, and its download failed: {_last_line(error)}"
            f' Where there is a network, write datasets.load_dataset("{where}")'
            '.save_to_disk("FOLDER"), copy the folder here, and write hub:FOLDER.'
            f" {AT_HAND}"
        ) from error


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].rstrip(". ") + "."


def _find_columns(name: str, parts: Mapping[str, Any], chosen: dict) -> tuple[str, str, str]:
    """The columns of image, label and group ("" for none)."""
    import datasets

    features = next(iter(parts.values())).features
    for role in ("image", "label", "group"):
        if role in chosen and chosen[role] not in features:
            raise UserError(
                unknown(f"column of hub:{name} for the {role}", chosen[role], list(features))
            )
    found = []
    for role, kind in (("image", datasets.Image), ("label", datasets.ClassLabel)):
        fitting = [key for key, feature in features.items() if isinstance(feature, kind)]
        if role == "label" and role in chosen:
            fitting = [chosen[role]]  # text and numbers can be labels, too
        elif role in chosen:
            fitting = [key for key in fitting if key == chosen[role]]
        if len(fitting) != 1:
            mark = "&" if "?" in name else "?"
            raise UserError(
                f"hub:{name} has {len(fitting)} columns ({', '.join(fitting)}) of the type"
                f" {kind.__name__}; its columns are {', '.join(features)}. Name the one with the"
                f" {role}: hub:{name}{mark}{role}=COLUMN"
            )
        found.append(fitting[0])
    return (*found, chosen.get("group", ""))


def _read_labels(part: Any, column: str) -> list[str]:
    """A class name for each row, "" where there is none (None, or -1)."""
    names = getattr(part.features[column], "names", None)
    labels = []
    for value in _read_column(part, column):
        if value is None or (names and value < 0):
            labels.append("")
        else:
            labels.append(names[value] if names else str(value))
    return labels


def _read_column(part: Any, column: str) -> list:
    return list(part.select_columns([column]).with_format(None)[column])


def _read_hub(where: str, options: Options, column: str, sample_id: str) -> Image.Image:
    split, row = find_row(f"hub:{where}", sample_id, _load_hub(where, options))
    stored = _encoded_images(where, options, column, split)[row][column]
    if stored is None:
        raise OSError("there is no image in this row")
    return open_picture(stored["bytes"] or stored["path"])


@lru_cache(maxsize=16)
def _encoded_images(where: str, options: Options, column: str, split: str) -> Any:
    """The image column with bytes instead of decoded images: Pillow opens them as all others."""
    import datasets

    part = _load_hub(where, options)[split].select_columns([column]).with_format(None)
    return part.cast_column(column, datasets.Image(decode=False))

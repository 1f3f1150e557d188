"""hub:NAME: labelled image sets of the Hugging Face hub, and folders that `datasets` has written
with save_to_disk.

`hub:owner/name` comes from the cache of `datasets` ($HF_HOME) or is downloaded once; `hub:PATH` is
read as it lies there. Images are decoded one by one when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
from PIL import Image

from vitlab.data.folder import SPLIT_FOLDERS
from vitlab.data.sources import DATASETS, EXCLUDED_COLUMNS, VERSIONS, Source
from vitlab.errors import MissingFileError, UserError
from vitlab.pictures import open_picture
from vitlab.registry import unknown

OPTIONS = ("image", "label", "group", "config", "revision")
SPLIT_NAMES = SPLIT_FOLDERS | {"dev": "val"}
OTHER_SPLIT, NO_LABEL = "its split is none of train, validation, test", "it has no label"
# one of them lies in every folder that save_to_disk has written
SAVED = ("state.json", "dataset_dict.json")
HELP = "Write hub:owner/name, or hub:PATH with a folder that save_to_disk has written"


@dataclass(frozen=True)
class _Columns:
    """Which columns of a set hold what."""

    image: str
    label: str
    group: str


@DATASETS.register(name="hub:")
def hub_set(name: str = "") -> Source:
    """The set with its own splits train, validation (val, dev) and test; what is missing of them is
    drawn. Ids: train0000017.

    NAME may end in options, as in hub:uoft-cs/cifar100?label=fine_label&revision=main: the columns
    `image`, `label` and `group` (else the only ones of the types Image and ClassLabel; groups are
    "all"), and `config` and `revision` of the hub. An image without a label (-1), and one of
    another split, is listed in `excluded`.

    Raises ValueError for a set that there is not or that needs a login, and for columns that cannot
    be told; FileNotFoundError where the set is not at hand and cannot be downloaded."""
    where, options = _read_name(name)
    parts = _load_parts(where, options)
    columns = _find_columns(name, parts, options)
    tables = [_list_samples(name, split, part, columns) for split, part in parts.items()]
    table = pd.concat(tables, ignore_index=True)
    table["split"] = _map_splits(name, list(parts)).reindex(table.pop("part")).to_numpy()
    table["reason"] = np.where(
        table["split"] == "", OTHER_SPLIT, np.where(table["label"] == "", NO_LABEL, "")
    )
    excluded = table[table["reason"] != ""]
    samples = table[table["reason"] == ""].drop(columns="reason").reset_index(drop=True)
    info = next(iter(parts.values())).info
    return Source(
        location=f"hub:{name}",
        version=_version(name, where, options),
        classes=_class_names(parts, columns.label),
        samples=samples.drop(columns="split") if set(samples["split"]) == {"all"} else samples,
        read=partial(_read_image, where, options, columns.image),
        excluded=excluded[list(EXCLUDED_COLUMNS)].reset_index(drop=True),
        licence=str(info.license or ""),
        citation=str(
            info.citation
            or info.homepage
            or ("" if _is_saved(where) else f"https://huggingface.co/datasets/{where}")
        ),
    )


@VERSIONS.register(name="hub:")
def hub_version(name: str = "") -> str:
    """The version of a saved folder, or what is known of a set on the hub; no image is decoded and
    nothing is downloaded.
    """
    where, options = _read_name(name)
    return hub_set(name).version if _is_saved(where) else _version(name, where, options)


def _read_name(name: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """`owner/name?label=x` as ("owner/name", (("label", "x"),)); ValueError where it is neither a
    name nor a saved folder.
    """
    where, _, query = name.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in OPTIONS:
            raise UserError(
                unknown(
                    "option of hub:", option, list(OPTIONS), "Write hub:owner/name?label=COLUMN."
                )
            )
    path = Path(where).expanduser()
    looks_like_path = bool(where) and (
        path.is_absolute() or where.startswith((".", "~")) or path.is_dir()
    )
    if looks_like_path and not _is_saved(where):
        what = "does not exist" if not path.exists() else f"holds neither {' nor '.join(SAVED)}"
        raise UserError(
            f"hub:{name}: {path.absolute()} {what}. {HELP}; a folder of image files is folder:PATH."
        )
    if not looks_like_path and (not where or where.count("/") > 1 or where.strip("/") != where):
        raise UserError(f"hub:{name} is no name of a data set on the hub. {HELP}.")
    return where, tuple(sorted(options.items()))


def _is_saved(where: str) -> bool:
    return any((Path(where).expanduser() / file).is_file() for file in SAVED)


@lru_cache(maxsize=4)
def _load_parts(where: str, options: tuple[tuple[str, str], ...]) -> Mapping[str, Any]:
    """The set's parts (datasets.Dataset) by the names of its splits; one that was never split is
    called `all`.
    """
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
    except ValueError as error:  # config is missing or unknown; the message lists those there are
        raise UserError(f"hub:{where}: {error} Write it as hub:{where}?config=NAME.") from error
    except Exception as error:  # no network, no room, a file that is not what it should be
        raise MissingFileError(
            f"hub:{where} is not on this machine, and to download it failed: {_last_line(error)}"
            " Where there is a network, write "
            f'datasets.load_dataset("{where}").save_to_disk("FOLDER"), copy the folder here, and'
            " write hub:FOLDER. "
            "At hand without a network are elpv, digits and folder:PATH."
        ) from error


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].rstrip(". ") + "."


def _version(name: str, where: str, options: tuple[tuple[str, str], ...]) -> str:
    """Of a saved folder a digest of the fingerprints that `datasets` gave it; of a set on the hub
    its name, with the revision.
    """
    if not _is_saved(where):
        return f"datasets {version('datasets')} {name}"
    state = repr(
        [
            (split, part._fingerprint, part.num_rows)
            for split, part in _load_parts(where, options).items()
        ]
    )
    return hashlib.sha256(f"{state} {options}".encode()).hexdigest()[:16]


def _find_columns(
    name: str, parts: Mapping[str, Any], options: tuple[tuple[str, str], ...]
) -> _Columns:
    import datasets

    features, chosen = next(iter(parts.values())).features, dict(options)
    for role in ("image", "label", "group"):
        if role in chosen and chosen[role] not in features:
            raise UserError(
                unknown(f"column of hub:{name} for the {role}", chosen[role], list(features))
            )
    if "image" in chosen and not isinstance(features[chosen["image"]], datasets.Image):
        raise UserError(
            f"hub:{name}: the column {chosen['image']!r} holds {features[chosen['image']]}, not"
            " images"
        )
    found = {}
    for role, kind in (("image", datasets.Image), ("label", datasets.ClassLabel)):
        fitting = (
            [chosen[role]]
            if role in chosen
            else [key for key, feature in features.items() if isinstance(feature, kind)]
        )
        if len(fitting) != 1:
            count = f"{len(fitting)} columns ({', '.join(fitting)})" if fitting else "no column"
            mark = "&" if "?" in name else "?"
            raise UserError(
                f"hub:{name} has {count} of the type {kind.__name__}; its columns are"
                f" {', '.join(features)}. Name the one with the {role}:"
                f" hub:{name}{mark}{role}=COLUMN"
            )
        found[role] = fitting[0]
    return _Columns(found["image"], found["label"], chosen.get("group", ""))


def _map_splits(name: str, names: list[str]) -> pd.Series:
    """The set's own split names to train, val, test; "" for others. All to "all" where there is
    only one.
    """
    if len(names) == 1:
        return pd.Series("all", index=names)
    mapped = pd.Series({own: SPLIT_NAMES.get(own.lower(), "") for own in names})
    if "train" not in set(mapped):
        raise UserError(
            f"hub:{name} has the splits {', '.join(names)}, none of them train; save it with one"
            " called train"
        )
    return mapped


def _list_samples(name: str, split: str, part: Any, columns: _Columns) -> pd.DataFrame:
    numbers = range(part.num_rows)
    feature, values = part.features[columns.label], _read_column(part, columns.label)
    if hasattr(feature, "names"):
        labels = [
            feature.names[value] if value is not None and value >= 0 else "" for value in values
        ]
    else:
        labels = ["" if value is None else str(value) for value in values]
    groups = [str(value) for value in _read_column(part, columns.group)] if columns.group else "all"
    ids = [f"{split}{number:07d}" for number in numbers]
    source = [f"hub:{name}, {split}, number {number}" for number in numbers]
    return pd.DataFrame(
        {"sample_id": ids, "label": labels, "group": groups, "source": source, "part": split}
    )


def _read_column(part: Any, column: str) -> list:
    return list(part.select_columns([column]).with_format(None)[column])


def _class_names(parts: Mapping[str, Any], label: str) -> tuple[str, ...]:
    features = [part.features[label] for part in parts.values()]
    if hasattr(features[0], "names"):
        return tuple(features[0].names)
    return tuple(
        sorted(
            {
                str(value)
                for part in parts.values()
                for value in _read_column(part, label)
                if value is not None
            }
        )
    )


def _read_image(
    where: str, options: tuple[tuple[str, str], ...], column: str, sample_id: str
) -> Image.Image:
    parts = _load_parts(where, options)
    split, number = sample_id[:-7], sample_id[-7:]
    if split not in parts or not number.isdecimal() or int(number) >= parts[split].num_rows:
        first = next(iter(parts))
        raise UserError(
            f"unknown sample_id {sample_id!r}; those of hub:{where} are like {first}0000000 and"
            f" {first}0000017"
        )
    stored = _images_only(where, options, column, split)[int(number)][column]
    if stored is None:
        raise OSError("there is no image in this row")
    return open_picture(stored["bytes"] or stored["path"])


@lru_cache(maxsize=16)
def _images_only(where: str, options: tuple[tuple[str, str], ...], column: str, split: str) -> Any:
    import datasets

    part = _load_parts(where, options)[split].select_columns([column]).with_format(None)
    return part.cast_column(column, datasets.Image(decode=False))

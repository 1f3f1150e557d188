"""Your own image files: folder:PATH in the ImageFolder layout, PATH/cat/1.jpg or
PATH/train/cat/1.jpg and PATH/test/cat/2.jpg; and csv:FILE, a table with the path and label of each
image.

Not `datasets`' imagefolder and not torchvision's ImageFolder: both stop at the first broken file or
skip it silently, follow no order of classes, and name no file that they leave out."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vitlab.data.sources import DATASETS, EXCLUDED_COLUMNS, MIN_GROUPS, Reader, Source, open_file
from vitlab.errors import UserError
from vitlab.pictures import IMAGE_SUFFIXES

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
# a folder of this name that holds images but no class folders is not a class
UNLABELLED = ("test", "val")
CLASS_FILE = "classes.txt"
SYSTEM_FOLDERS = ("__MACOSX", "__pycache__")
NO_LABEL = "it has no label"
TEXTS = ("path", "label", "split", "group")  # columns of a manifest


@DATASETS.register(name="folder:")
def folder(path: str = "") -> Source:
    """Each sub-folder is a class, with everything below it. Folders train, val (valid, validation)
    and test are splits.

    A sample_id is the file's path below PATH, with forward slashes. Names are in Unicode's composed
    form (NFC). Classes are in alphabetical order, or in that of PATH/classes.txt, one name a line:
    of two, the last is the positive one. `excluded` lists files that are not images, hidden files
    and folders, and images that lie in no class folder. UserError when PATH is not a folder, has
    another layout, or classes.txt names other classes."""
    root = _check_root(path)
    splits = _find_splits(root)
    bases = [root / name for name in splits] or [root]
    labels = {_class_name(name) for base in bases for name in _subfolders(base)}
    depth = 2 if splits else 1  # of the class folders' content
    rows, excluded = [], []
    for file in _walk(root):
        parts = file.relative_to(root).parts
        sample_id, reason = _portable("/".join(parts)), _find_objection(file)
        if len(parts) <= depth and _is_shown(file.name):
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                continue  # a README, say
            reason = "it lies in no class folder"
        if reason:
            excluded.append((sample_id, reason))
        else:
            split = splits.get(parts[0], "")
            rows.append((sample_id, _class_name(parts[depth - 1]), split, file))
    if not rows:
        raise UserError(
            f"folder:{path} holds no image in a class folder; images end in"
            f" {' '.join(IMAGE_SUFFIXES)}"
        )
    table = pd.DataFrame(rows, columns=["sample_id", "label", "split", "file"]).assign(group="all")
    return _build_source(root, table, _order_classes(root, sorted(labels)), excluded)


@DATASETS.register(name="csv:")
def manifest(path: str = "") -> Source:
    """A CSV or Parquet file with a row for each image.

    Columns: path (relative to the file, or absolute), label, or prob_<class> for each class, of
    which the largest decides; optionally split and group. Further columns are kept. A sample_id is
    the path as it is written. `excluded` lists rows without a label and paths without a file.
    Classes are in alphabetical order, in that of a classes.txt beside the file, or in that of the
    columns prob_<class>. UserError, with the number of the row (of a CSV file, of the line), for a
    table that does not fit."""
    file = Path(path).expanduser()
    table = _read_manifest(file, path)
    # the line in a CSV file, below its header
    table.index += 1 if file.suffix == ".parquet" else 2
    probs = [name for name in table if name.startswith("prob_")]
    # before the names are composed: a file system may store them otherwise
    table["file"] = [file.parent / Path(str(name).strip()).expanduser() for name in table["path"]]
    texts = [name for name in TEXTS if name in table]
    for name in texts:
        table[name] = [_as_text(value) for value in table[name]]
    if probs:
        table["label"] = _find_likeliest(table[probs], file)
    for name in texts:
        if name != "label":
            _refuse(file, f"no {name}", table[name] == "")
    _refuse(file, "a path that an earlier row has", table["path"].duplicated())
    if "split" in table:
        split = table["split"].str.lower().map(SPLIT_NAMES)
        _refuse(file, "a split that is none of train, val, test", split.isna())
        table["split"] = split
    else:
        table["split"] = ""
    table["group"] = table.get("group", "all")
    unlabelled = table["label"] == ""
    classes = [name.removeprefix("prob_") for name in probs]
    classes = classes or _order_classes(file.parent, sorted(set(table["label"][~unlabelled])))
    excluded = [(sample_id, NO_LABEL) for sample_id in table["path"][unlabelled]]
    table = table[~unlabelled].rename(columns={"path": "sample_id"})
    return _build_source(file, table.reset_index(drop=True), classes, excluded)


def _build_source(
    location: Path, table: pd.DataFrame, classes: Sequence[str], excluded: list[tuple[str, str]]
) -> Source:
    """The source of a table sample_id, label, split, group, file. excluded: sample_id and
    reason.
    """
    if table["split"].eq("").all():
        table = table.drop(columns="split")
    facts = [file.stat() if file.is_file() else None for file in table["file"]]
    there = pd.Series([fact is not None for fact in facts], index=table.index, dtype=bool)
    excluded += [(name, "there is no such file") for name in table["sample_id"][~there]]
    stamps = [(fact.st_size, fact.st_mtime_ns) for fact in facts if fact]
    table = table[there].reset_index(drop=True)
    samples = table.drop(columns="file").assign(source=table["sample_id"])
    has_groups = MIN_GROUPS <= table["group"].nunique() < len(table)
    state = f"{samples.to_csv(index=False)}{stamps}{classes}"
    left_out = [(name, name, reason) for name, reason in excluded]
    return Source(
        location=str(location.resolve()),
        version=hashlib.sha256(state.encode()).hexdigest()[:16],
        classes=tuple(classes),
        samples=samples,
        read=Reader(dict(zip(table["sample_id"], table["file"], strict=True)), open_file),
        excluded=pd.DataFrame(left_out, columns=EXCLUDED_COLUMNS, dtype=str),
        group_column="group" if has_groups else "",
    )


# folders


def _check_root(path: str) -> Path:
    advice = "write folder:PATH, with one sub-folder of PATH for each class"
    root = Path(path).expanduser()
    if not path:
        raise UserError(f"folder: needs a path; {advice}")
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"folder:{path}: {root.absolute()} {what}; {advice}")
    if not _subfolders(root):
        raise UserError(f"folder:{path} has no sub-folders; {advice}")
    return root


def _find_splits(root: Path) -> dict[str, str]:
    """The folders of PATH that hold class folders of a split -> the split; empty where the folders
    of PATH are the classes.
    """
    names = _subfolders(root)
    named = [name for name in names if name.lower() in SPLIT_NAMES]
    splits = {name: SPLIT_NAMES[name.lower()] for name in named if _subfolders(root / name)}
    flat = [name for name in named if name not in splits and name.lower() in UNLABELLED]
    if not splits and len(named) < len(names):
        if flat:
            raise UserError(
                f"folder:{root} holds the folder {flat[0]}, without class folders, beside the"
                " classes; move it elsewhere if its images have no labels, or rename it if it is a"
                " class"
            )
        return {}
    if "train" not in splits.values():
        raise UserError(
            f"folder:{root} holds {', '.join(names)} but no train/CLASS/ folders; expected"
            " train/CLASS/IMAGE or CLASS/IMAGE"
        )
    others = sorted(set(names) - set(splits) - set(flat))
    if others:
        raise UserError(
            f"folder:{root} holds splits ({', '.join(splits)}) beside other folders"
            f" ({', '.join(others)}); move the others elsewhere, or rename a class that is called"
            " like a split"
        )
    return splits


def _class_name(name: str) -> str:
    if not _is_utf8(name):
        raise UserError(f"the name of the class folder {_portable(name)!r} is not UTF-8; rename it")
    return unicodedata.normalize("NFC", name)


def _order_classes(folder: Path, found: list[str]) -> list[str]:
    """The classes found, in the order of classes.txt if there is one."""
    file = folder / CLASS_FILE
    if not file.is_file():
        return found
    text = unicodedata.normalize("NFC", file.read_text(encoding="utf-8-sig", errors="replace"))
    named = [line.strip() for line in text.splitlines() if line.strip()]
    if sorted(named) != found:
        raise UserError(
            f"{file} names {', '.join(named) or 'nothing'}, but the classes are"
            f" {', '.join(found)}; write each of them on a line of its own, the positive class"
            " last, or give the file another name"
        )
    return named


def _walk(start: Path) -> Iterator[Path]:
    """All files below a folder, in sorted order. Links are followed, each folder once; a hidden
    folder is given instead of what is in it.
    """
    seen = set()
    for where, folders, files in os.walk(start, followlinks=True, onerror=_raise):
        seen.add(os.path.realpath(where))
        hidden = [name for name in folders if not _is_shown(name)]
        for name in sorted([*files, *hidden]):
            yield Path(where, name)
        folders[:] = sorted(
            name
            for name in folders
            if name not in hidden and os.path.realpath(Path(where, name)) not in seen
        )


def _find_objection(file: Path) -> str:
    """Why a file cannot be an image of this set, before it is opened; empty when it may be one."""
    if not _is_shown(file.name):
        return "it is hidden, or a folder of the system"
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        return f"its name does not end like an image ({' '.join(IMAGE_SUFFIXES)})"
    return "" if _is_utf8(str(file)) else "its name is not valid UTF-8; rename it"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _portable(name: str) -> str:
    """The same text on every machine: composed, and without bytes that are not UTF-8."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode(errors="replace"))


def _subfolders(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if item.is_dir() and _is_shown(item.name))


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name not in SYSTEM_FOLDERS


def _raise(error: OSError):
    raise error


# manifests


def _read_manifest(file: Path, path: str) -> pd.DataFrame:
    """The table of a CSV or Parquet file, with the columns that it needs."""
    if not path or not file.is_file():
        what = f"{file.absolute()} is no file" if path else "the path is missing"
        raise UserError(
            f"csv:{path}: {what}; write csv:FILE, a CSV or Parquet file with the columns path and"
            " label"
        )
    try:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file)
        else:
            table = pd.read_csv(
                file, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=[""]
            )
    except (ValueError, OSError) as error:  # also the errors of both parsers
        raise UserError(f"{file} cannot be read as a table: {error}") from error
    named = ", ".join(map(str, table.columns))
    probs = [name for name in table if str(name).startswith("prob_")]
    if "path" not in table or not ("label" in table or len(probs) > 1):
        raise UserError(
            f"{file} needs the column path, and label or a column prob_<class> for each of at least"
            f" two classes; it has {named}"
        )
    for name in ("sample_id", "source", "file"):
        if name in table:
            raise UserError(f"{file} has a column {name}, which vitlab makes itself; rename it")
    return table.reset_index(drop=True)


def _as_text(value) -> str:
    return "" if pd.isna(value) else unicodedata.normalize("NFC", str(value).strip())


def _find_likeliest(probs: pd.DataFrame, file: Path) -> np.ndarray:
    """The class of the largest probability in each row."""
    numbers = probs.apply(pd.to_numeric, errors="coerce")
    total = numbers.sum(axis=1, skipna=False)
    wrong = ~((total - 1).abs() < 0.01) | (numbers < 0).any(axis=1)
    _refuse(file, "values of prob_<class> that are no probabilities or do not sum to 1", wrong)
    return numbers.idxmax(axis=1).str.removeprefix("prob_").to_numpy()


def _refuse(file: Path, what: str, wrong: pd.Series) -> None:
    """UserError, naming the first rows that are wrong."""
    rows = wrong.index[wrong]
    if len(rows):
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise UserError(f"{file}: {len(rows)} of {len(wrong)} rows have {what}; see row {shown}")

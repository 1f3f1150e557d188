"""A folder of one's own in the ImageFolder layout: PATH/cat/1.jpg, or PATH/train/cat/1.jpg beside
PATH/test/cat/2.jpg.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from vitlab.data.reading import read_file
from vitlab.data.sources import DATASETS, EXCLUDED_COLUMNS, Source
from vitlab.errors import UserError
from vitlab.pictures import IMAGE_SUFFIXES

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# a folder of this name, with images and without class folders, is not a class
UNLABELLED = ("test", "val")
CLASS_FILE = "classes.txt"
SYSTEM_FOLDERS = ("__MACOSX", "__pycache__")
HIDDEN = "it is hidden, or a folder of the system"


@DATASETS.register(name="folder:")
def folder(path: str = "") -> Source:
    """Each sub-folder is a class, with all that lies below it. Folders train, val (valid,
    validation) and test are splits.

    A sample_id is the file's path below PATH, with forward slashes; it and the class names are in
    Unicode's composed form (NFC). Classes are in the order of their names, or in that of
    PATH/classes.txt, a name a line: of two, the last is the one to find. What is not used is listed
    in `excluded`: files that are not images, files and folders whose names begin with a dot,
    folders of the system, and images in a folder `test` or `val` that has no class folders. Raises
    UserError when PATH is no folder, does not have this layout, or classes.txt names other classes.
    """
    root = _check_root(path)
    rows, excluded, state = [], [], hashlib.sha256()
    layout, unlabelled = _find_splits(root)
    folders = {base: _class_folders(base) for base in layout}
    for base in dict.fromkeys((root, *layout)):
        for file in sorted(base.iterdir()):
            if not _is_shown(file.name):
                excluded.append((_relative(file, root), HIDDEN))
            elif file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES:
                excluded.append((_relative(file, root), "it lies in no class folder"))
    for base, split in layout.items():
        for label, folder in folders[base].items():
            for file in _walk(folder):
                name, reason = _relative(file, root), _objection(file)
                (
                    excluded.append((name, reason))
                    if reason
                    else rows.append((name, label, split, file))
                )
                if reason != HIDDEN:
                    stat = file.stat() if file.exists() else file.lstat()
                    state.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    for folder in unlabelled:
        reason = f"it has no label: {folder.name} has no class folders"
        excluded += [(_relative(file, root), _objection(file) or reason) for file in _walk(folder)]
    classes = _order_classes(root, _merge_classes(root, folders))
    state.update("\n".join(classes).encode())
    if not rows:
        raise UserError(
            f"folder:{path} holds no image in a class folder; images end in"
            f" {' '.join(IMAGE_SUFFIXES)}"
        )
    names, labels, splits, files = zip(*rows, strict=True)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"folder:{path}: two files are called {twice}, in different Unicode forms (NFC, NFD);"
            " rename one of them"
        )
    samples = pd.DataFrame(
        {"sample_id": names, "label": labels, "group": "all", "source": names, "split": splits}
    )
    return Source(
        location=str(root.resolve()),
        version=state.hexdigest()[:16],
        classes=tuple(classes),
        samples=samples if any(splits) else samples.drop(columns="split"),
        read=partial(read_file, dict(zip(names, files, strict=True))),
        excluded=pd.DataFrame(
            [(name, name, reason) for name, reason in excluded], columns=EXCLUDED_COLUMNS, dtype=str
        ),
    )


def _check_root(path: str) -> Path:
    if not path:
        raise UserError(
            "folder: needs a path; write folder:PATH, with one sub-folder of PATH for each class"
        )
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"folder:{path}: {root.absolute()} {what}; write folder:PATH, with one sub-folder of"
            " PATH for each class"
        )
    if not _subfolders(root):
        raise UserError(
            f"folder:{path} has no sub-folders; put the images of each class into a sub-folder"
            " named after the class"
        )
    return root


def _find_splits(root: Path) -> tuple[dict[Path, str], list[Path]]:
    """The folders that hold class folders, with the split that each stands for; and the folders of
    images without labels.

    Without splits, the first is root itself with an empty split.
    """
    names = _subfolders(root)
    splits = {
        root / name: SPLIT_FOLDERS[name.lower()]
        for name in names
        if name.lower() in SPLIT_FOLDERS and _subfolders(root / name)
    }
    unlabelled = [
        root / name for name in names if name.lower() in UNLABELLED and root / name not in splits
    ]
    if not splits and not all(name.lower() in SPLIT_FOLDERS for name in names):
        if unlabelled:
            raise UserError(
                f"folder:{root} holds the folder {unlabelled[0].name}, without class folders,"
                " beside the classes; move it elsewhere if its images have no labels, or rename it"
                " if it is a class"
            )
        return {root: ""}, []
    if "train" not in splits.values():
        raise UserError(
            f"folder:{root} holds {', '.join(names)} but no train/CLASS/ folders; expected"
            " train/CLASS/IMAGE or CLASS/IMAGE"
        )
    others = sorted(set(names) - {base.name for base in (*splits, *unlabelled)})
    if others:
        raise UserError(
            f"folder:{root} holds splits ({', '.join(base.name for base in splits)}) beside other"
            f" folders ({', '.join(others)}); move the others elsewhere, or rename a class that is"
            " called like a split"
        )
    return splits, unlabelled


def _class_folders(base: Path) -> dict[str, Path]:
    """Class -> its folder; UserError for a name that is not UTF-8, and for two names that differ in
    their Unicode form only.
    """
    folders = {}
    for name in _subfolders(base):
        if not _is_utf8(name):
            raise UserError(
                f"the name of the class folder {_relative(base / name, base)!r} in {base} is not"
                " UTF-8; rename it"
            )
        label = unicodedata.normalize("NFC", name)
        if label in folders:
            raise UserError(
                f"{base} holds the folder {label!r} twice, in different Unicode forms (NFC, NFD);"
                " make them one"
            )
        folders[label] = base / name
    return folders


def _merge_classes(root: Path, folders: dict[Path, dict[str, Path]]) -> list[str]:
    """All classes, sorted; UserError where a class is spelt differently in two splits."""
    classes = sorted({label for found in folders.values() for label in found})
    spelt: dict[str, str] = {}
    for label in classes:
        other = spelt.setdefault(label.casefold(), label)
        if other != label and not any({other, label} <= set(found) for found in folders.values()):
            raise UserError(
                f"folder:{root}: the class folders {other!r} and {label!r} of different splits"
                " differ in case only; rename one"
            )
    return classes


def _order_classes(root: Path, found: list[str]) -> list[str]:
    """The classes found, in the order of classes.txt if there is one."""
    file = root / CLASS_FILE
    if not file.is_file():
        return found
    lines = unicodedata.normalize(
        "NFC", file.read_text(encoding="utf-8-sig", errors="replace")
    ).splitlines()
    named = [line.strip() for line in lines if line.strip()]
    if sorted(named) != found:
        raise UserError(
            f"{file} names {', '.join(named) or 'nothing'}, but the class folders are"
            f" {', '.join(found)}; write each of them on a line of its own, the class to find last,"
            " or give the file another name"
        )
    return named


def _walk(start: Path) -> Iterator[Path]:
    """All files below a folder, in sorted order, through links, each folder once even where links
    run in a circle.

    Hidden folders are given instead of what is in them.
    """
    seen = set()
    for where, folders, files in os.walk(start, followlinks=True, onerror=_raise):
        seen.add(os.path.realpath(where))
        yield from (
            Path(where, name)
            for name in sorted([*files, *(name for name in folders if not _is_shown(name))])
        )
        folders[:] = sorted(
            name
            for name in folders
            if _is_shown(name) and os.path.realpath(Path(where, name)) not in seen
        )


def _objection(file: Path) -> str:
    """Why a file cannot be an image of this set, before it is opened; empty when nothing speaks
    against it.
    """
    if not _is_shown(file.name):
        return HIDDEN
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        return f"its name does not end like an image ({' '.join(IMAGE_SUFFIXES)})"
    return "" if _is_utf8(str(file)) else "its name is not valid UTF-8; rename it"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _relative(file: Path, root: Path) -> str:
    name = os.fsencode(file.relative_to(root).as_posix()).decode(errors="replace")
    return unicodedata.normalize("NFC", name)


def _subfolders(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if item.is_dir() and _is_shown(item.name))


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name not in SYSTEM_FOLDERS


def _raise(error: OSError):
    raise error

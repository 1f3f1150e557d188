"""A folder of one's own in the ImageFolder layout: PATH/cat/1.jpg, or PATH/train/cat/1.jpg beside PATH/test/cat/2.jpg."""

from __future__ import annotations

import hashlib
import os
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
CLASS_FILE = "classes.txt"


@DATASETS.register(name="folder:")
def folder(path: str = "") -> Source:
    """Each sub-folder is a class, with all that lies below it. Folders train, val (valid, validation) and test are splits.

    A sample_id is the file's path below PATH, with forward slashes. Names that begin with a dot or two underscores are ignored.
    Classes are in the order of their names, or in that of PATH/classes.txt, a name a line: of two, the last is the one to find.
    Raises ValueError when PATH is no folder, does not have this layout, or classes.txt names other classes.
    """
    root = _check_root(path)
    rows, excluded, state = [], [], hashlib.sha256()
    layout = _find_splits(root)
    for base, split in layout.items():
        for file in sorted(base.iterdir()):
            if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES:
                excluded.append((_relative(file, root), "it lies in no class folder"))
        for label in _subfolders(base):
            for file in _walk(base / label):
                name, stat = _relative(file, root), file.stat() if file.exists() else file.lstat()
                state.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
                reason = _objection(file)
                excluded.append((name, reason)) if reason else rows.append((name, label, split, file))
    classes = _order_classes(root, sorted({label for base in layout for label in _subfolders(base)}))
    state.update("\n".join(classes).encode())
    if not rows:
        raise UserError(f"folder:{path} holds no image in a class folder; images end in {' '.join(IMAGE_SUFFIXES)}")
    names, labels, splits, files = zip(*rows, strict=True)
    samples = pd.DataFrame({"sample_id": names, "label": labels, "group": "all", "source": names, "split": splits})
    return Source(
        location=str(root.resolve()),
        version=state.hexdigest()[:16],
        classes=tuple(classes),
        samples=samples if any(splits) else samples.drop(columns="split"),
        read=partial(read_file, dict(zip(names, files, strict=True))),
        excluded=pd.DataFrame([(name, name, reason) for name, reason in excluded], columns=EXCLUDED_COLUMNS, dtype=str),
    )


def _check_root(path: str) -> Path:
    if not path:
        raise UserError("folder: needs a path; write folder:PATH, with one sub-folder of PATH for each class")
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"folder:{path}: {root.absolute()} {what}; write folder:PATH, with one sub-folder of PATH for each class")
    if not _subfolders(root):
        raise UserError(f"folder:{path} has no sub-folders; put the images of each class into a sub-folder named after the class")
    return root


def _find_splits(root: Path) -> dict[Path, str]:
    """The folders that hold class folders, with the split that each stands for; without splits, root itself with an empty one."""
    names = _subfolders(root)
    splits = {
        root / name: SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in SPLIT_FOLDERS and _subfolders(root / name)
    }
    if not splits and not all(name.lower() in SPLIT_FOLDERS for name in names):
        return {root: ""}
    if "train" not in splits.values():
        raise UserError(
            f"folder:{root} holds {', '.join(names)} but no train/CLASS/ folders; expected train/CLASS/IMAGE or CLASS/IMAGE"
        )
    others = sorted(set(names) - {base.name for base in splits})
    if others:
        raise UserError(
            f"folder:{root} holds splits ({', '.join(base.name for base in splits)}) beside other folders ({', '.join(others)}); "
            "move the others elsewhere, or rename a class that is called like a split"
        )
    return splits


def _order_classes(root: Path, found: list[str]) -> list[str]:
    """The classes found, in the order of classes.txt if there is one."""
    file = root / CLASS_FILE
    if not file.is_file():
        return found
    named = [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()]
    if sorted(named) != found:
        raise UserError(
            f"{file} names {', '.join(named) or 'nothing'}, but the class folders are {', '.join(found)}; write each of them on "
            "a line of its own, the class to find last, or give the file another name"
        )
    return named


def _walk(start: Path) -> Iterator[Path]:
    """All files below a folder, in sorted order, through links, each folder once even where links run in a circle."""
    seen = set()
    for where, folders, files in os.walk(start, followlinks=True, onerror=_raise):
        seen.add(os.path.realpath(where))
        folders[:] = sorted(name for name in folders if _is_shown(name) and os.path.realpath(Path(where, name)) not in seen)
        yield from (Path(where, name) for name in sorted(files) if _is_shown(name))


def _objection(file: Path) -> str:
    """Why a file cannot be an image of this set, before it is opened; empty when nothing speaks against it."""
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        return f"its name does not end like an image ({' '.join(IMAGE_SUFFIXES)})"
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    return ""


def _relative(file: Path, root: Path) -> str:
    return os.fsencode(file.relative_to(root).as_posix()).decode(errors="replace")


def _subfolders(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if item.is_dir() and _is_shown(item.name))


def _is_shown(name: str) -> bool:
    return not name.startswith((".", "__"))  # .DS_Store, .ipynb_checkpoints, __MACOSX


def _raise(error: OSError):
    raise error

"""folder:PATH, your own images in the ImageFolder layout: PATH/cat/1.jpg, or PATH/train/cat/1.jpg
and PATH/test/cat/2.jpg.

Not `datasets`' imagefolder and not torchvision's ImageFolder: both stop at the first broken file or
skip it silently, follow no order of classes, and name no file that they leave out."""

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
# a folder of this name that holds images but no class folders is not a class
UNLABELLED = ("test", "val")
CLASS_FILE = "classes.txt"
SYSTEM_FOLDERS = ("__MACOSX", "__pycache__")
HIDDEN = "it is hidden, or a folder of the system"


@DATASETS.register(name="folder:")
def folder(path: str = "") -> Source:
    """Each sub-folder is a class, with everything below it. Folders train, val (valid, validation)
    and test are splits.

    A sample_id is the file's path below PATH, with forward slashes. Names are in Unicode's composed
    form (NFC). Classes are in alphabetical order, or in that of PATH/classes.txt, one name a line:
    of two, the last is the positive one. `excluded` lists files that are not images, hidden files
    and folders, and images in a folder `test` or `val` without class folders. UserError when PATH
    is not a folder, has another layout, or classes.txt names other classes."""
    root = _check_root(path)
    layout, unlabelled = _find_splits(root)
    rows, excluded, state = [], [], hashlib.sha256()
    for base in dict.fromkeys((root, *layout)):
        for file in sorted(base.iterdir()):
            if not _is_shown(file.name):
                excluded.append((_relative(file, root), HIDDEN))
            elif file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES:
                excluded.append((_relative(file, root), "it lies in no class folder"))
    labels = set()
    for base, split in layout.items():
        for name in _subfolders(base):
            label = _class_name(name, base)
            labels.add(label)
            for file in _walk(base / name):
                sample_id, reason = _relative(file, root), _find_objection(file)
                if reason:
                    excluded.append((sample_id, reason))
                else:
                    rows.append((sample_id, label, split, file))
                if reason != HIDDEN:
                    stat = file.stat() if file.exists() else file.lstat()
                    state.update(f"{sample_id}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    for base in unlabelled:
        reason = f"it has no label: {base.name} has no class folders"
        for file in _walk(base):
            excluded.append((_relative(file, root), _find_objection(file) or reason))
    classes = _order_classes(root, sorted(labels))
    state.update("\n".join(classes).encode())
    if not rows:
        raise UserError(
            f"folder:{path} holds no image in a class folder; images end in"
            f" {' '.join(IMAGE_SUFFIXES)}"
        )
    names, labels, splits, files = zip(*rows, strict=True)
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


def _find_splits(root: Path) -> tuple[dict[Path, str], list[Path]]:
    """The folders that hold class folders, each with its split; and the folders of images without
    labels. Without splits, the first is {root: ""}.
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


def _class_name(name: str, base: Path) -> str:
    if not _is_utf8(name):
        readable = _relative(base / name, base)
        raise UserError(f"the name of the class folder {readable!r} is not UTF-8; rename it")
    return unicodedata.normalize("NFC", name)


def _order_classes(root: Path, found: list[str]) -> list[str]:
    """The classes found, in the order of classes.txt if there is one."""
    file = root / CLASS_FILE
    if not file.is_file():
        return found
    text = unicodedata.normalize("NFC", file.read_text(encoding="utf-8-sig", errors="replace"))
    named = [line.strip() for line in text.splitlines() if line.strip()]
    if sorted(named) != found:
        raise UserError(
            f"{file} names {', '.join(named) or 'nothing'}, but the class folders are"
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

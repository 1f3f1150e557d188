"""What the result of a task hangs on: its notebook, parameters, data, the code of vitlab it uses, and the tasks before it."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import vitlab
from vitlab.batch.plan import Task
from vitlab.errors import UserError
from vitlab.notebook import read_cells

PACKAGE = Path(vitlab.__file__).parent


def fingerprint_tasks(tasks: list[Task], data_version: Callable[[str], str]) -> list[dict[str, str]]:
    """For each task, a short hash of each thing its result hangs on; a part that differs later says what has changed.

    Of vitlab, the files count that the notebook imports, directly or by way of other files of vitlab, so that work on the
    report does not train every model anew.
    """
    versions = cache(data_version)
    sources = {task.step.source for task in tasks}
    notebooks, code = {source: _hash_notebook(source) for source in sources}, {source: _hash_code(source) for source in sources}
    prints: list[dict[str, str]] = []
    for task in tasks:
        dataset = task.parameters.get("dataset", task.step.declared.get("dataset"))
        prints.append(
            {
                "notebook": notebooks[task.step.source],
                "parameters": _digest(task.parameters),
                "code": code[task.step.source],
                "data": _digest(versions(dataset)) if dataset else "",
                "needs": _digest([prints[number] for number in task.needs]),
            }
        )
    return prints


def imported_modules(source: str, package: str = "") -> set[str]:
    """Every module that Python source may import, with `a.b.c` for `from a.b import c` as well. package: of the source itself."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    return names


def used_files(modules: set[str], root: Path) -> set[Path]:
    """The files of the package in folder `root` that importing these modules executes, or may execute when a lazy name is used.

    Other packages are passed over.
    """
    used: set[Path] = set()
    seen, waiting = set(), list(modules)
    while waiting:
        module = waiting.pop()
        parts = module.split(".")
        if module in seen or parts[0] != root.name:
            continue
        seen.add(module)
        for length in range(1, len(parts) + 1):  # importing a.b.c executes a/__init__.py and a/b/__init__.py, too
            place = root.joinpath(*parts[1:length])
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            stub = file.with_suffix(".pyi")  # what a package imports when one of its names is used
            for one in (file, stub):
                if one.is_file() and one not in used:
                    used.add(one)
                    package = parts[:length] if place.is_dir() else parts[: length - 1]
                    waiting += _file_imports(one, ".".join(package), one.stat().st_mtime_ns)
    return used


@cache
def _file_imports(path: Path, package: str, changed: int) -> set[str]:
    """`imported_modules` of a file, parsed once for all notebooks that use it, until it changes."""
    return imported_modules(path.read_text(encoding="utf-8"), package)


def notebook_imports(path: Path) -> set[str]:
    """The modules that the code cells of a notebook import; lines of IPython's own (`%magic`, `!command`) are no obstacle."""
    from IPython.core.inputtransformer2 import TransformerManager

    cells = [cell["source"] for cell in read_cells(path) if cell["cell_type"] == "code"]
    try:
        return set().union(*(imported_modules(TransformerManager().transform_cell(source)) for source in cells))
    except SyntaxError as error:
        raise UserError(f"{path.name} has a cell that is not Python: {error}") from error


def _hash_notebook(path: Path) -> str:
    return _digest(read_cells(path))


def _hash_code(path: Path) -> str:
    files = sorted(used_files(notebook_imports(path), PACKAGE))
    return _digest([(file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8")) for file in files])


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]

"""What the result of a task depends on, and what of it has changed."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import vitlab
from vitlab.batch.plan import Task
from vitlab.errors import UserError
from vitlab.files import hash_file, hash_files
from vitlab.notebook import is_filled, read_cells
from vitlab.places import project_root, reports_dir
from vitlab.runs import read_runs

PACKAGE = Path(vitlab.__file__).parent
# what a notebook imports that reads all runs of its data set
READ_RUNS = {"vitlab.run_tables", "vitlab.runs"}
Fingerprint = dict[str, Any]


def fingerprint_tasks(tasks: list[Task], data_version: Callable[[str], str]) -> list[Fingerprint]:
    """For each task, what its result depends on, part by part.

    code: a hash of the files of vitlab that the notebook imports, directly or through other files
    of vitlab, with the data files beside them (weights, HTML); so that work on the report does not
    train every model again. libraries: name -> version of what these import. files: name -> hash of
    files that parameters name. runs: for a notebook that reads every run of its data set, those
    that are finished. needs: a hash of the fingerprints of the tasks before it."""
    data, runs, hash_once = cache(data_version), cache(describe_runs), cache(hash_file)
    imports = {source: notebook_imports(source) for source in {task.step.source for task in tasks}}
    sources = {source: _describe_source(source, imports[source], hash_once) for source in imports}
    prints: list[Fingerprint] = []
    for task in tasks:
        before = []
        for number in task.needs:
            before.append({part: value for part, value in prints[number].items() if part != "runs"})
        prints.append(
            {
                **sources[task.step.source],
                "parameters": _digest(task.parameters),
                "files": _find_files(task, hash_once),
                "data": _digest(data(task.dataset)) if task.dataset else "",
                "runs": runs(task.dataset) if reads_runs(task, imports[task.step.source]) else "",
                "needs": _digest(before),
            }
        )
    return prints


def _describe_source(source: Path, imports: set[str], hash_one: Callable) -> Fingerprint:
    """The parts notebook, code and libraries of a notebook that imports these modules."""
    files = used_files(imports, PACKAGE)
    data = [path for folder in {file.parent for file in files} for path in find_data(folder)]
    return {
        "notebook": _digest([cell for cell in read_cells(source) if is_filled(cell)]),
        "code": hash_files({*files, *data}, PACKAGE, hash_one)[:12],
        "libraries": _list_libraries(imports, files),
    }


def describe_changes(then: Fingerprint, now: Fingerprint, ignored: Collection[str] = ()) -> str:
    """Such as `code changed; libraries changed: torch 2.15.0 -> 2.16.0`; empty for nothing."""
    plain, words = [], []
    for part, value in now.items():
        before = then.get(part)
        if before == value or part in ignored:
            continue
        if isinstance(before, dict) and isinstance(value, dict):
            details = _list_changes(before, value)
            more = f" and {len(details) - 3} more" if len(details) > 3 else ""
            words.append(f"{part} changed: {', '.join(details[:3])}{more}")
        else:
            plain.append(part)
    return "; ".join([f"{', '.join(plain)} changed"] * bool(plain) + words)


def _list_changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    names = sorted({*before, *after})
    return [
        f"{name} {before.get(name, 'none')} -> {after.get(name, 'none')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def reads_runs(task: Task, imports: set[str]) -> bool:
    """Whether a notebook with these imports reads all runs of its data set, not one by name."""
    asks = not imports.isdisjoint(READ_RUNS)
    return asks and "run_name" not in task.step.declared and bool(task.dataset)


def describe_runs(dataset: str) -> str:
    """How many finished runs a data set has, and a hash of their names and starts."""
    found, _ = read_runs(dataset, "done", {})
    starts = sorted((run.name, run.info["start_s"]) for run in found)
    return f"{len(found)} finished, {_digest(starts)}"


def imported_modules(source: str, package: str = "") -> set[str]:
    """Every module that Python source may import. package: of the source itself.

    Names that may be modules count as well: `a.b.c` for `from a.b import c`, and for `a.b.c` in the
    code after `import a.b`.
    """
    names = set()
    modules = {}  # name in the source -> module that an import has bound to it
    nodes = list(ast.walk(ast.parse(source)))
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.add(alias.name)
                top = alias.name.partition(".")[0]
                modules[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            )
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            names.update([f"{module}.{node.attr}"] if module else [])
    return names


def used_files(modules: set[str], root: Path) -> set[Path]:
    """The files of the package in folder `root` that importing these modules executes, or may
    execute when a lazy name is used.

    Other packages are passed over. Of the lazy names of the package itself (`vitlab.fit`), only
    those count that are used: all of them together need nearly every file.
    """
    there = {
        path.relative_to(root).parts: path
        for pattern in ("*.py", "*.pyi")
        for path in root.rglob(pattern)
    }
    lazy = _read_lazy_names(there.get(("__init__.pyi",)), root.name)
    used: set[Path] = set()
    seen, waiting = set(), [module for module in modules if module.partition(".")[0] == root.name]
    while waiting:
        parts = tuple(waiting.pop().split(".")[1:])
        if parts and parts[0] in lazy:
            waiting.append(lazy[parts[0]])
        # importing a.b.c executes a/__init__.py and a/b/__init__.py, too
        for length in range(len(parts) + 1):
            place = parts[:length]
            if place in seen:
                continue
            seen.add(place)
            # a .pyi file names what a package imports when one of its names is used
            for suffix in (".py", ".pyi"):
                file = there.get((*place, "__init__" + suffix)) or (
                    place and there.get((*place[:-1], place[-1] + suffix))
                )
                if file:
                    used.add(file)
                    if file == there.get(("__init__.pyi",)):
                        continue
                    imports = _file_imports(file, root, file.stat().st_mtime_ns)
                    waiting += [
                        module for module in imports if module.partition(".")[0] == root.name
                    ]
    return used


def _read_lazy_names(stub: Path | None, package: str) -> dict[str, str]:
    """Name -> `package.module.name`, for each `from .module import name` of a package's stub."""
    if stub is None:
        return {}
    return {
        alias.asname or alias.name: f"{package}.{node.module}.{alias.name}"
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


@cache
def _file_imports(path: Path, root: Path, changed: int) -> set[str]:
    """`imported_modules` of a file of the package in `root`, parsed once until it changes."""
    package = ".".join([root.name, *path.relative_to(root).parent.parts])
    return imported_modules(path.read_text(encoding="utf-8"), package)


def notebook_imports(path: Path) -> set[str]:
    """The modules that the code cells of a notebook import; `%magic` and `!command` may occur."""
    from IPython.core.inputtransformer2 import TransformerManager

    cells = [cell["source"] for cell in read_cells(path) if cell["cell_type"] == "code"]
    try:
        return set().union(
            *(imported_modules(TransformerManager().transform_cell(source)) for source in cells)
        )
    except SyntaxError as error:
        raise UserError(f"{path.name} has a cell that is not Python: {error}") from error


def find_data(folder: Path) -> list[Path]:
    """The files of a package that are not code, also in sub-folders that are not packages."""
    found = []
    for path in folder.iterdir():
        if path.name.startswith((".", "__pycache__")) or path.suffix in (".py", ".pyi", ".pyc"):
            continue
        if path.is_file():
            found.append(path)
        elif not (path / "__init__.py").is_file():
            found += find_data(path)
    return found


def _list_libraries(imports: set[str], files: set[Path]) -> dict[str, str]:
    """Name -> version of Python and of the libraries that these modules and files import."""
    names = imports.union(
        *(_file_imports(file, PACKAGE, file.stat().st_mtime_ns) for file in files)
    )
    modules = {name.partition(".")[0] for name in names} - {PACKAGE.name}
    distributions = {name for module in modules for name in _list_distributions().get(module, [])}
    found = {name: version(name) for name in sorted(distributions)}
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", **found}


@cache
def _list_distributions() -> Mapping[str, list[str]]:
    return packages_distributions()  # takes half a second


def _find_files(task: Task, hash_one: Callable) -> dict[str, str]:
    """Value -> hash of the content, for parameters that name a file."""
    found = {}
    for value in (task.step.declared | task.parameters).values():
        if isinstance(value, str) and ("." in value or "/" in value) and value.isprintable():
            folders = (Path(), project_root(), project_root() / "reports", reports_dir())
            places = [folder / Path(value).expanduser() for folder in folders]
            file = next(filter(_is_file, places), None)
            if file:
                found[value] = hash_one(file)[:12]
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a value that cannot be a path
        return False


def _digest(content) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

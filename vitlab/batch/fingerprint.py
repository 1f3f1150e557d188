"""What the result of a task depends on, and what of it has changed."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import vitlab
from vitlab.batch.plan import Task
from vitlab.errors import UserError
from vitlab.notebook import is_filled, read_cells
from vitlab.places import project_root, reports_dir
from vitlab.runs import read_runs

PACKAGE = Path(vitlab.__file__).parent
# parts that are kept as lines `name value`, so that a change can be named
LISTED = ("libraries", "files")
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "imblearn": "imbalanced-learn",
    "PIL": "pillow",
    "yaml": "PyYAML",
}
# what a notebook imports that reads all runs of its data set
READ_RUNS = {"vitlab.run_tables", "vitlab.runs"}


def fingerprint_tasks(
    tasks: list[Task], data_version: Callable[[str], str]
) -> list[dict[str, str]]:
    """For each task, what its result depends on, part by part, each as a short text or hash.

    code: the files of vitlab that the notebook imports, directly or by way of other files of
    vitlab, with the data files beside them (weights, HTML); so that work on the report does not
    train every model anew. libraries: what these import, with versions. files: parameters that name
    a file. runs: for a notebook that reads every run of its data set, those that are finished.
    needs: the fingerprints of the tasks before it."""
    versions, runs, library = cache(data_version), cache(describe_runs), cache(_describe_library)
    imports = {source: notebook_imports(source) for source in {task.step.source for task in tasks}}
    notebooks = {
        source: _digest([cell for cell in read_cells(source) if is_filled(cell)])
        for source in imports
    }
    used = {source: used_files(modules, PACKAGE) for source, modules in imports.items()}
    code = {source: _hash_code(files) for source, files in used.items()}
    libraries = {
        source: _describe_libraries(imports[source], files, library)
        for source, files in used.items()
    }
    prints: list[dict[str, str]] = []
    for task in tasks:
        source, dataset = task.step.source, find_dataset(task)
        before = [
            {part: value for part, value in prints[number].items() if part != "runs"}
            for number in task.needs
        ]
        prints.append(
            {
                "notebook": notebooks[source],
                "parameters": _digest(task.parameters),
                "code": code[source],
                "libraries": libraries[source],
                "files": _describe_files(task),
                "data": _digest(versions(dataset)) if dataset else "",
                "runs": runs(dataset) if reads_runs(task, imports[source]) else "",
                "needs": _digest(before),
            }
        )
    return prints


def describe_changes(
    then: dict[str, str], now: dict[str, str], ignored: Collection[str] = ()
) -> str:
    """What has changed, such as `code changed; libraries changed: torch 2.15.0 -> 2.16.0`; empty
    for nothing.
    """
    changed = [
        part for part, value in now.items() if then.get(part) != value and part not in ignored
    ]
    plain = [part for part in changed if part not in LISTED]
    words = [f"{', '.join(plain)} changed"] if plain else []
    for part in changed:
        if part in LISTED:
            details = _list_changes(then.get(part), now[part])
            words.append(
                f"{part} changed: {', '.join(details[:3])}"
                + f" and {len(details) - 3} more" * (len(details) > 3)
            )
    return "; ".join(words)


def find_dataset(task: Task) -> str:
    return str(task.parameters.get("dataset", task.step.declared.get("dataset")) or "")


def reads_runs(task: Task, imports: set[str]) -> bool:
    """Whether a notebook reads all runs of its data set: it asks for them, and is not given the
    name of one.
    """
    return (
        "run_name" not in task.step.declared
        and not imports.isdisjoint(READ_RUNS)
        and bool(find_dataset(task))
    )


def describe_runs(dataset: str) -> str:
    """How many finished runs of a data set there are, and a hash of their names and starts. Damaged
    ones do not count.
    """
    found, _ = read_runs(dataset, "done", {})
    return (
        f"{len(found)} finished,"
        f" {_digest(sorted((run.name, run.info['start_s']) for run in found))}"
    )


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
    """`imported_modules` of a file of the package in `root`, parsed once for all notebooks that use
    it, until it changes.
    """
    package = ".".join([root.name, *path.relative_to(root).parent.parts])
    return imported_modules(path.read_text(encoding="utf-8"), package)


def notebook_imports(path: Path) -> set[str]:
    """The modules that the code cells of a notebook import; lines of IPython's own (`%magic`,
    `!command`) are passed over.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    cells = [cell["source"] for cell in read_cells(path) if cell["cell_type"] == "code"]
    try:
        return set().union(
            *(imported_modules(TransformerManager().transform_cell(source)) for source in cells)
        )
    except SyntaxError as error:
        raise UserError(f"{path.name} has a cell that is not Python: {error}") from error


def _hash_code(files: set[Path]) -> str:
    folders = {file.parent for file in files}
    both = {*files, *(data for folder in folders for data in _find_data(folder))}
    return _digest(
        [(file.relative_to(PACKAGE).as_posix(), _hash_file(file)) for file in sorted(both)]
    )


def _find_data(folder: Path) -> list[Path]:
    """The data files of a Python package: all in its folder that are no code, and those of
    sub-folders that are no package.
    """
    found = []
    for path in folder.iterdir():
        if path.name.startswith((".", "__pycache__")) or path.suffix in (".py", ".pyi", ".pyc"):
            continue
        if path.is_file():
            found.append(path)
        elif not (path / "__init__.py").is_file():
            found += _find_data(path)
    return found


def _describe_libraries(imports: set[str], files: set[Path], describe: Callable[[str], str]) -> str:
    """Lines such as `torch 2.15.0`: what these modules and files import from outside of vitlab."""
    names = imports.union(
        *(_file_imports(file, PACKAGE, file.stat().st_mtime_ns) for file in files)
    )
    modules = (
        {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {PACKAGE.name, ""}
    )
    found = {
        f"python {sys.version_info.major}.{sys.version_info.minor}",
        *filter(None, map(describe, modules)),
    }
    return "\n".join(sorted(found))


def _describe_library(module: str) -> str:
    """`scikit-learn 1.7.2` of `sklearn`; empty for a module that is not installed or belongs to no
    distribution.
    """
    try:
        name = DISTRIBUTIONS.get(module, module)
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        try:
            there = find_spec(module) is not None
        except (ImportError, ValueError):
            there = False
        names = _list_distributions().get(module, []) if there else []
        return "\n".join(f"{name} {version(name)}" for name in sorted(set(names)))


@cache
def _list_distributions() -> Mapping[str, list[str]]:
    return packages_distributions()  # takes half a second


def _describe_files(task: Task) -> str:
    """Lines of the files that parameters name, in the working folder, the project or its reports,
    with a hash of the content.
    """
    found = []
    for value in (task.step.declared | task.parameters).values():
        if isinstance(value, str) and ("." in value or "/" in value) and value.isprintable():
            places = [
                Path(value).expanduser(),
                project_root() / value,
                project_root() / "reports" / value,
                reports_dir() / value,
            ]
            file = next(filter(_is_file, places), None)
            found += [f"{value} {_hash_file(file)}"] if file else []
    return "\n".join(sorted(set(found)))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a value that cannot be a path
        return False


def _list_changes(then: str | None, now: str) -> list[str]:
    if then is None:
        return ["not recorded before"]
    before, after = (
        dict(entry.rsplit(" ", 1) for entry in text.splitlines()) for text in (then, now)
    )
    names = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    return [f"{name} {before.get(name, 'none')} -> {after.get(name, 'none')}" for name in names]


def _hash_file(path: Path) -> str:
    status = path.stat()
    return _hash_content(path, status.st_size, status.st_mtime_ns, status.st_ino)


@cache
def _hash_content(path: Path, *state: int) -> str:
    """A hash of the content, read once for all tasks until the file changes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :12
    ]

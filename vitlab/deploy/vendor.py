"""Copy the modules of vitlab that a deployed app needs, without those that need torch."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import vitlab
from vitlab.errors import UserError

ROOT = Path(vitlab.__file__).parent
SOURCES = (".css",)  # files beside the modules that they read


def copy_modules(entries: Sequence[str], folder: Path) -> list[str]:
    """Copy modules, and all modules of vitlab that they import at the top level, to
    `folder`/vitlab; gives their names. The licence of vitlab goes with them.

    Imports inside functions are optional and left out. Of a package's __init__ only the docstring
    is kept; UserError for an import that needs more of it."""
    wanted, found = list(entries), {}
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        path = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if not path.is_file():
            raise UserError(
                f"{name} is no module of vitlab that could be copied alone: {path} is not there"
            )
        found[name] = path
        wanted += _find_imports(path)
    for path in found.values():
        target = folder / path.relative_to(ROOT.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        for beside in path.parent.glob(f"{path.stem}.*"):
            if beside.suffix in SOURCES:
                shutil.copy(beside, target.parent)
        for package in target.relative_to(folder).parents[:-1]:
            _write_init(ROOT.parent / package / "__init__.py", folder / package / "__init__.py")
    (folder / ROOT.name / "LICENSE").write_text(licence_text(), encoding="utf-8")
    return sorted(found)


def licence_text() -> str:
    """The licence of vitlab, from its installation (a wheel brings it) or from the checkout."""
    with suppress(PackageNotFoundError):
        text = distribution("vitlab").read_text("licenses/LICENSE")
        if text:
            return text
    return (ROOT.parent / "LICENSE").read_text(encoding="utf-8")


def _find_imports(path: Path) -> list[str]:
    """Modules of vitlab that this one imports at the top level."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vitlab":
            of_package = ROOT.joinpath(*node.module.split(".")[1:]).is_dir()
            names += (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if of_package
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("vitlab.")]
    return names


def _write_init(source: Path, target: Path) -> None:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    lines = [f'"""{ast.get_docstring(tree)}"""\n']
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            lines.append(f"\n{ast.unparse(node)}\n")
    target.write_text("".join(lines), encoding="utf-8")

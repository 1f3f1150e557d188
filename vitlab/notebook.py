"""The parameters of a notebook: what its cell tagged `parameters` declares, and whether what is handed over fits."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import shlex
import tokenize
from pathlib import Path
from typing import Any

from vitlab.errors import MissingFileError, UserError
from vitlab.registry import unknown


def read_cells(path: Path | str) -> list[dict[str, Any]]:
    """The cells of a notebook as dictionaries of cell_type, source (one text) and tags.

    FileNotFoundError or ValueError when it is no notebook. It is read as JSON, because to import nbformat takes more than a
    second, in which the batch wants to be under way.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no notebook {path}")
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [
            {"cell_type": cell["cell_type"], "source": "".join(cell["source"]), "tags": cell["metadata"].get("tags", [])}
            for cell in cells
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a notebook of nbformat 4: {type(error).__name__}: {error}") from error


def notebook_parameters(path: Path | str) -> dict[str, tuple[Any, str]]:
    """Name -> (default, comment) for each parameter a notebook declares, in the order of the cell.

    A notebook has exactly one code cell tagged `parameters`, with assignments of plain values; anything else is a ValueError.
    """
    tagged = [cell["source"] for cell in read_cells(path) if "parameters" in cell["tags"]]
    if len(tagged) != 1:
        raise UserError(f"{Path(path).name} has {len(tagged)} cells tagged `parameters`; it needs exactly one")
    comments = _comments(tagged[0])
    declared = {}
    for name, node in _assignments(tagged[0]).items():
        try:
            declared[name] = (ast.literal_eval(node), comments.get(node.end_lineno, ""))
        except ValueError:
            text = ast.unparse(node)
            raise UserError(f"parameter {name} of {Path(path).name} is {text}; a default must be a plain value") from None
    return declared


def fit_parameters(path: Path | str, given: dict[str, Any], *, text: bool = False) -> dict[str, Any]:
    """The given values in the types of the notebook's defaults. ValueError for an undeclared name or a value of another type.

    text: the values are words from the command line, read as YAML unless the default is a text.
    """
    declared = notebook_parameters(path)
    check_names(given, list(declared), Path(path).name)
    return {name: _fit(f"{name} of {Path(path).name}", value, declared[name][0], text) for name, value in given.items()}


def format_call(notebook: str, parameters: dict[str, Any]) -> str:
    """The shell command that runs a notebook with these parameters; `fit_parameters` gets the same values out of its words."""
    words = [f"-p {name} {shlex.quote(_write(value))}" for name, value in parameters.items()]
    return " \\\n  ".join([f"vitlab run {shlex.quote(notebook)}", *words])


def check_names(given, declared: list[str], notebook: str) -> None:
    for name in given:
        if name not in declared:
            raise UserError(unknown("parameter", name, declared, f"They are those of {notebook}."))


def check_parameters(shell=None) -> None:
    """To be called in the first cells of a notebook: a handed-over parameter that the notebook does not declare is a ValueError.

    papermill only warns of it. It puts what it was given into a cell that begins with `# Parameters`, after the one tagged
    `parameters`; both are in the history of IPython (`shell`: the running one) by the time this is called.
    """
    if shell is None:
        from IPython import get_ipython

        shell = get_ipython()
    history = [] if shell is None else shell.user_ns["In"]
    injected = max((i for i, source in enumerate(history) if source.startswith("# Parameters\n")), default=0)
    if injected > 1:  # In[0] is always empty
        check_names(_assignments(history[injected]), list(_assignments(history[injected - 1])), "this notebook")


def _assignments(source: str) -> dict[str, ast.expr]:
    """Name -> value of the assignments `name = value` and `name: type = value` at the top level."""
    found = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found.update({target.id: statement.value for target in targets if isinstance(target, ast.Name)})
    return found


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _write(value) -> str:
    import yaml

    return value if isinstance(value, str) else yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()[1:-1]


def _fit(name, value, default, text):
    if text and not isinstance(default, str):
        import yaml

        value = yaml.safe_load(value)
    if default is None or type(value) is type(default):
        return value
    plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    if isinstance(default, str) and plain:
        return str(value)
    if isinstance(default, float) and plain:
        with contextlib.suppress(ValueError):
            return float(value)  # YAML reads 1e-3 as a text, and 1 as a whole number
    raise UserError(f"parameter {name} is {value!r}; it must be of type {type(default).__name__}, like its default {default!r}")

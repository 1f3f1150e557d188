"""The parameters of a notebook: those its cell tagged `parameters` declares, and given values.

A notebook that trains a model takes rarer settings through one text parameter, `options`. They can
also be given by name, as if they were parameters: `fit_parameters` moves them into that text."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
import tokenize
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.files import read_text
from vitlab.markup import JUPYTER_ONLY, code
from vitlab.places import project_root
from vitlab.registry import unknown
from vitlab.runs import Run
from vitlab.training.options import OPTIONS, TRAINS, format_options, spread_options

# that an annotation in the parameters cell may name
TYPES = ("int", "float", "str", "bool", "list", "dict", "None")
WORDS = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class _Declared:
    """A parameter as its cell declares it. kinds: names of its types; empty for any."""

    default: Any
    comment: str
    kinds: tuple[str, ...]


def read_cells(path: Path | str, *, executed: bool = False) -> list[dict[str, Any]]:
    """The cells of a notebook as dictionaries of cell_type, source (one text) and tags.

    executed: keep metadata, outputs and execution counts as well. MissingFileError or UserError
    where there is no notebook. It is read as JSON because importing nbformat takes a second."""
    text = read_text(path, "notebook")
    try:
        cells = json.loads(text)["cells"]
        return [
            {
                **(cell if executed else {"cell_type": cell["cell_type"]}),
                "source": "".join(cell["source"]),
                "tags": cell["metadata"].get("tags", []),
            }
            for cell in cells
        ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a notebook of nbformat 4: {type(error).__name__}: {error}"
        ) from error


def is_filled(cell: Mapping[str, Any]) -> bool:
    """Whether a cell holds anything. Jupyter does not execute an empty one."""
    return bool(cell["source"].strip())


def notebook_parameters(path: Path | str) -> dict[str, tuple[Any, str]]:
    """Name -> (default, comment) for each parameter that a notebook declares, in the order of the
    cell.

    UserError unless the notebook has exactly one code cell tagged `parameters`, with assignments of
    plain values."""
    return {
        name: (declared.default, declared.comment)
        for name, declared in _read_declared(path).items()
    }


def notebook_options(path: Path | str) -> dict[str, tuple[Any, str]]:
    """Name -> (default, meaning) for each option; empty for a notebook without `options`."""
    if not takes_options(notebook_parameters(path)):
        return {}
    return {name: (option.default, option.meaning) for name, option in OPTIONS.items()}


def takes_options(declared: Collection[str]) -> bool:
    """Whether a notebook with these parameters trains a model and has a parameter for options."""
    return TRAINS | {"options"} <= set(declared)


def describe_parameters(path: Path | str) -> str:
    """A line for each parameter of a notebook and for each option: name, default, comment."""
    lines = [f"Parameters of {Path(path).name}:"]
    lines += [_describe(name, *entry) for name, entry in notebook_parameters(path).items()]
    options = notebook_options(path)
    if options:
        lines += ["", "Options, as in -p options 'mixup=0.2, ema=0.99' or -p mixup 0.2:"]
    lines += [_describe(name, *entry) for name, entry in options.items()]
    return "\n".join(lines)


def _describe(name: str, default: Any, comment: str) -> str:
    return f"  {f'{name} = {default!r}':30}  {comment}".rstrip()


def fit_parameters(
    path: Path | str, given: dict[str, Any], *, text: bool = False
) -> dict[str, Any]:
    """The given values in the types that the notebook declares. UserError for an undeclared name or
    a value of another type.

    Options given by name become part of the parameter `options`. The types are those of the
    annotation (`epochs: int = None`) and of the default. A default of None without an annotation
    takes any value. A word for a parameter that is not a text becomes what papermill makes of it:
    `1e-3` a number, `None` nothing. text: the values are words of the command line, so lists and
    mappings are read as YAML, too."""
    declared = _read_declared(path)
    taken = takes_options(declared)
    if taken:
        options = {
            name: _Declared(None, option.meaning, (option.kind.__name__, "None"))
            for name, option in OPTIONS.items()
        }
        declared = {**declared, **options}
    check_names(given, list(declared), Path(path).name)
    fitted = {
        name: _fit(f"{name} of {Path(path).name}", value, declared[name], text)
        for name, value in given.items()
    }
    return _fold_options(fitted) if taken else fitted


def _fold_options(given: dict[str, Any]) -> dict[str, Any]:
    """The parameters with all options in one text, which is the same however they were given."""
    options = {name: value for name, value in spread_options(given).items() if name in OPTIONS}
    kept = {name: value for name, value in given.items() if name not in {*OPTIONS, "options"}}
    return kept | ({"options": format_options(options)} if options else {})


def read_word(word: str) -> Any:
    """The value of a word, as `papermill -p NAME WORD` reads it."""
    if word in WORDS:
        return WORDS[word]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def format_call(notebook: str, parameters: dict[str, Any]) -> str:
    """The shell command that runs a notebook with these parameters."""
    words = [f"-p {name} {shlex.quote(_write(value))}" for name, value in parameters.items()]
    return " \\\n  ".join([f"vitlab run {shlex.quote(notebook)}", *words])


def show_run(run: Run, following: str) -> None:
    """Show in Jupyter the name of a run, its folder and the next command; reports leave this out.

    following: a notebook that reads the run, or a command of vitlab for runs, such as app."""
    from IPython.display import Markdown, display

    if following[:2].isdigit():
        own = {name: run.parameters[name] for name in ("dataset", "model", "seed")}
        call = format_call(following, {**own, "run_name": run.name})
        step = f"Continue with notebook {following[:2]}, or in a terminal:"
    else:
        call = f"vitlab {following} {shlex.quote(run.name)}"
        step = "Next, in a terminal:"
    text = f"Run {code(run.name)} in {code(_relative(run.path))}. {step}\n\n```\n{call}\n```"
    display(Markdown(text), metadata=JUPYTER_ONLY)


def _relative(path: Path) -> Path:
    """The path from the project's folder, where it lies in it."""
    root = project_root()
    return path.relative_to(root) if path.is_relative_to(root) else path


def check_names(given: Collection[str], declared: list[str], notebook: str) -> None:
    """UserError for a name that a notebook does not declare."""
    for name in given:
        if name in OPTIONS and name not in declared and takes_options(declared):
            raise UserError(
                f"{name} is not a parameter of {notebook} but an option; write options='{name}=...'"
            )
        if name not in declared:
            raise UserError(unknown("parameter", name, declared, f"They are those of {notebook}."))


def check_parameters(shell=None) -> None:
    """Call this in one of the first cells of a notebook. UserError for a given parameter that the
    notebook does not declare.

    papermill only warns of it. It puts what it was given into a cell that begins with `#
    Parameters`, after the one tagged `parameters`; both are in the history of IPython (`shell`: the
    running one) by the time this is called."""
    if shell is None:
        from IPython import get_ipython

        shell = get_ipython()
    history = [] if shell is None else shell.user_ns["In"]
    injected = max(
        (i for i, source in enumerate(history) if source.startswith("# Parameters\n")), default=0
    )
    if injected > 1:  # In[0] is always empty
        check_names(
            find_assignments(history[injected]),
            list(find_assignments(history[injected - 1])),
            "this notebook",
        )


def _read_declared(path: Path | str) -> dict[str, _Declared]:
    tagged = [cell["source"] for cell in read_cells(path) if "parameters" in cell["tags"]]
    if len(tagged) != 1:
        raise UserError(
            f"{Path(path).name} has {len(tagged)} cells tagged `parameters`; it needs exactly one"
        )
    try:
        comments, assignments = _comments(tagged[0]), find_assignments(tagged[0])
    except (SyntaxError, tokenize.TokenError) as error:
        raise UserError(
            f"the cell tagged `parameters` of {Path(path).name} is not Python: {error}"
        ) from error
    declared = {}
    for name, statement in assignments.items():
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            text = ast.unparse(statement.value)
            raise UserError(
                f"parameter {name} of {Path(path).name} is {text}; a default must be a plain value"
            ) from None
        kinds = _read_annotation(getattr(statement, "annotation", None))
        if default is not None or kinds:
            kinds = tuple(
                dict.fromkeys([*kinds, "None" if default is None else type(default).__name__])
            )
        declared[name] = _Declared(default, comments.get(statement.value.end_lineno, ""), kinds)
    return declared


def find_assignments(source: str) -> dict[str, ast.Assign | ast.AnnAssign]:
    """Name -> last statement `name = value` or `name: type = value` at the top level."""
    found = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found.update(
                {target.id: statement for target in targets if isinstance(target, ast.Name)}
            )
    return found


def _read_annotation(node: ast.expr | None) -> tuple[str, ...]:
    """`list[int] | None` as ("list", "None"); empty for a type that is not among TYPES."""
    text = "" if node is None else re.sub(r"\[.*?\]", "", ast.unparse(node))
    names = re.split(r" \| | or ", text)  # papermill reads both
    return tuple(names) if set(names) <= set(TYPES) else ()


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _write(value) -> str:
    import yaml

    if isinstance(value, list | dict):
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return value if isinstance(value, str) else repr(value)


def _fit(name, given, declared, text):
    kinds = declared.kinds
    as_word = isinstance(given, str) and (
        "str" not in kinds or (given == "None" and "None" in kinds)
    )
    value = _read_text(given, kinds, text) if as_word else given
    if not kinds or ("None" if value is None else type(value).__name__) in kinds:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and "float" in kinds:
            return float(value)
        if "str" in kinds:
            return str(value)
    like = "" if declared.default is None else f", like its default {declared.default!r}"
    raise UserError(f"parameter {name} is {given!r}; it must be of type {' or '.join(kinds)}{like}")


def _read_text(word, kinds, text):
    """What a text stands for where a text is not wanted, or not known to be wanted."""
    value = read_word(word)
    if text and isinstance(value, str) and (kinds or word.startswith(("[", "{"))):
        import yaml

        with contextlib.suppress(yaml.YAMLError):
            value = yaml.safe_load(word)
    return value

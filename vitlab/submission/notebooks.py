"""What an executed notebook shows of its execution, and whether it is the clean one that was executed. JSON in, words out."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.notebook import is_filled

LARGEST = 50 * 10**6  # bytes of a notebook that are read
LABEL = re.compile(r"(?m)^#\|[ \t]*label:[ \t]*[\"']?([\w-]+)[\"']?[ \t]*$")
Cells = Sequence[dict[str, Any]]


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook as JSON, sources as one text each. ValueError where it is none, or larger than 50 MB."""
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path.name} has {path.stat().st_size / 1e6:,.0f} MB; at most {LARGEST / 1e6:g} are read")
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            cell["tags"] = list(cell.get("metadata", {}).get("tags", []))
            if cell["cell_type"] == "code":
                cell["outputs"] = [dict(output) for output in cell.get("outputs", [])]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path.name} is no notebook of nbformat 4: {type(error).__name__}: {error}") from error
    return notebook


def strip_outputs(path: Path) -> str:
    """The text of a notebook without outputs, execution counts and the parameters that papermill put in."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if "injected-parameters" not in cell["metadata"].get("tags", [])]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def find_execution_problems(notebook: dict[str, Any]) -> list[str]:
    """Why it was not executed once, from top to bottom, in a fresh kernel and without an error; empty where it was.

    Cells without code, as JupyterLab adds one at the end, count only where they show something.
    """
    code = [(number, cell) for number, cell in enumerate(notebook["cells"], start=1) if cell["cell_type"] == "code"]
    filled = [(number, cell) for number, cell in code if is_filled(cell)]
    problems = [
        f"cell {number} shows something and has no code" for number, cell in code if not is_filled(cell) and cell["outputs"]
    ]
    for place, (number, cell) in enumerate(filled, start=1):
        count = cell.get("execution_count")
        if type(count) is not int or count != place:
            told = "was not executed" if count is None else f"was executed as number {count}, where {place} was its turn"
            problems.append(f"cell {number} {told}: not top to bottom in a fresh kernel ({_first_line(cell['source'])})")
            break  # all that follow are off by the same
    for number, cell in filled:
        failed = next((output for output in cell["outputs"] if output.get("output_type") == "error"), None)
        if failed:
            problems.append(f"cell {number} failed with {failed.get('ename')}: {str(failed.get('evalue'))[:100]}")
    return problems or ([] if filled else ["it has no code cell"])


def find_source_problems(executed: dict[str, Any], clean: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """Where the executed notebook differs from the clean one, apart from cells without content and parameters that were put in.

    The list is empty where they are the same.
    parameters: those that the bundle names. The cell that puts them in must hold them and nothing else.
    """
    injected = [cell for cell in executed["cells"] if "injected-parameters" in cell["tags"]]
    cells = [cell for cell in executed["cells"] if "injected-parameters" not in cell["tags"] and is_filled(cell)]
    wanted = [cell for cell in clean["cells"] if is_filled(cell)]
    try:
        given = injected_parameters(executed)
    except ValueError as error:
        return [str(error)]
    problems = []
    if len(injected) > 1:
        problems.append(f"{len(injected)} cells put in parameters; there is one at most")
    for cell in injected:
        if cell["cell_type"] != "code" or cell["outputs"] or "#|" in cell["source"]:
            problems.append("the cell with the parameters is no code cell, shows something, or has options")
    if injected and not _follows_parameters(executed["cells"]):
        problems.append("the cell with the parameters does not follow the one tagged `parameters`")
    for name in sorted(given.keys() | parameters.keys()):
        if name not in given or name not in parameters or not _same(given[name], parameters[name]):
            told = [repr(part[name]) if name in part else "not set" for part in (given, parameters)]
            problems.append(f"the parameter {name} is {told[0]} in it and {told[1]} in the manifest")
    for number, (one, other) in enumerate(zip(cells, wanted, strict=False), start=1):
        if one["cell_type"] != other["cell_type"] or one["source"] != other["source"]:
            problems.append(f"cell {number} differs from the clean notebook: {_first_difference(one['source'], other['source'])}")
            break
    if len(cells) != len(wanted):
        problems.append(f"it has {len(cells)} cells, the clean notebook {len(wanted)}")
    return problems


def injected_parameters(notebook: dict[str, Any]) -> dict[str, Any]:
    """What papermill put in: name -> value. ValueError where that cell holds anything but plain assignments."""
    given: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["tags"]:
            try:
                for statement in ast.parse(cell["source"]).body:
                    (target,) = statement.targets
                    given[target.id] = _read_value(statement.value)
            except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError) as error:
                raise UserError(f"the cell with the parameters holds more than parameters: {str(error)[:100]}") from error
    return given


def list_labelled(notebook: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Label -> the first code cell with `#| label: LABEL`; the cell that puts in parameters has none."""
    found: dict[str, dict[str, Any]] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and "injected-parameters" not in cell["tags"]:
            for label in LABEL.findall(cell["source"]):
                found.setdefault(label, cell)
    return found


def find_labelled(notebook: dict[str, Any], label: str) -> dict[str, Any] | None:
    """The code cell with `#| label: LABEL`; None where there is none."""
    return list_labelled(notebook).get(label)


def find_pictures(notebook: dict[str, Any]) -> list[str]:
    """The PNG pictures among the outputs, as base64 without line breaks."""
    data = [output.get("data", {}) for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]
    return ["".join("".join(item["image/png"]).split()) for item in data if "image/png" in item]


def show_text(cell: dict[str, Any]) -> str:
    """All that a cell shows as text or HTML, as one text."""
    texts = []
    for output in cell["outputs"]:
        texts.append("".join(output.get("text", "")))
        texts += ["".join(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(texts)


def _read_value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node) in ("float('nan')", "float('inf')", "float('-inf')"):
        return float(ast.literal_eval(node.args[0]))  # as papermill writes them
    return ast.literal_eval(node)


def _same(one: Any, other: Any) -> bool:
    return (one == other and (isinstance(one, bool) is isinstance(other, bool))) or (one != one and other != other)


def _follows_parameters(cells: Cells) -> bool:
    cells = [cell for cell in cells if is_filled(cell)]
    place = next(number for number, cell in enumerate(cells) if "injected-parameters" in cell["tags"])
    return place == 0 or "parameters" in cells[place - 1]["tags"] or not any("parameters" in cell["tags"] for cell in cells)


def _first_line(source: str) -> str:
    line = next((line for line in source.splitlines() if line.strip() and not line.startswith("#|")), "")
    return line.strip()[:60]


def _first_difference(one: str, other: str) -> str:
    lines, others = one.splitlines(), other.splitlines()
    for number in range(max(len(lines), len(others))):
        left, right = (part[number] if number < len(part) else "nothing" for part in (lines, others))
        if left != right:
            return f"line {number + 1} is {left.strip()[:60]!r}, in the clean one {right.strip()[:60]!r}"
    return "its end or its kind"

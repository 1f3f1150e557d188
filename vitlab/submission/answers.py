"""Questions that a notebook asks, and whether they were answered: cells that begin with `#| answer:
NAME`.

In a code cell the mark is an option line, as Quarto has them. In a text cell it is in a comment,
which no page shows: `<!-- #| answer: NAME -->`. The rest of the cell is the answer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MARK = re.compile(r"^\s*(?:<!--\s*)?#\|\s*answer(?=\s*(?::|-->|$))(?P<name>.*)$")
OPTION = re.compile(r"^\s*#\|")
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
BLANK = (
    r"your answer( goes)?( here)?|write( your answer)? here|answer here|to ?do|tbd|lorem ipsum.*"
)
PLACEHOLDER = re.compile(rf"(?i)\W*+({BLANK})?\W*")
MAX_NAME = 100  # letters of a question's name
WORD = re.compile(r"\w+(?:[-'.,]\w+)*")


@dataclass(frozen=True)
class Answer:
    """name: of the question. notebook: its file. cell: number, from 1. kind: code or markdown.
    text: "" without an answer.
    """

    name: str
    notebook: str
    cell: int
    kind: str
    text: str

    @property
    def words(self) -> int:
        return len(WORD.findall(self.text))


def find_answers(notebooks: Iterable[tuple[str, Iterable[dict[str, Any]]]]) -> list[Answer]:
    """The marked cells of (file, cells as `read_cells` gives them), in order; without a name they
    are answer-1 and so on.
    """
    found: list[Answer] = []
    for file, cells in notebooks:
        for number, cell in enumerate(cells, start=1):
            name = find_mark(cell["source"]) if cell["cell_type"] in ("code", "markdown") else None
            if name is not None:
                text = read_answer(cell["source"], cell["cell_type"])
                found.append(
                    Answer(
                        name or f"answer-{len(found) + 1}", file, number, cell["cell_type"], text
                    )
                )
    return found


def find_mark(source: str) -> str | None:
    """The name of the question that a cell answers: "" for a mark without one, None for a cell
    without a mark.
    """
    for line in source.splitlines():
        mark = MARK.match(line)
        if mark:
            return (
                mark["name"]
                .partition("-->")[0]
                .strip()
                .removeprefix(":")
                .strip()
                .strip("\"'")[:MAX_NAME]
            )
        if line.strip() and not OPTION.match(line):
            return None
    return None


def read_answer(source: str, kind: str) -> str:
    """The text of a marked cell without mark and placeholders; "" where nothing else is left but
    comments, `pass` or `None`.
    """
    # a mark within a comment goes with it
    source = source if kind == "code" else COMMENT.sub("", source)
    lines = [
        line
        for line in source.splitlines()
        if not (MARK.match(line) or (kind == "code" and OPTION.match(line)))
    ]
    text = "\n".join(line.rstrip() for line in lines if not PLACEHOLDER.fullmatch(line)).strip()
    return "" if kind == "code" and _does_nothing(text) else text


def _does_nothing(code: str) -> bool:
    """Whether Python code is only comments, `pass`, `None` and `...`. Code that cannot be parsed,
    such as magics, counts.
    """
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(line, ast.Pass) or ast.unparse(line) in ("None", "...") for line in body)


def find_repeats(answers: Iterable[Answer]) -> list[str]:
    """Names that mark more than one cell, with the places."""
    places: dict[str, list[str]] = {}
    for answer in answers:
        places.setdefault(answer.name, []).append(f"{answer.notebook} cell {answer.cell}")
    return [
        f"{name} marks several cells: {', '.join(where)}"
        for name, where in places.items()
        if len(where) > 1
    ]

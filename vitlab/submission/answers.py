"""Questions that a notebook asks, and whether they were answered: cells that begin with `#| answer: NAME`.

In a code cell it is an option line as Quarto has them. In a text cell it stands in a comment, which no page shows:
`<!-- #| answer: NAME -->`. What stands below is the answer.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MARK = re.compile(r"^\s*(?:<!--\s*)?#\|\s*answer(?=\s*(?::|-->|$))(?P<name>.*)$")
OPTION = re.compile(r"^\s*#\|")
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
BLANK = r"your answer( goes)?( here)?|write( your answer)? here|answer here|to ?do|tbd|lorem ipsum.*"
PLACEHOLDER = {kind: re.compile(rf"(?i)\W*+({BLANK}{more})?\W*") for kind, more in (("markdown", ""), ("code", "|pass|none"))}
LONGEST_NAME, LONGEST_CODE = 100, 100_000  # letters of a question's name; of code that is looked through for comments
WORD = re.compile(r"\w+(?:[-'.,]\w+)*")


@dataclass(frozen=True)
class Answer:
    """name: of the question. notebook: its file. cell: number, from 1. kind: code or markdown. text: "" if nothing was said."""

    name: str
    notebook: str
    cell: int
    kind: str
    text: str

    @property
    def words(self) -> int:
        return len(WORD.findall(self.text))


def find_answers(notebooks: Iterable[tuple[str, dict[str, Any]]]) -> list[Answer]:
    """The marked cells of (file, notebook as `read_notebook` gives it), in order; without a name they are answer-1 and so on."""
    found: list[Answer] = []
    for file, notebook in notebooks:
        for number, cell in enumerate(notebook["cells"], start=1):
            name = find_mark(cell["source"]) if cell["cell_type"] in ("code", "markdown") else None
            if name is not None:
                text = read_answer(cell["source"], cell["cell_type"])
                found.append(Answer(name or f"answer-{len(found) + 1}", file, number, cell["cell_type"], text))
    return found


def find_mark(source: str) -> str | None:
    """The name of the question that a cell answers: "" for a mark without one, None for a cell without a mark."""
    for line in source.splitlines():
        mark = MARK.match(line)
        if mark:
            return mark["name"].partition("-->")[0].strip().removeprefix(":").strip().strip("\"'")[:LONGEST_NAME]
        if line.strip() and not OPTION.match(line):
            return None
    return None


def read_answer(source: str, kind: str) -> str:
    """What a marked cell says, without the marks, comments and placeholders; "" where nothing is left."""
    source = source if kind == "code" else COMMENT.sub("", source)  # a mark within a comment goes with it
    lines = [line for line in source.splitlines() if not (MARK.match(line) or (kind == "code" and OPTION.match(line)))]
    text = "\n".join(lines)
    text = _drop_comments(text) if kind == "code" and len(text) <= LONGEST_CODE else text
    kept = [line.rstrip() for line in text.splitlines() if not PLACEHOLDER[kind].fullmatch(line)]
    return "\n".join(kept).strip()


def find_repeats(answers: Iterable[Answer]) -> list[str]:
    """Names that stand at more than one cell, with the places."""
    places: dict[str, list[str]] = {}
    for answer in answers:
        places.setdefault(answer.name, []).append(f"{answer.notebook} cell {answer.cell}")
    return [f"{name} stands in {' and in '.join(where)}" for name, where in places.items() if len(where) > 1]


def _drop_comments(code: str) -> str:
    """Python without its comments; as it is where it is no Python."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return code
    lines = code.splitlines()
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line for line in lines if line.strip())

"""The questions of an assignment: the answers in the notebooks, and the rubric that asks for them.

An answer is a cell that begins with `#| answer: NAME`. In a text cell this mark is in a comment,
which no page shows: `<!-- #| answer: NAME -->`. The rest of the cell is the answer. A rubric says
which questions there are, for how many points, and which evidence must be in the bundle:

```yaml
title: Vision Transformers, assignment 1
statement: I did this work myself.       # printed on the title page
questions:
  balance:                               # the name in `#| answer: balance`
    points: 10
    ask: How even are the classes, and what does that do to accuracy?
    words: 40                            # fewer count as missing
    evidence:
      - notebook: 01_explore_data        # was executed
      - figure: fig-balance              # a cell of this label shows a picture
      - table: tbl-metrics               # a cell of this label shows text
      - metric: roc_auc                  # is in a run's metrics.json
      - file: runs/*/*/predictions.parquet
```

Points are what a question is worth. A person decides how many an answer gets: the table shows what
is there and what is missing."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BeforeValidator, Field

from vitlab.batch.specs import Spec, read_spec

MARK = re.compile(r"""^\s*(?:<!--\s*)?#\|\s*answer\s*:\s*["']?(?P<name>[\w.-]+)""")
OPTION = re.compile(r"^\s*#\|")
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
BLANK = (
    r"your answer( goes)?( here)?|write( your answer)? here|answer here|to ?do|tbd|lorem ipsum.*"
)
PLACEHOLDER = re.compile(rf"(?i)\W*+({BLANK})?\W*")
NO_CODE = re.compile(r"\s*(pass|None|\.\.\.)?\s*(#.*)?")
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
    """The marked cells of (file, cells as `read_cells` gives them), in order."""
    found: list[Answer] = []
    for file, cells in notebooks:
        for number, cell in enumerate(cells, start=1):
            kind, source = cell["cell_type"], cell["source"]
            name = find_mark(source) if kind in ("code", "markdown") else None
            if name:
                found.append(Answer(name, file, number, kind, read_answer(source, kind)))
    return found


def find_mark(source: str) -> str | None:
    """The name of the question that a cell answers; None for a cell without a mark."""
    for line in source.splitlines():
        mark = MARK.match(line)
        if mark:
            return mark["name"]
        if line.strip() and not OPTION.match(line):
            return None
    return None


def read_answer(source: str, kind: str) -> str:
    """The text of a marked cell without mark, placeholders and comments; "" for none."""
    if kind != "code":
        source = COMMENT.sub("", source)
    lines = []
    for line in source.splitlines():
        is_option = MARK.match(line) or (kind == "code" and NO_CODE.fullmatch(line))
        if not is_option and not PLACEHOLDER.fullmatch(line):
            lines.append(line.rstrip())
    return "\n".join(lines).strip()


Kind = Literal["notebook", "figure", "table", "metric", "file"]


class Question(Spec):
    """points: what it is worth. words: how many its answer needs. evidence: kind and name of what
    must be in the bundle.
    """

    points: float = Field(ge=0, le=10**6, strict=True)
    ask: str = ""
    words: int = Field(1, ge=0, strict=True)
    evidence: list[dict[Kind, str]] = Field([])

    def list_evidence(self) -> list[tuple[str, str]]:
        return [item for entry in self.evidence for item in entry.items()]


def _expand(value: Any) -> Any:
    """`balance: 10` is short for `balance: {points: 10}`."""
    return {"points": value} if isinstance(value, int | float) else value


class Rubric(Spec):
    title: str = ""
    statement: str = ""
    questions: dict[str, Annotated[Question, BeforeValidator(_expand)]] = Field(min_length=1)


def load_rubric(path: Path | str) -> Rubric:
    """Read and check a rubric; UserError names the first wrong entry and what it should be."""
    return read_spec(Rubric, path, "rubric")


def points_table(
    rubric: Rubric, answers: Sequence[Answer], evidence: Mapping[str, Collection[str]]
) -> pd.DataFrame:
    """Columns question, points, answer (its words, `empty` or `no such cell`), there, missing; one
    row for each question.

    evidence: kind -> names that are in the bundle. missing: what a marker looks for and does not
    find, "" where all is there."""
    given = {answer.name: answer for answer in answers}
    rows = []
    for name, question in rubric.questions.items():
        seen, gap = _judge_answer(given.get(name), question)
        there, missing = [], [gap] if gap else []
        for kind, what in question.list_evidence():
            found = fnmatch.filter(evidence[kind], what)
            (there if found else missing).append(f"{kind} {what}")
        rows.append((name, question.points, seen, ", ".join(there), ", ".join(missing)))
    return pd.DataFrame(rows, columns=["question", "points", "answer", "there", "missing"])


def _judge_answer(answer: Answer | None, question: Question) -> tuple[str, str]:
    """What is there of an answer, and what of it is missing ("" for nothing)."""
    if answer is None:
        return "no such cell", "its cell"
    if not answer.text:
        return "empty", "the answer"
    seen = f"{answer.words} words"
    if answer.kind == "markdown" and answer.words < question.words:
        return seen, f"{question.words - answer.words} of {question.words} words"
    return seen, ""

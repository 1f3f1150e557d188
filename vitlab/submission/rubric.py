"""A rubric: which questions there are, for how many points, and which evidence must be in the
bundle.

```yaml
title: Vision Transformers, assignment 1
statement: I did this work myself.  # printed on the title page
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
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.submission.answers import Answer
from vitlab.user_files import read_yaml

MAX_BYTES = 10**6

Kind = Literal["notebook", "figure", "table", "metric", "file"]
Entry = Annotated[dict[Kind, str], Field(min_length=1, max_length=1)]
Name = Annotated[str, Field(max_length=100)]


class Question(BaseModel):
    """points: what it is worth. words: how many its answer needs. evidence: kind and name of what
    must be in the bundle.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    points: float = Field(ge=0, le=10**6)
    ask: str = ""
    words: int = Field(1, ge=0, le=10**6)
    evidence: list[Entry] = []


def _expand(value: Any) -> Any:
    """`balance: 10` is short for `balance: {points: 10}`."""
    return {"points": value} if isinstance(value, int | float) else value


class Rubric(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    title: str = ""
    statement: str = ""
    questions: dict[Name, Annotated[Question, BeforeValidator(_expand)]] = Field(
        min_length=1, max_length=200
    )


class _StrictLoader(yaml.SafeLoader):
    """Refuses aliases, of which a few lines expand to gigabytes, and keys that are given twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not read", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name in (name for name, count in names.items() if count > 1):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {name!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_rubric(path: Path | str) -> Rubric:
    """Read and check a rubric. MissingFileError, or UserError that says which entry is wrong and
    what it should be.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise UserError(
            f"{path.name} has {path.stat().st_size:,} bytes; a rubric has at most {MAX_BYTES:,}"
        )
    content = read_yaml(path, "rubric", _StrictLoader)
    try:
        return Rubric.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path.name} is an invalid rubric: {_describe(error)}") from error


def _describe(error: ValidationError) -> str:
    """The first problem: where it is, and what should be there instead."""
    first = error.errors()[0]
    *place, last = [str(part) for part in first["loc"] if part != "[key]"] or [""]
    where = ".".join(place) or "the top level"
    if first["type"] == "extra_forbidden":
        return unknown(f"key in {where}:", last, list((Question if place else Rubric).model_fields))
    if first["type"] == "literal_error" and "evidence" in place:
        return (
            f"{first['input']!r} in {where} is not a kind of evidence; write"
            f" {first['ctx']['expected']}"
        )
    given = repr(first["input"])
    return (
        f"{'.'.join([*place, last])}: {first['msg']}; it is {given[:80]}"
        if last
        else f"{first['msg']}; it is {given[:80]}"
    )


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
        answer, wanted = (
            given.get(name),
            [item for entry in question.evidence for item in entry.items()],
        )
        there, missing = (
            [f"{kind} {what}" for kind, what in wanted if fnmatch.filter(evidence[kind], what)],
            [],
        )
        if answer is None:
            missing.append("its cell")
        elif not answer.text:
            missing.append("the answer")
        elif answer.kind == "markdown" and answer.words < question.words:
            missing.append(f"{question.words - answer.words} of {question.words} words")
        missing += [
            f"{kind} {what}" for kind, what in wanted if not fnmatch.filter(evidence[kind], what)
        ]
        seen = (
            "no such cell"
            if answer is None
            else f"{answer.words} words"
            if answer.text
            else "empty"
        )
        rows.append((name, question.points, seen, ", ".join(there), ", ".join(missing)))
    return pd.DataFrame(rows, columns=["question", "points", "answer", "there", "missing"])


def find_unknown_questions(rubric: Rubric, answers: Iterable[Answer]) -> list[str]:
    """For each question of the rubric that no cell answers, the message that names similar ones."""
    names = list(dict.fromkeys(answer.name for answer in answers))
    advice = "They are the cells marked `#| answer: NAME`."
    return [
        unknown("question", question, names, advice)
        for question in rubric.questions
        if question not in names
    ]

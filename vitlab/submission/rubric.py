"""A rubric: which questions there are, for how many points, and what must lie in the bundle as evidence.

```yaml
title: Vision Transformers, assignment 1
statement: I did this work myself.       # the course's words on integrity, printed on the title page
questions:
  balance:                               # the name in `#| answer: balance`
    points: 10
    ask: How even are the classes, and what does that do to accuracy?
    words: 40                            # fewer count as missing
    evidence:
      - notebook: 01_explore_data        # was executed
      - figure: fig-balance              # a cell of this label shows a picture
      - table: tbl-metrics               # a cell of this label shows text
      - metric: roc_auc                  # stands in a run's metrics.json
      - file: runs/*/*/predictions.parquet
```

Points are what a question is worth. How many an answer gets, a person says: the table shows what is there and what is missing.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.submission.answers import Answer
from vitlab.user_files import read_yaml

KEYS = ["title", "statement", "questions"]
QUESTION_KEYS = ["points", "ask", "words", "evidence"]
EVIDENCE = ["notebook", "figure", "table", "metric", "file"]
LARGEST = 10**6  # bytes, and words of an answer
MOST_POINTS = 10**6
MOST_QUESTIONS, LONGEST_NAME = 200, 100


@dataclass(frozen=True)
class Question:
    name: str
    points: float
    ask: str = ""
    words: int = 1
    evidence: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Rubric:
    title: str
    statement: str
    questions: tuple[Question, ...]

    @property
    def points(self) -> float:
        return sum(question.points for question in self.questions)


@dataclass(frozen=True)
class Evidence:
    """What there is in a bundle, by kind: stems of notebooks, labels of figures and tables with content, metrics, files."""

    notebook: frozenset[str] = frozenset()
    figure: frozenset[str] = frozenset()
    table: frozenset[str] = frozenset()
    metric: frozenset[str] = frozenset()
    file: frozenset[str] = frozenset()

    def holds(self, kind: str, name: str) -> bool:
        there = getattr(self, kind)
        return bool(fnmatch.filter(there, name)) if kind == "file" else name in there


class _NoAliases(yaml.SafeLoader):
    """A few aliases of aliases would be written out to gigabytes."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        """A second value under one key would silently replace the first."""
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name in (name for name, count in names.items() if count > 1):
            raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_rubric(path: Path | str) -> Rubric:
    """Read and check a rubric. FileNotFoundError, or ValueError that says which entry is wrong and what it should be."""
    path = Path(path)
    if path.is_file() and path.stat().st_size > LARGEST:
        raise UserError(f"{path.name} has {path.stat().st_size:,} bytes; a rubric has at most {LARGEST:,}")
    content = read_yaml(path, "rubric", _NoAliases)
    _check_keys(content, KEYS, path.name)
    questions = content.get("questions")
    if not isinstance(questions, dict) or not questions:
        raise UserError(f"{path.name} needs questions: NAME: {{points: 10}}; it has {questions!r}")
    if len(questions) > MOST_QUESTIONS or any(len(str(name)) > LONGEST_NAME for name in questions):
        raise UserError(f"{path.name} may have {MOST_QUESTIONS} questions, with names of at most {LONGEST_NAME} letters")
    return Rubric(
        str(content.get("title") or path.stem),
        str(content.get("statement") or ""),
        tuple(_read_question(str(name), fields, path.name) for name, fields in questions.items()),
    )


def points_table(rubric: Rubric, answers: Sequence[Answer], evidence: Evidence) -> pd.DataFrame:
    """Columns question, points, answer (its words, `empty` or `no such cell`), there, missing; one row a question.

    missing holds what a marker looks for and does not find, "" where all is there.
    """
    given = {answer.name: answer for answer in answers}
    rows = []
    for question in rubric.questions:
        answer = given.get(question.name)
        missing, there = [], [f"{kind} {name}" for kind, name in question.evidence if evidence.holds(kind, name)]
        if answer is None:
            missing.append("its cell")
        elif not answer.text:
            missing.append("the answer")
        elif answer.kind == "markdown" and answer.words < question.words:
            missing.append(f"{question.words - answer.words} of {question.words} words")
        missing += [f"{kind} {name}" for kind, name in question.evidence if not evidence.holds(kind, name)]
        told = "no such cell" if answer is None else f"{answer.words} words" if answer.text else "empty"
        rows.append((question.name, question.points, told, ", ".join(there), ", ".join(missing)))
    return pd.DataFrame(rows, columns=["question", "points", "answer", "there", "missing"])


def find_unknown_questions(rubric: Rubric, answers: Iterable[Answer]) -> list[str]:
    """For each question of the rubric that no cell answers to, what is wrong and what is near."""
    names = list(dict.fromkeys(answer.name for answer in answers))
    return [
        unknown("question", question.name, names, "They are the cells marked `#| answer: NAME`.")
        for question in rubric.questions
        if question.name not in names
    ]


def _read_question(name: str, fields: Any, where: str) -> Question:
    place = f"question {name} of {where}"
    fields = {"points": fields} if isinstance(fields, int | float) else fields
    _check_keys(fields, QUESTION_KEYS, place)
    points, words = fields.get("points"), fields.get("words", 1)
    if isinstance(points, bool) or not isinstance(points, int | float) or not 0 <= points <= MOST_POINTS:
        raise UserError(f"{place} is worth points: {points!r}; write a number from 0 to {MOST_POINTS:,}")
    if isinstance(words, bool) or not isinstance(words, int) or not 0 <= words <= LARGEST:
        raise UserError(f"{place} asks for words: {words!r}; write a whole number")
    entries = fields.get("evidence") or []
    if not isinstance(entries, list):
        raise UserError(f"evidence of {place} must be a list like [{{figure: fig-balance}}]; it is {entries!r}")
    evidence = []
    for entry in entries:
        if not isinstance(entry, dict) or len(entry) != 1:
            raise UserError(f"evidence of {place} must be one `kind: name` an entry; one is {entry!r}")
        ((kind, wanted),) = entry.items()
        if kind not in EVIDENCE:
            raise UserError(unknown(f"kind of evidence in {place}:", str(kind), EVIDENCE))
        evidence.append((kind, str(wanted)))
    return Question(name, points, str(fields.get("ask") or ""), words, tuple(evidence))


def _check_keys(content: Any, keys: list[str], where: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{where} must have the keys {', '.join(keys)}; it is {content!r}")
    for key in content:
        if key not in keys:
            raise UserError(unknown(f"key in {where}:", str(key), keys))

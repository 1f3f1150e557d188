from pathlib import Path

import pytest

from vitlab.batch import load_batch
from vitlab.notebook import read_cells
from vitlab.submission.answers import find_answers, find_mark, find_repeats, read_answer
from vitlab.submission.rubric import find_unknown_questions, load_rubric, points_table


def cell(kind, source):
    return {"cell_type": kind, "source": source, "tags": []}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("#| answer: balance\nx = 1", "balance"),
        ("#| label: fig-a\n#| answer: 'balance'\nx = 1", "balance"),
        ("#| answer\nx", ""),
        ("<!-- #| answer: balance -->\n\nText", "balance"),
        ("\n#|answer:balance", "balance"),
        ("x = 1\n#| answer: late", None),
        ("#| answers: other", None),
        ("#| answer-lines: 5", None),
        ("<!-- #| answer: balance --> Digits are even.", "balance"),
        ("Text about #| answer: x", None),
        ("", None),
    ],
)
def test_marks(source, name):
    assert find_mark(source) == name


@pytest.mark.parametrize(
    ("kind", "source", "text"),
    [
        ("markdown", "<!-- #| answer: a -->\n\n*Your answer here.*", ""),
        ("markdown", "<!-- #| answer: a -->\n<!-- a hint\nof two lines -->\n\n- TODO", ""),
        ("markdown", "<!-- #| answer: a -->\nIt is 0.9.\n\n*Your answer here.*", "It is 0.9."),
        ("markdown", "#| answer: a\n## None of them", "## None of them"),
        ("markdown", "<!-- #| answer: a\nWrite at least 30 words. -->\n\n*Your answer here.*", ""),
        ("markdown", "<!-- #| answer: a --> Digits are even.", "Digits are even."),
        ("markdown", "<!-- #| answer: aids -->\nNone.", "None."),
        ("code", "#| answer: a\nNone", ""),
        ("code", "#| answer: a\n# your code here\n...", ""),
        ("code", "#| answer: a\npass  # later", ""),
        ("code", "#| answer: a\n#| label: fig-x\nplot('#1')  # shows it", "plot('#1')  # shows it"),
        ("code", "#| answer: a\n# a comment\nNone; ...", ""),
        ("code", "#| answer: a\n%matplotlib inline\n?", "%matplotlib inline"),
    ],
)
def test_what_counts_as_an_answer(kind, source, text):
    assert read_answer(source, kind) == text


def test_answers_are_counted_and_repeats_named():
    cells = [
        cell("markdown", "<!-- #| answer: a -->\nTwo words"),
        cell("code", "#| answer\n1"),
        cell("raw", "#| answer: raw\nx"),
    ]
    answers = find_answers([("one.ipynb", cells), ("two.ipynb", cells[:1])])
    assert [(answer.name, answer.notebook, answer.cell, answer.words) for answer in answers] == [
        ("a", "one.ipynb", 1, 2),
        ("answer-2", "one.ipynb", 2, 1),
        ("a", "two.ipynb", 1, 2),
    ]
    assert find_repeats(answers) == ["a marks several cells: one.ipynb cell 1, two.ipynb cell 1"]


RUBRIC = """\
questions:
  a: {points: 4, words: 3, evidence: [{figure: fig-x}, {file: "runs/*/metrics.json"}]}
  b: 2.5
  c: {points: 1}
"""


def test_points_table(tmp_path):
    (tmp_path / "rubric.yml").write_text(RUBRIC)
    rubric = load_rubric(tmp_path / "rubric.yml")
    assert [question.points for question in rubric.questions.values()] == [4, 2.5, 1]
    cells = [
        cell("markdown", "<!-- #| answer: a -->\nTwo words"),
        cell("markdown", "<!-- #| answer: b -->\n"),
    ]
    answers = find_answers([("one.ipynb", cells)])
    table = points_table(
        rubric, answers, {"figure": set(), "file": {"runs/x/metrics.json"}}
    ).set_index("question")
    assert table.loc["a"].to_dict() == {
        "points": 4,
        "answer": "2 words",
        "there": "file runs/*/metrics.json",
        "missing": "1 of 3 words, figure fig-x",
    }
    assert table["answer"].to_dict() == {"a": "2 words", "b": "empty", "c": "no such cell"}
    assert table.loc["c", "missing"] == "its cell"
    (unknown,) = find_unknown_questions(rubric, answers)
    assert (
        unknown
        == "unknown question 'c'. Choices: a, b. They are the cells marked `#| answer: NAME`."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "questions: {a: {points: 3, wrods: 3}}",
            "unknown key in questions.a: 'wrods'. Did you mean words?",
        ),
        (
            "titel: x\nquestions: {a: 1}",
            "unknown key in the top level: 'titel'. Did you mean title?",
        ),
        ("questions: {a: {}}", "r.yml is an invalid rubric: questions.a.points: Field required"),
        (
            "questions: {a: {points: many}}",
            "questions.a.points: Input should be a valid number; it is 'many'",
        ),
        (
            "questions: {a: {points: '3'}}",
            "questions.a.points: Input should be a valid number; it is '3'",
        ),
        (
            "questions: {a: {points: -1}}",
            "questions.a.points: Input should be greater than or equal to 0; it is -1",
        ),
        ("questions: {a: true}", "questions.a.points: Input should be a valid number; it is True"),
        ("questions: {a: {points: .nan}}", "questions.a.points: .* it is nan"),
        (f"questions: {{a: {'9' * 310}}}", "questions.a.points: .* it is 999"),
        ("questions: {a: 10, a: 2}", "r.yml is not YAML: the key 'a' is given twice"),
        ("questions: {a: !!int ''}", "r.yml is not YAML"),
        ("questions: {a: 2001-99-99}", "r.yml is not YAML"),
        (
            f"questions: {{{', '.join(f'q{n}: 1' for n in range(201))}}}",
            "questions: Dictionary should have at most 200 items",
        ),
        (f"questions: {{{'q' * 101}: 1}}", "String should have at most 100 characters"),
        (
            "questions: {a: {points: 1, words: x}}",
            "questions.a.words: Input should be a valid integer; it is 'x'",
        ),
        (
            "questions: {a: {points: 1, evidence: [{picture: x}]}}",
            (
                "'picture' in questions.a.evidence.0 is not a kind of evidence; write 'notebook',"
                " 'figure'"
            ),
        ),
        (
            "questions: {a: {points: 1, evidence: fig-x}}",
            "questions.a.evidence: Input should be a valid list",
        ),
        ("questions: {}", "questions: Dictionary should have at least 1 item"),
        ("title: x", "questions: Field required"),
        ("a: [", "is not YAML"),
        ("- a", "r.yml is an invalid rubric: Input should be a valid dictionary"),
        ("questions: {a: !!python/object/apply:os.system ['x']}", "is not YAML"),
    ],
)
def test_a_rubric_with_a_mistake_says_where(tmp_path, text, message):
    (tmp_path / "r.yml").write_text(text)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        load_rubric(tmp_path / "r.yml")


def test_the_assignment_to_copy_belongs_together():
    """Its rubric asks for the cells that it has, all of them empty, and its batch finds its
    notebooks.
    """
    folder = Path(__file__).parents[1] / "notebooks" / "assignment"
    answers = find_answers([("assignment.ipynb", read_cells(folder / "assignment.ipynb"))])
    rubric = load_rubric(folder / "rubric.yml")
    assert [answer.name for answer in answers] == list(rubric.questions)
    assert not any(answer.text for answer in answers) and not find_unknown_questions(
        rubric, answers
    )
    steps = [step.notebook for step in load_batch(folder / "assignment.yml").chain]
    asked = {
        entry["notebook"]
        for question in rubric.questions.values()
        for entry in question.evidence
        if "notebook" in entry
    }
    assert steps[-1] == "assignment" and asked <= set(steps)

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, writes

from vitlab.executed import find_execution_problems, find_source_problems
from vitlab.notebook import read_cells
from vitlab.submission.bundle import strip_outputs
from vitlab.submission.checks import injected_parameters

INJECTED = '# Parameters\ndataset = "digits"\nrate = 0.5\n'
EMPTY = {"execution_count": None, "outputs": [], "metadata": {}, "tags": []}


@pytest.fixture
def executed(tmp_path):
    picture = new_output("display_data", {"image/png": "AB\nCD"})
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell(
            'dataset = "elpv"\nrate = 1.0', metadata={"tags": ["parameters"]}, execution_count=1
        ),
        new_code_cell(INJECTED, metadata={"tags": ["injected-parameters"]}, execution_count=2),
        new_code_cell("#| label: fig-a\nplot()", execution_count=3, outputs=[picture]),
        new_code_cell("print(1)", execution_count=4),
    ]
    (tmp_path / "executed.ipynb").write_text(writes(new_notebook(cells=cells)))
    return read_cells(tmp_path / "executed.ipynb", executed=True)


@pytest.fixture
def clean(executed, tmp_path):
    (tmp_path / "clean.ipynb").write_text(strip_outputs(tmp_path / "executed.ipynb"))
    return read_cells(tmp_path / "clean.ipynb")


def test_a_whole_execution_has_no_problem(executed, clean):
    assert find_execution_problems(executed) == [] == find_source_problems(executed, clean)
    assert len(clean) == 4 and injected_parameters(executed) == {"dataset": "digits", "rate": 0.5}


@pytest.mark.parametrize(
    ("cell", "change", "rule", "message"),
    [
        (3, {"execution_count": 5}, "order", "executed as number 5, expected number 3"),
        (1, {"execution_count": 2}, "order", "executed as number 2, expected number 1"),
        (4, {"execution_count": None}, "not executed", "this cell was not executed"),
        (
            4,
            {"outputs": [{"output_type": "error", "ename": "KeyError", "evalue": "'x'"}]},
            "failed",
            "KeyError: 'x'",
        ),
    ],
)
def test_problems_of_the_execution(executed, cell, change, rule, message):
    executed[cell] |= change
    problem = find_execution_problems(executed)[0]
    assert (problem.rule, problem.message, problem.cell) == (rule, message, cell + 1)


def test_cells_after_a_failed_one_are_one_problem(executed):
    executed[1]["outputs"] = [{"output_type": "error", "ename": "KeyError", "evalue": "'x'"}]
    for cell in executed[2:]:
        cell["execution_count"] = None
    failed, rest = find_execution_problems(executed)
    assert (failed.rule, failed.cell, failed.expected) == ("failed", 2, False)
    assert (rest.rule, rest.cell, rest.expected) == (
        "not executed",
        3,
        True,
    ) and rest.message.startswith("3 code cells")


@pytest.mark.parametrize("place", [0, 2, 4, 5])
@pytest.mark.parametrize("source", ["", " \n\t\n"])
@pytest.mark.parametrize("count", [None, 9])
def test_empty_cells_do_not_count(executed, clean, place, source, count):
    """JupyterLab adds one at the end, and a cell that was emptied may keep its count."""
    for one in (
        EMPTY | {"cell_type": "code", "source": source, "execution_count": count},
        EMPTY | {"cell_type": "markdown", "source": source},
    ):
        longer = [*executed[:place], one, *executed[place:]]
        assert find_execution_problems(longer) == [] == find_source_problems(longer, clean)
        assert find_source_problems(executed, [*clean, one]) == []


def test_cells_with_a_comment_count(executed):
    comment = EMPTY | {"cell_type": "code", "source": "# a comment"}
    assert find_execution_problems([*executed, comment | {"execution_count": 5}]) == []
    assert [problem.rule for problem in find_execution_problems([*executed, comment])] == [
        "not executed"
    ]


def test_differences_of_the_source(executed, clean):
    executed[4]["source"] = "print(2)"
    (problem,) = find_source_problems(executed, clean)
    assert (problem.cell, problem.message) == (
        5,
        "executed as `print(2)`, but the notebook now has `print(1)`",
    )
    executed[4]["source"] = "print(1)"
    (problem,) = find_source_problems([*executed, executed[0]], clean)
    assert (problem.cell, problem.message) == (6, "the notebook no longer has this cell: `# Title`")
    (problem,) = find_source_problems(executed[:4], clean)
    assert (problem.cell, problem.message) == (4, "the notebook has 1 more cells here: `print(1)`")


def test_code_tagged_as_the_mark_of_papermill_is_compared(executed, clean):
    extra = {
        "cell_type": "code",
        "source": "cheat()",
        "metadata": {"tags": ["papermill-error-cell-tag"]},
    }
    assert [problem.cell for problem in find_source_problems([*executed, extra], clean)] == [6]
    assert find_source_problems([*executed, extra | {"cell_type": "markdown"}], clean) == []


@pytest.mark.parametrize(
    "source",
    [
        INJECTED + "import os",
        INJECTED + "x, y = 1, 2",
        INJECTED + "x = print(1)",
        "if 1:\n  x = 1",
        "x =",
    ],
)
def test_injected_parameters_are_nothing_else(executed, source):
    executed[2]["source"] = source
    with pytest.raises(ValueError, match="must have assignments of plain values only"):
        injected_parameters(executed)


def test_a_second_cell_of_parameters_is_refused(executed):
    with pytest.raises(ValueError, match="several cells are tagged"):
        injected_parameters([*executed, executed[2]])


def test_parameters_of_every_kind_are_read():
    source = "# Parameters\na = None\nb = -1.5\nc = [1, 'x']\nd = float('nan')\ne = True\n"
    given = injected_parameters(
        [{"cell_type": "code", "source": source, "tags": ["injected-parameters"]}]
    )
    assert {**given, "d": str(given["d"])} == {
        "a": None,
        "b": -1.5,
        "c": [1, "x"],
        "d": "nan",
        "e": True,
    }


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cells": [1]}', '{"cells": [{"source": 3}]}', "[" * 100_000]
)
def test_a_file_that_is_not_a_notebook_is_refused(tmp_path, text):
    (tmp_path / "bad.ipynb").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.ipynb is not a notebook"):
        read_cells(tmp_path / "bad.ipynb", executed=True)

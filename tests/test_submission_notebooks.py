import json

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from vitlab.submission.notebooks import (
    find_execution_problems,
    find_labelled,
    find_pictures,
    find_source_problems,
    injected_parameters,
    read_notebook,
    strip_outputs,
)

PARAMETERS = {"dataset": "digits", "rate": 0.5}
INJECTED = '# Parameters\ndataset = "digits"\nrate = 0.5\n'


@pytest.fixture
def executed(tmp_path):
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell('dataset = "elpv"\nrate = 1.0', metadata={"tags": ["parameters"]}, execution_count=1),
        new_code_cell(INJECTED, metadata={"tags": ["injected-parameters"]}, execution_count=2),
        new_code_cell(
            "#| label: fig-a\nplot()", execution_count=3, outputs=[new_output("display_data", {"image/png": "AB\nCD"})]
        ),
        new_code_cell("print(1)", execution_count=4),
    ]
    path = tmp_path / "executed.ipynb"
    path.write_text(json.dumps(new_notebook(cells=cells)))
    return read_notebook(path)


@pytest.fixture
def clean(executed, tmp_path):
    path = tmp_path / "clean.ipynb"
    path.write_text(strip_outputs(tmp_path / "executed.ipynb"))
    return read_notebook(path)


def test_a_whole_execution_has_no_problem(executed, clean):
    assert find_execution_problems(executed) == []
    assert find_source_problems(executed, clean, PARAMETERS) == []
    assert len(clean["cells"]) == 4
    assert find_pictures(executed) == ["ABCD"]
    assert find_labelled(executed, "fig-a")["execution_count"] == 3 and find_labelled(executed, "fig") is None


@pytest.mark.parametrize(
    ("cell", "change", "message"),
    [
        (3, {"execution_count": 5}, "cell 4 was executed as number 5, where 3 was its turn"),
        (1, {"execution_count": 2}, "cell 2 was executed as number 2, where 1 was its turn"),
        (4, {"execution_count": None}, r"cell 5 was not executed: not top to bottom in a fresh kernel \(print\(1\)\)"),
        (1, {"execution_count": True}, "cell 2 was executed as number True, where 1 was its turn"),
        (4, {"source": " \n", "outputs": [{"output_type": "stream", "text": "0.999"}]}, "cell 5 shows something and has no code"),
        (4, {"outputs": [{"output_type": "error", "ename": "KeyError", "evalue": "'x'"}]}, "cell 5 failed with KeyError: 'x'"),
    ],
)
def test_how_it_was_not_executed(executed, cell, change, message):
    executed["cells"][cell] |= change
    (problem,) = find_execution_problems(executed)
    import re

    assert re.match(message, problem)


@pytest.mark.parametrize("place", [0, 2, 4, 5])
@pytest.mark.parametrize("source", ["", " \n\t\n"])
@pytest.mark.parametrize("count", [None, 9])
def test_empty_cells_do_not_count(executed, clean, place, source, count):
    """JupyterLab adds one at the end, and a cell that was emptied may keep its count."""
    empty = {"cell_type": "code", "source": source, "execution_count": count, "outputs": [], "tags": []}
    text = {"cell_type": "markdown", "source": source, "tags": []}
    for one in (empty, text):
        longer = {"cells": [*executed["cells"][:place], one, *executed["cells"][place:]]}
        assert find_execution_problems(longer) == []
        assert find_source_problems(longer, clean, PARAMETERS) == []
        assert find_source_problems(executed, {"cells": [*clean["cells"], one]}, PARAMETERS) == []


def test_cells_with_a_comment_count(executed):
    comment = {"cell_type": "code", "source": "# a comment", "execution_count": 5, "outputs": [], "tags": []}
    assert find_execution_problems({"cells": [*executed["cells"], comment]}) == []
    (problem,) = find_execution_problems({"cells": [*executed["cells"], comment | {"execution_count": None}]})
    assert problem.startswith("cell 6 was not executed")


def test_a_notebook_without_code_was_not_executed(executed):
    executed["cells"] = executed["cells"][:1]
    assert find_execution_problems(executed) == ["it has no code cell"]


@pytest.mark.parametrize(
    ("cell", "source", "message"),
    [
        (4, "print(2)", "cell 4 differs from the clean notebook: line 1 is 'print(2)', in the clean one 'print(1)'"),
        (0, "# Title\nmore", "cell 1 differs from the clean notebook: line 2 is 'more', in the clean one 'nothing'"),
        (2, INJECTED + "import os", "the cell with the parameters holds more than parameters"),
        (2, INJECTED + "x, y = 1, 2", "the cell with the parameters holds more than parameters"),
        (2, INJECTED + "x = print(1)", "the cell with the parameters holds more than parameters"),
        (2, INJECTED.replace("0.5", "0.6"), "the parameter rate is 0.6 in it and 0.5 in the manifest"),
        (2, '# Parameters\ndataset = "digits"', "the parameter rate is not set in it and 0.5 in the manifest"),
    ],
)
def test_how_the_source_differs(executed, clean, cell, source, message):
    executed["cells"][cell]["source"] = source
    problems = find_source_problems(executed, clean, PARAMETERS)
    assert problems and problems[0].startswith(message), problems


def test_a_cell_more_and_a_moved_injection_are_seen(executed, clean):
    longer = {"cells": [*executed["cells"], executed["cells"][0]]}
    assert find_source_problems(longer, clean, PARAMETERS) == ["it has 5 cells, the clean notebook 4"]
    moved = {"cells": [*executed["cells"][:2], *executed["cells"][3:], executed["cells"][2]]}
    assert "does not follow the one tagged" in find_source_problems(moved, clean, PARAMETERS)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"cell_type": "markdown"},
        {"outputs": [{"output_type": "stream", "text": "0.999"}]},
        {"source": "#| label: fig-a\n" + INJECTED},
    ],
)
def test_the_cell_with_the_parameters_is_nothing_else(executed, clean, change):
    executed["cells"][2] |= change
    assert "is no code cell, shows something, or has options" in find_source_problems(executed, clean, PARAMETERS)[0]
    assert find_labelled(executed, "fig-a")["execution_count"] == 3, "and no label is looked for in it"


def test_parameters_of_every_kind_are_read():
    source = "# Parameters\na = None\nb = -1.5\nc = [1, 'x']\nd = float('nan')\ne = True\n"
    given = injected_parameters({"cells": [{"cell_type": "code", "source": source, "tags": ["injected-parameters"]}]})
    assert {**given, "d": str(given["d"])} == {"a": None, "b": -1.5, "c": [1, "x"], "d": "nan", "e": True}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": [1]}', '{"cells": [{"source": 3}]}', "[" * 100_000])
def test_what_is_no_notebook_says_so(tmp_path, text):
    (tmp_path / "bad.ipynb").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.ipynb is no notebook"):
        read_notebook(tmp_path / "bad.ipynb")

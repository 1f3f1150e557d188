import shlex
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill.cli import _resolve_type

from vitlab.errors import UserError
from vitlab.notebook import (
    _read_declared,
    check_parameters,
    fit_parameters,
    format_call,
    notebook_parameters,
    read_word,
)
from vitlab.training.config import TrainConfig

PARAMETERS = """# parameters
dataset = "elpv"    # a name; may hold a # in it
seed: int = 0
rate, ignored = 1e-3, 2
rate = 1e-3         # at its peak
size = None         # pixels
shown = [1, 2]
strict = True
"""


@pytest.fixture
def notebook(tmp_path):
    cell = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell, new_code_cell("1")]), tmp_path / "toy.ipynb")
    return tmp_path / "toy.ipynb"


def test_parameters_have_defaults_and_comments(notebook):
    assert notebook_parameters(notebook) == {
        "dataset": ("elpv", "a name; may hold a # in it"),
        "seed": (0, ""),
        "rate": (1e-3, "at its peak"),
        "size": (None, "pixels"),
        "shown": ([1, 2], ""),
        "strict": (True, ""),
    }


@pytest.mark.parametrize("cells", [[], ["a = 1", "b = 2"]])
def test_exactly_one_cell_is_tagged(tmp_path, cells):
    path = tmp_path / "toy.ipynb"
    nbformat.write(
        new_notebook(
            cells=[new_code_cell(text, metadata={"tags": ["parameters"]}) for text in cells]
        ),
        path,
    )
    with pytest.raises(
        ValueError,
        match=rf"toy.ipynb has {len(cells)} cells tagged `parameters`; it needs exactly one",
    ):
        notebook_parameters(path)


def test_a_default_is_a_plain_value(tmp_path):
    cell = new_code_cell("seed = int('3')", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "toy.ipynb")
    with pytest.raises(
        ValueError, match=r"seed of toy.ipynb is int\('3'\); a default must be a plain value"
    ):
        notebook_parameters(tmp_path / "toy.ipynb")


def test_what_is_no_notebook_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no notebook"):
        notebook_parameters(tmp_path / "none.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(ValueError, match=r"broken.ipynb is not a notebook"):
        notebook_parameters(tmp_path / "broken.ipynb")


def test_values_take_the_type_of_the_default(notebook):
    given = {"dataset": 12, "rate": "1e-4", "seed": 3, "size": 64, "strict": False}
    assert fit_parameters(notebook, given) == {
        "dataset": "12",
        "rate": 1e-4,
        "seed": 3,
        "size": 64,
        "strict": False,
    }
    words = {
        "dataset": "0042",
        "rate": "1",
        "seed": "3",
        "size": "64",
        "strict": "no",
        "shown": "[3]",
    }
    expected = {
        "dataset": "0042",
        "rate": 1.0,
        "seed": 3,
        "size": 64,
        "strict": False,
        "shown": [3],
    }
    assert fit_parameters(notebook, words, text=True) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "three"),
        ("seed", 1.5),
        ("seed", True),
        ("rate", "fast"),
        ("strict", 1),
        ("shown", 3),
    ],
)
def test_a_value_of_another_type_is_an_error(notebook, name, value):
    with pytest.raises(
        ValueError,
        match=(
            rf"parameter {name} of toy.ipynb is {value!r}; it must be of type \w+, like its default"
        ),
    ):
        fit_parameters(notebook, {name: value})


def test_a_written_call_means_the_same_values(notebook):
    values = {
        "dataset": "folder:/data/my cats",
        "seed": 3,
        "rate": 1e-5,
        "size": 0.00442,
        "shown": [1, 20],
        "strict": False,
    }
    command = format_call("notebooks/my notebook.ipynb", values)
    # as a shell joins the lines
    program, run, path, *words = shlex.split(command.replace("\\\n", ""))
    assert (program, run, path) == ("vitlab", "run", "notebooks/my notebook.ipynb")
    assert words[::3] == ["-p"] * len(values)
    assert (
        fit_parameters(notebook, dict(zip(words[1::3], words[2::3], strict=True)), text=True)
        == values
    )


ANNOTATED = """seed: int = 0
epochs: int | None = None
rate: float | None = None
strategy: str | None = None
flip: bool | None = None
size: int | list[int] or None = None
odd: Path | None = None
anything = None
"""


@pytest.fixture
def annotated(tmp_path):
    cell = new_code_cell(ANNOTATED, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "annotated.ipynb")
    return tmp_path / "annotated.ipynb"


WORDS = (
    "1e-3|1E5|12|-3|007|1_000| 4"
    " |.5|nan|inf|-Infinity|True|False|None|true|null||no|banana|1e|0x10|1,5|2026-01-01|[1, 2]|'3'"
)


@pytest.mark.parametrize("word", WORDS.split("|"))
def test_a_word_is_what_papermill_makes_of_it(word, annotated):
    expected = _resolve_type(word)
    assert repr(read_word(word)) == repr(expected)
    fitted = fit_parameters(annotated, {"anything": word})["anything"]  # as text of a batch file
    assert repr(fitted) == repr(expected)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("rate", "1e-3", 0.001),
        ("rate", "1", 1.0),
        ("rate", "None", None),
        ("epochs", "7", 7),
        ("epochs", "None", None),
        ("strategy", "None", None),
        ("strategy", "full", "full"),
        ("strategy", "1e-3", "1e-3"),
        ("flip", "False", False),
        ("size", "64", 64),
        ("seed", "5", 5),
        ("odd", "2.5", 2.5),
    ],
)
def test_words_take_the_annotated_type(annotated, name, word, value, text):
    found = fit_parameters(annotated, {name: word}, text=text)[name]
    assert (found, type(found)) == (value, type(value))


def test_words_of_the_command_line_may_be_yaml(annotated):
    words = {"flip": "no", "size": "[48, 64]", "rate": "null"}
    assert fit_parameters(annotated, words, text=True) == {
        "flip": False,
        "size": [48, 64],
        "rate": None,
    }


@pytest.mark.parametrize(
    ("name", "value", "kinds"),
    [
        ("epochs", "banana", "int or None"),
        ("epochs", 1.5, "int or None"),
        ("epochs", True, "int or None"),
        ("rate", "fast", "float or None"),
        ("flip", 1, "bool or None"),
        ("strategy", ["full"], "str or None"),
        ("strategy", False, "str or None"),
        ("size", "large", "int or list or None"),
        ("seed", "None", "int, like its default 0"),
    ],
)
@pytest.mark.parametrize("text", [True, False])
def test_a_default_of_none_has_a_type_too(annotated, name, value, kinds, text):
    with pytest.raises(UserError) as caught:
        fit_parameters(annotated, {name: value}, text=text)
    assert (
        str(caught.value)
        == f"parameter {name} of annotated.ipynb is {value!r}; it must be of type {kinds}"
    )


@pytest.mark.parametrize(
    "values",
    [
        {
            "rate": 1e-5,
            "epochs": None,
            "strategy": "it's $HOME",
            "flip": True,
            "size": [48, 64],
            "seed": -1,
        },
        {
            "rate": None,
            "strategy": None,
            "flip": False,
            "size": None,
            "odd": 0.1,
            "anything": [1, None, "a b", True, "1"],
        },
        {"anything": None, "rate": float("inf"), "strategy": "1e-3"},
        {"anything": {"a": [1.5, "x"]}, "strategy": ""},
    ],
)
def test_a_written_call_of_annotated_parameters_means_the_same_values(annotated, values):
    words = shlex.split(format_call("a b.ipynb", values).replace("\\\n", ""))[3:]
    assert (
        fit_parameters(annotated, dict(zip(words[1::3], words[2::3], strict=True)), text=True)
        == values
    )


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb")),
    ids=lambda path: path.stem,
)
def test_every_parameter_of_our_notebooks_has_a_type(path):
    declared = _read_declared(path)
    assert [name for name, parameter in declared.items() if not parameter.kinds] == []
    trained = {field.name: type(field.default).__name__ for field in fields(TrainConfig)}
    same = {
        name: declared[name].kinds
        for name in declared.keys() & trained.keys()
        if declared[name].default is None
    }
    assert same == {name: (trained[name], "None") for name in same}


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb")),
    ids=lambda path: path.stem,
)
def test_papermill_knows_every_parameter_of_our_notebooks(path):
    """Else it warns of an unknown parameter, which it then sets."""
    assert list(papermill.inspect_notebook(path)) == list(notebook_parameters(path))


def test_a_cell_of_parameters_that_is_not_python_is_said(tmp_path):
    for number, source in enumerate(["seed = = 1", "seed = (1,", "seed: = 2", '"']):
        cell = new_code_cell(source, metadata={"tags": ["parameters"]})
        nbformat.write(new_notebook(cells=[cell]), tmp_path / f"{number}.ipynb")
        with pytest.raises(
            UserError, match=rf"^the cell tagged `parameters` of {number}.ipynb is not Python: "
        ):
            notebook_parameters(tmp_path / f"{number}.ipynb")


def test_an_unknown_name_lists_those_there_are(notebook):
    with pytest.raises(
        ValueError,
        match=(
            r"unknown parameter 'sed'. Did you mean seed\? Choices: dataset, seed, rate.* toy.ipynb"
        ),
    ):
        fit_parameters(notebook, {"sed": 1})


def check(*history):
    check_parameters(SimpleNamespace(user_ns={"In": ["", *history]}))


def test_check_parameters_sees_what_papermill_put_in():
    check("seed = 0", "check_parameters()")
    check("seed = 0", "# Parameters\nseed = 1\n", "check_parameters()")
    with pytest.raises(
        ValueError, match=r"unknown parameter 'sed'. Did you mean seed\? Choices: seed."
    ):
        check("seed = 0", "# Parameters\nsed = 1\n", "check_parameters()")


def test_check_parameters_takes_a_first_cell_as_the_declaration():
    check("# Parameters\nseed = 0", "check_parameters()")
    check_parameters()  # outside IPython there is nothing to compare

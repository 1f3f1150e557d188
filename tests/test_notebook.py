import shlex
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from vitlab.notebook import check_parameters, fit_parameters, format_call, notebook_parameters

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
    nbformat.write(new_notebook(cells=[new_code_cell(text, metadata={"tags": ["parameters"]}) for text in cells]), path)
    with pytest.raises(ValueError, match=rf"toy.ipynb has {len(cells)} cells tagged `parameters`; it needs exactly one"):
        notebook_parameters(path)


def test_a_default_is_a_plain_value(tmp_path):
    cell = new_code_cell("seed = int('3')", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "toy.ipynb")
    with pytest.raises(ValueError, match=r"seed of toy.ipynb is int\('3'\); a default must be a plain value"):
        notebook_parameters(tmp_path / "toy.ipynb")


def test_what_is_no_notebook_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no notebook"):
        notebook_parameters(tmp_path / "none.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(ValueError, match=r"broken.ipynb is not a notebook"):
        notebook_parameters(tmp_path / "broken.ipynb")


def test_values_take_the_type_of_the_default(notebook):
    given = {"dataset": 12, "rate": "1e-4", "seed": 3, "size": 64, "strict": False}
    assert fit_parameters(notebook, given) == {"dataset": "12", "rate": 1e-4, "seed": 3, "size": 64, "strict": False}
    words = {"dataset": "0042", "rate": "1", "seed": "3", "size": "64", "strict": "no", "shown": "[3]"}
    expected = {"dataset": "0042", "rate": 1.0, "seed": 3, "size": 64, "strict": False, "shown": [3]}
    assert fit_parameters(notebook, words, text=True) == expected


@pytest.mark.parametrize(
    ("name", "value"), [("seed", "three"), ("seed", 1.5), ("seed", True), ("rate", "fast"), ("strict", 1), ("shown", 3)]
)
def test_a_value_of_another_type_is_an_error(notebook, name, value):
    with pytest.raises(
        ValueError, match=rf"parameter {name} of toy.ipynb is {value!r}; it must be of type \w+, like its default"
    ):
        fit_parameters(notebook, {name: value})


def test_a_written_call_means_the_same_values(notebook):
    values = {"dataset": "folder:/data/my cats", "seed": 3, "rate": 1e-5, "size": 0.00442, "shown": [1, 20], "strict": False}
    command = format_call("notebooks/my notebook.ipynb", values)
    program, run, path, *words = shlex.split(command.replace("\\\n", ""))  # as a shell joins the lines
    assert (program, run, path) == ("vitlab", "run", "notebooks/my notebook.ipynb")
    assert words[::3] == ["-p"] * len(values)
    assert fit_parameters(notebook, dict(zip(words[1::3], words[2::3], strict=True)), text=True) == values


def test_an_unknown_name_lists_those_there_are(notebook):
    with pytest.raises(
        ValueError, match=r"unknown parameter 'sed'. Did you mean seed\? Choices: dataset, seed, rate.* toy.ipynb"
    ):
        fit_parameters(notebook, {"sed": 1})


def check(*history):
    check_parameters(SimpleNamespace(user_ns={"In": ["", *history]}))


def test_check_parameters_sees_what_papermill_put_in():
    check("seed = 0", "check_parameters()")
    check("seed = 0", "# Parameters\nseed = 1\n", "check_parameters()")
    with pytest.raises(ValueError, match=r"unknown parameter 'sed'. Did you mean seed\? Choices: seed."):
        check("seed = 0", "# Parameters\nsed = 1\n", "check_parameters()")


def test_check_parameters_takes_a_first_cell_as_the_declaration():
    check("# Parameters\nseed = 0", "check_parameters()")
    check_parameters()  # outside IPython there is nothing to compare

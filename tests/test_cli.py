import json
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

import vitlab
import vitlab.report
from vitlab.cli import app


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = new_code_cell('name = "world"\ntimes = 1\nrate = 0.5', metadata={"tags": ["parameters"]})
    path = tmp_path / "greet.ipynb"
    nbformat.write(new_notebook(cells=[first, new_code_cell("print(f'hello {name}' * times, rate)\nassert times > 0")]), path)
    return path


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_help_comes_at_once_and_loads_nothing_heavy():
    code = "import sys; from vitlab.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass\nprint([*sys.modules])"
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - start < 3  # 0.2 s on an idle machine
    assert all(f" {command} " in shown for command in ("run", "batch", "report"))
    loaded = set(json.loads(shown.splitlines()[-1].replace("'", '"')))
    assert loaded.isdisjoint({"torch", "pandas", "papermill", "nbformat", "matplotlib", "IPython"})


def test_version():
    assert call("--version").output == f"vitlab {vitlab.__version__}\n"


def test_run_executes_with_parameters(notebook, reports_folder):
    result = call("run", notebook, "-p", "name", "0042", "-p", "times", "2", "--parameter", "rate", "1e-3")
    assert result.exit_code == 0, result.output
    copy = nbformat.read(reports_folder / "runs" / "notebooks" / "greet.ipynb", as_version=4)
    assert copy.cells[-1].outputs[0].text == "hello 0042hello 0042 0.001\n"
    assert "greet.ipynb done in" in result.output


def test_a_failing_notebook_names_cell_and_error(notebook, tmp_path):
    result = call("run", notebook, "-p", "times", "-1", "--output", tmp_path / "out.ipynb")
    assert result.exit_code == 1
    assert "cell 3: assert times > 0\nAssertionError" in result.stderr
    assert (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["-p", "nme", "x"],
            "unknown parameter 'nme'. Did you mean name? Choices: name, times, rate. They are those of greet.ipynb.",
        ),
        (["-p", "times", "many"], "parameter times of greet.ipynb is 'many'; it must be of type int, like its default 1"),
        (["-p", "times"], "-p times lacks a value; write -p NAME VALUE"),
    ],
)
def test_mistakes_are_one_line_and_status_2(notebook, reports_folder, words, message):
    result = call("run", notebook, *words)
    assert (result.exit_code, result.stderr) == (2, f"Error: {message}\n")
    assert not reports_folder.exists()


def test_a_missing_file_is_one_line(tmp_path):
    result = call("run", tmp_path / "none.ipynb")
    assert (result.exit_code, result.stderr) == (2, f"Error: there is no notebook {tmp_path / 'none.ipynb'}\n")
    result = call("batch", tmp_path / "none.yml")
    assert result.exit_code == 2 and result.stderr.startswith(f"Error: there is no batch file {tmp_path / 'none.yml'}")


def test_batch_shows_the_plan_runs_it_and_tells_by_its_status(notebook, tmp_path):
    batch = tmp_path / "toy.yml"
    batch.write_text("title: Toy\nparameters: {times: 0}\nchain: [{notebook: greet, grid: {}}]")
    result = call("batch", batch, "--dry-run")
    assert result.exit_code == 0 and "pending" in result.stdout and "new" in result.stdout
    result = call("batch", batch)
    assert result.exit_code == 1
    assert "cell 3: assert times > 0" in result.stdout


def test_report_takes_names_and_files_and_prints_where_the_pages_are(monkeypatch, tmp_path):
    asked, paths = [], {"html": "index.html", "pdf": "report.pdf", "findings": tmp_path / "findings.json"}
    paths["findings"].write_text("[]")
    monkeypatch.setattr(vitlab.report, "render_report", lambda names, **options: asked.append(names) or paths)
    assert call("report", "digits", "notebooks/batches/elpv.yml").output == "HTML  index.html\nPDF   report.pdf\n"
    call("report")
    assert asked == [["digits", "elpv"], []]

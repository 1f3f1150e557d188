import errno
import json
import os
import subprocess
import sys
import time

import nbformat
import pytest
import typer
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

import vitlab
import vitlab.report
from vitlab.cli import app, clean_errors, find_batch
from vitlab.runs import Run


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = new_code_cell(
        'name = "world"\ntimes = 1\nrate = 0.5', metadata={"tags": ["parameters"]}
    )
    path = tmp_path / "greet.ipynb"
    nbformat.write(
        new_notebook(
            cells=[first, new_code_cell("print(f'hello {name}' * times, rate)\nassert times > 0")]
        ),
        path,
    )
    return path


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_module_is_a_command():
    shown = subprocess.run(
        [sys.executable, "-m", "vitlab.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown == f"vitlab {vitlab.__version__}\n"


def test_help_comes_at_once_and_loads_nothing_heavy():
    code = (
        "import sys; from vitlab.cli import app\ntry: app(['--help'])\nexcept SystemExit:"
        " pass\nprint([*sys.modules])"
    )
    start = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert time.perf_counter() - start < 3  # 0.2 s on an idle machine
    assert all(f" {command} " in shown for command in ("run", "batch", "report"))
    loaded = set(json.loads(shown.splitlines()[-1].replace("'", '"')))
    assert loaded.isdisjoint({"torch", "pandas", "papermill", "nbformat", "matplotlib", "IPython"})


def test_run_executes_with_parameters(notebook, reports_folder):
    result = call(
        "run", notebook, "-p", "name", "0042", "-p", "times", "2", "--parameter", "rate=1e-3"
    )
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
            (
                "unknown parameter 'nme'. Did you mean name? Choices: name, times, rate. They are"
                " those of greet.ipynb."
            ),
        ),
        (
            ["-p", "times", "many"],
            "parameter times of greet.ipynb is 'many'; it must be of type int, like its default 1",
        ),
        (["-p", "times"], "-p times needs a value; write -p NAME VALUE"),
    ],
)
def test_mistakes_are_one_line_and_status_2(notebook, reports_folder, words, message):
    result = call("run", notebook, *words)
    assert (result.exit_code, result.stderr) == (2, f"Error: {message}\n")
    assert not reports_folder.exists()


def test_a_missing_file_is_one_line(tmp_path):
    result = call("run", tmp_path / "none.ipynb")
    assert (result.exit_code, result.stderr) == (
        2,
        f"Error: there is no notebook {tmp_path / 'none.ipynb'}\n",
    )
    result = call("batch", tmp_path / "none.yml")
    assert result.exit_code == 2 and result.stderr.startswith(
        f"Error: there is no batch file {tmp_path / 'none.yml'}"
    )


@pytest.fixture
def odd_files(notebook, tmp_path):
    """Files and folders that are not what they are taken for, in the working folder."""
    for name in ("folder", "folder.yml", "folder.ipynb"):
        (tmp_path / name).mkdir()
    for ending in ("", ".yml", ".ipynb"):
        (tmp_path / f"binary{ending}").write_bytes(bytes(range(256)))
    texts = {
        "tab": "a:\tb: c",
        "list": "[1]",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yml").write_text(text)
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    (tmp_path / "good.yml").write_text("chain: [{notebook: greet, grid: {}}]")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "good.yml").write_text("chain: [{notebook: none}]")


LONG = "x" * 300
MISTAKES = {
    "run folder/none.ipynb": "there is no notebook folder/none.ipynb",
    "run folder.ipynb": "folder.ipynb is a folder; name a notebook",
    "run binary.ipynb": "binary.ipynb is not a text in UTF-8, so it is no notebook",
    "run cut.ipynb": "cut.ipynb is not a notebook of nbformat 4",
    "run greet.ipynb/x": "the notebook greet.ipynb/x cannot be read (Not a directory)",
    "run greet.ipynb --output folder": (
        "--output folder is a folder; give a file name, such as folder/greet.ipynb"
    ),
    "run greet.ipynb --output binary/x": (
        "binary (Not a directory); make it a folder that you may write to, or choose"
    ),
    f"run greet.ipynb --output {LONG}": "File name too long (xxx",
    "batch folder.yml": "folder.yml is a folder; name a batch file",
    "batch binary.yml": "binary.yml is not a text in UTF-8, so it is no batch file",
    "batch tab.yml": "tab.yml is not YAML: while scanning",
    "batch list.yml": "list.yml: must have the keys title",
    "batch binary/x.yml": "the batch file binary/x.yml cannot be read (Not a directory)",
    "batch good.yml --scheduler folder.yml": "folder.yml is a folder; name a file of a cluster",
    "batch good.yml --scheduler binary.yml": (
        "binary.yml is not a text in UTF-8, so it is no file of a cluster"
    ),
    "batch good.yml --scheduler none.yml": "there is no file of a cluster none.yml",
    "batch good.yml --scheduler x": "--scheduler is 'x'; write its address",
    "report nothing": "unknown batch 'nothing'",
    "report": "no batch in ",
    "app none": "none is neither a folder with run.json",
    "export-space binary out": "binary is neither a folder with run.json",
    "submit x --author a --title t --rubric binary": (
        "binary is not a text in UTF-8, so it is no rubric"
    ),
    "submit x --author a --title t --rubric none.yml": "there is no rubric none.yml",
    "submit x --author a --title t --output binary/x": "binary (Not a directory)",
    "verify none.zip": "there is no bundle ",
    "verify folder --junit folder": "--junit folder is a folder",
    "new folder/a/b --data digits": "does not exist; make it first",
    "new made --data folder:none": "none does not exist; write folder:PATH",
    "new made --data folder:binary": "binary is a file, not a folder",
}


@pytest.mark.parametrize("words", MISTAKES, ids=lambda words: words[:60])
def test_what_cannot_be_read_or_written_is_one_line(odd_files, reports_folder, words):
    result = call(*words.split())
    assert result.exit_code == 2, result.output
    assert (
        result.stderr.startswith("Error: ")
        and MISTAKES[words] in result.stderr
        and result.stderr.count("\n") == 1
    )
    assert not list(reports_folder.rglob("*.ipynb"))


def test_a_folder_without_notebooks_says_where_it_looked(odd_files, tmp_path):
    for path in tmp_path.glob("*.ipynb"):
        path.rmdir() if path.is_dir() else path.unlink()
    said = call("batch", "alone/good.yml").stderr
    assert (
        said.startswith("Error: unknown notebook 'none'. Choices: none yet. Searched ")
        and str(tmp_path / "alone") in said
    )


COMMANDS = {
    "vitlab.batch.run_batch": "batch good.yml",
    "vitlab.batch.run_notebook": "run greet.ipynb",
    "vitlab.report.render_report": "report",
    "vitlab.new_project.create_project": "new made --data digits",
    "vitlab.deploy.find_run": "export-space x out",
    "vitlab.submission.make_bundle": "submit x --author a --title t",
    "vitlab.submission.verify_bundle": "verify folder",
}


@pytest.mark.parametrize("function", COMMANDS)
def test_a_programming_error_keeps_its_traceback(odd_files, monkeypatch, function):
    error = FileNotFoundError(2, "gone", "x") if "batch" in function else ValueError("domain")

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(function, fail)
    result = call(*COMMANDS[function].split())
    assert (
        result.exception is error and result.exc_info[2].tb_next and "Error:" not in result.stderr
    )


@pytest.mark.parametrize("function", COMMANDS)
def test_a_machine_that_refuses_is_one_line(odd_files, monkeypatch, function):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b")

    monkeypatch.setattr(function, fail)
    result = call(*COMMANDS[function].split())
    said = "No space left on device (/a/b): free some space, or choose another place"
    assert (result.exit_code, result.stderr) == (2, f"Error: {said} (VITLAB_REPORTS)\n")


@pytest.mark.parametrize("words", ["run greet.ipynb", "batch good.yml", "report"])
@pytest.mark.parametrize("kind", ["a file", "below a file", "read-only"])
def test_a_reports_folder_that_cannot_be_written_is_one_line_before_anything_runs(
    odd_files, tmp_path, reports_folder, monkeypatch, words, kind
):
    """Case C17. These tests may run as root, whom no permission stops: the system's refusal is
    played there.
    """
    reason = "Not a directory"
    if kind == "read-only":
        reason = "Permission denied"
        reports_folder.mkdir()

        def refuse(**options):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), options["dir"])

        monkeypatch.setattr("vitlab.files.tempfile.TemporaryFile", refuse)
    else:
        reports_folder.write_text("")
    if kind == "below a file":
        monkeypatch.setenv("VITLAB_REPORTS", str(reports_folder / "deeper"))
    result = call(*words.split())
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert (
        result.stderr.startswith(f"Error: results cannot be written to {reports_folder}")
        and f"({reason}); make it" in result.stderr
    )


def test_notebooks_and_batches_are_found_by_name_and_near_names_are_suggested():
    assert find_batch("elpv-study").name == "elpv-study.yml"
    said = call("run", "03_finetun").stderr
    assert "unknown notebook '03_finetun'. Did you mean 03_finetune?" in said
    assert (
        "unknown batch file 'elpv-stdy'. Did you mean elpv-study or elpv"
        in call("batch", "elpv-stdy").stderr
    )


def test_help_has_an_example_and_lists_the_parameters_of_a_notebook(notebook):
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        shown = " ".join(call(name, "--help").output.split())
        assert f"Example: vitlab {name}" in shown
    shown = call("run", notebook, "--help").output
    assert "Usage" in shown and "times = 1" in shown and "rate = 0.5" in shown


def test_runs_are_listed():
    assert "No runs yet." in call("runs").output
    Run.create(name="x", dataset="digits", model="vit_scratch", seed=3).finish()
    shown = call("runs", "--dataset", "digits").output
    assert "vit_scratch" in shown and "done" in shown
    assert "No runs yet." in call("runs", "--dataset", "elpv").output


def test_batch_shows_the_plan_runs_it_and_tells_by_its_status(notebook, tmp_path):
    batch = tmp_path / "toy.yml"
    batch.write_text("title: Toy\nparameters: {times: 0}\nchain: [{notebook: greet, grid: {}}]")
    result = call("batch", batch, "--dry-run")
    assert result.exit_code == 0 and "pending" in result.stdout and "new" in result.stdout
    result = call("batch", batch)
    assert result.exit_code == 1
    assert "cell 3: assert times > 0" in result.stdout


def test_report_takes_names_and_files_and_prints_where_the_pages_are(monkeypatch, tmp_path):
    asked, paths = (
        [],
        {
            "html": "index.html",
            "pdf": "report.pdf",
            "findings": tmp_path / "findings.json",
        },
    )
    paths["findings"].write_text("[]")
    monkeypatch.setattr(
        vitlab.report, "render_report", lambda names, **options: asked.append(names) or paths
    )
    assert (
        call("report", "digits", "notebooks/batches/elpv.yml").output
        == "HTML  index.html\nPDF   report.pdf\n"
    )
    call("report")
    assert asked == [["digits", "elpv"], []]


def test_a_missing_extra_is_one_line(capsys):
    with pytest.raises(typer.Exit), clean_errors():
        raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
    assert (
        "Error: gradio is not installed; run: pip install 'vitlab[app]'" in capsys.readouterr().err
    )
    with pytest.raises(ModuleNotFoundError), clean_errors():
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")

"""One rule for where results go: $VITLAB_REPORTS, else the project of the file that is run, else
that of the working folder.
"""

import os
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from vitlab.cli import app
from vitlab.places import inside_project, project_root, reports_dir


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A project with a notebook and a batch file, a second project, and a folder outside of both,
    which is the working folder.
    """
    monkeypatch.delenv("VITLAB_REPORTS")
    for name in ("project", "other"):
        (tmp_path / name / "notebooks" / "batches").mkdir(parents=True)
        (tmp_path / name / "_quarto.yml").write_text("website: {title: Toy}\n")
    (tmp_path / "outside").mkdir()
    cells = [new_code_cell("seed = 0", metadata={"tags": ["parameters"]})]
    cells.append(
        new_code_cell(
            "from vitlab.places import project_root,"
            " reports_dir\nprint(reports_dir())\nprint(project_root())"
        )
    )
    nbformat.write(new_notebook(cells=cells), tmp_path / "project" / "notebooks" / "where.ipynb")
    batch = {"chain": [{"notebook": "where", "grid": {}}]}
    (tmp_path / "project" / "notebooks" / "batches" / "all.yml").write_text(yaml.safe_dump(batch))
    monkeypatch.chdir(tmp_path / "outside")
    return tmp_path


def test_the_nearest_folder_with_settings_is_the_project(folders, monkeypatch):
    assert project_root(folders / "project" / "notebooks") == folders / "project"
    assert (
        project_root() == folders / "outside" and reports_dir() == folders / "outside" / "reports"
    )
    monkeypatch.chdir(folders / "other" / "notebooks")
    assert reports_dir() == folders / "other" / "reports"
    with inside_project("../../project/notebooks/where.ipynb") as reports:
        assert (
            reports == reports_dir() == folders / "project" / "reports"
            and project_root() == folders / "project"
        )
        with inside_project(folders / "outside" / "x.ipynb") as inner:
            assert inner == folders / "other" / "reports", (
                "a file outside of any project: that of the working folder"
            )
        assert project_root() == folders / "project"
    assert reports_dir() == folders / "other" / "reports" and "VITLAB_PROJECT" not in os.environ


def test_the_own_choice_comes_first_and_is_a_whole_path(folders, monkeypatch):
    monkeypatch.setenv("VITLAB_REPORTS", "mine")
    with inside_project(folders / "project" / "notebooks" / "where.ipynb") as reports:
        assert (
            reports == reports_dir() == folders / "outside" / "mine"
            and project_root() == folders / "project"
        )
    monkeypatch.setenv("VITLAB_REPORTS", "~/mine")
    assert reports_dir() == Path.home() / "mine"


def printed(copy):
    return nbformat.read(copy, as_version=4).cells[-1].outputs[0].text


@pytest.mark.parametrize("command", ["run", "batch"])
def test_started_from_another_folder_results_go_to_the_project_of_the_file_and_the_path_is_printed(
    command, folders
):
    notebooks, reports = folders / "project" / "notebooks", folders / "project" / "reports"
    file = notebooks / ("where.ipynb" if command == "run" else "batches/all.yml")
    result = CliRunner().invoke(app, [command, str(file)])
    assert result.exit_code == 0, result.output
    assert f"Results: {reports}" in result.output
    copy = (
        reports
        / "runs"
        / ("notebooks" if command == "run" else "batches/all/notebooks")
        / "where.ipynb"
    )
    assert printed(copy) == f"{reports}\n{folders / 'project'}\n"
    assert list((folders / "outside").iterdir()) == []


def test_what_is_not_there_is_named_with_the_folder_that_was_searched(folders):
    searched = folders / "outside" / "reports" / "runs"
    for words in (["report"], ["app", "nothing"], ["export-space", "nothing", "x"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2 and str(searched) in result.stderr, words
    result = CliRunner().invoke(
        app, ["report", str(folders / "project" / "notebooks" / "batches" / "all.yml")]
    )
    assert str(folders / "project" / "reports" / "runs" / "batches") in result.stderr

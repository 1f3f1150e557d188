"""`vitlab new` makes a project whose batch can be planned at once, or nothing at all and says
why.
"""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from vitlab.batch import load_batch, plan_tasks
from vitlab.cli import app
from vitlab.evaluation import published_table
from vitlab.new_project import create_project
from vitlab.places import project_root
from vitlab.report.gather import guide_pages
from vitlab.report.settings import read_settings


@pytest.fixture
def images(tmp_path):
    """Two classes of ten small images."""
    root = tmp_path / "own images"
    rng = np.random.default_rng(0)
    for name in ("good", "cracked"):
        (root / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                root / name / f"{number}.png"
            )
    return root


def test_a_project_can_be_planned_and_has_its_front_matter(tmp_path, images, monkeypatch):
    project = create_project(tmp_path / "solar_cells", f"folder:{images}")
    assert project.summary.startswith("20 images in 2 classes, cracked (10), good (10): ")
    assert (
        "The positive class is good, the last of the two; to change this, list both names in"
        f" {images}" in project.summary
    )
    batch = load_batch(project.folder / "batch.yml")
    assert batch.title == "Solar cells" and batch.parameters == {"dataset": f"folder:{images}"}
    tasks = plan_tasks(batch)
    assert [task.step.notebook for task in tasks].count("03_finetune") == 4
    assert {task.parameters["dataset"] for task in tasks} == {f"folder:{images}"}
    assert (
        next(task for task in tasks if task.step.notebook == "08_compare").parameters["published"]
        == "published.csv"
    )
    published = pd.read_csv(project.folder / "reports" / "published.csv")
    row = {"task": "x", "cells": "all", "metric": "accuracy", "value": 0.9, "model": "m"}
    ours = pd.DataFrame([row | {"seed": 0, "sampling_sd": 0.1, "protocol": "80/20"}])
    assert published_table(published, ours)["mean"].tolist() == [0.9], "08 runs without others'"
    assert all(task.step.source.is_relative_to(project.folder) for task in tasks), (
        "its own notebooks"
    )
    monkeypatch.chdir(project.folder / "notebooks")
    assert project_root() == project.folder
    assert [page.title for page in guide_pages()] == [
        "Check your data and your results",
        "Read the report",
        "Choose a model",
        "Read an explanation critically",
    ]
    settings = read_settings()
    assert settings.title == "Solar cells" and settings.bibliography[0].is_file()
    readme = (project.folder / "README.md").read_text()
    assert project.summary in readme and f"-p dataset 'folder:{images}'" in readme
    start = (project.folder / "notebooks" / "00_start.md").read_text()
    assert "vitlab batch batch.yml" in start and "elpv.yml" not in start and "mermaid" in start
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "own images",
        "solar_cells",
    ], "nothing else is left"


def test_a_title_with_every_sign_stays_what_it_is(tmp_path, images):
    title = 'Zellen: "gut" \\ {schlecht} # 1'
    project = create_project(tmp_path / "x", f"folder:{images}", title)
    assert load_batch(project.folder / "batch.yml").title == title
    assert read_title(project.folder / "_quarto.yml") == title


def test_relative_paths_become_whole_and_an_empty_folder_is_taken(tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    project = create_project("empty", "folder:own images")
    assert load_batch(project.folder / "batch.yml").parameters["dataset"] == f"folder:{images}"


def test_other_data_sets_are_taken_by_name(tmp_path):
    project = create_project(tmp_path / "d", "digits")
    assert project.summary.startswith("1,797 images in 10 classes")
    project = create_project(tmp_path / "c", "torchvision:CIFAR10")
    assert "is downloaded by the first notebook" in project.summary


def make_full(folder):
    folder.mkdir()
    (folder / "notes.txt").touch()


@pytest.mark.parametrize(
    ("prepare", "data", "message"),
    [
        (
            make_full,
            "folder:{images}",
            r"project is not empty, it holds notes\.txt; .*: give the name of a new folder",
        ),
        (Path.touch, "folder:{images}", r"project is a file; give the name of a new folder"),
        (None, "folder:{images}x", r"own imagesx does not exist; write folder:PATH"),
        (None, "folder:{images}/good", r"has no sub-folders; write folder:PATH"),
        (None, "folder:", r"folder: needs a path"),
        (None, "{images}", r"for images in a folder write folder:"),
        (None, "elvp", r"unknown dataset 'elvp'\. Did you mean elpv"),
    ],
)
def test_mistakes_are_named_and_leave_nothing_behind(tmp_path, images, prepare, data, message):
    folder = tmp_path / "project"
    if prepare:
        prepare(folder)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["new", str(folder), "--data", data.format(images=images)])
    assert result.exit_code == 2 and result.stderr.startswith("Error: ")
    with pytest.raises(ValueError, match=message):
        create_project(folder, data.format(images=images))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_one_class_too_few_images_and_a_place_among_them(tmp_path, images):
    with pytest.raises(
        ValueError, match="is inside the folder of images, where it would count as a class"
    ):
        create_project(images / "project", f"folder:{images}")
    with pytest.raises(ValueError, match="nowhere does not exist; make it first"):
        create_project(tmp_path / "nowhere" / "project", f"folder:{images}")
    for path in list((images / "good").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="each class needs at least 3 readable images"):
        create_project(tmp_path / "project", f"folder:{images}")
    (images / "good").rename(tmp_path / "away")
    with pytest.raises(
        ValueError, match="has one class only, 'cracked'; a classifier needs at least two"
    ):
        create_project(tmp_path / "project", f"folder:{images}")
    assert not (tmp_path / "project").exists()


def test_unreadable_images_are_counted(tmp_path, images):
    (images / "good" / "torn.png").write_bytes(b"no image")
    assert "1 file is left out" in create_project(tmp_path / "p", f"folder:{images}").summary


def test_a_package_without_its_checkout_says_so(tmp_path, images):
    with pytest.raises(ValueError, match=r"contains no notebooks: install vitlab from a clone"):
        create_project(tmp_path / "p", f"folder:{images}", checkout=tmp_path)


@pytest.mark.parametrize("name", ["it's $HOME & co", "-p"])
def test_the_command_that_is_printed_can_be_pasted(tmp_path, images, name):
    """Case C16."""
    result = CliRunner().invoke(app, ["new", str(tmp_path / name), "--data", f"folder:{images}"])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("cd ")]
    shown = subprocess.run(
        ["bash", "-c", f"{line} && pwd"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert shown.stdout == f"{tmp_path / name}\n"


@pytest.mark.parametrize("place", [".", "~"])
def test_the_working_folder_may_become_the_project(tmp_path, images, monkeypatch, place):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    project = create_project(place, f"folder:{images}")
    assert project.folder == here and "batch.yml" in project.files
    assert read_title(here / "_quarto.yml") == "Here"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "own images"]


def read_title(file):
    return yaml.safe_load(file.read_text())["website"]["title"]

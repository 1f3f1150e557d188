"""Every notebook runs on a few digits, as one batch, and a report with pages and PDF comes out."""

import html
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pypdf
import pytest
import yaml
from PIL import Image

from vitlab.batch import run_batch
from vitlab.notebook import notebook_parameters
from vitlab.report import render_report

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAIN = {
    "00_check": {"grid": {}},
    "01_explore_data": {"grid": {}, "parameters": {"images_shown": 10}},
    "02_vit_from_scratch": {"grid": {}, "parameters": {"epochs": 1, "depth": 2}},
    "03_finetune": {
        "parameters": {"size": 48, "epochs": 1, "batch_size": 128, "precision": "fp32"}
    },
    "04_evaluate": {"parameters": {"replicates": 50, "mistakes_shown": 4}},
    "05_interpret": {
        "parameters": {
            "shown": "attention rollout grad_cam integrated_gradients occlusion",
            "tested": "rollout transformer_attribution grad_cam saliency occlusion",
            "test_images": 3,
        }
    },
    "06_compress": {
        "grid": {"model": ["vit_scratch"]},
        "parameters": {
            "student": "vit_scratch",
            "student_epochs": 1,
            "timings": 3,
            "replicates": 50,
        },
    },
    "07_tune": {"grid": {}, "parameters": {"size": 24, "epochs": 1, "trials": 2}},
    "08_compare": {"grid": {}},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A data set of 30 images for each digit."""
    from sklearn.datasets import load_digits

    folder, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for label in range(10):
        (folder / str(label)).mkdir()
        for number, image in enumerate(digits.images[digits.target == label][:30]):
            pixels = Image.fromarray((image * 15).astype(np.uint8)).resize((24, 24))
            pixels.save(folder / str(label) / f"{number}.png")
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    batch = {
        "title": "Digits, in small",
        "parameters": {"dataset": images},
        "grid": {"model": ["vit_scratch", "efficientnet_lite0"]},
        "chain": [{"notebook": name, **step} for name, step in CHAIN.items()],
    }
    file = folder / "notebooks" / "batches" / "small.yml"
    file.write_text(yaml.safe_dump(batch))
    before = os.environ.get("VITLAB_REPORTS")
    os.environ["VITLAB_REPORTS"] = str(folder / "reports")
    try:
        yield run_batch(file), folder / "reports"
    finally:
        (
            os.environ.pop("VITLAB_REPORTS")
            if before is None
            else os.environ.update(VITLAB_REPORTS=before)
        )


def test_every_notebook_is_in_the_chain():
    assert [path.stem for path in NOTEBOOKS] == list(CHAIN)


def test_all_notebooks_run(finished):
    content, _ = finished
    assert len(content["tasks"]) == 12
    assert {task["status"] for task in content["tasks"]} == {"done"}, [
        task["error"] for task in content["tasks"] if task["error"]
    ]


def test_figures_are_drawn(finished):
    """A cell that promises a figure shows one, or says in words why there is none."""
    content, reports = finished
    for task in content["tasks"]:
        notebook = nbformat.read(reports / task["path"], as_version=4)
        promised = [cell for cell in notebook.cells if cell.source.startswith("#| label: fig-")]
        assert promised or task["notebook"] == "03_finetune"
        for cell in promised:
            kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
            assert kinds & {"image/png", "text/markdown"}, (task["notebook"], cell.source)


def test_runs_hold_what_the_design_says(finished):
    content, reports = finished
    for folder in {task["run"] for task in content["tasks"] if task["run"]}:
        run = reports / folder
        assert json.loads((run / "run.json").read_text())["status"] == "done"
        names = {path.name for path in run.iterdir()}
        assert {
            "history.csv",
            "splits.csv",
            "predictions.parquet",
            "metrics.json",
            "model.safetensors",
            "notebooks",
        } <= names
        assert 0 <= json.loads((run / "metrics.json").read_text())["accuracy"]["value"] <= 1
        predicted = pd.read_parquet(run / "predictions.parquet")["split"].value_counts().to_dict()
        splits = pd.read_csv(run / "splits.csv")["split"].value_counts().to_dict()
        assert predicted == {name: splits[name] for name in ("val", "test")}


def test_a_second_call_runs_nothing(finished, monkeypatch):
    content, reports = finished
    monkeypatch.setenv("VITLAB_REPORTS", str(reports))
    times = {task["path"]: (reports / task["path"]).stat().st_mtime_ns for task in content["tasks"]}
    again = run_batch(reports.parent / "notebooks" / "batches" / "small.yml")
    assert {task["status"] for task in again["tasks"]} == {"done"}
    assert times == {
        task["path"]: (reports / task["path"]).stat().st_mtime_ns for task in again["tasks"]
    }


def test_report_of_the_real_notebooks(finished, monkeypatch):
    _, reports = finished
    monkeypatch.setenv("VITLAB_REPORTS", str(reports))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # without Quarto, wherever it is
    paths = render_report(notebooks=True)
    home = paths["html"].read_text()
    assert home.index("Code</summary>") > home.index("The answer</h2>")
    assert "Compare" in home and "efficientnet_lite0" in home and "vitlab-plotlyjs" in home
    assert len(list(paths["html"].parent.glob("*.html"))) == 12 + len(
        list((ROOT / "reports" / "guide").glob("*.md"))
    )
    pages = pypdf.PdfReader(paths["pdf"]).pages
    text = "".join(page.extract_text() for page in pages)
    assert len(pages) <= 30 and "import pandas" not in text and "Figure" in text
    assert text.index("The answer") < text.rindex("Methods") < text.rindex("Reproduction")
    whole = pypdf.PdfReader(paths["pdf"].with_name("report-notebooks.pdf"))
    text = "".join(page.extract_text() for page in whole.pages)
    assert "Explore the data" in text and "Dosovitskiy" in text and "import pandas" in text


def test_finetune_runs_with_every_strategy(tmp_path, images, reports_folder):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    small = {
        "dataset": images,
        "model": "vit_scratch",
        "size": 24,
        "epochs": 2,
        "batch_size": 128,
        "last_blocks": 2,
    }
    batch = {
        "parameters": {
            **small,
            "head_hidden": 8,
            "drop_path_rate": 0.1,
            "layer_decay": 0.8,
            "ema": 0.9,
        },
        "grid": {
            "strategy": ["full", "linear_probe", "last_blocks", "gradual"],
            "cache": [True, False],
        },
        "chain": [{"notebook": "03_finetune"}],
    }
    file = tmp_path / "notebooks" / "batches" / "strategies.yml"
    file.write_text(yaml.safe_dump(batch))
    tasks = run_batch(file)["tasks"]
    assert len(tasks) == 8 and {task["status"] for task in tasks} == {"done"}, [
        task["error"] for task in tasks
    ]
    facts = [
        json.loads((reports_folder / task["run"] / "run.json").read_text())["facts"]
        for task in tasks
    ]
    trained = {
        task["point"]["strategy"]: fact["trained_parameters"]
        for task, fact in zip(tasks, facts, strict=True)
    }
    assert trained["linear_probe"] < trained["gradual"] <= trained["last_blocks"] < trained["full"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_as_the_design_asks(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(comment for _, comment in notebook_parameters(path).values()), (
        "each parameter has a comment"
    )
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    for cell in code:
        lines = [
            line for line in cell.source.splitlines() if line.strip() and not line.startswith("#|")
        ]
        assert len(lines) <= 15 or "parameters" in cell.metadata.get("tags", []), cell.source
        assert not any(line.startswith(("def ", "class ", "async def ")) for line in lines)
        if "#| label: fig-" in cell.source:
            assert "#| fig-cap: " in cell.source and "#| fig-alt: " in cell.source


def test_names_with_markup_are_shown_as_they_are(tmp_path, reports_folder):
    """Notebook 01 on a folder whose class names, one of them rare, look like markup; a strict
    report accepts it.
    """
    names = ["R&D @home", "back\\slash", "*star*", "<b>bold", "[x](y)", "$a$ _b_ `c` | # ^d^"]
    random = np.random.default_rng(0)
    for label in names:
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(3 if label == "*star*" else 6):
            Image.fromarray(random.integers(0, 255, (24, 24), dtype=np.uint8)).save(
                tmp_path / "images" / label / f"{i}.png"
            )
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    title = "Names: *x* $y$ <b> @z"
    batch = {
        "title": title,
        "parameters": {"dataset": f"folder:{tmp_path}/images"},
        "chain": [{"notebook": "01_explore_data"}],
    }
    file = tmp_path / "notebooks" / "batches" / "names.yml"
    file.write_text(yaml.safe_dump(batch))
    (task,) = run_batch(file)["tasks"]
    assert task["status"] == "done", task["error"]
    paths = render_report(strict=True)
    shown = html.unescape(
        re.sub(r"<(script|style).*?</\1>|<[^>]*>", "", paths["html"].read_text(), flags=re.DOTALL)
    )
    assert all(shown.count(name) >= 4 for name in names)  # in text, tables, data card
    text = " ".join(
        "".join(page.extract_text() for page in pypdf.PdfReader(paths["pdf"]).pages).split()
    )
    assert all(text.count(name) >= 4 for name in [*names, title])

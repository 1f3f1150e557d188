import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from scipy.special import softmax
from typer.testing import CliRunner

from tests.toys import small_digits, tiny_vit
from vitlab.app.prediction import Calibration
from vitlab.cli import app as command_line
from vitlab.compress.confidence import find_calibration
from vitlab.compress.session import OnnxClassifier
from vitlab.deploy import (
    copy_modules,
    export_space,
    find_run,
    model_card,
    page_facts,
    parts as parts_module,
)
from vitlab.deploy.card import apply_temperature
from vitlab.deploy.parts import load_run_data, predict_splits
from vitlab.evaluation import metrics_table, slice_table
from vitlab.runs import Run
from vitlab.training import TrainConfig, fit, save_results

# of the Spaces configuration reference
HUB_COLOURS = ["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
HEAVY = {"torch", "torchvision", "timm", "scipy", "sklearn", "matplotlib"}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(autouse=True)
def shared_reports(reports, reports_folder, monkeypatch):
    monkeypatch.setenv("VITLAB_REPORTS", str(reports))


@pytest.fixture(scope="module")
def run(reports):
    """A small ViT trained on every sixth digit, with half of the images in a group of their own."""
    os.environ["VITLAB_REPORTS"], before = str(reports), os.environ.get("VITLAB_REPORTS")
    try:
        samples = small_digits().samples
        data = replace(
            small_digits(),
            samples=samples.assign(group=np.where(np.arange(len(samples)) % 2, "odd", "even")),
        )
        run = Run.create(dataset="digits", model="vit_scratch", seed=0)
        model = tiny_vit()
        fit(
            model,
            data,
            run,
            TrainConfig(epochs=12, batch_size=16, learning_rate=3e-3, augment="none"),
        )
        save_results(run, model, data)
        return Run(run.path)
    finally:
        (
            os.environ.pop("VITLAB_REPORTS")
            if before is None
            else os.environ.update(VITLAB_REPORTS=before)
        )


@pytest.fixture(scope="module")
def space(run, tmp_path_factory):
    return export_space(run, tmp_path_factory.mktemp("spaces") / "digits")


@pytest.fixture(scope="module")
def card(run):
    return model_card(run)


def at_own_temperature(predictions):
    return apply_temperature(predictions, find_calibration(predictions)["temperature"])


def read_rows(card, title):
    """The rows of the tables below a title, as lists of cells."""
    part = card.split(f"## {title}")[1].split("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line.startswith("| ")
    ]


def test_the_card_says_what_the_run_measured(run, card):
    predictions = at_own_temperature(run.read_table("predictions.parquet"))
    shown = {row[0]: row[1:] for row in read_rows(card, "Performance on") if len(row) == 3}
    for metric, name in (
        ("accuracy", "accuracy"),
        ("balanced_accuracy", "balanced accuracy"),
        ("roc_auc", "area under the ROC curve"),
    ):
        row = metrics_table(predictions).set_index("metric").loc[metric]
        assert shown[name] == [f"{row['value']:.3f}", f"({row['low']:.3f} to {row['high']:.3f})"]
    samples = run.read_table("splits.csv")
    counted = {row[0]: row[1:] for row in read_rows(card, "Data")}
    of_three = samples[samples["label"].astype(str) == "3"]["split"].value_counts()
    assert counted["3"] == [str(of_three[split]) for split in ("train", "val", "test")] + [
        str(of_three.sum())
    ]
    groups = {row[0]: row[1:] for row in read_rows(card, "Performance by group")}
    by_group = slice_table(predictions, metrics=["recall"]).set_index("slice")
    assert groups["odd"][0] == str(by_group.loc["odd", "n"])
    assert groups["odd"][2].startswith(f"{by_group.loc['odd', 'value']:.3f} (")
    assert "CC BY 4.0 (UCI" in card
    assert f"torch {run.info['versions']['torch']}" in card


def test_the_card_draws_the_clusters_that_notebook_04_has_kept(run, card):
    predictions = at_own_temperature(run.read_table("predictions.parquet"))
    ids = predictions.loc[predictions["split"] == "test", "sample_id"]
    clusters = pd.Series(
        [f"c{number // 4}" for number in range(len(ids))], index=pd.Index(ids, name="sample_id")
    )
    run.write_table("clusters.parquet", clusters.rename("cluster").reset_index())
    try:
        clustered = model_card(run)
    finally:
        (run.path / "clusters.parquet").unlink()
    assert (
        "bootstrap over single test images" in card
        and "bootstrap over clusters of near-duplicates" in clustered
    )
    title = "Performance on"
    alone, together = (
        {row[0]: row[1:] for row in read_rows(text, title) if len(row) == 3}
        for text in (card, clustered)
    )
    predictions["cluster"] = predictions["sample_id"].map(clusters)
    row = metrics_table(predictions).set_index("metric").loc["accuracy"]
    assert (
        together["accuracy"]
        == [f"{row['value']:.3f}", f"({row['low']:.3f} to {row['high']:.3f})"]
        != alone["accuracy"]
    )
    recall = slice_table(predictions, metrics=["recall"]).set_index("slice").loc["odd"]
    groups = {row[0]: row[1:] for row in read_rows(clustered, "Performance by group")}
    assert (
        groups["odd"][2] == f"{recall['value']:.3f} ({recall['low']:.3f} to {recall['high']:.3f})"
    )


def test_the_card_says_how_often_it_is_not_sure(run):
    classes, generator = small_digits().classes, np.random.default_rng(0)
    label = generator.integers(0, 10, 600)
    logits = generator.normal(size=(600, 10)) + 2.5 * np.eye(10)[label]
    table = pd.DataFrame(
        {
            "sample_id": np.arange(600).astype(str),
            "split": np.repeat(["val", "test"], 300),
            "group": "one",
        }
    )
    table["label"], table["pred"] = (
        np.array(classes)[label],
        np.array(classes)[logits.argmax(axis=1)],
    )
    table[[f"logit_{name}" for name in classes]] = logits
    table[[f"prob_{name}" for name in classes]] = softmax(logits, axis=1)
    limits = find_calibration(table)["limits"]
    test = at_own_temperature(table).iloc[300:]
    inside = 1 - test[[f"prob_{name}" for name in classes]].to_numpy() <= [
        limits[name] for name in classes
    ]
    covered = inside[np.arange(300), label[300:]]
    sure = (inside.sum(axis=1) == 1) & inside[np.arange(300), logits[300:].argmax(axis=1)]
    right = (table["label"] == table["pred"]).to_numpy()[300:]
    card = model_card(run, table)
    assert 0.05 < sure.mean() < 0.95
    assert f"the sets contained the true class for {covered.mean():.1%}" in card
    assert f"the model was sure for {sure.mean():.1%};" in card
    assert f"when it was sure, it was correct for {right[sure].mean():.1%};" in card
    assert f"the most probable class was correct for {right[~sure].mean():.1%}." in card
    assert "so performance on subgroups is unknown" in card


def test_the_card_names_its_limits(card):
    assert "There are only " in card.split("## Limits")[1]
    assert "Fewer than 30 test images of 0" in card
    assert "near-duplicates" in card.split("## Limits")[1]


def test_temperature_in_the_card_is_that_of_the_predictions(run, card):
    predictions = run.read_table("predictions.parquet")
    temperature = float(re.search(r"temperature of ([\d.]+)", card).group(1))
    assert temperature == pytest.approx(find_calibration(predictions)["temperature"], abs=1e-3)
    fixed = model_card(run, calibration=Calibration((0.2,) * 10, 0.2, 3.0))
    assert "temperature of 3.000" in fixed
    assert "at most 20%" in fixed


def test_the_space_is_whole(space, run):
    files = {str(path.relative_to(space)) for path in space.rglob("*") if path.is_file()}
    assert files >= {
        "README.md",
        "app.py",
        "requirements.txt",
        "Dockerfile",
        "model.onnx",
        "model.onnx.json",
        "app.json",
    }
    assert files >= {
        "MODEL_CARD.md",
        "vitlab/app/page.css",
        "vitlab/compress/session.py",
        "examples/LICENCE.txt",
    }
    front, card = (space / "README.md").read_text(encoding="utf-8").split("---\n")[1:3]
    front = yaml.safe_load(front)
    assert (front["sdk"], front["app_file"], front["license"]) == ("gradio", "app.py", "cc-by-4.0")
    required = dict(line.split("==") for line in (space / "requirements.txt").read_text().split())
    assert required["gradio"] == front["sdk_version"]
    assert HEAVY.isdisjoint(required)
    start, whole = card.split("# Model card", 1)
    assert f"# Model card{whole}" == (space / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "python app.py" in start
    assert front["title"] in start
    assert {front["colorFrom"], front["colorTo"]} <= set(HUB_COLOURS)
    assert "*.onnx filter=lfs" in (space / ".gitattributes").read_text()
    assert "Measured on the file `model.onnx`" in card
    assert not list(space.parent.glob(".*"))  # nothing half made is left beside it


def test_its_calibration_is_that_of_the_shipped_file(space, run):
    noted = json.loads((space / "model.onnx.json").read_text())["calibration"]
    temperature = float(
        re.search(
            r"temperature of ([\d.]+)", (space / "README.md").read_text(encoding="utf-8")
        ).group(1)
    )
    assert noted["temperature"] == pytest.approx(temperature, abs=1e-3)
    own = find_calibration(predict_splits(OnnxClassifier(space / "model.onnx"), load_run_data(run)))
    assert noted == own


def test_its_examples_are_test_images_of_all_classes_in_turn(space, run):
    paths = sorted((space / "examples").glob("*.png"))
    test = run.read_table("splits.csv").query("split == 'test'")
    assert len({path.name.split("-")[1] for path in paths}) == len(paths) == 8
    for path in paths:
        _, label, sample = path.stem.split("-", 2)
        names = test["sample_id"].astype(str).str.replace(r"[^A-Za-z0-9_.]+", "_", regex=True)
        assert test[names == sample]["label"].astype(str).item() == label
        assert Image.open(path).size == (8, 8)


def test_it_starts_with_nothing_but_its_requirements(space):
    """In a process in which everything else of this environment is out of reach."""
    code = f"""
import sys
sys.modules |= dict.fromkeys({HEAVY!r})  # an import of one of these fails, as if it were not installed
sys.path.insert(0, {str(space)!r})
import vitlab, vitlab.app.serving as serving
assert vitlab.__file__.startswith({str(space)!r}), vitlab.__file__
predictor = serving.open_predictor({str(space)!r})
from PIL import Image
print(predictor.predict([Image.open({str(next((space / "examples").glob("*.png")))!r})])[0].as_dict())
print("torch is", sys.modules["torch"])
"""  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=space)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "torch is None"


def test_nothing_is_overwritten_and_nothing_is_left_behind(run, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"is not empty, it holds mine\.txt"):
        export_space(run, full)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    with pytest.raises(FileNotFoundError, match=r"none\.onnx is missing"):
        export_space(run, tmp_path / "new", onnx=tmp_path / "none.onnx")
    (tmp_path / "alone.onnx").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"alone\.onnx\.json is missing"):
        export_space(run, tmp_path / "new", onnx=tmp_path / "alone.onnx")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "reports") == [
        "alone.onnx",
        "full",
    ]


def test_another_file_is_shipped_into_an_empty_folder(run, space, tmp_path):
    (tmp_path / "empty").mkdir()
    written = export_space(run, tmp_path / "empty", onnx=space / "model.onnx")
    assert (written / "model.onnx").read_bytes() == (space / "model.onnx").read_bytes()


@pytest.mark.parametrize("place", [".", "~", "./a/../new", "deep/er"])
def test_a_space_is_written_wherever_it_is_asked_for(run, space, tmp_path, monkeypatch, place):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    result = CliRunner().invoke(
        command_line, ["export-space", run.name, place, "--onnx", str(space / "model.onnx")]
    )
    assert result.exit_code == 0, result.output
    written = here / {"new/": "new", "./a/../new": "new", "new": "new", "deep/er": "deep/er"}.get(
        place, ""
    )
    assert (written / "app.py").is_file() and (written / "vitlab" / "LICENSE").is_file()
    assert Path.cwd() == here and os.path.samefile(".", here), (
        "the working folder is still the one that it was"
    )
    assert not [
        path for path in tmp_path.rglob(".*") if path.name.startswith((".here", ".new", ".er"))
    ]
    assert result.stdout.startswith(f"{written}: ")


def test_the_command_in_the_card_can_be_pasted(run):
    odd = Run(shutil.copytree(run.path, run.path.with_name("it's mine")))
    (command,) = re.findall("`(vitlab app .*)` opens", model_card(odd))
    assert shlex.split(command) == ["vitlab", "app", "it's mine"]
    shutil.rmtree(odd.path)


def test_runs_are_found_by_path_name_or_beginning(run, space):
    assert find_run(run.path) == find_run(run.name) == run.path
    assert find_run(space) == space
    assert find_run(run.name[: len("vit_scratch-seed0")]) == run.path
    planted = Run.create(dataset="planted:digits", model="vit_scratch", seed=0)
    with pytest.raises(ValueError, match="is not finished: its status is running"):
        find_run(planted.path)
    planted.finish()
    assert find_run("vit_scratch-seed0") == find_run("digits/vit_scratch-seed0") == run.path
    assert (
        find_run("planted:digits/vit_scratch")
        == find_run(f"{planted.path.parent.name}/vit_scratch")
        == planted.path
    )
    Run.create(dataset="digits", model="vit_scratch", seed=7)
    with pytest.raises(ValueError, match="is the beginning of 2 runs"):
        find_run("vit_scratch")
    with pytest.raises(ValueError, match=f"nor the name of a run; there are .*{run.name}"):
        find_run(run.name[:-1] + "z")


def test_the_page_of_a_run_has_card_and_examples(run, space):
    facts = page_facts(run.path)
    assert facts.title == "0, 1, 2, 3, 4, 5, 6, 7, 8 or 9?"
    assert facts.card.startswith("# Model card: vit_scratch on digits")
    assert len(facts.examples) == 8
    assert page_facts(space).licence.startswith("CC BY 4.0")


def test_examples_are_all_there_or_not_at_all(run, monkeypatch):
    shutil.rmtree(run.path / "app", ignore_errors=True)
    write = parts_module.write_examples

    def stop_half_way(data, folder):
        write(data, folder, count=3)
        raise OSError("the disk is full")

    monkeypatch.setattr(parts_module, "write_examples", stop_half_way)
    assert page_facts(run.path).examples == () and not list((run.path / "app").iterdir())


def test_modules_are_copied_with_what_they_import_and_no_more(tmp_path):
    names = copy_modules(["vitlab.app.serving"], tmp_path)
    assert {"vitlab.app.page", "vitlab.compress.session", "vitlab.schema"} <= set(names)
    assert {"vitlab.app.torch_model", "vitlab.compress.export"}.isdisjoint(names)
    assert (tmp_path / "vitlab/__init__.py").read_text().endswith("__version__ = '0.1.0'\n")
    with pytest.raises(ValueError, match=r"vitlab\.models is no module of vitlab"):
        copy_modules(["vitlab.models"], tmp_path / "other")


def read_steps(space):
    """The Dockerfile as (instruction, rest) pairs, continued lines joined."""
    text = (space / "Dockerfile").read_text().replace("\\\n", "")
    return [tuple(line.split(" ", 1)) for line in text.splitlines()]


def test_the_dockerfile_is_small_without_root_and_has_a_health_check(space):
    steps = read_steps(space)
    order = [name for name, _ in steps]
    assert steps[0] == ("FROM", f"python:{sys.version_info.major}.{sys.version_info.minor}-slim")
    assert order.index("USER") < order.index("CMD")
    assert dict(steps)["USER"] == "app"
    assert "/health" in dict(steps)["HEALTHCHECK"]
    # packages stay cached when the app changes
    assert order.index("RUN") < len(order) - 1 - order[::-1].index("COPY")

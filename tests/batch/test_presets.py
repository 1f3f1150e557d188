"""The batch files that come with the project: they load, their models and datasets exist, their
recipes fit together.
"""

import csv
from dataclasses import fields
from pathlib import Path

import pytest
import timm
import yaml

from vitlab.batch import load_batch, plan_tasks
from vitlab.data.datasets import check_name
from vitlab.training.config import TrainConfig, recipe
from vitlab.training.options import parse_options, spread_options

ROOT = Path(__file__).parents[2]
CIFAR = [ROOT / "notebooks" / "batches" / f"{name}-gpu.yml" for name in ("cifar10", "cifar100")]


@pytest.fixture(params=CIFAR, ids=lambda file: file.stem)
def preset(request):
    return request.param, yaml.safe_load(request.param.read_text())


def test_models_have_published_weights(preset):
    assert set(preset[1]["grid"]["model"]) <= set(timm.list_pretrained())


def test_the_recipe_fits_together(preset):
    given = next(
        step["parameters"] for step in preset[1]["chain"] if step["notebook"] == "03_finetune"
    )
    arguments = {
        name: value
        for name, value in given.items()
        if name in {field.name for field in fields(TrainConfig)}
    }
    assert set(given) - set(arguments) == {"pretrained", "size"}
    config = recipe("any", **arguments)
    assert config.patience >= config.epochs and config.batch_size // config.accumulation == 128
    check_name(preset[1]["parameters"]["dataset"])


def test_both_presets_have_the_same_recipe():
    first, second = (yaml.safe_load(file.read_text()) for file in CIFAR)
    assert (first["grid"], first["chain"]) == (second["grid"], second["chain"])


def test_the_chain_is_planned(preset):
    file, content = preset
    tasks = plan_tasks(load_batch(file))
    points = len(content["grid"]["model"]) * len(content["grid"]["seed"])
    assert len(tasks) == 2 + 3 * points
    assert len({task.run for task in tasks if task.run}) == points
    train = next(task for task in tasks if task.step.notebook == "03_finetune")
    assert train.parameters["learning_rate"] == 1e-4
    assert parse_options(train.parameters["options"])["weight_decay"] == 0.0


def test_published_numbers_name_their_source_and_dataset():
    tables = [
        list(csv.DictReader((ROOT / "reports" / f"published_{name}.csv").open()))
        for name in ("elpv", "cifar")
    ]
    assert tables[0][0].keys() == tables[1][0].keys()
    bibliography = (ROOT / "reports" / "references.bib").read_text()
    for row in tables[1]:
        assert (
            f"{{{row['source']}," in bibliography
            and 0.5 < float(row["accuracy_mean"]) < 1
            and row["protocol"]
        )
        check_name(row["task"])


def test_remedies_for_imbalance_fit_together_and_differ():
    planned = plan_tasks(load_batch(ROOT / "notebooks" / "batches" / "imbalance.yml"))
    tasks = [task for task in planned if task.step.notebook == "03_finetune"]
    names = {field.name for field in fields(TrainConfig)}
    recipes = {}
    for task in tasks:
        assert f"-{task.point['variant'].replace(' ', '_')}-seed{task.point['seed']}-" in task.run
        given = {
            name: value
            for name, value in spread_options(task.parameters).items()
            if name in names and name != "seed"
        }
        recipes[task.point["variant"]] = recipe(task.parameters["model"], **given)
    assert len({task.run for task in tasks}) == len(tasks) == 3 * len(recipes)
    assert len(set(recipes.values())) == len(recipes)


def test_the_report_is_short_and_has_runs_of_its_own():
    short, study = (
        plan_tasks(load_batch(ROOT / "notebooks" / "batches" / name))
        for name in ("elpv.yml", "elpv-study.yml")
    )
    assert {task.step.notebook for task in short} == {task.step.notebook for task in study}
    runs, others = ({t.run for t in tasks if t.run} for tasks in (short, study))
    assert len(short) == 8 and len(runs) == 2 and not runs & others


def test_the_published_protocol_is_planned():
    tasks = plan_tasks(load_batch(ROOT / "notebooks" / "batches" / "elpv-published.yml"))
    trained = [task for task in tasks if task.step.notebook == "03_finetune"]
    assert len({task.run for task in trained}) == len(trained) == 30
    assert {task.parameters["options"] for task in trained} == {"class_weights=none"}
    recipe("hybrid_vit", class_weights="none")

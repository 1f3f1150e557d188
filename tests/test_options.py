"""The options of a training run: one text, or names, checked before anything runs, and the same run
either way.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vitlab.batch import load_batch, plan_tasks
from vitlab.errors import UserError
from vitlab.notebook import describe_parameters, fit_parameters, notebook_parameters
from vitlab.runs import Run
from vitlab.training import TrainConfig, list_options, read_settings, recipe
from vitlab.training.options import (
    MODEL_OPTIONS,
    PARAMETERS,
    check_arguments,
    format_options,
    parse_options,
    spread_options,
)

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "03_finetune.ipynb"
VALUES = {"cache": False, "ema": 0.999, "fit": "crop", "mixup": 0.2, "size": 64}


def test_a_text_gives_typed_values_and_back():
    text = " mixup=0.2,ema = 0.999,\n size=64, fit=crop, cache=no,"
    assert parse_options(text) == VALUES and parse_options("") == {}
    assert format_options(VALUES) == "cache=False, ema=0.999, fit=crop, mixup=0.2, size=64"
    assert parse_options(format_options(VALUES)) == VALUES
    assert format_options({"mixup": None}) == ""


@pytest.mark.parametrize("name", ["a, b", 'x="1"', "it's", "a\\b", "R&D @home", "", "ä"])
def test_a_value_may_hold_any_sign(name):
    values = {"monitor": f"val_recall_{name}", "size": 32}
    assert parse_options(format_options(values)) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixp=0.2", r"unknown option 'mixp'. Did you mean mixup"),
        ("mixup=fast", r"option mixup is 'fast'; it must be of type float"),
        ("size=1.5", r"option size is '1.5'; it must be of type int"),
        ("cache=maybe", r"option cache is 'maybe'; it must be of type bool"),
        ("mixup", r"'mixup' in options is not NAME=VALUE"),
        ("mixup=0.1, mixup=0.2", r"mixup is given twice"),
        ("epochs=3", r"epochs is a parameter of its own: set epochs=3 outside of options"),
        ('monitor="a', r"options .* cannot be read: No closing quotation"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(UserError, match=message):
        parse_options(text)
    with pytest.raises(UserError, match=message):
        check_arguments({"model": "vit_scratch", "options": text})


def test_every_argument_is_a_parameter_or_an_option_with_a_meaning():
    table = list_options()
    arguments = set(TrainConfig.__dataclass_fields__)
    assert {*table["option"], *PARAMETERS} == arguments | set(MODEL_OPTIONS)
    assert not {*PARAMETERS} & {*table["option"]} and table["meaning"].str.len().min() > 10
    guide = (ROOT / "reports" / "guide" / "3_choose_a_model.md").read_text(encoding="utf-8")
    for row in table.to_dict("records"):
        default = "none" if row["default"] == "" else row["default"]
        assert f"| `{row['option']}` | {default} | {row['meaning']} |" in guide


def test_settings_are_split_and_checked_together():
    arguments, options = read_settings(
        "vit_scratch", "mixup=0.2, size=48", preset="standard", epochs=3, strategy=None
    )
    assert (arguments, options) == ({"epochs": 3, "mixup": 0.2}, {"size": 48})
    with pytest.raises(UserError, match="mixup is given twice"):
        read_settings("vit_scratch", "mixup=0.2", mixup=0.1)
    with pytest.raises(UserError, match="train_from"):
        read_settings("vit_scratch", strategy="from_stage")
    with pytest.raises(UserError, match="preset='quick' trains only the head"):
        read_settings("resnet18", "pretrained=false", preset="quick")
    assert read_settings("resnet18", "pretrained=false", preset="quick", strategy="full")


def test_presets():
    usual = recipe("hybrid_vit")
    quick, thorough = (recipe("hybrid_vit", preset=name) for name in ("quick", "thorough"))
    assert (quick.strategy, quick.epochs, quick.views) == (usual.strategy, usual.epochs / 2, 1)
    assert (thorough.epochs, thorough.views) == (3 * usual.epochs, 2 * usual.views)
    assert recipe("resnet18", preset="quick").strategy == "linear_probe"
    assert recipe("resnet18", preset="quick", strategy="full", epochs=2).epochs == 2
    assert recipe("efficientnet_lite0", preset="quick", train_from="stage6").train_from == "stage6"
    with pytest.raises(UserError, match=r"unknown preset 'quik'. Did you mean quick"):
        recipe("hybrid_vit", preset="quik")


def test_notebook_03_has_few_parameters_and_takes_options_by_name():
    assert len(notebook_parameters(NOTEBOOK)) <= 16
    both = [{"options": "mixup=0.2, cache=no"}, {"cache": False, "mixup": 0.2}]
    both.append({"mixup": "0.2", "options": "cache=false", "size": "None"})
    for given in both:
        fitted = fit_parameters(NOTEBOOK, given, text=True)
        assert fitted == {"options": "cache=False, mixup=0.2"}
    with pytest.raises(UserError, match=r"mixup of 03_finetune.ipynb is 'fast'; it must be"):
        fit_parameters(NOTEBOOK, {"mixup": "fast"})
    with pytest.raises(UserError, match=r"unknown parameter 'mixp'. Did you mean mixup"):
        fit_parameters(NOTEBOOK, {"mixp": 0.2})
    with pytest.raises(UserError, match="mixup is given twice"):
        fit_parameters(NOTEBOOK, {"mixup": 0.1, "options": "mixup=0.2"})
    assert "label_smoothing = 0.0" in describe_parameters(NOTEBOOK)


def plan(folder, **batch):
    file = folder / "notebooks" / "batches" / "x.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / "notebooks" / NOTEBOOK.name).write_text(NOTEBOOK.read_text())
    file.write_text(yaml.safe_dump({"chain": [{"notebook": "03_finetune"}], **batch}))
    return plan_tasks(load_batch(file))


def test_a_grid_over_an_option_gives_one_run_each_however_it_is_written(tmp_path):
    by_name = plan(tmp_path, grid={"mixup": [0, 0.2], "seed": [0]}, parameters={"ema": 0.9})
    by_text = plan(
        tmp_path, grid={"options": ["mixup=0", "mixup=.2"], "seed": [0]}, parameters={"ema": 0.9}
    )
    in_parameters = plan(
        tmp_path, grid={"mixup": [0.0, 0.2], "seed": [0]}, parameters={"options": "ema=0.9"}
    )
    assert [task.parameters["options"] for task in by_name] == [
        "ema=0.9, mixup=0.0",
        "ema=0.9, mixup=0.2",
    ]
    for other in (by_text, in_parameters):
        assert [task.run for task in other] == [task.run for task in by_name]
        assert [task.parameters for task in other] == [task.parameters for task in by_name]
    assert len({task.run for task in by_name}) == 2
    cases = {"variant": {"plain": {}, "mixed": {"options": "mixup=0.2"}}}
    named = plan(tmp_path, grid=cases, parameters={"model": "vit_scratch"})
    found = {task.point["variant"]: task.parameters.get("options") for task in named}
    assert found == {"plain": None, "mixed": "mixup=0.2"}


def test_runs_that_differ_in_options_are_told_apart():
    first, second = (
        Run.create(
            dataset="digits", model="vit_scratch", seed=0, **spread_options({"options": text})
        )
        for text in ("mixup=0.2", "mixup=0.4")
    )
    assert first.path != second.path and first.options != second.options
    assert first.parameters["mixup"] == 0.2


def test_options_are_checked_without_loading_torch():
    code = (
        "import sys, vitlab.notebook; from vitlab.training.options import parse_options;"
        " parse_options('mixup=0.2'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

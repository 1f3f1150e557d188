"""Tuning: what a study holds, how it carries on, who may share it, and that it never sees the test
split.
"""

import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import optuna
import pandas as pd
import pytest

from tests.toys import TINY, small_digits
from vitlab.data import ImageDataset
from vitlab.errors import UserError
from vitlab.notebook import fit_parameters, format_call
from vitlab.runs import find_runs
from vitlab.training import (
    best_recipe,
    importance_table,
    recipe,
    recipe_changes,
    trials_table,
    tune_recipe,
)
from vitlab.training.options import read_settings
from vitlab.training.space import SearchSpace

module = sys.modules["vitlab.training.tune"]
CONFIG = recipe("vit_scratch", epochs=4, monitor="val_accuracy", flip=False, precision="fp32")
NOTEBOOK_03 = Path(__file__).parents[1] / "notebooks" / "03_finetune.ipynb"
LEARNING_RATE = SearchSpace().only("learning_rate")
PROCESS = """
import sys, time
import pandas as pd
import vitlab.training
from vitlab.training import recipe, tune_recipe
from vitlab.training.space import SearchSpace
module = sys.modules["vitlab.training.tune"]
def fit(model, data, run=None, config=None, *, on_epoch=None, show=True):
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
    on_epoch({"epoch": 1, "val_accuracy": config.learning_rate})
    return pd.DataFrame({"val_accuracy": [config.learning_rate]})
module.fit = fit
config = recipe("vit_scratch", epochs=4, monitor="val_accuracy", flip=False, precision="fp32")
options = {"size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
space = SearchSpace().only("learning_rate")
tune_recipe("digits", "vit_scratch", config, space, trials=int(sys.argv[1]), name="shared", options=options)
"""  # noqa: E501


@pytest.fixture(autouse=True)
def data(monkeypatch):
    monkeypatch.setattr(module, "load_dataset", lambda name, seed: small_digits())
    return small_digits()


@pytest.fixture
def trained(monkeypatch):
    """In place of the training: a score that is best at a learning rate of 1e-3. Gives the list of
    the configs trained with.
    """
    configs = []

    def fit(model, data, run=None, config=None, *, on_epoch=None, show=True):
        configs.append(config)
        rows = []
        for epoch in range(1, config.epochs + 1):
            score = 0.8 - 0.2 * abs(math.log10(config.learning_rate) + 3) + 0.01 * epoch
            rows.append({"epoch": epoch, "val_accuracy": score, "val_loss": 1 - score})
            on_epoch(rows[-1])
        return pd.DataFrame(rows)

    monkeypatch.setattr(module, "fit", fit)
    return configs


def tune(trials, space=LEARNING_RATE, config=CONFIG, **arguments):
    return tune_recipe(
        "digits", "vit_scratch", config, space, trials=trials, options=TINY, **arguments
    )


def test_a_real_search(data):
    space = SearchSpace(learning_rate=(1e-3, 1e-2), trained_blocks=(0, "all"))
    config = recipe(
        "vit_scratch", epochs=2, batch_size=32, monitor="val_accuracy", flip=False, precision="fp32"
    )
    study = tune(3, space, config)
    table = trials_table(study)
    assert list(table["state"]) == ["finished"] * 3 and set(table["epochs"]) == {2}
    assert table["value"].is_monotonic_decreasing and table["value"].between(0, 1).all()
    assert table["value"][0] == study.best_value
    first = table[table["trial"] == 0].iloc[0]
    # the recipe as it stands
    assert (first["learning_rate"], first["trained_blocks"]) == (1e-3, "all")
    best = best_recipe(study)
    assert recipe("vit_scratch", **recipe_changes(best, "vit_scratch")) == best
    assert best.monitor == "val_accuracy" and 1e-3 <= best.learning_rate <= 1e-2
    # a study is not mistaken for a run
    assert find_runs("digits") == find_runs("digits", status="running") == []


def test_the_test_split_is_never_seen(data, monkeypatch):
    handed, read = [], []

    def fit(model, data, run=None, config=None, *, on_epoch=None, show=True):
        handed.append(data)
        for split in ("train", "val"):
            images = ImageDataset(data, split, model.transform)
            images[0]
            read.extend(images.samples["sample_id"])
        on_epoch({"epoch": 1, "val_accuracy": 0.5})
        return pd.DataFrame({"val_accuracy": [0.5]})

    monkeypatch.setattr(module, "fit", fit)
    tune(1)
    test = set(data.split("test")["sample_id"])
    assert test and not test & set(read)
    (given,) = handed
    assert not test & set(given.samples["sample_id"]) and given.split("test").empty
    pd.testing.assert_frame_equal(
        given.split("val").reset_index(drop=True), data.split("val").reset_index(drop=True)
    )
    with pytest.raises(ValueError, match="belongs to the test split, which tuning must not see"):
        given.read(min(test))


def test_a_second_call_tops_up(trained):
    assert len(tune(4).trials) == 4
    assert len(tune(4).trials) == 4 and len(trained) == 4
    study = tune(6)
    assert len(study.trials) == 6 and len(trained) == 6
    rates = [config.learning_rate for config in trained]
    assert len(set(rates)) == 6 and rates[0] == CONFIG.learning_rate
    tune(6, name="in_one_sitting")
    assert [config.learning_rate for config in trained[6:]] == rates
    tune(
        6,
        config=recipe(
            "vit_scratch", epochs=4, monitor="val_accuracy", flip=False, precision="fp32", seed=1
        ),
    )
    assert [config.learning_rate for config in trained[12:]][1:] != rates[1:]


def test_search_finds_what_is_best(trained):
    study = tune(25, SearchSpace(learning_rate=(1e-6, 1e-1)).only("learning_rate"), pruner="none")
    assert 5e-4 < best_recipe(study).learning_rate < 2e-3
    assert importance_table(study)["argument"].tolist() == ["learning_rate"]
    assert importance_table(study)["importance"].sum() == pytest.approx(1)


def test_bad_trials_are_pruned_and_count(trained):
    study = tune(20, SearchSpace(learning_rate=(1e-6, 1e-1)).only("learning_rate"))
    table = trials_table(study)
    pruned = table[table["state"] == "pruned"]
    assert (
        len(table) == 20
        and len(pruned)
        and (pruned["epochs"] < 4).all()
        and (pruned["trial"] >= 5).all()
    )
    assert table["state"].iloc[0] == "finished" and pruned["value"].max() < table["value"].iloc[0]
    assert (table["seconds"] >= 0).all()
    assert set(trials_table(tune(20, name="all_run", pruner="none"))["state"]) == {"finished"}
    assert "pruned" in set(trials_table(tune(20, name="brackets", pruner="hyperband"))["state"])


def test_a_loss_is_minimised(trained):
    study = tune(
        8,
        config=recipe("vit_scratch", epochs=4, monitor="val_loss", precision="fp32"),
        pruner="none",
    )
    assert trials_table(study)["value"].is_monotonic_increasing
    assert study.best_value == min(trial.value for trial in study.trials)


def test_a_trial_that_diverges_is_recorded_and_the_search_goes_on(trained, monkeypatch):
    good = module.fit

    def fit(model, data, run=None, config=None, *, on_epoch=None, show=True):
        if config.learning_rate > 1e-3:
            raise FloatingPointError("the loss became nan in epoch 1")
        return good(model, data, config=config, on_epoch=on_epoch)

    monkeypatch.setattr(module, "fit", fit)
    table = trials_table(tune(10))
    assert len(table) == 10 and {"failed", "finished"} <= set(table["state"])
    failed = table[table["state"] == "failed"]
    assert (failed["learning_rate"] > 1e-3).all() and failed["value"].isna().all()
    assert set(failed["note"]) == {"FloatingPointError: the loss became nan in epoch 1"}


def test_trials_that_really_diverge_fail_and_the_study_goes_on():
    config = recipe(
        "vit_scratch", epochs=1, batch_size=10_000, clip=0.0, warmup_epochs=0, precision="fp32"
    )
    table = trials_table(
        tune(3, SearchSpace(learning_rate=(1e29, 1e30)).only("learning_rate"), config)
    )
    assert list(table["state"]) == ["failed"] * 3
    assert table["note"].str.contains("Try a learning_rate ten times smaller").all()


def test_an_empty_space_is_named():
    with pytest.raises(
        UserError, match="nothing to tune; choose at least one of learning_rate, layer_decay"
    ):
        SearchSpace().only()


def test_the_command_that_is_recommended_makes_the_best_trial_again(trained):
    study = tune(7)
    best = best_recipe(study)
    assert best.learning_rate == study.best_params["learning_rate"]  # not rounded
    changes = recipe_changes(best, "vit_scratch")
    words = shlex.split(format_call(str(NOTEBOOK_03), changes).replace("\\\n", ""))[3:]
    given = {words[i + 1]: words[i + 2] for i in range(0, len(words), 3)}
    arguments, _ = read_settings("vit_scratch", **fit_parameters(NOTEBOOK_03, given, text=True))
    assert recipe("vit_scratch", **arguments) == best and best in trained


def test_a_score_that_is_no_number_fails_the_trial(monkeypatch):
    def fit(model, data, run=None, config=None, *, on_epoch=None, show=True):
        return pd.DataFrame({"val_accuracy": [math.nan]})

    monkeypatch.setattr(module, "fit", fit)
    study = tune(2)
    assert list(trials_table(study)["state"]) == ["failed"] * 2
    with pytest.raises(
        ValueError,
        match=r"has no finished trial yet \(2 failed\); call tune_recipe again with more trials",
    ):
        best_recipe(study)
    assert importance_table(study).empty


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_trial_does_not_count(trained, monkeypatch, error):
    good, calls = module.fit, []

    def fit(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return good(*arguments, **named)

    monkeypatch.setattr(module, "fit", fit)
    with pytest.raises(error):
        tune(3)
    table = trials_table(tune(3))
    assert table["state"].value_counts().to_dict() == {"finished": 3, "interrupted": 1}


def start(trials, seconds):
    command = [sys.executable, "-c", PROCESS, str(trials), str(seconds)]
    return subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_share_a_study():
    processes = [start(8, 0.3) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(module.study_path("digits", "shared")))
    )
    study = optuna.load_study(study_name="shared", storage=storage)
    table = trials_table(study)
    # one more where both began the last at once
    assert len(table) in (8, 9) and set(table["state"]) <= {"finished", "pruned"}
    assert sorted(table["trial"]) == list(range(len(table)))
    assert table["learning_rate"].iloc[1:].nunique() >= len(table) - 2  # they do not draw the same
    assert sum(output.count("begun") for output in outputs) == len(table)


def test_a_trial_counts_while_its_process_lives(trained):
    process = start(3, 600)
    try:
        assert process.stdout.readline() == "begun\n"
        table = trials_table(tune(3, name="shared"))
        assert table["state"].value_counts().to_dict() == {"finished": 2, "running": 1}
    finally:
        process.kill()
        process.wait()
    table = trials_table(tune(3, name="shared"))
    assert table["state"].value_counts().to_dict() == {"finished": 3, "interrupted": 1}


def test_no_trial_is_begun_after_the_time(trained, monkeypatch):
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert 1 <= len(tune(20, minutes=3).trials) <= 4


def test_another_study_under_the_same_name(trained, data):
    tune(1, name="mine")
    other = recipe("vit_scratch", epochs=9, monitor="val_accuracy", flip=False, precision="fp32")
    with pytest.raises(
        ValueError,
        match=r"study mine was made with other arguments: config.epochs was 4 and is 9 now. Give",
    ):
        tune(2, name="mine", config=other)
    with pytest.raises(ValueError, match=r"space.mixup was \[\] and is \[0.0, 0.4\] now"):
        tune(2, SearchSpace().only("learning_rate", "mixup"), name="mine")
    with pytest.raises(ValueError, match="model was 'vit_scratch' and is 'resnet18' now"):
        tune_recipe("digits", "resnet18", CONFIG, LEARNING_RATE, name="mine", options=TINY)
    with pytest.raises(ValueError, match="pruner was 'median' and is 'none' now"):
        tune(2, name="mine", pruner="none")
    assert len(tune(1, name="mine").trials) == 1
    tune(1, config=other), tune(1)
    # a name of its own for each
    assert len(list(module.study_path("digits", "mine").parent.glob("*.journal"))) == 3


def test_arguments_that_do_not_fit(trained):
    with pytest.raises(ValueError, match=r"unknown pruner 'mean'. Did you mean median"):
        tune(1, pruner="mean")
    with pytest.raises(ValueError, match="but the model has 3; choose 0 to 3"):
        tune(1, SearchSpace(trained_blocks=(7,)))
    assert trained == []
    with pytest.raises(ValueError, match="trials must be at least 1, not 0"):
        tune(0)
    with pytest.raises(ValueError, match=r"has no finished trial yet \(no trials at all\)"):
        best_recipe(tune(1, SearchSpace(learning_rate=(1e-6, 1e-5)), minutes=1e-9))


def test_optunas_log_level_is_given_back(trained):
    before = optuna.logging.get_verbosity()
    tune(1)
    assert optuna.logging.get_verbosity() == before

"""A training that is killed carries on and ends where it would have ended."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.toys import small_digits, tiny_vit
from vitlab.runs import Run, find_runs
from vitlab.training import fit, recipe
from vitlab.training.checkpoint import Checkpoints, flatten_optimizer, restore_optimizer

PARAMETERS = {"dataset": "digits", "model": "vit_scratch", "seed": 0}
PLAIN = {
    "epochs": 12,
    "batch_size": 16,
    "precision": "fp32",
    "mixup": 0.2,
    "ema": 0.9,
    "augment": "light",
    "flip": False,
}
UNFREEZING = PLAIN | {"strategy": "gradual", "last_blocks": 0, "views": 2, "unfreeze_every": 3}
OFTEN = 1e-9  # minutes: after every step


def train(name, arguments, **changes):
    """The weights and the history of a training of this name; whatever was broken off before is
    carried on.
    """
    model = tiny_vit(drop_rate=0.1)
    run = Run.create(name=name, **PARAMETERS)
    history = fit(model, small_digits(), run, recipe("vit_scratch", **arguments), **changes)
    return model.module.state_dict(), history.drop(columns="seconds"), run


def stop_after(epochs):
    def stop(row):
        if row["epoch"] == epochs:
            raise KeyboardInterrupt

    return stop


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("arguments", ["PLAIN", "UNFREEZING"])
def test_killed_at_ten_random_moments(arguments):
    """In a process of its own: where another test has used autograd in a thread, a forked child
    could not train.
    """
    code = (
        "from tests import test_checkpoint as test;"
        f" test.kill_at_ten_random_moments(test.{arguments})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def kill_at_ten_random_moments(arguments):
    """Kill a training run again and again: it ends with the same weights and history as without."""
    arguments = arguments | {"checkpoint_minutes": OFTEN}
    start = time.perf_counter()
    weights, history, _ = train("uninterrupted", arguments)
    # ten such pieces, of half that length on average, do not make up the whole
    longest = (time.perf_counter() - start) / 8
    torch.set_num_threads(1)
    moments, name, killed = random.Random(0), "killed", 0
    while killed < 10:
        child = os.fork()
        if child == 0:
            try:
                train(name, arguments)
            finally:
                os._exit(0)
        time.sleep(moments.uniform(0.1 * longest, longest))
        ended, _ = os.waitpid(child, os.WNOHANG)
        # the machine has become faster since `longest` was measured: start again, with shorter
        # pieces
        if ended:
            longest, name, killed = longest / 2, f"{name}-again", 0
            assert longest > 0.02, "the training is long enough to be killed ten times"
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    assert find_runs("digits") == []
    resumed, continued, _ = train(name, arguments)
    pd.testing.assert_frame_equal(continued, history, check_exact=True)
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


@pytest.mark.parametrize("arguments", [PLAIN, UNFREEZING], ids=["whole model", "gradual, cached"])
def test_carries_on_from_the_last_epoch(arguments):
    weights, history, _ = train("whole", arguments)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", arguments, on_epoch=stop_after(5))
    seen = []
    resumed, continued, run = train(
        "stopped", arguments, on_epoch=lambda row: seen.append(row["epoch"])
    )
    assert seen == list(range(6, 13)), "what was done is not done again"
    pd.testing.assert_frame_equal(continued, history, check_exact=True)
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    assert len(list((run.path / "checkpoints").glob("step*.safetensors"))) == 2
    run.finish()
    assert not (run.path / "checkpoints").exists()


def test_early_stopping_survives():
    arguments = PLAIN | {
        "epochs": 40,
        "patience": 3,
        "learning_rate": 1e-9,
        "mixup": 0.0,
        "ema": 0.0,
        "augment": "none",
    }
    _, history, _ = train("whole", arguments)
    assert len(history) < 40
    with pytest.raises(KeyboardInterrupt):
        train("stopped", arguments, on_epoch=stop_after(len(history) - 1))
    _, continued, _ = train("stopped", arguments)
    pd.testing.assert_frame_equal(continued, history, check_exact=True)


@pytest.mark.parametrize("left", [0, 7, 3000, -1])
def test_a_checkpoint_cut_short_is_passed_over(left):
    weights, _, _ = train("whole", PLAIN)
    with pytest.raises(KeyboardInterrupt):
        train("cut", PLAIN, on_epoch=stop_after(5))
    folder = Run.create(name="cut", **PARAMETERS).path / "checkpoints"
    *_, newest = sorted(folder.iterdir())
    newest.write_bytes(newest.read_bytes()[:left])
    (folder / ".step00000099.1.safetensors").write_bytes(b"half")
    seen = []
    resumed, _, _ = train("cut", PLAIN, on_epoch=lambda row: seen.append(row["epoch"]))
    assert seen[0] == 5, "from the end of epoch 4"
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    assert not list(folder.glob(".step*"))


def test_no_room_for_a_checkpoint_does_not_end_the_training(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    weights, _, _ = train("whole", PLAIN)
    monkeypatch.setattr("vitlab.training.checkpoint.save_file", full)
    without, _, run = train("full", PLAIN)
    assert all(torch.equal(without[name], weights[name]) for name in weights)
    assert not list((run.path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "hybrid_vit"}, "its model is 'vit_scratch', here it is 'hybrid_vit'"),
        ({"classes": ["a", "b"]}, r"its classes is \['0'"),
        (
            {"arguments": {"epochs": 9}},
            "its arguments is .*Choose another run_name, or delete the folder",
        ),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, change, message):
    identity = {"model": "vit_scratch", "classes": ["0", "1"], "arguments": {"epochs": 8}}
    Checkpoints(tmp_path, identity).save(3, {"a": torch.ones(2)}, {"epoch": 1})
    assert Checkpoints(tmp_path, identity).load()[1] == {"epoch": 1}
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path, identity | change).load()


def test_other_parameters_start_anew():
    with pytest.raises(KeyboardInterrupt):
        train("same name", PLAIN, on_epoch=stop_after(2))
    assert (Run.create(name="same name", **PARAMETERS).path / "checkpoints").exists()
    assert not (
        Run.create(name="same name", **PARAMETERS | {"seed": 1}).path / "checkpoints"
    ).exists()


def test_optimizer_survives_the_round_trip():
    parameters = [torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(2, 2))]
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters[:1], "weight_decay": 0.5, "initial_lr": 0.1},
            {"params": parameters[1:]},
        ]
    )
    sum(p.square().sum() for p in parameters).backward()
    optimizer.step()
    other = torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:]}])
    restore_optimizer(other, *flatten_optimizer(optimizer))
    assert str(other.state_dict()) == str(optimizer.state_dict())


def test_nan_in_a_long_epoch_keeps_the_checkpoint_before():
    arguments = PLAIN | {
        "learning_rate": 1e30,
        "clip": 0,
        "warmup_epochs": 0,
        "mixup": 0.0,
        "checkpoint_minutes": OFTEN,
    }
    with pytest.raises(
        FloatingPointError, match=r"learning_rate ten times smaller.*Samples of the batch: digit\d+"
    ):
        train("diverged", arguments)
    found = Checkpoints(Run.create(name="diverged", **PARAMETERS).path / "checkpoints", {}).load()
    assert found and all(loss == loss for loss in found[1]["losses"])

"""The history also goes to the tracker that was asked for, without a network or an account."""

import importlib.util
import time

import pytest

from tests.toys import small_digits, tiny_vit
from vitlab.runs import Run
from vitlab.training import fit, recipe

QUICK = {"epochs": 3, "batch_size": 64, "precision": "fp32", "augment": "none"}


def train(tracker, **arguments):
    pytest.importorskip(tracker, reason="the extra vitlab[tracking] is not installed")
    run = Run.create(dataset="digits", model="vit_scratch", tracker=tracker)
    return run, fit(
        tiny_vit(),
        small_digits(),
        run,
        recipe("vit_scratch", tracker=tracker, **{**QUICK, **arguments}),
    )


def test_tensorboard_gets_every_epoch():
    run, history = train("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    readers = [
        EventAccumulator(str(file)).Reload() for file in run.path.rglob("events.out.tfevents*")
    ]
    (logged,) = (
        reader.Scalars("val_loss") for reader in readers if "val_loss" in reader.Tags()["scalars"]
    )
    assert [one.step for one in logged] == [1, 2, 3]
    assert [one.value for one in logged] == pytest.approx(history["val_loss"].tolist(), rel=1e-5)


def test_wandb_offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run, _ = train("wandb")
    (kept,) = run.path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    # the process that writes the file may lag behind finish() on a busy machine
    while b"val_loss" not in kept.read_bytes():
        assert time.monotonic() < deadline, (
            f"{kept.name} holds {kept.stat().st_size} bytes and no val_loss"
        )
        time.sleep(0.1)


def test_a_tracker_that_is_not_installed_is_an_error_before_training(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"tracker='trackio' needs a package .* pip install 'vitlab\[tracking\]'"
    ):
        fit(tiny_vit(), small_digits(), config=recipe("vit_scratch", tracker="trackio", **QUICK))

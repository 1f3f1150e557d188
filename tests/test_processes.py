"""Two processes train as one does."""

import os
import shlex
import subprocess
import sys

import pandas as pd
import pytest
from accelerate import PartialState
from accelerate.state import AcceleratorState

from vitlab.errors import UserError
from vitlab.runs import find_runs
from vitlab.training.devices import join_processes

ARGUMENTS = (
    "-m vitlab.training --dataset digits --model vit_scratch --epochs 3 --batch_size 128"
    " --learning_rate 1e-3 --options precision=fp32,flip=false,size=16,patch_size=4,"
    "embed_dim=16,depth=2,num_heads=2"
)
LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
    " --main_process_port 0 --mixed_precision no --dynamo_backend no"
)
NOTEBOOK = """
from tests.toys import small_digits, tiny_vit
from vitlab.runs import Run
from vitlab.training import fit, fit_on, recipe
config = recipe("vit_scratch", epochs=2, batch_size=32, precision="fp32", augment="none")
histories, weights = [], []
for processes in (1, 2):
    model, run = tiny_vit(), Run.create(name=f"by{processes}", dataset="digits", model="vit_scratch")
    histories.append(fit_on(processes, model, small_digits(), run, config))
    weights.append(model.module.head.weight.detach())
    assert run.facts["processes"] == processes
assert abs(histories[0]["train_loss"] - histories[1]["train_loss"]).max() < 1e-3
assert (weights[0] - weights[1]).abs().max() < 1e-3
"""  # noqa: E501


TORCHRUN = "-m torch.distributed.run --nproc_per_node 2 --standalone --local_addr 127.0.0.1"


def call(*command, **variables):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **(variables or {"ACCELERATE_USE_CPU": "1"}),
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=120
    )


@pytest.mark.parametrize(
    ("launch", "strategy", "variables"),
    [
        (TORCHRUN, "full", {"CUDA_VISIBLE_DEVICES": ""}),  # a machine without a GPU
        (LAUNCH, "linear_probe", {}),
        (LAUNCH, "linear_probe,resample=smote", {}),
    ],
)
def test_two_processes_give_the_curve_of_one(launch, strategy, variables):
    strategy, _, options = strategy.partition(",")
    arguments = shlex.split(f"{ARGUMENTS},{options} --strategy {strategy} --name")
    for result in (
        call(*arguments, "one"),
        call(*shlex.split(launch), *arguments, "two", **variables),
    ):
        assert result.returncode == 0, result.stderr[-3000:]
    runs = {run.name: run for run in find_runs("digits")}
    assert runs["two"].facts["processes"] == 2 and runs["one"].facts["processes"] == 1
    one, two = (
        runs[name].read_table("history.csv").drop(columns="seconds") for name in ("one", "two")
    )
    pd.testing.assert_frame_equal(
        one[["train_loss", "val_loss"]], two[["train_loss", "val_loss"]], atol=1e-3, rtol=0
    )
    assert two["train_loss"].iloc[-1] < two["train_loss"].iloc[0]


def test_accelerate_launch_that_starts_one_process_is_refused(reports_folder):
    launch = shlex.split("-m accelerate.commands.launch --num_processes 2")
    result = call(*launch, *shlex.split(ARGUMENTS), CUDA_VISIBLE_DEVICES="")
    assert result.returncode != 0 and not list(reports_folder.rglob("run.json"))
    assert "write torchrun --nproc_per_node NUMBER -m vitlab.training" in result.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        # --cpu --num_processes 2
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"},
            "started one, .* write torchrun",
        ),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 .* no launcher started this one; write torchrun"),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            r"2 processes, but 1 GPU\(s\)",
        ),
    ],
)
def test_processes_that_could_not_train_together_are_refused(variables, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UserError, match=message):
        join_processes()
    assert not PartialState._shared_state


def test_two_processes_from_a_notebook():
    result = call("-c", NOTEBOOK)
    assert result.returncode == 0, result.stderr[-3000:]


def test_command_line_says_what_is_wrong():
    result = call(*shlex.split(f"{ARGUMENTS} --strategy linear"))
    assert (
        result.returncode == 2
        and "unknown strategy 'linear'" in result.stderr
        and "Traceback" not in result.stderr
    )

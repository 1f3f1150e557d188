"""The pretraining that made the shipped weights still runs, by the command that their card
names.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.torch import load_file

from vitlab.models.weights import pretraining_log, shipped_weights

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_command_of_the_card_trains_and_writes_weights_like_those_shipped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (130, 8, 8, 3), np.uint8)
    for i, array in enumerate(pixels):
        path = (
            tmp_path
            / "images"
            / ("train" if i < 128 else "val")
            / ("n02124075", "n04067472")[i % 2]
            / f"{i}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    command = [
        sys.executable,
        "-m",
        "pretraining",
        tmp_path / "images",
        tmp_path / "output",
        "--epochs",
        "1",
        "--threads",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{BENCHMARKS.parent}{os.pathsep}{BENCHMARKS}"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    made, shipped = (
        load_file(tmp_path / "output" / "vit_tiny_vitlab.safetensors"),
        shipped_weights("vit_tiny_vitlab"),
    )
    assert set(made) == set(shipped)
    # two classes
    assert {name for name in made if made[name].shape != shipped[name].shape} == {
        "head.weight",
        "head.bias",
    }
    log = pd.read_csv(tmp_path / "output" / "log.csv")
    assert list(log) == list(pretraining_log("vit_tiny_vitlab")) and np.isfinite(log["loss"]).all()

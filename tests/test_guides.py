"""The guides say what is true: their code runs as it stands, their commands, files, parameters and
links exist.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command

from vitlab.cli import app
from vitlab.data import load_dataset
from vitlab.data.sources import DATASETS
from vitlab.explain import explain
from vitlab.explain.methods import methods
from vitlab.models import build_model
from vitlab.models.zoo import models
from vitlab.notebook import notebook_options, notebook_parameters

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "reports" / "guide").glob("*.md"))
TEXTS = {guide.stem: guide.read_text(encoding="utf-8") for guide in GUIDES}


@pytest.fixture
def registries():
    kept = [(registry, dict(registry._functions)) for registry in (DATASETS, models, methods)]
    yield
    for registry, functions in kept:
        registry._functions = functions


def test_the_blocks_that_extend_run_as_they_stand(registries):
    blocks = re.findall(r"```python\n(.*?)```", TEXTS["8_extend"], flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, {})
    data = load_dataset("stripes", seed=0)
    assert set(data.samples["split"]) == {"train", "val", "test"} and data.classes == (
        "dark",
        "light",
    )
    model = build_model("tiny_deit", data.classes)
    assert model.anatomy.grid == (4, 4)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = explain(model, images, "mean_gradient")
    weights = torch.zeros(2, 2)
    weights[range(2), model.module(images).argmax(dim=1)] = 1
    inputs = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((model.module(inputs) * weights).sum(), inputs)
    np.testing.assert_allclose(
        maps.values, gradient.abs().mean(dim=1).numpy(), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("guide", TEXTS)
def test_commands_and_files_exist(guide):
    text = TEXTS[guide]
    commands = get_command(app).commands
    for name in re.findall(r"^vitlab ([\w-]+)", text, flags=re.MULTILINE):
        assert name in commands, name
    for path in re.findall(r"(?<![\w/])(?:notebooks|reports|tests|vitlab)/[\w/.-]*\w", text):
        assert (ROOT / path).exists(), path
    for line in re.findall(r"^vitlab run (.*)$", text, flags=re.MULTILINE):
        notebook = ROOT / line.split()[0]
        known = notebook_parameters(notebook) | notebook_options(notebook)
        for name in re.findall(r"-p (\w+)", line):
            assert name in known, f"{name} in {line}"


@pytest.mark.parametrize("guide", TEXTS)
def test_a_guide_is_a_page_with_one_title(guide):
    assert TEXTS[guide].startswith("# ")
    prose = re.sub(r"```.*?```", "", TEXTS[guide], flags=re.DOTALL)
    assert len(re.findall(r"^# ", prose, flags=re.MULTILINE)) == 1

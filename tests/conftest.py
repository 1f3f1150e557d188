"""Every test: fixed seeds, figures closed, reports written under a temporary folder, no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in two processes; more threads than cores make torch crawl
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib.pyplot as plt
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def fixed_seeds():
    import torch

    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(autouse=True)
def reports_folder(tmp_path, monkeypatch):
    folder = tmp_path / "reports"
    monkeypatch.setenv("VITLAB_REPORTS", str(folder))
    return folder


@pytest.fixture
def gradient_image():
    from PIL import Image

    return Image.fromarray(np.linspace(0, 255, 40 * 30 * 3).reshape(30, 40, 3).astype(np.uint8))

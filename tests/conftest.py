"""Every test: fixed seeds, figures closed, reports written under a temporary folder, no network."""

import os
import signal

# the tests run in two processes; more threads than cores make torch crawl
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib.pyplot as plt
import numpy as np
import pytest

for name in ("SIGINT", "SIGHUP"):  # ignored after `nohup` and `&` in a script, by children as well
    number = getattr(signal, name, None)
    if number and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


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
def mnist_files(tmp_path_factory, monkeypatch):
    """A folder, named in VITLAB_DATA, with 40 training and 20 test images of random pixels in
    MNIST's IDX format.
    """
    folder = tmp_path_factory.mktemp("torchvision")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    for prefix, part in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        images, labels = pixels[part], (np.arange(60)[part] % 10).astype(np.uint8)
        header = np.array([2051, len(images), 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            np.array([2049, len(labels)], ">i4").tobytes() + labels.tobytes()
        )
    monkeypatch.setenv("VITLAB_DATA", str(folder))
    return folder


@pytest.fixture
def gradient_image():
    from PIL import Image

    return Image.fromarray(np.linspace(0, 255, 40 * 30 * 3).reshape(30, 40, 3).astype(np.uint8))

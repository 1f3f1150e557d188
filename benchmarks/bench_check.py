"""`vitlab check` from call to page: seconds and peak memory, for 600, 2,624 and 20,000 images.

`python benchmarks/bench_check.py [--images 600 elpv 20000]`. 600 and 20,000 are photographs of
500 x 375 pixels that this script makes (JPEG, two classes of textures), elpv the 2,624 cells. Each
run starts with an empty cache, in a process of its own; the memory is that of the process and its
children together. Beside it, cleanvision and cleanlab called by hand on the same 600 images, for
what they cover (unreadable, duplicates, labels), with the features of the cache."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageFilter
from records import record, write_records

TARGETS = {"600": 30, "elpv": 90}  # seconds
MAX_MB = 2000


def make_photographs(folder: Path, count: int) -> None:
    """Two classes: smooth noise on coarse and on fine scales, in random colours."""
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = ("coarse", "fine")[number % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (94, 125, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3 - 2 * (number % 2)))
        image.resize((500, 375)).save(folder / kind / f"{number:05d}.jpg", quality=85)


def run_check(dataset: str, reports: Path) -> tuple[float, float]:
    """Seconds and peak megabytes (of all processes) of one call."""
    command = [sys.executable, "-c", "from vitlab.cli import app; app()", "check", dataset]
    environment = {**os.environ, "VITLAB_REPORTS": str(reports)}
    start, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        main = psutil.Process(process.pid)
        while not finished.wait(0.2):
            family = [main, *main.children(recursive=True)]
            peak = max(peak, sum(_private_bytes(one) for one in family) / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    if process.wait():
        raise RuntimeError(f"vitlab check {dataset} ended with {process.returncode}")
    finished.set()
    return time.perf_counter() - start, peak


def _private_bytes(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().uss
    except psutil.Error:
        return 0.0


def run_by_hand(folder: Path, reports: Path) -> float:
    """cleanvision's Imagelab and cleanlab's Datalab on the same images and features; seconds."""
    code = (
        "import sys\n"
        "from cleanvision import Imagelab\n"
        "from vitlab.data import load_dataset\n"
        "from vitlab.data.quality import predict_out_of_fold\n"
        "from vitlab.training import embed_images\n"
        "from cleanlab import Datalab\n"
        "Imagelab(data_path=sys.argv[1]).find_issues()\n"
        "data = load_dataset('folder:' + sys.argv[1])\n"
        "vectors, labels = embed_images(data), data.samples['label']\n"
        "prob = predict_out_of_fold(vectors, labels, data.samples['sample_id'])\n"
        "lab = Datalab({'label': labels.tolist()}, label_name='label')\n"
        "lab.find_issues(features=vectors, pred_probs=prob)\n"
    )
    environment = {**os.environ, "VITLAB_REPORTS": str(reports)}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", nargs="+", default=["600", "elpv", "20000"])
    entries = []
    for name in parser.parse_args().images:
        with tempfile.TemporaryDirectory() as folder:
            pictures, reports = Path(folder) / "pictures", Path(folder) / "reports"
            if name != "elpv":
                make_photographs(pictures, int(name))
            dataset = "elpv" if name == "elpv" else str(pictures)
            seconds, megabytes = run_check(dataset, reports)
            print(f"{name} images: {seconds:.0f} s, {megabytes:.0f} MB", flush=True)
            case = f"vitlab check, {name} images"
            if limit := TARGETS.get(name):
                entries.append(record(case, "s", seconds, limit, "target", seconds / limit, "<= 1"))
            share = megabytes / MAX_MB
            entries.append(record(case, "MB", megabytes, MAX_MB, "target", share, "<= 1"))
            if name == "600":
                hand = run_by_hand(pictures, Path(folder) / "other")
                peer = "cleanvision and cleanlab by hand"
                entries.append(record(case, "s", seconds, hand, peer, seconds / hand, "<= 2"))
    write_records("check", entries)


if __name__ == "__main__":
    main()

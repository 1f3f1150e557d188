"""Memory and disk that a model takes. Run as a program, it is the fresh process whose peak is measured:

    python -m vitlab.compress.footprint PATH [--images N] [--batch-size N] [--size HEIGHT WIDTH] [--threads N]

PATH is a folder with a saved model, or an ONNX file, for which torch is not imported. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from vitlab.errors import MissingFileError, UserError

MB = 1e6  # bytes
SAVED = ("model.safetensors", "model.json")
BESIDE = ("", ".data", "_data")  # what an ONNX file of this name may keep its weights in


def size_on_disk(path: Path | str) -> float:
    """Megabytes (10^6 bytes) of a model: an ONNX file with its weights beside it, or a folder of `save_model` (its own files)."""
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in SAVED if (path / name).is_file()]
        if not files:
            raise UserError(f"{path} holds no saved model ({' and '.join(SAVED)}); save_model(model, folder) writes one")
    else:
        files = [file for end in BESIDE if (file := path.with_name(path.name + end)).is_file()]
        if not path.is_file():
            raise MissingFileError(f"there is no file or folder {path}")
    return sum(file.stat().st_size for file in files) / MB


def peak_memory(
    path: Path | str,
    images: int = 8,
    batch_size: int = 1,
    threads: int | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    timeout: float = 300.0,
) -> dict[str, float | bool]:
    """Load a model in a fresh process, predict some images, and say what that took: peak_mb, libraries_mb, torch.

    peak_mb: largest resident memory, in 10^6 bytes, the interpreter and its libraries included; libraries_mb: what they alone
    took before the model was loaded; torch: whether it was imported. size: of the images where an ONNX file leaves it open.
    ValueError with the process's own words where it fails.
    """
    arguments = [str(Path(path).resolve()), "--images", str(images), "--batch-size", str(batch_size)]
    arguments += ["--threads", str(threads)] if threads else []
    if size:
        arguments += ["--size", *map(str, (size, size) if isinstance(size, int) else size)]
    size_on_disk(path)  # says what is wrong with the path before a process is begun
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "vitlab.compress.footprint", *arguments]
    environment = {**os.environ, "PYTHONPATH": paths}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{path} took longer than {timeout:g} s to load and to predict; write a longer timeout") from error
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"{path} could not be measured in a process of its own: {words[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def footprint_table(paths: Mapping[str, Path | str], **options):
    """Columns side, size_mb (on disk), peak_mb, libraries_mb, torch: one row a model. options: of `peak_memory`."""
    import pandas as pd

    return pd.DataFrame([{"side": n, "size_mb": size_on_disk(p), **peak_memory(p, **options)} for n, p in paths.items()])


def read_peak() -> int:
    """Peak resident memory of this process in bytes.

    On Linux from /proc: `getrusage` counts what the parent had taken when it began this process, too.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _predict_onnx(path: Path, count: int, batch_size: int, size, threads) -> int:
    import numpy as np

    from vitlab.compress.session import open_session
    from vitlab.compress.sides import ELEMENTS, make_side

    before = read_peak()
    session = open_session(path, threads)
    shape = list(session.get_inputs()[0].shape)
    inside = session.get_inputs()[0].type == "tensor(uint8)"  # preprocessing within the graph: raw images
    shape[0] = batch_size
    open_sides = [axis for axis, length in enumerate(shape) if not isinstance(length, int)]
    if open_sides and size is None:
        raise UserError(f"{path.name} takes images of any size, {shape}; say which one: size=224")
    for axis, length in zip(open_sides, size or (), strict=False):
        shape[axis] = length
    pixels = np.zeros(shape, ELEMENTS[session.get_inputs()[0].type]) if inside else _draw(shape)
    side = make_side(session)
    for _ in range(-(-count // batch_size)):
        side(pixels)
    return before


def _predict_torch(path: Path, count: int, batch_size: int, threads) -> int:
    import torch

    from vitlab.compress.sides import make_side
    from vitlab.models import load_model

    before = read_peak()
    if threads:
        torch.set_num_threads(threads)
    model = load_model(path)
    pixels, side = _draw((batch_size, len(model.transform.mean), *model.transform.size)), make_side(model)
    for _ in range(-(-count // batch_size)):
        side(pixels)
    return before


def _draw(shape):
    import numpy as np

    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, help="height and width, where the ONNX file leaves them open")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    if given.path.is_dir():
        before = _predict_torch(given.path, given.images, given.batch_size, given.threads)
    else:
        before = _predict_onnx(given.path, given.images, given.batch_size, given.size, given.threads)
    print(json.dumps({"peak_mb": read_peak() / MB, "libraries_mb": before / MB, "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()

"""Every way to start vitlab shortens the spin of OpenMP's threads before torch is loaded; a user's
own setting stays.

OMP_DISPLAY_ENV makes GNU OpenMP print the settings that it took, once for each copy of it that a
process loads."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vitlab.kernels import WarmProcess
from vitlab.notebook import read_cells

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [
    *sorted(ROOT.glob("notebooks/*.ipynb")),
    ROOT / "notebooks" / "assignment" / "assignment.ipynb",
]
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
linux = pytest.mark.skipif(
    sys.platform != "linux", reason="GNU OpenMP, with which torch is built for Linux"
)


def run_python(*arguments, **variables):
    own = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=own | variables, capture_output=True, text=True
    )


def spins(*arguments, **variables):
    done = run_python(*arguments, **variables, OMP_DISPLAY_ENV="VERBOSE")
    return set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr))


@linux
def test_openmp_takes_the_short_spin():
    assert spins("-c", "import vitlab.cli, torch") == {"20000"}


@linux
def test_a_users_own_setting_wins():
    assert spins("-c", "import vitlab, torch", OMP_WAIT_POLICY="PASSIVE") == {"0"}


@linux
def test_the_warm_process_of_a_batch_takes_it_too(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    with WarmProcess() as warm:
        warm.preload(["torch"])
        assert warm.ask("os:getenv", "GOMP_SPINCOUNT") == "20000"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_loads_torch_before_vitlab(notebook):
    cells = [cell for cell in read_cells(notebook) if cell["cell_type"] == "code"]
    names = []
    for node in ast.parse("\n".join(cell["source"] for cell in cells)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            names.append(name.split(".")[0])
    before = names[: names.index("vitlab")]
    assert not {"torch", "torchvision", "timm", "captum", "accelerate"} & set(before)

import subprocess
import sys
import time

import nbformat
import psutil
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from vitlab.batch import load_batch, run_batch
from vitlab.batch.limits import Limits, measure_memory, read_limits, read_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6 GB", 6 * 10**9),
        ("512MB", 512 * 10**6),
        ("5.5 GiB", round(5.5 * 2**30)),
        ("64 MiB", 2**26),
    ],
)
def test_sizes(text, size):
    assert read_size(text, "memory") == size


def test_a_step_overrides_what_it_names():
    base = read_limits({"minutes": 30, "memory": "6 GB"}, "toy.yml")
    assert base == Limits(30, 6 * 10**9)
    assert read_limits({"minutes": 90}, "train", base) == Limits(90, 6 * 10**9)
    assert read_limits({"minutes": None}, "train", base) == Limits(None, 6 * 10**9)
    assert read_limits({"memory": None}, "train", base) == Limits(30, None)
    assert read_limits(None, "train", base) is base


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"minuts": 3}, r"unknown key in limits of toy.yml: 'minuts'. Did you mean minutes"),
        ({"minutes": 0}, r"minutes in limits of toy.yml must be a number above 0; it is 0"),
        ({"minutes": True}, r"must be a number above 0"),
        (
            {"memory": 6},
            (
                r"memory in limits of toy.yml must be a number and a unit, like 6 GB or 512 MB; it"
                r" is 6"
            ),
        ),
        ({"memory": "0 GB"}, r"must be a number and a unit"),
        ([30], r"limits of toy.yml must be written as \{minutes: 30, memory: 6 GB\}"),
    ],
)
def test_mistakes_in_limits(content, message):
    with pytest.raises(ValueError, match=message):
        read_limits(content, "toy.yml")


def test_memory_of_a_process_counts_its_children_and_shared_pages_once():
    hold = (
        "import os, sys; block = bytearray(100_000_000); os.write(1, b'ready\\n'); sys.stdin.read()"
    )
    fork = f"import os, sys\nshared = bytearray(200_000_000)\nos.fork()\n{hold}"
    for code, least, most in ((hold, 100e6, 180e6), (fork, 400e6, 500e6)):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            for _ in range(2 if code == fork else 1):
                assert process.stdout.readline() == "ready\n"
            held = measure_memory(process.pid)
            assert least < held < most
            quick = measure_memory(process.pid, enough=10**9)
            # what both have of the first block counts twice
            assert quick >= held and (code == hold or quick > 590e6)
        finally:
            process.communicate(timeout=30)
    assert measure_memory(process.pid) == 0


CELLS = {
    "long": [
        (
            "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '300'])\nopen(log,"
            " 'w').write(str(child.pid))"
        ),
        "1",
        "# waits\ntime.sleep(300)",
    ],
    "large": ["import time", "block = bytearray(600_000_000)\ntime.sleep(300)"],
    "fine": ["print('fine')"],
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, cells in CELLS.items():
        first = new_code_cell('log = ""\nrun_name = ""', metadata={"tags": ["parameters"]})
        nbformat.write(
            new_notebook(cells=[first, *map(new_code_cell, cells)]), tmp_path / f"{name}.ipynb"
        )
    return tmp_path


def write_batch(project, chain, **content):
    file = project / "toy.yml"
    file.write_text(
        yaml.safe_dump({"parameters": {"log": str(project / "log")}, "chain": chain} | content)
    )
    return file


def test_a_notebook_over_its_budget_is_ended_with_what_it_started_and_the_rest_goes_on(
    project, reports_folder
):
    chain = [
        {"notebook": "long", "grid": {}, "limits": {"minutes": 0.05}},
        {"notebook": "large", "grid": {}, "limits": {"memory": "400 MB"}},
        {"notebook": "fine", "grid": {}},
    ]
    file = write_batch(project, chain, limits={"minutes": 10})
    assert [step.limits for step in load_batch(file).chain] == [
        Limits(0.05),
        Limits(10, 400 * 10**6),
        Limits(10),
    ]
    start = time.time()
    long, large, fine = run_batch(file)["tasks"]
    assert time.time() - start < 250
    assert [task["status"] for task in (long, large, fine)] == ["failed", "failed", "done"]
    assert long["error"]["name"] == "OverTime"
    assert (
        long["error"]["value"]
        == "it took longer than the 0.05 minutes that the batch file gives it"
    )
    assert (large["error"]["name"], large["error"]["cell"]) == ("OverMemory", 4)
    assert large["error"]["line"] == "block = bytearray(600_000_000)"
    assert large["error"]["value"].endswith("of memory; the batch file gives it 400 MB")
    copy = nbformat.read(reports_folder / large["path"], as_version=4)
    assert copy.cells[-1].outputs[-1].ename == "OverMemory"
    if (project / "log").exists():  # it came as far as that
        child = int((project / "log").read_text())
        assert (
            not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
        )


def test_a_run_folder_removed_while_the_batch_runs_is_a_row_and_nothing_else_is_lost(
    project, reports_folder
):
    """`own` removes the folder it runs in, at two points; `sweep` those to which a later notebook
    comes back.
    """
    remove = "import shutil, vitlab.runs\nfolder = vitlab.runs.runs_folder('any')\n"
    cells = {
        "first": ["run_name"],
        "own": [
            "print('printed')",
            remove + "if color == 'red':\n    shutil.rmtree(folder / run_name)",
            "run_name",
        ],
        "sweep": [remove + "for run in folder.glob('*seed1*'):\n    shutil.rmtree(run)"],
        "last": ["run_name"],
    }
    for name, sources in cells.items():
        first = new_code_cell(
            'run_name = ""\ncolor = ""\nseed = 0', metadata={"tags": ["parameters"]}
        )
        nbformat.write(
            new_notebook(cells=[first, *map(new_code_cell, sources)]), project / f"{name}.ipynb"
        )
    chain = [{"notebook": name} | ({"grid": {}} if name == "sweep" else {}) for name in cells]
    file = write_batch(
        project, chain, parameters={}, grid={"color": ["red", "blue"], "seed": [0, 1]}
    )
    tasks = {(task["notebook"], *task["point"].values()): task for task in run_batch(file)["tasks"]}
    status = {key: task["status"] for key, task in tasks.items()}
    assert {status[key] for key in status if key[0] in ("first", "sweep")} == {"done"}
    assert [
        status["own", *point] for point in (("red", 0), ("red", 1), ("blue", 0), ("blue", 1))
    ] == ["failed"] * 2 + ["done"] * 2
    assert [status["last", *point] for point in (("red", 0), ("red", 1), ("blue", 0))] == [
        "skipped",
        "skipped",
        "done",
    ]
    own, last = tasks["own", "red", 0], tasks["last", "blue", 1]
    assert own["error"]["name"] == last["error"]["name"] == "RunFolderRemoved"
    told = (
        f"the folder {reports_folder / own['run']} was removed while the notebook ran; the same"
        " command makes it again"
    )
    assert own["error"]["value"] == told
    copy = nbformat.read(reports_folder / own["path"], as_version=4)
    # that is not lost
    assert any(
        output.get("text") == "printed\n"
        for cell in copy.cells
        for output in cell.get("outputs", [])
    )
    assert last["error"]["value"].startswith(
        f"{reports_folder / last['run']}, made by first, was removed"
    )

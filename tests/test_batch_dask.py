"""Batches on a Dask cluster: one of two workers, each a process with a nanny, for all tests of this
file.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from distributed import Client, Nanny, Scheduler, SpecCluster
from nbformat.v4 import new_code_cell, new_notebook

import vitlab
from tests.child_processes import start_vitlab
from vitlab.batch import cluster as cluster_module, crew as crew_module, run_batch

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="kernels are forked on Linux only, and /proc is looked into"
)

NOTE = (
    "import os, time, psutil, pathlib\nwith open(log + 'log', 'a') as file:\n    print({},"
    " file=file)"
)
TRAIN = (
    NOTE.format("'train', color"),
    (
        "worker = psutil.Process().parent().parent()\n"
        "killed = pathlib.Path(log + color)\n"
        "if color == 'always' or color == 'once' and not killed.exists():\n"
        "    killed.touch()\n    worker.kill()\n    time.sleep(60)"
    ),
    "if color == 'wrong':\n    raise RuntimeError('wrong colour')",
    (
        "from vitlab.runs import Run\nrun = Run.create(name=run_name, dataset='any', color=color)\n"
        "(run.path / 'weights.bin').write_bytes(os.urandom(17 * 2**20))\nrun.finish()"
    ),
)
JUDGE = (
    NOTE.format("'judge', run_name"),
    (
        "from vitlab.runs import find_runs\nrun = find_runs('any', color=color)[0]\n"
        "run.write_json('metrics.json', {'color': color})\n"
        "(run.path / 'weights.bin').stat().st_size"
    ),
)
COMPARE = (
    NOTE.format("'compare', os.environ['VITLAB_REPORTS']"),
    (
        "from vitlab.runs import find_runs\nfor run in find_runs('any'):\n   "
        " print(run.read_json('metrics.json')['color'])"
    ),
)


@pytest.fixture(scope="module")
def client():
    options = {
        "nthreads": 1,
        "env": {"VITLAB_REPORTS": ""},
        "resources": {"GPU": 1},
        "dashboard_address": None,
    }
    workers = {f"w{number}": {"cls": Nanny, "options": options} for number in (1, 2)}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": None, "host": "127.0.0.1"}}
    with SpecCluster(workers, scheduler) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=120)
        yield client


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # the scheduler is a thread of this busy process
    monkeypatch.setattr(cluster_module, "ANSWER", 60)
    declared = 'color = ""\nrun_name = ""\nlog = ""'
    for name, cells in {"train": TRAIN, "judge": JUDGE, "compare": COMPARE}.items():
        first = new_code_cell(declared, metadata={"tags": ["parameters"]})
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        nbformat.write(
            new_notebook(cells=[first, *map(new_code_cell, cells)]),
            tmp_path / "notebooks" / f"{name}.ipynb",
        )
    return tmp_path


def write_batch(project, colors, chain=("train", "judge", "compare"), **content):
    """log: the folder of the log; the file itself would be one that the notebooks depend on."""
    steps = [{"notebook": name} | ({"grid": {}} if name == "compare" else {}) for name in chain]
    content = {
        "parameters": {"log": f"{project}/"},
        "grid": {"color": list(colors)},
        "chain": steps,
    } | content
    file = project / "notebooks" / "toy.yml"
    file.write_text(yaml.safe_dump(content))
    return file


def log_lines(project):
    return sorted((project / "log").read_text().splitlines()) if (project / "log").exists() else []


def run(client, file, **options):
    content = run_batch(file, scheduler=client.scheduler.address, **options)
    return {(task["notebook"], task["point"].get("color", "")): task for task in content["tasks"]}


def children(client):
    """The processes below each worker."""
    return client.run(
        lambda: [child.pid for child in __import__("psutil").Process().children(recursive=True)]
    )


def wait_until(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition() and time.time() < deadline:
        time.sleep(0.1)
    return condition()


def test_a_chain_runs_on_two_workers_and_leaves_nothing_there(
    client, project, reports_folder, capsys
):
    file = write_batch(project, ["red", "wrong", "blue"])
    records = run(client, file)
    assert {key: record["status"] for key, record in records.items()} == {
        ("train", "red"): "done",
        ("judge", "red"): "done",
        ("train", "wrong"): "failed",
        ("judge", "wrong"): "skipped",
        ("train", "blue"): "done",
        ("judge", "blue"): "done",
        ("compare", ""): "done",
    }
    error = records["train", "wrong"]["error"]
    assert (error["cell"], error["line"], error["name"]) == (
        5,
        "raise RuntimeError('wrong colour')",
        "RuntimeError",
    )
    # they share the file system
    assert len(log_lines(project)) == 6 and f"compare {reports_folder}" in log_lines(project)
    compare = nbformat.read(reports_folder / records["compare", ""]["path"], as_version=4)
    assert sorted(compare.cells[-1].outputs[0].text.split()) == ["blue", "red"]
    assert list(children(client).values()) == [[], []]
    assert not [path for path in reports_folder.rglob(".*") if path.suffix != ".lock"]
    assert "train color=red    done" in capsys.readouterr().out
    run(client, write_batch(project, ["red", "blue"]))
    # `needs` of compare have changed
    assert log_lines(project)[0].startswith("compare") and len(log_lines(project)) == 7


def test_a_lost_worker_costs_its_task_alone_and_a_task_that_kills_workers_is_given_up(
    client, project, monkeypatch
):
    monkeypatch.setattr(crew_module, "LOSSES", 2)
    records = run(
        client, write_batch(project, ["always", "once", "calm"], chain=["train", "judge"])
    )
    assert {key: record["status"] for key, record in records.items()} == {
        ("train", "always"): "failed",
        ("judge", "always"): "skipped",
        ("train", "once"): "done",
        ("judge", "once"): "done",
        ("train", "calm"): "done",
        ("judge", "calm"): "done",
    }
    error = records["train", "always"]["error"]
    assert error["name"] == "WorkersLost"
    assert error["value"].startswith("2 workers were lost while they ran it")
    lines = log_lines(project)
    begun = {color: lines.count(f"train {color}") for color in ("always", "once", "calm")}
    assert begun == {"always": 2, "once": 2, "calm": 1}
    assert len([line for line in lines if line.startswith("judge")]) == 2


def test_results_come_home_from_workers_with_folders_of_their_own(client, project, reports_folder):
    client.wait_for_workers(2, timeout=120)
    for number, worker in enumerate(client.scheduler_info()["workers"]):
        client.run(set_reports, str(project / f"worker{number}"), workers=[worker])
    try:
        records = run(client, write_batch(project, ["red", "wrong", "blue"]))
        assert [record["status"] for record in records.values()] == [
            "done",
            "done",
            "failed",
            "skipped",
            "done",
            "done",
            "done",
        ]
        for color in ("red", "blue"):
            folder = reports_folder / records["train", color]["run"]
            assert json.loads((folder / "run.json").read_text())["status"] == "done"
            assert (folder / "weights.bin").stat().st_size == 17 * 2**20
            assert json.loads((folder / "metrics.json").read_text()) == {"color": color}
            assert sorted(path.stem for path in (folder / "notebooks").iterdir()) == [
                "judge",
                "train",
            ]
        wrong = nbformat.read(reports_folder / records["train", "wrong"]["path"], as_version=4)
        assert any(
            output.get("ename") == "RuntimeError"
            for cell in wrong.cells
            for output in cell.get("outputs", [])
        )
        compare = nbformat.read(reports_folder / records["compare", ""]["path"], as_version=4)
        assert sorted(compare.cells[-1].outputs[0].text.split()) == ["blue", "red"]
        used = next(line for line in log_lines(project) if line.startswith("compare")).split()[1]
        assert not Path(used).is_relative_to(reports_folder) and not Path(used).exists()
        assert list(children(client).values()) == [[], []]
        run(client, write_batch(project, ["red", "wrong", "blue"]))
        assert (
            log_lines(project).count("train wrong") == 2
            and log_lines(project).count("train red") == 1
        )
    finally:
        client.run(set_reports, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_batch_ended_half_way_leaves_no_kernel_on_the_workers(
    client, project, reports_folder, number
):
    slow = "import os, time\nopen(log + color, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    first = new_code_cell('color = ""\nlog = ""', metadata={"tags": ["parameters"]})
    nbformat.write(
        new_notebook(cells=[first, new_code_cell(slow)]), project / "notebooks" / "slow.ipynb"
    )
    file = write_batch(project, ["red", "blue"], chain=["slow"])
    words = ["batch", str(file), "--scheduler", client.scheduler.address]
    pids = [project / "red", project / "blue"]
    with start_vitlab(*words) as batch:
        assert wait_until(lambda: all(path.exists() and path.read_text() for path in pids), 120)
        batch.send_signal(number)
        _, errors = batch.communicate(timeout=60)
    assert batch.returncode == (-number if number == signal.SIGKILL else 128 + number), errors
    kernels = [int(path.read_text()) for path in pids]
    if number != signal.SIGKILL:
        assert errors.endswith("Stopped. Run the same command to continue.\n")
        assert list(children(client).values()) == [[], []]
    assert wait_until(lambda: not any(psutil.pid_exists(pid) for pid in kernels))
    content = json.loads((reports_folder / "runs" / "batches" / "toy" / "batch.json").read_text())
    assert [task["status"] for task in content["tasks"]] == ["pending", "pending"]


def test_a_worker_with_another_vitlab_is_refused_before_any_task(client, project):
    worker = sorted(client.scheduler_info()["workers"])[0]
    client.run(change_version, "0.0.1", workers=[worker])
    try:
        with pytest.raises(
            ValueError, match=rf"no notebook was started: .*worker {worker} has 0\.0\.1 \("
        ):
            run(client, write_batch(project, ["red"]))
    finally:
        client.run(change_version, vitlab.__version__, workers=[worker])
    assert log_lines(project) == []


def set_reports(folder):
    os.environ["VITLAB_REPORTS"] = folder


def change_version(version):
    __import__("vitlab").__version__ = version


def test_resources_that_nobody_offers_are_refused(client, project):
    file = write_batch(project, ["red"], chain=["train"])
    content = yaml.safe_load(file.read_text()) | {
        "chain": [{"notebook": "train", "resources": {"GPU": 2}}]
    }
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(
        ValueError, match=r"no worker offers the resources GPU=2 that train asks for"
    ):
        run(client, file)
    assert log_lines(project) == []


def test_a_scheduler_that_does_not_answer_is_named(project, monkeypatch, unused_port):
    monkeypatch.setattr(cluster_module, "ANSWER", 0.5)
    with pytest.raises(
        ValueError,
        match=rf"no Dask scheduler answers at tcp://127.0.0.1:{unused_port} .*`dask scheduler`",
    ):
        run_batch(write_batch(project, ["red"]), scheduler=f"tcp://127.0.0.1:{unused_port}")
    with pytest.raises(
        ValueError, match=r"--scheduler is 'somewhere'; write its address, like tcp://10.0.0.5:8786"
    ):
        run_batch(write_batch(project, ["red"]), scheduler="somewhere")


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as listener:  # takes calls and never answers
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]

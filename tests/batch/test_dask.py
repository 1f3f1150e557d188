"""Batches on a Dask cluster: one of two workers, each a process with a nanny, for all tests of this
file.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster
from typer.testing import CliRunner

import vitlab
from tests.batch.toys import write_batch, write_notebook
from tests.child_processes import start_vitlab, wait_until
from vitlab.batch import dask_cluster as cluster_module, dask_executor, run_batch
from vitlab.batch.dask_cluster import (
    ClusterGone,
    Worker,
    build_cluster,
    connect,
    describe_jobs,
    read_cluster_file,
)
from vitlab.batch.dask_executor import open_executor
from vitlab.batch.dask_worker import run_task
from vitlab.batch.display import Display, describe_problem
from vitlab.batch.watch import Stopped
from vitlab.cli import app
from vitlab.errors import UserError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="kernels are forked on Linux only, and /proc is looked into"
)

# 17 MB of weights: Dask sends them in parts
NOTE = "import os\nwith open(log + 'log', 'a') as file:\n    print({}, file=file)"
TRAIN = (
    NOTE.format("'train', color"),
    "import pathlib, psutil, time\n"
    "worker, killed = psutil.Process().parent().parent(), pathlib.Path(log + color)\n"
    "if color == 'always' or color == 'once' and not killed.exists():\n"
    "    killed.touch()\n    worker.kill()\n    time.sleep(60)",
    "if color == 'wrong':\n    raise RuntimeError('wrong colour')",
    "from vitlab.runs import Run\nrun = Run.create(name=run_name, dataset='any', color=color)\n"
    "(run.path / 'weights.bin').write_bytes(os.urandom(17 * 2**20))\nrun.finish()",
)
JUDGE = (
    NOTE.format("'judge', run_name"),
    "from vitlab.runs import find_runs\nrun = find_runs('any', color=color)[0]\n"
    "run.write_json('metrics.json', {'color': color})\n(run.path / 'weights.bin').stat().st_size",
)
COMPARE = (
    NOTE.format("'compare', os.environ['VITLAB_REPORTS']"),
    "from vitlab.runs import find_runs\n"
    "for run in find_runs('any'):\n    print(run.read_json('metrics.json')['color'])",
)
SLOW = "import os, time\nopen(log + color, 'w').write(str(os.getpid()))\ntime.sleep(300)"
NOTEBOOKS = {"train": TRAIN, "judge": JUDGE, "compare": COMPARE, "slow": [SLOW]}


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
    monkeypatch.setattr(cluster_module, "ANSWER_SECONDS", 60)
    for name, cells in NOTEBOOKS.items():
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        write_notebook(path, 'color = ""\nrun_name = ""\nlog = ""', *cells)
    (tmp_path / "notebooks" / "batches").mkdir()
    return tmp_path


def write_grid(project, colors, chain=("train", "judge", "compare"), **step):
    """log: the folder of the log; the file itself would be one that the notebooks depend on."""
    steps = [{"notebook": name} | step for name in chain]
    if "compare" in chain:
        steps[-1]["grid"] = {}
    parameters = {"log": f"{project}/"}
    return write_batch(project, parameters=parameters, grid={"color": list(colors)}, chain=steps)


def log_lines(project):
    return sorted((project / "log").read_text().splitlines()) if (project / "log").exists() else []


def run(client, file):
    content = run_batch(file, scheduler=client.scheduler.address)
    return {(task["notebook"], task["point"].get("color", "")): task for task in content["tasks"]}


def statuses(records):
    return {key: record["status"] for key, record in records.items()}


def children(client):
    """The processes below each worker."""
    return client.run(
        lambda: [child.pid for child in __import__("psutil").Process().children(recursive=True)]
    )


RED_WRONG_BLUE = {
    ("train", "red"): "done",
    ("judge", "red"): "done",
    ("train", "wrong"): "failed",
    ("judge", "wrong"): "skipped",
    ("train", "blue"): "done",
    ("judge", "blue"): "done",
    ("compare", ""): "done",
}


def check_copies(reports_folder, records):
    """The executed copies are here, with the output of the last notebook and the failure."""
    compare = nbformat.read(reports_folder / records["compare", ""]["path"], as_version=4)
    assert sorted(compare.cells[-1].outputs[0].text.split()) == ["blue", "red"]
    wrong = nbformat.read(reports_folder / records["train", "wrong"]["path"], as_version=4)
    outputs = [output for cell in wrong.cells for output in cell.get("outputs", [])]
    assert any(output.get("ename") == "RuntimeError" for output in outputs)


def test_a_chain_runs_on_workers_that_share_the_folder(client, project, reports_folder, capsys):
    records = run(client, write_grid(project, ["red", "wrong", "blue"]))
    assert statuses(records) == RED_WRONG_BLUE
    error = records["train", "wrong"]["error"]
    assert (error["cell"], error["line"]) == (5, "raise RuntimeError('wrong colour')")
    assert len(log_lines(project)) == 6 and f"compare {reports_folder}" in log_lines(project)
    check_copies(reports_folder, records)
    assert list(children(client).values()) == [[], []]
    assert not [path for path in reports_folder.rglob(".*") if path.suffix != ".lock"]
    assert "train color=red    done" in capsys.readouterr().out


def test_results_come_back_from_workers_with_folders_of_their_own(client, project, reports_folder):
    client.wait_for_workers(2, timeout=120)
    for number, worker in enumerate(client.scheduler_info(n_workers=-1)["workers"]):
        client.run(set_reports, str(project / f"worker{number}"), workers=[worker])
    try:
        records = run(client, write_grid(project, ["red", "wrong", "blue"]))
        scratch = client.run(list_scratch)
    finally:
        client.run(set_reports, "")
    assert statuses(records) == RED_WRONG_BLUE
    for color in ("red", "blue"):
        folder = reports_folder / records["train", color]["run"]
        assert json.loads((folder / "run.json").read_text())["status"] == "done"
        assert (folder / "weights.bin").stat().st_size == 17 * 2**20
        assert json.loads((folder / "metrics.json").read_text()) == {"color": color}
        copies = sorted(path.stem for path in (folder / "notebooks").iterdir())
        assert copies == ["judge", "train"]
    check_copies(reports_folder, records)
    used = next(line for line in log_lines(project) if line.startswith("compare")).split()[1]
    assert not Path(used).is_relative_to(reports_folder)
    assert list(scratch.values()) == [[], []] and list(children(client).values()) == [[], []]


def set_reports(folder):
    os.environ["VITLAB_REPORTS"] = folder


def list_scratch(dask_worker):
    return [path.name for path in Path(dask_worker.local_directory).glob("vitlab-*")]


def test_a_lost_worker_costs_its_task_alone_and_a_task_that_kills_workers_is_given_up(
    client, project, monkeypatch
):
    monkeypatch.setattr(dask_executor, "MAX_WORKER_LOSSES", 2)
    file = write_grid(project, ["always", "once", "calm"], chain=["train", "judge"])
    records = run(client, file)
    assert statuses(records) == {
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_batch_ended_half_way_leaves_no_kernel_on_the_workers(
    client, project, reports_folder, number
):
    client.wait_for_workers(2, timeout=120)
    file = write_grid(project, ["red", "blue"], chain=["slow"])
    pids = [project / "red", project / "blue"]
    with start_vitlab("batch", str(file), "--scheduler", client.scheduler.address) as batch:
        wait_until(lambda: all(path.exists() and path.read_text() for path in pids))
        batch.send_signal(number)
        _, errors = batch.communicate(timeout=60)
    assert batch.returncode == (-number if number == signal.SIGKILL else 128 + number), errors
    kernels = [int(path.read_text()) for path in pids]
    if number != signal.SIGKILL:
        assert errors.endswith("Stopped. Run the same command to continue.\n")
        assert list(children(client).values()) == [[], []]
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in kernels))
    content = json.loads((reports_folder / "runs" / "batches" / "toy" / "batch.json").read_text())
    assert [task["status"] for task in content["tasks"]] == ["pending", "pending"]


def change_version(version):
    __import__("vitlab").__version__ = version


def test_a_worker_with_another_vitlab_is_refused_before_any_task(client, project):
    client.wait_for_workers(2, timeout=120)
    worker = sorted(client.scheduler_info(n_workers=-1)["workers"])[0]
    client.run(change_version, "0.0.1", workers=[worker])
    message = rf"no notebook was started: .*worker {worker} has vitlab 0\.0\.1 \(code "
    try:
        with pytest.raises(UserError, match=message):
            run(client, write_grid(project, ["red"]))
    finally:
        client.run(change_version, vitlab.__version__, workers=[worker])
    assert log_lines(project) == []


def test_resources_that_no_worker_offers_are_refused(client, project):
    message = r"no worker offers the resources GPU=2 that train asks for; start one with `dask "
    with pytest.raises(UserError, match=message):
        run(client, write_grid(project, ["red"], chain=["train"], resources={"GPU": 2}))
    assert log_lines(project) == []


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            "tcp://127.0.0.1:{port}",
            r"no Dask scheduler answers at tcp://127.* \(nothing within",
        ),
        ("somewhere", r"--scheduler is 'somewhere'; write its address, like tcp://10.0.0.5:8786"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_named(project, monkeypatch, scheduler, message):
    monkeypatch.setattr(cluster_module, "ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        scheduler = scheduler.format(port=silent.getsockname()[1])
        with pytest.raises(UserError, match=message):
            run_batch(write_grid(project, ["red"]), scheduler=scheduler)


@pytest.mark.parametrize("protocol", ["tcp", "tls"])
def test_a_web_server_is_no_scheduler(protocol):
    def answer(listener):
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nServer: TornadoServer/6\r\n\r\n")

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=answer, args=[listener], daemon=True).start()
        address = f"{protocol}://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"no Dask scheduler answers at {address} \(\w+: "):
            connect(address)


def test_a_task_goes_where_a_place_and_its_resources_are_free(project, client, monkeypatch):
    """One notebook at a time for each GPU, and the worker with most free places first."""
    big = Worker("a", "big", 2, {"GPU": 1.0}, 8, "here", None)
    small = Worker("b", "b", 1, {}, 8, "here", None)
    gpu = {"GPU": 1.0}
    assert big.offers(gpu) and not big.offers(gpu, [gpu]) and not small.offers(gpu)
    assert (str(big), str(small)) == ("big (a)", "b")
    with open_test_executor(client, project) as executor:
        executor.workers.usable = {"a": big, "b": small}
        tasks = {"any": make_task({}), "gpu": make_task(gpu), "default": make_task(None)}
        for running, expected in (
            ([], {"any": big, "gpu": big, "default": big}),
            ([(big, gpu)], {"any": big, "gpu": None, "default": None}),
            ([(big, gpu), (big, {})], {"any": small, "gpu": None}),
            ([(big, gpu), (big, {}), (small, {})], {"any": None}),
        ):
            executor._running = {
                number: dask_executor.Running(number, None, 0.0, 0, worker, taken)
                for number, (worker, taken) in enumerate(running)
            }
            for name, worker in expected.items():
                assert executor._find_worker(tasks[name]) == worker
        assert executor.workers.count_threads(big) == 8 // 3
        executor._running = {}


def test_patience_ends_with_what_no_worker_offers(project, client):
    with open_test_executor(client, project) as executor:
        executor.cluster.patience = -1
        assert not executor.has_place(make_task({"GPU": 2.0}))
        message = r"has had no worker for train that offers GPU=2 in .* minutes"
        with pytest.raises(ClusterGone, match=message):
            executor._look(force=True)


def open_test_executor(client, project):
    return open_executor(client.scheduler.address, [], project / "reports", [], Display(1))


def make_task(resources):
    from types import SimpleNamespace

    return SimpleNamespace(label="train", step=SimpleNamespace(resources=resources))


class OddError(Exception):
    """One that pickle cannot build again."""

    def __init__(self, *, code):
        super().__init__(f"code {code}")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OddError(code=7), "OddError: code 7"),
        (UserError("no kernel starts"), "UserError: no kernel starts"),
        (OSError(28, "No space left", "/tmp/x"), "OSError: [Errno 28] No space left: '/tmp/x'"),
    ],
)
def test_an_error_on_a_worker_is_described_there(monkeypatch, tmp_path, error, shown):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("vitlab.batch.dask_worker.get_worker", lambda: FakeWorker(tmp_path))
    monkeypatch.setattr("vitlab.batch.dask_worker._run_in", fail)
    outcome, changes = run_task(None, {})
    assert outcome["status"] == "failed" and changes.files == {}
    problem = describe_problem(outcome).rstrip()
    assert problem.endswith(shown)
    assert problem.startswith("Traceback") == isinstance(error, OddError)
    error = Stopped("x")
    with pytest.raises(Stopped):  # it is no failure
        run_task(None, {})


class FakeWorker:
    def __init__(self, folder):
        self.local_directory = str(folder)


SLURM = """
cluster: slurm
jobs: 4
options:
  queue: gpu
  cores: 8
  processes: 1
  memory: 32 GB
  walltime: "04:00:00"
  interface: lo
  scheduler_options: {dashboard_address: ":0"}
  worker_extra_args: ["--nthreads", "1", "--resources", "GPU=1"]
  job_extra_directives: ["--gres=gpu:1"]
  job_script_prologue: ["source /home/me/vitlab/.venv/bin/activate"]
"""


def test_a_dry_run_shows_the_job_that_slurm_would_get(tmp_path):
    file = tmp_path / "slurm.yml"
    file.write_text(SLURM)
    head, script = describe_jobs(str(file)).split("\n", 1)
    assert head == "Jobs: 4. Each of them:"
    wanted = {"-p gpu", "--cpus-per-task=8", "--mem=30G", "-t 04:00:00", "--gres=gpu:1"}
    assert {f"#SBATCH {option}" for option in wanted} <= set(script.splitlines())
    order = [script.index(text) for text in ("activate", "dask_worker", "--resources GPU=1")]
    assert order == sorted(order)
    assert describe_jobs("tcp://10.0.0.5:8786") == ""
    file.write_text("{cluster: slurm, options: {queue: gpu}}")
    message = r"SLURMCluster does not accept these options: .*how much cores"
    with pytest.raises(UserError, match=message):
        build_cluster(read_cluster_file(str(file)), [])


def test_a_queue_that_rejects_all_jobs_ends_the_batch_with_its_message(tmp_path, monkeypatch):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: gpu' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(cluster_module, "ANSWER_SECONDS", 60)
    file = tmp_path / "slurm.yml"
    file.write_text(SLURM)
    message = r"the queue rejected the jobs: RuntimeError: .*invalid partition: gpu"
    with (
        pytest.raises(ClusterGone, match=message),
        open_executor(str(file), [], tmp_path, [], Display(1)) as executor,
    ):
        while True:
            executor.collect()


def test_without_a_scheduler_dask_is_not_even_loaded():
    code = (
        "import sys\nfrom vitlab.cli import app\ntry: app(['batch', '--help'])\n"
        "except SystemExit: pass\nimport vitlab.batch.execute\n"
        "print('distributed' in sys.modules or 'dask' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--scheduler" in shown and shown.splitlines()[-1] == "False"


def test_workers_of_this_machine_and_of_a_cluster_are_not_mixed(tmp_path):
    words = [
        "batch",
        str(tmp_path / "toy.yml"),
        "--workers",
        "2",
        "--scheduler",
        "tcp://10.0.0.5:1",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "--workers is for this machine, --scheduler for a cluster" in result.stderr

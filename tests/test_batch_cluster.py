"""What a cluster file says, who gets the next task, and which files travel: without a cluster."""

import socket
import subprocess
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
from distributed.comm import CommClosedError
from typer.testing import CliRunner

from vitlab.batch import cluster as cluster_module
from vitlab.batch.cluster import (
    Cluster,
    Refusals,
    build_cluster,
    check_versions,
    connect,
    describe_cluster,
    open_cluster,
    read_cluster_file,
)
from vitlab.batch.crew import ClusterGone
from vitlab.batch.files import find_changes, list_files, place_of, read_piece, write_piece
from vitlab.batch.probe import probe_worker
from vitlab.batch.progress import Board
from vitlab.batch.workers import Workers, probe_workers
from vitlab.cli import app


def test_without_a_scheduler_dask_is_not_even_loaded():
    code = (
        "import sys\nfrom vitlab.cli import app\ntry: app(['batch', '--help'])\nexcept SystemExit:"
        " pass\nimport vitlab.batch.schedule, vitlab.batch.local\nprint('distributed' in"
        " sys.modules or 'dask' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "--scheduler" in shown and shown.splitlines()[-1] == "False"


def test_workers_of_this_machine_and_of_a_cluster_are_not_mixed(tmp_path):
    result = CliRunner().invoke(
        app,
        [
            "batch",
            str(tmp_path / "toy.yml"),
            "--workers",
            "2",
            "--scheduler",
            "tcp://10.0.0.5:8786",
        ],
    )
    assert (
        result.exit_code == 2
        and "--workers is for this machine, --scheduler for a cluster" in result.stderr
    )


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
    told = describe_cluster(str(file))
    head, script = told.split("\n", 1)
    assert head == "Jobs: 4. Each of them:"
    for line in (
        "#SBATCH -p gpu",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=30G",
        "#SBATCH -t 04:00:00",
        "#SBATCH --gres=gpu:1",
    ):
        assert line in script.splitlines()
    assert (
        script.index("activate")
        < script.index("distributed.cli.dask_worker")
        < script.index("--resources GPU=1")
    )
    assert describe_cluster("tcp://10.0.0.5:8786") == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster: [", r"is not YAML"),
        (
            "jobs: 3",
            (
                r"cluster.yml must have the keys cluster, jobs, patience, options; at least"
                r" `cluster: slurm`"
            ),
        ),
        ("cluster: slrum", r"unknown cluster in cluster.yml: 'slrum'. Did you mean slurm"),
        ("{cluster: slurm, job: 3}", r"unknown key in cluster.yml: 'job'. Did you mean jobs"),
        (
            "{cluster: slurm, jobs: many}",
            r"jobs in cluster.yml must be a whole number above 0; it is 'many'",
        ),
        (
            "{cluster: slurm, options: [queue]}",
            r"options in cluster.yml must be written as name: value",
        ),
        (
            "{cluster: slurm, options: {queue: gpu}}",
            r"SLURMCluster does not take these options: .*how much cores",
        ),
    ],
)
def test_mistakes_in_a_cluster_file(tmp_path, text, message):
    file = tmp_path / "cluster.yml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        build_cluster(read_cluster_file(str(file)))


@pytest.mark.skipif(sys.platform == "win32", reason="the queue is a shell script")
def test_a_queue_that_takes_no_job_ends_the_batch_with_what_it_said(tmp_path, monkeypatch):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n"
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(cluster_module, "ANSWER", 60)
    file = tmp_path / "slurm.yml"
    file.write_text(SLURM)
    told = r"the queue took no job: RuntimeError: .*invalid partition specified: gpu"
    with pytest.raises(ClusterGone, match=told), open_cluster(str(file)) as cluster:
        cluster.hire([], tmp_path, tmp_path, [], Board(1))


def test_versions_are_told_apart_by_their_code_too():
    here = probe_worker()
    assert here["version"] and len(here["code"]) == 8 and here["cores"]["count"] >= 1
    check_versions({"tcp://a:1": here})
    silent = {"tcp://d:1": TypeError("no")}
    check_versions({"tcp://a:1": here} | silent)
    others = {"tcp://b:1": here | {"code": "deadbeef"}, "tcp://c:1": here | {"version": None}}
    with pytest.raises(ValueError) as error:
        check_versions({"tcp://a:1": here} | others | silent)
    told = str(error.value)
    assert (
        "tcp://a:1" not in told
        and f"worker tcp://b:1 has {here['version']} (code deadbeef)" in told
    )
    assert "worker tcp://c:1 has no vitlab" in told and "tcp://d:1" not in told
    with pytest.raises(ValueError, match=r"worker tcp://d:1 has no answer \(TypeError: no\)"):
        check_versions(silent)


def test_a_worker_that_ends_as_it_is_asked_is_no_obstacle(monkeypatch, capsys):
    answers = [
        {"tcp://a:1": CommClosedError("gone")},
        {"tcp://a:1": CommClosedError("gone"), "tcp://b:1": probe_worker()},
    ]
    monkeypatch.setattr(cluster_module, "probe_workers", lambda client: answers.pop(0))
    monkeypatch.setattr(cluster_module.time, "sleep", lambda seconds: None)
    cluster = Cluster(None, "tcp://s:1", 60, "start one")
    assert list(cluster._wait_for_workers(Board(1))) == ["tcp://b:1"]
    assert capsys.readouterr().out == "waiting for the first worker: start one\n"


def test_a_job_that_is_refused_is_told_while_others_wait(monkeypatch, capsys):
    answers = [{}, {}, {"tcp://a:1": probe_worker()}]
    monkeypatch.setattr(cluster_module, "probe_workers", lambda client: answers.pop(0))
    monkeypatch.setattr(cluster_module.time, "sleep", lambda seconds: None)
    Cluster(None, "tcp://s:1", 60, "submitted", Refusals(2, ["too many jobs"]))._wait_for_workers(
        Board(1)
    )
    told = "the queue did not take a job: too many jobs\nwaiting for the first worker: submitted\n"
    assert capsys.readouterr().out == told


@pytest.fixture
def talker():
    """A web server's answer, where the dashboard is, say."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer():
            with suppress(OSError):
                call, _ = listener.accept()
                with call:
                    call.recv(1000)
                    call.sendall(b"HTTP/1.1 400 Bad Request\r\nServer: TornadoServer/6\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("protocol", ["tcp", "tls"])
def test_a_port_with_something_else_behind_it_is_no_scheduler(talker, protocol):
    with pytest.raises(
        ValueError,
        match=(
            rf"no Dask scheduler answers at {protocol}://127.0.0.1:{talker} \(\w+: .*\)\. Start one"
        ),
    ):
        connect(f"{protocol}://127.0.0.1:{talker}")


class FakeClient:
    """Of a scheduler that names these workers; `identity` may be replaced by what raises."""

    def __init__(self, there):
        self.scheduler = SimpleNamespace(
            identity=lambda n_workers: {"workers": there if n_workers == -1 else {}}
        )

    def sync(self, function, callback_timeout, **options):
        return function(**options)

    def scheduler_info(self, n_workers):
        return {"workers": {}}  # as it stands each time when Dask has brought its cache up to date


@pytest.fixture
def workers():
    here = probe_worker()
    there = {
        "a": {"nthreads": 2, "resources": {"GPU": 1}, "name": "big"},
        "b": {"nthreads": 1, "resources": {}, "name": "b"},
        "c": {"nthreads": 9, "resources": {}, "name": "old"},
        "d": {"nthreads": 9, "resources": {}, "name": "ending", "status": "closing_gracefully"},
    }
    found = {"a": here, "b": here, "c": here | {"version": "0.0.1"}, "d": here}
    return Workers(FakeClient(there), found)


def test_workers_are_lost_when_the_scheduler_says_so_and_not_when_it_is_silent(workers):
    def say_nothing(n_workers):
        raise TimeoutError

    assert workers.look(force=True) == ([], []) and set(workers.known) == {"a", "b"}
    answer, workers.client.scheduler.identity = workers.client.scheduler.identity, say_nothing
    assert workers.look(force=True) == ([], [])
    assert set(workers.known) == {"a", "b"} and workers.there == {"a", "b", "c", "d"}
    assert probe_workers(workers.client) == {}
    workers.client.scheduler.identity = lambda n_workers: {
        "workers": {"a": answer(-1)["workers"]["a"]}
    }
    assert workers.look(force=True) == ([], ["b", "c", "d"]) and set(workers.known) == {"a"}


def test_a_task_goes_where_a_place_is_free(workers):
    gpu = {"GPU": 1.0}
    assert set(workers.known) == {"a", "b"} and workers.refused == {"c"} and workers.have_gpu()
    assert workers.find_free({}, []) == "a"
    assert workers.find_free(gpu, []) == "a"
    # one at a time, though the worker has a thread left
    assert workers.find_free(gpu, [("a", gpu)]) is None
    assert workers.find_free({}, [("a", gpu), ("b", {})]) == "a"
    assert workers.find_free({}, [("a", gpu), ("a", {})]) == "b"
    assert workers.find_free({}, [("a", gpu), ("a", {}), ("b", {})]) is None
    assert workers.find_free({}, [("gone", {}), ("gone", {}), ("b", {})]) == "a"
    assert not workers.offers("b", gpu) and list(workers.count_sharers().values()) == [3]


def test_only_what_has_changed_travels(tmp_path):
    for name in (
        "runs/a/run.json",
        "runs/a/notebooks/x.ipynb",
        "runs/a/.x.12.ipynb",
        "runs/b/weights.bin",
        "cache/c",
    ):
        write_piece(str(tmp_path), name, 0, b"12345")
    before = list_files(tmp_path)
    assert list(before) == ["runs/a/notebooks/x.ipynb", "runs/a/run.json", "runs/b/weights.bin"]
    assert list(list_files(tmp_path, ["runs/b", "runs/none"])) == ["runs/b/weights.bin"]
    (tmp_path / "runs/b/weights.bin").unlink()
    write_piece(str(tmp_path), "runs/a/run.json", 5, b"6")
    write_piece(str(tmp_path), "runs/a/new.csv", 0, b"")
    changed, removed = find_changes(before, list_files(tmp_path))
    assert sorted(changed) == ["runs/a/new.csv", "runs/a/run.json"] and removed == [
        "runs/b/weights.bin"
    ]
    assert read_piece(str(tmp_path), "runs/a/run.json", 2) == b"3456"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "runs/../../x"])
def test_no_file_leaves_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of"):
        place_of(tmp_path / "reports", name)

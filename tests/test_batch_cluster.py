"""What a cluster file says, who gets the next task, and which files travel: without a cluster."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from vitlab.batch.cluster import build_cluster, check_versions, describe_cluster, read_cluster_file
from vitlab.batch.files import find_changes, list_files, place_of, read_piece, write_piece
from vitlab.batch.probe import probe_worker
from vitlab.batch.workers import Workers
from vitlab.cli import app


def test_without_a_scheduler_dask_is_not_even_loaded():
    code = (
        "import sys\nfrom vitlab.cli import app\ntry: app(['batch', '--help'])\nexcept SystemExit: pass\n"
        "import vitlab.batch.schedule, vitlab.batch.local\n"
        "print('distributed' in sys.modules or 'dask' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--scheduler" in shown and shown.splitlines()[-1] == "False"


def test_workers_of_this_machine_and_of_a_cluster_are_not_mixed(tmp_path):
    result = CliRunner().invoke(app, ["batch", str(tmp_path / "toy.yml"), "--workers", "2", "--scheduler", "tcp://10.0.0.5:8786"])
    assert result.exit_code == 2 and "--workers is for this machine, --scheduler for a cluster" in result.stderr


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
    assert script.index("activate") < script.index("distributed.cli.dask_worker") < script.index("--resources GPU=1")
    assert describe_cluster("tcp://10.0.0.5:8786") == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster: [", r"is not YAML"),
        ("jobs: 3", r"cluster.yml must have the keys cluster, jobs, patience, options; at least `cluster: slurm`"),
        ("cluster: slrum", r"unknown cluster in cluster.yml: 'slrum'. Did you mean slurm"),
        ("{cluster: slurm, job: 3}", r"unknown key in cluster.yml: 'job'. Did you mean jobs"),
        ("{cluster: slurm, jobs: many}", r"jobs in cluster.yml must be a whole number above 0; it is 'many'"),
        ("{cluster: slurm, options: [queue]}", r"options in cluster.yml must be written as name: value"),
        ("{cluster: slurm, options: {queue: gpu}}", r"SLURMCluster does not take these options: .*how much cores"),
    ],
)
def test_mistakes_in_a_cluster_file(tmp_path, text, message):
    file = tmp_path / "cluster.yml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        build_cluster(read_cluster_file(str(file)))


def test_versions_are_told_apart_by_their_code_too():
    here = probe_worker()
    assert here["version"] and len(here["code"]) == 8 and here["cores"]["count"] >= 1
    check_versions({"tcp://a:1": here})
    others = {"tcp://b:1": here | {"code": "deadbeef"}, "tcp://c:1": here | {"version": None}, "tcp://d:1": OSError("no")}
    with pytest.raises(ValueError) as error:
        check_versions({"tcp://a:1": here} | others)
    told = str(error.value)
    assert "tcp://a:1" not in told and f"worker tcp://b:1 has {here['version']} (code deadbeef)" in told
    assert "worker tcp://c:1 has no vitlab" in told and "worker tcp://d:1 has no answer (OSError: no)" in told


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
    return Workers(SimpleNamespace(scheduler_info=lambda n_workers: {"workers": there}), found)


def test_a_task_goes_where_a_place_is_free(workers):
    gpu = {"GPU": 1.0}
    assert set(workers.known) == {"a", "b"} and workers.refused == {"c"} and workers.have_gpu()
    assert workers.find_free({}, []) == "a"
    assert workers.find_free(gpu, []) == "a"
    assert workers.find_free(gpu, [("a", gpu)]) is None  # one at a time, though the worker has a thread left
    assert workers.find_free({}, [("a", gpu), ("b", {})]) == "a"
    assert workers.find_free({}, [("a", gpu), ("a", {})]) == "b"
    assert workers.find_free({}, [("a", gpu), ("a", {}), ("b", {})]) is None
    assert workers.find_free({}, [("gone", {}), ("gone", {}), ("b", {})]) == "a"
    assert not workers.offers("b", gpu) and list(workers.count_sharers().values()) == [3]


def test_only_what_has_changed_travels(tmp_path):
    for name in ("runs/a/run.json", "runs/a/notebooks/x.ipynb", "runs/a/.x.12.ipynb", "runs/b/weights.bin", "cache/c"):
        write_piece(str(tmp_path), name, 0, b"12345")
    before = list_files(tmp_path)
    assert list(before) == ["runs/a/notebooks/x.ipynb", "runs/a/run.json", "runs/b/weights.bin"]
    assert list(list_files(tmp_path, ["runs/b", "runs/none"])) == ["runs/b/weights.bin"]
    (tmp_path / "runs/b/weights.bin").unlink()
    write_piece(str(tmp_path), "runs/a/run.json", 5, b"6")
    write_piece(str(tmp_path), "runs/a/new.csv", 0, b"")
    changed, removed = find_changes(before, list_files(tmp_path))
    assert sorted(changed) == ["runs/a/new.csv", "runs/a/run.json"] and removed == ["runs/b/weights.bin"]
    assert read_piece(str(tmp_path), "runs/a/run.json", 2) == b"3456"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "runs/../../x"])
def test_no_file_leaves_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of"):
        place_of(tmp_path / "reports", name)

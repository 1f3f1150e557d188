"""What comes home from a worker with a folder of its own: a run as a whole or not at all."""

import os
import shutil
import time

import pytest

from tests.child_processes import fork, reap, wait_until
from tests.test_run_folders import kill, kill_at, needs_fork
from vitlab.batch import post
from vitlab.batch.files import find_changes, list_files
from vitlab.run_folders import RunBusy, hold, let_go
from vitlab.runs import Run, find_runs

COPY = "notebooks/03_finetune.ipynb"


class Client:
    """Calls the function here, as the worker would; fails at call number `fails`."""

    def __init__(self, fails=0):
        self.calls, self.fails = 0, fails

    def run(self, function, *arguments, workers):
        self.calls += 1
        if self.calls == self.fails:
            raise OSError("the connection is gone")
        return {workers[0]: function(*arguments)}


def make(marker):
    run = Run.create(name="x", dataset="digits", marker=marker)
    run.write_json("a.json", {"marker": marker})
    run.write_text("b.txt", marker)
    run.write_text(f"only-{marker}.txt", marker)
    run.finish(["a.json", "b.txt"])
    (run.path / "notebooks").mkdir(exist_ok=True)
    (run.path / COPY).write_text(marker)
    return run


@pytest.fixture
def worker(reports_folder, tmp_path, monkeypatch):
    """Has something done on a worker that was sent the runs of the reports folder; gives what it
    has left there.
    """

    def leave(work, sent=True):
        there = tmp_path / "desk" / "reports"
        shutil.rmtree(there, ignore_errors=True)
        (there / "runs").mkdir(parents=True)
        if sent:
            post.send_files(Client(), "w", str(there), reports_folder, ["runs"])
        before = list_files(there)
        with monkeypatch.context() as patch:
            patch.setenv("VITLAB_REPORTS", str(there))
            work()
        files, removed = find_changes(before, list_files(there))
        return {"worker": "w", "folder": str(there), "files": files, "removed": removed}

    return leave


def fetch(left, reports, client=None):
    post.fetch_files(
        client or Client(),
        left,
        reports,
        next(name for name in left["files"] if name.endswith(".ipynb")),
    )


def check_whole(marker, folder):
    (run,) = find_runs("digits")
    assert (
        run.path == folder
        and run.parameters["marker"] == run.read_json("a.json")["marker"] == marker
    )
    assert run.files() == ["a.json", "b.txt", "notebooks", f"only-{marker}.txt", "run.json"]
    assert (folder / "b.txt").read_text() == marker


def test_a_run_made_on_a_worker_replaces_the_one_at_home(worker, reports_folder):
    old = make("old")
    (old.path / "notebooks" / "04_evaluate.ipynb").write_text("old")
    left = worker(lambda: make("new"))
    assert find_runs("digits")[0].parameters["marker"] == "old"
    fetch(left, reports_folder)
    check_whole("new", old.path)
    assert (old.path / COPY).read_text() == "new" and (
        old.path / "notebooks" / "04_evaluate.ipynb"
    ).read_text() == "old"
    assert [path.name for path in old.path.parent.iterdir() if path.is_dir()] == [
        "x"
    ] and not os.path.exists(left["folder"])


@pytest.mark.parametrize("fails", range(2, 8))
def test_a_fetch_that_fails_half_way_leaves_the_old_run_whole(worker, reports_folder, fails):
    """The first call asks which run it is; then come three files, run.json and the executed copy;
    the last one clears up.
    """
    folder, left = make("old").path, worker(lambda: make("new"))
    with pytest.raises(OSError, match="connection is gone"):
        fetch(left, reports_folder, Client(fails))
    check_whole("old" if fails < 6 else "new", folder)
    fetch(left, reports_folder)
    check_whole("new", folder)


@needs_fork
def test_a_batch_killed_while_it_fetches_leaves_the_old_run_or_the_new_one(worker, reports_folder):
    step, killed, seen = 0, True, []
    while killed:
        step += 1
        shutil.rmtree(reports_folder, ignore_errors=True)
        folder, left = make("old").path, worker(lambda: make("new"))
        child = fork(lambda step=step, left=left: (kill_at(step), fetch(left, reports_folder)))
        killed = os.WIFSIGNALED(reap(child))
        check_whole(find_runs("digits")[0].parameters["marker"], folder)
        seen.append(find_runs("digits")[0].parameters["marker"])
    assert seen == sorted(seen, reverse=True) and seen.count("old") > 10 and "new" in seen


def test_later_steps_add_to_the_run_that_is_there(worker, reports_folder):
    folder = make("old").path

    def evaluate():
        run = find_runs("digits")[0]
        run.write_json("metrics.json", {"accuracy": 1})
        run.record(evaluated=True)
        (run.path / "b.txt").write_text("changed")
        (run.path / "notebooks" / "04_evaluate.ipynb").write_text("04")

    fetch(worker(evaluate), reports_folder)
    run = Run(folder)
    assert run.facts == {"evaluated": True} and run.read_json("metrics.json") == {"accuracy": 1}
    assert run.files() == [
        "a.json",
        "b.txt",
        "metrics.json",
        "notebooks",
        "only-old.txt",
        "run.json",
    ]
    assert (folder / "b.txt").read_text() == "changed" and (folder / COPY).read_text() == "old"
    assert (folder / "notebooks" / "04_evaluate.ipynb").read_text() == "04"


def test_a_first_run_and_a_failed_one_come_home(worker, reports_folder):
    def fail():
        run = Run.create(name="x", dataset="digits", marker="first")
        run.fail(RuntimeError("out of memory"))
        (run.path / "notebooks").mkdir()
        (run.path / COPY).write_text("first")

    fetch(worker(fail), reports_folder)
    assert [run.info["error"] for run in find_runs("digits", "failed")] == [
        "RuntimeError: out of memory"
    ]
    left = worker(lambda: make("new"))
    fetch(left, reports_folder)
    check_whole("new", find_runs("digits")[0].path)


@needs_fork
def test_a_run_that_another_process_trains_is_not_replaced(worker, reports_folder):
    folder, left = make("old").path, worker(lambda: make("new"))
    held = folder.parent / "held"

    def hold_for_a_while():
        hold(folder)
        held.touch()
        time.sleep(60)

    child = fork(hold_for_a_while)
    try:
        wait_until(held.exists)
        with pytest.raises(RunBusy):
            fetch(left, reports_folder)
        check_whole("old", folder)
    finally:
        kill(child)
    held.unlink()
    let_go(folder)
    fetch(left, reports_folder)
    check_whole("new", folder)

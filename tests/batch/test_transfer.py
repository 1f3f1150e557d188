"""What comes back from a worker with a folder of its own: a run as a whole or not at all."""

import os
import shutil
import time

import pytest

from tests.child_processes import fork, reap, wait_until
from tests.test_run_folders import kill, kill_at, needs_fork
from vitlab.batch.transfer import (
    find_place,
    list_files,
    read_changes,
    read_files,
    store_changes,
    write_files,
)
from vitlab.run_folders import RunBusy, hold, let_go
from vitlab.runs import Run, find_runs

COPY = "notebooks/03_finetune.ipynb"


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
def changes_of(reports_folder, tmp_path, monkeypatch):
    """Works on a worker that was sent the runs of the reports folder; gives the changes."""

    def do(work):
        there = tmp_path / "worker" / "reports"
        shutil.rmtree(there, ignore_errors=True)
        write_files(there, read_files(reports_folder, list_files(reports_folder)))
        before = list_files(there)
        with monkeypatch.context() as patch:
            patch.setenv("VITLAB_REPORTS", str(there))
            work()
        return read_changes(there, before)

    return do


def store(reports_folder, changes):
    copy = next(name for name in changes.files if name.endswith(".ipynb"))
    store_changes(reports_folder, changes, copy)


def check_whole(marker, folder):
    (run,) = find_runs("digits")
    assert run.path == folder
    assert run.parameters["marker"] == run.read_json("a.json")["marker"] == marker
    assert run.files() == ["a.json", "b.txt", "notebooks", f"only-{marker}.txt", "run.json"]
    assert (folder / "b.txt").read_text() == marker


def test_a_run_made_on_a_worker_replaces_the_one_here(changes_of, reports_folder):
    old = make("old")
    (old.path / "notebooks" / "04_evaluate.ipynb").write_text("old")
    changes = changes_of(lambda: make("new"))
    check_whole("old", old.path)
    store(reports_folder, changes)
    check_whole("new", old.path)
    assert (old.path / COPY).read_text() == "new"
    assert (old.path / "notebooks" / "04_evaluate.ipynb").read_text() == "old"
    assert [path.name for path in old.path.parent.iterdir() if path.is_dir()] == ["x"]


@needs_fork
def test_a_batch_killed_while_it_stores_a_run_leaves_the_old_one_or_the_new_one(
    changes_of, reports_folder
):
    folder, seen, killed, step = make("old").path, [], True, 0
    changes = changes_of(lambda: make("new"))
    backup = reports_folder.with_name("backup")
    shutil.copytree(reports_folder, backup)
    while killed:
        step += 1
        shutil.rmtree(reports_folder)
        shutil.copytree(backup, reports_folder)
        child = fork(lambda step=step: (kill_at(step), store(reports_folder, changes)))
        killed = os.WIFSIGNALED(reap(child))
        seen.append(find_runs("digits")[0].parameters["marker"])
        check_whole(seen[-1], folder)
    assert seen == sorted(seen, reverse=True)
    assert seen.count("old") > 10 and "new" in seen


def test_later_steps_add_to_the_run_that_is_here(changes_of, reports_folder):
    folder = make("old").path

    def evaluate():
        run = find_runs("digits")[0]
        run.write_json("metrics.json", {"accuracy": 1})
        run.record(evaluated=True)
        (run.path / "b.txt").write_text("changed")
        (run.path / "a.json").unlink()
        (run.path / "notebooks" / "04_evaluate.ipynb").write_text("04")

    changes = changes_of(evaluate)
    assert len(changes.files) == 4 and len(changes.removed) == 1, "only changes travel"
    store(reports_folder, changes)
    run = Run(folder)
    assert run.facts == {"evaluated": True} and run.read_json("metrics.json") == {"accuracy": 1}
    assert run.files() == ["b.txt", "metrics.json", "notebooks", "only-old.txt", "run.json"]
    assert (folder / "b.txt").read_text() == "changed" and (folder / COPY).read_text() == "old"


def test_a_failed_run_comes_back_and_is_replaced(changes_of, reports_folder):
    def fail():
        run = Run.create(name="x", dataset="digits", marker="first")
        run.fail(RuntimeError("out of memory"))
        (run.path / "notebooks").mkdir()
        (run.path / COPY).write_text("first")

    store(reports_folder, changes_of(fail))
    (failed,) = find_runs("digits", "failed")
    assert failed.info["error"] == "RuntimeError: out of memory"
    store(reports_folder, changes_of(lambda: make("new")))
    check_whole("new", failed.path)


@needs_fork
def test_a_run_that_another_process_trains_is_not_replaced(changes_of, reports_folder):
    folder, changes = make("old").path, changes_of(lambda: make("new"))
    held = folder.parent / "held"

    def hold_for_a_while():
        hold(folder)
        held.touch()
        time.sleep(60)

    child = fork(hold_for_a_while)
    try:
        wait_until(held.exists)
        with pytest.raises(RunBusy):
            store(reports_folder, changes)
        check_whole("old", folder)
    finally:
        kill(child)
    let_go(folder)
    store(reports_folder, changes)
    check_whole("new", folder)


def test_hidden_files_and_those_beside_the_runs_stay_where_they_are(tmp_path):
    for name in ("runs/a/run.json", "runs/a/.x.12.ipynb", "runs/b/weights.bin", "cache/c"):
        write_files(tmp_path, {name: (b"1", 0)})
    assert list(list_files(tmp_path)) == ["runs/a/run.json", "runs/b/weights.bin"]
    assert list(list_files(tmp_path, ["runs/b", "runs/none"])) == ["runs/b/weights.bin"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "runs/../../x"])
def test_no_file_leaves_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of"):
        find_place(tmp_path / "reports", name)

"""A finished run stays until its replacement is finished, whatever is killed when; one process at a
time trains a run.
"""

import json
import os
import shutil
import signal
import sys
import time
import unicodedata

import pytest

from tests.child_processes import fork, reap, wait_until
from vitlab import run_folders
from vitlab.errors import MissingFileError, UserError
from vitlab.run_folders import (
    RunBusy,
    building_folder,
    canonical_dataset,
    check_run_name,
    dataset_folder,
    is_held,
    list_runs,
    read_info,
    run_name,
    run_path,
)
from vitlab.run_tables import run_table
from vitlab.runs import Run, find_runs
from vitlab.training.experiment import find_or_train
from vitlab.training.tune import study_path

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
FILES = ("a.json", "b.txt")


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    monkeypatch.setattr("vitlab.runs._commit", lambda: "")


def make(marker, name="x"):
    run = Run.create(name=name, dataset="digits", marker=marker)
    run.write_json("a.json", {"marker": marker})
    run.write_text("b.txt", marker)
    run.finish(FILES)
    return run


def kill(child):
    os.kill(child, signal.SIGKILL)
    reap(child)


def kill_at(step):
    """Have this process killed before it touches a file for the so-manieth time."""
    left = [step]

    def hook(event, arguments):
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_the_finished_run_stays_until_the_new_one_is_finished():
    old = make("old")
    old.write_json("metrics.json", {})
    (old.path / "notebooks").mkdir()
    (old.path / "notebooks" / "03_finetune.ipynb").write_text("{}")
    new = Run.create(name="x", dataset="digits", marker="new")
    assert (
        new.path != old.path
        and new.name == "x"
        and find_runs("digits")[0].parameters["marker"] == "old"
    )
    new.write_text("b.txt", "new")
    with pytest.raises(UserError, match=r"run x is not complete: a\.json is missing"):
        new.finish(FILES)
    assert find_runs("digits")[0].parameters["marker"] == "old"
    new.write_json("a.json", {})
    new.finish(FILES)
    assert new.path == old.path and new.files() == ["a.json", "b.txt", "notebooks", "run.json"]
    assert (
        find_runs("digits")[0].parameters["marker"] == "new"
        and (new.path / "b.txt").read_text() == "new"
    )
    assert [path.name for path in new.path.parent.iterdir() if path.is_dir()] == ["x"]


def test_a_failure_leaves_the_finished_run_as_it_is():
    make("old")
    Run.create(name="x", dataset="digits", marker="new").fail(RuntimeError("out of memory"))
    assert [run.parameters["marker"] for run in find_runs("digits")] == ["old"]
    make("third")
    assert [run.parameters["marker"] for run in find_runs("digits")] == ["third"]


@needs_fork
def test_killed_before_each_step_there_is_always_the_old_run_or_the_new_one(reports_folder):
    seen, step, killed = [], 0, True
    while killed:
        step += 1
        shutil.rmtree(reports_folder, ignore_errors=True)
        folder = make("old").path
        (folder / "notebooks").mkdir()
        (folder / "notebooks" / "03.ipynb").write_text("{}")
        child = fork(lambda step=step: (kill_at(step), make("new")))
        killed = os.WIFSIGNALED(reap(child))
        if step % 2:  # a batch makes this folder before the notebook that recovers the run
            (folder / "notebooks").mkdir(parents=True, exist_ok=True)
        (run,) = find_runs("digits")
        marker = run.parameters["marker"]
        assert (
            run.path == folder
            and run.read_json("a.json") == {"marker": marker}
            and (folder / "b.txt").read_text() == marker
        )
        assert (folder / "notebooks" / "03.ipynb").is_file()
        seen.append(marker)
        assert (
            make("third").path == folder and find_runs("digits")[0].parameters["marker"] == "third"
        )
        assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["x"]
    assert step > 20 and seen == sorted(seen, reverse=True), (
        "first the old one, from some step on the new one"
    )
    assert seen.count("new") >= 4, "the renames are among the steps"


@needs_fork
def test_a_second_process_is_refused_at_once_while_the_first_trains(tmp_path):
    ready = tmp_path / "ready"

    def train():
        Run.create(name="x", dataset="digits", epochs=5)
        ready.touch()
        time.sleep(60)

    child = fork(train)
    try:
        wait_until(ready.exists)
        before = {
            path: path.read_bytes() for path in run_path(name="x", dataset="digits").iterdir()
        }
        with pytest.raises(
            RunBusy, match=f"process {child} on .* is training run x in .*choose another run_name"
        ):
            Run.create(name="x", dataset="digits", epochs=1)
        assert before == {
            path: path.read_bytes() for path in run_path(name="x", dataset="digits").iterdir()
        }
        assert Run.create(name="y", dataset="digits").status == "running", "another run is free"
        assert is_held(run_path(name="x", dataset="digits"))
    finally:
        kill(child)
    run = Run.create(name="x", dataset="digits", epochs=1)
    assert run.parameters["epochs"] == 1, "a dead process holds nothing"
    assert Run.create(name="x", dataset="digits", epochs=2).parameters["epochs"] == 2, (
        "the same kernel may start again"
    )


@needs_fork
@pytest.mark.parametrize("finished_before", [False, True])
def test_other_processes_of_the_same_training_join_the_run(finished_before, tmp_path):
    if finished_before:
        make("old")
    run = Run.create(name="x", dataset="digits", marker="new")
    joined = tmp_path / "joined"
    reap(
        fork(
            lambda: joined.write_text(str(Run.join(name="x", dataset="digits", marker="new").path))
        )
    )
    assert (
        joined.read_text() == str(run.path)
        and (building_folder(run.place) == run.path) == finished_before
    )
    child = fork(lambda: time.sleep(60))  # a child that outlives `finish` does not keep the lock
    run.finish()
    try:
        assert reap(fork(lambda: make("third"))) == 0
        assert find_runs("digits")[0].parameters["marker"] == "third"
    finally:
        kill(child)


@needs_fork
def test_who_needs_a_run_that_another_process_trains_waits_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vitlab.training.experiment.BUSY_SECONDS", 0.05)
    ready = tmp_path / "ready"

    def train():
        run = Run.create(name="x", dataset="digits", marker="theirs")
        ready.touch()
        time.sleep(0.5)
        run.finish()

    child = fork(train)
    wait_until(ready.exists)
    run = find_or_train(lambda: find_runs("digits"), lambda: make("ours"))
    reap(child)
    assert run.parameters["marker"] == "theirs" and "Waiting: process" in capsys.readouterr().out


def test_locks_are_given_back():
    run = make("old")
    failed = Run.create(name="y", dataset="digits")
    failed.fail(ValueError())
    held = {path for _, path in run_folders._held}
    assert not is_held(run.path) and not is_held(failed.path) and not {run.path, failed.path} & held


@pytest.mark.parametrize("kind", ["file", "link", "foreign folder"])
def test_only_a_run_is_replaced(kind, tmp_path):
    path = run_path(name="x", dataset="digits")
    path.parent.mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data.csv").touch()
    if kind == "file":
        path.touch()
    elif kind == "link":
        path.symlink_to(tmp_path / "precious")
    else:
        shutil.copytree(tmp_path / "precious", path)
    with pytest.raises(UserError, match=r"nothing was written\. Choose another run_name"):
        Run.create(name="x", dataset="digits")
    assert (tmp_path / "precious" / "data.csv").exists() and [
        item.name for item in path.parent.iterdir()
    ] == ["x"]


def test_a_folder_with_nothing_but_executed_notebooks_becomes_a_run():
    folder = run_path(name="x", dataset="digits") / "notebooks"
    folder.mkdir(parents=True)
    assert Run.create(name="x", dataset="digits").path == folder.parent


WHOLE = {"parameters": {}, "status": "done", "start_s": 1, "facts": {}}
WRONG = ["[]", "{", "[" * 100_000, b"\xff\xfe\x00"]
WRONG += [json.dumps(WHOLE | change) for change in ({"parameters": []}, {"files": 3})]
WRONG += [json.dumps({"parameters": {}, "facts": {}, "start_s": 1})]


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_a_run_json_that_says_something_else_is_named_and_left_out(text):
    from vitlab.deploy import find_run

    make("old", "whole")
    bad = make("old", "bad")
    (bad.path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"run\.json is damaged .*remove it, or make it again"):
        read_info(bad.path)
    with pytest.warns(UserWarning, match=r"bad.run\.json is damaged"):
        assert [run.name for run in find_runs("digits")] == ["whole"]
    table = run_table("digits").set_index("run")["status"]
    assert table[f"{bad.path.parent.name}/bad"] == "damaged" and len(table) == 2
    assert find_run("whole").name == "whole"
    with pytest.raises(UserError, match="damaged"):
        find_run("bad")
    assert make("again", "bad").status == "done", "it may be made again"


def test_a_folder_without_run_json_is_not_a_run(tmp_path):
    with pytest.raises(MissingFileError, match=r"holds no run\.json"):
        Run(tmp_path)
    assert list_runs() == list_runs("digits") == []


def test_a_file_system_without_locks_is_no_obstacle(monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(run_folders.FileLock, "acquire", refuse)
    assert make("old").status == "done" and make("new").parameters["marker"] == "new"


# names

BAD_NAMES = [".", "..", "../../other", "a/b", "a\\b", "/tmp/x", ".hidden", " ", "x ", "x.", "C:"]
BAD_NAMES += ["a\nb", "a\0b", "\udce9", 5, "n" * 201]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_run_name_is_one_plain_folder_name_or_refused_before_anything_is_written(
    name, reports_folder, tmp_path
):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept.txt").touch()
    with pytest.raises(UserError, match=r"run_name .*write one plain folder name"):
        Run.create(name=name, dataset="digits")
    with pytest.raises(UserError, match="study_name"):
        study_path("digits", name)
    assert not reports_folder.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["other", "kept.txt"]


@pytest.mark.parametrize("name", ["first try", "ünï_猫-1.2", "a", "n" * 200])
def test_plain_names_are_folders(name):
    run = Run.create(name=name, dataset="digits")
    run.finish()
    assert run.path.name == name == run.name and [run.name for run in find_runs("digits")] == [name]


def test_a_made_name_is_readable_and_depends_on_every_parameter():
    parameters = {"dataset": "elpv", "model": "hybrid_vit", "seed": 1, "epochs": 3}
    name = run_name(parameters)
    assert name.startswith("hybrid_vit-seed1-") and len(name.rpartition("-")[2]) == 8
    assert name == run_name(dict(reversed(parameters.items())))
    assert name != run_name(parameters | {"epochs": 4})
    variant = run_name({"model": "m", "variant": "two words", "seed": 0})
    assert variant.startswith("m-two_words-seed0-")
    for model in ("..", ".hidden", "m" * 400, "猫", "../../x", "hf_hub:timm/some model"):
        assert check_run_name(run_name({"model": model, "variant": "v" * 400, "seed": "s" * 400}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("folder:/data/a/b", "folder:/data/a_b"),
        ("hub:a/b", "hub:a_b"),
        ("folder:/twins/猫", "folder:/twins/犬"),
        ("folder:/data/Cats", "folder:/data/cats"),
        ("elpv", "elpv:grade"),
        ("folder:/" + "x" * 270 + "/a", "folder:/" + "x" * 270 + "/b"),
    ],
)
def test_two_data_sets_have_two_folders_and_never_see_each_others_runs(one, other):
    assert dataset_folder(one).lower() != dataset_folder(other).lower()
    for name in (one, other):
        assert len(dataset_folder(name)) <= 80 and dataset_folder(name).isascii()
    Run.create(name="same", dataset=one, model="m").finish()
    assert find_runs(other) == []
    Run.create(name="same", dataset=other, model="m").finish()
    assert [run.parameters["dataset"] for run in find_runs(one)] == [one]


def test_one_data_set_in_several_spellings_has_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = f"folder:{tmp_path / 'cats'}"
    for spelling in ("folder:cats", "folder:./cats/", "folder:x/../cats", f"{whole}/"):
        assert canonical_dataset(spelling) == whole
        assert canonical_dataset(f"planted:{spelling}") == f"planted:{whole}"
    for name in ("hub:a/b", "elpv:grade"):
        assert canonical_dataset(name) == name
    composed, decomposed = (unicodedata.normalize(form, "folder:/Käse") for form in ("NFC", "NFD"))
    assert composed != decomposed and dataset_folder(composed) == dataset_folder(decomposed)
    Run.create(dataset="folder:cats").finish()
    monkeypatch.chdir("/")
    assert find_runs("folder:cats") == [] and len(find_runs(whole)) == 1


def test_runs_of_another_data_set_in_the_same_folder_are_not_used_and_not_replaced(monkeypatch):
    """As if two names had the same hash."""
    monkeypatch.setattr("vitlab.run_folders.dataset_folder", lambda dataset: "same")
    Run.create(name="x", dataset="one").finish()
    assert find_runs("other") == [] and len(find_runs("one")) == 1
    with pytest.raises(UserError, match="is a run of one, not of other; nothing was written"):
        Run.create(name="x", dataset="other")
    assert len(find_runs("one")) == 1

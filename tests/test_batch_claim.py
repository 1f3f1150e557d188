"""Who holds which runs, in one process and after the end of another one."""

import os

import pytest

from tests.child_processes import start_python
from vitlab.batch.claim import CLAIM, claim_runs


def test_the_same_batch_and_shared_runs_are_refused_and_others_are_not(tmp_path):
    one, two = tmp_path / "runs" / "batches" / "one", tmp_path / "runs" / "batches" / "two"
    with claim_runs(one, ["runs/digits/a", "runs/digits/b"]):
        for folder, runs, place in (
            (one, [], one),
            (two, ["runs/digits/c", "runs/digits/b"], tmp_path / "runs/digits/b"),
        ):
            with pytest.raises(ValueError) as error, claim_runs(folder, runs):
                pass
            assert f"another batch (pid {os.getpid()} on " in str(error.value)
            assert str(error.value).endswith(f") is running over {place}; wait for it, or end it")
        with claim_runs(two, ["runs/digits/c"]):
            assert (two / CLAIM).is_file()
    assert not list(tmp_path.rglob(CLAIM))
    with claim_runs(two, ["runs/digits/b"]), pytest.raises(RuntimeError), claim_runs(one, []):
        raise RuntimeError
    with claim_runs(one, []):
        pass


def test_a_claim_ends_with_its_process(tmp_path):
    one, two = tmp_path / "runs" / "batches" / "one", tmp_path / "runs" / "batches" / "two"
    code = (
        "import sys, time, pathlib\nfrom vitlab.batch.claim import claim_runs\nwith"
        f" claim_runs(pathlib.Path({str(one)!r}), ['runs/digits/a']):\n    print('held',"
        " flush=True)\n    time.sleep(60)"
    )
    with start_python(code) as holder:
        assert holder.stdout.readline() == "held\n"
        for folder, runs in ((one, []), (two, ["runs/digits/a"])):
            with (
                pytest.raises(ValueError, match=rf"another batch \(pid {holder.pid} on "),
                claim_runs(folder, runs),
            ):
                pass
    assert (one / CLAIM).is_file()
    for folder in (two, one):
        with claim_runs(folder, ["runs/digits/a"]):
            pass


def test_where_the_file_system_knows_no_locks_a_batch_runs(tmp_path, monkeypatch):
    def refuse(self, **options):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("vitlab.batch.claim.FileLock.acquire", refuse)
    with claim_runs(tmp_path / "runs" / "batches" / "one", ["runs/digits/a"]):
        pass

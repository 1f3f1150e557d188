"""The life of a run, and that its files are written whole."""

import pandas as pd
import pytest

from vitlab.files import atomic
from vitlab.run_folders import dataset_folder
from vitlab.runs import Run, find_runs


def test_life_of_a_run(reports_folder):
    run = Run.create(dataset="folder:/data/cats", model="vit_scratch", seed=0)
    assert run.path.parent == reports_folder / "runs" / dataset_folder("folder:/data/cats")
    assert run.status == "running" and find_runs("folder:/data/cats") == []
    run.record(train_s=12.5)
    run.finish()
    (found,) = find_runs("folder:/data/cats", model="vit_scratch")
    assert found.facts == {"train_s": 12.5} and found.info["peak_memory_mb"] > 0
    assert set(found.info["versions"]) >= {"python", "torch", "timm"}
    assert find_runs("folder:/data/cats", model="other") == []


def test_failed_run_is_no_result():
    run = Run.create(dataset="digits", model="m", seed=0)
    run.fail(ValueError("too few images"))
    assert find_runs("digits") == []
    assert find_runs("digits", status="failed")[0].info["error"] == "ValueError: too few images"


def test_same_parameters_make_room_but_keep_executed_notebooks():
    run = Run.create(dataset="digits", seed=0)
    run.write_json("metrics.json", {"accuracy": 1})
    (run.path / "notebooks").mkdir()
    (run.path / "notebooks" / "03_finetune.ipynb").write_text("{}")
    again = Run.create(dataset="digits", seed=0)
    assert again.path == run.path and again.files() == ["notebooks", "run.json"]
    assert (again.path / "notebooks" / "03_finetune.ipynb").exists()


@pytest.mark.parametrize("file", ["table.csv", "table.parquet"])
def test_tables_come_back_as_they_were(file):
    run = Run.create(dataset="digits", seed=0)
    table = pd.DataFrame({"sample_id": ["a", "b"], "label": ["None", "NA"], "value": [0.25, None]})
    run.write_table(file, table)
    pd.testing.assert_frame_equal(run.read_table(file), table)
    with pytest.raises(FileNotFoundError, match=r"holds no other.csv; it has .*table"):
        run.read_table("other.csv")


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [item.name for item in tmp_path.iterdir()] == [
        "result.json"
    ]


def test_a_file_that_is_cut_off_after_the_end_of_the_run_is_damage():
    run = Run.create(dataset="digits", model="m", seed=0)
    run.write_table("history.csv", pd.DataFrame({"epoch": range(50), "loss": 0.5}))
    run.finish(["history.csv"])
    whole = (run.path / "history.csv").read_bytes()
    assert Run(run.path).problem == "" and Run(run.path).info["sizes"] == {
        "history.csv": len(whole)
    }
    (run.path / "history.csv").write_bytes(whole[:100])
    assert Run(run.path).problem == f"history.csv is cut off (100 of {len(whole)} bytes)"
    (run.path / "history.csv").write_bytes(whole + b"50,0.4\n")
    assert Run(run.path).problem == ""

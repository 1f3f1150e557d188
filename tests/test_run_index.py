"""The index of runs says what the folders say, after a change, a removal, damage; and it is written only when there is need."""

import json
import os
import shutil

import pandas as pd
import pytest

from vitlab import run_index
from vitlab.run_index import FILE, index_runs, keep_runs, update_index, varied_columns
from vitlab.runs import Run, find_runs


@pytest.fixture
def runs(reports_folder):
    made = []
    for seed, (model, score) in enumerate([("a", 0.9), ("b", 0.7), ("a", 0.8)]):
        run = Run.create(name=f"{model}{seed}", dataset="digits", model=model, seed=seed, epochs=None, learning_rate=0.1 * seed)
        run.write_json("metrics.json", {"roc_auc": {"value": score, "low": score - 0.1, "high": score + 0.1}, "f1": 0.5})
        run.record(train_s=10 * seed, parameters=7)
        run.finish()
        run.info["start_s"] = 100 - seed  # the last made is the oldest
        (run.path / "run.json").write_text(json.dumps(run.info))
        made.append(run)
    return made


def test_a_row_a_run_with_all_it_says(runs, reports_folder):
    table = index_runs("digits")
    assert table["run"].tolist() == ["digits/a2", "digits/b1", "digits/a0"], "oldest first"
    row = table.iloc[2]
    assert (row["model"], row["seed"], row["draw"], row["status"], row["problem"]) == ("a", 0, "0", "done", "")
    assert (row["metrics.roc_auc"], row["metrics.roc_auc.low"], row["metrics.f1"]) == (0.9, 0.8, 0.5)
    assert (row["facts.parameters"], row["parameters.learning_rate"], row["parameters.epochs"]) == (7, 0.0, None)
    assert index_runs("elpv").empty and len(index_runs()) == 3
    assert (reports_folder / "runs" / FILE).is_file()


def test_what_changed_is_read_again_and_what_is_gone_goes(runs, monkeypatch, reports_folder):
    index_runs()
    read = []
    real = run_index._read_run
    monkeypatch.setattr(run_index, "_read_run", lambda path: read.append(path.name) or real(path))
    written = (reports_folder / "runs" / FILE).stat().st_ino
    index_runs()
    assert read == [] and (reports_folder / "runs" / FILE).stat().st_ino == written, "nothing to do, nothing written"
    runs[1].write_json("metrics.json", {"roc_auc": {"value": 0.71}})
    shutil.rmtree(runs[2].path)
    Run.create(name="new", dataset="elpv", model="c", seed=0)
    table = index_runs().set_index("run")
    assert sorted(read) == ["b1", "new"]
    assert list(table.index) == ["digits/b1", "digits/a0", "elpv/new"] or set(table.index) == {
        "digits/b1",
        "digits/a0",
        "elpv/new",
    }
    assert table.loc["digits/b1", "metrics.roc_auc"] == 0.71 and table.loc["elpv/new", "status"] == "running"


@pytest.mark.parametrize("text", ["", '{"status": "do', "[1, 2]", '{"status": "done"}'])
def test_a_damaged_run_is_a_row_that_says_so(runs, text):
    (runs[0].path / "run.json").write_text(text)
    row = index_runs().set_index("run").loc["digits/a0"]
    assert row["status"] == "damaged" and row["problem"].startswith("run.json")
    assert row["dataset"] == "digits"


def test_damaged_metrics_and_failures_are_told(runs):
    (runs[0].path / "metrics.json").write_text("{")
    runs[1].fail(ValueError("too few images"))
    table = index_runs().set_index("run")
    assert table.loc["digits/a0", "status"] == "done" and "metrics.json cannot be read" in table.loc["digits/a0", "problem"]
    assert pd.isna(table.loc["digits/a0", "metrics.roc_auc"])
    assert table.loc["digits/b1", ["status", "problem"]].tolist() == ["failed", "ValueError: too few images"]


def test_a_row_that_could_not_be_read_is_tried_again(runs, monkeypatch):
    """The disk did not answer, say: the files are the same as they were, and their stamp is."""

    def refuse(text):
        raise OSError("stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(run_index.json, "loads", refuse)
        assert "stale file handle" in update_index()["problem"][0]
    assert update_index()["problem"].tolist() == ["", "", ""]
    assert set(index_runs()["status"]) == {"done"}


def test_a_folder_whose_name_is_no_utf8_is_a_row_too(runs, reports_folder):
    folder = os.fsencode(reports_folder / "runs" / "digits") + b"/caf\xe9"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes no such name")
    shutil.copy(runs[0].path / "run.json", folder + b"/run.json")
    assert "digits/caf\\udce9" in index_runs()["run"].tolist()
    assert len(index_runs()) == 4


def test_runs_that_notebook_04_has_not_seen_are_scored_from_their_predictions(runs):
    (runs[0].path / "metrics.json").unlink()
    table = pd.DataFrame(
        {
            "sample_id": list("abcd"),
            "split": "test",
            "group": "all",
            "label": ["x", "x", "y", "y"],
            "pred": ["x", "y", "y", "y"],
            "logit_x": [1.0, -1.0, -1.0, -2.0],
            "logit_y": 0.0,
            "prob_x": [0.75, 0.25, 0.25, 0.125],
            "prob_y": [0.25, 0.75, 0.75, 0.875],
        }
    )
    runs[0].write_table("predictions.parquet", table)
    assert index_runs().set_index("run").loc["digits/a0", "metrics.accuracy"] == 0.75
    (runs[0].path / "predictions.parquet").write_bytes(b"torn")
    assert "predictions.parquet cannot be scored" in index_runs().set_index("run").loc["digits/a0", "problem"]


def test_a_damaged_or_foreign_index_is_made_anew(runs, reports_folder):
    whole = index_runs()
    file = reports_folder / "runs" / FILE
    for content in (b"no parquet", file.read_bytes()[:200]):
        file.write_bytes(content)
        pd.testing.assert_frame_equal(index_runs(), whole)
    pd.DataFrame({"a": [1]}).to_parquet(file)
    pd.testing.assert_frame_equal(index_runs(), whole)
    assert [path.name for path in file.parent.iterdir()] == ["digits", FILE] or not list(file.parent.glob(".*"))


def test_an_index_that_cannot_be_written_is_no_obstacle(runs, monkeypatch, caplog):
    def refuse(path):
        raise PermissionError("read-only")

    monkeypatch.setattr(run_index, "atomic", refuse)
    assert len(index_runs()) == 3 and "cannot be written" in caplog.text


def test_no_runs_at_all(reports_folder):
    assert index_runs().empty and update_index().empty and not reports_folder.exists()
    (reports_folder / "runs" / "digits" / "no_run").mkdir(parents=True)
    assert index_runs().empty


def test_keeping_runs_by_a_condition(runs):
    table = index_runs()
    assert keep_runs(table, " ") is table
    assert keep_runs(table, "model == 'a' and `metrics.roc_auc` > 0.85")["run"].tolist() == ["digits/a0"]
    with pytest.raises(ValueError, match=r"`metrics\.rocauc` > 0.*name 'metrics\.rocauc' is not defined.*`metrics\.roc_auc`"):
        keep_runs(table, "`metrics.rocauc` > 0")
    with pytest.raises(ValueError, match="cannot keep the runs with 'model =='"):
        keep_runs(table, "model ==")


def test_varied_columns_come_by_what_goes_with_the_score():
    table = pd.DataFrame(
        {
            "model": ["a", "b"] * 8,
            "parameters.model": ["a", "b"] * 8,
            "parameters.mixup": [0.0, 0.0, 0.2, 0.2] * 4,
            "parameters.epochs": 5,
            "parameters.learning_rate": [0.1 * i for i in range(16)],
            "metrics.roc_auc": [0.9, 0.5] * 8,
        }
    )
    found = varied_columns(table, "metrics.roc_auc")
    assert found[0] == "model" and set(found) == {"model", "parameters.mixup", "parameters.learning_rate"}
    assert varied_columns(table, "metrics.roc_auc", most=1) == ["model"]
    assert varied_columns(table[:1], "metrics.roc_auc") == []


def test_find_runs_passes_over_a_damaged_run_and_says_so(runs):
    (runs[0].path / "run.json").write_text("{")
    with pytest.warns(UserWarning, match=r"run\.json is damaged .*remove the folder, or run it again"):
        assert [run.name for run in find_runs("digits")] == ["a2", "b1"]
    with pytest.raises(ValueError, match="is damaged"):
        Run(runs[0].path)

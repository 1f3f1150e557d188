"""What notebook 08 reads of all runs: the runs that it compares, those it leaves out, and the table
of all.
"""

import json

import pandas as pd
import pytest

from vitlab.run_folders import dataset_folder
from vitlab.run_tables import (
    MAX_VARIED,
    compare,
    evaluate,
    keep_runs,
    latest_runs,
    run_table,
    varied_columns,
)
from vitlab.runs import Run, find_runs

PLACE = dataset_folder("digits")
PREDICTIONS = pd.DataFrame(
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


@pytest.fixture
def runs():
    made = []
    for seed, (model, score) in enumerate([("a", 0.9), ("b", 0.7), ("a", 0.8)]):
        options = {"epochs": None, "learning_rate": 0.1 * seed}
        run = Run.create(name=f"{model}{seed}", dataset="digits", model=model, seed=seed, **options)
        interval = {"value": score, "low": score - 0.1, "high": score + 0.1}
        run.write_json("metrics.json", {"roc_auc": interval, "f1": 0.5})
        run.write_text("history.csv", "epoch\n1\n")
        run.record(train_s=10 * seed, parameters=7)
        run.finish(["history.csv"])
        run.info["start_s"] = 100 - seed  # the last made is the oldest
        (run.path / "run.json").write_text(json.dumps(run.info))
        made.append(run)
    return made


def read_table():
    table = run_table("digits")
    return table.set_index(table["run"].str.removeprefix(f"{PLACE}/"))


def test_a_row_a_run_oldest_first_with_parameters_facts_and_metrics(runs):
    table = read_table()
    assert table.index.tolist() == ["a2", "b1", "a0"] and len(run_table()) == 3
    row = table.loc["a0"]
    named = row[["model", "variant", "seed", "draw", "status", "problem", "dataset"]]
    assert named.tolist() == ["a", "", 0, "0", "done", "", "digits"]
    metrics = row[["metrics.roc_auc", "metrics.roc_auc.low", "metrics.f1"]]
    assert metrics.tolist() == [0.9, 0.8, 0.5]
    given = row[["facts.parameters", "parameters.learning_rate", "parameters.epochs"]]
    assert given.tolist() == [7, 0.0, None]
    assert run_table("elpv").empty and "status" in run_table("elpv")


def test_what_is_damaged_or_failed_has_a_row_that_says_why(runs):
    for run, file, content in [
        (runs[0], "metrics.json", "{"),
        (runs[1], "run.json", "[]"),
        (runs[2], "history.csv", ""),
    ]:
        (run.path / file).write_text(content)
    Run.create(name="failed", dataset="digits").fail(ValueError("too few images"))
    table = read_table()
    assert table["status"].to_dict() == {
        "a2": "damaged",
        "a0": "done",
        "failed": "failed",
        "b1": "damaged",
    }
    problems = table["problem"]
    assert "metrics.json is damaged" in problems["a0"] and "run.json is damaged" in problems["b1"]
    assert problems["a2"] == "history.csv is empty"
    assert problems["failed"] == "ValueError: too few images"
    assert pd.isna(table.loc["a0", "metrics.roc_auc"])
    with pytest.warns(UserWarning) as warned:
        assert [run.name for run in find_runs("digits")] == ["a0"]
    assert len(warned) == 2
    kept, left_out = latest_runs("digits")
    assert [run.name for run in kept] == ["a0"] and len(left_out) == 2
    assert any("Run a2 is left out: history.csv is empty" in line for line in left_out)


def test_runs_that_notebook_04_has_not_seen_are_scored_from_their_predictions(runs):
    (runs[0].path / "metrics.json").unlink()
    runs[0].write_table("predictions.parquet", PREDICTIONS)
    assert read_table().loc["a0", "metrics.accuracy"] == 0.75
    (runs[0].path / "predictions.parquet").write_bytes(b"torn")
    assert "predictions.parquet cannot be scored" in read_table().loc["a0", "problem"]


def test_runs_are_evaluated_and_compared_as_their_predictions_are(runs):
    for run in runs:
        run.write_table("predictions.parquet", PREDICTIONS)
    of_run, of_table = (evaluate(source, replicates=50) for source in (runs[0], PREDICTIONS))
    pd.testing.assert_frame_equal(of_run, of_table)
    same_seed = Run.create(name="b0", dataset="digits", model="b", seed=0)
    same_seed.write_table("predictions.parquet", PREDICTIONS)
    (pair,) = compare([*runs, same_seed], "accuracy", replicates=50).to_dict("records")
    assert (pair["model_a"], pair["model_b"], pair["seeds"], pair["difference"]) == ("a", "b", 1, 0)


def test_keeping_runs_by_a_condition(runs):
    table = run_table()
    assert keep_runs(table, " ") is table
    kept = keep_runs(table, "model == 'a' and `metrics.roc_auc` > 0.85")
    assert kept["run"].tolist() == [f"{PLACE}/a0"]
    for wrong in ("`metrics.rocauc` > 0", "model =="):
        with pytest.raises(ValueError, match=r"cannot keep the runs with .*`metrics\.roc_auc`"):
            keep_runs(table, wrong)


def test_varied_columns_are_the_parameters_that_differ():
    table = pd.DataFrame({"model": ["a", "b"] * 8, "parameters.model": ["a", "b"] * 8})
    table["parameters.mixup"] = [0.0, 0.0, 0.2, 0.2] * 4
    table["parameters.epochs"] = 5
    table["parameters.learning_rate"] = [0.1 * i for i in range(16)]
    assert varied_columns(table) == ["model", "parameters.mixup", "parameters.learning_rate"]
    many = table.assign(**{f"parameters.p{number}": range(16) for number in range(9)})
    assert len(varied_columns(many)) == MAX_VARIED
    assert varied_columns(table[:1]) == []


def make_run(name, model, seed, variant="", **options):
    run = Run.create(
        name=name, dataset="digits", model=model, seed=seed, variant=variant, **options
    )
    run.finish()


def test_seeds_with_different_options_are_not_compared():
    make_run("a0 old", "a", 0, epochs=3)
    make_run("a1 old", "a", 1, epochs=3)
    make_run("b0", "b", 0, epochs=3, flip=None)
    make_run("a0", "a", 0, epochs=5)
    make_run("a2", "a", 2, epochs=5, flip=None, tracker="wandb")
    kept, left_out = latest_runs("digits")
    assert [run.name for run in kept] == ["a0", "a2", "b0"]
    (line,) = left_out
    assert "(epochs 5)" in line and line.startswith("a: ") and line.endswith("a0 old, a1 old")
    make_run("a3", "a", 3)
    kept, (line,) = latest_runs("digits")
    assert [run.name for run in kept] == ["a3", "b0"]
    assert "(epochs by default)" in line and "a0 old, a1 old, a0, a2" in line


def test_runs_of_another_preset_are_not_compared():
    make_run("a", "a", 0)
    make_run("b", "b", 0)
    make_run("a quick", "a", 0, preset="quick")
    kept, (line,) = latest_runs("digits")
    assert [run.name for run in kept] == ["a quick"]
    assert line == "Left out, with another preset than quick: a, b"
    assert [run.name for run in latest_runs("digits", preset="standard")[0]] == ["a", "b"]


def test_the_newest_of_each_model_variant_and_draw_is_compared():
    make_run("old", "a", 0, epochs=3)
    make_run("new", "a", 0, epochs=3)
    make_run("fold", "a", 0, epochs=3, folds=5, fold=1)
    make_run("smote", "a", 0, "smote")
    make_run("focal 1", "a", 1, "focal")
    make_run("focal 0", "a", 0, "focal", teacher="big-seed0")
    make_run("smote new", "a", 0, "smote", teacher="big-seed1")
    kept, left_out = latest_runs("digits")
    assert [run.name for run in kept] == ["fold"]
    assert left_out == ["Left out, with another folds than 5: old, new"]
    kept, left_out = latest_runs("digits", variants=True)
    assert [run.name for run in kept] == ["smote new", "focal 0", "focal 1"] and left_out == []
    assert (kept[0].title, kept[0].draw) == ("a, smote", "0")

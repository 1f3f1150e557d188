"""What notebook 08 reads of all runs: the runs that it compares, those it leaves out, and the table
of all.
"""

import json

import pandas as pd
import pytest

from vitlab.run_names import dataset_folder
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
def runs(reports_folder):
    made = []
    for seed, (model, score) in enumerate([("a", 0.9), ("b", 0.7), ("a", 0.8)]):
        run = Run.create(
            name=f"{model}{seed}",
            dataset="digits",
            model=model,
            seed=seed,
            epochs=None,
            learning_rate=0.1 * seed,
        )
        run.write_json(
            "metrics.json",
            {"roc_auc": {"value": score, "low": score - 0.1, "high": score + 0.1}, "f1": 0.5},
        )
        run.record(train_s=10 * seed, parameters=7)
        run.finish()
        run.info["start_s"] = 100 - seed  # the last made is the oldest
        (run.path / "run.json").write_text(json.dumps(run.info))
        made.append(run)
    return made


def test_a_row_a_run_with_all_it_says(runs):
    table = run_table("digits")
    assert table["run"].tolist() == [f"{PLACE}/{name}" for name in ("a2", "b1", "a0")], (
        "oldest first"
    )
    row = table.iloc[2]
    assert (row["model"], row["seed"], row["draw"], row["status"], row["problem"]) == (
        "a",
        0,
        "0",
        "done",
        "",
    )
    assert (row["metrics.roc_auc"], row["metrics.roc_auc.low"], row["metrics.f1"]) == (
        0.9,
        0.8,
        0.5,
    )
    assert (row["facts.parameters"], row["parameters.learning_rate"], row["parameters.epochs"]) == (
        7,
        0.0,
        None,
    )
    assert run_table("elpv").empty and len(run_table()) == 3


def test_damaged_metrics_and_failures_are_told(runs):
    (runs[0].path / "metrics.json").write_text("{")
    runs[1].fail(ValueError("too few images"))
    table = run_table().set_index("run")
    assert (
        table.loc[f"{PLACE}/a0", "status"] == "done"
        and "metrics.json cannot be read" in table.loc[f"{PLACE}/a0", "problem"]
    )
    assert pd.isna(table.loc[f"{PLACE}/a0", "metrics.roc_auc"])
    assert table.loc[f"{PLACE}/b1", ["status", "problem"]].tolist() == [
        "failed",
        "ValueError: too few images",
    ]


def test_runs_that_notebook_04_has_not_seen_are_scored_from_their_predictions(runs):
    (runs[0].path / "metrics.json").unlink()
    runs[0].write_table("predictions.parquet", PREDICTIONS)
    assert run_table().set_index("run").loc[f"{PLACE}/a0", "metrics.accuracy"] == 0.75
    (runs[0].path / "predictions.parquet").write_bytes(b"torn")
    assert (
        "predictions.parquet cannot be scored"
        in run_table().set_index("run").loc[f"{PLACE}/a0", "problem"]
    )


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
    assert keep_runs(table, "model == 'a' and `metrics.roc_auc` > 0.85")["run"].tolist() == [
        f"{PLACE}/a0"
    ]
    with pytest.raises(
        ValueError,
        match=r"`metrics\.rocauc` > 0.*name 'metrics\.rocauc' is not defined.*`metrics\.roc_auc`",
    ):
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
    assert found[0] == "model" and set(found) == {
        "model",
        "parameters.mixup",
        "parameters.learning_rate",
    }
    many = table.assign(**{f"parameters.p{number}": range(16) for number in range(9)})
    assert len(varied_columns(many, "metrics.roc_auc")) == MAX_VARIED
    assert varied_columns(table[:1], "metrics.roc_auc") == []


def test_a_run_that_lost_a_file_is_left_out_and_named_everywhere(runs):
    for run in runs:
        run.write_text("history.csv", "epoch\n1\n")
        run.finish(["history.csv"])
    (runs[0].path / "history.csv").unlink()
    (runs[1].path / "run.json").write_text("[]")
    with pytest.warns(
        UserWarning, match=r"Run a0 is left out: history\.csv is missing\. Run notebook 03 again"
    ):
        assert [run.name for run in find_runs("digits")] == ["a2"]
    kept, left_out = latest_runs("digits")
    assert [run.name for run in kept] == ["a2"]
    assert any("a0" in line and "history.csv is missing" in line for line in left_out) and any(
        "b1" in line for line in left_out
    )
    table = run_table("digits").set_index("run")
    assert table.loc[f"{PLACE}/a0", ["status", "problem"]].tolist() == [
        "damaged",
        "history.csv is missing",
    ]
    assert (
        table.loc[f"{PLACE}/b1", "status"] == "damaged"
        and table.loc[f"{PLACE}/a2", "status"] == "done"
    )


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
    assert (
        [run.name for run in kept] == ["a3", "b0"]
        and "(epochs by default)" in line
        and "a0 old, a1 old, a0, a2" in line
    )


def test_draws_of_the_same_options_are_compared_and_the_newest_of_each_counts():
    make_run("old", "a", 0, epochs=3)
    make_run("new", "a", 0, epochs=3)
    make_run("fold", "a", 0, epochs=3, folds=5, fold=1)
    make_run("distilled 0", "a", 0, "distilled", teacher="big-seed0", epochs=3)
    make_run("distilled 1", "a", 1, "distilled", teacher="big-seed1", epochs=3)
    kept, left_out = latest_runs("digits")
    assert [run.name for run in kept] == ["new", "fold"] and left_out == []
    kept, left_out = latest_runs("digits", variants=True)
    assert [run.name for run in kept] == ["distilled 0", "distilled 1"] and left_out == []

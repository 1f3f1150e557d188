"""Sentences of notebooks 04 and 08 on small tables whose numbers are known."""

import pandas as pd

from vitlab.evaluation.sentences import (
    describe_best_by_group,
    describe_from_scratch,
    describe_last_epochs,
    describe_leakage,
    describe_trusted,
)


def test_leakage_is_the_naive_minus_the_clean_accuracy():
    rows = [("vit", 0, "all", 100, 0.9), ("vit", 0, "without near-duplicates", 80, 0.88)]
    rows += [("vit", 0, "near-duplicates only", 20, 0.98), ("vit", 1, "all", 100, 0.8)]
    rows += [("cnn", 0, "all", 100, 0.7)]
    table = pd.DataFrame(rows, columns=["model", "seed", "images", "n", "value"])
    text = describe_leakage(table.assign(metric="accuracy"))
    assert "mean over the seeds: *cnn* +0.000; *vit* +0.010." in text
    assert "On average 7 test images per run have a copy" in text  # 20 in one of three runs


def test_the_best_model_of_each_group():
    rows = [("a", "mono", 0.9), ("b", "mono", 0.8), ("a", "poly", 0.7), ("b", "poly", 0.75)]
    groups = pd.DataFrame(rows, columns=["model", "group", "mean"]).assign(metric="roc_auc")
    assert describe_best_by_group(groups) == (
        "Highest mean ROC AUC by group: poly, *b*; mono, *a*."
    )
    assert "there are no groups" in describe_best_by_group(groups.assign(group="all"))


def test_runs_that_were_still_improving():
    text = describe_last_epochs({"vit": [True, False], "c*n": [False]})
    assert text.startswith(
        "Runs whose last epoch was their best: *vit*, 1 of 2; *c&#42;n*, 0 of 1."
    )


def test_a_vit_from_scratch_beside_the_best_pretrained_model():
    table = pd.DataFrame({"model": ["vit_scratch", "cnn"], "metric": "roc_auc", "mean": [0.7, 0.9]})
    assert "a ROC AUC of 0.700, 0.200 less than `cnn`" in describe_from_scratch(table)
    assert "no `vit_scratch` beside" in describe_from_scratch(table[1:])


def test_methods_that_beat_the_controls():
    rows = [("grad_cam", m, "better than all controls") for m in ("deletion", "insertion")]
    rows += [("rollout", m, "no difference shown") for m in ("deletion", "insertion")]
    table = pd.DataFrame(rows, columns=["method", "metric", "verdict"])
    assert describe_trusted({"vit": table, "cnn": table[2:]}) == (
        "- *vit*: grad cam beat the controls on most of 2 measures.\n"
        "- *cnn*: no method beats the controls on most of 2 measures."
    )

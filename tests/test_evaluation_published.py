"""Merged classes and published numbers, against cases worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import f1_score

from tests.test_evaluation_metrics import make_predictions
from vitlab.data import load_dataset
from vitlab.evaluation import protocol_table, published_gap_table, published_table
from vitlab.evaluation.published import merge_classes
from vitlab.evaluation.sentences import describe_published
from vitlab.schema import check_predictions

GRADES = ("none", "possible", "probable", "certain")
COARSE = dict(zip(GRADES, ("functional", "functional", "defective", "defective"), strict=True))


def test_merging_adds_probabilities_up():
    predictions = make_predictions(GRADES)
    merged = merge_classes(predictions, COARSE)
    assert check_predictions(merged) == ("functional", "defective")
    np.testing.assert_allclose(
        merged["prob_defective"],
        predictions["prob_probable"] + predictions["prob_certain"],
        atol=1e-12,
    )
    logits = merged[["logit_functional", "logit_defective"]].to_numpy()
    np.testing.assert_allclose(softmax(logits, axis=1)[:, 1], merged["prob_defective"], atol=1e-12)
    assert (merged["label"] == predictions["label"].map(COARSE)).all()
    assert ((merged["pred"] == "defective") == (merged["prob_defective"] > 0.5)).all()


def test_the_sum_may_overrule_the_largest_class():
    predictions = make_predictions(GRADES, num_samples=1)
    predictions[[f"prob_{name}" for name in GRADES]] = [0.4, 0.05, 0.3, 0.25]
    predictions["pred"] = "none"
    assert merge_classes(predictions, COARSE)["pred"].item() == "defective"


@pytest.mark.parametrize(
    ("coarse", "message"),
    [
        ({"none": "a", "possible": "b"}, "no coarse class for probable, certain"),
        (COARSE | {"broken": "defective"}, "unknown classes broken"),
        (dict.fromkeys(GRADES, "cell"), "leaves one class, 'cell'"),
    ],
)
def test_bad_merging_is_named(coarse, message):
    with pytest.raises(ValueError, match=message):
        merge_classes(make_predictions(GRADES), coarse)


def test_the_grades_of_elpv_merge_into_its_two_classes():
    grades, binary = load_dataset("elpv:grade"), load_dataset("elpv")
    coarse = grades.samples.set_index("sample_id")["label"].map(grades.coarser["elpv"])
    assert (coarse == binary.samples.set_index("sample_id")["label"]).all()
    assert not binary.coarser


def test_protocol_table_scores_groups_and_coarser_tasks():
    predictions = make_predictions(GRADES, num_samples=400)
    predictions["group"] = np.where(np.arange(400) % 2, "mono", "poly")
    table = protocol_table(predictions, "elpv:grade", {"elpv": COARSE}).set_index(
        ["task", "cells", "metric"]
    )["value"]
    assert len(table) == 3 * 2 + 3
    mono = predictions[predictions["group"] == "mono"]
    assert table["elpv:grade", "mono", "accuracy"] == pytest.approx(
        (mono["label"] == mono["pred"]).mean(), abs=1e-12
    )
    assert table["elpv:grade", "mono", "macro_f1"] == pytest.approx(
        f1_score(mono["label"], mono["pred"], average="macro"), abs=1e-12
    )
    merged = merge_classes(mono, COARSE)
    spread = (
        protocol_table(predictions, "elpv:grade", {})
        .set_index(["cells", "metric"])
        .loc[("mono", "accuracy"), "sampling_sd"]
    )
    share = table["elpv:grade", "mono", "accuracy"]
    assert spread == pytest.approx(np.sqrt(share * (1 - share) / 200), rel=0.2)
    assert table["elpv", "mono", "accuracy"] == pytest.approx(
        (merged["label"] == merged["pred"]).mean(), abs=1e-12
    )


def test_published_rows_stand_beside_ours():
    ours = pd.DataFrame(
        [
            ("grade", "mono", "accuracy", "vit", seed, value, 0.01)
            for seed, value in enumerate((0.80, 0.84))
        ]
        + [("grade", "poly", "accuracy", "vit", 0, 0.9, 0.01)],
        columns=["task", "cells", "metric", "model", "seed", "value", "sampling_sd"],
    )
    published = pd.DataFrame(
        {
            "model": ["VGG", "SVM", "VGG", "CNN"],
            "task": ["grade", "grade", "grade", "other"],
            "cells": ["mono", "mono", "poly", "mono"],
            "accuracy_mean": [0.81, 0.7, 0.85, 0.5],
            "accuracy_sd": [0.02, np.nan, 0.02, np.nan],
            "protocol": "80/20",
            "cited_as": "Song",
        }
    )
    table = published_table(published, ours)
    assert table["model"].tolist() == ["vit", "VGG", "SVM", "vit", "VGG"]
    assert table["mean"].tolist() == pytest.approx([0.82, 0.81, 0.7, 0.9, 0.85])
    assert table["spread"][0] == pytest.approx(0.02 * 2**0.5)
    gaps = published_gap_table(table).set_index("cells")
    assert gaps["verdict"].to_dict() == {"mono": "no difference shown", "poly": "above"}
    assert (
        "*vit*, mono, accuracy on grade: 0.820, not shown to differ from VGG, Song with 0.810"
        in (describe_published(gaps.reset_index()))
    )
    few = published_gap_table(table.assign(sampling_sd=0.02)).set_index("cells")
    assert few.loc["poly", "verdict"] == "no difference shown", (
        "0.05 is within 1.96 root of 0.02^2 + 0.02^2"
    )
    unknown = table.assign(
        sampling_sd=0.02, spread=table["spread"].where(table["source"] == "this report")
    )
    assert set(published_gap_table(unknown)["verdict"]) == {"no difference shown"}, (
        "0.05 is within 1.96 root of 2 * 0.02^2"
    )
    assert gaps.loc["mono", "against"] == "VGG, Song" and gaps.loc[
        "mono", "difference"
    ] == pytest.approx(0.01)
    with pytest.raises(ValueError, match="lacks the columns task"):
        published_table(published.drop(columns="task"), ours)


def test_nothing_published_leaves_our_rows():
    ours = pd.DataFrame(
        {
            "task": "binary",
            "cells": "all",
            "metric": "accuracy",
            "model": "vit",
            "seed": [0, 1],
            "value": [0.5, 0.7],
            "sampling_sd": 0.1,
        }
    )
    table = published_table(
        pd.DataFrame(columns=["model", "task", "cells", "protocol", "cited_as"]), ours
    )
    assert table["mean"].tolist() == pytest.approx([0.6]) and table["source"].tolist() == [
        "this report"
    ]
    assert published_gap_table(table).empty

"""What was lost where: counted by hand on predictions of a few images."""

import numpy as np
import pandas as pd
import pytest

from vitlab.compress.losses import (
    drop_table,
    lost_images,
    measure_agreement,
    measure_miscalibration,
)
from vitlab.evaluation import pairwise_table
from vitlab.evaluation.calibration import expected_calibration_error

CLASSES = ("dog", "cat")


def make_predictions(labels, cat, groups=None):
    """cat: probability of the second class."""
    cat = np.asarray(cat, float)
    table = pd.DataFrame({"sample_id": [f"s{i:03}" for i in range(len(cat))], "split": "test"})
    table["group"] = groups if groups is not None else "a"
    table["label"] = labels
    table["pred"] = np.where(cat > 0.5, "cat", "dog")
    for name, prob in zip(CLASSES, (1 - cat, cat), strict=True):
        table[f"logit_{name}"], table[f"prob_{name}"] = np.log(prob), prob
    return table


LABELS = ["cat"] * 12 + ["dog"] * 12
GROUPS = ["mono", "poly"] * 12
BEFORE = make_predictions(LABELS, [0.9] * 10 + [0.2] * 2 + [0.1] * 12, GROUPS)
# images 0, 1 and 2 are lost, 10 is won, 12 and 14 are lost
AFTER = make_predictions(
    LABELS, [0.4, 0.1, 0.3, *[0.9] * 7, 0.6, 0.2, 0.8, 0.1, 0.7, *[0.1] * 9], GROUPS
)


def test_changes_by_class_and_group():
    table = drop_table(BEFORE, AFTER).set_index(["column", "slice"])
    assert table.index.tolist() == [
        ("", "all"),
        ("label", "cat"),
        ("label", "dog"),
        ("group", "mono"),
        ("group", "poly"),
    ]
    assert table["n"].tolist() == [24, 12, 12, 12, 12]
    assert table["before"].tolist() == pytest.approx([22 / 24, 10 / 12, 1, 11 / 12, 11 / 12])
    assert table["after"].tolist() == pytest.approx([18 / 24, 8 / 12, 10 / 12, 8 / 12, 10 / 12])
    assert table["change"].tolist() == pytest.approx([-4 / 24, -2 / 12, -2 / 12, -3 / 12, -1 / 12])
    assert table["lost"].tolist() == [5, 3, 2, 4, 1]
    assert table["gained"].tolist() == [1, 1, 0, 1, 0]
    assert (table["low"] < table["change"]).all()
    assert (table["change"] < table["high"]).all()
    assert table.loc[("group", "poly"), "high"] == 0  # one image of twelve: never better


def test_the_interval_of_all_images_is_close_to_that_of_pairwise_table():
    ours = drop_table(BEFORE, AFTER, by=()).iloc[0]
    pair = {"before": {0: BEFORE}, "after": {0: AFTER}}
    theirs = pairwise_table(pair, "accuracy").iloc[0]
    assert ours["change"] == pytest.approx(theirs["difference"])
    # percentiles, t interval
    assert (ours["low"], ours["high"]) == pytest.approx((theirs["low"], theirs["high"]), abs=0.05)


def test_nothing_changed_is_not_certainty():
    row = drop_table(BEFORE, BEFORE.iloc[::-1], by=()).iloc[0]
    assert row["change"] == 0
    # 1 - 0.025 ** (1 / 24)
    assert (row["low"], row["high"]) == pytest.approx((-0.1425, 0.1425), abs=1e-4)


def test_slices_too_small_have_a_note():
    few = BEFORE.assign(group=["few"] * 9 + ["many"] * 15)
    table = drop_table(few, AFTER, by=["group"])
    assert table["note"].tolist() == ["", "9 images only", ""]
    assert table["change"].isna().tolist() == [False, True, False]


def test_lost_images_by_the_fall_of_the_true_class():
    table = lost_images(BEFORE, AFTER)
    assert table["kind"].tolist() == ["lost"] * 5 + ["gained"]
    assert table["sample_id"].tolist() == ["s001", "s012", "s002", "s014", "s000", "s010"]
    assert table["change"].tolist() == pytest.approx([-0.8, -0.7, -0.6, -0.6, -0.5, 0.4])
    first = table.iloc[0]
    assert (first["label"], first["pred_before"], first["pred_after"], first["group"]) == (
        "cat",
        "cat",
        "dog",
        "poly",
    )
    assert (first["prob_before"], first["prob_after"]) == pytest.approx((0.9, 0.1))
    assert lost_images(BEFORE, BEFORE).empty


def test_agreement_counts_wrong_answers_too():
    share, low, high = measure_agreement(BEFORE, AFTER)
    assert share == 18 / 24  # image 11 is wrong both times
    assert (low, high) == pytest.approx((0.551, 0.880), abs=1e-3)  # Wilson


def test_calibration_before_and_after():
    found = measure_miscalibration(BEFORE, AFTER)
    before, after = expected_calibration_error(BEFORE), expected_calibration_error(AFTER)
    assert found["ece"] == pytest.approx(after)
    assert found["change"] == pytest.approx(after - before)
    assert found["low"] < found["change"] < found["high"]
    assert measure_miscalibration(AFTER, BEFORE)["change"] == pytest.approx(before - after)
    same = measure_miscalibration(BEFORE, BEFORE)
    assert (same["change"], same["low"], same["high"]) == pytest.approx((0, 0, 0))


def test_bad_input_of_losses():
    with pytest.raises(ValueError, match=r"1 only in before, 0 only in after, first 's023'"):
        drop_table(BEFORE, AFTER.iloc[:-1])
    with pytest.raises(ValueError, match=r"unknown column .grup."):
        drop_table(BEFORE, AFTER, by=["grup"])

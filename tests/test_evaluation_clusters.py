"""Copies of images add no knowledge: drawn or counted together, they leave every interval of
notebook 04 as it was.
"""

import numpy as np
import pandas as pd
import pytest

from tests.test_evaluation_calibration import make_predictions
from vitlab import evaluation
from vitlab.evaluation.bootstrap import effective_count, percentile_interval

TABLES = {
    "reliability": lambda table, **options: evaluation.reliability_table(table, **options),
    "risk coverage": lambda table, **options: evaluation.risk_coverage_table(table, **options),
    "selective": lambda table, **options: evaluation.selective_table(table, **options),
    "conformal": lambda table, **options: evaluation.conformal_table(table, **options),
    "conformal class": lambda table, **options: evaluation.conformal_class_table(table, **options),
    "threshold": lambda table, **options: evaluation.threshold_choice_table(
        table, replicates=100, **options
    ),
    "slice": lambda table, **options: evaluation.slice_table(table, replicates=100, **options),
    "worst slice": lambda table, **options: evaluation.worst_slice_table(
        table, replicates=100, **options
    ),
    "calibration": lambda table, **options: evaluation.calibration_table(
        table, replicates=100, **options
    ),
    "agreement": lambda table, **options: evaluation.annotator_agreement_table(
        table, table, replicates=100, **options
    ),
    "band": lambda table, **options: evaluation.curve_band_table(table, replicates=100, **options),
    "metrics": lambda table, **options: evaluation.metrics_table(table, replicates=100, **options),
}

# what columns low and high belong to
VALUES = ("gap", "value", "accuracy", "risk", "true_positive_rate")


@pytest.fixture
def predictions(monkeypatch):
    # one chunk, of few images as of many
    monkeypatch.setattr("vitlab.evaluation.bootstrap.CHUNK", 10**7)
    table = make_predictions(num_samples=400, temperature=0.7)
    score = np.round(table["prob_defective"], 1)
    return table.assign(group=np.where(np.arange(400) % 3 == 0, "a", "b"), defect_probability=score)


@pytest.mark.parametrize("name", TABLES)
def test_copies_leave_the_interval_as_it_was(predictions, name):
    test = predictions[predictions["split"] == "test"]
    copies = pd.concat(
        [predictions, *(test.assign(sample_id=test["sample_id"] + end) for end in ("-b", "-c"))]
    )
    cluster = pd.Series(
        copies["sample_id"].str.partition("-")[0].to_numpy(), index=copies["sample_id"]
    )
    once, together, apart = (
        TABLES[name](*given[:1], **given[1])
        for given in ((predictions, {}), (copies, {"cluster": cluster}), (copies, {}))
    )
    ends = [column for column in once if column.endswith(("low", "high"))]
    np.testing.assert_allclose(once[ends], together[ends], atol=1e-9)
    assert not np.allclose(once[ends], apart[ends], equal_nan=True, atol=1e-3), (
        "without clusters, copies would narrow it"
    )
    if "p" in once:
        assert once["p"].tolist() == together["p"].tolist()


@pytest.mark.parametrize("name", TABLES)
def test_intervals_hold_their_own_value(predictions, name):
    table = TABLES[name](
        predictions[predictions.groupby("split").cumcount() < 25]
        if "slice" not in name
        else predictions
    )
    for low in [
        column for column in table if column.endswith("low") and not column.startswith("calibrated")
    ]:
        stem = low.removesuffix("low").rstrip("_")
        value = table[stem or next(column for column in VALUES if column in table)]
        known = table[low].notna() & value.notna()
        assert ((table[low] <= value) & (value <= table[low.replace("low", "high")]))[
            known
        ].all() and known.any()


def test_the_number_itself_widens_a_percentile_interval():
    drawn = np.linspace(0, 1, 101)[:, None].repeat(3, axis=1)
    low, high, _ = percentile_interval(drawn, 0.9, np.array([0.5, 1.2, np.nan]))
    assert low.tolist()[:2] == pytest.approx([0.05, 0.05]) and high.tolist()[:2] == pytest.approx(
        [0.95, 1.2]
    )
    assert np.isnan([low[2], high[2]]).all()


def test_effective_counts_by_hand():
    place, cluster = np.array([0, 0, 0, 1, 1, 3]), np.array([5, 5, 6, 6, 7, 7])
    np.testing.assert_allclose(effective_count(place, 4, cluster), [9 / 5, 2, np.nan, 1])
    assert effective_count(place, 4).tolist() == [3, 2, 0, 1]

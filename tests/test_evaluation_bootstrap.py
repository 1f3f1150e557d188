"""The bootstrap, clusters in every table, and intervals and tests for few images."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from tests.predictions import make_calibrated, make_predictions
from vitlab import evaluation
from vitlab.evaluation.inference import (
    bootstrap,
    correct_holm,
    effective_count,
    mean_interval,
    percentile_interval,
    share_interval,
    sign_flip_p,
    wilson_interval,
)
from vitlab.evaluation.metrics import prepare_metrics
from vitlab.evaluation.scores import number_clusters, read_scores


def draw_counts(num_samples, replicates, **options):
    return bootstrap(lambda counts: counts, num_samples, replicates, **options)


def test_replicates_are_draws_with_replacement_in_any_chunks(monkeypatch):
    counts = draw_counts(20, 4000)
    assert (counts.sum(axis=1) == 20).all() and counts.shape == (4000, 20)
    # share of samples that a replicate leaves out
    assert abs((counts == 0).mean() - (1 - 1 / 20) ** 20) < 0.01
    monkeypatch.setattr("vitlab.evaluation.inference.CHUNK", 70)
    counts = draw_counts(20, 8)  # chunks of 3, 3 and 2
    assert (counts.sum(axis=1) == 20).all() and len(np.unique(counts, axis=0)) == 8


def test_replicates_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr("vitlab.evaluation.inference.CHUNK", 900)
    compute, values = prepare_metrics(read_scores(make_predictions(), "test")), []
    for cores in (1, 4):
        monkeypatch.setattr("vitlab.evaluation.inference.count_cores", lambda cores=cores: cores)
        values.append(bootstrap(compute, 300, 40, seed=2))
    np.testing.assert_array_equal(*values)
    np.testing.assert_allclose(values[0], compute(draw_counts(300, 40, seed=2)), atol=1e-12)
    assert bootstrap(compute, 300, 0).shape == (0, len(evaluation.METRICS))


def test_clusters_are_drawn_as_wholes():
    cluster = np.array([0, 0, 0, 1, 2, 2])
    counts = draw_counts(6, 5000, cluster=cluster)
    assert (counts[:, [1, 2, 5]] == counts[:, [0, 0, 4]]).all()
    # three clusters are drawn, of whatever size
    assert (counts[:, [0, 3, 4]].sum(axis=1) == 3).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.05)


def test_clusters_come_from_a_column():
    rows = pd.DataFrame({"cluster": ["a", "b", "a", None, None]})
    assert number_clusters(rows).tolist() == [0, 1, 0, 2, 3]
    assert number_clusters(rows[[]]) is None


def test_percentiles_leave_out_undefined_replicates_and_reach_the_number_itself():
    values = np.array([[0.0, np.nan], [1.0, np.nan], [np.nan, np.nan], [0.5, np.nan]])
    low, high, undefined = percentile_interval(values)
    np.testing.assert_allclose([low, high], [[0.025, np.nan], [0.975, np.nan]])
    np.testing.assert_allclose(undefined, [0.25, 1])
    low, high, _ = percentile_interval(values, np.array([1.2, 0.5]))
    np.testing.assert_allclose([low, high], [[0.025, np.nan], [1.2, np.nan]])
    # of nine units: the normal quantile at root(9 / 8) times 2.306, Student's at 8 degrees
    low, _, _ = percentile_interval(np.linspace(0, 1, 10_001)[:, None], units=9)
    assert low[0] == pytest.approx(0.00723, abs=2e-5)


TABLES = {
    "reliability": evaluation.reliability_table,
    "risk coverage": evaluation.risk_coverage_table,
    "selective": evaluation.selective_table,
    "conformal": evaluation.conformal_table,
    "conformal class": evaluation.conformal_class_table,
    "threshold": evaluation.threshold_choice_table,
    "slice": evaluation.slice_table,
    "worst slice": evaluation.worst_slice_table,
    "calibration": evaluation.calibration_table,
    "band": evaluation.curve_band_table,
    "metrics": evaluation.metrics_table,
    "uncertainty": lambda table, **options: evaluation.uncertainty_table(
        {0: table, 1: table, 2: table}, ("accuracy",), **options
    ),
}
WITHOUT_REPLICATES = ("reliability", "risk coverage", "selective", "conformal", "conformal class")
# what columns low and high belong to
VALUES = ("gap", "value", "accuracy", "risk", "true_positive_rate")


def make_table(name, predictions):
    options = {} if name in WITHOUT_REPLICATES else {"replicates": 100}
    return TABLES[name](predictions, **options)


@pytest.fixture
def predictions(monkeypatch):
    # one chunk, so that the same clusters are drawn of few images and of many
    monkeypatch.setattr("vitlab.evaluation.inference.CHUNK", 10**7)
    table = make_calibrated(num_samples=400, temperature=0.7)
    score = np.round(table["prob_defective"], 1)
    return table.assign(group=np.where(np.arange(400) % 3 == 0, "a", "b"), defect_probability=score)


@pytest.mark.parametrize("name", TABLES)
def test_copies_leave_the_interval_as_it_was(name, predictions):
    """Copies of images teach nothing new: if they are a cluster, all intervals stay."""
    test = predictions[predictions["split"] == "test"]
    copies = [test.assign(sample_id=test["sample_id"] + end) for end in ("-b", "-c")]
    apart = pd.concat([predictions, *copies])
    together = apart.assign(cluster=apart["sample_id"].str.partition("-")[0])
    once, together, apart = (make_table(name, table) for table in (predictions, together, apart))
    ends = [column for column in once if column.endswith(("low", "high"))]
    np.testing.assert_allclose(once[ends], together[ends], atol=1e-9)
    assert not np.allclose(once[ends], apart[ends], equal_nan=True, atol=1e-3)
    if "p" in once:
        assert once["p"].tolist() == together["p"].tolist()


@pytest.mark.parametrize("name", TABLES)
def test_intervals_contain_their_own_value(name, predictions):
    few = predictions[predictions.groupby("split").cumcount() < 25]
    table = make_table(name, predictions if "slice" in name else few)
    lows = [name for name in table if name.endswith("low") and not name.startswith("calibrated")]
    for low in lows:
        stem = low.removesuffix("low").rstrip("_")
        value = table[stem or next(column for column in VALUES if column in table)]
        known = table[low].notna() & value.notna()
        inside = (table[low] <= value) & (value <= table[low.replace("low", "high")])
        assert inside[known].all() and known.any()


def test_effective_counts_by_hand():
    place, cluster = np.array([0, 0, 0, 1, 1, 3]), np.array([5, 5, 6, 6, 7, 7])
    np.testing.assert_allclose(effective_count(place, 4, cluster), [9 / 5, 2, np.nan, 1])
    assert effective_count(place, 4).tolist() == [3, 2, 0, 1]


def test_wilson_interval_is_the_textbook_one():
    # 8 of 10 and 10 of 10: Wilson, 1927
    assert np.allclose(wilson_interval(0.8, 10), [0.4902, 0.9433], atol=1e-4)
    assert np.allclose(wilson_interval(1, 10), [0.7225, 1], atol=1e-4)
    assert share_interval(np.arange(10) < 8) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert np.isnan(share_interval(np.array([]))).all()


def test_t_intervals_leave_out_missing_values():
    values = np.random.default_rng(0).normal(size=(7, 4))
    values[:2, 1], values[1:, 2], values[:, 3] = np.nan, np.nan, np.nan
    mean, low, high, count = mean_interval(values)
    for place, kept in enumerate([values[:, 0], values[2:, 1]]):
        expected = stats.t.interval(0.95, len(kept) - 1, kept.mean(), stats.sem(kept))
        assert (low[place], high[place]) == pytest.approx(expected)
    assert count.tolist() == [7, 5, 1, 0] and mean[2] == values[0, 2]
    assert np.isnan([*low[2:], *high[2:], mean[3]]).all()
    assert np.nanmin(mean_interval(values, limits=(0, 0.1))[1]) >= 0


def test_t_intervals_hold_the_mean():
    """6 and 12 normal values, 4000 intervals: 95 % within 1 point; the percentile bootstrap has 85
    and 91 %."""
    generator = np.random.default_rng(0)
    for count in (6, 12):
        _, low, high, _ = mean_interval(generator.normal(size=(count, 4000)))
        assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.95, abs=0.01)


def test_sign_flips_by_hand():
    values = np.array([[1.0, 1.0], [2.0, -2.0], [3.0, 0.5]])
    np.testing.assert_allclose(sign_flip_p(values), [1 / 4, 1])
    drawn = np.random.default_rng(0).normal(0.3, 1, size=(40, 2))
    signs = np.random.default_rng(1).choice((-1, 1), (20_000, 40))
    expected = (np.abs(signs @ drawn) >= np.abs(drawn.sum(axis=0))).mean(axis=0)
    np.testing.assert_allclose(sign_flip_p(drawn), expected, atol=0.02)


def test_holm_is_that_of_statsmodels_and_leaves_gaps():
    p = np.array([[0.01, np.nan, 0.2], [0.01, 0.03, 0.6]])
    found = correct_holm(p)
    expected = multipletests(p[~np.isnan(p)], method="holm")[1]
    np.testing.assert_allclose(found[~np.isnan(p)], expected)
    assert np.isnan(found[0, 1]) and np.isnan(correct_holm(np.full(2, np.nan))).all()

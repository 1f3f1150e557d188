"""Intervals and tests of means over few images: against scipy, and their error rates."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from vitlab.evaluation.few_images import correct_holm, mean_interval, sign_flip_p


def test_t_intervals_leave_out_what_is_not_there():
    values = np.random.default_rng(0).normal(size=(7, 3))
    values[:2, 1], values[1:, 2] = np.nan, np.nan
    mean, low, high, count = mean_interval(values, 0.9)
    for place, kept in enumerate([values[:, 0], values[2:, 1]]):
        assert (low[place], high[place]) == pytest.approx(
            stats.t.interval(0.9, len(kept) - 1, kept.mean(), stats.sem(kept))
        )
    assert (
        count.tolist() == [7, 5, 1]
        and mean[2] == values[0, 2]
        and np.isnan([low[2], high[2]]).all()
    )
    assert np.isnan(mean_interval(np.full((3, 1), np.nan))[0]).all()


def test_t_intervals_hold_the_mean():
    """6 and 12 normal values, 4000 intervals: 95 % within 1 point; the percentile bootstrap has 85
    and 91 %.
    """
    generator = np.random.default_rng(0)
    for count in (6, 12):
        _, low, high, _ = mean_interval(generator.normal(size=(count, 4000)))
        assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.95, abs=0.01)


def test_sign_flips_by_hand():
    values = np.array([[1.0, 1.0], [2.0, -2.0], [3.0, np.nan]])
    np.testing.assert_allclose(sign_flip_p(values, "greater"), [1 / 8, 3 / 4])
    np.testing.assert_allclose(sign_flip_p(values, "less"), [1, 1 / 2])
    np.testing.assert_allclose(sign_flip_p(values), [1 / 4, 1])
    assert np.isnan(sign_flip_p(np.full((3, 1), np.nan))).all()
    drawn = np.random.default_rng(0).normal(0.3, 1, size=(40, 2))
    for count, tolerance in ((9, 1e-9), (40, 0.02)):
        for side in ("greater", "less", "two-sided"):
            theirs = stats.permutation_test(
                (drawn[:count],), np.sum, permutation_type="samples", alternative=side, rng=1
            )
            np.testing.assert_allclose(
                sign_flip_p(drawn[:count], side), theirs.pvalue, atol=tolerance
            )


def test_holm_is_that_of_statsmodels_and_leaves_gaps():
    p = np.array([[0.01, np.nan, 0.2], [0.01, 0.03, 0.6]])
    found = correct_holm(p)
    np.testing.assert_allclose(
        found[~np.isnan(p)], multipletests(p[~np.isnan(p)], method="holm")[1]
    )
    assert np.isnan(found[0, 1]) and np.isnan(correct_holm(np.full(2, np.nan))).all()

"""Rank correlations of maps against scipy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import sem, spearmanr, t

from tests.test_faithfulness import make_map, make_scorer
from vitlab.explain.similarity import agreement_table, compare_maps, correlate_ranks


def test_agreement_is_the_mean_of_scipys_correlations():
    scorer, exact, noisy = make_scorer()
    blank = replace(exact, values=np.ones_like(exact.values), method="blank")
    table = agreement_table(scorer, [exact, noisy, blank]).set_index(["method_a", "method_b"])
    pairs = zip(np.abs(scorer.pool(exact)), np.abs(scorer.pool(noisy)), strict=True)
    expected = [spearmanr(a, b).statistic for a, b in pairs]
    row = table.loc["exact", "noisy"]
    assert row["value"] == pytest.approx(np.mean(expected)) and row["n"] == 6
    assert (row["low"], row["high"]) == pytest.approx(
        t.interval(0.95, 5, np.mean(expected), sem(expected))
    )
    for name in ("exact", "noisy"):
        gap = table.loc[name, "blank"]
        assert gap[["value", "low", "high"]].isna().all() and gap["n"] == 0


def test_images_with_a_blank_map_are_not_counted():
    scorer, exact, noisy = make_scorer()
    values = noisy.values.copy()
    values[0] = 0
    whole = agreement_table(scorer, [exact, noisy]).iloc[0]
    part = agreement_table(scorer, [exact, replace(noisy, values=values)]).iloc[0]
    first = spearmanr(*(np.abs(scorer.pool(found)[0]) for found in (exact, noisy))).statistic
    assert part["n"] == 5 and part["value"] == pytest.approx((6 * whole["value"] - first) / 5)


def test_what_does_not_fit_is_named():
    scorer, exact, _ = make_scorer()
    with pytest.raises(ValueError, match="at least two methods; there is only exact"):
        agreement_table(scorer, [exact])


def test_blank_and_tied_maps():
    cells = torch.arange(4).reshape(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
    values = np.array([[1.0, 2, 2, 5], [0, 0, 0, 0], [3, 1, 1, 0], [0, 0, 0, 0]])
    others = np.array([[3.0, 1, 1, 0], [0, 0, 0, 0], [-3, -1, -1, 0], [1, 2, 3, 4]])
    maps, turned = (
        make_map(np.kron(rows.reshape(-1, 2, 2), np.ones((2, 2)))) for rows in (values, others)
    )
    table = compare_maps(maps, turned, cells)
    np.testing.assert_allclose(table["similarity"], [-1, 1, -1, 0], atol=1e-12)
    np.testing.assert_allclose(table["absolute"], [-1, 1, 1, 0], atol=1e-12)
    # with the others: -1, 0 and 0 for the first; 0, 0 and 1 (also blank) for the second
    np.testing.assert_allclose(table["other_image"][:2], [-1 / 3, 1 / 3], atol=1e-12)
    noise = values + 1e-14 * np.arange(16).reshape(4, 4)  # as of sums in another order
    np.testing.assert_allclose(correlate_ranks(values, noise)[[0, 2]], 1)

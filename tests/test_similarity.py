"""Gini index against Quantus and by hand, agreement against scipy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import sem, spearmanr, t

from tests.test_faithfulness import make_additive, make_map
from vitlab.explain.removal import CellScorer
from vitlab.explain.similarity import agreement_table, compute_gini, sparseness


def make_scorer(count=6, seed=0):
    rng = np.random.default_rng(seed)
    model, images = make_additive(rng.normal(size=(count, 16)).tolist(), (4, 4), 8)
    exact = make_map(images.sum(dim=1))
    noisy = (
        exact.values + rng.normal(size=(count, 4, 4)).repeat(2, 1).repeat(2, 2) * exact.values.std()
    )
    return (
        CellScorer(model, images, exact, grid=(4, 4)),
        exact,
        replace(exact, values=noisy.astype(np.float32), method="noisy"),
    )


def test_gini_by_hand():
    values = np.array([[1, 1, 1, 1], [0, 0, 0, -5], [1, 2, 3, 4], [0, 0, 0, 0]], float)
    np.testing.assert_allclose(compute_gini(values), [0, 0.75, 0.25, np.nan])
    np.testing.assert_allclose(compute_gini(values[2:3] * -30), 0.25)


def test_sparseness_is_that_of_quantus():
    quantus = pytest.importorskip("quantus")
    scorer, exact, noisy = make_scorer()
    cells = scorer.pool(exact)
    metric = quantus.Sparseness(abs=True, normalise=False, disable_warnings=True)
    expected = metric(
        scorer.model.module.eval(),
        cells.reshape(-1, 1, 4, 4),
        np.zeros(6, int),
        cells.reshape(-1, 1, 4, 4),
    )
    table = sparseness(scorer, [exact, noisy])
    np.testing.assert_allclose(table[table["method"] == "exact"]["value"], expected, atol=1e-5)
    blank = replace(exact, values=np.zeros_like(exact.values), method="blank")
    assert sparseness(scorer, [blank])["value"].isna().all()


@pytest.mark.parametrize("part", ["absolute", "positive"])
def test_agreement_is_the_mean_of_scipys_correlations(part):
    scorer, exact, noisy = make_scorer()
    blank = replace(exact, values=np.ones_like(exact.values), method="blank")
    table = agreement_table(scorer, [exact, noisy, blank], part).set_index(["method_a", "method_b"])
    take = np.abs if part == "absolute" else lambda values: values.clip(min=0)
    pairs = zip(take(scorer.pool(exact)), take(scorer.pool(noisy)), strict=True)
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


def test_one_image_has_no_interval():
    scorer, exact, noisy = make_scorer(count=1)
    row = agreement_table(scorer, [exact, noisy]).iloc[0]
    assert np.isfinite(row["value"]) and np.isnan(row["low"]) and np.isnan(row["high"])


def test_what_does_not_fit_is_named():
    scorer, exact, noisy = make_scorer()
    with pytest.raises(ValueError, match="at least two methods; there is only exact"):
        agreement_table(scorer, [exact])
    with pytest.raises(ValueError, match="unknown part 'negative'"):
        agreement_table(scorer, [exact, noisy], "negative")

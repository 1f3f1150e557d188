"""Controls, the table of trust and its verdicts."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import binomtest
from skimage.filters import scharr

from tests.test_explain_faithfulness import make_additive, make_map
from tests.toys import tiny_vit
from vitlab.evaluation.inference import mean_interval
from vitlab.explain import explain
from vitlab.explain.faithfulness import METRICS
from vitlab.explain.removal import CellScorer
from vitlab.explain.similarity import CHANGES, LEVEL, SAME_CLASS, TOO_FEW, UNCHANGED
from vitlab.explain.trust import (
    BETTER,
    CONTROLS,
    FOLLOWS,
    NOT_SHOWN,
    UNTESTED,
    WORSE,
    add_controls,
    compare_with_controls,
    describe_ranks,
    describe_table,
    rank_table,
    score_maps,
    summary_table,
    trust_table,
)


def make_scores(**values):
    """Scores of one metric, insertion (better high): method=values of images s0, s1, ..."""
    return pd.concat(
        pd.DataFrame(
            {
                "method": name,
                "metric": "insertion",
                "sample_id": [f"s{i}" for i in range(len(row))],
                "value": row,
            }
        )
        for name, row in values.items()
    )


def draw(mean=0.0, count=24, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, count)


def test_controls():
    model = tiny_vit(size=16)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    like = explain(model, images, "saliency", sample_ids=["x", "y"])
    first, *maps = add_controls(model, images, [like])
    assert first is like and [found.method for found in maps] == list(CONTROLS)
    for found in maps:
        assert (found.target, found.sample_ids, found.signed) == (like.target, ("x", "y"), False)
    random, centre, edges = (found.values for found in maps)
    assert (random[0] != random[1]).any() and random.min() >= 0 and random.max() <= 1
    assert centre[0, 0, 8] == pytest.approx(np.exp(-0.5 * (7.5**2 + 0.5**2) / 4**2))
    grey = (images * torch.tensor(model.transform.std)[:, None, None]).mean(dim=1).numpy()
    inside = np.s_[4:-4, 4:-4]  # scikit-image treats the border otherwise
    for image, found in zip(grey, edges, strict=True):
        expected = gaussian_filter(scharr(image), 16 / 28)[inside]
        np.testing.assert_allclose(
            found[inside] / found[inside].max(), expected / expected.max(), atol=1e-4
        )
    alone = add_controls(model, images[1:], [like.take([1])])[1:]
    for one, other in zip(alone, maps, strict=True):
        np.testing.assert_allclose(one.values[0], other.values[1], atol=1e-6)
    assert (add_controls(model, images, [like], seed=1)[1].values != random).any()


def test_the_truth_is_better_than_all_controls():
    cells = np.random.default_rng(0).normal(size=(16, 36)) / 4
    model, images = make_additive(cells.tolist(), (6, 6), 12)
    exact, turned = make_map(images.sum(dim=1)), make_map(-images.sum(dim=1), "turned")
    scorer = CellScorer(model, images, exact, grid=(6, 6))
    scores = score_maps(scorer, [exact, turned])
    assert len(scores) == 5 * 7 * 16
    assert not scores.duplicated(["method", "metric", "sample_id"]).any()
    trust = trust_table(scores)
    table = trust.set_index(["method", "metric"])
    assert (table.loc["exact", "verdict"] == BETTER).all()
    assert (table.loc["turned", "verdict"] == WORSE).all()
    assert "sparseness" not in set(trust["metric"])
    assert "sparseness" in set(describe_table(scores)["metric"])
    for (method, metric), row in table.iterrows():
        means = scores[scores["metric"] == metric].groupby("method")["value"].mean()
        sign = 1 if METRICS[metric].better == "high" else -1
        best = sign * (sign * means[list(CONTROLS)]).max()
        assert row["value"] == pytest.approx(means[method])
        assert row["control_value"] == pytest.approx(best)
        assert row["difference"] == pytest.approx(sign * (means[method] - best))
        assert row["low"] <= row["value"] <= row["high"]
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    ranks = rank_table(trust)
    assert ranks["method"].tolist() == ["exact", "turned"] and ranks["better"].tolist() == [6, 0]
    assert ranks["verdict"].tolist() == [FOLLOWS, "misleads"]


def test_every_control_counts_not_the_best_alone():
    """Better than the best mean for sure, but a wild control of lower mean is not shown to be
    beaten.
    """
    wild = 40 * draw(seed=5)
    wild -= wild.mean() + 2
    row = trust_table(make_scores(good=draw(3), random=draw(seed=1), centre=wild)).iloc[0]
    assert (
        row["control"] == "random"
        and row["difference_low"] > 0
        and row["verdict"] == "not shown"
        and row["p_holm"] > 0.025
    )


def test_too_few_images():
    """6 images reach no p below 1 in 64, times 9 methods; 9 images do."""
    for count, verdict in ((6, TOO_FEW), (9, BETTER)):
        good = {f"m{i}": draw(9, count, seed=i) for i in range(9)}
        trust = trust_table(make_scores(**good, random=draw(count=count, seed=99)))
        assert (trust["verdict"] == verdict).all()
        overall = TOO_FEW if count == 6 else FOLLOWS
        assert (rank_table(trust)["verdict"] == overall).all()


def test_missing_scores_and_single_images():
    scores = make_scores(good=draw(3), half=draw(3), never=np.full(24, np.nan), random=draw(seed=1))
    missing = (scores["method"] == "half") & scores["sample_id"].isin(["s0", "s1", "s2"])
    scores.loc[missing, "value"] = np.nan
    table = trust_table(scores).set_index("method")
    assert table["n"].to_dict() == {"good": 24, "half": 21, "never": 0}
    assert table.loc["half", "difference"] == pytest.approx((draw(3) - draw(seed=1))[3:].mean())
    assert table.loc["never", ["value", "low", "difference", "p_holm"]].isna().all()
    assert table["verdict"].tolist() == [BETTER, BETTER, NOT_SHOWN]
    ranked = rank_table(table.reset_index()).set_index("method")
    assert ranked.loc["never", "verdict"] == "not measured"
    one = trust_table(make_scores(good=[2.0], random=[1.0])).iloc[0]
    assert (one["difference"], one["n"], one["verdict"]) == (1, 1, NOT_SHOWN)
    assert one[["low", "high", "difference_low", "difference_high", "p_holm"]].isna().all()


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("bbbs", FOLLOWS),
        ("bbss", "better in part"),
        ("ssss", "not shown in any"),
        ("bsws", "mixed"),
        ("ssws", "worse in part"),
        ("wwws", "misleads"),
    ],
)
def test_the_verdict_on_a_method_in_words(verdicts, expected):
    words = {"b": BETTER, "s": NOT_SHOWN, "w": WORSE}
    trust = pd.DataFrame({"method": "m", "metric": range(4), "difference": 1.0})
    ranked = rank_table(trust.assign(verdict=[words[one] for one in verdicts]))
    assert ranked["verdict"].tolist() == [expected]
    ahead = "**m** beat the controls" if expected == FOLLOWS else "**no method beats"
    assert f"these 9 images, {ahead}" in describe_ranks(ranked, 9)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (make_scores(good=[1.0, 2.0]), "the scores need methods and controls"),
        (make_scores(random=[1.0, 2.0]), "the scores need methods and controls"),
        (make_scores(good=[1.0, 2.0]).drop(columns="value"), "need rows with the columns"),
        (make_scores(good=[1.0])[:0], "need rows"),
        (make_scores(good=[1.0, 2.0]).assign(metric="speed"), "unknown metric 'speed'"),
        (pd.concat([make_scores(good=[1.0], random=[0.0])] * 2), "good has two scores of inser"),
    ],
)
def test_scores_that_do_not_fit_are_named(scores, message):
    with pytest.raises(ValueError, match=message):
        trust_table(scores)


def test_figures_name_the_controls_as_the_tables_do():
    """plots may not import explain, so they are written twice."""
    from vitlab.plots import trust as figures

    assert set(figures.CONTROLS) == set(CONTROLS)


def test_a_failed_sanity_check_outweighs_the_rank():
    ranked = pd.DataFrame(
        {
            "method": ["a", "b", "c", "d"],
            "mean_rank": [1.0, 2.0, 3.0, 4.0],
            "better": [4, 3, 0, 3],
            "worse": [0, 0, 1, 0],
            "metrics": [5, 5, 5, 5],
            "verdict": [FOLLOWS, FOLLOWS, "worse in part", FOLLOWS],
        }
    )
    weights = {"method": ["a", "b", "d"], "verdict": [UNCHANGED, CHANGES, "not shown"]}
    classes = {"method": list("abcd"), "verdict": ["differs", SAME_CLASS, "differs", "differs"]}
    tests = {"weights": pd.DataFrame(weights), "other class": pd.DataFrame(classes)}
    found = summary_table(ranked, tests).set_index("method")
    assert found["better"].tolist() == ["4 of 5", "3 of 5", "0 of 5", "3 of 5"]
    assert found["weights"].tolist() == [UNCHANGED, CHANGES, "", "not shown"]
    assert found["conclusion"].tolist() == [
        "shows the image, not the model",
        "follows the model; cannot tell classes apart",
        "worse in part",
        UNTESTED,
    ]


def test_the_sign_test_is_that_of_scipy():
    better = np.r_[np.ones(10), -1, 0]  # one image is equal and is not counted
    row = trust_table(make_scores(good=better, random=np.zeros(12), centre=-np.ones(12))).iloc[0]
    assert row["control"] == "random" and row["n"] == 12 and row["verdict"] == BETTER
    assert row["p_holm"] == pytest.approx(binomtest(10, 11, alternative="greater").pvalue)
    mean, low, high, _ = mean_interval(better[:, None])
    bounds = row[["difference", "difference_low", "difference_high"]].astype(float)
    np.testing.assert_allclose(bounds, np.r_[mean, low, high])
    turned = trust_table(make_scores(bad=-better, random=np.zeros(12), centre=-9 * np.ones(12)))
    assert turned["verdict"].tolist() == [WORSE]
    methods = {f"m{i}": better for i in range(9)}
    among = trust_table(make_scores(**methods, random=np.zeros(12)))
    assert (among["p_holm"] > LEVEL).all(), "nine methods need clearer differences"


@pytest.mark.parametrize("shape", ["normal", "uniform", "exponential"])
@pytest.mark.parametrize("count", [9, 24])
def test_worthless_methods_are_seldom_called_better_or_worse(count, shape):
    """Nine methods whose differences have a median of zero. Target: 3.5% for 2.5% nominal.

    100 tables each: more than 6 errors have a chance of 1.2% at 2.5%; sign flips had 20%."""
    generator, wrong = np.random.default_rng(count), np.zeros(2)
    medians = {"normal": 0, "uniform": 0.5, "exponential": np.log(2)}
    methods = [f"m{i}" for i in range(9)]
    for _ in range(100):
        values = getattr(generator, shape)(size=(9, count)) - medians[shape]
        wide = pd.DataFrame(dict(zip(methods, values, strict=True))).assign(random=0.0)
        verdict = compare_with_controls(wide, methods, ["random"], 1)["verdict"]
        wrong += (verdict == BETTER).any(), (verdict == WORSE).any()
    assert (wrong <= 6).all(), wrong

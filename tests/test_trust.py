"""Controls, the table of trust and its verdicts."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.filters import scharr
from statsmodels.stats.multitest import multipletests

from tests.test_faithfulness import make_additive, make_map
from tests.toys import tiny_vit
from vitlab.evaluation.bootstrap import draw_counts
from vitlab.explain import explain
from vitlab.explain.controls import CONTROLS, control_maps
from vitlab.explain.removal import CellScorer
from vitlab.explain.trust import METRICS, correct_holm, describe_table, legend_table, rank_table, score_maps, trust_table


def make_scores(**values):
    """Scores of one metric, insertion (better high): method=values of images s0, s1, ..."""
    return pd.concat(
        pd.DataFrame({"method": name, "metric": "insertion", "sample_id": [f"s{i}" for i in range(len(row))], "value": row})
        for name, row in values.items()
    )


def draw(mean=0.0, count=24, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, count)


def test_controls():
    model = tiny_vit(size=16)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    like = explain(model, images, "saliency", sample_ids=["x", "y"])
    maps = control_maps(model, images, like)
    assert [found.method for found in maps] == list(CONTROLS)
    assert all((found.target, found.sample_ids, found.signed) == (like.target, ("x", "y"), False) for found in maps)
    random, centre, edges = (found.values for found in maps)
    assert random.shape == (2, 16, 16) and (random[0] != random[1]).any() and random.min() >= 0 and random.max() <= 1
    top = np.unravel_index(centre[0].argmax(), (16, 16))
    assert set(top) <= {7, 8} and centre[0, 0, 8] == pytest.approx(np.exp(-0.5 * (7.5**2 + 0.5**2) / 4**2))
    grey = (images * torch.tensor(model.transform.std)[:, None, None]).mean(dim=1).numpy()
    inside = np.s_[4:-4, 4:-4]  # scikit-image treats the border otherwise
    for image, found in zip(grey, edges, strict=True):
        expected = gaussian_filter(scharr(image), 16 / 28)[inside]
        np.testing.assert_allclose(found[inside] / found[inside].max(), expected / expected.max(), atol=1e-4)
    alone = control_maps(model, images[1:], explain(model, images[1:], "saliency", sample_ids=["y"]))
    for one, other in zip(alone, maps, strict=True):
        np.testing.assert_allclose(one.values[0], other.values[1], atol=1e-6)
    assert (control_maps(model, images, like, seed=1)[0].values != random).any()


def test_the_truth_is_better_than_all_controls():
    cells = np.random.default_rng(0).normal(size=(16, 36))
    model, images = make_additive(cells.tolist(), (6, 6), 12)
    exact, turned = make_map(images.sum(dim=1)), make_map(-images.sum(dim=1), "turned")
    scorer = CellScorer(model, images, exact, grid=(6, 6), score="logit")
    scores = score_maps(scorer, [exact, turned])
    assert set(scores["method"]) == {"exact", "turned", *CONTROLS}
    assert set(scores["metric"]) == {name for name, metric in METRICS.items() if metric.compute}
    assert not scores.duplicated(["method", "metric", "sample_id"]).any() and len(scores) == 5 * 8 * 16
    trust = trust_table(scores)
    table = trust.set_index(["method", "metric"])
    assert (table.loc["exact", "verdict"] == "better than all controls").all()
    ordered = ["deletion", "insertion", "comprehensiveness", "sufficiency", "sensitivity_n", "road"]
    assert (table.loc["turned"].loc[ordered, "verdict"] == "worse").all()
    assert table.loc[("turned", "infidelity"), "verdict"] == "better than all controls"  # it forecasts as well, upside down
    assert "sparseness" not in set(trust["metric"]) and "sparseness" in set(describe_table(scores)["metric"])
    for (method, metric), row in table.iterrows():
        means = scores[scores["metric"] == metric].groupby("method")["value"].mean()
        best = means[list(CONTROLS)].max() if METRICS[metric].better == "high" else means[list(CONTROLS)].min()
        sign = 1 if METRICS[metric].better == "high" else -1
        assert row["value"] == pytest.approx(means[method]) and row["control_value"] == pytest.approx(best)
        assert row["difference"] == pytest.approx(sign * (means[method] - best))
        assert row["low"] <= row["value"] <= row["high"] and row["difference_low"] <= row["difference"] <= row["difference_high"]
    ranks = rank_table(trust)
    assert ranks["method"].tolist() == ["exact", "turned"] and ranks["better"].tolist() == [7, 1]
    assert ranks["verdict"].tolist() == [
        "follows the model: better than all controls in 7 of 7",
        "misleads: worse than a control in 6 of 7, better than all in 1",
    ]


def test_the_interval_is_that_of_the_paired_bootstrap():
    scores = make_scores(good=draw(1), random=draw(seed=1), centre=draw(-0.5, seed=2))
    row = trust_table(scores, replicates=500, seed=3).iloc[0]
    gaps = draw(1) - draw(seed=1)
    drawn = np.concatenate(list(draw_counts(24, 500, seed=3))) @ gaps / 24
    assert row["control"] == "random" and row["difference"] == pytest.approx(gaps.mean())
    np.testing.assert_allclose(row[["difference_low", "difference_high"]].astype(float), np.quantile(drawn, [0.025, 0.975]))
    assert row["p_holm"] == pytest.approx(((drawn <= 0).sum() + 1) / 501) and row["n"] == 24


def test_every_control_counts_not_the_best_alone():
    """Better than the best mean for sure, but a wild control of lower mean is not shown to be beaten."""
    wild = 40 * draw(seed=5)
    wild -= wild.mean() + 2
    row = trust_table(make_scores(good=draw(3), random=draw(seed=1), centre=wild)).iloc[0]
    assert row["control"] == "random" and row["difference_low"] > 0 and row["verdict"] == "not shown"


def test_many_methods_need_clearer_differences():
    gap = np.full(24, 0.0)
    gap[:] = draw(seed=7)
    gap += 2.3 * gap.std() / np.sqrt(24) - gap.mean()  # just above what one test needs
    base = draw(seed=1)
    alone = trust_table(make_scores(good=base + gap, random=base))
    among = trust_table(make_scores(good=base + gap, random=base, **{f"idle{i}": base + draw(seed=20 + i) for i in range(10)}))
    assert alone["verdict"].iloc[0] == "better than all controls"
    assert among["verdict"].iloc[0] == "not shown" and among["p_holm"].iloc[0] > alone["p_holm"].iloc[0]


def test_holms_correction_is_that_of_statsmodels():
    p = np.array([0.01, 0.2, 0.01, 0.03, 0.6])
    np.testing.assert_allclose(correct_holm(p), multipletests(p, method="holm")[1])
    assert correct_holm(np.empty(0)).shape == (0,)


def test_worthless_methods_are_seldom_called_better():
    called = 0
    for seed in range(80):
        rows = {name: draw(seed=1000 * seed + place) for place, name in enumerate(["a", "b", "c", *CONTROLS])}
        called += (trust_table(make_scores(**rows), replicates=200)["verdict"] == "better than all controls").any()
    assert called <= 5  # below .025 in each; a binomial of 80 and .025 leaves this range twice in 100


def test_gaps_and_single_images():
    scores = make_scores(good=draw(3), half=draw(3), never=np.full(24, np.nan), random=draw(seed=1))
    scores.loc[(scores["method"] == "half") & scores["sample_id"].isin(["s0", "s1", "s2"]), "value"] = np.nan
    table = trust_table(scores).set_index("method")
    assert table["n"].to_dict() == {"good": 24, "half": 21, "never": 0}
    assert table.loc["half", "difference"] == pytest.approx((draw(3) - draw(seed=1))[3:].mean())
    assert table.loc["never", ["value", "low", "high", "difference", "difference_low", "p_holm"]].isna().all()
    assert table.loc["never", "verdict"] == "not shown" and table.loc["good", "verdict"] == "better than all controls"
    assert rank_table(table.reset_index()).set_index("method").loc["never", "verdict"] == "not measured"
    one = trust_table(make_scores(good=[2.0], random=[1.0])).iloc[0]
    assert one["difference"] == 1 and one["verdict"] == "not shown"
    assert np.isnan([one["low"], one["high"], one["difference_low"], one["difference_high"], one["p_holm"]]).all()
    assert (trust_table(make_scores(good=draw(3), random=draw()), replicates=0)["verdict"] == "not shown").all()


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("bbbs", "follows the model: better than all controls in 3 of 4"),
        ("bbss", "better in part: than all controls in 2 of 4, worse in none"),
        ("ssss", "not shown in any"),
        ("bsws", "mixed: better than all controls in 1 of 4, worse in 1"),
        ("ssws", "worse in part: than a control in 1 of 4, better than all in none"),
        ("wwws", "misleads: worse than a control in 3 of 4"),
    ],
)
def test_the_verdict_on_a_method_in_words(verdicts, expected):
    words = {"b": "better than all controls", "s": "not shown", "w": "worse"}
    trust = pd.DataFrame(
        {"method": "m", "metric": list(range(4)), "difference": 1.0, "verdict": [words[one] for one in verdicts]}
    )
    assert rank_table(trust)["verdict"].tolist() == [expected]


def test_a_legend_for_every_metric():
    legend = legend_table()
    assert legend["metric"].tolist() == list(METRICS) and set(legend["better"]) == {"high", "low", ""}
    assert legend["meaning"].str.len().gt(20).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, f: score_maps(s, [f], ["deltion"]), "unknown metric 'deltion'. Did you mean deletion"),
        (lambda s, f: score_maps(s, [f], options={"roads": {}}), "unknown metric 'roads'"),
        (lambda s, f: score_maps(s, [f], ["max_sensitivity"]), r"call vitlab.explain.max_sensitivity"),
        (lambda s, f: trust_table(make_scores(good=[1.0, 2.0])), "the scores have no control"),
        (lambda s, f: trust_table(make_scores(random=[1.0, 2.0])), "no method beside the controls"),
        (lambda s, f: trust_table(make_scores(good=[1.0, 2.0]).drop(columns="value")), "lack the columns value"),
        (lambda s, f: trust_table(make_scores(good=[1.0])[:0]), "have no row"),
        (lambda s, f: trust_table(make_scores(good=[1.0, 2.0]).assign(metric="speed")), "unknown metric 'speed'"),
        (lambda s, f: trust_table(make_scores(good=[1.0], random=[1.0]).assign(metric="sparseness")), "none of the metrics"),
        (lambda s, f: trust_table(pd.concat([make_scores(good=[1.0], random=[0.0])] * 2)), "good has two scores of insertion"),
        (lambda s, f: trust_table(make_scores(good=draw(), random=draw()), confidence=95), "confidence is a share"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    model, images = make_additive()
    found = make_map(images.sum(dim=1))
    with pytest.raises(ValueError, match=message):
        make(CellScorer(model, images, found, grid=(2, 2)), found)


def test_figures_rank_and_name_the_controls_as_the_tables_do():
    """plots may not import explain, so both are written twice."""
    from vitlab.plots import faithfulness, trust as figures

    assert set(faithfulness.CONTROLS) == set(CONTROLS)
    table = trust_table(make_scores(good=draw(1), idle=draw(seed=4), random=draw(seed=1), centre=draw(-0.5, seed=2)))
    ours, theirs = rank_table(table), figures.rank_methods(table)
    assert ours["method"].tolist() == theirs["method"].tolist()
    assert ours["mean_rank"].tolist() == theirs["mean_rank"].tolist() and ours["better"].tolist() == theirs["better"].tolist()

"""Comparison of models against statsmodels, scipy, scikit-posthocs and the published example of Demsar (JMLR 7, 2006)."""

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from tests.test_evaluation_metrics import DIGITS, make_predictions
from vitlab.evaluation import (
    METRICS,
    corrected_t,
    curve_band_table,
    describe_pairs,
    friedman_table,
    mcnemar_table,
    metrics_table,
    nemenyi_table,
    paired_table,
    pairwise_table,
    ranks_table,
    uncertainty_table,
)
from vitlab.evaluation.bootstrap import draw_counts
from vitlab.evaluation.metrics import compute_metrics
from vitlab.evaluation.paired import bootstrap_p
from vitlab.evaluation.scores import read_scores

C45 = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
AUC = [  # table 6 of Demsar (2006); the last voting value is .975 there, ranked before it was rounded as below the other one
    [0.763, 0.768, 0.771, 0.798],
    [0.599, 0.591, 0.590, 0.569],
    [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657],
    [0.882, 0.888, 0.886, 0.898],
    [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685],
    [0.583, 0.583, 0.563, 0.625],
    [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000],
    [0.940, 0.962, 0.965, 0.962],
    [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.975, 0.9749],
    [0.957, 0.978, 0.946, 0.970],
]


def make_runs(values, models):
    rows = [(model, seed, "auc", value) for seed, row in enumerate(values) for model, value in zip(models, row, strict=True)]
    return pd.DataFrame(rows, columns=["model", "seed", "metric", "value"])


@pytest.fixture
def demsar():
    return make_runs(AUC, C45)


def improve(predictions, count, seed=1):
    """The same predictions with some of the wrong answers mended, scores too."""
    better = predictions.copy()
    wrong = np.flatnonzero(better["label"] != better["pred"])
    rows = better.index[np.random.default_rng(seed).choice(wrong, count, replace=False)]
    better.loc[rows, ["prob_functional", "prob_defective"]] = better.loc[rows, ["prob_defective", "prob_functional"]].to_numpy()
    better.loc[rows, "pred"] = better.loc[rows, "label"]
    return better


def test_paired_differences_are_those_on_the_same_resamples():
    a = make_predictions(num_samples=200)
    b = improve(a, 15)
    table = paired_table(a, b.sample(frac=1, random_state=0), ("old", "new"), replicates=300, seed=5)
    assert tuple(table["metric"]) == METRICS and set(table["model_b"]) == {"new"}
    np.testing.assert_allclose(table["value_a"], metrics_table(a, replicates=0)["value"], atol=1e-9)
    np.testing.assert_allclose(table["value_b"], metrics_table(b, replicates=0)["value"], atol=1e-9)
    drawn = np.concatenate(list(draw_counts(200, 300, seed=5)))
    gaps = compute_metrics(read_scores(b, "test"), drawn, [1]) - compute_metrics(read_scores(a, "test"), drawn, [1])
    np.testing.assert_allclose(table[["low", "high"]], np.quantile(gaps, [0.025, 0.975], axis=0).T, atol=1e-9)
    np.testing.assert_allclose(table["p"], np.minimum(2 * ((gaps.round(12) <= 0).sum(axis=0) + 1) / 301, 1), atol=1e-9)
    assert (table["verdict"] == "new better").all()
    row = table.set_index("metric").loc["accuracy"]
    assert row["difference"] == pytest.approx(15 / 200)
    assert row["effect_size"] == pytest.approx(15 / (a["label"] != a["pred"]).sum())  # the share of the mistakes that is gone


def test_swapping_the_models_turns_every_sign():
    a, b = make_predictions(seed=0), improve(make_predictions(seed=0), 20)
    one, other = paired_table(a, b, replicates=200), paired_table(b, a, replicates=200)
    np.testing.assert_allclose(one[["difference", "effect_size"]], -other[["difference", "effect_size"]], atol=1e-9)
    np.testing.assert_allclose(one["low"], -other["high"], atol=1e-9)
    assert one["p"].equals(other["p"]) and (other["verdict"] == "a better").all()


def test_a_model_does_not_differ_from_itself():
    a = make_predictions(DIGITS)
    table = paired_table(a, a.sample(frac=1, random_state=1), replicates=100)
    assert (table["difference"].abs() < 1e-12).all() and (table["p"] == 1).all()
    assert (table["verdict"] == "no difference shown").all()


def test_the_bootstrap_p_by_hand():
    gaps = np.array([[0.1, 0.1, np.nan], [0.2, -0.1, np.nan], [0.3, 0.0, np.nan]])
    np.testing.assert_allclose(bootstrap_p(gaps), [2 / 4, 1, np.nan])


def test_the_paired_bootstrap_finds_chance_as_often_as_it_says():
    """Two models of equal worth: 5 % of the verdicts may name one of them."""
    shown = 0
    for seed in range(100):
        predictions = make_predictions(num_samples=120, seed=seed)
        other = make_predictions(num_samples=120, seed=seed + 1000)
        other["label"] = predictions["label"]
        for table, wrong in ((predictions, 0), (other, 1)):
            flip = np.random.default_rng([seed, wrong]).random(120) < 0.3
            answers = np.where(flip == (predictions["label"] == "functional"), "defective", "functional")
            table["pred"] = answers
        verdict = paired_table(predictions, other, metrics=["accuracy"], replicates=200, seed=seed)["verdict"].iloc[0]
        shown += verdict != "no difference shown"
    assert 1 <= shown <= 12  # a binomial of 100 and .05 leaves this range once in 100


def test_clusters_of_copies_make_a_difference_less_sure():
    a = make_predictions(num_samples=60)
    b = improve(a, 4)
    copies = [table.loc[np.repeat(table.index, 9)].assign(image=np.repeat(table.index, 9)) for table in (a, b)]
    for table in copies:
        table["sample_id"] = [str(i) for i in range(len(table))]
    plain = paired_table(*copies, metrics=["accuracy"]).iloc[0]
    clustered = paired_table(*copies, metrics=["accuracy"], cluster="image").iloc[0]
    assert (clustered["high"] - clustered["low"]) / (plain["high"] - plain["low"]) == pytest.approx(3, rel=0.2)
    one = paired_table(*copies, metrics=["accuracy"], cluster=np.zeros(540)).iloc[0]
    assert np.isnan(one["p"]) and one["verdict"] == "not tested"


def test_models_of_different_samples_are_not_compared():
    a = make_predictions(num_samples=20)
    with pytest.raises(ValueError, match=r"not tested on the same samples: 1 only in vit, first 's0'; 2 only in cnn, first 'x'"):
        b = pd.concat([a.iloc[1:], a.iloc[:2].assign(sample_id=["x", "y"])])
        paired_table(a, b, ("vit", "cnn"))
    b = a.copy()
    b.loc[3, "label"] = "functional" if a.loc[3, "label"] == "defective" else "defective"
    with pytest.raises(ValueError, match="1 samples have another label in b than in a, first 's3'"):
        mcnemar_table(a, b)
    with pytest.raises(ValueError, match="different classes"):
        paired_table(a, make_predictions(DIGITS, num_samples=20))
    with pytest.raises(ValueError, match="two different ones"):
        paired_table(a, a, ("vit", "vit"))
    with pytest.raises(ValueError, match="unknown metric 'auc'"):
        paired_table(a, a, metrics=["auc"])
    only = a.assign(label="functional")
    table = paired_table(only, only, metrics=["recall", "accuracy"], replicates=20)
    assert table["verdict"].tolist() == ["not defined: only functional", "no difference shown"]
    assert table.loc[0, ["difference", "low", "high", "p"]].isna().all()


def make_pair(both, only_a, only_b, neither):
    """Two tables of predictions with these numbers of right answers."""
    right = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, only_a, only_b, neither], axis=0).astype(bool)
    base = make_predictions(num_samples=len(right))
    other = np.where(base["label"] == "functional", "defective", "functional")
    return tuple(base.assign(pred=np.where(column, base["label"], other)) for column in right.T)


@pytest.mark.parametrize("counts", [(50, 2, 9, 5), (50, 10, 14, 5), (100, 30, 55, 7), (9, 0, 6, 1), (60, 30, 30, 2)])
def test_mcnemar_agrees_with_statsmodels(counts):
    row = mcnemar_table(*make_pair(*counts)).iloc[0]
    assert row[["both_right", "only_a_right", "only_b_right", "both_wrong"]].tolist() == list(counts)
    both, only_a, only_b, neither = counts
    expected = mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
    assert row["p"] == pytest.approx(expected, abs=1e-9)


def test_mcnemar_by_hand():
    row = mcnemar_table(*make_pair(20, 1, 8, 3), names=("old", "new")).iloc[0]
    assert row["p"] == pytest.approx(2 * (1 + 9) / 2**9)  # at most one of nine coins
    assert row["odds_ratio"] == pytest.approx(8) and row["effect_size"] == pytest.approx(8 / 9 - 1 / 2)
    interval = stats.binomtest(8, 9).proportion_ci(method="exact")
    assert [row["low"], row["high"]] == pytest.approx([interval.low / (1 - interval.low), interval.high / (1 - interval.high)])
    assert row["verdict"] == "new better"
    assert mcnemar_table(*make_pair(20, 8, 1, 3)).iloc[0]["verdict"] == "a better"
    row = mcnemar_table(*make_pair(20, 0, 0, 3)).iloc[0]
    assert row[["odds_ratio", "low", "high", "effect_size", "p"]].isna().all()
    assert row["verdict"].startswith("no difference shown: no sample")
    assert mcnemar_table(*make_pair(9, 0, 6, 1)).iloc[0]["odds_ratio"] == np.inf


def test_friedman_and_ranks_of_demsar(demsar):
    ranks = ranks_table(demsar, "auc").set_index("model")
    assert ranks.loc[list(C45), "mean_rank"].round(3).tolist() == [3.143, 2.000, 2.893, 1.964]  # as published
    assert ranks.index[0] == "C4.5+m+cf"
    k, n = 4, 14
    uncorrected = 12 * n / (k * (k + 1)) * ((ranks["mean_rank"] ** 2).sum() - k * (k + 1) ** 2 / 4)
    assert uncorrected == pytest.approx(9.28, abs=0.01)  # published, without correction for ties
    row = friedman_table(demsar).iloc[0]
    statistic, p = stats.friedmanchisquare(*np.array(AUC).T)
    assert row[["statistic", "p"]].tolist() == pytest.approx([statistic, p], abs=1e-9)
    assert row["statistic"] > uncorrected and row["verdict"] == "the models differ" and row["note"] == ""
    assert row["effect_size"] == pytest.approx(statistic / (n * (k - 1)), abs=1e-9)


def test_critical_difference_of_demsar(demsar):
    table = ranks_table(demsar, "auc")
    assert table["critical_difference"].iloc[0] == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)  # 1.25
    ninety = ranks_table(demsar, "auc", confidence=0.9)["critical_difference"].iloc[0]
    assert ninety == pytest.approx(2.291 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)  # 1.12
    pairs = nemenyi_table(demsar, "auc").set_index(["model_a", "model_b"])
    expected = scikit_posthocs.posthoc_nemenyi_friedman(np.array(AUC)).to_numpy()
    for i, j in ((0, 1), (0, 3), (2, 3)):
        assert pairs.loc[(C45[i], C45[j]), "p"] == pytest.approx(expected[i, j], abs=1e-9)
    assert pairs.loc[("C4.5", "C4.5+m+cf"), "effect_size"] == pytest.approx(3.143 - 1.964, abs=1e-3)
    assert (pairs["verdict"] == "no difference shown").all()  # the largest gap, 1.18, is below 1.25
    assert (nemenyi_table(demsar, "auc", 0.9)["verdict"] != "no difference shown").sum() == 2  # 1.18 and 1.14 are above 1.12


def test_kendalls_w_is_one_where_all_seeds_agree():
    runs = make_runs([[0.1, 0.2, 0.3], [0.5, 0.6, 0.9], [0.2, 0.4, 0.5]], "abc")
    row = friedman_table(runs).iloc[0]
    assert row["effect_size"] == pytest.approx(1) and row["statistic"] == pytest.approx(6)
    assert ranks_table(runs, "auc")["model"].tolist() == ["c", "b", "a"]


def test_few_seeds_or_models_are_said_not_tested(demsar):
    two = demsar[demsar["seed"] < 2]
    row = friedman_table(two).iloc[0]
    assert "2 seeds cannot show a difference: the smallest p they can reach is 0.11" in row["note"]
    assert "no two mean ranks can be 3.32 apart" in ranks_table(two, "auc")["note"].iloc[0]
    one = demsar[demsar["seed"] < 1]
    for table in (friedman_table(one), nemenyi_table(one, "auc"), pairwise_table(one, "auc")):
        assert table["p"].isna().all() and (table["note"] == "1 seed in common: nothing can be tested").all()
        assert (table["verdict"] == "not tested").all()
    assert pairwise_table(one, "auc")["effect_size"].isna().all()
    pair = demsar[demsar["model"].isin(C45[:2])]
    assert friedman_table(pair)["note"].iloc[0] == "2 models, and the test needs three"
    assert ranks_table(pair, "auc")["critical_difference"].isna().all() and nemenyi_table(pair, "auc")["p"].isna().all()
    level = friedman_table(make_runs([[0.5] * 3, [0.6] * 3], "abc"))
    assert np.isnan(level["p"].iloc[0]) and level["note"].iloc[0] == "all models are level on every seed"


def test_a_seed_that_a_model_lacks_is_left_out_and_named(demsar):
    part = demsar.drop(demsar[(demsar["seed"] == 3) & (demsar["model"] == "C4.5")].index)
    row = friedman_table(part).iloc[0]
    rest = np.delete(np.array(AUC), 3, axis=0)
    assert row["seeds"] == 13 and row["note"] == "not every model has a value for seed 3: left out"
    assert row["p"] == pytest.approx(stats.friedmanchisquare(*rest.T).pvalue, abs=1e-9)
    pairs = pairwise_table(part, "auc").set_index(["model_a", "model_b"])["seeds"]
    assert pairs["C4.5", "C4.5+m"] == 13 and pairs["C4.5+m", "C4.5+cf"] == 14  # of a pair, those that both have
    with pytest.raises(ValueError, match="unknown metric 'acc'"):
        ranks_table(demsar, "acc")


def test_pairs_agree_with_scipy_and_statsmodels(demsar):
    table = pairwise_table(demsar, "auc")
    values = pd.DataFrame(AUC, columns=C45)
    for row in table.itertuples():
        gaps = (values[row.model_b] - values[row.model_a]).round(12)
        assert row.p == pytest.approx(stats.wilcoxon(gaps).pvalue, abs=1e-9)
        interval = stats.ttest_rel(values[row.model_b], values[row.model_a]).confidence_interval()
        assert [row.low, row.difference, row.high] == pytest.approx([interval.low, gaps.mean(), interval.high], abs=1e-9)
    np.testing.assert_allclose(table["p_holm"], multipletests(table["p"], method="holm")[1], atol=1e-9)
    assert len(table) == 6 and (table["seeds"] == 14).all() and (table["test"] == "Wilcoxon").all()
    # two of the fourteen data sets are level, and the ranks of the other twelve sum to 78
    gaps = (values["C4.5+m"] - values["C4.5"]).round(12)
    wins = stats.rankdata(gaps[gaps != 0].abs())[(gaps[gaps != 0] > 0).to_numpy()].sum()
    assert table.iloc[0]["effect_size"] == pytest.approx((wins - (78 - wins)) / 78)


def test_five_seeds_cannot_convince_wilcoxon():
    runs = make_runs([[0.1 * s, 0.1 * s + 0.3 + 0.01 * s] for s in range(5)], "ab")
    row = pairwise_table(runs, "auc").iloc[0]
    assert row["p"] == pytest.approx(2 / 2**5) and row["effect_size"] == 1 and row["verdict"] == "no difference shown"
    assert row["note"] == "5 seeds cannot show a difference: the smallest p they can reach is 0.062"
    six = pairwise_table(make_runs([[0.1 * s, 0.1 * s + 0.3 + 0.01 * s] for s in range(6)], "ab"), "auc").iloc[0]
    assert six["p"] == pytest.approx(2 / 2**6) and six["verdict"] == "b better" and six["note"] == ""
    equal = pairwise_table(make_runs([[0.5, 0.5]] * 3, "ab"), "auc").iloc[0]
    assert equal["p"] == 1 and np.isnan(equal["effect_size"]) and equal["verdict"] == "no difference shown"


def test_corrected_t_by_hand():
    gaps = np.array([0.02, 0.04, 0.03, 0.05, 0.01])
    mean, low, high, p = corrected_t(gaps, 0.2)
    error = np.sqrt((1 / 5 + 0.2 / 0.8) * gaps.var(ddof=1))  # Nadeau and Bengio (2003): 1 / k + test / train
    assert mean == pytest.approx(0.03)
    assert p == pytest.approx(2 * stats.t.sf(0.03 / error, 4), abs=1e-12)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 4) * error)
    assert corrected_t(gaps, 0)[3] == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, abs=1e-12)
    assert corrected_t(np.zeros(3), 0.2) == (0, 0, 0, 1)
    assert np.isnan(corrected_t(np.full(3, 0.1), 0.2)[1:]).all() and np.isnan(corrected_t(np.ones(1), 0.2)[1:]).all()
    with pytest.raises(ValueError, match="share of the images"):
        corrected_t(gaps, 20)
    level = pairwise_table(make_runs([[0.5, 0.6]] * 3, "ab"), "auc", test_share=0.2).iloc[0]
    assert level["verdict"] == "not tested" and level["note"].startswith("the same difference on every seed")
    runs = make_runs([[0, gap] for gap in gaps], "ab")
    row = pairwise_table(runs, "auc", test_share=0.2).iloc[0]
    assert row["p"] == pytest.approx(p) and row["test"] == "corrected t"


def test_a_difference_that_only_the_correction_hides_is_told_so():
    pairs = [(0.01, 0.0), (0.03, 0.06), (0.04, -0.05), (0.05, 0.03)]  # of b: t = 3.8 with 3 degrees of freedom, p = .03
    runs = make_runs([[0.5, 0.5 + first, 0.5 + second] for first, second in pairs], "abc")
    table = pairwise_table(runs, "auc", test_share=0.0)
    hidden = table[(table["low"] * table["high"] > 0) & (table["verdict"] == "no difference shown")]
    assert hidden["model_b"].tolist() == ["b"] and hidden["p"].iloc[0] == pytest.approx(0.032, abs=0.002)
    text = describe_pairs(table)
    for row in hidden.itertuples():
        span = f"[{row.low:+.3f}, {row.high:+.3f}]"
        assert (
            f"{row.model_b} against {row.model_a}: no difference shown; {span} by itself, but not after correction for 3" in text
        )
    assert text.count("may lie anywhere") == 2


def test_verdicts_in_sentences():
    gaps = [0.02, 0.04, 0.03, 0.05, 0.01, 0.03, 0.04]
    runs = make_runs([[0.5, 0.5 + gap, 0.5 + gap * (-1) ** seed] for seed, gap in enumerate(gaps)], "abc")
    table = pairwise_table(runs, "auc")
    text = describe_pairs(table)
    low, high = table.loc[0, ["low", "high"]]
    assert text.startswith(
        f"b against a: +0.031 [{low:+.3f}, {high:+.3f}], b better. c against a: no difference shown; it may lie"
    )
    assert "not tested (1 seed in common" in describe_pairs(pairwise_table(runs[runs["seed"] == 0], "auc"))
    alone = pairwise_table(runs[runs["model"] == "a"], "auc")
    assert alone.empty and describe_pairs(alone).startswith("There is one model")
    assert friedman_table(runs[runs["model"] == "a"])["verdict"].tolist() == ["not tested"]


def test_uncertainty_apart():
    runs = {seed: make_predictions(num_samples=400, seed=seed) for seed in range(6)}
    for seed, table in runs.items():
        table["sample_id"] = [f"{seed}-{i}" for i in range(400)]  # no image is tested twice
    table = uncertainty_table(runs, ["accuracy", "roc_auc"], replicates=600).set_index("metric")
    values = [metrics_table(run, replicates=0).set_index("metric")["value"] for run in runs.values()]
    accuracy = np.array([value["accuracy"] for value in values])
    row = table.loc["accuracy"]
    assert row["mean"] == pytest.approx(accuracy.mean()) and row["seed_sd"] == pytest.approx(accuracy.std(ddof=1))
    assert row["sampling_sd"] == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 400).mean(), rel=0.06)
    half = (row["sampling_high"] - row["sampling_low"]) / 2
    assert half == pytest.approx(1.96 * row["sampling_sd"] / np.sqrt(6), rel=0.15)  # six runs on other images: a mean of six
    half = (row["seed_high"] - row["seed_low"]) / 2
    assert half == pytest.approx(1.96 * accuracy.std() / np.sqrt(6), rel=0.15)
    assert row["total_high"] - row["total_low"] > max(2 * half, row["sampling_high"] - row["sampling_low"])
    assert (table["seeds"] == 6).all() and (table["note"] == "").all()


def test_images_that_all_seeds_test_are_drawn_for_all_of_them():
    run = make_predictions(num_samples=300)
    table = uncertainty_table(dict.fromkeys(range(5), run), ["accuracy"], replicates=500).iloc[0]
    single = metrics_table(run, replicates=500).set_index("metric").loc["accuracy"]
    assert table["seed_sd"] == 0 and table["seed_high"] - table["seed_low"] < 1e-9
    # five times the same run says no more than one: the interval must not shrink by sqrt(5)
    assert table[["sampling_low", "sampling_high"]].tolist() == pytest.approx([single["low"], single["high"]], abs=1e-9)
    assert table[["total_low", "total_high"]].tolist() == pytest.approx([single["low"], single["high"]], abs=1e-9)


def test_few_seeds_are_said():
    run = make_predictions(num_samples=100)
    one = uncertainty_table({0: run}, ["f1"], replicates=50).iloc[0]
    assert one[["seed_sd", "seed_low", "seed_high", "total_low", "total_high"]].isna().all() and one["sampling_low"] < one["mean"]
    assert one["note"] == "one seed: the spread over seeds is unknown"
    assert (
        uncertainty_table({0: run, 1: run}, ["f1"], replicates=50)["note"].iloc[0] == "only 2 seeds: their spread is hardly known"
    )
    lacking = {0: run, 1: run.assign(label="functional")}
    table = uncertainty_table(lacking, ["recall", "accuracy"], replicates=50)
    assert table.loc[0].drop(["metric", "seeds", "note"]).isna().all() and table.loc[0, "note"] == "seed 1: only functional"
    assert table.loc[1, "mean"] > 0
    with pytest.raises(ValueError, match="no predictions"):
        uncertainty_table({})
    with pytest.raises(ValueError, match="seed 1 0, 1, 2"):
        uncertainty_table({0: run, 1: make_predictions(DIGITS)})


BAD = {
    "NaN or infinite scores": {"prob_defective": np.nan},
    "sum to": {"prob_defective": 0.9, "prob_functional": 0.9},
    "more than once": {"sample_id": "s1"},
    "unknown label 'broken'": {"label": "broken"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_predictions_are_refused_by_every_table(message):
    good = make_predictions(num_samples=10)
    bad = good.copy()
    for column, value in BAD[message].items():
        bad.loc[0, column] = value
    for make in (
        metrics_table,
        curve_band_table,
        lambda table: paired_table(good, table),
        lambda table: mcnemar_table(table, good),
        lambda table: uncertainty_table({0: good, 1: table}),
    ):
        with pytest.raises(ValueError, match=message):
            make(bad)

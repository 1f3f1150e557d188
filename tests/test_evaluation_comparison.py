"""Comparison of models: hand-computed values, statsmodels, and simulated error rates."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from tests.test_evaluation_metrics import DIGITS, make_predictions
from vitlab.evaluation import (
    METRICS,
    curve_band_table,
    mcnemar_table,
    metrics_table,
    paired_table,
    pairwise_table,
    uncertainty_table,
)
from vitlab.evaluation.bootstrap import draw_counts
from vitlab.evaluation.metrics import prepare_metrics
from vitlab.evaluation.paired import compare_runs
from vitlab.evaluation.scores import Scores, read_scores
from vitlab.evaluation.sentences import describe_order, describe_pairs
from vitlab.evaluation.uncertainty import (
    ImageVariance,
    RunScores,
    image_variance,
    resample_runs,
    total_error,
)


def improve(predictions, count, seed=1):
    """The same predictions with some of the wrong answers corrected, scores too."""
    better = predictions.copy()
    wrong = np.flatnonzero(better["label"] != better["pred"])
    rows = better.index[np.random.default_rng(seed).choice(wrong, count, replace=False)]
    better.loc[rows, ["prob_functional", "prob_defective"]] = better.loc[
        rows, ["prob_defective", "prob_functional"]
    ].to_numpy()
    better.loc[rows, "pred"] = better.loc[rows, "label"]
    return better


def test_paired_differences_are_those_on_the_same_resamples():
    a = make_predictions(num_samples=200)
    b = improve(a, 15)
    table = paired_table(a, b.sample(frac=1, random_state=0), ("old", "new"), replicates=300)
    assert tuple(table["metric"]) == METRICS and set(table["model_b"]) == {"new"}
    np.testing.assert_allclose(table["value_a"], metrics_table(a, replicates=0)["value"], atol=1e-9)
    np.testing.assert_allclose(table["value_b"], metrics_table(b, replicates=0)["value"], atol=1e-9)
    drawn = np.concatenate(list(draw_counts(200, 300)))
    one, other = (prepare_metrics(read_scores(table, "test"))(drawn) for table in (a, b))
    gaps = other - one
    error = gaps.std(axis=0, ddof=1) * np.sqrt(200 / 199)
    half = stats.t.ppf(0.975, 199) * error
    np.testing.assert_allclose(table["high"] - table["difference"], half, atol=1e-9)
    np.testing.assert_allclose(table["difference"] - table["low"], half, atol=1e-9)
    np.testing.assert_allclose(
        table["p"], 2 * stats.t.sf(table["difference"] / error, 199), atol=1e-9
    )
    assert (table["verdict"] == "new better").all()
    row = table.set_index("metric").loc["accuracy"]
    assert row["difference"] == pytest.approx(15 / 200)


def test_a_model_does_not_differ_from_itself():
    a = make_predictions(DIGITS)
    table = paired_table(a, a.sample(frac=1, random_state=1), replicates=100)
    assert (table["difference"].abs() < 1e-12).all() and (table["p"] == 1).all()
    assert (table["verdict"] == "no difference shown").all()


def test_clusters_of_copies_make_a_difference_less_sure():
    a = make_predictions(num_samples=60)
    b = improve(a, 4)
    copies = [
        table.loc[np.repeat(table.index, 9)].assign(image=np.repeat(table.index, 9))
        for table in (a, b)
    ]
    for table in copies:
        table["sample_id"] = [str(i) for i in range(len(table))]
    plain = paired_table(*copies, metrics=["accuracy"]).iloc[0]
    clustered = paired_table(*copies, metrics=["accuracy"], cluster="image").iloc[0]
    assert (clustered["high"] - clustered["low"]) / (plain["high"] - plain["low"]) == pytest.approx(
        3, rel=0.2
    )
    one = paired_table(*copies, metrics=["accuracy"], cluster=np.zeros(540)).iloc[0]
    assert np.isnan(one["p"]) and one["verdict"] == "not tested"


def test_models_of_different_samples_are_not_compared():
    a = make_predictions(num_samples=20)
    with pytest.raises(
        ValueError,
        match=(
            r"not tested on the same images: 1 only in vit, first 's0'; 2 only in cnn, first 'x'"
        ),
    ):
        b = pd.concat([a.iloc[1:], a.iloc[:2].assign(sample_id=["x", "y"])])
        paired_table(a, b, ("vit", "cnn"))
    b = a.copy()
    b.loc[3, "label"] = "functional" if a.loc[3, "label"] == "defective" else "defective"
    with pytest.raises(ValueError, match="1 images have another label in b than in a, first 's3'"):
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
    right = np.repeat(
        [[1, 1], [1, 0], [0, 1], [0, 0]], [both, only_a, only_b, neither], axis=0
    ).astype(bool)
    base = make_predictions(num_samples=len(right))
    other = np.where(base["label"] == "functional", "defective", "functional")
    return tuple(base.assign(pred=np.where(column, base["label"], other)) for column in right.T)


@pytest.mark.parametrize(
    "counts", [(50, 2, 9, 5), (50, 10, 14, 5), (100, 30, 55, 7), (9, 0, 6, 1), (60, 30, 30, 2)]
)
def test_mcnemar_agrees_with_statsmodels(counts):
    row = mcnemar_table(*make_pair(*counts)).iloc[0]
    assert row[["both_right", "only_a_right", "only_b_right", "both_wrong"]].tolist() == list(
        counts
    )
    both, only_a, only_b, neither = counts
    expected = mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
    assert row["p"] == pytest.approx(expected, abs=1e-9)


def test_mcnemar_by_hand():
    row = mcnemar_table(*make_pair(20, 1, 8, 3), names=("old", "new")).iloc[0]
    assert row["p"] == pytest.approx(2 * (1 + 9) / 2**9)  # at most one of nine coins
    assert row["verdict"] == "new better"
    assert mcnemar_table(*make_pair(20, 8, 1, 3)).iloc[0]["verdict"] == "a better"
    row = mcnemar_table(*make_pair(20, 0, 0, 3)).iloc[0]
    assert np.isnan(row["p"]) and row["verdict"].startswith("no difference shown: no image")


def make_experiment(generator, images, test, seeds, fixed, accuracy=(0.8, 0.8), seed_sd=0.01):
    """Predictions of the models a and b by seed, on one test split or one for each seed; an image
    is as difficult for both.
    """
    right, tests = draw_answers(generator, images, test, seeds, fixed, accuracy, seed_sd)
    base = make_predictions(num_samples=images, seed=int(generator.integers(1000)))
    tables = {}
    for model, answers in zip("ab", right, strict=True):
        for seed, (rows, good) in enumerate(zip(tests, answers, strict=True)):
            other = np.where(base["label"] == "functional", "defective", "functional")
            table = base.assign(pred=np.where(good, base["label"], other))
            tables.setdefault(model, {})[seed] = table.iloc[rows].reset_index(drop=True)
    return tables


def draw_answers(generator, images, test, seeds, fixed, accuracy, seed_sd):
    """Which images are right, (2, seeds, images), and the test images of each seed."""
    shares = np.clip(
        np.array(accuracy)[:, None] + generator.normal(size=(2, seeds)) * seed_sd, 0.01, 0.99
    )
    common, own, run = (
        generator.normal(size=shape) for shape in (images, (2, 1, images), (2, seeds, images))
    )
    right = (
        np.sqrt(0.5) * common + np.sqrt(0.3) * own + np.sqrt(0.2) * run
        < stats.norm.ppf(shares)[..., None]
    )
    tests = [generator.permutation(images)[:test] for _ in range(1 if fixed else seeds)]
    return right, tests * seeds if fixed else tests


def share_of_verdicts(images, test, seeds, fixed, trials, seed_sd=0.01, clusters=None):
    """How often a difference is shown at 5 % between two models of the same expected accuracy."""
    generator, shown = np.random.default_rng([images, test, seeds]), 0
    counts = np.concatenate(list(draw_counts(images, 200, 0, clusters)))
    drawn_images = images if clusters is None else clusters.max() + 1
    for _ in range(trials):
        right, tests = draw_answers(
            generator, drawn_images, test, seeds, fixed, (0.8, 0.8), seed_sd
        )
        if clusters is not None:
            right, tests = right[:, :, clusters], [np.arange(images)] * seeds
        tested = np.zeros((seeds, images))
        np.put_along_axis(tested, np.array(tests), 1, axis=1)
        answers, tested = (right * tested).reshape(2 * seeds, images), np.tile(tested, (2, 1))
        values, drawn = (
            answers.sum(axis=1) / tested.sum(axis=1),
            (counts @ answers.T) / (counts @ tested.T),
        )
        units = tests * 2 if clusters is None else [clusters] * 2 * seeds
        runs = RunScores(values[:, None], drawn[:, :, None], tests * 2, units, [""] * 2 * seeds)
        shown += compare_runs(runs, range(seeds), range(seeds, 2 * seeds), 0)["p"] < 0.05
    return shown / trials


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(
    ("images", "test", "fixed", "trials", "seed_sd"),
    [
        (200, 200, True, 400, 0.01),
        (10_000, 10_000, True, 300, 0.003),
        (2000, 400, False, 300, 0.01),
    ],
)
def test_models_of_equal_accuracy_are_told_apart_in_at_most_seven_percent(
    images, test, fixed, trials, seed_sd, seeds
):
    """Target: at most 7 %, where the s.d. over seeds is about what the test images make. More:
    benchmarks/bench_evaluation.py.
    """
    assert share_of_verdicts(images, test, seeds, fixed, trials, seed_sd) <= 0.07


def share_of_normal_verdicts(seeds, shared, seed_sd, common=0.5, own=0.3, trials=1000):
    """`share_of_verdicts` for normal scores. What the images make in one run has variance 1: a part
    is common to both models, a part is each model's own, the rest each run's. shared: which part of
    its test images a seed has in common with another one."""
    generator = np.random.default_rng(seeds)

    def draw(rows):  # (rows, 2 * seeds), all seeds of the first model first
        values = np.sqrt(1 - common - own) * generator.normal(size=(rows, 2, seeds))
        for variance, models in ((common, 1), (own, 2)):
            values += np.sqrt(variance * shared) * generator.normal(size=(rows, models, 1))
            values += np.sqrt(variance * (1 - shared)) * generator.normal(
                size=(rows, models, seeds)
            )
        return values.reshape(rows, -1)

    drawn, values = draw(500), draw(trials)
    values += seed_sd * generator.normal(size=values.shape)
    units = [np.arange(500)] * 2 * seeds
    given = (drawn[:, :, None], units, units, [""] * 2 * seeds)
    runs = (RunScores(row[:, None], *given) for row in values)
    return np.mean(
        [compare_runs(run, range(seeds), range(seeds, 2 * seeds), 0)["p"] < 0.05 for run in runs]
    )


@pytest.mark.parametrize("common", [0.5, 0.9])
@pytest.mark.parametrize("shared", [1.0, 0.2], ids=["fixed", "resampled"])
@pytest.mark.parametrize(
    ("seeds", "seed_sd"), [(3, 0.5), (3, 1.5), (3, 2.5), (5, 1.5), (10, 1.5), (10, 10)]
)
def test_three_seeds_and_more_hold_the_level_whatever_the_seeds_do(seeds, seed_sd, shared, common):
    """Target: at most 7 %. seed_sd: in units of what the test images make in one run."""
    assert share_of_normal_verdicts(seeds, shared, seed_sd, common, (1 - common) / 2) <= 0.07


@pytest.mark.parametrize(("shared", "most"), [(1.0, 0.1), (0.2, 0.12)], ids=["fixed", "resampled"])
def test_two_seeds_hold_the_level_while_the_seeds_vary_little(shared, most):
    """At most 7 % for a s.d. up to 1.5 times that of the images; the docstring of `pairwise_table`
    says what is beyond.
    """
    assert (
        max(share_of_normal_verdicts(2, shared, seed_sd) for seed_sd in (0.35, 0.75, 1.0)) <= 0.05
    )
    assert share_of_normal_verdicts(2, shared, 1.5) <= 0.075
    assert share_of_normal_verdicts(2, shared, 3.0) <= most


def test_one_seed_is_a_test_of_the_images():
    """Models of equal accuracy whose seeds do not vary: at most 7 %."""
    assert share_of_verdicts(200, 200, 1, True, 400, seed_sd=0) <= 0.07


def test_copies_of_images_do_not_make_a_verdict_more_frequent():
    clusters = np.repeat(np.arange(150), 4)
    assert share_of_verdicts(600, 150, 2, True, 200, clusters=clusters) <= 0.07


def test_a_difference_of_a_tenth_is_shown_with_two_seeds():
    """AUC .80 against .90 on 500 images, s.d. over seeds .015, fixed and resampled splits: shown in
    90 % of the trials.
    """
    generator, shown, slope = np.random.default_rng(0), {True: 0, False: 0}, np.sqrt(2)
    for fixed in [True] * 100 + [False] * 150:
        images = 500 if fixed else 2500
        label = (generator.random(images) < 0.4).astype(int)
        common, own = generator.normal(size=images), generator.normal(size=(2, images))
        tests = [generator.permutation(images)[:500] for _ in range(2)]
        scores, places = [], []
        for model, auc in enumerate((0.8, 0.9)):
            for rows in tests:
                distance = slope * stats.norm.ppf(auc + 0.015 * generator.normal())
                noise = np.sqrt([0.5, 0.3, 0.2]) @ [
                    common,
                    own[model],
                    generator.normal(size=images),
                ]
                prob = stats.norm.cdf(distance * label + noise - 1)[rows]
                scores.append(
                    Scores(
                        ("no", "yes"),
                        label[rows],
                        (prob > 0.5).astype(int),
                        np.stack([1 - prob, prob], axis=1),
                    )
                )
                places.append(rows)
        runs = resample_runs(scores, places, ["roc_auc"], images, 100)
        shown[fixed] += compare_runs(runs, [0, 1], [2, 3], 0)["p"] < 0.05
    assert shown[True] >= 90 and shown[False] >= 135


def test_a_pair_by_hand():
    """Two images that both seeds test, so the error by images is that of one mean, and the seeds do
    not vary.
    """
    runs = make_experiment(np.random.default_rng(1), 50, 50, 1, True, (0.6, 0.9), seed_sd=0)
    twice = {model: {0: tables[0], 1: tables[0]} for model, tables in runs.items()}
    one, two = (
        pairwise_table(tables, "accuracy", replicates=4000).iloc[0] for tables in (runs, twice)
    )
    right = [(runs[model][0]["label"] == runs[model][0]["pred"]).to_numpy(float) for model in "ab"]
    gaps = right[1] - right[0]
    expected = stats.ttest_1samp(gaps, 0)
    assert one["difference"] == pytest.approx(gaps.mean()) and one["p"] == pytest.approx(
        expected.pvalue, abs=0.005
    )
    interval = expected.confidence_interval()
    assert [one["low"], one["high"]] == pytest.approx([interval.low, interval.high], abs=0.006)
    assert (
        one["note"].startswith("one seed")
        and one["test_images"] == "50"
        and two["test_images"] == "50, the same for all seeds"
    )
    assert two["high"] - two["low"] > one["high"] - one["low"], (
        "two seeds do not make the images more"
    )


def test_the_error_of_a_mean_over_seeds_by_hand():
    images = ImageVariance(mean=0.0004, run=0.0005, spread=0.0002)
    error, freedom = total_error(images, 0.003, seeds=3, models=2, units=100)
    assert error == pytest.approx(np.sqrt(0.0004 + 0.003 / 3))
    assert freedom == pytest.approx(0.0014**2 / (0.0004**2 / 99 + 0.001**2 / 4))
    error, freedom = total_error(images, 0.0, seeds=3, models=2, units=100)
    assert error == pytest.approx(np.sqrt(0.0004 + 0.0005 / 3)), "seeds that agree by luck"
    assert freedom == pytest.approx(error**4 / (0.0004**2 / 99 + (0.0005 / 3) ** 2 / 4))
    error, freedom = total_error(images, 0.003, seeds=2, models=2, units=100)
    assert freedom == pytest.approx(error**4 / (0.0004**2 / 99 + ((0.003 - 0.0002) / 2) ** 2 / 2))
    assert total_error(images, np.nan, seeds=1, models=2, units=100) == pytest.approx((0.02, 99))
    drawn = np.random.default_rng(0).multivariate_normal([0, 0], [[4, 1], [1, 4]], size=200_000)
    found = image_variance(drawn, units=10)
    assert [found.mean, found.run, found.spread] == pytest.approx(
        [2.5 / 0.9, 4 / 0.9, 3 / 0.9], rel=0.02
    )
    assert np.isnan(image_variance(drawn, units=1).mean)


def test_pairs_are_corrected_for_their_number_and_named():
    generator = np.random.default_rng(3)
    runs = make_experiment(generator, 400, 400, 2, True, (0.7, 0.9))
    runs["c"] = make_experiment(np.random.default_rng(3), 400, 400, 2, True, (0.7, 0.71))["b"]
    table = pairwise_table(runs, "accuracy", replicates=200)
    np.testing.assert_allclose(
        table["p_holm"], multipletests(table["p"], method="holm")[1], atol=1e-9
    )
    assert table["verdict"].tolist()[0] == "b better" and len(table) == 3
    assert describe_order(table).startswith("b is shown to be better than every other model (b 0.9")
    assert describe_pairs(table).startswith(
        f"b against a: {table['difference'][0]:+.3f} [{table['low'][0]:+.3f}, "
    )
    only = pairwise_table(runs, "accuracy", replicates=50, against="c")
    assert only["model_a"].tolist() == ["c", "c"] and only["model_b"].tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="unknown model 'd'"):
        pairwise_table(runs, "accuracy", against="d")
    level = pairwise_table({"a": runs["a"], "copy": runs["a"]}, "accuracy", replicates=50)
    assert level["p"].tolist() == [1] and "not shown to be better than copy" in describe_order(
        level
    )
    assert "95% interval [" in describe_pairs(level)
    alone = pairwise_table({"a": runs["a"]}, "accuracy", replicates=50)
    assert (
        alone.empty
        and describe_pairs(alone).startswith("There is only one model")
        and "one model" in describe_order(alone)
    )
    one = pairwise_table(
        {model: {0: tables[0]} for model, tables in runs.items()}, "accuracy", replicates=200
    )
    assert "this holds for other images only" in describe_pairs(
        one
    ) and "there is one seed" in describe_order(one)
    apart = pairwise_table(
        {"a": {0: runs["a"][0]}, "b": {1: runs["b"][1]}}, "accuracy", replicates=50
    )
    assert describe_pairs(apart) == "b against a: not tested (no seed in common)."
    hidden = pd.concat([table.assign(low=0.01, high=0.05, verdict="no difference shown")])
    assert "after correction; [+0.010, +0.050] without correction for 3 pairs" in describe_pairs(
        hidden
    )


def test_splits_drawn_anew_are_seen_in_the_sample_ids():
    runs = make_experiment(np.random.default_rng(0), 1000, 200, 4, False)
    table = pairwise_table(runs, "accuracy", replicates=50)
    ids = [set(frame["sample_id"]) for frame in runs["a"].values()]
    shared = np.mean([len(ids[i] & ids[j]) / 200 for i in range(4) for j in range(i)])
    assert (
        table["test_images"].tolist() == [f"200 for each seed, {shared:.0%} in common"]
        and 0.15 < shared < 0.25
    )


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_contain_their_value(metric):
    for seed in range(3):
        runs = {
            model: {s: make_predictions(DIGITS, 60, 10 * seed + s + shift) for s in range(2)}
            for model, shift in (("a", 0), ("b", 5))
        }
        for tables in runs.values():
            for number, frame in tables.items():
                frame["label"] = runs["a"][number]["label"]
        for table, value in (
            (pairwise_table(runs, metric, replicates=40), "difference"),
            (
                paired_table(runs["a"][0], runs["b"][0], metrics=[metric], replicates=40),
                "difference",
            ),
            (
                uncertainty_table(runs["a"], [metric], replicates=40).rename(
                    columns=lambda c: c.removeprefix("total_")
                ),
                "mean",
            ),
        ):
            row = table.iloc[0]
            assert row["low"] <= row[value] <= row["high"] or np.isnan(row[value])


def test_clusters_count_once_in_mcnemars_test():
    a, b = make_pair(20, 4, 12, 4)
    cluster = np.r_[np.arange(24), np.repeat([100, 101, 102], 4), np.arange(200, 204)].astype(
        str
    )  # b's twelve are three clusters
    row = mcnemar_table(a, b, cluster=pd.Series(cluster, index=a["sample_id"])).iloc[0]
    assert row["only_b_right"] == 12 and row["p"] == pytest.approx(stats.binomtest(3, 7).pvalue)
    assert mcnemar_table(a, b).iloc[0]["p"] == pytest.approx(stats.binomtest(12, 16).pvalue)


def test_uncertainty_apart():
    runs = {seed: make_predictions(num_samples=400, seed=seed) for seed in range(6)}
    for seed, table in runs.items():
        table["sample_id"] = [f"{seed}-{i}" for i in range(400)]  # no image is tested twice
    table = uncertainty_table(runs, ["accuracy", "roc_auc"], replicates=600).set_index("metric")
    values = [
        metrics_table(run, replicates=0).set_index("metric")["value"] for run in runs.values()
    ]
    accuracy = np.array([value["accuracy"] for value in values])
    row = table.loc["accuracy"]
    assert row["mean"] == pytest.approx(accuracy.mean()) and row["seed_sd"] == pytest.approx(
        accuracy.std(ddof=1)
    )
    assert row["sampling_sd"] == pytest.approx(
        np.sqrt(accuracy * (1 - accuracy) / 400).mean(), rel=0.06
    )
    half = (row["sampling_high"] - row["sampling_low"]) / 2
    # six runs on other images: a mean of six
    assert half == pytest.approx(1.96 * row["sampling_sd"] / np.sqrt(6), rel=0.15)
    half = (row["seed_high"] - row["seed_low"]) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, 5) * accuracy.std(ddof=1) / np.sqrt(6))
    assert row["total_high"] - row["total_low"] > row["sampling_high"] - row["sampling_low"]
    assert (table["seeds"] == 6).all() and (table["note"] == "").all()


def test_images_that_all_seeds_test_are_drawn_for_all_of_them():
    run = make_predictions(num_samples=300)
    table = uncertainty_table(dict.fromkeys(range(5), run), ["accuracy"], replicates=500).iloc[0]
    single = uncertainty_table({0: run}, ["accuracy"], replicates=500).iloc[0]
    assert table["seed_sd"] == 0 and table["seed_high"] - table["seed_low"] < 1e-9
    # five times the same run says no more than one: the interval must not shrink by sqrt(5)
    ends = ["sampling_low", "sampling_high"]
    assert table[ends].tolist() == pytest.approx(single[ends].tolist(), abs=1e-9)
    wider = (table["total_high"] - table["total_low"]) / (
        table["sampling_high"] - table["sampling_low"]
    )
    assert wider == pytest.approx(np.sqrt(1 + 2 / 4 / 5), rel=0.01), (
        "seeds that agree by luck are taken to vary a little"
    )


def test_few_seeds_are_said():
    run = make_predictions(num_samples=100)
    one = uncertainty_table({0: run}, ["f1"], replicates=50).iloc[0]
    assert (
        one[["seed_sd", "seed_low", "seed_high", "total_low", "total_high"]].isna().all()
        and one["sampling_low"] < one["mean"]
    )
    assert one["note"] == "one seed: the spread over seeds is unknown"
    assert (
        uncertainty_table({0: run, 1: run}, ["f1"], replicates=50)["note"].iloc[0]
        == "only 2 seeds: their spread is hardly known"
    )
    lacking = {0: run, 1: run.assign(label="functional")}
    table = uncertainty_table(lacking, ["recall", "accuracy"], replicates=50)
    assert (
        table.loc[0].drop(["metric", "seeds", "note"]).isna().all()
        and table.loc[0, "note"] == "seed 1: only functional"
    )
    assert table.loc[1, "mean"] > 0
    with pytest.raises(ValueError, match="no predictions"):
        uncertainty_table({})
    with pytest.raises(ValueError, match="seed 1 has 0, 1, 2"):
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

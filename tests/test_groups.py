"""Images that come in groups: the modules of ELPV, splits, scores and tests by group."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.predictions import fill_binary
from vitlab.checks.splits import (
    HEAD,
    compare_splits,
    describe_tests,
    predict_tests,
    predictions_by_split,
)
from vitlab.data import load_dataset
from vitlab.data.datasets import find_group_problem
from vitlab.data.elpv import LINKED
from vitlab.data.quality import logistic_head
from vitlab.errors import UserError
from vitlab.evaluation import metrics_table, pairwise_table, split_table, uncertainty_table
from vitlab.evaluation.sentences import describe_splits
from vitlab.run_tables import latest_runs, read_tests
from vitlab.runs import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import elpv_modules


@pytest.fixture(scope="module")
def elpv():
    return load_dataset("elpv")


def test_the_modules_of_elpv_have_the_documented_numbers(elpv):
    samples = elpv.samples
    modules = samples.groupby("module")
    assert modules["group"].nunique().max() == 1  # one cell type in a module
    kinds = modules["group"].first().value_counts()
    # of the 44 that are documented, two are photographs of one module
    assert (kinds["mono"], kinds["poly"]) == (18, 25)
    assert modules.size().value_counts().to_dict() == {48: 1, 54: 1, 60: 39, 72: 1, 110: 1}
    unsure = samples[samples["module_confidence"] < 0.95]
    assert 0 < len(unsure) <= 3 and set(unsure["module"]) <= {*LINKED, *LINKED.values()}


def test_elpv_is_split_by_module_and_the_final_modules_are_the_test_split(elpv):
    again = load_dataset("elpv", seed=1)
    assert elpv.group_column == elpv.split_by == "module"
    for data in (elpv, again):
        assert (data.samples.groupby("module")["split"].nunique() == 1).all()
        final = data.split("test").groupby("module")["group"].first().value_counts()
        assert (final["mono"], final["poly"]) == (4, 5)
    assert set(elpv.split("test")["sample_id"]) == set(again.split("test")["sample_id"])
    assert set(elpv.split("val")["sample_id"]) != set(again.split("val")["sample_id"])


def test_folds_by_module_test_each_image_once_and_keep_uncertain_neighbours_together():
    folds = [load_dataset("elpv", folds=5, fold=fold).samples for fold in range(5)]
    tests = [set(samples.loc[samples["split"] == "test", "module"]) for samples in folds]
    assert sum(map(len, tests)) == len(set.union(*tests)) == 43
    for samples in folds:
        split = samples.groupby("module")["split"].first()
        assert all(split[one] == split[other] for one, other in LINKED.items())
    by_image = load_dataset("elpv", folds=5, split_by="image")
    assert by_image.split("test")["module"].nunique() == 43


def test_borders_between_modules_are_found_in_features_that_differ():
    rng = np.random.default_rng(0)
    sizes = [60, 54, 60, 60]
    y = np.repeat(rng.normal(0, 3, (4, 5)), sizes, axis=0) + rng.normal(size=(234, 5))
    posterior = elpv_modules.border_posterior(y, np.full(5, 9.0), 4, power=1.0)
    assert (
        posterior.argmax(axis=1).tolist() == [60, 114, 174] and (posterior.max(axis=1) > 0.9).all()
    )
    assert posterior.sum(axis=1) == pytest.approx(1)
    block, confidence = elpv_modules.image_confidence(posterior)
    assert np.bincount(block).tolist() == sizes and confidence.min() > 0.9
    fixed = elpv_modules.border_posterior(y, np.full(5, 9.0), 4, power=1.0, known=[58])
    assert fixed.argmax(axis=1)[0] == 58
    # without differences only the sizes are known: a border lies within the six missing cells
    blind = elpv_modules.border_posterior(np.zeros((234, 5)), np.full(5, 9.0), 4, power=1.0)
    assert set(np.flatnonzero(blind[0] > 1e-6)) <= set(range(54, 61))


def test_a_module_photographed_twice_is_found():
    rng = np.random.default_rng(0)
    hashes = rng.random((300, 255)) < 0.5
    hashes[200:230] = hashes[20:50] ^ (rng.random((30, 255)) < 0.03)
    assert elpv_modules.find_repeat(hashes) == (20, 30, 180)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"] * 8, "all images have one patient, 'a'"),
        (list("abcdefgh"), "each image has a patient of its own"),
        (list("aaaabbbb"), "all images of the class 'x' have one patient, 'a'"),
        (list("aabbccdd"), ""),
        (list("abababab"), ""),
    ],
)
def test_groups_that_cannot_be_split_are_named(groups, message):
    samples = pd.DataFrame({"label": ["x"] * 4 + ["y"] * 4, "patient": groups})
    assert find_group_problem(samples, "patient").startswith(message)
    assert bool(find_group_problem(samples, "patient")) == bool(message)


def make_manifest(folder, groups, label=lambda number, group: "ab"[number % 2]):
    """A manifest of 20 noise images for each group."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20 * groups):
        Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
        group = f"p{number // 20:02d}"
        rows.append((f"{number}.png", label(number, group), group))
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(folder / "all.csv", index=False)
    return f"csv:{folder / 'all.csv'}"


def test_a_manifest_with_groups_is_split_by_them(tmp_path):
    data = load_dataset(make_manifest(tmp_path, 12))
    assert data.group_column == data.split_by == "group"
    assert (data.samples.groupby("group")["split"].nunique() == 1).all()
    by_image = load_dataset(data.name, split_by="image")
    assert (by_image.samples.groupby("group")["split"].nunique() > 1).any()


def test_few_groups_are_kinds_of_images(tmp_path):
    data = load_dataset(make_manifest(tmp_path, 3))
    assert (data.group_column, data.split_by) == ("", "image")


def test_a_class_in_one_group_only_is_said_and_asked_for_is_refused(tmp_path):
    name = make_manifest(
        tmp_path, 12, lambda number, group: "rare" if group == "p03" else "ab"[number % 2]
    )
    with pytest.warns(
        UserWarning, match="image by image, not by group: all images of the class 'rare'"
    ):
        assert load_dataset(name).split_by == "image"
    with pytest.raises(UserError, match=r"cannot be split by group.*write split_by='image'"):
        load_dataset(name, split_by="group")
    with pytest.raises(UserError, match=r"unknown column .*'patient'"):
        load_dataset(name, split_by="patient")


def test_more_folds_than_groups_of_a_class_are_refused(tmp_path):
    with pytest.raises(UserError, match="folds=13 is more than the 12 groups"):
        load_dataset(make_manifest(tmp_path, 12), folds=13)


# scores


def draw_groups(rng, groups, size, shift=0.0, effect=1.0, signal=1.0):
    """Predictions of two models without a difference: each adds its own error to every group."""
    group = np.repeat(np.arange(groups), size)
    label = rng.random(len(group)) < np.repeat(rng.beta(2, 3, groups), size)
    tables = []
    for _ in range(2):
        logit = signal * (2 * label - 1) + np.repeat(rng.normal(0, effect, groups), size)
        prob = 1 / (1 + np.exp(-(logit + rng.normal(size=len(group)) + shift)))
        labels = np.where(label, "yes", "no")
        tables.append(fill_binary(prob, labels, cluster=group.astype(str)))
    return tables


def test_the_auc_within_groups_is_that_of_pairs_of_one_group():
    rng = np.random.default_rng(0)
    table, _ = draw_groups(rng, 6, 20)
    rows = split_table({"group": {"vit": table}}, replicates=50).set_index("metric")
    right = pairs = 0.0
    for _, part in table.groupby("cluster"):
        positive = part["label"] == "yes"
        if 0 < positive.sum() < len(part):
            count = positive.sum() * (~positive).sum()
            right += count * roc_auc_score(positive, part["prob_yes"])
            pairs += count
    assert rows.loc["roc_auc_within_groups", "value"] == pytest.approx(right / pairs)
    overall = roc_auc_score(table["label"] == "yes", table["prob_yes"])
    assert rows.loc["roc_auc", "value"] == pytest.approx(overall)
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()
    assert set(rows["groups"]) == {6} and set(rows["images"]) == {120}


def test_a_model_that_sees_the_group_only_is_at_chance_within_groups():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(40), 30)
    rate = np.repeat(rng.beta(1, 1, 40), 30)
    label = np.where(rng.random(1200) < rate, "yes", "no")
    table = fill_binary(rate, label, cluster=group.astype(str))
    rows = split_table({"image": {"vit": table}}, replicates=50).set_index("metric")["value"]
    assert rows["roc_auc"] > 0.75 and rows["roc_auc_within_groups"] == 0.5


def test_intervals_over_groups_need_groups():
    table, _ = draw_groups(np.random.default_rng(0), 6, 20)
    with pytest.raises(UserError, match="have no column cluster"):
        split_table({"image": {"vit": table.drop(columns="cluster")}})


@pytest.mark.parametrize(("groups", "most"), [(9, 0.08), (44, 0.07)])
def test_false_alarms_of_a_comparison_over_groups(groups, most):
    """One seed, models that differ in every group but not on average: at most 7 % of the verdicts
    at a nominal 5 % name a model (8 % with nine groups)."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(250):
        a, b = draw_groups(rng, groups, 12)
        row = pairwise_table({"a": {0: a}, "b": {0: b}}, "roc_auc", replicates=200).iloc[0]
        found.append(row["p"] < 0.05)
    assert np.mean(found) <= most + 2 * np.sqrt(most * (1 - most) / len(found)) - 0.02


@pytest.mark.parametrize(("groups", "least"), [(9, 0.86), (44, 0.91)])
def test_intervals_over_groups_cover_the_score_of_other_groups(groups, least):
    """With nine groups about 89 % instead of 95 %, with 44 about 93 %."""
    rng = np.random.default_rng(0)
    truth = draw_groups(rng, 3000, 12)[0]
    truth = roc_auc_score(truth["label"] == "yes", truth["prob_yes"])
    covered = []
    for _ in range(250):
        table = draw_groups(rng, groups, 12)[0]
        own = uncertainty_table({0: table}, ["roc_auc"], replicates=200).iloc[0]
        by_percentile = metrics_table(table, replicates=400).set_index("metric").loc["roc_auc"]
        covered.append([row["low"] <= truth <= row["high"] for row in (own, by_percentile)])
    assert np.mean(covered, axis=0).min() >= least


# known and new groups


@pytest.fixture(scope="module")
def shortcut():
    """Features that name the group and say a little of the label; labels that depend on the
    group."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 15)
    label = np.where(rng.random(300) < np.where(group % 2 == 0, 0.85, 0.15), "a", "b")
    features = np.hstack([np.eye(20)[group], rng.normal(size=(300, 1)) + (label == "a")[:, None]])
    samples = pd.DataFrame({"sample_id": [f"s{i:03d}" for i in range(300)], "label": label})
    samples = samples.assign(split="train", source="", group=[f"g{i:02d}" for i in group])
    return samples, features


def test_a_simple_model_on_known_and_on_new_groups(elpv, shortcut):
    samples, features = shortcut
    data = replace(elpv, samples=samples, classes=("a", "b"), group_column="group")
    no_pairs = pd.DataFrame(columns=["sample_id_a", "sample_id_b"])
    table = compare_splits(data, features, no_pairs, "group")
    values = table.set_index(["model", "split", "metric"])["value"]
    assert values[HEAD, "image", "roc_auc"] > values[HEAD, "group", "roc_auc"] + 0.05
    assert values["group alone", "image", "roc_auc"] > 0.75
    text = describe_splits(table, "group")
    assert "on new images of known groups" in text and "The group alone, without pixels" in text
    few = replace(data, samples=samples.assign(group="all"))
    assert compare_splits(few, features, no_pairs, "group").empty
    assert describe_splits(pd.DataFrame(), "group") == ""


def test_the_logistic_head_predicts_the_test_images_of_each_fold(shortcut):
    samples, features = shortcut
    features = pd.DataFrame(features, samples["sample_id"])
    number = np.arange(300) % 3
    splits = [samples.assign(split=np.where(number == fold, "test", "train")) for fold in range(3)]
    found = predict_tests(splits, features, ("a", "b"))
    assert sorted(found["sample_id"]) == sorted(samples["sample_id"])
    known = (number != 1).nonzero()[0]
    head = logistic_head().fit(features.to_numpy()[known], samples["label"].iloc[known])
    prob = head.predict_proba(features.to_numpy()[number == 1])[:, 1]
    mine = found.set_index("sample_id").loc[samples["sample_id"][number == 1], "prob_b"]
    assert mine.to_numpy() == pytest.approx(prob)


# runs


def make_run(name, model, samples, predictions, **parameters):
    run = Run.create(name=name, dataset="elpv", model=model, seed=0, **parameters)
    run.write_table("splits.csv", samples)
    run.write_table("predictions.parquet", predictions)
    run.finish(["predictions.parquet"])
    return run


def predict_at_random(samples, seed):
    rng = np.random.default_rng(seed)
    rows = samples[samples["split"] != "train"]
    prob = rng.random(len(rows))
    table = rows[["sample_id", "split", "group", "label"]].reset_index(drop=True)
    table["pred"] = np.where(prob > 0.5, "defective", "functional")
    for name, value in (("functional", 1 - prob), ("defective", prob)):
        table[f"logit_{name}"], table[f"prob_{name}"] = np.log(value), value
    return table


@pytest.fixture
def folds():
    for split in ("module", "image"):
        for fold in range(5 if split == "module" else 4):
            data = load_dataset("elpv", folds=5, fold=fold, split_by=split)
            predictions = predict_at_random(data.samples, fold)
            setting = {"split_by": split, "folds": 5, "fold": fold}
            make_run(f"{split}{fold}", "vit", data.samples, predictions, **setting)


def test_folds_are_one_run_and_an_unfinished_cross_validation_is_named(folds, elpv):
    runs, left_out = latest_runs("elpv", split_by="module")
    assert len(runs) == 5 and left_out == [
        "Left out, with another split_by than module: image0, image1, image2, image3"
    ]
    ((title, draw, predictions),), nothing = read_tests(runs)
    assert (title, draw, nothing) == ("vit", "0, 5 folds, by module", [])
    assert len(predictions) == 2624 and set(predictions["split"]) == {"test"}
    assert runs[0].protocol == "5 folds, by module"
    mixed, sentences = read_tests([*latest_runs("elpv", split_by="image")[0], *runs])
    assert [title for title, _, _ in mixed] == ["vit"]
    assert sentences == ["vit, seed 0, 5 folds: left out, as 4 folds are there"]
    alone, _ = read_tests(latest_runs("elpv", split_by="image")[0][:1])
    assert [draw for _, draw, _ in alone] == ["0, fold 0 of 5"]
    assert make_run("cnn", "cnn", elpv.samples, predict_at_random(elpv.samples, 0)).protocol == (
        "80/20, by image"
    )


def test_runs_of_both_splits_stand_beside_the_head_and_the_group_alone(folds, elpv):
    features = np.random.default_rng(0).normal(size=(2624, 4))
    found = predictions_by_split(elpv, features, "elpv")
    assert list(found) == ["image", "module"]
    assert set(found["module"]) == {"vit", HEAD}
    assert set(found["image"]) == {"vit", HEAD, "module alone"}
    head = found["module"][HEAD]
    assert len(head) == 2624 and head["cluster"].nunique() == 43
    assert set(head["protocol"]) == {"5 folds, by module"}
    table = split_table(found, replicates=50)
    alone = table[table["model"] == "module alone"].set_index("metric")["value"]
    assert alone["roc_auc"] == pytest.approx(0.84, abs=0.02)
    assert list(alone.index) == ["roc_auc", "balanced_accuracy"]
    text = describe_tests(found, table, "roc_auc")
    assert "*vit*: ROC AUC" in text and "within a new module" in text
    assert "Against the logistic head: vit against logistic head: logistic head better" in text or (
        "Against the logistic head: vit against logistic head: no difference shown" in text
    )
    assert describe_tests({}, table, "roc_auc") == ""
    by_image = {"image": found["image"]}
    text = describe_tests(by_image, split_table(by_image, replicates=10), "roc_auc")
    assert text.strip().startswith("Against the logistic head: vit")

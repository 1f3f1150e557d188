"""Each check: data that it must find fault with, data that it must not, and its false alarms."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit

from tests.predictions import fill_binary, make_calibrated, make_predictions
from vitlab.checks import (
    CHECKS,
    CheckResult,
    Probe,
    can_probe,
    check_comparison,
    check_compression,
    check_data,
    check_runs,
    cluster_images,
    data_checks as of_data,
    describe_checks,
    describe_data,
    describe_next,
    describe_verdict,
    explain_checks,
    fact_table,
    model_checks as of_model,
    probe_data,
    read_checks,
    score_checks as of_scores,
    silence,
    write_checks,
)
from vitlab.data import load_dataset
from vitlab.errors import UserError
from vitlab.evaluation import metrics_table, pairwise_table
from vitlab.explain.similarity import CHANGES, UNCHANGED
from vitlab.explain.trust import BETTER, NOT_SHOWN
from vitlab.runs import Run
from vitlab.schema import DataBundle

PAIRS = pd.DataFrame(columns=["sample_id_a", "sample_id_b"])
OTHERS = pd.DataFrame(columns=["sample_id", "source", "reason"])


def make_samples(label, group="all"):
    count = len(label)
    split = np.resize(["train", "train", "test"], count)
    ids = [f"s{i:04d}" for i in range(count)]
    return pd.DataFrame(
        {"sample_id": ids, "label": label, "split": split, "group": group, "source": ids}
    )


def make_data(label, group="all", excluded=0):
    left_out = pd.DataFrame({"sample_id": "x", "source": "x", "reason": "empty"}, range(excluded))
    samples = make_samples(label, group)
    read = dict.fromkeys(samples["sample_id"]).get
    return DataBundle("toy", ("no", "yes"), samples, read, left_out if excluded else OTHERS)


def make_probe(count=300, signal=2.0, flipped=0.0, seed=0):
    """A calibrated probe; `flipped` is the share of labels that were turned around afterwards."""
    rng = np.random.default_rng(seed)
    prob = expit(rng.normal(0, signal, count))
    yes = rng.random(count) < prob
    label = np.where(yes ^ (rng.random(count) < flipped), "yes", "no")
    ids = make_samples(label)["sample_id"]
    table = fill_binary(prob, label).assign(sample_id=ids, cluster=np.arange(count))
    return Probe(table, metrics_table(table, replicates=200), 0.5)


def draw_labels(count, seed=0, share=0.4):
    return np.where(np.random.default_rng(seed).random(count) < share, "yes", "no")


# data


@pytest.mark.parametrize(("excluded", "status"), [(0, "pass"), (3, "warn"), (30, "fail")])
def test_unreadable_images(excluded, status):
    result = of_data.check_unreadable(make_data(draw_labels(100), excluded=excluded))
    assert (result.id, result.status) == ("VL001", status)
    assert bool(result.advice) == (status != "pass")


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ([], "pass"),
        ([("s0000", "s0001")], "pass"),  # both are training images
        ([("s0002", "s0005")], "pass"),  # both are test images
        ([("s0000", "s0002")], "warn"),
        ([("s0000", "s0002"), ("s0005", "s0001"), ("s0008", "s0003")], "fail"),
    ],
)
def test_duplicates_across_splits(ends, status):
    pairs = pd.DataFrame(ends, columns=["sample_id_a", "sample_id_b"])
    result = of_data.check_duplicates(make_samples(draw_labels(600)), pairs)
    assert (result.id, result.status) == ("VL002", status)


def test_groups_on_both_sides():
    label = draw_labels(300)
    mixed = make_samples(label, [f"patient {i % 20}" for i in range(300)])
    assert of_data.check_groups(mixed, "group").status == "fail"
    apart = mixed.assign(group=mixed["split"] + [f" {i % 20}" for i in range(300)])
    assert of_data.check_groups(apart, "group").status == "pass"
    assert of_data.check_groups(make_samples(label), "group").status == "not applicable"


def test_a_group_that_predicts_the_label():
    label = draw_labels(300)
    assert of_data.check_group_baseline(make_samples(label, label), "group").status == "fail"
    rng = np.random.default_rng(1)
    loose = np.where(rng.random(300) < 0.3, label, rng.choice(["no", "yes"], 300))
    assert of_data.check_group_baseline(make_samples(label, loose), "group").status == "warn"
    assert of_data.check_group_baseline(make_samples(label), "group").status == "not applicable"


@pytest.mark.parametrize("groups", [2, 40])
def test_an_unrelated_group_is_rarely_called_related(groups, monkeypatch):
    monkeypatch.setattr(of_data, "PERMUTATIONS", 199)
    alarms = 0
    for seed in range(60):
        group = np.random.default_rng(1000 + seed).integers(groups, size=120).astype(str)
        samples = make_samples(draw_labels(120, seed), group)
        alarms += of_data.check_group_baseline(samples, "group", seed).status != "pass"
    assert alarms <= 3


@pytest.mark.parametrize(
    ("shift", "related", "status"), [(3, True, "warn"), (3, False, "pass"), (0, True, "pass")]
)
def test_a_group_that_can_be_seen(shift, related, status):
    group = np.where(np.arange(120) % 4 < 2, "a", "b")
    vectors = np.random.default_rng(0).normal(size=(120, 5))
    vectors[:, 0] += shift * (group == "a")
    result = of_data.check_group_visible(
        make_data(draw_labels(120), group), vectors, PAIRS, "group", related
    )
    assert (result.id, result.status) == ("VL005", status)


def test_a_group_is_rarely_seen_where_it_cannot_be():
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        data = make_data(draw_labels(120), rng.choice(["a", "b"], 120))
        vectors = rng.normal(size=(120, 5))
        alarms += of_data.check_group_visible(data, vectors, PAIRS, "group", True).status != "pass"
    assert alarms <= 2


def test_facts_that_predict_the_label():
    probe, rng = make_probe(300), np.random.default_rng(2)
    label = probe.predictions["label"]
    facts = probe.predictions[["sample_id"]].assign(brightness=rng.normal(size=300), format="PNG")
    assert of_data.check_facts(facts, probe).status == "pass"
    facts["brightness"] += label == "yes"
    assert of_data.check_facts(facts, probe).status == "warn"
    facts["format"] = np.where(label == "yes", "PNG", "JPEG")
    assert of_data.check_facts(facts, probe).status == "fail"


def test_unrelated_facts_are_rarely_called_a_shortcut(monkeypatch):
    monkeypatch.setattr(of_data, "metrics_table", partial(metrics_table, replicates=200))
    alarms = 0
    for seed in range(40):
        probe = make_probe(200, seed=seed)
        facts = np.random.default_rng(1000 + seed).normal(size=(200, 4))
        table = pd.DataFrame(facts, columns=list("abcd"))
        table["sample_id"] = probe.predictions["sample_id"]
        alarms += of_data.check_facts(table, probe).status != "pass"
    assert alarms <= 2


@pytest.mark.parametrize(("count", "status"), [(30_000, "pass"), (900, "warn"), (90, "fail")])
def test_too_few_test_images(count, status):
    probe = make_probe(count)
    samples = make_samples(probe.predictions["label"])
    assert of_data.check_test_size(samples, probe).status == status


def test_the_smallest_difference_is_found_in_four_of_five_cases():
    # two models whose errors are as correlated as the rule assumes
    rng, hits, right = np.random.default_rng(0), 0, 0.8
    count = 400
    samples = make_samples(np.resize(["no", "yes"], 3 * count))
    prob = np.where(rng.random(3 * count) < right, 0.9, 0.1)
    flip = samples["label"].to_numpy() == "no"
    table = fill_binary(np.where(flip, 1 - prob, prob), samples["label"])
    table = table.assign(sample_id=samples["sample_id"], cluster=range(3 * count))
    probe = Probe(table, pd.DataFrame(), 0.5)
    gap = of_data.check_test_size(samples, probe).numbers["smallest_difference"]
    for _ in range(300):
        common, own = rng.random(count), rng.random((2, count))
        shared = rng.random(count) < 0.586  # gives a correlation of 0.5
        scores = np.where(shared, common, own) < np.array([[right], [right - gap]])
        difference = scores[0].astype(float) - scores[1]
        hits += difference.mean() > 1.96 * difference.std() / np.sqrt(count)
    assert 0.7 < hits / 300 < 0.9


@pytest.mark.parametrize(("flipped", "status"), [(0.0, "pass"), (0.03, "warn"), (0.12, "fail")])
def test_wrong_labels(flipped, status):
    result = of_data.check_labels(make_probe(4000, signal=4, flipped=flipped))
    assert (result.id, result.status) == ("VL008", status)
    assert result.numbers["share"] == pytest.approx(flipped, abs=0.02)


def test_too_few_images_to_judge_labels():
    assert of_data.check_labels(make_probe(99, flipped=0.2)).status == "not applicable"


def test_clean_labels_are_rarely_called_wrong():
    alarms = [of_data.check_labels(make_probe(400, signal=3, seed=s)).status for s in range(100)]
    assert sum(status != "pass" for status in alarms) <= 5


def test_rare_classes():
    probe = make_probe(300)
    many = make_samples(probe.predictions["label"])
    assert of_data.check_rare_classes(many, probe).status == "pass"
    third = many.assign(label=["maybe", *many["label"][1:]])
    assert of_data.check_rare_classes(third, probe).evidence.startswith("fewer than 5")
    few = np.array(["no"] * 300, dtype="<U3")
    few[2:60:3] = "yes"  # 20 test images
    assert of_data.check_rare_classes(make_samples(few), probe).status == "warn"
    few[20:] = "no"
    assert of_data.check_rare_classes(make_samples(few), probe).status == "fail"
    never = Probe(probe.predictions.assign(pred="no"), probe.metrics, 0.5)
    assert of_data.check_rare_classes(many, never).evidence.endswith("never predicts yes")


def test_the_probe_keeps_copies_in_one_fold():
    # the vectors say nothing but which copy belongs to which: a leaking probe would be right
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(60, 30)), 4, axis=0)
    label = np.repeat(draw_labels(60), 4)
    probe = probe_data(make_data(label), vectors, pd.Series(np.repeat(np.arange(60), 4)))
    assert probe.value("roc_auc")[0] < 0.7
    assert probe.predictions["label"].tolist() == label.tolist()
    with pytest.raises(UserError, match=r"needs two classes with 5 independent images"):
        few = np.array(["no"] * 60 + ["yes"] * 3)
        probe_data(make_data(few), rng.normal(size=(63, 3)), pd.Series(range(63)))


def test_the_probe_leaves_out_a_class_that_is_too_rare():
    label = np.array(["no"] * 40 + ["yes"] * 40 + ["rare"] * 4)
    samples, vectors = make_samples(label), np.random.default_rng(0).normal(size=(84, 3))
    data = DataBundle("toy", ("yes", "rare", "no"), samples, {}.get, OTHERS)
    cluster = pd.Series(range(84))
    probe = probe_data(data, vectors, cluster)
    assert probe.classes == ("yes", "no") and len(probe.predictions) == 80
    assert not can_probe(data, cluster)
    facts = samples[["sample_id"]].assign(brightness=vectors[:, 0])
    statuses = {r.id: r.status for r in check_data(data, PAIRS, facts, probe, vectors)}
    assert statuses["VL009"] == "fail" and statuses["VL006"] == "pass"


def test_images_of_a_patient_are_one_cluster():
    samples = make_samples(draw_labels(40), [f"patient {i // 2}" for i in range(40)])
    pairs = pd.DataFrame({"sample_id_a": ["s0001"], "sample_id_b": ["s0002"]})
    cluster = cluster_images(samples, pairs)
    assert cluster.tolist()[:6] == ["s0000"] * 4 + ["s0004"] * 2 and cluster.nunique() == 19
    kinds = samples.assign(group=np.resize(["poly", "mono"], 40))
    assert cluster_images(kinds, pairs).nunique() == 39


def test_facts_of_files(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        kind, suffix = ("a", "png") if number % 2 else ("b", "jpg")
        (tmp_path / kind).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (20, 30 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / kind / f"{number}.{suffix}")
    facts = fact_table(load_dataset(f"folder:{tmp_path}")).set_index("sample_id")
    assert facts.loc["b/0.jpg", ["width", "format"]].tolist() == [30, "JPEG"]
    assert facts.loc["a/1.png", "quality"] == 0 < facts.loc["b/0.jpg", "quality"]
    assert not {"height", "camera"} & set(facts)  # all are the same
    assert "bytes_per_pixel" not in fact_table(load_dataset("digits"))  # not files


# scores


def test_no_better_than_chance_or_a_simple_model():
    good = make_predictions(("no", "yes"), 400)
    assert of_scores.check_beats_probe(good, None, 200).status == "pass"
    guess = good.assign(pred=np.resize(["no", "yes"], 400))
    assert of_scores.check_beats_probe(guess, None, 200).status == "fail"
    weaker = fill_binary(good["prob_yes"] * 0.6, good["label"])
    assert of_scores.check_beats_probe(good, weaker, 200).status == "pass"
    assert of_scores.check_beats_probe(weaker, good, 200).status == "warn"


@pytest.mark.parametrize(
    ("loss", "status"),
    [
        ([1, 0.8, 0.6], "warn"),
        ([1, 0.6, 0.595], "pass"),
        ([0.5, 0.6, 0.7], "pass"),
        ([1], "not applicable"),
    ],
)
def test_still_improving(loss, status):
    assert of_scores.check_converged(pd.DataFrame({"val_loss": loss})).status == status


def test_calibration():
    assert of_scores.check_calibration(make_calibrated(), 300).status == "pass"
    assert of_scores.check_calibration(make_calibrated(temperature=0.3), 300).status == "warn"
    moved = make_calibrated(num_samples=2000)
    tested = moved["split"] == "test"  # a shift after validation: the sets miss too often
    swapped = np.where(moved["label"] == "defective", "functional", "defective")
    hit = tested & (np.random.default_rng(0).random(len(moved)) < 0.2)
    moved["label"] = np.where(hit, swapped, moved["label"])
    assert of_scores.check_calibration(moved, 300).status == "fail"
    clean = [make_calibrated(seed=seed) for seed in range(100)]
    alarms = [of_scores.check_calibration(table, 200).status for table in clean]
    assert sum(status != "pass" for status in alarms) <= 5


def test_a_slice_that_is_worse():
    table = make_predictions(("no", "yes"), 400)
    assert of_scores.check_slices(table).status == "not applicable"
    table["group"] = np.resize(["a", "b"], 400)
    assert of_scores.check_slices(table, replicates=200).status == "pass"
    wrong = np.where(table["label"] == "yes", "no", "yes")
    table["pred"] = np.where(table["group"] == "b", wrong, table["label"])
    assert of_scores.check_slices(table, replicates=200).status == "warn"
    table["group"] = table["label"]
    assert of_scores.check_slices(table, replicates=200).status == "not applicable"


def test_a_slice_is_rarely_called_worse_where_none_is():
    alarms = 0
    for seed in range(40):
        group = np.random.default_rng(1000 + seed).choice(list("abc"), 200)
        table = make_predictions(("no", "yes"), 200, seed).assign(group=group)
        alarms += of_scores.check_slices(table, replicates=200).status != "pass"
    assert alarms <= 2


def test_one_seed_or_no_difference():
    good, bad = make_predictions(seed=1), make_predictions(seed=1).assign(pred="functional")
    shown = {"vit": {0: good, 1: good}, "cnn": {0: bad, 1: bad}}
    pairs = pairwise_table(shown, "accuracy", 300)
    assert check_comparison(pairs, shown).status == "pass"
    alike = {"vit": {0: good, 1: good}, "cnn": {0: good, 1: good}}
    assert check_comparison(pairwise_table(alike, "accuracy", 300), alike).status == "warn"
    one = {"vit": {0: good}}
    assert check_comparison(pd.DataFrame(), one).evidence == "one seed of vit"


# models and runs


def test_explanations():
    verdicts = [BETTER, BETTER, NOT_SHOWN]
    trust = pd.DataFrame({"method": "rollout", "verdict": verdicts, "difference": 0.1})
    assert of_model.check_trust(trust).status == "pass"
    assert of_model.check_trust(trust.tail(2).assign(verdict=NOT_SHOWN)).status == "fail"
    assert of_model.check_trust(trust.assign(verdict=[BETTER, *verdicts[2:] * 2])).status == "warn"
    moves = pd.DataFrame({"method": ["rollout", "edges"], "verdict": CHANGES})
    stays = moves.assign(verdict=[CHANGES, UNCHANGED])
    assert of_model.check_sanity({"weights": moves}).status == "pass"
    assert of_model.check_sanity({"weights": moves, "labels": stays}).status == "warn"
    assert of_model.check_sanity({"labels": stays.tail(1)}).status == "fail"


@pytest.mark.parametrize(
    ("agreement", "speed", "quality", "status"),
    [
        (0.99, "faster", "as good", "pass"),
        (0.9, "faster", "as good", "warn"),
        (0.99, "slower", "as good", "warn"),
        (0.99, "faster", "worse", "fail"),
    ],
)
def test_compression(agreement, speed, quality, status):
    table = pd.DataFrame({"variant": ["full", "int8"], "batch_size": 1, "size_mb": [8.0, 2.0]})
    table["agreement"], table["speed"], table["quality"] = (
        [1, agreement],
        ["", speed],
        ["", quality],
    )
    assert check_compression(table).status == status


def test_runs_that_used_the_test_split_and_are_old(monkeypatch):
    def make(name, **parameters):
        run = Run.create(name=name, dataset="digits", model="a", seed=0, **parameters)
        run.record(data_version=of_model.data_version("digits"))
        run.finish()

    assert [result.status for result in check_runs("digits")] == ["not applicable"] * 2
    for epochs in range(1, 11):
        make(f"run {epochs}", epochs=epochs)
    assert [result.status for result in check_runs("digits")] == ["pass", "pass"]
    with monkeypatch.context() as patch:
        patch.setattr(of_model, "list_versions", lambda: {"torch": "another"})
        assert check_runs("digits")[1].status == "warn"
    make("run 11", epochs=11)
    monkeypatch.setattr(of_model, "data_version", lambda name: "another")
    used, old = check_runs("digits")
    assert (used.status, old.status) == ("warn", "warn") and len(old.numbers["runs"]) == 11


# what is said


def test_silenced_checks_sorted_texts_and_json(tmp_path):
    names = [("VL001", "pass"), ("VL007", "warn"), ("VL002", "fail")]
    results = [CheckResult(id, CHECKS[id].title, status, "seen") for id, status in names]
    assert [r.id for r in silence(results, "")] == ["VL002", "VL007", "VL001"]
    quiet = silence(results, "VL002=wanted; VL001=passes anyway")
    assert [r.status for r in quiet] == ["warn", "silenced", "pass"]
    assert "Silenced: wanted." in describe_checks(quiet)
    for wrong, message in (("VL099=x", "unknown check 'VL099'"), ("VL001", "without a reason")):
        with pytest.raises(UserError, match=message):
            silence(results, wrong)
    write_checks(tmp_path / "checks.json", quiet, verdict="fine")
    assert read_checks(tmp_path / "checks.json") == (quiet, {"verdict": "fine"})
    assert explain_checks(results).count("### VL") == 3


@pytest.mark.parametrize(
    ("statuses", "signal", "opening"),
    [
        (["pass", "pass"], 2, "**Ready: all 2 checks"),
        (["warn", "pass"], 2, "**Usable, with 1 check "),
        (["fail", "warn"], 2, "**Not ready: 1 check failed** (images that were left out)."),
        (["pass", "pass"], 0, "**No signal found.**"),
    ],
)
def test_the_verdict(statuses, signal, opening):
    ids = ["VL001", "VL002"]
    results = [
        CheckResult(id, CHECKS[id].title, status, "")
        for id, status in zip(ids, statuses, strict=True)
    ]
    text = describe_verdict(results, make_probe(signal=signal))
    assert text.startswith(opening) and "chance is 50.0%" in text


def test_what_to_do_next_keeps_together_what_leaks():
    def advise(*failed, **given):
        results = [CheckResult(id, CHECKS[id].title, "fail", "") for id in failed]
        return describe_next(results, "folder:/my data/cells", **given)

    assert "split_by" not in advise() and "--data 'folder:/my data/cells'" in advise()
    assert "-p split_by cluster" in advise("VL002")
    assert "-p split_by patient" in advise("VL002", "VL003", group="patient")


def test_the_data_in_a_sentence():
    data = load_dataset("digits")
    facts = fact_table(data)
    text = describe_data(data, facts)
    assert text == "1,797 images of 8 × 8 pixels in 10 classes."
    varied = facts.assign(width=np.resize([8, 20], len(facts)))
    assert "of 8 to 20 × 8 to 8 pixels" in describe_data(data, varied)


def test_all_checks_have_numbers_and_sections_in_the_guide():
    assert sorted(CHECKS) == [f"VL{number:03d}" for number in range(1, 20)]
    guide = Path("reports/guide/0_checks.md").read_text(encoding="utf-8")
    for id, entry in CHECKS.items():
        assert f"## {id} {entry.title} {{#{id.lower()}}}" in guide


@pytest.mark.parametrize("group", ["modul", "label", "split"])
def test_what_cannot_be_a_group_is_refused(group):
    data = load_dataset("digits")
    with pytest.raises(UserError, match=f"digits has no column '{group}' of groups; it has group"):
        of_data.find_group(data, group)

"""Variants of a model: time, size, changes, verdicts, and a choice without the test split."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from torch import nn

from tests.toys import linear_digits, small_digits
from vitlab.compress import benchmark, latency
from vitlab.compress.benchmark import (
    MARGIN,
    benchmark_table,
    choose_variant,
    describe_processor,
    recommend,
)
from vitlab.compress.changes import (
    change_table,
    changed_images,
    loss_p_value,
    measure_agreement,
    score_test,
)
from vitlab.compress.latency import latency_table, summarise_times
from vitlab.compress.variants import make_predictor, predict_variants, size_on_disk
from vitlab.training import predict

CLASSES = ("dog", "cat")


def make_predictions(labels, cat, groups="a"):
    """cat: probability of the second class."""
    cat = np.asarray(cat, float)
    table = pd.DataFrame({"sample_id": [f"s{i:03}" for i in range(len(cat))], "split": "test"})
    table["group"], table["label"] = groups, labels
    table["pred"] = np.where(cat > 0.5, "cat", "dog")
    for name, prob in zip(CLASSES, (1 - cat, cat), strict=True):
        table[f"logit_{name}"], table[f"prob_{name}"] = np.log(prob), prob
    return table


TRUE = ["cat"] * 12 + ["dog"] * 12
GROUPS = ["mono", "poly"] * 12
BEFORE = make_predictions(TRUE, [0.9] * 10 + [0.2] * 2 + [0.1] * 12, GROUPS)
# images 0, 1 and 2 are lost, 10 is gained, 12 and 14 are lost
AFTER = make_predictions(
    TRUE, [0.4, 0.1, 0.3, *[0.9] * 7, 0.6, 0.2, 0.8, 0.1, 0.7, *[0.1] * 9], GROUPS
)


# What changes


def test_changes_by_class_and_group():
    table = change_table(BEFORE, AFTER).set_index(["column", "slice"])
    assert table.index.tolist() == [
        ("", "all"),
        ("label", "cat"),
        ("label", "dog"),
        ("group", "mono"),
        ("group", "poly"),
    ]
    assert table["n"].tolist() == [24, 12, 12, 12, 12]
    assert table["before"].tolist() == pytest.approx([22 / 24, 10 / 12, 1, 11 / 12, 11 / 12])
    assert table["after"].tolist() == pytest.approx([18 / 24, 8 / 12, 10 / 12, 8 / 12, 10 / 12])
    assert table["change"].tolist() == pytest.approx([-4 / 24, -2 / 12, -2 / 12, -3 / 12, -1 / 12])
    assert table["lost"].tolist() == [5, 3, 2, 4, 1]
    assert table["gained"].tolist() == [1, 1, 0, 1, 0]
    assert (table["low"] < table["change"]).all()
    assert (table["change"] < table["high"]).all()
    assert table.loc[("group", "poly"), "high"] == 0  # one image of twelve: never better


def test_no_change_still_has_an_interval():
    row = change_table(BEFORE, BEFORE.iloc[::-1], by=()).iloc[0]
    assert row["change"] == 0
    # 1 - 0.025 ** (1 / 24)
    assert (row["low"], row["high"]) == pytest.approx((-0.1425, 0.1425), abs=1e-4)


def test_slices_that_are_too_small_have_a_note():
    few = BEFORE.assign(group=["few"] * 9 + ["many"] * 15)
    table = change_table(few, AFTER, by=["group"])
    assert table["note"].tolist() == ["", "9 images only", ""]
    assert table["change"].isna().tolist() == [False, True, False]


def test_changed_images_by_the_probability_of_the_true_class():
    table = changed_images(BEFORE, AFTER)
    assert table["kind"].tolist() == ["lost"] * 5 + ["gained"]
    assert table["sample_id"].tolist() == ["s001", "s012", "s002", "s014", "s000", "s010"]
    assert table["change"].tolist() == pytest.approx([-0.8, -0.7, -0.6, -0.6, -0.5, 0.4])
    words = table.loc[0, ["label", "pred_before", "pred_after", "group"]]
    assert words.tolist() == ["cat", "cat", "dog", "poly"]
    assert table.loc[0, ["prob_before", "prob_after"]].tolist() == pytest.approx([0.9, 0.1])
    assert changed_images(BEFORE, BEFORE).empty
    with pytest.raises(ValueError, match=r"1 only in before, 0 only in after, first 's023'"):
        changed_images(BEFORE, AFTER.iloc[:-1])
    assert measure_agreement(BEFORE, AFTER) == 18 / 24  # image 11 is wrong both times


def test_the_loss_test_by_hand():
    """One class: Tango's statistic; two without a change: the variance of a loss of 4 % in the
    smaller one.
    """
    change = np.repeat([-1, 1, 0], [3, 2, 95])
    grid = np.linspace(1e-6, 0.1, 100_001)  # shares gained
    likelihood = 3 * np.log(grid + 0.02) + 2 * np.log(grid) + 95 * np.log(1 - 2 * grid - 0.02)
    gained = grid[likelihood.argmax()]
    error = np.sqrt((2 * gained + 0.02 - 0.02**2) / 100)
    p = score_test(change, np.zeros(100), 0.02)
    assert p == pytest.approx(norm.sf((-0.01 + 0.02) / error), rel=1e-3)
    p = score_test(np.zeros(300), np.repeat([0, 1], [200, 100]), 0.02)
    assert p == pytest.approx(norm.sf(0.02 / (np.sqrt((0.04 - 0.04**2) / 100) / 2)))


# Time and size

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)


def test_percentiles_ratios_and_rates_by_hand():
    slow = [0.010, 0.020, 0.030, 0.040, 0.050]
    fast = [0.005, 0.010, 0.030, 0.010, 0.010]
    slow, fast = summarise_times({"slow": slow, "fast": fast}, 4, 2).to_dict("records")
    found = [slow[name] for name in ("p50_ms", "p90_ms", "images_per_second")]
    assert found == pytest.approx([30, 46, 4 / 0.030])
    assert (slow["ratio"], slow["ratio_low"], slow["ratio_high"]) == (1, 1, 1)
    found = [fast[name] for name in ("p50_ms", "p90_ms", "images_per_second")]
    assert found == pytest.approx([10, 22, 400])
    assert fast["ratio"] == pytest.approx(0.5)  # of 0.5, 0.5, 1, 0.25, 0.2; not 10 / 30
    assert 0.19 < fast["ratio_low"] < 0.5 < fast["ratio_high"] < 1.01
    facts = [fast[name] for name in ("variant", "batch_size", "threads", "repeats")]
    assert facts == ["fast", 4, 2, 5]


def test_variants_take_turns_warm_and_get_the_batch():
    calls = []

    def log(name):
        return lambda batch: calls.append((name, batch[:, 0, 0, 0].tolist()))

    variants = {name: log(name) for name in "abc"}
    table = latency_table(variants, IMAGES, (3,), repeats=4, threads=1)
    assert table["repeats"].tolist() == [4, 4, 4]
    names = [name for name, _ in calls]
    assert names[:9] == list("aaabbbccc")  # warm-up
    turns = [names[9 + 6 * turn : 15 + 6 * turn] for turn in range(4)]
    assert len(names) == 33
    for turn in turns:
        assert turn[::2] == turn[1::2] and sorted(turn[::2]) == ["a", "b", "c"]
    assert len({tuple(turn) for turn in turns}) > 1  # no variant always follows the same one
    assert calls[0][1] == IMAGES[[0, 1, 0], 0, 0, 0].tolist()  # two images fill a batch of three


def test_one_call_is_timed_and_no_turn_begins_after_the_seconds_allowed(monkeypatch):
    now = [0.0]  # a clock that only variants move
    stopped = SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda _: None)
    monkeypatch.setattr(latency, "time", stopped)

    def take(seconds):
        return lambda _: now.__setitem__(0, now[0] + seconds)

    table = latency_table({"two": take(0.02), "one": take(0.01)}, IMAGES, (1, 4), 5, 1)
    assert table["variant"].tolist() == ["two", "one"] * 2
    assert table["ratio"].tolist() == pytest.approx([1, 0.5] * 2)
    assert table["p50_ms"].tolist() == pytest.approx([20, 10] * 2)
    assert table["images_per_second"].tolist() == pytest.approx([50, 100, 200, 400])
    for seconds, repeats in {0: 3, 9: 5}.items():  # two calls a turn
        table = latency_table({"a": take(1)}, IMAGES, (1,), 100, 1, seconds=seconds)
        assert table["repeats"].tolist() == [repeats]


def test_threads_are_those_named_and_given_back():
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        latency_table({"a": lambda _: seen.append(torch.get_num_threads())}, IMAGES, (1,), 1, 1)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("variants", "options", "message"),
    [
        ({}, {}, "at least one variant"),
        ({"a": len}, {"threads": 10_000}, "write a number from 1 to"),
        ({"a": len}, {"batch_sizes": (1, 0)}, r"batch sizes \(\(1, 0\)\) must be at least 1"),
        ({"a": "none.onnx"}, {}, r"cannot run none\.onnx"),
    ],
)
def test_invalid_arguments_of_latency(variants, options, message):
    with pytest.raises(ValueError, match=message):
        latency_table(variants, IMAGES, **options)


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * images.mean((2, 3))


def save_mean(path):
    """The mean over the pixels as an ONNX file."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    node = helper.make_node("ReduceMean", ["pixels", "axes"], ["logits"], keepdims=0)
    pixels = helper.make_tensor_value_info("pixels", 1, ["batch", 3, 16, 16])
    logits = helper.make_tensor_value_info("logits", 1, ["batch", 3])
    axes = onnx.numpy_helper.from_array(np.array([2, 3]), "axes")
    graph = helper.make_graph([node], "mean", [pixels], [logits], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save_model(model, path)
    return path


def test_every_kind_of_variant_gives_the_same_logits(tmp_path):
    model = replace(linear_digits(), module=Mean())
    function = lambda batch: batch.mean((2, 3))  # noqa: E731
    for variant in (model, save_mean(tmp_path / "mean.onnx"), function):
        found = make_predictor(variant)(IMAGES)
        assert found.dtype == np.float32
        assert found == pytest.approx(IMAGES.mean((2, 3)), abs=1e-6)


def test_predictions_of_variants_are_those_of_training():
    model, data = linear_digits(), small_digits()
    found = predict_variants({"one": model}, data, model.transform)["one"]
    expected = predict(model, data, ("test",))
    pd.testing.assert_frame_equal(found, expected, atol=1e-6, check_dtype=False)
    bad = {"bad": lambda pixels: np.zeros((len(pixels), 3))}
    with pytest.raises(ValueError, match=r"bad gives \(3,\) values per image, and digits has 10"):
        predict_variants(bad, data, model.transform)
    empty = replace(data, samples=data.samples[data.samples["split"] != "val"])
    with pytest.raises(ValueError, match="no images in the split val"):
        predict_variants({"one": model}, empty, model.transform, ("val",))


def test_size_counts_the_model_and_nothing_else(tmp_path):
    (tmp_path / "predictions.parquet").write_bytes(bytes(9_000_000))
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(FileNotFoundError, match="neither an ONNX file nor a folder"):
            size_on_disk(path)
    (tmp_path / "model.onnx").write_bytes(bytes(1_500_000))
    (tmp_path / "model.safetensors").write_bytes(bytes(250_000))
    assert size_on_disk(tmp_path / "model.onnx") == pytest.approx(1.5)
    assert size_on_disk(tmp_path) == pytest.approx(0.25)


# Verdicts and the choice

LABELS = np.array(["dog", "cat"] * 200)
SURE = np.where(LABELS == "cat", 0.9, 0.1)


def spoil(count, seed=0, split="test"):
    """Predictions of which this many are turned round."""
    cat = SURE.copy()
    chosen = np.random.default_rng(seed).permutation(len(cat))[:count]
    cat[chosen] = 1 - cat[chosen]
    return make_predictions(LABELS, cat).assign(split=split)


def make_table(ratio=0.5, errors=40, batch_size=1, split="test", seed=0, **others):
    """fp32 with 40 errors, int8, and others by name: (ratio, errors)."""
    base, noise = np.linspace(0.010, 0.012, 9), np.linspace(0.98, 1.02, 9)
    times, predictions = {"fp32": base}, {"fp32": spoil(40, 0, split)}
    for name, (factor, count) in {"int8": (ratio, errors), **others}.items():
        times[name] = base * factor * noise
        predictions[name] = spoil(count, seed, split)
    sizes = dict.fromkeys(times, 2.5)
    return benchmark_table(summarise_times(times, batch_size, 1), predictions, sizes, split=split)


def test_numbers_of_a_variant_against_the_first():
    first, second = make_table(errors=60).to_dict("records")
    assert (first["value"], second["value"], second["change"]) == pytest.approx((0.9, 0.85, -0.05))
    assert second["agreement"] == pytest.approx(0.95)  # the same 40 errors and 20 more
    assert second["ratio"] == pytest.approx(0.5) and second["size_mb"] == 2.5
    assert (first["change_low"], first["change_high"]) == (0, 0)
    assert first["speed"] == first["quality"] == "reference"


@pytest.mark.parametrize(
    ("ratio", "errors", "speed", "quality"),
    [
        (0.5, 40, "faster", "as good"),
        (1.3, 60, "slower", "worse"),
        (1.0, 20, "no difference shown", "better"),
    ],
)
def test_verdicts(ratio, errors, speed, quality):
    row = make_table(ratio, errors).iloc[1]
    assert (row["speed"], row["quality"]) == (speed, quality)


def test_many_changes_do_not_rule_a_loss_out():
    """36 images lost and about as many gained."""
    assert make_table(seed=1).iloc[1]["quality"] == "loss not ruled out"


@pytest.mark.parametrize(
    ("found", "message"),
    [(["avx512_vnni"], r"products \(avx512_vnni\)"), ([], "may be slower"), (None, "unknown")],
)
def test_the_processor(monkeypatch, found, message):
    monkeypatch.setattr(benchmark, "read_instructions", lambda: found)
    assert re.search(message, describe_processor())


def test_the_fastest_without_a_loss_is_chosen():
    variants = {"quick": (0.2, 46), "pruned": (0.4, 40), "slow": (1.5, 20)}
    # quick may lose more than two points
    assert choose_variant(make_table(split="val", **variants)) == "pruned"
    assert choose_variant(make_table(1.3, 20, split="val")) == "fp32"
    two = [make_table(0.5, split="val"), make_table(1.5, batch_size=32, split="val")]
    assert choose_variant(pd.concat(two, ignore_index=True)) == "int8", "the smallest batch counts"
    with pytest.raises(ValueError, match="must not be chosen by its test result"):
        choose_variant(make_table())


def test_the_choice_is_made_on_validation_and_reported_on_test():
    """The variant that is best on test is not taken, and the numbers of test are those of the
    variant that is taken.
    """
    validation = make_table(split="val", other=(0.3, 60))
    words = recommend(validation, make_table(errors=60, other=(0.3, 20)))
    assert "Worse on the test split than *fp32*: *int8*. Take *int8*: on the validation" in words
    assert "it is the fastest at batch 1 (0.50 times the time)" in words
    assert "lose at most 2 points of balanced accuracy (change +0.00 [+0.00, +0.00])" in words
    assert "the change is -5.00 [-" in words
    assert words.endswith("keep *fp32* where quality counts more than time.")
    assert "not ruled out there" in recommend(validation, make_table(seed=1, other=(0.3, 20)))
    assert "ruled out there as well" in recommend(validation, make_table(other=(1.3, 20)))
    assert "Slower than *fp32*: *other*. Take" in recommend(validation, make_table(other=(1.3, 20)))


def test_without_a_good_variant_the_first_one_is_taken():
    words = recommend(make_table(1.3, 60, split="val"), make_table(0.5, 20))
    assert "Take *fp32*: on the validation split no variant is both faster at batch 1" in words


FULL = {"variant": "full", "split": "val", "batch_size": 1, "speed": "reference", "ratio": 1.0}


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize(
    ("minority", "lost", "gained"),
    [
        (200, (0.02, 0.02), (0, 0)),  # losses only
        (200, (0.08, 0.08), (0.06, 0.06)),
        (130, (0, 0.05), (0, 0.01)),  # all in the smaller class
    ],
)
def test_few_variants_at_the_margin_pass(count, minority, lost, gained):
    """Variants that lose just the margin, 400 images a split: one is taken in at most 7 % of the
    draws (nominal 5 %).
    """
    generator, draws, taken = np.random.default_rng(0), 400, 0
    label = np.repeat([0, 1], [400 - minority, minority])
    lost, gained = np.array(lost)[label], np.array(gained)[label]
    for _ in range(draws):
        chance = generator.random((count, 400))
        change = (chance > 1 - gained).astype(int) - (chance < lost)
        p = [score_test(one, label, MARGIN) for one in change]
        table = pd.DataFrame({"variant": list("abcdef")[:count], "ratio": 0.5, "loss_p": p})
        table = table.assign(split="val", batch_size=1, speed="faster")
        table = pd.concat([pd.DataFrame([FULL]), table], ignore_index=True)
        taken += choose_variant(table) != "full"
    assert taken / draws <= 0.07


def test_a_choice_on_validation_leaves_the_test_result_unbiased():
    """1,000 draws of six fast variants that all lose just the margin, 400 images a split. What
    passes on validation seems to lose less than it does; on test it shows its loss."""
    generator, seen = np.random.default_rng(0), {"val": [], "test": []}
    shares = [0.07 + MARGIN / 2, 0.86, 0.07 - MARGIN / 2]
    for _ in range(1000):
        change = {}
        for split in seen:  # -1: lost, 0: alike, 1: gained
            moved = generator.choice([-1, 0, 1], (6, 400), p=shares)
            change[split], error = moved.mean(axis=1), moved.std(axis=1) / 20
            if split == "val":
                p = norm.sf((change[split] + MARGIN) / error)
                rows = {"variant": list("abcdef"), "batch_size": 1, "speed": "faster"}
                rows |= {"ratio": np.linspace(0.4, 0.5, 6), "loss_p": p, "split": "val"}
                table = pd.concat([pd.DataFrame([FULL]), pd.DataFrame(rows)], ignore_index=True)
                name = choose_variant(table)
        if name != "full":
            for split, values in change.items():
                seen[split].append(values["abcdef".index(name)])
    assert 20 <= len(seen["val"]) <= 70, "at most 7 %"
    assert np.mean(seen["val"]) > -MARGIN / 2
    assert np.mean(seen["test"]) == pytest.approx(-MARGIN, abs=0.008)


def test_the_same_model_needs_no_sample_of_images():
    """Logits that differ in rounding rule out a loss; equal classes by other logits do not."""
    before = spoil(40, split="val").sample(20, random_state=0)
    logits = before.filter(regex="^logit_").columns
    after = before.iloc[::-1].copy()
    after[logits] += 1e-4
    assert loss_p_value(before, after, MARGIN, "val") == 0
    after[logits] *= 1.1
    assert loss_p_value(before, after, MARGIN, "val") > 0.05

"""The data card and the sentences of notebook 01: what they say of made-up tables, and that the
card is what a run was made from.
"""

import hashlib

import pandas as pd
from PIL import Image

from tests.toys import small_digits, tiny_vit
from vitlab.data import card, data_card
from vitlab.data.card import hash_splits
from vitlab.runs import Run
from vitlab.schema import DataBundle
from vitlab.training import save_results


def make_bundle(rows, classes=("cat", "dog"), excluded=(), **more):
    samples = pd.DataFrame(rows, columns=["sample_id", "label", "split", "group"])
    samples["source"] = "x"
    excluded = pd.DataFrame(list(excluded), columns=["sample_id", "source", "reason"])
    return DataBundle(
        "toy", classes, samples, lambda sample_id: Image.new("L", (2, 2)), excluded, **more
    )


CATS = ["train"] * 12 + ["val"] * 12 + ["test"] * 12
ROWS = [(f"c{i}", "cat", split, "farm") for i, split in enumerate(CATS)]
ROWS += [(f"d{i}", "dog", split, "town") for i, split in enumerate(["train", "train", "val"])]


def test_counts_licence_source_and_excluded_images_are_there():
    facts = {"licence": "CC0", "citation": "One (2001).\nTwo (2002).", "version": "v7"}
    excluded = [(name, f"{name}.jpg", "the file | is empty") for name in ("x1", "x2")]
    lines = data_card(make_bundle(ROWS, excluded=excluded, **facts)).splitlines()
    for line in (
        "# Data card: toy",
        "- Images: 39 in 2 classes; 2 excluded",
        "- Version: v7",
        "- Licence: CC0",
        "- One (2001).",
        "- Two (2002).",
        "| class | train | val | test | all |",
        "| cat | 12 | 12 | 12 | 36 |",
        "| dog | 2 | 1 | 0 | 3 |",
        "| **all** | 14 | 13 | 12 | 39 |",
        "| town | 2 | 1 | 0 | 3 |",
        "- 2 because: the file &#124; is empty",
        "They are `x1`, `x2`.",
    ):
        assert line in lines


def test_limits_are_named():
    text = data_card(make_bundle(ROWS))
    for limit in (
        "The largest class, *cat*, has 92.3% of the images",
        "No image in test of the class dog",
        "No image in test of the group town",
        "Fewer than 10 images in train of the class dog (2)",
        "in val of the class dog (1)",
        "Near-duplicates between the splits were not searched for",
        "not stated",
    ):
        assert limit in text
    empty = data_card(make_bundle([(f"a{i}", "all", "train", "all") for i in range(30)], ("all",)))
    assert "The split test is empty." in empty and "| **all** | 30 | 0 | 0 | 30 |" in empty


def test_many_classes_are_summed():
    rows = [(f"s{i}", f"class{i % 50:02d}", "train", "all") for i in range(100)]
    text = data_card(make_bundle(rows, classes=tuple(f"class{i:02d}" for i in range(50))))
    assert "| class19 | 2 |" in text and "| class20" not in text
    assert "| 30 more | 60 | 0 | 0 | 60 |" in text


def test_the_hash_is_that_of_the_sorted_lines():
    samples = pd.DataFrame({"sample_id": ["b", "a"], "split": ["test", "train"]})
    wanted = hashlib.sha256(b"a train\nb test\n").hexdigest()
    assert hash_splits(samples) == hash_splits(samples.iloc[::-1]) == wanted
    assert hash_splits(samples.assign(split="train")) != wanted


def test_a_run_holds_the_card_of_its_splits():
    run = Run.create(dataset="digits", model="vit_scratch", seed=0)
    run.write_table("history.csv", pd.DataFrame({"epoch": [1]}))
    save_results(run, tiny_vit(), small_digits())
    text = (run.path / "data_card.md").read_text(encoding="utf-8")
    assert f"`{hash_splits(run.read_table('splits.csv'))}`" in text
    assert text == data_card(small_digits())


def test_pairs_are_counted_by_the_splits_of_the_samples():
    ends = [("c0", "c30"), ("c1", "c2"), ("c12", "c31"), ("c30", "c31"), ("c3", "gone")]
    pairs = pd.DataFrame(ends, columns=["sample_id_a", "sample_id_b"]).assign(same_label=True)
    wanted = (
        "Of 5 pairs of near-duplicates, 2 lie in different splits; 2 of 12 test images (16.7%) have"
    )
    data = make_bundle(ROWS)
    assert wanted in data_card(data, pairs)
    assert wanted in card.describe_duplicates(pairs, data.samples)


def test_sentences_on_brightness_and_doubtful_labels():
    images = pd.DataFrame({"group": list("xxxxyyyy"), "label": list("aabb") * 2})
    images["mean"] = [0, 2, 2, 4, 0, 2, 6, 8]
    # class means 1 and 7 in y; the images of each class deviate by 1, or 1.15 over n - 1
    wanted = "up to 5.2 standard deviations of their images in the group *y*"
    assert wanted in card.describe_brightness(images)
    quality = pd.DataFrame({"issue": "wrong_label", "flagged": [True, False]})
    quality = quality.assign(label=["a", "b"], suggested=["b", ""])
    wanted = "1 labels (50.0%) are probably wrong, most often *a* instead of *b* (1)"
    assert wanted in card.describe_doubts(quality)
    assert "0 labels (0.0%) are probably wrong. " in card.describe_doubts(quality[1:])
    assert "not scored" in card.describe_doubts(quality[:0])

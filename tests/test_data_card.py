"""The data card: what it says of made-up tables, and that it is what a run was made from."""

import hashlib

import pandas as pd
from PIL import Image

from tests.toys import small_digits, tiny_vit
from vitlab.data import data_card, hash_splits, sentences
from vitlab.runs import Run
from vitlab.schema import DataBundle
from vitlab.training import save_results


def make_bundle(rows, classes=("cat", "dog"), excluded=(), **more):
    samples = pd.DataFrame(rows, columns=["sample_id", "label", "split", "group"]).assign(
        source="x"
    )
    excluded = pd.DataFrame(list(excluded), columns=["sample_id", "source", "reason"])
    return DataBundle(
        "toy", classes, samples, lambda sample_id: Image.new("L", (2, 2)), excluded, **more
    )


ROWS = [
    *(
        (f"c{i}", "cat", split, "farm")
        for i, split in enumerate(["train"] * 12 + ["val"] * 12 + ["test"] * 12)
    ),
    *((f"d{i}", "dog", split, "town") for i, split in enumerate(["train"] * 2 + ["val"] * 1)),
]


def test_counts_licence_source_and_excluded_images_are_there():
    excluded = [("x1", "x1.jpg", "the file | is empty"), ("x2", "x2.jpg", "the file | is empty")]
    card = data_card(
        make_bundle(
            ROWS,
            licence="CC0",
            citation="One (2001).\nTwo (2002).",
            version="v7",
            excluded=excluded,
        )
    )
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
        assert line in card.splitlines()


def test_limits_are_named():
    card = data_card(make_bundle(ROWS))
    assert (
        "12.0 times as many images of the class cat as of dog" in card
        and "an accuracy of 92.3%" in card
    )
    assert (
        "No image in test of the class dog" in card and "No image in test of the group town" in card
    )
    assert (
        "Fewer than 10 images in train of the class dog (2)" in card
        and "in val of the class dog (1)" in card
    )
    assert (
        "Near-duplicates between the splits were not searched for" in card and "not stated" in card
    )


def test_pairs_are_counted_by_the_splits_of_the_card():
    pairs = pd.DataFrame(
        [("c0", "c30"), ("c1", "c2"), ("c12", "c31"), ("c30", "c31"), ("c3", "gone")],
        columns=["sample_id_a", "sample_id_b"],
    )
    card = data_card(make_bundle(ROWS), pairs)
    assert (
        "Of 5 pairs of near-duplicates, 2 lie in different splits; 2 of 12 test images have" in card
    )


def test_a_class_without_images_and_one_called_all():
    rows = [(f"a{i}", "all", "train", "all") for i in range(30)]
    card = data_card(make_bundle(rows, classes=("all", "none")))
    assert "| all | 30 | 0 | 0 | 30 |" in card and "| **all** | 30 | 0 | 0 | 30 |" in card
    assert (
        "The split test is empty." in card and "infinitely as many images of the class all" in card
    )


def test_many_classes_are_summed():
    rows = [(f"s{i}", f"class{i % 50:02d}", "train", "all") for i in range(100)]
    card = data_card(make_bundle(rows, classes=tuple(f"class{i:02d}" for i in range(50))))
    assert (
        "| class19 | 2 |" in card
        and "| class20" not in card
        and "| 30 more | 60 | 0 | 0 | 60 |" in card
    )


def test_the_hash_is_that_of_the_sorted_lines():
    samples = pd.DataFrame({"sample_id": ["b", "a"], "split": ["test", "train"]})
    wanted = hashlib.sha256(b"a train\nb test\n").hexdigest()
    assert hash_splits(samples) == hash_splits(samples.iloc[::-1]) == wanted
    assert hash_splits(samples.assign(split="train")) != wanted


def test_a_run_holds_the_card_of_its_splits():
    run = Run.create(dataset="digits", model="vit_scratch", seed=0)
    run.write_table("history.csv", pd.DataFrame({"epoch": [1]}))
    save_results(run, tiny_vit(), small_digits())
    card = (run.path / "data_card.md").read_text(encoding="utf-8")
    assert f"`{hash_splits(run.read_table('splits.csv'))}`" in card and card == data_card(
        small_digits()
    )


def test_sentences_of_notebook_01():
    data = make_bundle(ROWS, licence="CC0")
    assert "contains 39 images in 2 classes: cat, dog. Licence: CC0" in sentences.describe_source(
        data
    )
    assert "has 92.3% of the images" in sentences.describe_balance(data.samples)
    images = pd.DataFrame(
        {"group": list("xxxxyyyy"), "label": list("aabb") * 2, "mean": [0, 2, 2, 4, 0, 2, 6, 8]}
    )
    # class means 1 and 7 in y; the images of each class deviate by 1, or 1.15 over n - 1
    assert "up to 5.2 standard deviations of their images in the group *y*" in (
        sentences.describe_brightness(images)
    )
    pairs = pd.DataFrame({"crosses_split": [True, False], "same_label": [False, True]})
    found = sentences.describe_duplicates(pairs, ["a", "b", "c", "d"], ["a", "b", "c"])
    assert (
        "2 pairs are near-duplicates, 1 of them are in different splits, and 1 of 4 test" in found
    )
    quality = pd.DataFrame(
        {"is_wrong_label": [True, False], "label": ["a", "b"], "suggested": ["b", ""]}
    )
    assert "1 labels (50.0%) are probably wrong, most often *a* instead of *b* (1)" in (
        sentences.describe_doubts(quality)
    )
    assert "0 labels (0.0%) are probably wrong. " in sentences.describe_doubts(quality[1:])

"""Near-duplicates and clusters against hand-computed ones; the quality table on hand-made faults
and on label noise in digits.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cleanvision import Imagelab
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_digits

from vitlab.data import (
    clean_test_ids,
    cluster_table,
    cluster_test_images,
    image_table,
    load_dataset,
    near_duplicate_table,
    quality_summary,
    quality_table,
    worst_images,
)
from vitlab.data.quality import PIXEL_ISSUES, find_close, predict_out_of_fold
from vitlab.schema import DataBundle


def make_bundle(images, labels=None, splits=None):
    ids = list(images)
    samples = pd.DataFrame({"sample_id": ids, "group": "all", "source": ids})
    samples["label"] = labels or ["a"] * len(ids)
    samples["split"] = splits or ["train"] * len(ids)
    excluded = pd.DataFrame(columns=["sample_id", "source", "reason"], dtype=str)
    return DataBundle("toy", ("a", "b"), samples, images.__getitem__, excluded)


def noise(seed, size=(120, 100)):
    values = np.random.default_rng(seed).normal(128, 50, (10, 12)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def make_samples(labels, **columns):
    ids = [f"s{row:04d}" for row in range(len(labels))]
    return pd.DataFrame({"sample_id": ids, "label": list(labels), **columns})


def make_pairs(*ends):
    return pd.DataFrame(list(ends), columns=["sample_id_a", "sample_id_b"])


def test_near_duplicates_are_found_through_blur_exposure_and_size():
    original = noise(1)
    images = {
        "original": original,
        "other": noise(2).convert("RGB"),
        "blurred": original.filter(ImageFilter.GaussianBlur(2)),
        "third": noise(3),
        "darker": ImageEnhance.Brightness(original).enhance(0.6),
        "smaller": original.resize((60, 50)),
    }
    splits = ["train"] * 5 + ["test"]
    table = near_duplicate_table(make_bundle(images, list("aaabba"), splits))
    alike = ["original", "blurred", "darker", "smaller"]
    wanted = {(one, two) for place, one in enumerate(alike) for two in alike[place + 1 :]}
    assert set(table[["sample_id_a", "sample_id_b"]].itertuples(index=False, name=None)) == wanted
    assert table["distance"].is_monotonic_increasing and table["distance"].max() <= 16
    rows = table.set_index(["sample_id_a", "sample_id_b"])[["same_label", "crosses_split"]]
    assert rows.loc[("original", "smaller")].tolist() == [True, True]
    assert rows.loc[("original", "darker")].tolist() == [False, False]


def test_each_distance_finds_what_the_other_misses():
    original = noise(1)
    images = {
        "copy": original.copy(),
        "darker": ImageEnhance.Brightness(original).enhance(0.8),
        "flipped": ImageOps.mirror(original),
        "original": original,
        "other": noise(2),
    }
    data = make_bundle(images, splits=["train", "test", "test", "train", "train"])
    # of any length: copies, and a flip close by
    vectors = np.array([[1, 0, 0], [0, 1, 0], [3, 0.1, 0], [1, 0, 0], [0, 0, 2]])
    table = near_duplicate_table(data, embeddings=vectors, max_cosine=0.001)
    found = table.set_index(["sample_id_a", "sample_id_b"])
    assert found["found_by"].to_dict() == {
        ("copy", "original"): "both",
        ("copy", "darker"): "hash",
        ("darker", "original"): "hash",
        ("copy", "flipped"): "embedding",
        ("flipped", "original"): "embedding",
    }
    cosine = found["cosine_distance"]
    assert cosine["copy", "original"] == pytest.approx(0, abs=1e-6)
    assert cosine["copy", "flipped"] == pytest.approx(1 - 3 / np.sqrt(9.01), abs=1e-6)
    assert cosine["copy", "darker"] == pytest.approx(1)
    assert found["crosses_split"].sum() == 4 and len(near_duplicate_table(data)) == 3


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((3, 4)), r"shape \(3, 4\) do not fit 2 samples"),
        (np.ones(2), r"shape \(2,\) do not fit"),
        ([[1, 0], [0, 0]], "1 embeddings are zero, NaN or infinite, the first in row 1"),
        ([[np.nan, 0], [0, 1]], "the first in row 0"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        near_duplicate_table(make_bundle({"x": noise(1), "y": noise(2)}), embeddings=vectors)


def test_close_pairs_equal_brute_force():
    vectors = np.random.default_rng(0).normal(size=(40, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    close = 1 - vectors @ vectors.T <= 0.3
    wanted = [[i, j] for i in range(40) for j in range(i + 1, 40) if close[i, j]]
    assert sorted(find_close(vectors, 0.3).tolist()) == wanted != []


def test_a_chain_of_pairs_is_one_cluster():
    samples = make_samples("aaaaaa", split=["train", "test", "train", "val", "train", "test"])
    pairs = make_pairs(("s0001", "s0003"), ("s0005", "s0003"), ("s0002", "s0004"))
    table = cluster_table(samples, pairs)
    assert table["cluster"].tolist() == ["s0000", "s0001", "s0002", "s0001", "s0002", "s0001"]
    assert table["size"].tolist() == [1, 3, 2, 3, 2, 3]
    assert table["splits"].tolist() == ["train", *["test val", "train"] * 2, "test val"]
    assert cluster_table(samples, make_pairs())["cluster"].tolist() == samples["sample_id"].tolist()
    with pytest.raises(ValueError, match="the pairs hold sample_ids that are not"):
        cluster_table(samples, make_pairs(("s0000", "gone")))


def test_clean_test_images_have_no_partner_in_training():
    samples = make_samples("aaaaaa", split=["test", "test", "test", "train", "val", "test"])
    pairs = make_pairs(
        ("s0000", "s0003"), ("s0004", "s0001"), ("s0002", "s0005"), ("s0003", "gone")
    )
    assert clean_test_ids(samples, pairs) == ["s0001", "s0002", "s0005"]
    assert clean_test_ids(samples, make_pairs()) == ["s0000", "s0001", "s0002", "s0005"]


def test_evaluation_resamples_near_duplicates_or_the_groups_of_the_split_together():
    bundle = make_bundle({"a": noise(1), "a2": noise(1), "b": noise(2), "c": noise(3)})
    splits = ["test", "test", "test", "train"]
    bundle = replace(bundle, samples=bundle.samples.assign(split=splits, patient=list("xyyz")))
    for split_by in ("", "cluster"):
        assert cluster_test_images(bundle, split_by).to_dict() == {"a": "a", "a2": "a", "b": "b"}
    assert cluster_test_images(bundle, "patient").to_dict() == {"a": "x", "a2": "y", "b": "y"}


def test_image_table_against_numpy():
    image = noise(0)
    table = image_table(make_bundle({"x": image, "white": Image.new("RGB", (3, 2), "white")}))
    values = np.asarray(image) / 255
    assert table.loc[0, ["sample_id", "width", "height"]].tolist() == ["x", 120, 100]
    grey = table.loc[0, ["mean", "std"]].tolist()
    assert grey == pytest.approx([values.mean(), values.std()])
    assert table.loc[1].tolist() == ["white", 3, 2, 1, 0]


# the quality table


def photo(seed, size=(256, 256)):
    """Sharp blocks of grey on a full range of values."""
    values = np.random.default_rng(seed).integers(0, 256, (24, 24), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


GOOD = {f"good{i:02d}": photo(i) for i in range(16)}
STEPS = np.linspace(-1, 1, 256) ** 2  # a bright spot that fades away: no edge anywhere
SPOT = (255 * np.clip(1 - np.add.outer(STEPS, STEPS) / 1.9, 0, 1)).astype(np.uint8)
FAULTY = {
    "black": Image.new("L", (256, 256), 3),
    "white": Image.new("L", (256, 256), 253),
    "smooth": Image.fromarray(SPOT),
    "strip": photo(101, (600, 60)),
    "huge": photo(102, (2560, 2560)),
    "copy": ImageEnhance.Brightness(GOOD["good03"]).enhance(0.9),
}


@pytest.fixture(scope="module")
def table():
    images = GOOD | FAULTY
    labels = ["a", "b"] * 8 + ["b"] * 6
    data = make_bundle(images, labels)
    vectors = np.random.default_rng(0).normal(size=(len(images), 4))
    return quality_table(data, vectors, near_duplicate_table(data))


def flagged(table, issue):
    return set(table.loc[(table["issue"] == issue) & table["flagged"], "sample_id"])


@pytest.mark.parametrize(
    ("issue", "wanted"),
    [
        ("dark", {"black"}),
        ("light", {"white"}),
        ("blurry", {"smooth"}),
        ("low_information", {"black", "white"}),
        ("odd_aspect_ratio", {"strip"}),
    ],
)
def test_each_fault_is_flagged_by_its_issue_alone(table, issue, wanted):
    assert flagged(table, issue) == wanted


def test_copies_are_near_duplicates_and_scores_run_from_bad_to_good(table):
    # blank images look alike
    assert flagged(table, "near_duplicate") - {"black", "white", "smooth"} == {"good03", "copy"}
    score = table[table["issue"] == "near_duplicate"].set_index("sample_id")["score"]
    assert score["copy"] == score["good03"] < 0.1 and score["good05"] == 1
    assert table["score"].between(0, 1).all() and table.groupby("issue").size().eq(22).all()
    for _, part in table.groupby("issue"):
        assert not part["flagged"].any() or (
            part["score"][part["flagged"]].max() < part["score"][~part["flagged"]].min()
        )


def test_the_pixels_are_scored_as_cleanvision_scores_files(table, tmp_path):
    for name, image in (GOOD | FAULTY).items():
        image.save(tmp_path / f"{name}.png")
    lab = Imagelab(data_path=str(tmp_path), verbose=False)
    lab.find_issues({issue: {} for issue in PIXEL_ISSUES}, 1, False)
    names = lab.issues.index.map(lambda path: path.rsplit("/", 1)[-1].removesuffix(".png"))
    wanted = lab.issues.set_index(names)
    for issue in PIXEL_ISSUES:
        rows = table[table["issue"] == issue].set_index("sample_id").loc[wanted.index]
        assert np.allclose(rows["score"], wanted[f"{issue}_score"], atol=1e-9)
        assert (rows["flagged"] == wanted[f"is_{issue}_issue"]).all()


def test_the_summary_counts_and_names_the_worst_which_come_first_elsewhere(table):
    summary = quality_summary(table).set_index("issue")
    row = summary.loc["dark"]
    assert row[["images", "flagged", "worst"]].tolist() == [22, 1, "black"]
    assert row[["share", "score"]].tolist() == pytest.approx([1 / 22, 3 / 255])
    assert summary["images"].eq(22).all()
    worst = worst_images(table, n=2)
    assert worst.groupby("issue").size().max() == 2 and worst["score"].max() < 1
    assert list(worst["issue"].unique()) == [i for i in summary.index if i in set(worst["issue"])]
    assert all(part["score"].is_monotonic_increasing for _, part in worst.groupby("issue"))
    strip = worst[worst["issue"] == "odd_aspect_ratio"]
    assert strip[["sample_id", "flagged"]].values.tolist() == [["strip", True]]


def test_label_noise_and_an_outlier_are_found():
    data, vectors = load_dataset("digits"), load_digits().data.copy()
    wrong = np.sort(np.random.default_rng(0).choice(len(vectors), 50, replace=False))
    vectors[7] = np.random.default_rng(0).integers(0, 16, 64)[::-1] * np.tile([0, 1], 32)
    samples = data.samples.copy()
    true = samples["label"].copy()
    samples.loc[wrong, "label"] = [str((int(label) + 1) % 10) for label in true[wrong]]
    pairs = make_pairs().assign(distance=[])
    table = quality_table(replace(data, samples=samples), vectors, pairs)
    outliers = worst_images(table[table["issue"] == "outlier"], n=1)
    assert outliers[["sample_id", "flagged"]].values.tolist() == [["digit0007", True]]
    labels = table[table["issue"] == "wrong_label"].reset_index(drop=True)
    found = np.flatnonzero(labels["flagged"])
    assert np.isin(wrong, found).mean() > 0.7 and np.isin(found, wrong).mean() > 0.7
    hits = np.intersect1d(wrong, found)
    assert (labels["suggested"][hits] == true[hits]).mean() > 0.9
    assert set(labels.loc[~labels["flagged"], "suggested"]) == {""}
    first = worst_images(labels, n=20)["sample_id"]
    assert np.isin(first, samples["sample_id"][wrong]).mean() > 0.9


def test_predictions_are_of_models_that_have_not_seen_the_sample_or_its_copy():
    rng = np.random.default_rng(0)
    # noise: a model that has seen a sample knows its label, others guess
    vectors = np.tile(rng.normal(size=(60, 200)), (2, 1))
    labels = np.tile(rng.choice(["a", "b"], 60), 2)

    def accuracy(groups):
        prob = predict_out_of_fold(vectors, labels, groups)
        return (np.array(["a", "b"])[prob.argmax(axis=1)] == labels).mean()

    assert accuracy(np.arange(120)) > 0.8 and accuracy(np.tile(np.arange(60), 2)) < 0.7


def test_classes_too_small_to_be_scored_have_no_rows():
    images = {f"s{row:02d}": photo(row, (24, 24)) for row in range(23)}
    labels = ["a"] * 10 + ["b"] * 10 + ["c"] * 3
    centres = np.repeat([0, 3, 9], [10, 10, 3])[:, None]
    vectors = np.random.default_rng(0).normal(size=(23, 4)) + centres
    table = quality_table(make_bundle(images, labels), vectors, make_pairs().assign(distance=[]))
    assert table.groupby("issue")["label"].apply(set)["wrong_label"] == {"a", "b"}
    assert table["issue"].eq("outlier").sum() == 23
    few = make_bundle({name: images[name] for name in list(images)[:6]}, list("aaabbb"))
    table = quality_table(few, np.eye(6), make_pairs().assign(distance=[]))
    assert set(table["issue"]) == {*PIXEL_ISSUES, "near_duplicate"}

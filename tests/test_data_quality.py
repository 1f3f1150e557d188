"""Image statistics and the quality table on hand-made faults, and on label noise in digits."""

import numpy as np
import pandas as pd
import pytest
from cleanvision import Imagelab
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from tests.test_data_duplicates import make_bundle, noise
from vitlab.data import (
    image_table,
    load_dataset,
    quality_summary,
    quality_table,
    worst_images,
)
from vitlab.data.quality import ISSUES, PIXEL_ISSUES, predict_out_of_fold
from vitlab.schema import DataBundle


def test_image_table_against_numpy():
    image = noise(0)
    table = image_table(make_bundle({"x": image, "white": Image.new("RGB", (3, 2), "white")}))
    values = np.asarray(image) / 255
    assert table.loc[0, ["sample_id", "width", "height"]].tolist() == ["x", 120, 100]
    assert table.loc[0, "mean"] == pytest.approx(values.mean()) and table.loc[
        0, "std"
    ] == pytest.approx(values.std())
    assert table.iloc[1].tolist() == ["white", 3, 2, 1, 0]


def photo(seed, size=(256, 256)):
    """Sharp blocks of grey on a full range of values."""
    values = np.random.default_rng(seed).integers(0, 256, (24, 24), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


GOOD = {f"good{i:02d}": photo(i) for i in range(16)}


STEPS = np.linspace(-1, 1, 256) ** 2  # a bright spot that fades away: no edge anywhere


FAULTY = {
    "black": Image.new("L", (256, 256), 3),
    "white": Image.new("L", (256, 256), 253),
    "smooth": Image.fromarray(
        (255 * np.clip(1 - np.add.outer(STEPS, STEPS) / 1.9, 0, 1)).astype(np.uint8)
    ),
    "strip": photo(101, (600, 60)),
    "huge": photo(102, (2560, 2560)),
    "copy": ImageEnhance.Brightness(GOOD["good03"]).enhance(0.9),
}


@pytest.fixture(scope="module")
def faulty():
    return make_bundle(GOOD | FAULTY)


@pytest.fixture(scope="module")
def table(faulty):
    return quality_table(faulty)


def flagged(table, issue):
    return set(table.loc[table[f"is_{issue}"], "sample_id"])


@pytest.mark.parametrize(
    ("issue", "wanted"),
    [
        ("unreadable", set()),
        ("dark", {"black"}),
        ("light", {"white"}),
        ("blurry", {"smooth"}),
        ("low_information", {"black", "white"}),
        ("odd_aspect_ratio", {"strip"}),
        ("outlier", set()),
        ("wrong_label", set()),
    ],
)
def test_each_fault_is_flagged_by_its_issue_alone(table, issue, wanted):
    assert flagged(table, issue) == wanted


def test_copies_are_near_duplicates(table):
    # blank images look alike
    assert flagged(table, "near_duplicate") - {"black", "white", "smooth"} == {"good03", "copy"}


def test_scores_run_from_bad_to_good(table):
    rows = table.set_index("sample_id")
    assert (
        rows.loc["copy", "near_duplicate_score"] == rows.loc["good03", "near_duplicate_score"] < 0.1
    )
    assert rows.loc["good05", "near_duplicate_score"] == 1
    for issue in ISSUES:
        score = table[f"{issue}_score"].dropna()
        assert score.between(0, 1).all()
        bad = table[f"is_{issue}"]
        if bad.any():
            assert score[bad].max() < score[~bad].min()
    assert table[["outlier_score", "wrong_label_score"]].isna().all(axis=None), (
        "there were no embeddings"
    )


def test_the_pixels_are_judged_as_cleanvision_judges_files(table, tmp_path):
    for name, image in (GOOD | FAULTY).items():
        image.save(tmp_path / f"{name}.png")
    lab = Imagelab(data_path=str(tmp_path), verbose=False)
    lab.find_issues({issue: {} for issue in PIXEL_ISSUES}, 1, False)
    wanted = lab.issues.set_index(
        lab.issues.index.map(lambda path: path.rsplit("/", 1)[-1].removesuffix(".png"))
    )
    rows = table.set_index("sample_id").loc[wanted.index]
    for issue in PIXEL_ISSUES:
        assert np.allclose(rows[f"{issue}_score"], wanted[f"{issue}_score"], atol=1e-9)
        assert (rows[f"is_{issue}"] == wanted[f"is_{issue}_issue"]).all()


def test_unreadable_images_have_a_row_and_other_files_do_not():
    def read(sample_id):
        if sample_id == "broken":
            raise OSError("truncated")
        if sample_id == "notes.txt":
            raise ValueError("unknown sample_id 'notes.txt'")
        return GOOD[sample_id]

    samples = make_bundle(GOOD).samples
    reasons = [
        ("broken", "b", "truncated"),
        ("notes.txt", "n", "no image"),
        ("good99", "g", "not in the table given as samples="),
    ]
    excluded = pd.DataFrame(reasons, columns=["sample_id", "source", "reason"])
    table = quality_table(DataBundle("toy", ("a", "b"), samples, read, excluded))
    assert flagged(table, "unreadable") == {"broken"} and len(table) == 17
    row = table.iloc[-1]
    assert row["unreadable_score"] == 0 and np.isnan(row["dark_score"]) and not row["is_dark"]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits"), load_digits().data


def relabel(data, wrong):
    samples = data.samples.copy()
    samples.loc[wrong, "label"] = [
        str((int(label) + 1) % 10) for label in samples.loc[wrong, "label"]
    ]
    return DataBundle(data.name, data.classes, samples, data.read, data.excluded)


@pytest.fixture(scope="module")
def noisy(digits):
    data, vectors = digits
    wrong = np.sort(np.random.default_rng(0).choice(len(vectors), 50, replace=False))
    no_pairs = pd.DataFrame(columns=["sample_id_a", "sample_id_b", "distance"])
    return wrong, quality_table(relabel(data, wrong), vectors, pairs=no_pairs)


def test_planted_label_noise_is_found(digits, noisy):
    data, _ = digits
    wrong, table = noisy
    found = np.flatnonzero(table["is_wrong_label"])
    recall, precision = np.isin(wrong, found).mean(), np.isin(found, wrong).mean()
    assert recall > 0.7 and precision > 0.7
    hits = np.intersect1d(wrong, found)
    assert (table["suggested"].iloc[hits] == data.samples["label"].iloc[hits]).mean() > 0.9
    assert set(table.loc[~table["is_wrong_label"], "suggested"]) == {""}
    assert (
        np.isin(
            worst_images(table, ["wrong_label"], n=20)["sample_id"],
            data.samples["sample_id"].iloc[wrong],
        ).mean()
        > 0.9
    )


def test_an_outlier_in_the_space_of_embeddings_is_found(digits):
    data, vectors = digits
    odd = vectors.copy()
    odd[7] = np.random.default_rng(0).integers(0, 16, 64)[::-1] * np.tile([0, 1], 32)
    no_pairs = pd.DataFrame(columns=["sample_id_a", "sample_id_b", "distance"])
    table = quality_table(data, odd, pairs=no_pairs)
    assert (
        worst_images(table, ["outlier"], n=1)["sample_id"].item() == "digit0007"
        and table["is_outlier"][7]
    )


def test_predictions_are_of_models_that_have_not_seen_the_sample_or_its_copy():
    rng = np.random.default_rng(0)
    # noise: a model that has seen a sample knows its label, others guess
    vectors = np.tile(rng.normal(size=(60, 200)), (2, 1))
    labels = np.tile(rng.choice(["a", "b"], 60), 2)

    def accuracy(groups):
        prob = predict_out_of_fold(vectors, labels, groups)
        return (np.array(["a", "b"])[prob.argmax(axis=1)] == labels).mean()

    assert accuracy(np.arange(120)) > 0.8 and accuracy(np.tile(np.arange(60), 2)) < 0.7


def test_classes_too_small_to_be_judged_have_gaps():
    rng = np.random.default_rng(0)
    images = {f"s{row:02d}": photo(row) for row in range(23)}
    labels = ["a"] * 10 + ["b"] * 10 + ["c"] * 3
    table = quality_table(
        make_bundle(images, labels=labels),
        rng.normal(size=(23, 4)) + np.repeat([0, 3, 9], [10, 10, 3])[:, None],
    )
    assert table["wrong_label_score"].isna().tolist() == [False] * 20 + [True] * 3
    assert table["outlier_score"].notna().all()
    few = quality_table(
        make_bundle({name: images[name] for name in list(images)[:6]}, labels=list("aaabbb")),
        np.eye(6),
    )
    assert few[["outlier_score", "wrong_label_score"]].isna().all(axis=None)


def test_the_summary_counts_and_names_the_worst(table):
    summary = quality_summary(table).set_index("issue")
    assert list(summary.index) == list(ISSUES)
    assert summary.loc["dark", ["images", "flagged", "worst"]].tolist() == [22, 1, "black"]
    assert summary.loc["dark", "share"] == pytest.approx(1 / 22) and summary.loc[
        "dark", "score"
    ] == pytest.approx(3 / 255)
    assert summary.loc["outlier", ["images", "flagged", "worst"]].tolist() == [
        0,
        0,
        "",
    ] and np.isnan(summary.loc["outlier", "share"])
    assert summary.loc["unreadable", ["flagged", "worst"]].tolist() == [0, ""]


def test_the_worst_come_first_and_the_faultless_not_at_all(table):
    worst = worst_images(table, ["odd_aspect_ratio"], n=3)
    assert (
        worst["sample_id"].tolist() == ["strip"]
        and worst["score"].item() == pytest.approx(0.1)
        and worst["flagged"].item()
    )
    every = worst_images(table, n=2)
    assert every.groupby("issue").size().max() == 2 and "outlier" not in set(every["issue"])
    assert all(part["score"].is_monotonic_increasing for _, part in every.groupby("issue"))

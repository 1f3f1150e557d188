"""Image statistics and near-duplicates against hand-computed and brute-force ones."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from vitlab.data import duplicates, find_unreadable, image_table, near_duplicate_table
from vitlab.schema import DataBundle


def make_bundle(images, labels=None, splits=None):
    ids = list(images)
    samples = pd.DataFrame(
        {
            "sample_id": ids,
            "label": labels or ["a"] * len(ids),
            "split": splits or ["train"] * len(ids),
        }
    )
    samples = samples.assign(group="all", source=ids)
    return DataBundle("toy", ("a", "b"), samples, images.__getitem__, samples.head(0))


def noise(seed, size=(120, 100)):
    values = np.random.default_rng(seed).normal(128, 50, (10, 12)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def test_unreadable_images_are_listed_in_order_with_their_reason():
    def read(sample_id):
        if sample_id == "s3":
            raise SyntaxError("broken PNG file")
        if sample_id == "s200":
            raise FileNotFoundError(2, "No such file or directory", "/a/path/of/this/machine")
        return Image.new("L", (2, 2))

    samples = pd.DataFrame(
        {
            "sample_id": [f"s{row}" for row in range(300)],
            "source": [f"{row}.png" for row in range(300)],
        }
    )
    assert find_unreadable(read, samples).values.tolist() == [
        ["s3", "3.png", "SyntaxError: broken PNG file"],
        ["s200", "200.png", "No such file or directory"],
    ]


def test_image_table_against_numpy():
    image = noise(0)
    table = image_table(make_bundle({"x": image, "white": Image.new("RGB", (3, 2), "white")}))
    values = np.asarray(image) / 255
    assert table.loc[0, ["sample_id", "width", "height", "mode"]].tolist() == ["x", 120, 100, "L"]
    assert table.loc[0, "mean"] == pytest.approx(values.mean()) and table.loc[
        0, "std"
    ] == pytest.approx(values.std())
    wanted = np.quantile(values, [0.05, 0.5, 0.95], method="inverted_cdf")
    assert table.loc[0, ["p05", "median", "p95"]].tolist() == pytest.approx(wanted.tolist())
    assert table.iloc[1].tolist() == ["white", 3, 2, "RGB", 1, 0, 1, 1, 1]


def test_a_limit_spreads_over_the_table():
    data = make_bundle({f"s{row}": Image.new("L", (row + 1, 1)) for row in range(11)})
    assert image_table(data, limit=3)["sample_id"].tolist() == ["s0", "s5", "s10"]
    assert len(image_table(data, limit=50)) == 11


def test_near_duplicates_are_found_through_blur_exposure_and_size():
    original = noise(1)
    images = {
        "original": original,
        "other": noise(2),
        "blurred": original.filter(ImageFilter.GaussianBlur(2)),
        "third": noise(3),
        "darker": ImageEnhance.Brightness(original).enhance(0.7),
        "smaller": original.resize((80, 66)),
    }
    table = near_duplicate_table(
        make_bundle(images, labels=list("aaabba"), splits=["train"] * 5 + ["test"])
    )
    alike = ["original", "blurred", "darker", "smaller"]
    found = set(table[["sample_id_a", "sample_id_b"]].itertuples(index=False, name=None))
    assert found == {
        (first, second) for position, first in enumerate(alike) for second in alike[position + 1 :]
    }
    assert table["distance"].is_monotonic_increasing and table["distance"].max() <= 16
    rows = table.set_index(["sample_id_a", "sample_id_b"])
    assert rows.loc[("original", "smaller"), ["same_label", "crosses_split"]].tolist() == [
        True,
        True,
    ]
    assert rows.loc[("original", "darker"), ["same_label", "crosses_split"]].tolist() == [
        False,
        False,
    ]


def test_no_duplicates_give_an_empty_table_with_its_columns():
    table = near_duplicate_table(make_bundle({"x": noise(1), "y": noise(2)}))
    assert len(table) == 0 and list(table) == [
        "sample_id_a",
        "sample_id_b",
        "distance",
        "same_label",
        "crosses_split",
    ]


def test_pairs_in_blocks_equal_brute_force(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    bits = np.random.default_rng(0).random((40, 31)) > 0.5
    wanted = [(i, j, int((bits[i] != bits[j]).sum())) for i in range(40) for j in range(i + 1, 40)]
    found = zip(*(part.tolist() for part in duplicates._find_close_pairs(bits, 12)), strict=True)
    assert sorted(found) == [pair for pair in wanted if pair[2] <= 12] != []

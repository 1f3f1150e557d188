"""The real ELPV images, against the package's own labels file read without vitlab."""

import csv
import importlib.resources
from collections import Counter

import numpy as np
import pytest

from vitlab.data import load_dataset, near_duplicate_table


@pytest.fixture(scope="module")
def reference():
    """sample_id -> (probability as written, cell type)."""
    text = (importlib.resources.files("elpv_dataset") / "data" / "labels.csv").read_text()
    rows = csv.reader(text.splitlines(), delimiter=" ", skipinitialspace=True)
    return {
        file.removeprefix("images/").removesuffix(".png"): (probability, kind.strip())
        for file, probability, kind in rows
    }


@pytest.fixture(scope="module")
def data():
    return load_dataset("elpv")


def test_labels_and_groups_are_those_of_the_package(data, reference):
    assert len(data.samples) == len(reference) == 2624 and data.classes == (
        "functional",
        "defective",
    )
    for row in data.samples.itertuples():
        probability, kind = reference[row.sample_id]
        assert row.label == (
            "functional" if probability.startswith(("0.0", "0.33")) else "defective"
        )
        assert (row.group, row.defect_probability, row.source) == (
            kind,
            float(probability),
            f"images/{row.sample_id}.png",
        )
    assert Counter(data.samples["label"]) == {"functional": 1803, "defective": 821}
    assert "CC BY-NC-SA 4.0" in data.licence
    assert all(
        paper in data.citation
        for paper in ("5CV.3.15", "j.solener.2019.02.067", "s00138-021-01191-9")
    )


def test_grades_follow_the_four_probabilities(reference):
    data = load_dataset("elpv:grade")
    names = {
        "0.0": "none",
        "0.3333333333333333": "possible",
        "0.6666666666666666": "probable",
        "1.0": "certain",
    }
    assert data.classes == tuple(names.values())
    assert all(row.label == names[reference[row.sample_id][0]] for row in data.samples.itertuples())
    assert Counter(data.samples["label"]) == {
        "none": 1508,
        "possible": 295,
        "probable": 106,
        "certain": 715,
    }


def test_both_tasks_share_their_splits_stratified_by_grade_and_cell_type(data):
    samples = data.samples
    assert samples["split"].tolist() == load_dataset("elpv:grade").samples["split"].tolist()
    assert samples["split"].value_counts(normalize=True).to_dict() == pytest.approx(
        {"train": 0.68, "val": 0.12, "test": 0.2}, abs=0.002
    )
    whole = samples.groupby(["defect_probability", "group"]).size() / len(samples)
    assert len(whole) == 8
    for _, part in samples.groupby("split"):
        share = part.groupby(["defect_probability", "group"]).size() / len(part)
        assert (share - whole).abs().max() < 0.01


def test_an_image_is_the_packaged_one(data):
    image = data.read("cell0001")
    assert image.size == (300, 300) and image.mode == "L" and np.asarray(image).std() > 10


def test_modules_photographed_twice_are_found(data):
    """Cells 1759 and 2301 are one cell, sharp and blurred, of a module whose two photographs lie
    542 cells apart.
    """
    small = data.samples[
        data.samples["sample_id"].isin(["cell1759", "cell2301", "cell0001", "cell1154", "cell1158"])
    ]
    pairs = near_duplicate_table(load_dataset("elpv", samples=small))
    assert pairs[["sample_id_a", "sample_id_b"]].values.tolist() == [["cell1759", "cell2301"]]

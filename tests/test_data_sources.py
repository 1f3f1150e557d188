"""load_dataset over its registry: the contract of every set, names, tables of earlier runs; ELPV
and digits against their packages.
"""

import csv
import importlib.resources
import pickle
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vitlab.data import available, datasets, load_dataset, near_duplicate_table, reading
from vitlab.data.datasets import DATASETS
from vitlab.schema import SPLITS, check_samples


@pytest.fixture
def two_classes(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(10):
            Image.new("L", (6, 4), number).save(tmp_path / label / f"{number}.png")
    return f"folder:{tmp_path}"


@pytest.fixture
def saved_set(tmp_path):
    """20 images of two classes, written by Hugging Face's datasets."""
    hugging_face = pytest.importorskip("datasets")
    columns = {
        "image": [Image.new("L", (6, 4), number) for number in range(20)],
        "label": [0, 1] * 10,
    }
    features = hugging_face.Features(
        {"image": hugging_face.Image(), "label": hugging_face.ClassLabel(names=["cat", "dog"])}
    )
    hugging_face.Dataset.from_dict(columns, features).save_to_disk(
        tmp_path.with_name(f"{tmp_path.name}-saved")
    )
    return f"hub:{tmp_path}-saved"


@pytest.mark.parametrize("name", available())
def test_every_dataset_keeps_the_contract(name, two_classes, mnist_files, saved_set):
    named = {"folder:": two_classes, "torchvision:": "torchvision:MNIST", "hub:": saved_set}
    named |= {"planted:": "planted:digits", "shuffled:": "shuffled:digits"}
    data = load_dataset(named.get(name, name), seed=3)
    check_samples(data.samples, data.classes)
    assert data.samples["sample_id"].is_monotonic_increasing
    assert len(data.excluded) == 0 and list(data.excluded.columns) == [
        "sample_id",
        "source",
        "reason",
    ]
    assert {(split, label) for split in SPLITS for label in data.classes} == set(
        data.samples[["split", "label"]].itertuples(index=False, name=None)
    )
    assert (
        data.version
        and data.version == load_dataset(data.name, seed=4, samples=data.samples).version
    )
    twin = pickle.loads(pickle.dumps(data))  # as a DataLoader's worker processes get it
    assert np.array_equal(
        twin.read(data.samples["sample_id"][5]), data.read(data.samples["sample_id"][5])
    )
    with pytest.raises(ValueError, match="unknown sample_id 'nobody'"):
        data.read("nobody")


def test_names_and_prefixes_are_listed_and_wrong_ones_answered_with_them():
    assert {"digits", "elpv", "elpv:grade", "folder:", "torchvision:"} <= set(available())
    with pytest.raises(
        ValueError,
        match=(
            r"unknown dataset 'elvp'\. Did you mean elpv.*Choices: digits, elpv, elpv:grade,"
            r" folder:"
        ),
    ):
        load_dataset("elvp")
    with pytest.raises(ValueError, match="elpv:grade"):
        load_dataset("elpv:grades")


def test_digits_are_those_of_scikit_learn():
    data, reference = load_dataset("digits"), load_digits()
    assert len(data.samples) == 1797 and data.classes == tuple("0123456789")
    assert data.samples["label"].tolist() == [str(target) for target in reference.target]
    image = np.asarray(data.read("digit0042"))
    assert image.dtype == np.uint8 and np.allclose(
        image / 255 * 16, reference.images[42], atol=0.04
    )
    with pytest.raises(ValueError, match="digit1796"):
        data.read("digit1797")


def test_splits_of_an_earlier_run_are_used_as_they_are(two_classes, tmp_path, monkeypatch):
    first = load_dataset(two_classes, seed=0)
    part = first.samples.iloc[[5, 3, 19]]
    part.to_csv(tmp_path / "splits.csv", index=False)
    monkeypatch.setattr(
        datasets, "_readable", lambda source: pytest.fail("images were checked again")
    )
    again = load_dataset(two_classes, seed=1, samples=pd.read_csv(tmp_path / "splits.csv"))
    pd.testing.assert_frame_equal(again.samples, part.reset_index(drop=True))
    assert len(again.excluded) == 17 and set(again.excluded["reason"]) == {
        "not in the table given as samples="
    }


def test_a_table_that_does_not_fit_is_refused():
    samples = load_dataset("digits").samples
    with pytest.raises(
        ValueError, match=r"1 sample_ids that digits does not have, the first is 'cell0001'"
    ):
        load_dataset("digits", samples=samples.replace({"sample_id": {"digit0007": "cell0001"}}))
    with pytest.raises(ValueError, match="lacks the columns split; it has sample_id, label"):
        load_dataset("digits", samples=samples.drop(columns="split"))
    with pytest.raises(ValueError, match="'digit0000' more than once"):
        load_dataset("digits", samples=pd.concat([samples, samples.head(1)]))
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        load_dataset("digits", samples=samples.replace({"split": {"val": "dev"}}))


def test_images_are_checked_once_as_long_as_they_do_not_change(two_classes, monkeypatch):
    checked = []
    examine = reading._examine
    monkeypatch.setattr(
        reading,
        "_examine",
        lambda read, sample_id: checked.append(sample_id) or examine(read, sample_id),
    )
    load_dataset(two_classes, seed=0), load_dataset(two_classes, seed=1)
    assert len(checked) == 20
    Image.new("L", (6, 4)).save(DATASETS[two_classes]().location + "/cat/new.png")
    load_dataset(two_classes)
    assert len(checked) == 41


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


def test_modules_photographed_twice_are_found(data):
    """Cells 1759 and 2301 are one cell, sharp and blurred, of a module whose two photographs lie
    542 cells apart.
    """
    small = data.samples[
        data.samples["sample_id"].isin(["cell1759", "cell2301", "cell0001", "cell1154", "cell1158"])
    ]
    pairs = near_duplicate_table(load_dataset("elpv", samples=small))
    assert pairs[["sample_id_a", "sample_id_b"]].values.tolist() == [["cell1759", "cell2301"]]

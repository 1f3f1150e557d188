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

from vitlab.data import available, load_dataset, near_duplicate_table, reading
from vitlab.schema import SPLITS, check_samples


@pytest.fixture
def two_classes(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(10):
            Image.new("L", (6, 4), number).save(tmp_path / label / f"{number}.png")
    return tmp_path


@pytest.fixture
def names(two_classes, mnist_files, tmp_path_factory):
    """A small data set for each prefix."""
    hugging_face = pytest.importorskip("datasets")
    files = sorted(path.relative_to(two_classes) for path in two_classes.rglob("*.png"))
    table = pd.DataFrame({"path": files, "label": [file.parent.name for file in files]})
    table.to_csv(two_classes / "all.csv", index=False)
    columns = {"image": [Image.new("L", (6, 4), i) for i in range(20)], "label": [0, 1] * 10}
    features = hugging_face.Features(
        {"image": hugging_face.Image(), "label": hugging_face.ClassLabel(names=["cat", "dog"])}
    )
    saved = tmp_path_factory.mktemp("saved")
    hugging_face.Dataset.from_dict(columns, features).save_to_disk(saved)
    return {
        "folder:": f"folder:{two_classes}",
        "csv:": f"csv:{two_classes / 'all.csv'}",
        "torchvision:": "torchvision:MNIST",
        "hub:": f"hub:{saved}",
        "planted:": "planted:digits",
        "shuffled:": "shuffled:digits",
    }


@pytest.mark.parametrize("name", available())
def test_every_dataset_keeps_the_contract(name, names):
    data = load_dataset(names.get(name, name), seed=3)
    samples = check_samples(data.samples, data.classes)
    assert samples["sample_id"].is_monotonic_increasing
    assert list(data.excluded) == ["sample_id", "source", "reason"] and data.excluded.empty
    there = set(samples[["split", "label"]].itertuples(index=False, name=None))
    assert there == {(split, label) for split in SPLITS for label in data.classes}
    assert data.version == load_dataset(data.name, seed=4, samples=samples).version != ""
    twin = pickle.loads(pickle.dumps(data))  # as a DataLoader's worker processes get it
    assert np.array_equal(twin.read(samples["sample_id"][5]), data.read(samples["sample_id"][5]))
    with pytest.raises(ValueError, match="unknown sample_id 'nobody'"):
        data.read("nobody")


def test_a_wrong_name_is_answered_with_the_choices():
    message = r"unknown dataset 'elvp'\. Did you mean elpv.*Choices: csv:, digits, elpv, elpv:grade"
    with pytest.raises(ValueError, match=message):
        load_dataset("elvp")


def test_splits_of_an_earlier_run_are_used_as_they_are(two_classes, monkeypatch):
    name = f"folder:{two_classes}"
    part = load_dataset(name, seed=0).samples.iloc[[5, 3, 19]]
    part.to_csv(two_classes / "splits.csv", index=False)
    monkeypatch.setattr(
        reading, "_examine", lambda *arguments: pytest.fail("images were checked again")
    )
    again = load_dataset(name, seed=1, samples=pd.read_csv(two_classes / "splits.csv"))
    pd.testing.assert_frame_equal(again.samples, part.reset_index(drop=True))
    assert len(again.excluded) == 17
    assert set(again.excluded["reason"]) == {"not in the table given as samples="}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("digit0007", "x"), "1 sample_ids that digits does not have.*'x'"),
        (lambda t: t.drop(columns="split"), "lacks the columns split; it has sample_id, label"),
        (lambda t: pd.concat([t, t.head(1)]), "'digit0000' more than once"),
        (lambda t: t.replace({"split": {"val": "dev"}}), "unknown split 'dev'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("digits", samples=change(load_dataset("digits").samples))


def test_images_are_checked_once_as_long_as_they_do_not_change(two_classes, monkeypatch):
    checked = []
    examine = reading._examine

    def count(read, sample_id):
        checked.append(sample_id)
        return examine(read, sample_id)

    monkeypatch.setattr(reading, "_examine", count)
    load_dataset(f"folder:{two_classes}", seed=0)
    load_dataset(f"folder:{two_classes}", seed=1)
    assert len(checked) == 20
    Image.new("L", (6, 4)).save(two_classes / "cat" / "new.png")
    load_dataset(f"folder:{two_classes}")
    assert len(checked) == 41


def test_digits_are_those_of_scikit_learn():
    data, reference = load_dataset("digits"), load_digits()
    assert len(data.samples) == 1797 and data.classes == tuple("0123456789")
    assert data.samples["label"].tolist() == [str(target) for target in reference.target]
    image = np.asarray(data.read("digit0042"))
    assert image.dtype == np.uint8
    assert np.allclose(image / 255 * 16, reference.images[42], atol=0.04)


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


def test_labels_groups_and_grades_of_elpv_are_those_of_the_package(data, reference):
    assert len(data.samples) == len(reference) == 2624
    assert data.classes == ("functional", "defective")
    for row in data.samples.itertuples():
        probability, kind = reference[row.sample_id]
        good = probability.startswith(("0.0", "0.33"))
        assert row.label == ("functional" if good else "defective")
        assert (row.group, row.defect_probability) == (kind, float(probability))
        assert row.source == f"images/{row.sample_id}.png"
    assert Counter(data.samples["label"]) == {"functional": 1803, "defective": 821}
    graded = load_dataset("elpv:grade")
    names = {"0.0": "none", "0.3333333333333333": "possible"}
    names |= {"0.6666666666666666": "probable", "1.0": "certain"}
    assert graded.classes == tuple(names.values())
    assert all(
        row.label == names[reference[row.sample_id][0]] for row in graded.samples.itertuples()
    )
    assert graded.coarser["elpv"]["probable"] == "defective"
    assert graded.samples["split"].tolist() == data.samples["split"].tolist()


def test_splits_of_elpv_are_stratified_by_grade_and_cell_type():
    samples = load_dataset("elpv", split_by="image").samples
    shares = samples["split"].value_counts(normalize=True).to_dict()
    assert shares == pytest.approx({"train": 0.68, "val": 0.12, "test": 0.2}, abs=0.002)
    whole = samples.groupby(["defect_probability", "group"]).size() / len(samples)
    assert len(whole) == 8
    for _, part in samples.groupby("split"):
        share = part.groupby(["defect_probability", "group"]).size() / len(part)
        assert (share - whole).abs().max() < 0.01


def test_modules_photographed_twice_are_found(data):
    """Cells 1759 and 2301 are one cell, sharp and blurred, of a module whose two photographs lie
    542 cells apart.
    """
    chosen = ["cell1759", "cell2301", "cell0001", "cell1154", "cell1158"]
    small = data.samples[data.samples["sample_id"].isin(chosen)]
    pairs = near_duplicate_table(load_dataset("elpv", samples=small))
    assert pairs[["sample_id_a", "sample_id_b"]].values.tolist() == [["cell1759", "cell2301"]]

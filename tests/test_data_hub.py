"""hub:NAME on small sets that `datasets` has saved; nothing is downloaded."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from vitlab.data import check_name, data_version, hub_sets, load_dataset

datasets = pytest.importorskip("datasets")
PIXELS = np.random.default_rng(2).integers(0, 256, (60, 6, 8, 3), dtype=np.uint8)


def make_part(rows, **changes):
    columns = {
        "picture": [Image.fromarray(PIXELS[row]) for row in rows],
        "animal": [row % 2 for row in rows],
        "name": [f"n{row}" for row in rows],
    } | changes
    features = {
        "picture": datasets.Image(),
        "animal": datasets.ClassLabel(names=["cat", "dog"]),
        "name": datasets.Value("string"),
        "size": datasets.ClassLabel(names=["small", "large"]),
        "mask": datasets.Image(),
        "patient": datasets.Value("int64"),
    }
    return datasets.Dataset.from_dict(
        columns, datasets.Features({name: features[name] for name in columns})
    )


@pytest.fixture
def save(tmp_path):
    def save(parts, folder="saved"):
        parts = datasets.DatasetDict(parts) if isinstance(parts, dict) else parts
        parts.save_to_disk(tmp_path / folder)
        return f"hub:{tmp_path / folder}"

    return save


def test_a_saved_set_is_read_pixel_by_pixel(save):
    data = load_dataset(save(make_part(range(40))))
    assert data.classes == ("cat", "dog") and len(data.samples) == 40 and len(data.excluded) == 0
    assert data.samples["split"].value_counts().to_dict() == {"train": 28, "test": 8, "val": 4}
    assert data.samples["label"].tolist() == ["cat", "dog"] * 20
    twin = pickle.loads(pickle.dumps(data))  # as a DataLoader's worker processes get it
    for bundle in (data, twin):
        assert np.array_equal(bundle.read("all0000017"), PIXELS[17])
    with pytest.raises(ValueError, match=r"unknown sample_id 'all0000040'.*all0000017"):
        data.read("all0000040")


def test_own_splits_are_kept_and_missing_ones_drawn(save):
    name = save(
        {
            "train": make_part(range(30)),
            "validation": make_part(range(30, 40)),
            "test": make_part(range(40, 50)),
        }
    )
    first, second = load_dataset(name, seed=0), load_dataset(name, seed=1)
    assert first.samples["split"].value_counts().to_dict() == {"train": 30, "val": 10, "test": 10}
    assert first.samples["split"].tolist() == second.samples["split"].tolist()
    assert np.array_equal(first.read("test0000003"), PIXELS[43])
    drawn = load_dataset(
        save({"train": make_part(range(40)), "test": make_part(range(40, 50))}, "two")
    )
    assert drawn.samples["split"].value_counts().to_dict() == {"train": 34, "test": 10, "val": 6}


def test_the_version_is_that_of_the_set(save):
    name = save({"train": make_part(range(40)), "test": make_part(range(40, 50))})
    data = load_dataset(name)
    assert data_version(name) == data.version
    assert data_version(save(make_part(range(20)), "other")) != data.version


def test_what_has_no_label_or_another_split_is_listed(save):
    unlabelled = make_part(range(30), animal=[-1, None] + [row % 2 for row in range(2, 30)])
    data = load_dataset(save({"train": unlabelled, "extra": make_part(range(30, 33))}))
    assert len(data.samples) == 28
    assert data.excluded["reason"].value_counts().to_dict() == {
        "its split is none of train, validation, test": 3,
        "it has no label": 2,
    }
    assert set(data.excluded["sample_id"]) >= {"train0000000", "train0000001", "extra0000002"}


def test_an_image_that_cannot_be_decoded_is_left_out(save):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(buffer, "PNG")
    pictures = [{"bytes": buffer.getvalue(), "path": None}] * 19 + [
        {"bytes": b"no image", "path": None}
    ]
    data = load_dataset(save(make_part(range(20), picture=pictures)))
    assert len(data.samples) == 19 and data.excluded["sample_id"].tolist() == ["all0000019"]


def test_columns_are_found_by_their_type_or_named(save):
    size = [row // 20 for row in range(40)]
    name = save(make_part(range(40), size=size, patient=[row // 4 for row in range(40)]))
    with pytest.raises(
        ValueError, match=r"2 columns \(animal, size\) of the type ClassLabel.*\?label=COLUMN"
    ):
        load_dataset(name)
    data = load_dataset(f"{name}?label=size&group=patient", split_by="group")
    assert data.classes == ("small", "large") and data.samples["group"].nunique() == 10
    assert (data.samples.groupby("group")["split"].nunique() == 1).all()
    by_name = load_dataset(save(make_part(range(12), name=["x", "y"] * 6), "text") + "?label=name")
    assert by_name.classes == ("x", "y")
    with pytest.raises(ValueError, match=r"unknown column of hub:.* for the label 'sizes'.*size"):
        load_dataset(f"{name}?label=sizes")
    with pytest.raises(ValueError, match="unknown option of hub: 'column'"):
        load_dataset(f"{name}?column=size")
    with pytest.raises(ValueError, match=r"'size' holds ClassLabel.*not images"):
        load_dataset(f"{name}?image=size&label=size")
    masks = save(make_part(range(12), mask=[Image.fromarray(PIXELS[0])] * 12), "masks")
    with pytest.raises(
        ValueError, match=r"2 columns \(picture, mask\) of the type Image.*\?image=COLUMN"
    ):
        load_dataset(masks)
    assert np.array_equal(load_dataset(f"{masks}?image=picture").read("all0000007"), PIXELS[7])


def test_splits_without_train_are_refused(save):
    with pytest.raises(ValueError, match="the splits validation, test, none of them train"):
        load_dataset(save({"validation": make_part(range(20)), "test": make_part(range(20))}))


@pytest.mark.parametrize("function", [load_dataset, check_name, data_version])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/at/all", "does not exist. Write hub:owner/name, or hub:PATH"),
        (".", "holds neither state.json nor dataset_dict.json.*folder:PATH"),
        ("a/b/c", "is no name of a data set"),
        ("", "is no name of a data set"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(function, name, message):
    with pytest.raises(ValueError, match=message):
        function(f"hub:{name}")


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"hub:owner/name is not on this machine.*save_to_disk.*hub:FOLDER"
    ):
        load_dataset("hub:owner/name")
    assert data_version("hub:owner/name")
    check_name("hub:owner/name")


def test_unknown_and_gated_sets_and_missing_configs_are_value_errors(monkeypatch):
    def answer(error):
        def refuse(*arguments, **options):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        hub_sets._load_parts.cache_clear()

    answer(
        datasets.exceptions.DatasetNotFoundError(
            "Dataset 'owner/name' doesn't exist on the Hub or cannot be accessed."
        )
    )
    with pytest.raises(ValueError, match=r"cannot be accessed.*accept its terms.*hf auth login"):
        load_dataset("hub:owner/name")
    answer(
        ValueError(
            "Config name is missing. Please pick one among the available configs: ['a', 'b']"
        )
    )
    with pytest.raises(
        ValueError, match=r"available configs: \['a', 'b'\].*hub:owner/name\?config=NAME"
    ):
        load_dataset("hub:owner/name")


def test_config_and_revision_are_passed_on(monkeypatch):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return {"train": make_part(range(20))}

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub_sets._load_parts.cache_clear()
    data = load_dataset("hub:owner/name?config=small&revision=abc")
    assert asked == [(("owner/name", "small"), {"revision": "abc"})]
    assert (
        data.citation == "https://huggingface.co/datasets/owner/name"
        and "revision=abc" in data.version
    )

"""folder:PATH: layouts, what is excluded and why, and bad folders."""

import os

import numpy as np
import pytest
from PIL import Image

from vitlab.data import load_dataset


def save(path, size=(12, 9), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(path.as_posix())).integers(
        0, 255, (size[1], size[0], 3), dtype=np.uint8
    )
    Image.fromarray(values).convert(mode).save(path, **options)


def fill(root, *folders, number=6):
    for folder in folders:
        for index in range(number):
            save(root / folder / f"{index}.png")


def splits(data):
    return data.samples.set_index("sample_id")["split"].to_dict()


def test_a_class_is_a_sub_folder_with_all_below_it(tmp_path):
    fill(tmp_path, "cat", "dog/small", "dog/large")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog") and set(data.samples["group"]) == {"all"}
    assert data.samples["label"].value_counts().to_dict() == {"cat": 6, "dog": 12}
    assert data.samples["sample_id"].tolist()[6] == "dog/large/0.png" == data.samples["source"][6]
    assert data.read("dog/large/0.png").size == (12, 9)


def test_classes_txt_puts_the_class_to_find_last(tmp_path):
    fill(tmp_path, "cracked", "good")
    before = load_dataset(f"folder:{tmp_path}")
    assert before.classes == ("cracked", "good")
    (tmp_path / "classes.txt").write_text("good\r\n\n cracked \n", encoding="utf-8-sig")
    data = load_dataset(f"folder:{tmp_path}")
    assert (
        data.classes == ("good", "cracked")
        and data.version != before.version
        and len(data.excluded) == 0
    )
    (tmp_path / "classes.txt").write_text("good\nbroken\n")
    with pytest.raises(
        ValueError,
        match=r"classes\.txt names good, broken, but the class folders are cracked, good",
    ):
        load_dataset(f"folder:{tmp_path}")
    (tmp_path / "classes.txt").write_text("")
    with pytest.raises(ValueError, match="names nothing, but"):
        load_dataset(f"folder:{tmp_path}")


def test_given_splits_are_kept_and_a_missing_val_is_drawn_from_train(tmp_path):
    fill(tmp_path, "train/cat", "train/dog", number=20)
    fill(tmp_path, "Test/cat", "Test/dog", number=3)
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert data.samples["split"].value_counts().to_dict() == {"train": 34, "val": 6, "test": 6}
    assert all(
        sample_id.startswith("Test/") == (split == "test")
        for sample_id, split in splits(data).items()
    )


def test_what_cannot_be_used_is_left_out_by_name_and_reason(tmp_path):
    fill(tmp_path, "cat", "dog")
    whole = tmp_path / "cat" / "whole.jpg"
    save(whole, size=(200, 200))
    (tmp_path / "cat" / "truncated.jpg").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "cat" / "text.jpg").write_text("this is no picture")
    (tmp_path / "cat" / "notes.txt").write_text("nor is this")
    (tmp_path / "dog" / "empty.png").write_bytes(b"")
    broken = bytearray((tmp_path / "dog" / "0.png").read_bytes())
    broken[45:60] = b"\0" * 15
    (tmp_path / "dog" / "broken.png").write_bytes(broken)
    (tmp_path / "dog" / ".DS_Store").write_text("hidden")
    save(tmp_path / "loose.png")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "dog" / "link.png")
    data = load_dataset(f"folder:{tmp_path}")
    reasons = data.excluded.set_index("sample_id")["reason"]
    assert set(reasons.index) == {
        "cat/truncated.jpg",
        "cat/text.jpg",
        "cat/notes.txt",
        "dog/empty.png",
        "dog/broken.png",
        "dog/link.png",
        "loose.png",
        "dog/.DS_Store",
    }
    assert "truncated" in reasons["cat/truncated.jpg"]
    assert reasons["cat/text.jpg"] == "not an image in any known format"
    assert "does not end like an image" in reasons["cat/notes.txt"]
    assert reasons["dog/empty.png"] == "the file is empty"
    assert reasons["dog/link.png"] == "No such file or directory"
    assert reasons["loose.png"] == "it lies in no class folder"
    assert not reasons.str.contains(str(tmp_path), regex=False).any()
    assert len(data.samples) == 13 and not set(data.samples["sample_id"]) & set(reasons.index)


def test_a_class_may_be_called_background_and_hidden_folders_have_a_row(tmp_path):
    fill(
        tmp_path,
        "__background__",
        "cat",
        ".cache/old",
        "__MACOSX/cat",
        "cat/.ipynb_checkpoints",
        number=8,
    )
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("__background__", "cat") and data.samples[
        "label"
    ].value_counts().to_dict() == dict.fromkeys(data.classes, 8)
    assert data.excluded["sample_id"].tolist() == [".cache", "__MACOSX", "cat/.ipynb_checkpoints"]
    assert set(data.excluded["reason"]) == {"it is hidden, or a folder of the system"}


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_class_that_a_given_split_lacks_is_not_blamed_on_the_draw(tmp_path, split):
    fill(tmp_path, "train/a", "train/b", "train/c", number=12)
    fill(tmp_path, f"{split}/a", f"{split}/b")
    with pytest.raises(
        ValueError,
        match=f"own split {split}, which holds no readable image of the class 'c'; add images",
    ) as error:
        load_dataset(f"folder:{tmp_path}")
    assert "seed" not in str(error.value)


def test_a_flat_test_folder_is_left_out_image_by_image_and_a_test_is_drawn(tmp_path):
    fill(tmp_path, "train/a", "train/b", number=20)
    fill(tmp_path, "test")
    save(tmp_path / "loose.png")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.samples["split"].value_counts().to_dict() == {"train": 28, "test": 8, "val": 4}
    reasons = data.excluded.set_index("sample_id")["reason"].to_dict()
    assert reasons.pop("loose.png") == "it lies in no class folder"
    assert reasons == {
        f"test/{number}.png": "it has no label: test has no class folders" for number in range(6)
    }


def test_a_flat_test_folder_beside_classes_is_not_taken_for_a_class(tmp_path):
    fill(tmp_path, "cat", "dog", "test")
    with pytest.raises(
        ValueError, match="the folder test, without class folders, beside the classes; move it"
    ):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("names", [("valid", "invalid"), ("train", "car"), ("A", "a")])
def test_classes_may_be_called_like_a_split_or_differ_in_case(tmp_path, names):
    fill(tmp_path, *names)
    assert set(load_dataset(f"folder:{tmp_path}").classes) == set(names)


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_unicode_forms_of_a_class_are_one_class_across_splits(tmp_path):
    fill(tmp_path, f"train/{COMPOSED}", "train/tea", f"test/{DECOMPOSED}", "test/tea", number=12)
    (tmp_path / "classes.txt").write_text(f"tea\n{DECOMPOSED}\n", encoding="utf-8")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("tea", COMPOSED)
    assert data.samples.query("split == 'test'")["label"].value_counts().to_dict() == {
        COMPOSED: 12,
        "tea": 12,
    }
    assert data.read(f"test/{COMPOSED}/3.png").size == (
        12,
        9,
    ), "a sample_id is the same on every machine"


def test_unicode_forms_side_by_side_are_one_class_and_files_of_one_name_are_refused(tmp_path):
    fill(tmp_path / "forms", COMPOSED, f"{DECOMPOSED}", "tea")
    with pytest.raises(ValueError, match=r"sample_id 'café/0.png' more than once"):
        load_dataset(f"folder:{tmp_path / 'forms'}")


def test_names_that_are_not_utf8(tmp_path):
    fill(tmp_path, "cat", "dog")
    strange = os.fsdecode(os.fsencode(tmp_path / "cat") + b"/caf\xe9.png")
    os.replace(tmp_path / "cat" / "0.png", strange)
    data = load_dataset(f"folder:{tmp_path}")
    assert data.excluded[["sample_id", "reason"]].values.tolist() == [
        ["cat/caf\ufffd.png", "its name is not valid UTF-8; rename it"]
    ]
    os.rename(os.fsencode(tmp_path / "dog"), os.fsencode(tmp_path) + b"/h\xfcnd")
    with pytest.raises(
        ValueError, match=r"the name of the class folder 'h\ufffdnd' is not UTF-8; rename it"
    ):
        load_dataset(f"folder:{tmp_path}")


def test_a_decompression_bomb_is_left_out(tmp_path, monkeypatch):
    fill(tmp_path, "cat", "dog")
    save(tmp_path / "dog" / "bomb.png", size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = load_dataset(f"folder:{tmp_path}")
    assert data.excluded["sample_id"].tolist() == ["dog/bomb.png"]
    assert (
        data.excluded["reason"][0]
        == "it has more than the 0.002 megapixels that are read; scale it down"
    )


def test_links_to_folders_are_followed_and_circles_are_not(tmp_path):
    fill(tmp_path, "set/cat", "elsewhere/dog")
    os.symlink(tmp_path / "elsewhere" / "dog", tmp_path / "set" / "dog")
    os.symlink(tmp_path / "set" / "cat", tmp_path / "set" / "cat" / "again")
    assert len(load_dataset(f"folder:{tmp_path / 'set'}").samples) == 12


def test_the_version_changes_with_any_file(tmp_path):
    fill(tmp_path, "cat", "dog")
    versions = [load_dataset(f"folder:{tmp_path}").version for _ in range(2)]
    os.utime(tmp_path / "cat" / "0.png", (1, 1))
    versions.append(load_dataset(f"folder:{tmp_path}").version)
    (tmp_path / "cat" / "5.png").rename(tmp_path / "cat" / "6.png")
    versions.append(load_dataset(f"folder:{tmp_path}").version)
    assert versions[0] == versions[1] and len(set(versions)) == 3


@pytest.mark.parametrize(
    ("folders", "number", "message"),
    [
        ([], 0, "has no sub-folders"),
        (["cat"], 6, "one class only, 'cat'"),
        (["cat", "dog"], 0, "holds no image in a class folder"),
        (
            ["cat", "dog"],
            2,
            "at least 3 readable images for its splits, but 'cat' has 2, 'dog' has 2",
        ),
        (["val/cat", "val/dog"], 6, "no train/CLASS/ folders"),
        (["train", "test"], 6, "no train/CLASS/ folders"),
        (
            ["train/cat", "train/dog", "extra/cat"],
            6,
            r"splits \(train\) beside other folders \(extra\)",
        ),
        (
            ["train/cat", "train/dog", "test/cat", "test/bird"],
            6,
            "2 readable images in train for its splits, but 'bird' has 0",
        ),
    ],
)
def test_a_folder_that_cannot_serve_says_why(tmp_path, folders, number, message):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    fill(tmp_path, *folders, number=number)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"folder:{tmp_path}")


def test_a_class_that_is_too_small_without_its_unreadable_images_is_an_error(tmp_path):
    fill(tmp_path, "cat", "dog", number=3)
    (tmp_path / "dog" / "2.png").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"without 1 images \(the file is empty\): .* but 'dog' has 2"
    ):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("kind", ["missing", "file", "nothing"])
def test_a_path_that_is_no_folder_is_refused(tmp_path, kind):
    (tmp_path / "file").write_text("x")
    path = "" if kind == "nothing" else tmp_path / kind
    message = {
        "missing": "does not exist",
        "file": "is a file, not a folder",
        "nothing": "write folder:PATH",
    }[kind]
    with pytest.raises(ValueError, match=message):
        load_dataset(f"folder:{path}")

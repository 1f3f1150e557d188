"""folder:PATH and csv:FILE: layouts, what is excluded and why, and bad ones."""

import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vitlab.data import load_dataset

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def save(path, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.as_posix()))
    values = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def fill(root, *folders, number=6):
    for folder in folders:
        for index in range(number):
            save(root / folder / f"{index}.png")


def reasons(data):
    return data.excluded.set_index("sample_id")["reason"].to_dict()


def test_a_class_is_a_sub_folder_with_all_below_it(tmp_path):
    fill(tmp_path, "cat", "dog/small", "dog/large")
    (tmp_path / "README.md").write_text("not listed: it is no image, and in no class")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog") and set(data.samples["group"]) == {"all"}
    assert data.samples["label"].value_counts().to_dict() == {"cat": 6, "dog": 12}
    assert data.samples["sample_id"].tolist()[6] == "dog/large/0.png" == data.samples["source"][6]
    assert data.read("dog/large/0.png").size == (12, 9) and data.excluded.empty


def test_classes_txt_puts_the_positive_class_last(tmp_path):
    fill(tmp_path, "cracked", "good")
    before = load_dataset(f"folder:{tmp_path}")
    assert before.classes == ("cracked", "good")
    (tmp_path / "classes.txt").write_text("good\r\n\n cracked \n", encoding="utf-8-sig")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("good", "cracked") and data.version != before.version
    (tmp_path / "classes.txt").write_text("good\nbroken\n")
    with pytest.raises(ValueError, match=r"names good, broken, but the classes are cracked, good"):
        load_dataset(f"folder:{tmp_path}")


def test_given_splits_are_kept_and_a_missing_val_is_drawn_from_train(tmp_path):
    fill(tmp_path, "train/cat", "train/dog", number=20)
    fill(tmp_path, "Test/cat", "Test/dog", number=3)
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert data.samples["split"].value_counts().to_dict() == {"train": 34, "val": 6, "test": 6}
    tested = data.samples["sample_id"].str.startswith("Test/")
    assert (tested == (data.samples["split"] == "test")).all()


def test_what_cannot_be_used_is_left_out_by_name_and_reason(tmp_path, monkeypatch):
    fill(tmp_path, "cat", "dog")
    cat, dog = tmp_path / "cat", tmp_path / "dog"
    save(cat / "whole.jpg", size=(100, 100))
    whole = (cat / "whole.jpg").read_bytes()
    (cat / "truncated.jpg").write_bytes(whole[:2000])
    (cat / "marker.jpg").write_bytes(whole.removesuffix(b"\xff\xd9"))
    (cat / "text.jpg").write_text("this is no picture")
    (cat / "notes.txt").write_text("nor is this")
    (dog / "empty.png").write_bytes(b"")
    (dog / ".DS_Store").write_text("hidden")
    (dog / "__MACOSX").mkdir()
    save(tmp_path / "loose.png")
    save(dog / "bomb.png", size=(200, 200))
    os.symlink(tmp_path / "nowhere.png", dog / "link.png")
    os.replace(dog / "0.png", os.fsdecode(os.fsencode(dog) + b"/caf\xe9.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)
    found = reasons(load_dataset(f"folder:{tmp_path}"))
    assert "truncated" in found.pop("cat/truncated.jpg") and "truncated" in found["cat/marker.jpg"]
    del found["cat/marker.jpg"]
    hidden = "it is hidden, or a folder of the system"
    assert found.pop("cat/notes.txt").startswith("its name does not end like an image (.jpg ")
    assert found == {
        "cat/text.jpg": "not an image in any known format",
        "dog/empty.png": "the file is empty",
        "dog/.DS_Store": hidden,
        "dog/__MACOSX": hidden,
        "loose.png": "it lies in no class folder",
        "dog/link.png": "there is no such file",
        "dog/bomb.png": "it has more than the 0.03 megapixels that are read; scale it down",
        "dog/caf\ufffd.png": "its name is not valid UTF-8; rename it",
    }


def test_a_class_whose_name_begins_with_underscores_is_a_class(tmp_path):
    fill(tmp_path, "__background", "cat")
    assert load_dataset(f"folder:{tmp_path}").classes == ("__background", "cat")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_missing_in_a_given_split_gets_advice_that_fits(tmp_path, split):
    fill(tmp_path, "train/a", "train/b", "train/c", number=12)
    fill(tmp_path, f"{split}/a", f"{split}/b")
    message = f"own split {split}, which holds no readable image of the class 'c'; add images"
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(f"folder:{tmp_path}")
    assert "seed" not in str(error.value)


def test_a_flat_test_folder_is_left_out_image_by_image_or_refused_beside_classes(tmp_path):
    fill(tmp_path, "train/a", "train/b", number=20)
    fill(tmp_path, "test")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.samples["split"].value_counts().to_dict() == {"train": 28, "test": 8, "val": 4}
    assert reasons(data) == {f"test/{i}.png": "it lies in no class folder" for i in range(6)}
    fill(tmp_path / "plain", "cat", "dog", "test")
    with pytest.raises(ValueError, match="the folder test, without class folders, beside the"):
        load_dataset(f"folder:{tmp_path / 'plain'}")


@pytest.mark.parametrize("names", [("valid", "invalid"), ("train", "car"), ("A", "a")])
def test_classes_may_be_called_like_a_split_or_differ_in_case(tmp_path, names):
    fill(tmp_path, *names)
    assert set(load_dataset(f"folder:{tmp_path}").classes) == set(names)


def test_unicode_forms_of_a_name_are_one_class(tmp_path):
    fill(tmp_path, f"train/{COMPOSED}", "train/tea", f"test/{DECOMPOSED}", "test/tea", number=12)
    (tmp_path / "classes.txt").write_text(f"tea\n{DECOMPOSED}\n", encoding="utf-8")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("tea", COMPOSED)
    assert data.split("test")["label"].value_counts().to_dict() == {COMPOSED: 12, "tea": 12}
    assert data.read(f"test/{COMPOSED}/3.png").size == (12, 9)
    fill(tmp_path / "both", COMPOSED, DECOMPOSED, "tea")
    with pytest.raises(ValueError, match=r"sample_id 'café/0.png' more than once"):
        load_dataset(f"folder:{tmp_path / 'both'}")


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
        (["cat", "dog"], 2, "at least 3 readable images .*'cat' has 2, 'dog' has 2"),
        (["val/cat", "val/dog"], 6, "no train/CLASS/ folders"),
        (["train", "test"], 6, "no train/CLASS/ folders"),
        (["train/cat", "train/dog", "extra/cat"], 6, r"splits \(train\) beside .*\(extra\)"),
        (
            ["train/cat", "train/dog", "test/cat", "test/bird"],
            6,
            "2 readable images in train for its splits, but 'bird' has 0",
        ),
        (["cat", os.fsdecode(b"h\xfcnd")], 6, r"class folder 'h\ufffdnd' is not UTF-8; rename it"),
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
    message = r"without 1 images \(the file is empty\): .* but 'dog' has 2"
    with pytest.raises(ValueError, match=message):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_path_that_is_not_there_is_refused(tmp_path, kind):
    for name in (f"{kind}:{tmp_path / 'missing'}", f"{kind}:"):
        with pytest.raises(ValueError, match=f"write {kind}:"):
            load_dataset(name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        load_dataset(f"folder:{tmp_path / 'file'}")


# manifests


@pytest.fixture
def rows(tmp_path):
    """A table of 24 images in two classes, three of each patient."""
    fill(tmp_path, "images", number=24)
    return pd.DataFrame(
        {
            "path": [f"images/{row}.png" for row in range(24)],
            "label": ["good", "cracked"] * 12,
            "group": [f"patient {row // 3}" for row in range(24)],
            "age": range(30, 54),
        }
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_manifest_names_images_labels_groups_and_more(tmp_path, rows, suffix):
    file = tmp_path / f"cells.{suffix}"
    rows.to_csv(file, index=False) if suffix == "csv" else rows.to_parquet(file)
    data = load_dataset(f"csv:{file}", split_by="group")
    samples = data.samples.set_index("sample_id").loc[rows["path"]]
    assert samples[["label", "group", "age"]].values.tolist() == rows.iloc[:, 1:].values.tolist()
    assert data.classes == ("cracked", "good") and data.excluded.empty
    assert samples.groupby("group")["split"].nunique().eq(1).all()
    assert data.read("images/3.png").size == (12, 9)
    os.utime(tmp_path / "images" / "3.png", (1, 1))
    assert load_dataset(f"csv:{file}").version != data.version


def test_a_manifest_may_give_splits_probabilities_and_absolute_paths(tmp_path, rows):
    table = pd.DataFrame({"path": [tmp_path / path for path in rows["path"]]})
    table["prob_ok"] = [0.9, 0.2] * 12
    table["prob_bad"] = [0.1, 0.8] * 12
    table["split"] = ["Train"] * 12 + ["valid"] * 6 + ["test"] * 6
    table.to_csv(tmp_path / "soft.csv", index=False)
    data = load_dataset(f"csv:{tmp_path / 'soft.csv'}")
    assert data.classes == ("ok", "bad")
    assert data.samples["split"].value_counts().to_dict() == {"train": 12, "val": 6, "test": 6}
    assert (data.samples["label"] == np.where(data.samples["prob_ok"] > 0.5, "ok", "bad")).all()


def test_rows_without_a_label_or_a_file_are_excluded(tmp_path, rows):
    rows.loc[3, "label"], rows.loc[5, "path"] = None, "images/gone.png"
    (tmp_path / "images" / "7.png").write_text("broken")
    rows.to_csv(tmp_path / "cells.csv", index=False)
    data = load_dataset(f"csv:{tmp_path / 'cells.csv'}")
    assert len(data.samples) == 21 and reasons(data) == {
        "images/3.png": "it has no label",
        "images/gone.png": "there is no such file",
        "images/7.png": "not an image in any known format",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="path"), "needs the column path.* it has label, group, age"),
        (lambda t: t.drop(columns="label"), "needs the column path, and label or a column prob_"),
        (lambda t: t.assign(source="x"), "has a column source, which vitlab makes itself"),
        (
            lambda t: t.assign(split="dev set"),
            "24 of 24 rows have a split that is none of .* see row 2, 3, 4",
        ),
        (lambda t: t.assign(group=[""] + ["x"] * 23), "1 of 24 rows have no group; see row 2"),
        (lambda t: t.assign(path=[*t["path"][:23], "images/0.png"]), "an earlier row.* row 25"),
        (
            lambda t: t.assign(prob_a=[0.5] * 23 + [0.7], prob_b=0.5),
            "prob_<class> that are no probabilities or do not sum to 1; see row 25",
        ),
        (lambda t: t.assign(prob_a="much", prob_b=0.5), "24 of 24 rows have values of prob_"),
    ],
)
def test_a_manifest_that_does_not_fit_names_the_rows(tmp_path, rows, change, message):
    change(rows).to_csv(tmp_path / "cells.csv", index=False)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"csv:{tmp_path / 'cells.csv'}")

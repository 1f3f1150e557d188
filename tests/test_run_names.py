"""One folder for one run, one folder for one data set, whatever they are called."""

import unicodedata

import pytest

from vitlab.errors import UserError
from vitlab.run_folders import canonical_dataset, check_run_name, dataset_folder, run_name, run_path
from vitlab.runs import Run, find_runs
from vitlab.training.tune import study_path

BAD_NAMES = [
    ".",
    "..",
    "../../other",
    "a/b",
    "a\\b",
    "/tmp/x",
    ".hidden",
    "",
    " ",
    "x ",
    "x.",
    "C:",
    "a\nb",
    "a\0b",
    "\udce9",
]
BAD_NAMES += [5, "n" * 201]


def test_a_made_name_is_readable_and_depends_on_every_parameter():
    name = run_name({"dataset": "elpv", "model": "hybrid_vit", "seed": 1, "epochs": 3})
    assert name.startswith("hybrid_vit-seed1-") and len(name.rpartition("-")[2]) == 8
    assert name == run_name({"epochs": 3, "seed": 1, "model": "hybrid_vit", "dataset": "elpv"})
    assert name != run_name({"dataset": "elpv", "model": "hybrid_vit", "seed": 1, "epochs": 4})
    assert "/" not in run_name({"model": "hf_hub:timm/some model"})
    assert run_name({"model": "m", "variant": "two words", "seed": 0}).startswith(
        "m-two_words-seed0-"
    )
    for model in ("..", ".hidden", "m" * 400, "猫", "../../x"):
        assert check_run_name(run_name({"model": model, "variant": "v" * 400, "seed": "s" * 400}))


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_run_name_is_one_plain_folder_name_or_refused_before_anything_is_written(
    name, reports_folder, tmp_path
):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept.txt").touch()
    with pytest.raises(UserError, match="write one plain folder name"):
        check_run_name(name)
    if name != "":  # an empty name stands for one made from the parameters
        with pytest.raises(UserError, match=r"run_name .*write one plain folder name"):
            Run.create(name=name, dataset="digits")
        with pytest.raises(UserError, match="study_name"):
            study_path("digits", name)
    assert not reports_folder.exists() and [path.name for path in tmp_path.rglob("*")] == [
        "other",
        "kept.txt",
    ]


@pytest.mark.parametrize("name", ["first try", "ünï_猫-1.2", "a", "..a.b".strip("."), "n" * 200])
def test_plain_names_are_folders(name):
    run = Run.create(name=name, dataset="digits")
    run.finish()
    assert run.path.name == name == run.name and [run.name for run in find_runs("digits")] == [name]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("folder:/data/a/b", "folder:/data/a_b"),
        ("hub:a/b", "hub:a_b"),
        ("folder:/twins/猫", "folder:/twins/犬"),
        ("folder:/data/Cats", "folder:/data/cats"),
        ("planted:digits", "shuffled:digits"),
        ("elpv", "elpv:grade"),
        ("folder:/" + "x" * 270 + "/a", "folder:/" + "x" * 270 + "/b"),
    ],
)
def test_two_data_sets_have_two_folders_and_never_see_each_others_runs(one, other):
    assert dataset_folder(one).lower() != dataset_folder(other).lower()
    assert (
        max(len(dataset_folder(name).encode()) for name in (one, other)) <= 80
        and dataset_folder(one).isascii()
    )
    Run.create(name="same", dataset=one, model="m").finish()
    assert find_runs(other) == []
    Run.create(name="same", dataset=other, model="m").finish()
    assert [run.parameters["dataset"] for run in find_runs(one)] == [one]
    assert [run.parameters["dataset"] for run in find_runs(other)] == [other]


def test_one_data_set_in_several_spellings_has_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = f"folder:{tmp_path / 'cats'}"
    for spelling in ("folder:cats", "folder:./cats/", "folder:x/../cats", f"{whole}/"):
        assert canonical_dataset(spelling) == whole and dataset_folder(spelling) == dataset_folder(
            whole
        )
        assert canonical_dataset(f"planted:{spelling}") == f"planted:{whole}"
    assert (
        canonical_dataset("hub:a/b") == "hub:a/b"
        and canonical_dataset("elpv:grade") == "elpv:grade"
    )
    composed, decomposed = (unicodedata.normalize(form, "folder:/Käse") for form in ("NFC", "NFD"))
    assert composed != decomposed and dataset_folder(composed) == dataset_folder(decomposed)
    Run.create(dataset="folder:cats").finish()
    monkeypatch.chdir("/")
    assert find_runs("folder:cats") == [] and len(find_runs(whole)) == 1


def test_a_run_needs_a_data_set():
    with pytest.raises(UserError, match="at least the parameter dataset="):
        run_path(name="x")


def test_runs_of_another_data_set_in_the_same_folder_are_not_used_and_not_replaced(monkeypatch):
    """As if two names had the same hash."""
    monkeypatch.setattr("vitlab.runs.dataset_folder", lambda dataset: "same")
    Run.create(name="x", dataset="one").finish()
    assert find_runs("other") == [] and len(find_runs("one")) == 1
    with pytest.raises(UserError, match="is a run of one, not of other; nothing was written"):
        Run.create(name="x", dataset="other")
    assert len(find_runs("one")) == 1

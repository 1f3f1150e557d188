import json
from xml.etree import ElementTree

import pandas as pd
import pytest
from rich.console import Console

from vitlab.runs import list_versions
from vitlab.submission.archive import hash_file
from vitlab.submission.check_files import check_environment
from vitlab.submission.environment import hash_package
from vitlab.submission.images import image_hash_table, join_samples
from vitlab.submission.junit import write_junit
from vitlab.submission.manifest import (
    MANIFEST,
    Manifest,
    compare_files,
    read_manifest,
    write_manifest,
)
from vitlab.submission.opened import Bundle, Result
from vitlab.submission.printing import describe_verdict, print_verdict, summarise
from vitlab.submission.rerun import compare_metrics
from vitlab.submission.verify import Verdict


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "sub" / "b.txt").write_text("")
    write_manifest(tmp_path, Manifest(title="T", author="A"))
    return tmp_path


def test_sha256_is_the_standard_one(folder):
    """FIPS 180-2, appendix B.1, and the empty message."""
    assert (
        hash_file(folder / "a.txt")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert (
        hash_file(folder / "sub" / "b.txt")
        == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


def test_the_manifest_names_every_file_that_changes(folder):
    manifest = read_manifest(folder)
    assert list(manifest.files) == ["a.txt", "sub/b.txt"] and compare_files(folder, manifest) == {}
    (folder / "a.txt").write_text("abd")
    (folder / "sub" / "b.txt").unlink()
    (folder / "c.txt").write_text("")
    assert compare_files(folder, manifest) == {
        "a.txt": "altered",
        "sub/b.txt": "missing",
        "c.txt": "not listed in the manifest",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[1]", "damaged"),
        (
            '{"format": 1, "title": "T", "author": "A"}',
            "from another version of vitlab: format: Input should be 2",
        ),
        (
            '{"format": 2, "title": "T", "author": "A", "files": {"a": 1}}',
            "files a: Input should be a valid string",
        ),
    ],
)
def test_an_invalid_manifest_is_refused(folder, text, message):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(folder)


def test_images_are_hashed_by_their_pixels():
    from hashlib import sha256

    from vitlab.data import load_dataset

    samples = load_dataset("digits", seed=0).samples.head(3)
    table = image_hash_table("digits", join_samples([samples, samples.iloc[::-1]]))
    image = load_dataset("digits", samples=samples).read("digit0000")
    assert table["sample_id"].tolist() == ["digit0000", "digit0001", "digit0002"] and table[
        "label"
    ].tolist() == ["0", "1", "2"]
    assert table["sha256"][0] == sha256(b"L 8x8\n" + image.tobytes()).hexdigest()


def test_synthetic_images_are_not_part_of_the_data():
    table = pd.DataFrame(
        {"sample_id": ["a", "a~paste-1"], "split": "train", "synthetic": [False, True]}
    )
    assert join_samples([table])["sample_id"].tolist() == ["a"]


def test_versions_that_differ_are_listed(tmp_path):
    run = tmp_path / "runs" / "a" / "b"
    run.mkdir(parents=True)
    for versions, code, detail in (
        (list_versions(), hash_package(), "same as here"),
        (
            list_versions() | {"torch": "1.0"},
            "other",
            (
                f"torch 1.0 there, {list_versions()['torch']} here; the code of vitlab (commit abc"
                " there)"
            ),
        ),
    ):
        (run / "run.json").write_text(json.dumps({"versions": versions}))
        write_manifest(tmp_path, Manifest(title="T", author="A", commit="abc", code=code))
        (result,) = check_environment(Bundle(tmp_path))
        assert result.status == "pass" and result.detail.endswith(detail)


def test_metrics_are_compared_by_the_largest_difference():
    nan = float("nan")
    assert compare_metrics({"a": 0.5, "b": nan}, {"a": 0.5, "b": nan}) == (
        "all 2 metrics are equal",
        0.0,
    )
    told, worst = compare_metrics({"a": 0.5, "b": 0.25}, {"a": 0.75, "b": 0.25})
    assert told == "largest difference of 2 metrics: a, 0.5000 there, 0.7500 here" and worst == 0.25
    assert compare_metrics({"a": nan}, {"a": 0.5})[1] == float("inf")


def test_a_row_a_check_but_one_for_each_failure_and_rerun():
    passed = [Result("executed", f"{number}.ipynb", "pass", "in order") for number in range(3)]
    failed = [Result("executed", f"bad{number}.ipynb", "fail", "cell 1") for number in range(22)]
    rerun = [Result("rerun", f"{number}", "pass", f"in {number} s") for number in range(2)]
    rows = summarise(Verdict((*passed, *failed, *rerun)))
    assert rows[0] == Result("executed", "3 of 25", "pass", "the first: in order")
    assert (
        rows[1:21] == failed[:20]
        and rows[21] == Result("executed", "2 more", "fail")
        and rows[22:] == rerun
    )
    assert describe_verdict(Verdict((*passed, *rerun))) == "Nothing failed."
    assert describe_verdict(Verdict((Result("rerun", "", "skipped"),))).startswith(
        "Nothing failed. Only --rerun shows"
    )


def test_a_strangers_text_cannot_steer_terminal_or_xml(tmp_path):
    nasty = "a\x1b[2J[red]b\x00<&"
    verdict = Verdict(
        (Result("manifest", nasty, "fail", nasty), Result("data", "", "skipped", "x")),
        title=nasty,
        author="A",
    )
    console = Console(record=True, width=200, file=open(tmp_path / "out.txt", "w"))  # noqa: SIM115
    print_verdict(verdict, "x.zip", console)
    shown = console.export_text()
    assert "\x1b" not in shown and "a?[2J[red]b?<&" in shown and "1 failed, in: manifest." in shown
    write_junit(verdict, tmp_path / "r.xml")
    (suite,) = ElementTree.parse(tmp_path / "r.xml").getroot()
    assert suite.find("testcase").get("name") == "a?[2J[red]b?<&"
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "1")

"""The parts of a submission: the zip and its limits, manifest, answers, rubric, verdict."""

import os
import struct
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from rich.console import Console

from vitlab.batch import load_batch
from vitlab.notebook import read_cells
from vitlab.submission import archive, print_verdict, verify_bundle, write_junit
from vitlab.submission.archive import (
    MANIFEST,
    Bundle,
    Manifest,
    UnsafeBundle,
    open_bundle,
    unpack,
    write_manifest,
)
from vitlab.submission.check_results import join_samples
from vitlab.submission.checks import Result
from vitlab.submission.rerun import compare_metrics
from vitlab.submission.rubric import (
    find_answers,
    find_mark,
    load_rubric,
    points_table,
    read_answer,
)
from vitlab.submission.verify import CHECKS, Verdict, describe_verdict, summarise


def write(path, *members):
    """A zip of (name or ZipInfo, content) pairs."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/etc/passwd", "..", "a\x1b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    path = write(tmp_path / "bad.zip", ("fine.txt", "1"), (zipfile.ZipInfo(name), "2"))
    with pytest.raises(UnsafeBundle, match="is not a plain relative path"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil.txt").exists()
    verdict = verify_bundle(path)
    assert [result.status for result in verdict.results] == ["fail", *["skipped"] * len(CHECKS)]


def test_a_link_in_a_zip_becomes_a_plain_file(tmp_path):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    unpack(write(tmp_path / "bad.zip", (info, "/etc/passwd")), tmp_path / "out")
    assert not (tmp_path / "out" / "link").is_symlink()
    assert (tmp_path / "out" / "link").read_text() == "/etc/passwd"


def test_a_folder_with_a_link_is_refused(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "link").symlink_to("/etc")
    with pytest.raises(UnsafeBundle, match="link is a link"), open_bundle(tmp_path / "bundle"):
        pass


@pytest.mark.parametrize(
    ("limit", "value", "members", "message"),
    [
        (
            "MAX_RATIO",
            100,
            [("zeros", bytes(2 * 10**6))],
            "zeros would grow from 1,.* to 2,000,000",
        ),
        ("MAX_FILES", 10, [(f"{number}", "") for number in range(11)], "has 11 files; at most 10"),
        ("MAX_BYTES", 1000, [("a", "x" * 900), ("b", "x" * 900)], r"would unpack to 0\.0 GB"),
        ("MAX_BYTES", 1000, [("a", os.urandom(1200))], r"bad\.zip would unpack to 0\.0 GB"),
    ],
)
def test_limits_of_ratio_count_and_size(tmp_path, monkeypatch, limit, value, members, message):
    monkeypatch.setattr(archive, limit, value)
    with pytest.raises(UnsafeBundle, match=message):
        unpack(write(tmp_path / "bad.zip", *members), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_size_that_is_wrong_writes_no_more_than_it_says(tmp_path):
    path = write(tmp_path / "lie.zip", ("zeros", bytes(3 * 10**6)))
    # both headers say 1,000 bytes
    content = path.read_bytes().replace(struct.pack("<L", 3 * 10**6), struct.pack("<L", 1000))
    path.write_bytes(content)
    with pytest.raises(UnsafeBundle, match=r"lie\.zip is damaged"):
        unpack(path, tmp_path / "out")
    assert (tmp_path / "out" / "zeros").stat().st_size <= 1000


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_zip_cut_off_fails_the_first_check(tmp_path, share):
    content = write(tmp_path / "whole.zip", ("a.txt", os.urandom(5000))).read_bytes()
    path = tmp_path / "cut.zip"
    path.write_bytes(content[: int(share * len(content))])
    (failed,) = verify_bundle(path).failed
    assert failed.check == "archive" and "cut.zip is damaged or incomplete" in failed.detail


def test_the_temporary_folder_is_removed(tmp_path):
    path = write(tmp_path / "fine.zip", ("a/b.txt", "x"))
    with open_bundle(path) as folder:
        assert (folder / "a" / "b.txt").read_text() == "x"
    assert not folder.exists()
    missing = tmp_path / "none.zip"
    with pytest.raises(FileNotFoundError, match="there is no bundle"), open_bundle(missing):
        pass


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "sub" / "b.txt").write_text("")
    write_manifest(tmp_path, Manifest(title="T", author="A"))
    return tmp_path


def test_the_manifest_names_every_file_that_changes(folder):
    # FIPS 180-2, appendix B.1
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    files = Bundle(folder).manifest.files
    assert list(files) == ["a.txt", "sub/b.txt"] and files["a.txt"] == abc
    assert Bundle(folder).problems == {}
    (folder / "a.txt").write_text("abd")
    (folder / "sub" / "b.txt").unlink()
    (folder / "c.txt").write_text("")
    changes = {"a.txt": "altered", "sub/b.txt": "missing", "c.txt": "not listed in the manifest"}
    assert Bundle(folder).problems == changes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[1]", "damaged"),
        ('{"format": 1, "title": "T", "author": "A"}', "another version of vitlab: format: Input"),
        ('{"format": 2, "title": "T", "author": "A", "files": {"a": 1}}', "files a: Input should"),
    ],
)
def test_an_invalid_manifest_is_refused(folder, text, message):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=message):
        _ = Bundle(folder).manifest


def test_synthetic_images_are_not_part_of_the_data():
    table = pd.DataFrame({"sample_id": ["a", "a~1"], "split": "train", "synthetic": [False, True]})
    assert join_samples([table, table])["sample_id"].tolist() == ["a"]


def test_metrics_are_compared_by_the_largest_difference():
    nan = float("nan")
    same = {"a": 0.5, "b": nan}
    assert compare_metrics(same, dict(same)) == ("all 2 metrics are equal", 0.0)
    text, worst = compare_metrics({"a": 0.5, "b": 0.25}, {"a": 0.75, "b": 0.25})
    assert text == "largest difference of 2 metrics: a, 0.5000 there, 0.7500 here" and worst == 0.25
    assert compare_metrics({"a": nan}, {"a": 0.5})[1] == float("inf")


def cell(kind, source):
    return {"cell_type": kind, "source": source, "tags": []}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("#| answer: balance\nx = 1", "balance"),
        ("#| label: fig-a\n#| answer: 'balance'\nx = 1", "balance"),
        ("#| answer\nx", None),
        ("\n#|answer:failures-code", "failures-code"),
        ("x = 1\n#| answer: late", None),
        ("#| answers: other", None),
        ("<!-- #| answer: balance --> Digits are even.", "balance"),
        ("Text about #| answer: x", None),
        ("", None),
    ],
)
def test_marks(source, name):
    assert find_mark(source) == name


@pytest.mark.parametrize(
    ("kind", "source", "text"),
    [
        ("markdown", "<!-- #| answer: a -->\n\n*Your answer here.*", ""),
        ("markdown", "<!-- #| answer: a -->\n<!-- a hint\nof two lines -->\n\n- TODO", ""),
        ("markdown", "<!-- #| answer: a -->\nIt is 0.9.\n\n*Your answer here.*", "It is 0.9."),
        ("markdown", "#| answer: a\n## None of them", "## None of them"),
        ("markdown", "<!-- #| answer: a\nWrite at least 30 words. -->\n\n*Your answer here.*", ""),
        ("markdown", "<!-- #| answer: a --> Digits are even.", "Digits are even."),
        ("markdown", "<!-- #| answer: aids -->\nNone.", "None."),
        ("code", "#| answer: a\n# your code here\n...", ""),
        ("code", "#| answer: a\npass  # later", ""),
        ("code", "#| answer: a\n#| label: fig-x\nplot('#1')  # shows it", "plot('#1')  # shows it"),
        ("code", "#| answer: a\n%matplotlib inline\n?", "%matplotlib inline"),
    ],
)
def test_what_counts_as_an_answer(kind, source, text):
    assert read_answer(source, kind) == text


RUBRIC = """\
questions:
  a: {points: 4, words: 3, evidence: [{figure: fig-x}, {file: "runs/*/metrics.json"}]}
  b: 2.5
  c: {points: 1}
"""


def test_points_table(tmp_path):
    (tmp_path / "rubric.yml").write_text(RUBRIC)
    rubric = load_rubric(tmp_path / "rubric.yml")
    cells = [
        cell("markdown", "<!-- #| answer: a -->\nTwo words"),
        cell("markdown", "<!-- #| answer: b -->\n"),
        cell("code", "#| answer: more\n1"),
        cell("raw", "#| answer: raw\nx"),
    ]
    answers = find_answers([("one.ipynb", cells)])
    assert [(answer.name, answer.cell, answer.words) for answer in answers] == [
        ("a", 1, 2),
        ("b", 2, 0),
        ("more", 3, 1),
    ]
    evidence = {"figure": set(), "file": {"runs/x/metrics.json"}}
    table = points_table(rubric, answers, evidence).set_index("question")
    assert table.loc["a"].to_dict() == {
        "points": 4,
        "answer": "2 words",
        "there": "file runs/*/metrics.json",
        "missing": "1 of 3 words, figure fig-x",
    }
    assert table["answer"].to_dict() == {"a": "2 words", "b": "empty", "c": "no such cell"}
    assert table["points"].tolist() == [4, 2.5, 1] and table.loc["c", "missing"] == "its cell"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("questions: {a: {points: 3, wrods: 3}}", "r.yml, questions.a: unknown key 'wrods'. Did"),
        ("titel: x\nquestions: {a: 1}", "r.yml: unknown key 'titel'. Did you mean title"),
        ("questions: {a: {}}", "r.yml, questions.a.points: Field required"),
        ("questions: {a: {points: '3'}}", "questions.a.points: .* valid number; it is '3'"),
        ("questions: {a: {points: -1}}", "questions.a.points: .* greater than or equal to 0"),
        ("questions: {a: true}", "questions.a.points: Input should be a valid number; it is True"),
        ("questions: {a: {points: 1, words: x}}", "questions.a.words: .* valid integer; it is 'x'"),
        ("questions: {a: {points: 1, evidence: [{picture: x}]}}", "picture: .*'figure'.*it is 'pi"),
        ("questions: {}", "questions: Dictionary should have at least 1 item"),
        ("title: x", "questions: Field required"),
        ("a: [", "is not YAML"),
        ("- a", "r.yml: must have the keys title, statement, questions"),
        ("questions: {a: !!python/object/apply:os.system ['x']}", "is not YAML"),
    ],
)
def test_a_rubric_with_a_mistake_says_where(tmp_path, text, message):
    (tmp_path / "r.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_rubric(tmp_path / "r.yml")


def test_the_assignment_to_copy_belongs_together():
    """Its rubric asks for the cells that it has, all of them empty, and its batch finds its
    notebooks.
    """
    folder = Path(__file__).parents[1] / "notebooks" / "assignment"
    answers = find_answers([("assignment.ipynb", read_cells(folder / "assignment.ipynb"))])
    rubric = load_rubric(folder / "rubric.yml")
    assert [answer.name for answer in answers] == list(rubric.questions)
    assert not any(answer.text for answer in answers)
    steps = [step.notebook for step in load_batch(folder / "assignment.yml").chain]
    evidence = [item for one in rubric.questions.values() for item in one.list_evidence()]
    assert steps[-1] == "assignment"
    assert {name for kind, name in evidence if kind == "notebook"} <= set(steps)


def test_one_row_for_what_passed_and_one_for_each_failure():
    passed = [Result("executed", f"{number}.ipynb", "pass", "in order") for number in range(3)]
    failed = [Result("executed", f"bad{number}.ipynb", "fail", "cell 1") for number in range(22)]
    rerun = [Result("rerun", f"{number}", "pass", f"in {number} s") for number in range(2)]
    rows = summarise(Verdict((*passed, *failed, *rerun)))
    assert rows[0] == Result("executed", "3 pass", "pass", "in order")
    assert rows[1:] == [*failed[:20], *rerun]
    assert describe_verdict(Verdict((*passed, *rerun))) == "Nothing failed."
    assert "Only --rerun shows" in describe_verdict(Verdict((Result("rerun", "", "skipped"),)))


def test_text_of_a_bundle_cannot_steer_terminal_or_xml(tmp_path):
    nasty = "a\x1b[2J[red]b\x00<&"
    results = (Result("manifest", nasty, "fail", nasty), Result("data", "", "skipped", "x"))
    verdict = Verdict(results, title=nasty, author="A")
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    print_verdict(verdict, "x.zip", console)
    shown = console.export_text()
    assert "\x1b" not in shown and "a?[2J[red]b?<&" in shown and "1 failed, in: manifest." in shown
    write_junit(verdict, tmp_path / "r.xml")
    (suite,) = ElementTree.parse(tmp_path / "r.xml").getroot()
    assert suite.find("testcase").get("name") == "a?[2J[red]b?<&"
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "1")

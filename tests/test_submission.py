"""From runs to a zip and back: what is in it, what is caught, and by what name."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.submissions import pack, unpack, verify, write_project
from vitlab.batch import run_batch
from vitlab.cli import app
from vitlab.data.card import hash_splits
from vitlab.report import render_report
from vitlab.run_folders import dataset_folder
from vitlab.runs import Run
from vitlab.submission import make_bundle, verify_bundle
from vitlab.submission.archive import MANIFEST, Bundle, Options
from vitlab.submission.check_results import find_data
from vitlab.submission.rerun import lay_out
from vitlab.submission.selection import find_site, select

RUBRIC = """\
title: Toy
statement: I did it myself, says the course.
questions:
  balance: {points: 4, words: 10, evidence: [{figure: fig-balance}, {notebook: 01_explore_data}]}
  metrics:
    points: 3
    words: 20
    evidence: [{table: tbl-metrics}, {metric: roc_auc}, {file: "runs/*/*/predictions.parquet"}]
  verdict: {points: 5}
  blance: {points: 1}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A real batch of three notebooks on digits with its report, packed; the project's folder and
    what make_bundle gave.
    """
    folder = tmp_path_factory.mktemp("submission")
    batch = write_project(folder)
    (folder / "rubric.yml").write_text(RUBRIC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITLAB_REPORTS", str(folder / "reports"))
        patch.setenv("PATH", "/usr/bin:/bin")  # without Quarto, wherever it is
        patch.chdir(folder)
        content = run_batch(batch)
        assert {task["status"] for task in content["tasks"]} == {"done"}, [
            task["error"] for task in content["tasks"]
        ]
        render_report()
        texts = {"author": "Ada L.", "title": "Toy <1>", "rubric": folder / "rubric.yml"}
        yield folder, make_bundle(["toy"], **texts, output=folder / "toy.zip")


@pytest.fixture(autouse=True)
def project(made, reports_folder, monkeypatch):
    """The folder of that project, with its reports, for every test of this file."""
    monkeypatch.setenv("VITLAB_REPORTS", str(made[0] / "reports"))
    return made[0]


@pytest.fixture
def folder(made, tmp_path):
    return unpack(made[1].path, tmp_path / "bundle")


def find(folder, pattern):
    return next(folder.glob(pattern))


def test_the_bundle_has_what_a_marker_needs(folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    run = find(folder, "runs/digits-*/*").relative_to(folder).as_posix()
    of_run = ["run.json", "metrics.json", "predictions.parquet", "splits.csv", "model.safetensors"]
    of_run += ["data_card.md", "model_card.md"]
    notebooks = ["03_finetune.ipynb", "04_evaluate.ipynb", "assignment.ipynb"]
    assert names >= {
        "README.md",
        "TITLE.md",
        *(f"{run}/{name}" for name in of_run),
        *(f"{run}/notebooks/{name}" for name in notebooks),
        *(f"project/notebooks/{name}" for name in notebooks),
        "environment/installed.txt",
        "environment/requirements.lock",
        "project/_quarto.yml",
        "project/reports/references.bib",
        "report/index.html",
        "report/report.pdf",
        "runs/batches/toy/batch.json",
        f"data/{dataset_folder('digits')}.csv",
        "rubric.yml",
        MANIFEST,
    }
    title = (folder / "TITLE.md").read_text()
    assert "Ada L." in title and "says the course" in title
    assert "not signatures" in (folder / "README.md").read_text()
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == names - {MANIFEST}
    assert len(pd.read_csv(folder / "data" / f"{dataset_folder('digits')}.csv")) == 1797
    clean = json.loads((folder / "project/notebooks/04_evaluate.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in clean["cells"])


def test_verify_passes_but_for_what_the_student_left_out(made):
    verdict = verify_bundle(made[1].path)
    expected = {("answers", "verdict"), ("rubric", "blance")}
    expected |= {("rubric", "balance"), ("rubric", "verdict")}
    assert {(result.check, result.subject) for result in verdict.failed} == expected
    details = {result.subject: result.detail for result in verdict.results}
    assert "unknown question 'blance'. Did you mean balance?" in details["blance"]
    assert details["balance"] == "4 points; missing: notebook 01_explore_data"
    statuses = {result.check: result.status for result in verdict.results}
    for check in ("archive", "data", "metrics", "executed", "sources"):
        assert statuses[check] == "pass"
    points = verdict.points.set_index("question")
    there = "table tbl-metrics, metric roc_auc, file runs/*/*/predictions.parquet"
    assert points.loc["metrics", ["missing", "there"]].tolist() == ["", there]
    assert points.loc[["verdict", "blance"], "answer"].tolist() == ["empty", "no such cell"]


def test_a_rerun_gives_the_same_metrics(made):
    verdict, _ = verify(made[1].path, rerun=True, tolerance=0.02)
    rerun = [result for result in verdict.results if result.check == "rerun"]
    assert [result.status for result in rerun] == ["pass"] * 4, rerun
    assert "tolerance 0.02; all 10 metrics are equal; 100.0% of the images" in rerun[-1].detail


def test_a_file_altered_removed_or_added_is_named_and_the_other_checks_go_on(folder):
    removed, altered = find(folder, "runs/digits-*/*/splits.csv"), find(folder, "report/*.html")
    removed.unlink()
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    (folder / "notes.txt").write_text("more")
    verdict, failed = verify(folder)
    name = removed.relative_to(folder).as_posix()
    page = altered.relative_to(folder).as_posix()
    expected = {("manifest", name), ("manifest", page), ("manifest", "notes.txt")}
    assert expected | {("contents", name)} <= set(failed)
    assert {result.check: result.status for result in verdict.results}["metrics"] == "pass"


def test_without_manifest_all_checks_are_skipped(folder):
    (folder / MANIFEST).unlink()
    verdict, failed = verify(folder)
    assert failed == [("manifest", MANIFEST)] and "is missing" in verdict.failed[0].detail
    assert {result.status for result in verdict.results[1:]} == {"skipped"}


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_predictions(run, change):
    path = run / "predictions.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


def replace(path, old, new, count=-1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def improve(table):
    """One wrong prediction becomes right, with its logits and probabilities."""
    row = table.index[(table["split"] == "test") & (table["label"] != table["pred"])][0]
    for kind in ("logit", "prob"):
        own, other = f"{kind}_{table.loc[row, 'pred']}", f"{kind}_{table.loc[row, 'label']}"
        table.loc[row, [own, other]] = table.loc[row, [other, own]].to_numpy()
    table.loc[row, "pred"] = table.loc[row, "label"]
    return table


def swap_classes(table):
    names = {
        f"{kind}_{old}": f"{kind}_{new}" for kind in ("logit", "prob") for old, new in ("09", "90")
    }
    return table.rename(columns=names)


def change_weights(run):
    path = run / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap_cells(content):
    cells = content["cells"]
    first, second = [i for i, cell in enumerate(cells) if cell["cell_type"] == "code"][-2:]
    cells[first], cells[second] = cells[second], cells[first]


EVALUATED = "notebooks/04_evaluate.ipynb"
FORGERIES = {
    "a metric": (
        lambda run: edit_json(run / "metrics.json", lambda m: m["accuracy"].update(value=0.99)),
        ["metrics"],
    ),
    "a right prediction": (lambda run: edit_predictions(run, improve), ["metrics"]),
    "another class than that of the highest logit": (
        lambda run: edit_predictions(run, lambda table: table.assign(pred=table["label"])),
        ["predictions", "metrics"],
    ),
    "the order of classes": (lambda run: edit_predictions(run, swap_classes), ["predictions"]),
    "predictions left out": (
        lambda run: edit_predictions(run, lambda table: table.iloc[1:]),
        ["predictions"],
    ),
    "a test image moved to training": (
        lambda run: replace(run / "splits.csv", ",test,", ",train,", 1),
        ["splits", "predictions"],
    ),
    "weights": (change_weights, ["weights"]),
    "an unfinished run": (
        lambda run: replace(run / "run.json", '"status": "done"', '"status": "running"'),
        ["parameters"],
    ),
    "the order of cells": (
        lambda run: edit_json(run / "notebooks/assignment.ipynb", swap_cells),
        ["executed", "sources"],
    ),
    "a cell": (
        lambda run: replace(run / EVALUATED, "plots.present(metrics)", "plots.present( metrics)"),
        ["sources"],
    ),
    "a parameter": (
        lambda run: replace(run / EVALUATED, '\\"vit_scratch\\"\\n', '\\"hybrid_vit\\"\\n'),
        ["parameters"],
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_what_was_edited_by_hand_is_caught_though_the_manifest_fits(folder, tmp_path, what):
    change, expected = FORGERIES[what]
    change(find(folder, "runs/digits-*/*"))
    _, failed = verify(pack(folder, tmp_path / "forged.zip", forge=True))
    assert set(expected) <= {check for check, _ in failed}
    assert "manifest" not in dict(failed)
    if what == "a parameter":
        assert "sources" not in dict(failed)


def test_a_pixel_edited_by_hand_is_caught_where_the_data_are(folder, tmp_path):
    hashes = folder / "data" / f"{dataset_folder('digits')}.csv"
    table = pd.read_csv(hashes, dtype=str)
    table.loc[7, "sha256"] = "0" * 64
    table.to_csv(hashes, index=False)
    forged = pack(folder, tmp_path / "forged.zip", forge=True)
    verdict, failed = verify(forged, ["data"], images=True)
    assert failed == [("data", "digits")]
    where = "have other pixels in digits on this machine, the first is digit0007"
    assert verdict.failed[0].detail == f"1 images {where}"
    replace(hashes, "digit0000,0,", "digit0000,1,")
    assert verify(folder, ["data"])[1] == [("data", "digits")]


def test_images_left_out_of_every_split_are_caught(folder, tmp_path):
    """The wrong ones are dropped everywhere, and everything is made to fit; only the data
    themselves can tell.
    """
    run = find(folder, "runs/digits-*/*")
    table = pd.read_parquet(run / "predictions.parquet")
    wrong = set(table["sample_id"][(table["split"] == "test") & (table["label"] != table["pred"])])
    kept = table[~table["sample_id"].isin(wrong)]
    kept.to_parquet(run / "predictions.parquet", index=False)
    splits = pd.read_csv(run / "splits.csv", dtype=str, keep_default_na=False)
    before = hash_splits(splits)
    splits = splits[~splits["sample_id"].isin(wrong)]
    splits.to_csv(run / "splits.csv", index=False)
    path = folder / "data" / f"{dataset_folder('digits')}.csv"
    hashes = pd.read_csv(path, dtype=str)
    hashes[~hashes["sample_id"].isin(wrong)].to_csv(path, index=False)
    replace(run / "data_card.md", before, hash_splits(splits))
    names = ["manifest", "splits", "data", "predictions"]
    verdict, failed = verify(pack(folder, tmp_path / "forged.zip", forge=True), names, images=True)
    assert failed == [("data", "digits")]
    where = f"images of digits are in no split, the first is {min(wrong)}"
    assert verdict.failed[0].detail == f"{len(wrong)} {where}"
    # hidden from the checks as if it were a synthetic image
    splits["synthetic"] = splits.index == splits.index[splits["split"] == "test"][0]
    splits.to_csv(run / "splits.csv", index=False)
    assert "splits" in dict(verify(folder)[1])


def test_a_run_that_was_added_is_checked_and_not_laid_out_for_a_rerun(folder, tmp_path):
    run = find(folder, "runs/digits-*/*")
    shutil.copytree(run, folder / "project" / "reports" / run.relative_to(folder))
    shutil.copytree(run, run.with_name("other"))
    edit_predictions(run.with_name("other"), lambda table: table.iloc[1:])
    _, failed = verify(pack(folder, tmp_path / "forged.zip", forge=True))
    name = run.with_name("other").relative_to(folder).as_posix()
    assert ("predictions", name) in failed
    lay_out(Bundle(folder), tmp_path / "project")
    assert not (tmp_path / "project" / "reports" / "runs").exists()
    assert list((tmp_path / "project" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("dataset", ["folder:/etc", "torchvision:MNIST", "hub:a/b", "nothing"])
def test_a_data_set_named_in_a_bundle_is_not_read_unless_the_marker_names_it(dataset, tmp_path):
    bundle = Bundle(tmp_path)
    bundle.datasets = {"run": dataset}
    assert find_data(bundle, dataset) == "" and find_data(bundle, "digits") == "digits"
    named = Bundle(tmp_path, Options(data="folder:mine"))
    named.datasets = bundle.datasets
    assert find_data(named, dataset) == "folder:mine"


def test_a_manifest_that_names_places_outside_reads_none(folder):
    edit_json(folder / MANIFEST, lambda facts: facts["notebooks"].insert(0, "../../etc/passwd"))
    verdict, failed = verify(folder)
    assert ("executed", "../../etc/passwd") in failed
    assert any("leads out of the bundle" in result.detail for result in verdict.failed)


def test_a_folder_that_a_course_system_unpacked_is_verified_too(folder):
    verdict = verify_bundle(folder)
    assert verdict.results[0].detail == "a folder, not the zip"
    assert {result.check for result in verdict.failed} == {"answers", "rubric"}


def test_submit_with_a_late_change_an_extra_notebook_and_a_limit(project, tmp_path):
    """Weights over the limit are left out, a notebook executed by hand is packed, and one that was
    changed after its execution is named.
    """
    extra, path = tmp_path / "extra.ipynb", project / "notebooks" / "04_evaluate.ipynb"
    shutil.copy(find(project, "reports/runs/digits-*/*/notebooks/assignment.ipynb"), extra)
    kept = path.read_text()
    replace(path, "Metrics on the test split.", "Metrics on the test images.")
    options = {"weights_limit_mb": 0.001, "notebooks": [extra], "output": tmp_path / "late.zip"}
    try:
        made = make_bundle(["toy"], author="Ada", title="Toy", **options)
    finally:
        path.write_text(kept)
    (late,) = [result for result in made.verdict.failed if result.check != "answers"]
    then = "executed as `…Metrics on the test split.`"
    now = "the notebook now has `…Metrics on the test images.`"
    assert (late.check, late.detail) == ("sources", f"cell 4: {then}, but {now}")
    found = {(result.check, result.subject): result for result in made.verdict.results}
    assert found["executed", "runs/notebooks/extra.ipynb"].status == "pass"
    (weights,) = [result for result in made.verdict.results if result.check == "weights"]
    assert weights.status == "skipped" and "SHA-256" in weights.detail
    readme = (unpack(made.path, tmp_path / "small") / "README.md").read_text()
    assert "over 0.001 MB of weights" in readme


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"author": " "}, "--author is empty"),
        ({"names": ["vit_none"]}, "vit_none is neither a folder"),
        ({"rubric": "none.yml"}, "there is no rubric"),
        ({"output": "."}, "is a folder; name a file"),
    ],
)
def test_mistakes_are_told_before_anything_is_packed(tmp_path, changes, message):
    arguments = {"author": "Ada", "title": "Toy", "output": tmp_path / "x.zip"} | changes
    names = arguments.pop("names", ["toy"])
    arguments |= {name: Path(arguments[name]) for name in ("rubric", "output") if name in arguments}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_bundle(names, **arguments)
    assert not (tmp_path / "x.zip").exists()


def test_a_run_without_a_notebook_and_an_unfinished_run_are_refused(project, tmp_path):
    lone = Run.create(name="lone", dataset="digits", model="vit_scratch")
    options = {"author": "Ada", "title": "Toy", "output": tmp_path / "x.zip"}
    try:
        with pytest.raises(ValueError, match=r"runs/digits-.*/lone is not finished"):
            make_bundle(["lone"], **options)
        lone.finish()
        with pytest.raises(ValueError, match=r"belongs to runs/.*/lone.*--notebook FILE"):
            make_bundle(["lone"], **options)
    finally:
        shutil.rmtree(lone.path)


def test_the_report_is_packed_while_its_pages_show_these_notebooks(project):
    selection = select(["toy"])
    assert find_site(selection) == project / "reports" / "_site"
    selection.notebooks[0].source.touch()
    assert find_site(selection) is None


def test_the_commands_tell_by_table_status_and_junit(made, tmp_path):
    path, rubric = str(made[1].path), str(made[0] / "rubric.yml")
    junit = str(tmp_path / "r.xml")
    result = CliRunner().invoke(app, ["verify", path, "--junit", junit, "--rubric", rubric])
    assert result.exit_code == 1 and "failed, in: answers, rubric." in result.stdout, result.output
    assert "Toy <1>, by Ada L." in result.stdout
    suite = ElementTree.parse(junit).getroot().find("testsuite")
    assert int(suite.get("failures")) == 4 == len(suite.findall("testcase/failure"))
    assert int(suite.get("tests")) == len(suite.findall("testcase"))
    failure = suite.find("testcase[@classname='verify.answers'][@name='verdict']/failure")
    assert failure.get("message").startswith("empty")
    for arguments, message in (
        (["verify", path, "--junit", str(tmp_path)], "is a folder; give a file name"),
        (["verify", str(tmp_path / "none.zip")], "there is no bundle"),
        (["submit", "nothing", "--author", "A", "--title", "T"], "nothing is neither a folder"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 and message in result.stderr

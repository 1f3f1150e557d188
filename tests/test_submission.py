"""From runs to a zip and back: what is in it, what is caught, and by what name."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.submissions import pack, unpack, verify, write_project
from vitlab.batch import run_batch
from vitlab.cli import app
from vitlab.data import hash_splits
from vitlab.report import render_report
from vitlab.run_names import dataset_folder
from vitlab.runs import Run, find_runs
from vitlab.submission import make_bundle, verify_bundle
from vitlab.submission.check_results import find_data
from vitlab.submission.manifest import MANIFEST
from vitlab.submission.opened import Bundle, Options
from vitlab.submission.rerun import lay_out
from vitlab.submission.selection import select

RUBRIC = """\
title: Toy
statement: I did it myself, says the course.
questions:
  balance: {points: 4, words: 10, evidence: [{figure: fig-balance}, {notebook: 01_explore_data}]}
  metrics: {points: 3, words: 20, evidence: [{table: tbl-metrics}, {metric: roc_auc}, {file: "runs/*/*/predictions.parquet"}]}
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


def test_the_bundle_holds_what_a_marker_needs(made, folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    run = find(folder, "runs/digits-*/*").relative_to(folder).as_posix()
    of_run = [
        "run.json",
        "metrics.json",
        "predictions.parquet",
        "splits.csv",
        "model.safetensors",
        "data_card.md",
        "model_card.md",
    ]
    of_run += [
        "notebooks/03_finetune.ipynb",
        "notebooks/04_evaluate.ipynb",
        "notebooks/assignment.ipynb",
    ]
    environment = ["environment/installed.txt", "environment/requirements.lock"]
    project = [
        "project/_quarto.yml",
        "project/reports/references.bib",
        "project/notebooks/assignment.ipynb",
    ]
    pages = [
        "report/index.html",
        "report/report.pdf",
        "runs/batches/toy/batch.json",
        f"data/{dataset_folder('digits')}.csv",
        "rubric.yml",
        MANIFEST,
    ]
    assert names >= {
        "README.md",
        "TITLE.md",
        *(f"{run}/{name}" for name in of_run),
        *environment,
        *project,
        *pages,
    }
    assert (
        "Ada L." in (folder / "TITLE.md").read_text()
        and "says the course" in (folder / "TITLE.md").read_text()
    )
    assert "not signatures" in (folder / "README.md").read_text()
    manifest = json.loads((folder / MANIFEST).read_text())
    assert set(manifest["files"]) == names - {MANIFEST}
    assert len(pd.read_csv(folder / "data" / f"{dataset_folder('digits')}.csv")) == 1797


def test_clean_notebooks_have_no_outputs(folder):
    clean = json.loads((folder / "project/notebooks/04_evaluate.ipynb").read_text())
    assert all(
        not cell["outputs"] and cell["execution_count"] is None
        for cell in clean["cells"]
        if cell["cell_type"] == "code"
    )


def test_verify_passes_but_for_what_the_student_left_out(made):
    verdict = verify_bundle(made[1].path)
    failed = {(result.check, result.subject) for result in verdict.failed}
    assert failed == {
        ("answers", "verdict"),
        ("rubric", ""),
        ("rubric", "balance"),
        ("rubric", "verdict"),
    }
    said = {result.subject: result.detail for result in verdict.results if result.check == "rubric"}
    assert "unknown question 'blance'. Did you mean balance?" in said[""]
    assert said["balance"] == "4 points; missing: notebook 01_explore_data"
    statuses = {result.check: result.status for result in verdict.results}
    assert {
        statuses[check] for check in ("archive", "data", "intervals", "executed", "sources")
    } == {"pass"}
    points = verdict.points.set_index("question")
    assert points.loc["metrics", "missing"] == ""
    assert points.loc["metrics", "there"].startswith(
        "table tbl-metrics, metric roc_auc, file runs/"
    )
    assert (
        points.loc["verdict", "answer"] == "empty"
        and points.loc["blance", "answer"] == "no such cell"
    )


def test_submit_shows_the_results_of_verify(made):
    verdict, _ = verify(made[1].path)
    assert list(made[1].verdict.results) == [
        result for result in verdict.results if result.check != "rerun"
    ]


def test_a_rerun_gives_the_same_metrics(made):
    verdict, _ = verify(made[1].path, rerun=True, tolerance=0.02)
    rerun = [result for result in verdict.results if result.check == "rerun"]
    assert [result.status for result in rerun] == ["pass"] * 4, rerun
    assert (
        "tolerance 0.02" in rerun[-1].detail
        and "of the images get the same class" in rerun[-1].detail
    )


WHOLE = ("manifest",)
KINDS = [
    "*.md",
    "*.yml",
    "report/*.html",
    "report/*.pdf",
    "data/*",
    "environment/*",
    "runs/digits-*/*/*.csv",
]
KINDS += [
    f"runs/digits-*/*/{name}"
    for name in ("*.json", "*.md", "*.parquet", "*.safetensors", "notebooks/*.ipynb")
]


@pytest.mark.parametrize("pattern", KINDS)
def test_one_byte_in_a_file_is_caught_by_name(folder, tmp_path, pattern):
    """First, last, and one in the middle, in a folder; and in a zip that was packed again."""
    path = find(folder, pattern)
    kept, name = path.read_bytes(), path.relative_to(folder).as_posix()
    for place in (0, len(kept) // 2, len(kept) - 1):
        content = bytearray(kept)
        content[place] ^= 1
        path.write_bytes(content)
        assert ("manifest", name) in verify(folder, WHOLE)[1]
    assert verify(pack(folder, tmp_path / "altered.zip"), WHOLE)[1] == [("manifest", name)]


@pytest.mark.parametrize("pattern", [*KINDS, "project/notebooks/*", "runs/batches/toy/*"])
def test_one_byte_in_the_zip_is_caught_by_name(made, folder, tmp_path, pattern):
    """The packed bytes themselves: of a deflated file, a changed byte may not even unpack."""
    name = find(folder, pattern).relative_to(folder).as_posix()
    with zipfile.ZipFile(made[1].path) as archive:
        info = archive.getinfo(name)
    content = bytearray(made[1].path.read_bytes())
    content[info.header_offset + 30 + len(name) + info.compress_size // 2] ^= 16
    (tmp_path / "altered.zip").write_bytes(content)
    (failed,) = verify_bundle(tmp_path / "altered.zip").failed
    assert failed.check == "archive" and failed.detail.startswith(
        f"{name} is damaged or incomplete"
    )


def test_a_removed_and_an_added_file_are_named(folder, tmp_path):
    removed = find(folder, "runs/digits-*/*/splits.csv")
    removed.unlink()
    (folder / "notes.txt").write_text("more")
    verdict, failed = verify(pack(folder, tmp_path / "altered.zip"))
    name = removed.relative_to(folder).as_posix()
    assert {("manifest", name), ("manifest", "notes.txt"), ("contents", name)} <= set(failed)
    assert {result.detail for result in verdict.failed if result.check == "manifest"} == {
        "missing",
        "not listed in the manifest",
    }
    assert any(
        result.check == "metrics" and result.status == "pass" for result in verdict.results
    ), "the rest goes on"


def test_without_manifest_nothing_else_is_said(folder, tmp_path):
    (folder / MANIFEST).unlink()
    verdict, failed = verify(pack(folder, tmp_path / "altered.zip"))
    assert failed == [("manifest", MANIFEST)] and "is missing" in verdict.failed[0].detail
    assert {result.status for result in verdict.results[1:]} == {"skipped"}


def forge(folder, tmp_path, **options):
    """The verdict of a bundle whose manifest was written anew for what was changed."""
    verdict, failed = verify(pack(folder, tmp_path / "forged.zip", forge=True), **options)
    assert not [result for result in verdict.failed if result.check == "manifest"], (
        "the forgery is a good one"
    )
    return verdict, failed


def test_a_metric_edited_by_hand_does_not_follow_from_the_predictions(folder, tmp_path):
    path = find(folder, "runs/digits-*/*/metrics.json")
    content = json.loads(path.read_text())
    content["accuracy"]["value"] += 0.001
    path.write_text(json.dumps(content))
    verdict, failed = forge(folder, tmp_path)
    assert ("metrics", path.parent.relative_to(folder).as_posix()) in failed
    assert any(
        "accuracy is" in result.detail and "by the predictions" in result.detail
        for result in verdict.failed
    )


def test_predictions_edited_by_hand_do_not_fit_the_metrics(folder, tmp_path):
    path = find(folder, "runs/digits-*/*/predictions.parquet")
    table = pd.read_parquet(path)
    wrong = table.index[(table["split"] == "test") & (table["label"] != table["pred"])][0]
    label = table.loc[wrong, "label"]
    for kind in ("logit", "prob"):
        own, other = f"{kind}_{table.loc[wrong, 'pred']}", f"{kind}_{label}"
        table.loc[wrong, [own, other]] = table.loc[wrong, [other, own]].to_numpy()
    table.loc[wrong, "pred"] = label
    table.to_parquet(path, index=False)
    assert ("metrics", path.parent.relative_to(folder).as_posix()) in forge(folder, tmp_path)[1]


def test_a_class_that_is_not_the_most_probable_is_caught(folder, tmp_path):
    path = find(folder, "runs/digits-*/*/predictions.parquet")
    table = pd.read_parquet(path)
    table["pred"] = table["label"]
    table.to_parquet(path, index=False)
    assert ("predictions", path.parent.relative_to(folder).as_posix()) in forge(folder, tmp_path)[1]


def test_cells_in_another_order_are_caught(folder, tmp_path):
    path = find(folder, "runs/digits-*/*/notebooks/assignment.ipynb")
    content = json.loads(path.read_text())
    code = [place for place, cell in enumerate(content["cells"]) if cell["cell_type"] == "code"]
    first, second = code[-2:]
    content["cells"][first], content["cells"][second] = (
        content["cells"][second],
        content["cells"][first],
    )
    path.write_text(json.dumps(content))
    failed = forge(folder, tmp_path)[1]
    name = path.relative_to(folder).as_posix()
    assert {("executed", name), ("sources", name)} <= set(failed)


def test_a_source_or_a_parameter_edited_by_hand_is_caught(folder, tmp_path):
    path = find(folder, "runs/digits-*/*/notebooks/04_evaluate.ipynb")
    kept, name = path.read_text(), path.relative_to(folder).as_posix()
    path.write_text(kept.replace("plots.present(metrics)", "plots.present( metrics)"))
    assert ("sources", name) in forge(folder, tmp_path)[1]
    path.write_text(kept.replace('\\"vit_scratch\\"\\n', '\\"hybrid_vit\\"\\n'))
    failed = forge(folder, tmp_path)[1]
    assert ("parameters", name.partition("/notebooks/")[0]) in failed and (
        "sources",
        name,
    ) not in failed


def test_an_unfinished_run_is_caught(folder, tmp_path):
    path = find(folder, "runs/digits-*/*/run.json")
    path.write_text(path.read_text().replace('"status": "done"', '"status": "running"'))
    assert ("parameters", path.parent.relative_to(folder).as_posix()) in forge(folder, tmp_path)[1]


def test_a_bound_edited_by_hand_is_caught(folder, tmp_path):
    path = find(folder, "runs/digits-*/*/metrics.json")
    content = json.loads(path.read_text())
    content["accuracy"]["low"] += 0.01
    path.write_text(json.dumps(content))
    verdict, failed = forge(folder, tmp_path, images=True)
    assert ("intervals", path.parent.relative_to(folder).as_posix()) in failed
    assert any("the low end of accuracy is" in result.detail for result in verdict.failed)


def test_a_run_and_a_notebook_that_were_added_are_checked_too(folder, tmp_path):
    run = find(folder, "runs/digits-*/*")
    shutil.copytree(run, run.with_name("other"))
    path = run.with_name("other") / "predictions.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)
    notebook = run.with_name("other") / "notebooks" / "04_evaluate.ipynb"
    notebook.write_text(
        notebook.read_text().replace("plots.present(metrics)", "plots.present( metrics)")
    )
    failed = forge(folder, tmp_path)[1]
    name = path.parent.relative_to(folder).as_posix()
    assert {("predictions", name), ("sources", f"{name}/notebooks/04_evaluate.ipynb")} <= set(
        failed
    )


def test_a_run_where_a_rerun_would_find_it_is_not_laid_out(folder, tmp_path):
    run = find(folder, "runs/digits-*/*")
    shutil.copytree(run, folder / "project" / "reports" / run.relative_to(folder))
    forge(folder, tmp_path)
    lay_out(Bundle(folder), tmp_path / "project")
    assert not (tmp_path / "project" / "reports" / "runs").exists() and list(
        (tmp_path / "project" / "notebooks").glob("*.ipynb")
    )


def test_images_left_out_of_every_split_are_caught(folder, tmp_path):
    """The wrong ones are dropped everywhere, and everything is made to fit; only the data
    themselves can tell.
    """
    run = find(folder, "runs/digits-*/*")
    place = run.relative_to(folder).as_posix()
    predictions = pd.read_parquet(run / "predictions.parquet")
    wrong = set(
        predictions["sample_id"][
            (predictions["split"] == "test") & (predictions["label"] != predictions["pred"])
        ]
    )
    predictions[~predictions["sample_id"].isin(wrong)].to_parquet(
        run / "predictions.parquet", index=False
    )
    splits = pd.read_csv(run / "splits.csv", dtype=str, keep_default_na=False)
    before = hash_splits(splits)
    splits = splits[~splits["sample_id"].isin(wrong)]
    splits.to_csv(run / "splits.csv", index=False)
    hashes = pd.read_csv(folder / "data" / f"{dataset_folder('digits')}.csv", dtype=str)
    hashes = hashes[~hashes["sample_id"].isin(wrong)]
    hashes.to_csv(folder / "data" / f"{dataset_folder('digits')}.csv", index=False)
    card = (run / "data_card.md").read_text()
    (run / "data_card.md").write_text(card.replace(before, hash_splits(splits)))
    names = ["manifest", "splits", "data", "predictions"]
    verdict, _ = verify(pack(folder, tmp_path / "forged.zip", forge=True), names, images=True)
    assert [(result.check, result.subject) for result in verdict.failed] == [("data", "digits")]
    assert (
        verdict.failed[0].detail
        == f"{len(wrong)} images of digits are in no split, the first is {min(wrong)}"
    )
    splits["synthetic"] = splits.index == splits.index[splits["split"] == "test"][0]
    splits.to_csv(run / "splits.csv", index=False)
    assert ("splits", place) in forge(folder, tmp_path)[1], (
        "hidden from the checks as if it were a synthetic image"
    )


def test_classes_in_another_order_are_caught(folder, tmp_path):
    path = find(folder, "runs/digits-*/*/predictions.parquet")
    table = pd.read_parquet(path)
    names = list(table.columns)
    for kind in ("logit", "prob"):
        one, other = names.index(f"{kind}_0"), names.index(f"{kind}_9")
        names[one], names[other] = names[other], names[one]
    table[names].to_parquet(path, index=False)
    assert ("predictions", path.parent.relative_to(folder).as_posix()) in forge(folder, tmp_path)[1]


def test_test_images_moved_to_training_are_caught(folder, tmp_path):
    path = find(folder, "runs/digits-*/*/splits.csv")
    path.write_text(path.read_text().replace(",test,", ",train,", 1))
    place = path.parent.relative_to(folder).as_posix()
    assert {("splits", place), ("predictions", place)} <= set(forge(folder, tmp_path)[1])


def test_exchanged_weights_are_caught(folder, tmp_path):
    path = find(folder, "runs/digits-*/*/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert ("weights", path.parent.relative_to(folder).as_posix()) in forge(folder, tmp_path)[1]


def test_another_label_than_the_data_have_is_caught(folder, tmp_path):
    path = folder / "data" / f"{dataset_folder('digits')}.csv"
    path.write_text(path.read_text().replace("digit0000,0,", "digit0000,1,"))
    assert ("data", "digits") in forge(folder, tmp_path)[1]


def test_an_image_that_is_another_one_here_is_named(folder, tmp_path):
    path = folder / "data" / f"{dataset_folder('digits')}.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[7, "sha256"] = "0" * 64
    table.to_csv(path, index=False)
    (failed,) = verify(
        pack(folder, tmp_path / "forged.zip", forge=True), ["manifest", "data"], images=True
    )[0].failed
    assert (
        failed.detail
        == "1 images have other pixels in digits on this machine, the first is digit0007"
    )


@pytest.mark.parametrize(
    "dataset", ["folder:/etc", "torchvision:MNIST", "hub:a/b", "planted:digits", "nothing"]
)
def test_a_data_set_named_in_a_bundle_is_not_read_unless_the_marker_names_it(dataset, tmp_path):
    bundle = Bundle(tmp_path)
    bundle.datasets = {"run": dataset}
    assert find_data(bundle, dataset) == "" and find_data(bundle, "digits") == "digits"
    named = Bundle(tmp_path, Options(data="folder:mine"))
    named.datasets = bundle.datasets
    assert find_data(named, dataset) == "folder:mine"


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("model.safetensors", "weights"),
        ("predictions.parquet", "predictions"),
        ("splits.csv", "splits"),
        ("metrics.json", "metrics"),
        ("run.json", "parameters"),
        ("notebooks/04_evaluate.ipynb", "executed"),
    ],
)
def test_a_pickle_in_place_of_a_file_is_not_loaded(folder, tmp_path, name, check):
    flag = tmp_path / "executed"
    find(folder, f"runs/digits-*/*/{name}").write_bytes(
        f"cos\nsystem\n(S'touch {flag}'\ntR.".encode()
    )
    _, failed = forge(folder, tmp_path)
    assert check in dict(failed) and not flag.exists()


def test_a_manifest_that_names_places_outside_reads_none(folder, tmp_path):
    facts = json.loads((folder / MANIFEST).read_text())
    facts["notebooks"][0] = "../../etc/passwd"
    (folder / MANIFEST).write_text(json.dumps(facts))
    verdict, failed = forge(folder, tmp_path)
    assert ("executed", "../../etc/passwd") in failed
    assert any("leads out of the bundle" in result.detail for result in verdict.failed)


def test_a_folder_that_a_course_system_unpacked_is_verified_too(folder):
    _, failed = verify(folder)
    assert verify_bundle(folder).results[0].detail == "a folder, not the zip"
    assert not [check for check, _ in failed if check not in ("answers", "rubric")]


def test_weights_over_the_limit_stay_behind_with_their_checksum(made, tmp_path):
    first = made[1]
    small = make_bundle(
        ["toy"], author="Ada", title="Toy", weights_limit_mb=0.001, output=tmp_path / "small.zip"
    )
    assert small.path.stat().st_size < first.path.stat().st_size
    weights = next(result for result in small.verdict.results if result.check == "weights")
    assert weights.status == "skipped" and "SHA-256" in weights.detail
    assert (
        "over 0.001 MB of weights"
        in (unpack(small.path, tmp_path / "small") / "README.md").read_text()
    )


def test_submit_names_a_notebook_that_was_changed_after_its_execution(project, tmp_path):
    path = project / "notebooks" / "04_evaluate.ipynb"
    kept = path.read_text()
    path.write_text(kept.replace("Metrics on the test split.", "Metrics on the test images."))
    try:
        verdict = make_bundle(
            ["toy"], author="Ada", title="Toy", output=tmp_path / "late.zip"
        ).verdict
    finally:
        path.write_text(kept)
    assert [result.check for result in verdict.failed if result.check != "answers"] == ["sources"]
    detail = next(result.detail for result in verdict.failed if result.check == "sources")
    assert (
        detail
        == "cell 4: executed as `…Metrics on the test split.`, but the notebook now has `…Metrics"
        " on the test images.`"
    )


def test_a_notebook_executed_by_hand_goes_along(project, tmp_path):
    shutil.copy(
        next(project.glob("reports/runs/digits-*/*/notebooks/assignment.ipynb")),
        tmp_path / "extra.ipynb",
    )
    bundle = make_bundle(
        ["toy"],
        author="A",
        title="T",
        notebooks=[tmp_path / "extra.ipynb"],
        output=tmp_path / "extra.zip",
    )
    assert not [
        result
        for result in bundle.verdict.failed
        if "extra" in result.subject and result.check != "answers"
    ]
    assert any(
        result.subject == "runs/notebooks/extra.ipynb" and result.status == "pass"
        for result in bundle.verdict.results
    )


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


def test_a_run_that_no_notebook_belongs_to_is_refused(project, tmp_path):
    lone = Run.create(name="lone", dataset="digits", model="vit_scratch")
    lone.finish()
    try:
        with pytest.raises(
            ValueError,
            match=r"no executed notebook belongs to runs/digits-.*/lone.*--notebook FILE",
        ):
            make_bundle(["lone"], author="Ada", title="Toy", output=tmp_path / "x.zip")
    finally:
        shutil.rmtree(lone.path)
    assert len(find_runs("digits")) == 1


def test_with_a_batch_go_its_own_notebooks_with_a_run_those_of_all(project):
    batches = project / "reports" / "runs" / "batches"
    shutil.copytree(batches / "toy", batches / "other")
    try:
        run = find_runs("digits")[0].name
        assert list(select(["toy"]).batches) == ["toy"] and list(select(["other"]).batches) == [
            "other"
        ]
        assert (
            list(select([run]).batches)
            == list(select(["toy", "other"]).batches)
            == ["other", "toy"]
        )
    finally:
        shutil.rmtree(batches / "other")


def test_an_unfinished_run_is_refused(project, tmp_path):
    path = next(project.glob("reports/runs/digits-*/*/run.json"))
    kept = path.read_text()
    path.write_text(kept.replace('"status": "done"', '"status": "running"'))
    try:
        with pytest.raises(ValueError, match="is not finished"):
            make_bundle(["toy"], author="Ada", title="Toy", output=tmp_path / "x.zip")
    finally:
        path.write_text(kept)


def test_the_commands_tell_by_table_status_and_junit(made, tmp_path):
    bundle = made[1]
    result = CliRunner().invoke(
        app,
        ["verify", str(bundle.path), "--junit", str(tmp_path / "r.xml"), "--rubric", "rubric.yml"],
    )
    assert result.exit_code == 1 and "failed, in: answers, rubric." in result.stdout, result.output
    assert "Toy <1>, by Ada L." in result.stdout
    suite = ElementTree.parse(tmp_path / "r.xml").getroot().find("testsuite")
    assert int(suite.get("failures")) == 4 == len(suite.findall("testcase/failure"))
    assert int(suite.get("tests")) == len(suite.findall("testcase"))
    assert (
        suite.find("testcase[@classname='verify.answers'][@name='verdict']/failure")
        .get("message")
        .startswith("empty")
    )
    result = CliRunner().invoke(app, ["verify", str(bundle.path), "--junit", str(tmp_path)])
    assert (
        result.exit_code == 2
        and "is a folder, or lies in one that does not exist; name a file" in result.stderr
    )
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "none.zip")])
    assert result.exit_code == 2 and "there is no bundle" in result.stderr
    result = CliRunner().invoke(app, ["submit", "nothing", "--author", "Ada", "--title", "Toy"])
    assert result.exit_code == 2 and "nothing is neither a folder" in result.stderr


def test_verify_unpickles_nothing_and_loads_no_model(made):
    """In a process of its own: pickle.loads raises, and neither the deployment nor papermill are
    imported.
    """
    code = (
        "import pickle, sys\ndef refuse(*a, **k): raise AssertionError('unpickled')\nfrom"
        " vitlab.submission.verify import judge, open_bundle, Bundle, Options\nfrom pathlib import"
        " Path\nimport vitlab.data\npickle.loads = pickle.load = pickle.Unpickler = refuse\nbundle"
        f" = open_bundle(Path({str(made[1].path)!r}))\nopened = bundle.__enter__()\nverdict ="
        " judge(Bundle(opened, Options(images=False)))\nprint(len(verdict.failed), [n for n in"
        " ('papermill', 'vitlab.deploy', 'gradio') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "4 []", done.stdout + done.stderr

"""`vitlab check` on a folder of pictures, from the command to the page."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vitlab.check_command import name_dataset
from vitlab.cli import app


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """80 pictures: stripes in two directions on noise, one empty file, and one copy."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(80):
        kind = ("across", "down")[number % 2]
        (folder / kind).mkdir(exist_ok=True)
        stripes = (np.add.outer(np.zeros(64), np.arange(64)) // 8 % 2) * 120
        pixels = rng.integers(0, 130, (64, 64)) + (stripes if number % 2 else stripes.T)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{number:02d}.png")
    (folder / "down" / "empty.png").touch()
    return folder


@pytest.fixture(scope="module")
def checked(pictures, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        reports = tmp_path_factory.mktemp("reports")
        patch.setenv("VITLAB_REPORTS", str(reports))
        words = ["check", str(pictures), "--strict", "--ignore", "VL009=few pictures"]
        result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, SystemExit | None), result.output
    return result, reports


def test_the_terminal_shows_verdict_and_checks(checked):
    result, _ = checked
    assert "1 of 81 files were left out: the file is empty (1)" in result.output
    assert "✗ fail     VL007" in result.output and result.exit_code == 1
    assert "silenced: few pictures" in result.output
    assert result.output.startswith("Not ready: 1 check failed (too few test images).")


def test_the_page_needs_no_other_file_and_opens_with_the_verdict(checked):
    result, reports = checked
    [page] = reports.glob("checks/*/check.html")
    assert str(page) in result.output
    text = page.read_text(encoding="utf-8")
    assert text.index("Not ready") < text.index("Checks</h2>") < text.index("What is in the data")
    assert 'src="data:' in text and 'src="http' not in text and 'id="vl007"' in text
    assert 'class="chapters"' not in text and "report.pdf" not in text


def test_the_results_are_kept_for_programs(checked, pictures):
    [file] = checked[1].glob("checks/*/checks.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["dataset"] == f"folder:{pictures}" and "Not ready" in content["verdict"]
    status = {entry["id"]: entry["status"] for entry in content["checks"]}
    assert sorted(status) == [f"VL{number:03d}" for number in range(1, 10)]
    assert content["checks"][0]["link"].startswith("reports/guide/0_checks.md#vl00")
    assert (status["VL001"], status["VL002"], status["VL008"]) == ("warn", "pass", "not applicable")


def test_paths_become_names_of_data_sets(tmp_path):
    (tmp_path / "labels.csv").touch()
    assert name_dataset(str(tmp_path)) == f"folder:{tmp_path}"
    assert name_dataset(str(tmp_path / "labels.csv")) == f"csv:{tmp_path / 'labels.csv'}"
    assert name_dataset("elpv:grade") == "elpv:grade"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "unknown dataset 'nothing'"),
        (["no/where/"], "there is no folder or file no/where/"),
        (["digits", "--ignore", "VL01=x"], "unknown check 'VL01'"),
        (["digits", "--ignore", "VL001"], "write VL001=REASON"),
        (["digits", "--model", "efficientnet"], "efficientnet"),
    ],
)
def test_mistakes_are_named_before_anything_runs(words, message):
    result = CliRunner().invoke(app, ["check", *words])
    assert result.exit_code == 2 and message in result.stderr

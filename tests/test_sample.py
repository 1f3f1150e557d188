"""The sample that the README shows is of the present templates: else `make sample`."""

from pathlib import Path

import pypdf
import pytest
from PIL import Image

from vitlab.report.settings import hash_templates

SAMPLE = Path(__file__).parents[1] / "reports" / "sample"


@pytest.fixture(scope="module")
def report():
    return pypdf.PdfReader(SAMPLE / "report.pdf")


def test_the_report_is_of_the_present_templates(report):
    assert f"templates {hash_templates()}" in report.metadata["/Keywords"]


def test_the_picture_is_of_the_present_templates():
    with Image.open(SAMPLE / "check.png") as picture:
        assert picture.info["templates"] == hash_templates() and picture.width == 1280


def test_the_report_is_short_small_and_without_code(report):
    assert 12 <= len(report.pages) <= 25
    assert (SAMPLE / "report.pdf").stat().st_size <= 3e6
    text = "".join(page.extract_text() for page in report.pages)
    assert "import pandas" not in text and "Problem:" not in text
    assert "The answer" in report.pages[1].extract_text()

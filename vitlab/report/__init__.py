"""From executed notebooks to one HTML site and one PDF: Quarto where it is installed, else pandoc and Typst from wheels."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat

from vitlab.report.clean import for_web
from vitlab.report.combine import combine_pages
from vitlab.report.gather import gather_report, page_notebook
from vitlab.report.pandoc import render_pages, render_pdf
from vitlab.report.quarto import render_with_quarto
from vitlab.report.settings import read_settings
from vitlab.runs import reports_dir

__all__ = ["render_report"]


def render_report(batches: list[str] | None = None, output: Path | str | None = None) -> dict[str, Path]:
    """Render these batches (default: all) to `output` (default: reports/_site); the paths of the first page and of the PDF.

    The gathered notebooks, and what is made on the way, stay in reports/_build. ValueError: unknown batch, or none at all.
    RuntimeError: Quarto failed; the message holds its output.
    """
    settings = read_settings()
    report = gather_report(batches)
    build = reports_dir() / "_build"
    site = Path(output) if output else reports_dir() / "_site"
    shutil.rmtree(build, ignore_errors=True)
    if not output:
        shutil.rmtree(site, ignore_errors=True)
    for folder in (build / "site", build / "pdf", site):
        folder.mkdir(parents=True, exist_ok=True)
    for page in report.pages:
        nbformat.write(page_notebook(page, for_web(page.notebook).cells), build / "site" / f"{page.slug}.ipynb")
    nbformat.write(combine_pages(report), build / "pdf" / "report.ipynb")
    quarto = shutil.which("quarto")
    if quarto:
        return render_with_quarto(quarto, report, settings, build, site)
    return {"html": render_pages(report, settings, build, site), "pdf": render_pdf(report, settings, build, site)}

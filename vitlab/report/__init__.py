"""From executed notebooks to one HTML site and one PDF: Quarto where it is installed, else pandoc
and Typst from wheels.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat

from vitlab.files import write_json
from vitlab.places import reports_dir
from vitlab.report.checks import MAX_PAGE_MB, check_report
from vitlab.report.combine import combine_pages
from vitlab.report.findings import ReportRefused, mark_report, write_findings
from vitlab.report.gather import gather_report, guide_pages, page_notebook
from vitlab.report.pandoc import render_pages, render_pdf
from vitlab.report.paper import has_answer, write_paper
from vitlab.report.quarto import render_with_quarto
from vitlab.report.settings import read_settings

__all__ = ["ReportRefused", "render_report"]


def render_report(
    batches: list[str] | None = None,
    output: Path | str | None = None,
    *,
    strict: bool = False,
    notebooks: bool = False,
    max_page_mb: float = MAX_PAGE_MB,
) -> dict[str, Path]:
    """Render these batches (default: all) to `output` (default: reports/_site); paths of the first
    page, the PDF, the findings.

    Findings are what keeps a report from being published: see `vitlab.report.checks`. The pages
    have a mark at each of them; `read_findings(paths["findings"])` gives them. strict: with any,
    nothing is published, the former report stays, and ReportRefused has the findings. notebooks:
    also write report-notebooks.pdf, all notebooks with their code. report.pdf holds chosen sections
    without code where notebook 08 is in the batch, and all notebooks elsewhere. max_page_mb:
    the largest page, in 10^6 bytes. The gathered notebooks, and what is made on the way, stay in
    reports/_build. ValueError: unknown batch, or none at all. Where
    Quarto fails, a warning holds its output, and pandoc and Typst render the report."""
    settings = read_settings()
    report = gather_report(batches)
    report = replace(report, pages=(*report.pages, *guide_pages(report.pages)))
    findings = check_report(report, settings, max_page_mb)
    build = reports_dir() / "_build"
    shutil.rmtree(build, ignore_errors=True)
    write_findings(build / "findings.json", findings)
    if strict and findings:
        raise ReportRefused(findings)
    report = mark_report(report, findings)
    ready = build / "ready"
    for folder in (build / "site", build / "pdf", ready):
        folder.mkdir(parents=True, exist_ok=True)
    for page in report.pages:
        nbformat.write(page_notebook(page, report.date), build / "site" / f"{page.slug}.ipynb")
    papers = {"report": write_paper(report) if has_answer(report) else combine_pages(report)}
    if notebooks:
        papers["report-notebooks"] = combine_pages(report)
    for name, notebook in papers.items():
        nbformat.write(notebook, build / "pdf" / f"{name}.ipynb")
    quarto = shutil.which("quarto")
    if not (quarto and _try_quarto(quarto, report, settings, build, ready, list(papers))):
        render_pages(report, settings, build, ready)
        for name in papers:
            render_pdf(report, settings, build, ready, name)
    write_json(ready / "pages.json", {page.path: f"{page.slug}.html" for page in report.pages})
    site = _publish(ready, output)
    return {
        "html": site / "index.html",
        "pdf": site / "report.pdf",
        "findings": build / "findings.json",
    }


def _try_quarto(quarto: str, *arguments) -> bool:
    """Whether Quarto rendered the report. Offline, it fails for want of a package of Typst."""
    try:
        render_with_quarto(quarto, *arguments)
    except RuntimeError as error:
        text = "Quarto failed, so pandoc and Typst render the report: %s"
        logging.getLogger(__name__).warning(text, error)
        return False
    return True


def _publish(ready: Path, output: Path | str | None) -> Path:
    """Put the finished pages into the folder given, else in place of the site there."""
    site = Path(output) if output else reports_dir() / "_site"
    if not output:
        shutil.rmtree(site, ignore_errors=True)
    if site.exists():  # given, or open in a program that does not let go of it
        shutil.copytree(ready, site, dirs_exist_ok=True)
    else:
        site.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(ready, site)
    return site

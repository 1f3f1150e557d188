"""All checks of a report, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitlab.errors import UserError
from vitlab.report.gather import Report
from vitlab.report.guards.execution import check_execution
from vitlab.report.guards.figures import check_figures
from vitlab.report.guards.finding import Finding
from vitlab.report.guards.outdated import check_outdated
from vitlab.report.guards.references import check_references
from vitlab.report.guards.size import check_size
from vitlab.report.guards.unfinished import check_unfinished
from vitlab.report.settings import Settings

MAX_PAGE_MB = 10.0  # the library for interactive figures alone is 4.8


class ReportRefused(Exception):
    """A report that is not fit to publish. findings: why."""

    def __init__(self, findings: Sequence[Finding]):
        self.findings = tuple(findings)
        super().__init__(f"the report is not fit to publish for {len(self.findings)} reasons")


def check_report(
    report: Report, settings: Settings, max_page_mb: float = MAX_PAGE_MB
) -> list[Finding]:
    """What keeps a report from being published, in the order of its pages. ValueError for a limit
    that is not above 0.
    """
    if not max_page_mb > 0:
        raise UserError(f"the largest page may be any number of MB above 0, not {max_page_mb:g}")
    findings = [
        *check_unfinished(report.pages),
        *check_outdated(report.pages),
        *(
            finding
            for page in report.pages
            for finding in (*check_execution(page), *check_figures(page))
        ),
        *check_references(report.pages, settings.bibliography),
        *check_size(report.pages, max_page_mb),
    ]
    order = {page.slug: number for number, page in enumerate(report.pages)}
    return sorted(
        findings, key=lambda finding: (order.get(finding.page, len(order)), finding.cell or 0)
    )


def check_files(site: Path, max_page_mb: float) -> list[Finding]:
    """The same for pages as they were rendered, to the byte."""
    findings = []
    for file in sorted(site.glob("*.html")):
        size = file.stat().st_size
        if size > 1e6 * max_page_mb:
            message = f"this page weighs {size / 1e6:.1f} MB, and the limit is {max_page_mb:g} MB"
            findings.append(Finding("size", file.name, message, page=file.stem))
    return findings

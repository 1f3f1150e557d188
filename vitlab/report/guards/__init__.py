"""What keeps a report from being published: notebooks out of date, cells that failed, figures
without words, dead references.

One module a family of checks; each gives findings that say where. `check_report` asks them all,
`mark_report` puts a visible mark at each place, so that a page that is rendered nevertheless says
so itself."""

from vitlab.report.guards.check import MAX_PAGE_MB, ReportRefused, check_files, check_report
from vitlab.report.guards.finding import (
    Finding,
    count_problems,
    findings_table,
    print_findings,
    read_findings,
    write_findings,
)
from vitlab.report.guards.marks import mark_report

__all__ = [
    "MAX_PAGE_MB",
    "Finding",
    "ReportRefused",
    "check_files",
    "check_report",
    "count_problems",
    "findings_table",
    "mark_report",
    "print_findings",
    "read_findings",
    "write_findings",
]

"""The verdict as JUnit XML, which autograders and CI systems read: one test case for each
result.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from vitlab.runs import atomic
from vitlab.submission.opened import FAIL, SKIPPED
from vitlab.submission.verify import Verdict

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(verdict: Verdict, path: Path | str) -> None:
    """Write the results; classname is `verify.<check>`, name the file, run or question. A check's
    time is with its first case.
    """
    counts = {
        status: sum(result.status == status for result in verdict.results)
        for status in (FAIL, SKIPPED)
    }
    total = f"{sum(verdict.seconds.values()):.3f}"
    numbers = {
        "tests": str(len(verdict.results)),
        "failures": str(counts[FAIL]),
        "errors": "0",
        "time": total,
    }
    suites = ElementTree.Element("testsuites", numbers)
    suite = ElementTree.SubElement(
        suites, "testsuite", {"name": "vitlab verify", **numbers, "skipped": str(counts[SKIPPED])}
    )
    seconds = dict(verdict.seconds)
    for result in verdict.results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {
                "classname": f"verify.{result.check}",
                "name": _clean(result.subject or result.check),
                "time": f"{seconds.pop(result.check, 0.0):.3f}",
            },
        )
        if result.status == FAIL:
            ElementTree.SubElement(
                case, "failure", {"message": _clean(result.detail)}
            ).text = _clean(result.detail)
        elif result.status == SKIPPED:
            ElementTree.SubElement(case, "skipped", {"message": _clean(result.detail)})
        else:
            ElementTree.SubElement(case, "system-out").text = _clean(result.detail)
    ElementTree.indent(suites, " ")
    with atomic(Path(path)) as temporary:
        ElementTree.ElementTree(suites).write(temporary, encoding="utf-8", xml_declaration=True)


def _clean(text: str) -> str:
    """Without characters that XML does not allow; some of these names come from the bundle."""
    return NOT_XML.sub("?", text)

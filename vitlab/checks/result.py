"""What a check says, the list of all checks, and how results are shown, silenced and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.files import read_json, write_json
from vitlab.markup import escape
from vitlab.registry import unknown
from vitlab.runs import Run

PASS, WARN, FAIL, NOT_APPLICABLE = "pass", "warn", "fail", "not applicable"
SILENCED = "silenced"
MARKS = {  # in the order of severity: sign and colour
    FAIL: ("✗", "#b3261e"),
    WARN: ("!", "#8a5a00"),
    SILENCED: ("○", "#56607a"),
    PASS: ("✓", "#17703a"),
    NOT_APPLICABLE: ("–", "#56607a"),
}
ORDER = tuple(MARKS)


@dataclass(frozen=True)
class CheckResult:
    """id: such as VL002. status: pass, warn, fail, not applicable, or silenced. evidence: one
    sentence with its numbers. numbers: the same for programs. advice: what to do, "" where nothing
    is. reason: why it was silenced.
    """

    id: str
    title: str
    status: str
    evidence: str
    numbers: dict[str, Any] = field(default_factory=dict)
    advice: str = ""
    reason: str = ""

    @property
    def link(self) -> str:
        """The section of the guide that explains the check."""
        return f"reports/guide/0_checks.md#{self.id.lower()}"


@dataclass(frozen=True)
class Check:
    """What a check looks at, when it warns or fails, and what to do then."""

    title: str
    rule: str
    advice: str


CHECKS: dict[str, Check] = {}
GUIDE = "../reports/guide/0_checks.md"  # from a notebook


def check(id: str, title: str, *, rule: str, advice: str) -> Callable:
    """Register a function as a check. It returns (status, evidence, numbers)."""

    def register(function: Callable[..., tuple]) -> Callable[..., CheckResult]:
        if id in CHECKS:
            raise ValueError(f"{id} is already registered")
        CHECKS[id] = Check(title, rule, advice)

        def run(*args, **kwargs) -> CheckResult:
            status, evidence, *numbers = function(*args, **kwargs)
            given = dict(*numbers)
            return CheckResult(
                id, title, status, evidence, given, advice if status in (WARN, FAIL) else ""
            )

        run.__doc__, run.__name__ = function.__doc__, function.__name__
        return run

    return register


def silence(results: Sequence[CheckResult], ignored: str = "") -> list[CheckResult]:
    """The results with those named in `ignored` silenced, sorted by severity, then by id.

    ignored: "VL002=the copies are wanted; VL007=a pilot study". UserError for an unknown id and for
    one without a reason."""
    reasons = {}
    for part in filter(None, map(str.strip, ignored.split(";"))):
        id, _, reason = (word.strip() for word in part.partition("="))
        if id not in CHECKS:
            raise UserError(unknown("check", id, sorted(CHECKS)))
        if not reason:
            raise UserError(f"{id} is ignored without a reason; write {id}=REASON")
        reasons[id] = reason
    changed = [
        replace(result, status=SILENCED, reason=reasons[result.id], advice="")
        if result.id in reasons and result.status in (WARN, FAIL)
        else result
        for result in results
    ]
    return sorted(changed, key=lambda result: (ORDER.index(result.status), result.id))


def describe_checks(results: Sequence[CheckResult], guide: str = "") -> str:
    """A Markdown list: each check with its evidence and its advice; the last line names those that
    do not apply. guide: the path of the guide's page; "" links within the same page.
    """

    def start(status: str) -> str:
        mark, colour = MARKS[status]
        return f'- <b style="color: {colour}">{mark} {status}</b>'

    def link(result: CheckResult) -> str:
        return f"[{result.id}]({guide}#{result.id.lower()})"

    lines = []
    for result in results:
        if result.status == NOT_APPLICABLE:
            continue
        line = f"{start(result.status)} {link(result)} **{result.title}:**"
        line += f" {escape(result.evidence)}."
        line += f" *{result.advice}.*" if result.advice else ""
        line += f" Silenced: {escape(result.reason)}." if result.reason else ""
        lines.append(line)
    if rest := [link(result) for result in results if result.status == NOT_APPLICABLE]:
        lines.append(f"{start(NOT_APPLICABLE)} {', '.join(rest)}")
    return "\n".join(lines)


def describe_run_checks(runs: Sequence[Run], guide: str = "") -> list[str]:
    """Markdown for each run of which a check did not pass, from the files `checks_NN.json` that the
    notebooks wrote.
    """
    texts = []
    for run in runs:
        found = [read_checks(path)[0] for path in sorted(run.path.glob("checks_*.json"))]
        results = silence([result for part in found for result in part])
        results = [result for result in results if result.status in (FAIL, WARN)]
        if results:
            name = escape(f"{run.title}, seed {run.draw}")
            texts.append(f"**{name}**\n\n{describe_checks(results, guide)}")
    return texts


def explain_checks(results: Sequence[CheckResult]) -> str:
    """Markdown: a heading for each of these checks, with its rule and its advice."""
    parts = [
        f"### {id} {CHECKS[id].title} {{#{id.lower()}}}\n\n{CHECKS[id].rule}. {CHECKS[id].advice}."
        for id in sorted({result.id for result in results})
    ]
    return "\n\n".join(parts)


def write_checks(path: Path, results: Sequence[CheckResult], **facts: Any) -> None:
    """Write checks.json: the results with their links, and further facts such as the verdict."""
    entries = [{**asdict(result), "link": result.link} for result in results]
    write_json(path, {**facts, "checks": entries})


def read_checks(path: Path) -> tuple[list[CheckResult], dict[str, Any]]:
    """What `write_checks` wrote: the results and the facts."""
    content = read_json(path)
    names = [field.name for field in fields(CheckResult)]
    results = [
        CheckResult(**{name: entry[name] for name in names}) for entry in content.pop("checks")
    ]
    return results, content

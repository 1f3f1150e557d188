"""A table of runs that stays readable with hundreds of them: bounded in length, filtered by words,
details one click away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate
from pathlib import Path
from string import Template
from uuid import uuid4

import pandas as pd

from vitlab.errors import UserError
from vitlab.markup import escape as escape_markdown
from vitlab.plots.many_runs import BY_RECIPE, LOW_IS_BEST, name_column
from vitlab.registry import unknown

FRAGMENT = Path(__file__).with_name("runs_table.html")
ON_PAPER = 20  # rows where nothing can be folded
MOST_ROWS = 200
LIMIT = 1_500_000  # bytes of rows: a page has other things too


@dataclass(frozen=True)
class RunsTable:
    """HTML to filter, sort and unfold, and a short Markdown table for paper. Reports know it by the
    class `vitlab-viewer`.
    """

    html: str = field(repr=False)
    markdown: str = field(repr=False)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self.html, "text/markdown": self.markdown, "text/plain": repr(self)}


def iplot_runs_table(table: pd.DataFrame, metric: str, columns: Sequence[str]) -> RunsTable:
    """The runs by their score, the best first, then those without one, with these columns beside
    it.

    table: as `vitlab.run_tables.run_table` gives it. At most 200 runs and 1.5 MB are shown; the
    others are counted. A click on a run unfolds all that is known of it. UserError for an unknown
    column."""
    for name in (metric, *columns):
        if name not in table:
            raise UserError(unknown("column", name, [str(column) for column in table.columns]))
    runs = _order(table, metric)
    rows = [_write_row(run, metric, columns) for run in runs.head(MOST_ROWS).to_dict("records")]
    rows = [row for row, end in zip(rows, accumulate(map(len, rows)), strict=True) if end <= LIMIT]
    names = ["run", metric, *columns, "status"]
    heads = [name_column(name) for name in names]
    html = Template(FRAGMENT.read_text(encoding="utf-8")).substitute(
        name=f"vitlab-{uuid4()}",
        head="".join(
            _write_head(runs.get(name), head) for name, head in zip(names, heads, strict=True)
        ),
        body="\n".join(rows),
        left=f", {len(runs) - len(rows)} more are not shown" if len(runs) > len(rows) else "",
    )
    return RunsTable(html, _write_markdown(runs, metric, columns, heads))


def _order(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    best_low = bool(LOW_IS_BEST.search(metric))
    return table.sort_values(
        metric, ascending=best_low, na_position="last", kind="stable", ignore_index=True
    )


def _write_head(column: pd.Series, head: str) -> str:
    side = ' class="num"' if pd.api.types.is_numeric_dtype(column) else ""
    return f'<th scope="col"{side}><button type="button">{escape(head)}</button></th>'


def _write_row(run: dict, metric: str, columns: Sequence[str]) -> str:
    name, status = run["run"].rpartition("/")[2], run["status"]
    cells = [
        f"<td><details><summary>{escape(name)}</summary></details></td>",
        _write_cell(run[metric], _score(run, metric)),
    ]
    cells += [_write_cell(run[column], _text(run[column])) for column in columns]
    cells.append(f'<td class="{"" if status == "done" else "bad"}">{escape(status)}</td>')
    known = [("problem", run["problem"])] if run["problem"] else []
    known += [(label, _text(value)) for label, value in _details(run)]
    details = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>" for label, text in known
    )
    return (
        f'<tr class="run">{"".join(cells)}</tr>\n<tr class="more"><td'
        f' colspan="{len(cells)}"><dl>{details}</dl></td></tr>'
    )


def _details(run: dict):
    """All that is known of a run, without what is empty and without the intervals of its
    metrics.
    """
    for name, value in run.items():
        rest = name.partition(".")[2]
        if (
            not _known(value)
            or name in ("run", "problem", "status", "draw")
            or rest in ("dataset", "model", "seed", "variant")
        ):
            continue
        if rest.endswith((".low", ".high")):
            continue
        yield name_column(name), value


def _write_cell(value, text: str) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    data = (
        f' data-value="{value:.6g}"'
        if number and _known(value)
        else ' data-value=""'
        if not _known(value)
        else ""
    )
    return f"<td{' class=num' if number else ''}{data}>{escape(text)}</td>"


def _write_markdown(runs, metric, columns, heads) -> str:
    sides = ["---:" if pd.api.types.is_numeric_dtype(runs[name]) else ":---" for name in columns]
    rows = [list(map(escape_markdown, heads)), [":---", "---:", *sides, ":---"]]
    for run in runs.head(ON_PAPER).to_dict("records"):
        texts = [
            run["run"].rpartition("/")[2],
            _score(run, metric),
            *(_text(run[column]) for column in columns),
            run["status"],
        ]
        rows.append(list(map(escape_markdown, texts)))
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if len(runs) > ON_PAPER:
        text += (
            f"\n\nThe first {ON_PAPER} of {len(runs)} runs; the web page has more of them, with all"
            " that is known of each."
        )
    return text + "\n"


def _score(run: dict, metric: str) -> str:
    if not _known(run[metric]):
        return "-"
    low, high = run.get(f"{metric}.low"), run.get(f"{metric}.high")
    return f"{run[metric]:.3f}" + (
        f" [{low:.3f}, {high:.3f}]" if _known(low) and _known(high) else ""
    )


def _known(value) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and pd.isna(value))


def _text(value) -> str:
    if not _known(value):
        return BY_RECIPE
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e12 else f"{value:.4g}"

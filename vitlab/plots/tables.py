"""Tables for readers: plain words for headers, few digits, a value and its interval in one cell;
and the table of all runs.
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

from vitlab.extremes import keep_extremes
from vitlab.markup import escape as escape_markdown, pipe_table
from vitlab.plots.runs import BY_RECIPE, name_column, order_runs
from vitlab.plots.style import readable

GAP = "–"  # what is not there
FRAGMENT = Path(__file__).with_name("runs_table.html")
ROWS_ON_PAPER = 20  # where nothing can be folded
MAX_ROWS = 200
MAX_BYTES = 1_500_000  # of rows: a page has other things too


def present(
    table: pd.DataFrame, digits: int = 3, columns: str | None = None, extremes: str | None = None
) -> pd.DataFrame:
    """A copy for display: `value, low, high` become one column such as 0.912 [0.881, 0.940]; `mean,
    spread` become 0.912 ± 0.012.

    `difference` takes in low and high as well, and any column `x` takes in `x_low` and `x_high`; a
    p-value too small for the digits is "< 0.001". columns: the column whose values
    become the headers (`metric`, for one row a model or slice instead of one a number); what is not
    there is "–". Empty notes go; whole numbers from 10,000 on get commas; the first column becomes
    the row names unless it holds numbers. extremes: a column with numbers; of more than a dozen
    rows, those with its lowest and its highest values are shown."""
    total, table = len(table), table if extremes is None else keep_extremes(table, extremes)
    shown = table.copy()
    for name in {"metric", "method", "measure", "importance"} & set(shown):
        if not pd.api.types.is_numeric_dtype(shown[name]):
            shown[name] = shown[name].map(readable)
    for name in list(shown):
        ends = [f"{name}_low", f"{name}_high"]
        if name in ("value", "difference") and {"low", "high"} <= set(shown):
            ends = ["low", "high"]
        if set(ends) <= set(shown):
            rows = shown[[name, *ends]].to_numpy(float)
            shown[name] = [_interval(*row, digits) for row in rows]
            shown = shown.drop(columns=ends)
    for name in {"p", "p_holm"} & set(shown):
        shown[name] = [_probability(p, digits) for p in shown[name]]
    if {"mean", "spread"} <= set(shown):
        shown["mean"] = [_spread(*row, digits) for row in shown[["mean", "spread"]].to_numpy(float)]
        shown = shown.drop(columns=["spread", "low", "high"], errors="ignore").rename(
            columns={"mean": "value"}
        )
    if "note" in shown and (shown["note"] == "").all():
        shown = shown.drop(columns="note")
    if columns is not None:
        order = shown[columns].unique()
        rows = [name for name in shown.columns if name not in (columns, "value", "note")]
        shown = shown.pivot_table(
            index=rows, columns=columns, values="value", aggfunc="first", sort=False
        )[order].fillna(GAP)
        shown = shown.rename_axis(columns=None).reset_index()
    shown = shown.apply(_write_numbers, digits=digits).rename(columns=readable)
    if len(table) < total:
        words = [f"… {total - len(table):,} more", *["…"] * (shown.shape[1] - 1)]
        gap = pd.DataFrame([words], columns=shown.columns)
        half = len(table) - len(table) // 2
        shown = pd.concat([shown.iloc[:half], gap, shown.iloc[half:]])
    elif pd.api.types.is_numeric_dtype(table[table.columns[0]]):
        return shown.set_axis([""] * len(shown))
    # the name of the first column stands in the row of the headers
    first = shown.columns[0]
    return shown.set_index(first).rename_axis(index=None, columns=first)


def _write_numbers(column: pd.Series, digits: int) -> pd.Series:
    """Rounded, without a negative zero; as texts where there are gaps or thousands."""
    if pd.api.types.is_extension_array_dtype(column) and pd.api.types.is_numeric_dtype(column):
        column = column.astype("float64")  # its gaps are NaN then
    if pd.api.types.is_integer_dtype(column):
        large = column.max() >= 10_000 and column.name != "seed"
        return column.map("{:,}".format) if large else column
    if not pd.api.types.is_float_dtype(column):
        return column
    # by the decimal digits, as texts are rounded
    rounded = column.map(lambda value: round(value, digits)) + 0.0
    if not rounded.isna().any():
        return rounded
    places = 0 if (rounded.dropna() % 1 == 0).all() else digits
    return rounded.map(lambda value: GAP if pd.isna(value) else f"{value:.{places}f}").astype(
        object
    )


def _interval(value: float, low: float, high: float, digits: int) -> str:
    if pd.isna(value):
        return GAP
    ends = "" if pd.isna(low) else f" [{_fix(low, digits)}, {_fix(high, digits)}]"
    return _fix(value, digits) + ends


def _fix(value: float, digits: int) -> str:
    return f"{round(float(value), digits) + 0.0:.{digits}f}"  # no negative zero


def _probability(p: float, digits: int) -> str:
    """A p-value, which is never 0."""
    if pd.isna(p):
        return GAP
    return f"{p:.{digits}f}" if p >= 0.5 * 10**-digits else f"< {10**-digits:.{digits}f}"


def _spread(mean: float, spread: float, digits: int) -> str:
    if pd.isna(mean):
        return GAP
    return _fix(mean, digits) + ("" if pd.isna(spread) else f" ± {_fix(spread, digits)}")


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
    scored = order_runs(table, metric, columns)
    runs = pd.concat([scored, table[pd.to_numeric(table[metric], errors="coerce").isna()]])
    names = ["run", metric, *columns, "status"]
    heads = [name_column(name) for name in names]
    numbers = [pd.api.types.is_numeric_dtype(table[name]) for name in names]
    head = "".join(
        f'<th scope="col"{_side(number)}><button type="button">{escape(text)}</button></th>'
        for text, number in zip(heads, numbers, strict=True)
    )
    rows = [_write_run(run, names, numbers) for run in runs.head(MAX_ROWS).to_dict("records")]
    rows = [
        row for row, end in zip(rows, accumulate(map(len, rows)), strict=True) if end <= MAX_BYTES
    ]
    left = f", {len(runs) - len(rows)} more are not shown" if len(runs) > len(rows) else ""
    html = Template(FRAGMENT.read_text(encoding="utf-8")).substitute(
        name=f"vitlab-{uuid4()}", head=head, body="\n".join(rows), left=left
    )
    short = [
        [escape_markdown(_cell(run, name)) for name in names]
        for run in runs.head(ROWS_ON_PAPER).to_dict("records")
    ]
    text = "\n".join(pipe_table([escape_markdown(head) for head in heads], short))
    if len(runs) > ROWS_ON_PAPER:
        text += f"\n\nThe first {ROWS_ON_PAPER} of {len(runs)} runs; the web page has more."
    return RunsTable(html, text + "\n")


def _write_run(run: dict, names: Sequence[str], numbers: Sequence[bool]) -> str:
    """A row of HTML, and below it a folded row with all that is known of the run."""
    cells = []
    for name, number in zip(names, numbers, strict=True):
        text, value = escape(_cell(run, name)), run[name]
        if name == "run":
            text = f"<details><summary>{text}</summary></details>"
        data = f' data-value="{value if _known(value) else ""}"' if number else ""
        bad = ' class="bad"' if name == "status" and value != "done" else ""
        cells.append(f"<td{_side(number)}{data}{bad}>{text}</td>")
    known = {name_column(name): value for name, value in run.items() if _is_detail(name, value)}
    details = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_text(value))}</dd></div>"
        for name, value in known.items()
    )
    return (
        f'<tr class="run">{"".join(cells)}</tr>\n<tr class="more"><td'
        f' colspan="{len(cells)}"><dl>{details}</dl></td></tr>'
    )


def _is_detail(name: str, value) -> bool:
    """Neither empty, nor the end of an interval, nor part of the run's name."""
    last = name.rpartition(".")[2]
    return _known(value) and last not in (
        *("low", "high", "run", "status", "draw"),
        *("dataset", "model", "seed", "variant"),
    )


def _side(number: bool) -> str:
    return ' class="num"' if number else ""


def _cell(run: dict, name: str) -> str:
    if name == "run":
        return run["run"].rpartition("/")[2]
    if not _known(run[name]):
        return BY_RECIPE if name.startswith("parameters.") else "-"
    low, high = run.get(f"{name}.low"), run.get(f"{name}.high")
    return f"{run[name]:.3f} [{low:.3f}, {high:.3f}]" if _known(low) else _text(run[name])


def _known(value) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and pd.isna(value))


def _text(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e12 else f"{value:.4g}"

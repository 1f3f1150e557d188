"""Names and titles that users chose, as Markdown and HTML that shows them exactly as they are."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

# metadata of an output that is shown in Jupyter and left out of reports
JUPYTER_ONLY = {"vitlab": "jupyter only"}
# What pandoc, Quarto, GitHub or JupyterLab may read as markup. Underscores within a word are not
# among it.
MARKUP = re.compile(
    # emphasis, code, links, HTML, tables, citations, formulas, superscript, quotes
    r"""[\\`*\[\]<>{}|#@$~^"']"""
    # entities, underscores at the edge of a word, dashes, an ellipsis
    r"|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|--+|\.\.\.+"
    # lists, definitions and underlined headings; blanks at the ends
    r"|^[-+:=%\s]|\s$|(?<=^\()\w+[.)]|^\w+[.)](?=\s|$)"
)


def escape(text: object) -> str:
    """The text as inline Markdown without markup: special characters become entities, line breaks
    spaces.

    >>> escape("*star* @home")
    '&#42;star&#42; &#64;home'
    """
    line = re.sub(r"[\r\n\t\f\v]+", " ", str(text))
    return MARKUP.sub(
        lambda match: "".join(char if char.isalnum() else f"&#{ord(char)};" for char in match[0]),
        line,
    )


def code(text: object) -> str:
    """The text as a code span."""
    line = " ".join(str(text).split())
    ticks = "`" * (
        1 + max((len(run) for run in line.split() if set(run) == {"`"}), default=int("`" in line))
    )
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}" if line else "(nothing)"


def html_facts(title: str, facts: Mapping[str, object]) -> str:
    """A heading and a table of names and values as HTML; empty values are left out."""
    rows = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value not in ("", None)
    ]
    return f"<b>{html.escape(title)}</b><table>{''.join(rows)}</table>"


def list_some(names: Sequence[object], most: int = 20) -> str:
    """The names, escaped; of more than `most`, the first ones and the number of others."""
    shown = ", ".join(map(escape, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def pipe_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; cells are Markdown; all columns but the first align right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]

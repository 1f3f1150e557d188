"""Pandoc's Markdown: fenced code, raw HTML, call-outs, headings; the `#| key: value` options of
code cells; and the call of pandoc itself.
"""

from __future__ import annotations

import itertools
import logging
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import pypandoc
import yaml
from nbformat import NotebookNode

from vitlab.errors import UserError

FENCE = re.compile(r"\s*(```+|~~~+)")
WORD = re.compile(r"[\w-]+")  # a mark such as `#| answer`, which has no value


def code_block(text: str, classes: str) -> str:
    """Text as a fenced code block with these attributes."""
    fence = _fence(text)
    return f"{fence} {{{classes}}}\n{text.rstrip()}\n{fence}\n"


def raw_html(html: str) -> str:
    """HTML as a raw block."""
    fence = _fence(html)
    return f"{fence}{{=html}}\n{html.strip()}\n{fence}\n"


def callout(kind: str, title: str, text: str) -> str:
    """A call-out in Quarto's Markdown. kind: note, tip, warning, important or caution."""
    title = title.replace("\\", "\\\\").replace('"', '\\"')
    return f'::: {{.callout-{kind} title="{title}"}}\n{text.strip()}\n:::\n'


def find_headings(markdown: str) -> list[tuple[int, int]]:
    """Line number and level of every heading, code left out: a comment is no heading."""
    found, fence = [], ""
    for number, line in enumerate(markdown.split("\n")):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        elif not fence and (heading := re.match(r"(#{1,6}) ", line)):
            found.append((number, len(heading[1])))
    return found


def split_sections(cells: list[NotebookNode]) -> list[tuple[str, list[NotebookNode]]]:
    """The title and the cells of each section of level 2; "" for what comes before the first. A
    Markdown cell that holds a heading within is cut there.
    """
    sections = [("", [])]
    for cell in cells:
        starts = [0]
        if cell.cell_type == "markdown":
            lines = cell.source.split("\n")
            starts += [line for line, level in find_headings(cell.source) if level == 2]
        for start, end in itertools.pairwise([*starts, None]):
            part = cell
            if cell.cell_type == "markdown":
                text = "\n".join(lines[start:end]).strip()
                if not text:
                    continue
                part = NotebookNode(cell)
                part.source = text
                if start:
                    part.id = f"{cell.id}-{start}"
                if text.startswith("## "):
                    title = text.partition("\n")[0][3:]
                    sections.append((re.sub(r"\s*\{[^}]*\}\s*$", "", title).strip(), []))
            sections[-1][1].append(part)
    return sections


def shift_headings(markdown: str) -> str:
    """Every heading one level down."""
    lines = markdown.split("\n")
    for number, _ in find_headings(markdown):
        lines[number] = f"#{lines[number]}"
    return "\n".join(lines)


def run_pandoc(*arguments: str, text: str = "") -> str:
    """What pandoc makes of the text; RuntimeError has its message. Its warnings are logged.

    pypandoc itself would ask for version and formats each time, which takes longer."""
    done = subprocess.run(
        [pypandoc.get_pandoc_path(), *arguments],
        input=text,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(
            f"pandoc {' '.join(arguments)} ended with code"
            f" {done.returncode}:\n{done.stderr.strip()}"
        )
    if done.stderr.strip():
        logging.getLogger(__name__).warning("%s: %s", arguments[-1], done.stderr.strip())
    return done.stdout


def read_options(source: str) -> tuple[dict, str]:
    """The `#| key: value` options at the head of a code cell, and the code below them; a bare word
    is a key without a value. UserError where they are not YAML.
    """
    lines = source.splitlines()
    head = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    entries = [line[2:].removeprefix(" ") for line in lines[:head]]
    text = "\n".join(f"{entry}:" if WORD.fullmatch(entry) else entry for entry in entries)
    try:
        options = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        options = None
    if not isinstance(options, dict):
        raise UserError(
            "cell options must be `#| key: value` lines in YAML, not\n" + "\n".join(lines[:head])
        )
    return options, "\n".join(lines[head:]).strip("\n")


def write_options(options: dict, code: str) -> str:
    """The source of a code cell with these options; the reverse of `read_options`."""
    head = ""
    if options:
        head = yaml.safe_dump(options, sort_keys=False, allow_unicode=True, width=10_000)
    return "\n".join([*(f"#| {line}" for line in head.splitlines()), code])


def cell_label(cell: Mapping[str, Any]) -> str:
    """The `#| label` of a code cell, "" where there is none."""
    if cell["cell_type"] != "code":
        return ""
    try:
        return str(read_options(cell["source"])[0].get("label", ""))
    except UserError:
        return ""


def _fence(text):
    """A fence longer than any inside."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))

"""Pieces of pandoc's Markdown: fenced code, raw HTML, call-outs, headings; and the call of pandoc
itself.
"""

from __future__ import annotations

import logging
import re
import subprocess

import pypandoc

FENCE = re.compile(r"\s*(```+|~~~+)")


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


def shift_headings(markdown: str) -> str:
    """Every heading one level down."""
    lines = markdown.split("\n")
    for number, _ in find_headings(markdown):
        lines[number] = f"#{lines[number]}"
    return "\n".join(lines)


def run_pandoc(*arguments: str, text: str = "") -> str:
    """What pandoc makes of the text; RuntimeError with its message where it fails. Its warnings are
    logged.

    The program comes with pypandoc_binary. Called directly: pypandoc asks it for version and
    formats before each conversion, which takes longer than the conversion."""
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


def _fence(text):
    """A fence longer than any inside."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))

"""All pages as the chapters of one notebook, for the PDF: labels, footnotes and links made
unique.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook, new_raw_cell

from vitlab.markup import escape
from vitlab.report.clean import KERNEL, for_paper
from vitlab.report.gather import Report
from vitlab.report.markdown import find_headings, read_options, shift_headings, write_options

IDENTIFIER = re.compile(r"(@|\{#|\(#)([A-Za-z][\w-]*)")
FOOTNOTE = re.compile(r"\[\^([^\]\s]+)\]")
PAGE_LINK = re.compile(r"\]\(([\w-]+)\.ipynb(?:#[^)]*)?\)")


def combine_pages(report: Report) -> NotebookNode:
    """One notebook of the report. Later copies of a notebook show only parameters that differ."""
    chapters, first = [], {}
    for page in (page for page in report.pages if page.paper):
        cells = []
        origin = first.setdefault(page.stem, page)
        chapter = nbformat.from_dict(page.notebook).cells
        if origin is not page and any(cell.cell_type == "code" for cell in chapter):
            shared = (
                "*Code, and parameters that are not shown, are those of"
                f" [{origin.title_markdown}](#{origin.slug}).*"
            )
            cells.append(new_markdown_cell(shared))
            _hide_code(chapter, origin.notebook.cells)
        chapters.append((page.title_markdown, page.slug, cells + chapter))
    return combine_chapters(report, chapters)


def combine_chapters(
    report: Report, chapters: Sequence[tuple[str, str, list[NotebookNode]]], flow: bool = False
) -> NotebookNode:
    """One notebook of chapters: title (Markdown), anchor, cells. Labels are made unique. flow:
    chapters follow each other without a new page.
    """
    front = {
        "title": escape(report.title),
        "subtitle": escape(report.subtitle),
        "author": escape(report.author),
        "abstract": escape(report.abstract),
        "date": report.date,
        "flow": flow,
    }
    header = "\n".join(
        f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items() if value
    )
    cells = [new_raw_cell(f"---\n{header}\n---")]
    for title, slug, chapter in chapters:
        cells.append(new_markdown_cell(f"# {title} {{#{slug}}}"))
        own = for_paper(new_notebook(cells=chapter)).cells
        _rename(own, slug)
        cells += own
    for number, cell in enumerate(cells, start=1):
        cell.id = f"cell-{number}"
    return new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "flow": flow})


def _hide_code(cells, shown):
    """Leave of the code only the lines of parameters that differ from those shown before."""
    known = {line for cell in shown if _is_unfolded(cell) for line in cell.source.splitlines()}
    for cell in cells:
        if cell.cell_type == "code":
            options, code = read_options(cell.source)
            lines = code.splitlines() if _is_unfolded(cell) else []
            kept = [line for line in lines if line not in known]
            cell.source = write_options({**options, "echo": bool(kept)}, "\n".join(kept) or code)


def _is_unfolded(cell):
    """Whether it is code that is always visible, as parameters are."""
    return cell.cell_type == "code" and read_options(cell.source)[0].get("code-fold") is False


def _rename(cells, slug):
    """Give the labels, footnotes and anchors of a chapter unique names, also in references."""
    options = [read_options(cell.source)[0] for cell in cells if cell.cell_type == "code"]
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    own = {str(item["label"]) for item in options if "label" in item}
    for text in prose:
        own |= {name for mark, name in IDENTIFIER.findall(text) if mark == "{#"}

    def rename(text):
        text = IDENTIFIER.sub(lambda m: f"{m[1]}{m[2]}-{slug}" if m[2] in own else m[0], text)
        text = FOOTNOTE.sub(lambda m: f"[^{slug}-{m[1]}]", text)
        return PAGE_LINK.sub(r"](#\1)", text)

    # the chapter itself is the only heading of the first level
    deep = any(level == 1 for _, level in find_headings("\n".join(prose)))
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = rename(shift_headings(cell.source) if deep else cell.source)
        elif cell.cell_type == "code":
            item, code = read_options(cell.source)
            if "label" in item:
                item["label"] = f"{item['label']}-{slug}"
            for key in ("fig-cap", "tbl-cap"):
                if key in item:
                    item[key] = rename(str(item[key]))
            cell.source = write_options(item, code)
            for output in cell.outputs:
                data = output.get("data", {})
                if "text/markdown" in data:
                    data["text/markdown"] = rename(data["text/markdown"])

"""Whether everything that a page points at exists: figures, tables, sections, sources in the
bibliography, pages, anchors, pictures.

pandoc reads the page, so that what counts as a link or a citation here is what it will be in the
report. Web addresses are not looked up."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from vitlab.markup import code
from vitlab.report.clean import cell_number
from vitlab.report.findings import Finding
from vitlab.report.gather import NOTEBOOK_LINK, Page
from vitlab.report.markdown import cell_label, read_options, run_pandoc

# file:/x and C:/x are on this machine only
ELSEWHERE = re.compile(r"^(?!(?i:attachment|file):)[A-Za-z][A-Za-z0-9+.-]+:|^//")
# an HTML picture with an empty alt declares itself decorative
DESCRIBED = {"alt", "aria-label", "aria-labelledby"}
ALWAYS = {"refs", "references", "content"}  # anchors that every page has
LARGE = 200_000  # characters; a larger output is not read for links
FORMATS = {".json": "csljson", ".yaml": "markdown", ".yml": "markdown"}  # others: BibTeX


def check_references(pages: Sequence[Page], bibliography: Iterable[Path]) -> list[Finding]:
    """Findings of the rules reference, link, picture and alternative text, over all pages."""
    sources = bibliography_keys(bibliography)
    found = {page.slug: read_pointers(page) for page in pages}
    anchors = {slug: pointers.anchors for slug, pointers in found.items()}
    findings = []
    for page in pages:
        problems = []
        for kind, cell, target in found[page.slug].pointers:
            if kind == "reference":
                message = _judge_reference(target, page, anchors[page.slug], sources)
            elif kind == "link":
                message = _judge_link(target, page.slug, anchors)
            elif kind == "picture":
                message = _judge_picture(target)
            else:
                message = f"the picture {code(target)} has none"
            if message:
                problems.append((kind, cell, message))
        for cell, message in _find_lost_notebooks(page):
            problems.append(("link", cell, message))
        for rule, cell, message in dict.fromkeys(problems):
            label = cell_label(page.executed.cells[cell - 1]) if cell else ""
            findings.append(Finding(rule, page.path, message, cell or None, label, page.slug))
    return findings


def bibliography_keys(files: Iterable[Path]) -> set[str]:
    """The keys of all entries, as pandoc reads them."""
    keys = set()
    for file in map(Path, files):
        kind = FORMATS.get(file.suffix.lower(), "biblatex")
        entries = json.loads(run_pandoc(f"--from={kind}", "--to=csljson", str(file)))
        keys |= {entry["id"] for entry in entries}
    return keys


@dataclass
class Pointers(HTMLParser):
    """The anchors of a page, and what it points at: (rule, cell, target), with the place of the
    cell in the executed copy (0: in no cell).
    """

    anchors: set[str] = field(default_factory=lambda: set(ALWAYS))
    pointers: list[tuple[str, int, str]] = field(default_factory=list)
    cell: int = 0
    needs_alt: bool = True

    def __post_init__(self):
        super().__init__()

    def handle_comment(self, data):
        number = re.fullmatch(r" vitlab-cell (\d+) ", data)
        if number:
            self.cell = int(number[1])

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "name" in values:
            self.anchors.add(values["name"])
        for key in values.get("data-cites", "").split():
            self.pointers.append(("reference", self.cell, key))
        if "href" in values:
            self.pointers.append(("link", self.cell, values["href"]))
        if "src" in values:
            self.pointers.append(("picture", self.cell, values["src"]))
            if tag == "img" and self.needs_alt and DESCRIBED.isdisjoint(values):
                self.pointers.append(("alternative text", self.cell, values["src"]))


def read_pointers(page: Page) -> Pointers:
    """Read the prose, captions and outputs of a page."""
    found = Pointers()
    parts = []
    for cell in page.notebook.cells:
        found.cell = cell_number(cell)
        text = cell.source if cell.cell_type == "markdown" else _read_code_cell(cell, found)
        parts.append(f"<!-- vitlab-cell {found.cell} -->\n\n{text}")
    markdown = "\n\n".join(parts)
    found.needs_alt = True
    found.feed(
        run_pandoc(
            "--from=markdown", "--to=html5", "--mathml", "--reference-location=block", text=markdown
        )
    )
    return found


def _read_code_cell(cell, found):
    """The captions and Markdown outputs of a cell; HTML outputs are read at once."""
    options, shown = read_options(cell.source)[0], _shown_data(cell)
    if not shown:
        return ""
    if "label" in options and any(set(item) - {"text/plain", "text/latex"} for item in shown):
        found.anchors.add(str(options["label"]))
    texts = [str(options[key]) for key in ("fig-cap", "tbl-cap") if key in options]
    found.needs_alt = False  # check_figures asks for the alternative texts of outputs
    for item in shown:
        markdown, html = item.get("text/markdown", ""), item.get("text/html", "")
        if "{=html}" not in markdown and len(markdown) < LARGE:
            texts.append(markdown)
        # what a script builds, as in live figures, cannot be read from here
        is_live = "<script" in html or not item.keys().isdisjoint(("text/markdown", "image/png"))
        if not is_live and len(html) < LARGE:
            found.feed(html)
    return "\n\n".join(texts)


def _shown_data(cell):
    """The outputs of a code cell by kind; none of one that is hidden, or of prose."""
    if cell.cell_type != "code":
        return []
    options = read_options(cell.source)[0]
    if options.get("include") is False or options.get("output", True) is False:
        return []
    return [output.data for output in cell.outputs if "data" in output]


def _judge_reference(key, page, anchors, sources):
    if key in anchors or key in sources:
        return ""
    for number, cell in enumerate(page.executed.cells if page.executed else (), start=1):
        if cell_label(cell) == key:
            return f"{code('@' + key)} refers to cell {number}, which shows nothing"
    kind = {"fig": "figure or table", "tbl": "figure or table", "sec": "section"}
    what = kind.get(key.partition("-")[0], "source") if "-" in key else "source"
    return f"there is no {what} {code('@' + key)}{_suggest(key, anchors | sources, '@')}"


def _judge_link(target, slug, anchors):
    if ELSEWHERE.match(target):
        return ""
    if not target:
        return "a link without a target"
    file, _, anchor = target.partition("#")
    if file == "report.pdf":
        return ""
    name = re.sub(r"\.(ipynb|html)$", "", unquote(file).removeprefix("./")) if file else slug
    if name not in anchors:
        return f"the report has no page {code(file)}; files are not copied into the report"
    anchor = unquote(anchor)
    if anchor and anchor not in anchors[name]:
        where = "this page" if name == slug else f"the page {name}"
        hint = _suggest(anchor, anchors[name], "#")
        return f"there is no anchor {code('#' + anchor)} on {where}{hint}"
    return ""


def _judge_picture(target):
    if ELSEWHERE.match(target):
        return ""
    return f"picture files are not copied into the report: {code(target)}; show it in a code cell"


def _suggest(name: str, known: Collection[str], mark: str) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {code(mark + near[0])}?" if near else ""


def _find_lost_notebooks(page):
    """Links to notebooks that do not exist (not: that are missing in this report)."""
    if page.executed is None or page.source is None or not page.source.is_file():
        return
    for number, cell in enumerate(page.executed.cells, start=1):
        texts = [cell.source] if cell.cell_type == "markdown" else []
        texts += [item.get("text/markdown", "") for item in _shown_data(cell)]
        for _, stem, _ in NOTEBOOK_LINK.findall("\n".join(texts)):
            if not (page.source.parent / f"{stem}.ipynb").is_file():
                where = f"beside {page.source.name}"
                yield number, f"there is no notebook {code(stem + '.ipynb')} {where}"

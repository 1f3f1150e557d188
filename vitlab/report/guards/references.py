"""Whether what a page points at is there: figures, tables and sections, sources in the
bibliography, pages, anchors, files.

pandoc itself reads the page, so that what counts as a link or a citation here is what it will be in
the report. Addresses in the network are not looked up."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from vitlab.markup import code
from vitlab.report.blocks import run_pandoc
from vitlab.report.gather import NOTEBOOK_LINK, Page
from vitlab.report.guards.execution import cell_label
from vitlab.report.guards.finding import Finding
from vitlab.report.options import read_options

ATTRIBUTES = {
    "Header": 1,
    "Div": 0,
    "Span": 0,
    "Code": 0,
    "CodeBlock": 0,
    "Figure": 0,
    "Table": 0,
    "Link": 0,
    "Image": 0,
}
# file:/x and C:/x are on this machine only
ELSEWHERE = re.compile(r"^(?!(?i:attachment|file):)[A-Za-z][A-Za-z0-9+.-]+:|^//")
# an HTML picture with an empty alt says itself that it is an ornament
DESCRIBED = {"alt", "aria-label", "aria-labelledby"}
ALWAYS = {"refs", "references", "content"}  # anchors that the page itself brings
LARGE = 200_000  # characters of Markdown that an output may have to be read for links


@dataclass
class Pointers:
    """What pandoc finds on a page: (cell, target) of links, pictures and citations, cells without
    alternative text; anchors.
    """

    anchors: set[str] = field(default_factory=set)
    links: list[tuple[int, str]] = field(default_factory=list)
    pictures: list[tuple[int, str]] = field(default_factory=list)
    cited: list[tuple[int, str]] = field(default_factory=list)
    undescribed: list[tuple[int, str]] = field(default_factory=list)


def check_references(pages: Sequence[Page], bibliography: Iterable[Path]) -> list[Finding]:
    """Findings of the rules reference, link and picture, over all pages of a report."""
    sources = bibliography_keys(bibliography)
    found = {page.slug: find_pointers(page) for page in pages}
    anchors = {slug: pointers.anchors for slug, pointers in found.items()}
    findings = []
    for page in pages:
        pointers = found[page.slug]
        problems = [
            *(
                ("reference", cell, _judge_reference(key, page, pointers.anchors, sources))
                for cell, key in pointers.cited
            ),
            *(
                ("link", cell, _judge_link(target, page.slug, anchors))
                for cell, target in pointers.links
            ),
            *(("link", cell, message) for cell, message in _find_lost_notebooks(page)),
            *(("picture", cell, _judge_picture(target)) for cell, target in pointers.pictures),
            *(
                ("alternative text", cell, f"the picture {code(target)} has none")
                for cell, target in pointers.undescribed
            ),
        ]
        for rule, cell, message in dict.fromkeys(problems):
            if message:
                label = _label_of(page, cell)
                findings.append(
                    Finding(
                        rule, page.path, message, cell=cell or None, label=label, page=page.slug
                    )
                )
    return findings


def bibliography_keys(files: Iterable[Path]) -> set[str]:
    """The keys of all entries, as pandoc reads them."""
    keys = set()
    for file in map(Path, files):
        kind = {".json": "csljson", ".yaml": "markdown", ".yml": "markdown"}.get(
            file.suffix.lower(), "biblatex"
        )
        keys |= {
            entry["id"]
            for entry in json.loads(run_pandoc(f"--from={kind}", "--to=csljson", str(file)))
        }
    return keys


def find_pointers(page: Page) -> Pointers:
    """Everything on a page that points somewhere, with the place of its cell in the executed copy
    (0: in no cell).
    """
    pointers = Pointers(set(ALWAYS))
    parts = []
    for cell in page.notebook.cells:
        text = cell.source if cell.cell_type == "markdown" else _words_of(cell, pointers.anchors)
        for html in _html_of(cell):
            _Tags(pointers, cell_number(cell), described=True).feed(html)
        parts.append(f"```{{=vitlab}}\n{cell_number(cell)}\n```\n\n{text}")
    tree = json.loads(run_pandoc("--from=markdown", "--to=json", text="\n\n".join(parts)))
    _collect(tree["blocks"], pointers, [0])
    return pointers


def cell_number(cell) -> int:
    """The place in the executed copy of a cell of a cleaned notebook; 0 for one that was not
    there.
    """
    kind, _, number = str(cell.get("id", "")).rpartition("-")
    return int(number) if kind == "cell" and number.isdigit() else 0


def _words_of(cell, anchors):
    """Captions and Markdown of a code cell that is shown; its label counts as an anchor when
    something stands under it.
    """
    options, data = read_options(cell.source)[0], _shown_data(cell)
    if "label" in options and any(set(item) - {"text/plain", "text/latex"} for item in data):
        anchors.add(str(options["label"]))
    captions = [str(options[key]) for key in ("fig-cap", "tbl-cap") if key in options and data]
    written = [item.get("text/markdown", "") for item in data]
    return "\n\n".join(
        [*captions, *(text for text in written if "{=html}" not in text and len(text) < LARGE)]
    )


def _html_of(cell):
    """HTML that the page shows as it is. What a script builds, as in live figures, cannot be read
    from here.
    """
    for item in _shown_data(cell):
        html = item.get("text/html", "")
        if (
            item.keys().isdisjoint(("text/markdown", "image/png"))
            and "<script" not in html
            and len(html) < LARGE
        ):
            yield html


def _shown_data(cell):
    """The outputs of a code cell by kind; none of one that is hidden, or of prose."""
    options = read_options(cell.source)[0] if cell.cell_type == "code" else {"output": False}
    hidden = options.get("include") is False or options.get("output", True) is False
    return [] if hidden else [output.data for output in cell.outputs if "data" in output]


def _collect(node, pointers, cell):
    """Walk through pandoc's tree in the order of the document; `cell` holds the place of the cell
    that we are in.
    """
    if isinstance(node, list):
        for item in node:
            _collect(item, pointers, cell)
    elif isinstance(node, dict):
        kind, content = node.get("t"), node.get("c")
        if kind in ("RawBlock", "RawInline"):
            _collect_raw(content, pointers, cell)
            return
        if kind in ATTRIBUTES and (anchor := content[ATTRIBUTES[kind]][0]):
            pointers.anchors.add(anchor)
        if kind == "Link":
            pointers.links.append((cell[0], content[2][0]))
        elif kind == "Image":
            pointers.pictures.append((cell[0], content[2][0]))
            described = content[1] or any(key == "alt" and value for key, value in content[0][2])
            if not described:
                pointers.undescribed.append((cell[0], content[2][0]))
        elif kind == "Cite":
            pointers.cited += [(cell[0], citation["citationId"]) for citation in content[0]]
        _collect(content, pointers, cell)


def _collect_raw(content, pointers, cell):
    language, text = content
    if language == "vitlab":
        cell[0] = int(text)
    elif language == "html":
        _Tags(pointers, cell[0]).feed(text)


class _Tags(HTMLParser):
    """Collects what the tags of a piece of HTML point at. described: words for its pictures stand
    elsewhere.
    """

    def __init__(self, pointers: Pointers, cell: int, described: bool = False):
        super().__init__()
        self.pointers, self.cell, self.described = pointers, cell, described

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.pointers.anchors |= {
            values[name]
            for name in ("id", "name")
            if name in values and (name == "id" or tag == "a")
        }
        if "href" in values:
            self.pointers.links.append((self.cell, values["href"]))
        if "src" in values:
            self.pointers.pictures.append((self.cell, values["src"]))
            if tag == "img" and not self.described and DESCRIBED.isdisjoint(values):
                self.pointers.undescribed.append((self.cell, values["src"]))


def _judge_reference(key, page, anchors, sources):
    if key in anchors or key in sources:
        return ""
    promised = next(
        (
            i
            for i, cell in enumerate(page.executed.cells if page.executed else (), 1)
            if cell_label(cell) == key
        ),
        0,
    )
    if promised:
        return f"{code('@' + key)} is promised by cell {promised}, which shows nothing to refer to"
    near = difflib.get_close_matches(key, sorted(anchors | sources), n=1)
    hint = f"; did you mean {code('@' + near[0])}?" if near else ""
    what = (
        "figure or table"
        if key.startswith(("fig-", "tbl-"))
        else "section"
        if key.startswith("sec-")
        else "source"
    )
    return f"there is no {what} {code('@' + key)}{hint}"


def _judge_link(target, slug, anchors):
    if ELSEWHERE.match(target):
        return ""
    file, _, anchor = target.partition("#")
    name = slug if not file else re.sub(r"\.(ipynb|html)$", "", unquote(file).removeprefix("./"))
    if file == "report.pdf":
        return ""
    if not target:
        return "a link without a target"
    if name not in anchors:
        return f"the report has no page or file {code(file)}; files do not travel with the pages"
    if anchor and unquote(anchor) not in anchors[name]:
        near = difflib.get_close_matches(unquote(anchor), sorted(anchors[name]), n=1)
        hint = f"; did you mean {code('#' + near[0])}?" if near else ""
        return (
            f"there is no place {code('#' + anchor)} on"
            f" {'this page' if name == slug else 'the page ' + name}{hint}"
        )
    return ""


def _judge_picture(target):
    if ELSEWHERE.match(target):
        return ""
    return (
        f"pictures from files do not travel with the pages: {code(target)}; show it from a code"
        " cell"
    )


def _find_lost_notebooks(page):
    """Links to notebooks that do not exist; a link to one that is merely not in this report becomes
    plain text.
    """
    if page.executed is None or page.source is None or not page.source.is_file():
        return
    for number, cell in enumerate(page.executed.cells, start=1):
        texts = (
            [cell.source]
            if cell.cell_type == "markdown"
            else [item.get("text/markdown", "") for item in _shown_data(cell)]
        )
        for _, stem, _ in NOTEBOOK_LINK.findall("\n".join(texts)):
            if not (page.source.parent / f"{stem}.ipynb").is_file():
                yield (
                    number,
                    f"there is no notebook {code(stem + '.ipynb')} beside {page.source.name}",
                )


def _label_of(page, number):
    cells = page.executed.cells if page.executed else []
    return cell_label(cells[number - 1]) if 0 < number <= len(cells) else ""

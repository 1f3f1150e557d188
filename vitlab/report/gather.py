"""From batches to pages: which executed notebooks make the report, in which order, under which
title.
"""

from __future__ import annotations

import base64
import json
import mimetypes
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from vitlab.errors import UserError
from vitlab.markup import code, escape
from vitlab.notebook import notebook_parameters
from vitlab.places import project_root, reports_dir
from vitlab.registry import unknown
from vitlab.report.clean import KERNEL, clean_notebook, find_library, for_web
from vitlab.report.markdown import (
    callout,
    code_block,
    find_headings,
    raw_html,
    read_options,
    split_sections,
    write_options,
)
from vitlab.runs import read_batch

HOME = "08_compare"  # the page to open first
TROUBLES = {
    "failed": "This notebook did not run to its end",
    "skipped": "This notebook was skipped",
    "pending": "This notebook has not run yet",
}
SECTION = re.compile(r"(?m)^#+ +(.+?) *\{#(sec-[\w-]+)\} *$")
SECTION_REFERENCE = re.compile(r"\[?@(sec-[\w-]+)\]?")
# in a guide: a picture, or a link to a guide or to a file above the folder of guides
FILE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\.?/[^)\s]+|[\w.-]+\.md(?:#[^)]*)?)\)")
GUIDE_LINK = re.compile(r"\]\(\.\./reports/guide/(?:\d+_)?([\w-]+)\.md(#[^)]*)?\)")
NOTEBOOK_LINK = re.compile(r"\[([^\]]*)\]\((?:[\w./-]*/)?([\w.-]+)\.ipynb(#[^)]*)?\)")


@dataclass(frozen=True)
class Page:
    """One notebook of the report, cleaned, without its title.

    slug: file name and anchor. stem: the notebook's own name, such as 03_finetune. heading: its
    first heading. group: its place in the navigation: batch, model, further grid values; empty
    strings where there is none. dataset: the one it is about, "" for none. trouble: what went
    wrong, "" when nothing did. path: the executed copy, and run: the run that it makes or reads,
    relative to the reports folder. executed: that copy as it is. source: the notebook that it was
    made from; None where the batch does not say. status: of the task in the batch. paper: whether
    the page is in the PDF too."""

    slug: str
    stem: str
    heading: str
    point: dict
    group: tuple[str, str, str]
    notebook: NotebookNode
    dataset: str = ""
    trouble: str = ""
    path: str = ""
    run: str = ""
    executed: NotebookNode | None = field(default=None, repr=False)
    source: Path | None = None
    status: str = "done"
    paper: bool = True

    @property
    def title(self) -> str:
        return " · ".join([self.heading, *describe_point(self.point)])

    @property
    def title_markdown(self) -> str:
        """The title as Markdown: the heading is Markdown of the notebook, the words of the grid
        point are plain text.
        """
        return " · ".join([self.heading, *map(escape, describe_point(self.point))])


@dataclass(frozen=True)
class Report:
    """author, abstract: of the batch file. commands: that make the report."""

    title: str
    subtitle: str
    date: str
    pages: tuple[Page, ...]
    author: str = ""
    abstract: str = ""
    commands: tuple[str, ...] = ()


def gather_report(batches: list[str] | None = None) -> Report:
    """The pages of these batches (default: all there are), comparison first, then the shared
    notebooks, then each grid point's.

    UserError: an unknown batch, or none at all; a cell whose options are not YAML."""
    folder = reports_dir() / "runs" / "batches"
    known = sorted(path.parent.name for path in folder.glob("*/batch.json"))
    for name in batches or ():
        if name not in known:
            advice = f"They are in {folder}. Run `vitlab batch FILE.yml` first."
            raise UserError(unknown("batch", name, known, advice))
    if not known:
        example = "vitlab batch notebooks/batches/elpv.yml"
        raise UserError(f"no batch in {folder}: run `{example}` first")
    chosen = {name: read_batch(folder / name / "batch.json") for name in batches or known}
    pages = []
    for name, batch in chosen.items():
        section = batch.get("title", name) if len(chosen) > 1 else ""
        for task in order_tasks(batch["tasks"]):
            pages.append(_make_page(task, section, batch.get("file", "")))
    pages = _number_slugs(pages)
    for page in pages:
        _resolve_links(page, pages)
        _resolve_sections(page.notebook)
    titles = [batch.get("title", name) for name, batch in chosen.items()]
    datasets = Counter(page.dataset for page in pages if page.dataset)
    return Report(
        title=" and ".join(titles),
        subtitle=describe_datasets([name for name, _ in datasets.most_common()]),
        date=max(_day(folder / name / "batch.json") for name in chosen),
        pages=tuple(_with_overview(pages)),
        author=", ".join(filter(None, (str(b.get("author", "")) for b in chosen.values()))),
        abstract=" ".join(filter(None, (str(b.get("abstract", "")) for b in chosen.values()))),
        commands=(
            *(f"vitlab batch {batch.get('file') or name}" for name, batch in chosen.items()),
            f"vitlab report {' '.join(chosen)}",
        ),
    )


def order_tasks(tasks: list[dict]) -> list[dict]:
    """Comparison first, then what is outside of the grid, then each point by notebook."""
    points = []
    for task in tasks:
        if task["point"] not in points:
            points.append(task["point"])

    def rank(task):
        place = points.index(task["point"]) + 1 if task["point"] else 0
        return task["notebook"] != HOME, place, task["notebook"]

    return sorted(tasks, key=rank)


def describe_point(point: dict) -> list[str]:
    """A grid point in words: names stand alone, numbers carry theirs: ["hybrid_vit", "seed 0"]."""
    return [value if isinstance(value, str) else f"{key} {value}" for key, value in point.items()]


def describe_datasets(names: list[str]) -> str:
    return f"Data set{'s' * (len(names) > 1)}: {', '.join(names)}" if names else ""


def _make_page(task, section, batch_file):
    stem, copy = task["notebook"], reports_dir() / task["path"]
    trouble = _trouble(task, copy.is_file())
    executed = nbformat.read(copy, as_version=4) if copy.is_file() else None
    source = _find_source(stem, batch_file, executed)
    if executed is not None:
        try:
            heading, notebook = take_heading(clean_notebook(executed))
        except ValueError as error:
            raise UserError(f"{copy}: {error}") from error
    else:
        source = source or project_root() / "notebooks" / f"{stem}.ipynb"
        heading = take_heading(nbformat.read(source, as_version=4))[0] if source.is_file() else ""
        notebook = new_notebook()
    heading = heading or re.sub(r"^\d+_", "", stem).replace("_", " ").capitalize()
    if stem == HOME:  # the first page begins with the answer, not with code
        for cell in split_sections(notebook.cells)[0][1]:
            if cell.cell_type == "code":
                options, text = read_options(cell.source)
                cell.source = write_options({**options, "echo": False}, text)
    if trouble:
        title = TROUBLES.get(task["status"], TROUBLES["failed"])
        notebook.cells.insert(0, new_markdown_cell(callout("important", title, trouble)))
    words = describe_point(task["point"])
    group = (section, words[0] if words else "", " · ".join(words[1:]))
    slug = re.sub(r"[^a-z0-9]+", "-", "-".join([section, stem, *words]).lower()).strip("-")
    return Page(
        slug,
        stem,
        heading,
        task["point"],
        group,
        notebook,
        dataset=_find_dataset(task, copy if executed is not None else source),
        trouble=trouble,
        path=task["path"],
        run=(task.get("run") or "") if "run_name" in task["parameters"] else "",
        executed=executed,
        source=source,
        status=task["status"],
    )


def _find_dataset(task, notebook):
    """The data set that a task was given, else the notebook's own; "" where it takes none."""
    given = task["parameters"].get("dataset")
    if given is None and notebook.is_file():
        with suppress(ValueError):  # it declares nothing that can be read
            given = notebook_parameters(notebook).get("dataset", ("", ""))[0]
    return str(given or "")


def _find_source(stem, batch_file, executed):
    """The notebook of a task: as the batch finds it, else where papermill took it from."""
    if not batch_file:
        return None
    here = (project_root() / batch_file).parent
    folders = [here, here / "notebooks", here.parent, here.parent / "notebooks"]
    default = folders[-1] / f"{stem}.ipynb"
    places = [folder / f"{stem}.ipynb" for folder in folders]
    taken = (executed or {}).get("metadata", {}).get("papermill", {}).get("input_path")
    if taken:
        places.append(Path(taken))
    return next((place for place in places if place.is_file()), default)


def _trouble(task, copied):
    """Why a task gave no result, as Markdown; "" for one that did."""
    status, error = task["status"], task["error"]
    if status == "failed":
        where = "Outside of any cell" if error["cell"] is None else f"In cell {error['cell']}"
        line = "with the error"
        if error.get("line"):
            line = f"at the line\n\n{code_block(error['line'], '.python')}"
        what = code_block(f"{error['name']}: {error['value']}", ".output")
        return f"{where}, {line}\n\n{what}"
    if status != "done":
        return escape(task.get("note") or "") or f"Its status in the batch is *{status}*."
    if not copied:
        return f"Its executed copy {code(task['path'])} is missing; run the batch again."
    return ""


def take_heading(notebook):
    """The text of the first heading of level 1, and the notebook without it."""
    for cell in notebook.cells:
        for number, level in find_headings(cell.source) if cell.cell_type == "markdown" else ():
            if level == 1:
                lines = cell.source.split("\n")
                heading = re.sub(r"\s*\{[^}]*\}\s*$", "", lines.pop(number)[2:]).strip()
                cell.source = "\n".join(lines).strip()
                notebook.cells = [cell for cell in notebook.cells if cell.source]
                return heading, notebook
    return "", notebook


def _number_slugs(pages):
    """Home is `index`; a slug met before gets a number."""
    seen, numbered = {}, []
    for page in pages:
        slug = "index" if not numbered else page.slug
        seen[slug] = seen.get(slug, 0) + 1
        numbered.append(replace(page, slug=slug if seen[slug] == 1 else f"{slug}-{seen[slug]}"))
    return numbered


def _resolve_links(page, pages):
    """Point links to notebooks at their pages, of the same point if any; else plain text."""

    def link_guide(match):
        return f"](guide-{match[1].replace('_', '-')}.ipynb{match[2] or ''})"

    def resolve(match):
        text, stem, anchor = match.group(1), match.group(2), match.group(3) or ""
        batch = [other for other in pages if other.group[0] == page.group[0]]
        targets = [other for other in batch if other.stem == stem]
        if not targets:
            return text
        target = next((other for other in targets if other.point == page.point), targets[0])
        return f"[{text}]({target.slug}.ipynb{anchor})"

    def resolve_all(text):
        return GUIDE_LINK.sub(link_guide, NOTEBOOK_LINK.sub(resolve, text))

    for cell in page.notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = resolve_all(cell.source)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "text/markdown" in data:
                data["text/markdown"] = resolve_all(data["text/markdown"])


def _resolve_sections(notebook):
    """Write references to sections as links: sections of a page have no number."""
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    titles = {match[2]: match[1] for cell in prose for match in SECTION.finditer(cell.source)}
    for cell in prose:
        cell.source = SECTION_REFERENCE.sub(
            lambda m: f"[{titles[m[1]]}](#{m[1]})" if m[1] in titles else m[0], cell.source
        )


def _with_overview(pages):
    """Say on the first page which notebooks did not make it."""
    troubled = [page for page in pages if page.trouble]
    if troubled:
        lines = [f"- [{page.title_markdown}]({page.slug}.ipynb)" for page in troubled]
        title = f"{len(troubled)} of {len(pages)} notebooks did not run to their end"
        pages[0].notebook.cells.insert(
            0, new_markdown_cell(callout("warning", title, "\n".join(lines)))
        )
    return pages


def _day(file):
    return date.fromtimestamp(file.stat().st_mtime).isoformat()


def describe_page(page: Page, date: str) -> str:
    """What stands below the title of a page: its data set and the date of the report."""
    return " · ".join(filter(None, (describe_datasets([page.dataset] * bool(page.dataset)), date)))


def page_notebook(page: Page, date: str) -> NotebookNode:
    """The page under its title, as a notebook that Quarto can render."""
    title = json.dumps(page.title_markdown, ensure_ascii=False)
    subtitle = json.dumps(escape(describe_page(page, date)), ensure_ascii=False)
    notebook = for_web(page.notebook)
    head = [nbformat.v4.new_raw_cell(f"---\ntitle: {title}\nsubtitle: {subtitle}\n---")]
    if library := find_library(notebook):
        head.append(new_markdown_cell(raw_html(library)))
    return new_notebook(cells=[*head, *notebook.cells], metadata={"kernelspec": KERNEL})


def guide_pages(pages: Sequence[Page] = ()) -> list[Page]:
    """A page for each guide in reports/guide; they are in the site alone, not in the PDF.

    Pictures become part of the page. A link to a guide or a notebook leads to its page, also among
    these `pages`; a link to any other file of the project becomes plain text."""
    guides = {}
    files = (project_root() / "reports" / "guide").glob("*.md")
    for path in sorted(files, key=lambda path: (len(path.stem.partition("_")[0]), path.name)):
        guides[path] = "guide-" + re.sub(r"^\d+_", "", path.stem).replace("_", "-")
    slugs = {path.stem: slug for path, slug in guides.items()}
    for page in pages:
        slugs.setdefault(page.stem, page.slug)

    def resolve(path, match):
        sign, text, target = match.groups()
        file, _, anchor = target.partition("#")
        file = path.parent / file
        if sign:
            kind = mimetypes.guess_type(file.name)[0]
            return f"![{text}](data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()})"
        if file.stem not in slugs:
            return text
        return f"[{text}]({slugs[file.stem]}.ipynb{'#' + anchor if anchor else ''})"

    made = []
    for path, slug in guides.items():
        text = path.read_text(encoding="utf-8")
        heading, body = re.fullmatch(r"# +(.+?) *\n(.*)", text, flags=re.DOTALL).groups()
        body = FILE_LINK.sub(partial(resolve, path), body.strip())
        notebook = new_notebook(cells=[new_markdown_cell(body)])
        place = {"path": f"reports/guide/{path.name}", "paper": False}
        made.append(Page(slug, path.stem, heading, {}, ("Guide", "", ""), notebook, **place))
    return made

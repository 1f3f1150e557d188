"""The report without Quarto: pandoc and Typst, both from wheels. HTML pages that need no other
file, and one PDF.
"""

from __future__ import annotations

import base64
import json
import logging
import mimetypes
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from html import escape
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import typst
from matplotlib import font_manager
from nbformat import NotebookNode
from PIL import Image

from vitlab.plots.fonts import USUAL, describe_missing, find_fonts
from vitlab.report.clean import CSS_DPI, clean_notebook, find_library, for_web
from vitlab.report.gather import Page, Report, describe_page, take_heading
from vitlab.report.markdown import code_block, read_options, run_pandoc
from vitlab.report.settings import Settings, hash_templates, read_settings

HERE = Path(__file__).parent
STYLES = ("content.css", "style.css")
FILTERS = ("common.lua", "filters.lua")
ENDINGS = {"image/png": ".png", "image/svg+xml": ".svg", "image/jpeg": ".jpg"}
TEXT_WIDTH, TEXT_HEIGHT = 6.45, 8.2  # inches: the text block of report.typ, less room for a caption


def render_pages(report: Report, settings: Settings, build: Path, output: Path) -> Path:
    """Write one HTML file a page into `output`; the path of the first."""
    (build / "pages").mkdir(parents=True, exist_ok=True)

    def render(page):
        html = _render_page(page, report, settings, build / "pages")
        (output / f"{page.slug}.html").write_text(html, encoding="utf-8")

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(render, report.pages))  # list: raises what a thread raised
    return output / "index.html"


def render_pdf(
    report: Report, settings: Settings, build: Path, output: Path, name: str = "report"
) -> Path:
    """Write a PDF into `output`, from the notebook of that name in build/pdf; its path."""
    folder = build / "pdf"
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    medium = Medium(folder, width=TEXT_WIDTH, height=TEXT_HEIGHT)
    markdown = notebook_markdown(notebook, medium, f"{name}-figure")
    variables = {"version": version("vitlab"), "lang": settings.lang, "date": report.date}
    variables["templates"] = hash_templates()
    metadata = {"title": report.title, "subtitle": report.subtitle}
    metadata |= {"author": report.author, "abstract": report.abstract}
    metadata["flow"] = notebook.metadata["flow"]
    defaults = {"template": str(HERE / "report.typ"), "variables": variables, "metadata": metadata}
    source = _render_markdown(markdown, "typst", folder / name, settings, defaults)
    (folder / f"{name}.typ").write_text(source, encoding="utf-8")
    if missing := find_fonts(markdown)[1]:
        logging.getLogger(__name__).warning("%s.pdf: %s", name, describe_missing(missing))
    # Typst falls back on these and on the fonts of the machine
    fonts = Path(font_manager.findfont(USUAL)).parent
    pdf = output / f"{name}.pdf"
    typst.compile(folder / f"{name}.typ", output=pdf, root=folder, font_paths=[fonts])
    return pdf


def render_single(copy: Path, output: Path, dataset: str) -> None:
    """Write an executed notebook as one HTML page without code that needs no other file."""
    heading, notebook = take_heading(clean_notebook(nbformat.read(copy, as_version=4)))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = f"#| echo: false\n{cell.source}"
    page = Page(output.stem, copy.stem, heading, {}, ("", "", ""), notebook, dataset=dataset)
    report = Report(heading, "", date.today().isoformat(), (page,))
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as build:
        render_pages(report, read_settings(), Path(build), output.parent)


def _render_page(page, report, settings, folder):
    notebook = for_web(page.notebook)
    library = find_library(notebook)
    markdown = notebook_markdown(notebook, Medium(folder, fold=settings.fold), page.slug)
    position = [other.slug for other in report.pages].index(page.slug)
    neighbours = {
        "previous": _link(report.pages[position - 1]) if position else None,
        "next": _link(report.pages[position + 1]) if position + 1 < len(report.pages) else None,
    }
    variables = {
        "site-title": escape(report.title or settings.title),
        "lang": settings.lang,
        "home": page is report.pages[0],
        "page-subtitle": escape(describe_page(page, report.date)),
        "single": len(report.pages) == 1,
        "templates": hash_templates(),
        "folded": 'fold="true"' in markdown,
        "parts": _navigation(report.pages, page),
        "version": version("vitlab"),
        "style": "".join((HERE / name).read_text(encoding="utf-8") for name in STYLES),
        "plotly": "<!-- plotly -->" if library else "",
        **{key: value for key, value in neighbours.items() if value},
    }
    defaults = {
        "template": str(HERE / "page.html"),
        "variables": variables,
        "metadata": {"title": page.title},
        "table-of-contents": True,
        "toc-depth": settings.toc_depth,
        "html-math-method": {"method": "mathml"},
    }
    html = _render_markdown(markdown, "html5", folder / page.slug, settings, defaults)
    html = re.sub(
        r'(<img[^>]*?\bsrc=")([^":]+)(")',
        lambda match: match[1] + _data_uri(folder, match[2]) + match[3],
        html,
    )
    # last: pandoc and we need not search megabytes
    return html.replace("<!-- plotly -->", library, 1)


def _render_markdown(markdown, target, path, settings, defaults):
    """Convert it. The Markdown and pandoc's settings stay in the build folder."""
    defaults |= {
        "from": "markdown",
        "to": target,
        "input-file": str(path.with_suffix(".md")),
        "standalone": True,
        "columns": 10_000,  # a long line of a pipe table must not make pandoc choose column widths
        "wrap": "none",
        "filters": [*(str(HERE / name) for name in FILTERS), "citeproc"],
        "bibliography": [str(file) for file in settings.bibliography],
        **({"csl": str(settings.csl)} if settings.csl else {}),
    }
    path.with_suffix(".md").write_text(markdown, encoding="utf-8")
    path.with_suffix(".defaults.json").write_text(json.dumps(defaults, indent=1), encoding="utf-8")
    return run_pandoc("--defaults", str(path.with_suffix(".defaults.json")))


def _link(page: Page):
    return {"href": f"{page.slug}.html", "title": escape(page.title)}


def _navigation(pages, current):
    """The pages as parts (batches) of groups (models) of runs (further grid values)."""
    parts = []
    for (part, group, run), members in groupby(pages, key=lambda page: page.group):
        if not parts or parts[-1]["title"] != escape(part):
            parts.append({"title": escape(part), "groups": []})
        groups = parts[-1]["groups"]
        if not groups or groups[-1]["title"] != escape(group):
            groups.append({"title": escape(group), "runs": []})
        entries = []
        for page in members:
            facts = {"current": page is current, "trouble": bool(page.trouble)}
            entries.append({**_link(page), "heading": escape(page.heading), **facts})
        groups[-1]["runs"].append({"title": escape(run), "pages": entries})
    return parts


def _data_uri(folder, name):
    """A picture of ours as part of the page; any other name as it is."""
    file = folder / name
    if not file.is_file():
        return name
    kind = mimetypes.guess_type(file.name)[0]
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


@dataclass(frozen=True)
class Medium:
    """folder: where pictures go. width, height: the largest that they may be, in inches."""

    folder: Path
    fold: bool | str = False
    width: float = 10.0
    height: float = 20.0


def notebook_markdown(notebook: NotebookNode, medium: Medium, prefix: str = "") -> str:
    """The Markdown text; pictures go to `<prefix>-<cell>-<output>.png` in medium.folder."""
    parts = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            parts.append(_cell_markdown(cell, medium, f"{prefix}-{number}"))
        elif cell.cell_type == "markdown":
            parts.append(cell.source)
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def _cell_markdown(cell, medium, name):
    options, code = read_options(cell.source)
    if options.get("include") is False:
        return ""
    parts = []
    if options.get("echo", True) and code.strip():
        fold = str(options.get("code-fold", medium.fold)).lower()
        summary = _quote(options.get("code-summary", "Code"))
        alone = "" if cell.outputs else " .alone"
        attributes = f'.python .cell-code{alone} fold="{fold}" summary="{summary}"'
        parts.append(code_block(code, attributes))
    if options.get("output", True) is not False:
        parts += _outputs_markdown(cell, options, medium, name)
    return "\n\n".join(parts)


def _outputs_markdown(cell, options, medium, name):
    """The outputs in order; those that the caption is about are one block."""
    label = str(options.get("label", ""))
    is_table = label.startswith("tbl-") or ("tbl-cap" in options and "fig-cap" not in options)
    kind = "tbl" if is_table else "fig"
    caption = options.get(f"{kind}-cap", "")
    identifier = f"#{label}" if label.startswith(("fig-", "tbl-")) else ""
    parts, captioned, place = [], [], 0
    for number, output in enumerate(cell.outputs, start=1):
        if output.output_type == "stream":
            as_is = options.get("output") == "asis"
            parts.append(output.text if as_is else code_block(output.text, ".output"))
            continue
        text = _display_markdown(
            output.data, output.get("metadata", {}), options, medium, f"{name}-{number}"
        )
        if (caption or identifier) and not {"text/plain", "text/latex"} & set(output.data):
            place = place if captioned else len(parts)
            captioned.append(text)
        else:
            parts.append(text)
    if captioned:
        block = "\n\n".join([*captioned, " ".join(str(caption).split())])
        parts.insert(place, f"::: {{{identifier} .captioned .{kind}}}\n{block.strip()}\n:::")
    return parts


def _display_markdown(data, metadata, options, medium, name):
    kind, content = next(iter(data.items()))
    if kind in ENDINGS:
        return _picture_markdown(kind, content, metadata.get(kind, {}), options, medium, name)
    if kind == "text/plain":
        return code_block(content, ".output")
    return content


def _picture_markdown(kind, content, size, options, medium, name):
    file = medium.folder / f"{name}{ENDINGS[kind]}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if kind == "image/svg+xml" else base64.b64decode(content))
    width = ""
    if kind != "image/svg+xml":
        with Image.open(file) as picture:
            dpi = picture.info.get("dpi", (CSS_DPI, CSS_DPI))[0] or CSS_DPI
            natural = size["width"] / CSS_DPI if "width" in size else picture.width / float(dpi)
            inches = min(natural, medium.width, medium.height * picture.width / picture.height)
        width = f' width="{inches:.2f}in"'
    alt = _quote(" ".join(str(options.get("fig-alt", "")).split()))
    return f'![]({file.name}){{alt="{alt}"{width}}}'


def _quote(text):
    return str(text).replace("\\", "\\\\").replace('"', '\\"')

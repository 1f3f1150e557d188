"""An executed notebook as readers need it: the values used, no noise, tables as Markdown, each
output in one form for HTML and one for PDF.
"""

from __future__ import annotations

import ast
import base64
import io
import re
from html import escape
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from vitlab.markup import JUPYTER_ONLY
from vitlab.notebook import find_assignments
from vitlab.plots.interactive import library_html
from vitlab.report.markdown import (
    callout,
    cell_label,
    code_block,
    raw_html,
    read_options,
    run_pandoc,
    split_sections,
    write_options,
)

KERNEL = {"name": "python3", "language": "python", "display_name": "Python 3"}
TABLES = Path(__file__).with_name("tables.lua")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# <Axes: ...>, [<Line2D>, ...]: what a plot call returns beside its picture
REPR = re.compile(r"^[<(\[].*[>)\]]$", re.DOTALL)
REFERENCE = re.compile(r"(\s\()?@((fig|tbl)-[\w-]+)(?(1)\))")  # " (@fig-x)" or "@fig-x"
WORDS = {"fig": "the figure", "tbl": "the table"}
CSS_DPI = 96  # what a browser takes for an inch
MAX_PNG = 150_000  # bytes
PICTURES = ("image/png", "image/svg+xml", "image/jpeg")
SPLIT = "vitlab-next-table"
ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")  # a backslash and punctuation, as pandoc writes them
# pandas writes the name of the index into a row of its own under the headers; it belongs into the
# cell above it, which is empty or has the common name of all headers
INDEX_NAME = re.compile(
    r"<thead>\s*(<tr[^>]*>)\s*<th>[^<]*</th>((?:\s*<th[^>]*>[^<]*</th>)*)\s*</tr>"
    r"\s*<tr>\s*<th>([^<]+)</th>(?:\s*<th></th>)*\s*</tr>\s*</thead>"
)


def clean_notebook(notebook: NotebookNode) -> NotebookNode:
    """A copy without stderr, progress bars and marks of papermill; the parameters cell shows the
    values of this run.

    HTML tables become Markdown tables, errors a call-out; options that readers need (alternative
    text, an unfolded parameters cell) are filled in. Cell metadata goes: Quarto would write all of
    it into the page. The id of a cell is its place in the notebook given, counted from 1:
    `cell-12`."""
    cells = nbformat.from_dict(notebook).cells
    for number, cell in enumerate(cells, start=1):
        cell.id = f"cell-{number}"
    cells = _merge_parameters([cell for cell in cells if not _is_papermill_mark(cell)])
    captioned = {cell.id for cell in cells if _is_captioned(cell)}
    declared = {cell_label(cell) for cell in cells}
    broken = {cell.id for cell in cells if _has_failed(cell)}
    for cell in cells:
        if cell.cell_type == "code":
            failed = cell.id in broken
            cleaned = [_clean_output(output) for output in cell.outputs]
            cell.outputs = _join_streams(output for output in cleaned if output is not None)
            if failed or not _shows_captioned(cell):
                _drop_caption(cell)
            if any("image/png" in output.get("data", {}) for output in cell.outputs):
                cell.outputs = [output for output in cell.outputs if not _is_bare_repr(output)]
                _describe_figure(cell)
        cell.metadata = {}
    cells = _drop_empty_sections(cells, captioned, broken)
    resolve_dead_references(cells, declared)
    _convert_tables(cells)
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


def resolve_dead_references(cells: list[NotebookNode], declared: set[str]) -> None:
    """Take references to the declared figures and tables that are not among the cells out of the
    prose: those in brackets go, others become words.
    """
    dead = declared - {cell_label(cell) for cell in cells}

    def resolve(match):
        if match[2] not in dead:
            return match[0]
        return "" if match[1] else WORDS[match[3]]

    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = REFERENCE.sub(resolve, cell.source)


def cell_number(cell: NotebookNode) -> int:
    """The place in the executed copy of a cell of a cleaned notebook; 0 for one that was added."""
    kind, _, number = str(cell.get("id", "")).rpartition("-")
    return int(number) if kind == "cell" and number.isdigit() else 0


def for_web(notebook: NotebookNode) -> NotebookNode:
    """The copy for HTML: Plotly figures and viewers stay alive.

    They travel as raw blocks in Markdown: for outputs of the type text/html, Quarto loads libraries
    from the network."""
    return _with_outputs(notebook, _pick_for_web)


def for_paper(notebook: NotebookNode) -> NotebookNode:
    """The copy for PDF: static pictures in place of interactive figures, large ones as JPEG."""
    return _with_outputs(notebook, lambda output, cell: _shrink(*_pick_static(output, cell)))


def find_library(notebook: NotebookNode) -> str:
    """The Plotly library, for a notebook with figures that need it; else ""."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    return library_html() if any('class="vitlab-plotly"' in text for text in texts) else ""


def _is_papermill_mark(cell):
    return (
        "papermill-error-cell-tag" in cell.metadata.get("tags", ())
        or 'id="papermill-error-cell"' in cell.source
    )


def _merge_parameters(cells):
    """Write the injected values into the parameters cell; papermill's own cell goes."""
    injected = [cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", ())]
    values = {}
    for cell in injected:
        for name, node in find_assignments(cell.source).items():
            values[name] = ast.get_source_segment(cell.source, node.value)
    for cell in cells:
        if "parameters" in cell.metadata.get("tags", ()):
            options, code = read_options(_replace_values(cell.source, values))
            cell.source = write_options({"code-fold": False, **options}, code)
    return [cell for cell in cells if cell not in injected]


def _replace_values(source, values):
    lines = source.splitlines()
    found = []
    for name, node in find_assignments(source).items():
        if name in values:
            found.append((node.value, values[name]))
    # from the end, so that earlier positions stay right
    found.sort(key=lambda pair: (pair[0].lineno, pair[0].col_offset), reverse=True)
    for old, new in found:
        first, last = old.lineno - 1, old.end_lineno - 1
        # ast counts bytes, str counts characters
        before = lines[first].encode()[: old.col_offset].decode()
        after = lines[last].encode()[old.end_col_offset :].decode()
        lines[first : last + 1] = [before + new + after]
    return "\n".join(lines)


def _clean_output(output):
    """The output without noise, or None where nothing is left to read."""
    if output.get("metadata", {}).items() >= JUPYTER_ONLY.items():
        return None
    if output.output_type == "stream":
        lines = ANSI.sub("", output.text).split("\n")
        # of a progress bar, only its last state
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
        if output.name == "stderr" or not text.strip():
            return None
        return nbformat.v4.new_output("stream", name="stdout", text=text)
    if output.output_type == "error":
        trace = ANSI.sub("", "\n".join(output.traceback)) or f"{output.ename}: {output.evalue}"
        text = code_block("\n".join(trace.splitlines()[-20:]), ".output")
        title = f"This cell failed: {output.ename}"
        return _display({"text/markdown": callout("important", title, text)})
    if any("jupyter.widget" in kind for kind in output.data) or not output.data:
        return None
    # width and height, from a high-density display
    picture = output.get("metadata", {}).get("image/png")
    return _display(dict(output.data), {"image/png": picture} if picture else {})


def _join_streams(outputs):
    """Printed lines that follow each other as one output: a kernel sends them in pieces."""
    joined = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _display(data, metadata=None):
    return nbformat.v4.new_output("display_data", data=data, metadata=metadata or {})


def _is_bare_repr(output):
    data = output.get("data", {})
    if set(data) != {"text/plain"}:
        return False
    text = data["text/plain"].strip()
    return bool(REPR.match(text)) or text.startswith("Text(")


def _describe_figure(cell):
    """Give the picture an alternative text where the author wrote none."""
    options, code = read_options(cell.source)
    if not options.get("fig-alt"):
        first_line = next((line for line in code.splitlines() if line.strip()), "this cell")
        made_by = f"Picture made by the code {first_line.strip()}"
        options["fig-alt"] = options.get("fig-cap") or made_by
        cell.source = write_options(options, code)


def _is_captioned(cell):
    options = read_options(cell.source)[0] if cell.cell_type == "code" else {}
    return bool({"fig-cap", "tbl-cap"} & options.keys())


def _has_failed(cell):
    return any(output.output_type == "error" for output in cell.get("outputs", ()))


def _drop_empty_sections(cells, captioned, broken):
    """Leave out the sections of level 2 that were to show figures or tables and show none, such as
    attention maps of a CNN. What failed, or was not executed, stays.
    """
    kept, sections = [], split_sections(cells)
    for title, section in sections:
        wanted = [cell for cell in section if cell.id in captioned]
        shown = [cell for cell in wanted if _is_captioned(cell)]
        told = any(cell.get("outputs") for cell in wanted)
        if title and wanted and not shown and told and not broken & {cell.id for cell in section}:
            continue
        kept.append(section)
    return cells if len(kept) == len(sections) else [cell for part in kept for cell in part]


def _shows_captioned(cell):
    """Whether there is something to caption; a sentence on why there is no figure is not."""
    for output in cell.outputs:
        data = output.get("data", {})
        if {"text/html", *PICTURES} & set(data) or "|" in data.get("text/markdown", ""):
            return True
    return False


def _drop_caption(cell):
    """The figure or table was not made: an error or explanation must not have its caption."""
    options, code = read_options(cell.source)
    for key in ("label", "fig-cap", "fig-alt", "tbl-cap"):
        options.pop(key, None)
    cell.source = write_options(options, code)


def _convert_tables(cells):
    """Turn all HTML tables of a notebook into Markdown tables, in one call of pandoc."""
    found = []
    for cell in cells:
        for output in cell.get("outputs", ()):
            html = output.get("data", {}).get("text/html", "")
            if "<table" in html and not _is_live(html):
                found.append(output.data)
    if not found:
        return
    tables = [
        INDEX_NAME.sub(r"<thead>\1<th>\3</th>\2</tr></thead>", item["text/html"]) for item in found
    ]
    text = run_pandoc(
        "--from=html",
        "--to=markdown-simple_tables-multiline_tables+pipe_tables-raw_html-raw_attribute-native_divs-native_spans-fenced_divs",
        "--wrap=none",
        "--columns=10000",
        f"--lua-filter={TABLES}",
        text=f"\n<p>{SPLIT}</p>\n".join(tables),
    )
    # as `markup.escape`: what looks like markup is markup
    text = ESCAPED.sub(lambda match: f"&#{ord(match[1])};", text)
    for item, table in zip(found, re.split(rf"(?m)^{SPLIT}\s*$", text), strict=True):
        item.pop("text/html")
        item["text/markdown"] = table.strip() + "\n"


def _is_live(html):
    """Whether it is a figure or table that readers can move: Plotly, or a viewer in HTML."""
    return "vitlab-plotly" in html or "vitlab-viewer" in html


def _with_outputs(notebook, pick):
    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        if cell.cell_type == "code":
            for number, output in enumerate(cell.outputs):
                if output.output_type != "stream":
                    cell.outputs[number] = _display(*pick(output, cell))
    return copy


def _pick_for_web(output, cell):
    data = output.data
    html = data.get("text/html", "")
    has_other_form = "text/markdown" in data or (
        "image/png" in data and "plotly" not in html.lower()
    )
    if not html or (has_other_form and not _is_live(html)):
        return _pick_static(output, cell)
    label = escape(read_options(cell.source)[0].get("fig-alt", "Interactive figure"))
    kind = "live-table" if "vitlab-runs" in html else "interactive"
    block = f'<div class="{kind}" role="group" aria-label="{label}">{html}</div>'
    return ({"text/markdown": raw_html(block)},)


def _pick_static(output, cell):
    for kind in ("text/markdown", *PICTURES, "text/latex", "text/plain"):
        if kind in output.data:
            size = output.metadata.get(kind) or {}
            return {kind: output.data[kind]}, {kind: size} if size else {}
    return {"text/markdown": "*This output is only available in the HTML report.*"}, {}


def _shrink(data, metadata):
    """A large PNG is a photograph, which a JPEG holds in a quarter of the bytes."""
    png = base64.b64decode(data.get("image/png", ""))
    if len(png) < MAX_PNG:
        return data, metadata
    with Image.open(io.BytesIO(png)) as picture:
        jpeg = io.BytesIO()
        dpi = picture.info.get("dpi", (CSS_DPI, CSS_DPI))
        picture.convert("RGB").save(jpeg, "JPEG", quality=90, dpi=dpi)
    text = base64.b64encode(jpeg.getvalue()).decode()
    return {"image/jpeg": text}, {"image/jpeg": metadata.get("image/png", {})}

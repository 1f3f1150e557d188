"""A cleaned notebook as pandoc's Markdown, with Quarto's meaning of label, captions, echo, output,
include, code-fold.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from PIL import Image

from vitlab.report.blocks import code_block
from vitlab.report.options import read_options

ENDINGS = {"image/png": ".png", "image/svg+xml": ".svg", "image/jpeg": ".jpg"}
CSS_DPI = 96  # what a browser takes for an inch


@dataclass(frozen=True)
class Medium:
    """What is rendered to. folder: where pictures go; width, height: the largest a picture may be,
    in inches.
    """

    folder: Path
    fold: bool | str = False
    width: float = 10.0
    height: float = 20.0


def notebook_markdown(notebook: NotebookNode, medium: Medium, prefix: str = "") -> str:
    """The Markdown text. Pictures go to the medium's folder as `<prefix>-<cell>-<output>.png`; the
    text names the files.
    """
    parts = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            parts.append(_code_cell(cell, medium, f"{prefix}-{number}"))
        elif cell.cell_type == "markdown":
            parts.append(cell.source)
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def _code_cell(cell, medium, name):
    options, code = read_options(cell.source)
    if options.get("include") is False:
        return ""
    parts = []
    if options.get("echo", True) and code.strip():
        fold = options.get("code-fold", medium.fold)
        summary = _quote(options.get("code-summary", "Code"))
        alone = "" if cell.outputs else " .alone"
        parts.append(
            code_block(
                code, f'.python .cell-code{alone} fold="{str(fold).lower()}" summary="{summary}"'
            )
        )
    if options.get("output", True) is not False:
        parts += _outputs(cell, options, medium, name)
    return "\n\n".join(parts)


def _outputs(cell, options, medium, name):
    """The outputs in order; those that the caption speaks of in one captioned block, where the
    first of them stands.
    """
    label = str(options.get("label", ""))
    kind = (
        "tbl"
        if label.startswith("tbl-") or ("tbl-cap" in options and "fig-cap" not in options)
        else "fig"
    )
    caption = options.get(f"{kind}-cap", "")
    identifier = f"#{label}" if label.startswith(("fig-", "tbl-")) else ""
    parts, captioned, place = [], [], 0
    for number, output in enumerate(cell.outputs, start=1):
        if output.output_type == "stream":
            parts.append(
                output.text
                if options.get("output") == "asis"
                else code_block(output.text, ".output")
            )
            continue
        text = _display(
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


def _display(data, metadata, options, medium, name):
    kind, content = next(iter(data.items()))
    if kind in ENDINGS:
        return _picture(kind, content, metadata.get(kind, {}), options, medium, name)
    if kind == "text/plain":
        return code_block(content, ".output")
    return content


def _picture(kind, content, size, options, medium, name):
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

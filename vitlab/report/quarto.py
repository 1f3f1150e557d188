"""The report with Quarto: a project for the site and one for the PDF in the build folder, made from
the project's _quarto.yml.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import yaml

from vitlab.report.gather import Report
from vitlab.report.markdown import run_pandoc
from vitlab.report.settings import Settings, find_section, hash_templates

HERE = Path(__file__).parent
CSL, STYLE = "default.csl", "content.css"
FILTER = {"path": "common.lua", "at": "pre-ast"}  # before Quarto: its call-outs need a font package
# of the PDF, not in _quarto.yml: there, `quarto render` would make a PDF of each notebook
TYPST = {
    "template-partials": ["page.typ", "typst-show.typ"],  # the layout is that of the other way
    "syntax-highlighting": "idiomatic",
    "citeproc": True,  # the same citation style as in HTML
    "tbl-colwidths": False,
}


def render_with_quarto(
    quarto: str,
    report: Report,
    settings: Settings,
    build: Path,
    output: Path,
    papers: Sequence[str],
) -> dict[str, Path]:
    """Render build/site and build/pdf, and copy pages and PDF to `output`. RuntimeError has the
    output of Quarto.
    """
    write_project(settings, build / "site", site_config(report, settings))
    write_project(settings, build / "pdf", pdf_config(settings, papers))
    _run(quarto, ["render"], build / "site")
    for page in report.pages:  # each has all it needs: libraries and search index stay behind
        shutil.copy(build / "site" / "_site" / f"{page.slug}.html", output)
    for name in papers:
        _run(quarto, ["render", f"{name}.ipynb", "--to", "typst"], build / "pdf")
        shutil.copy(build / "pdf" / f"{name}.pdf", output)
    return {"html": output / "index.html", "pdf": output / "report.pdf"}


def write_project(settings: Settings, folder: Path, config: dict) -> None:
    """Put what Quarto needs beside the notebooks: configuration, references, filter, templates."""
    for file in (*settings.bibliography, *([settings.csl] if settings.csl else [])):
        shutil.copy(file, folder)
    if not settings.csl:
        style = run_pandoc("--print-default-data-file", "default.csl")  # as without Quarto
        (folder / CSL).write_text(style, encoding="utf-8")
    for name in (FILTER["path"], STYLE, *TYPST["template-partials"]):
        shutil.copy(HERE / name, folder)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (folder / "_quarto.yml").write_text(text, encoding="utf-8")


def site_config(report: Report, settings: Settings) -> dict:
    """The project's own configuration, for the gathered pages: what to render and the
    navigation.
    """
    config = _shared_config(settings)
    config["project"] = {
        "type": "website",
        "output-dir": "_site",
        "render": [f"{page.slug}.ipynb" for page in report.pages],
    }
    sidebar = {**find_section(config, "website", "sidebar"), "contents": _sidebar(report.pages)}
    config["website"] = {
        **find_section(config, "website"),
        "title": report.title or settings.title,
        "sidebar": sidebar,
        "page-navigation": False,  # with embed-resources, each page would hold the one before
    }
    # each page one file, to be opened offline
    html = {**find_section(config, "format", "html"), "embed-resources": True}
    html |= {"css": STYLE, "html-table-processing": "none", "code-overflow": "wrap"}
    config["format"] = {"html": html}
    return config


def pdf_config(settings: Settings, papers: Sequence[str] = ("report",)) -> dict:
    """The project's own configuration, for the notebook of each PDF. It is a default project: in
    a website, the PDF would be one of the pages.
    """
    config = _shared_config(settings)
    config.pop("website", None)
    config["project"] = {"type": "default", "render": [f"{name}.ipynb" for name in papers]}
    config["format"] = {"typst": TYPST | find_section(config, "format", "typst")}
    config |= {"version": version("vitlab"), "templates": hash_templates()}
    return config


def _shared_config(settings):
    config = copy.deepcopy(settings.config)
    config["bibliography"] = [file.name for file in settings.bibliography]
    config["csl"] = settings.csl.name if settings.csl else CSL
    config["filters"] = [FILTER]
    config["execute"] = {**find_section(config, "execute"), "enabled": False}
    return config


def _sidebar(pages):
    """Sections by batch, model and further grid values; pages without any are in no section."""
    return [*_sections(pages, 0), {"text": "The report as PDF", "href": "report.pdf"}]


def _sections(pages, depth):
    if depth == 3:
        entries = []
        for page in pages:
            text = page.heading + (" (not finished)" if page.trouble else "")
            entries.append({"text": text, "href": f"{page.slug}.ipynb"})
        return entries
    contents = []
    for title, members in groupby(pages, key=lambda page: page.group[depth]):
        inner = _sections(list(members), depth + 1)
        contents += [{"section": title, "contents": inner}] if title else inner
    return contents


def _run(quarto, arguments, folder):
    environment = {**os.environ, "QUARTO_PYTHON": sys.executable}
    done = subprocess.run(
        [quarto, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"`quarto {' '.join(arguments)}` in {folder} ended with code"
            f" {done.returncode}:\n{done.stdout.strip()[-6000:]}"
        )

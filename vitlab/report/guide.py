"""The guides as pages of the site: Markdown files in reports/guide, in the order of their names."""

from __future__ import annotations

import re

from nbformat.v4 import new_markdown_cell, new_notebook

from vitlab.report.gather import Page
from vitlab.runs import project_root

PART = "Guide"


def guide_pages() -> list[Page]:
    """A page for each guide that the project has; they stand in the site alone, not on paper."""
    pages = []
    for path in sorted((project_root() / "reports" / "guide").glob("*.md")):
        heading, text = re.fullmatch(
            r"# +(.+?) *\n(.*)", path.read_text(encoding="utf-8"), flags=re.DOTALL
        ).groups()
        notebook = new_notebook(cells=[new_markdown_cell(text.strip())])
        slug = "guide-" + re.sub(r"^\d+_", "", path.stem).replace("_", "-")
        pages.append(
            Page(
                slug,
                path.stem,
                heading,
                {},
                (PART, "", ""),
                notebook,
                path=f"reports/guide/{path.name}",
                paper=False,
            )
        )
    return pages

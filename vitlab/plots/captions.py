"""Captions in Jupyter: the `#| fig-cap` and `#| tbl-cap` of a cell, which only reports show by
themselves.
"""

from __future__ import annotations

import re

import yaml
from IPython import get_ipython
from IPython.display import Markdown, display

from vitlab.markup import JUPYTER_ONLY

CAPTION = re.compile(r"^#\| (fig|tbl)-cap:(.*)$", re.MULTILINE)
WORDS = {"fig": "Figure", "tbl": "Table"}


def show_captions() -> None:
    """From now on, show the caption of each cell below its output; does nothing outside IPython."""
    shell = get_ipython()
    if shell is None:
        return
    callbacks = shell.events.callbacks["post_run_cell"]
    if show_caption not in callbacks:
        shell.events.register("post_run_cell", show_caption)


def show_caption(result) -> None:
    """Display the caption of a cell that has run. result: IPython's ExecutionResult."""
    found = CAPTION.search(result.info.raw_cell or "")
    if found and result.success:
        text = str(yaml.safe_load(found[2])).strip()
        display(Markdown(f"**{WORDS[found[1]]}:** {text}"), metadata=JUPYTER_ONLY)

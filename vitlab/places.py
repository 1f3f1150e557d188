"""Where things lie on this machine: the project, and the folder for everything that is made."""

from __future__ import annotations

import os
from pathlib import Path


def project_root(start: Path | None = None) -> Path:
    """The nearest folder upwards that holds _quarto.yml; the starting folder (default: the working one) when there is none."""
    start = Path(start or Path.cwd()).resolve()
    return next((folder for folder in (start, *start.parents) if (folder / "_quarto.yml").is_file()), start)


def reports_dir() -> Path:
    """Where runs, cache and rendered pages are kept: $VITLAB_REPORTS, or reports/ in the project."""
    return Path(os.environ["VITLAB_REPORTS"]) if os.environ.get("VITLAB_REPORTS") else project_root() / "reports"

"""The settings of _quarto.yml, for both ways of rendering: title, language, bibliography, code
folding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vitlab.errors import UserError
from vitlab.files import hash_files, read_yaml
from vitlab.places import project_root

TEMPLATES = (".css", ".html", ".lua", ".typ")


@dataclass(frozen=True)
class Settings:
    """bibliography, csl: files, absolute. fold: whether code starts folded in HTML (true, false,
    "show"). config: the file.
    """

    title: str = "vitlab"
    lang: str = "en"
    bibliography: tuple[Path, ...] = ()
    csl: Path | None = None
    fold: bool | str = True
    toc_depth: int = 3
    config: dict = field(default_factory=dict, repr=False)


def read_settings(root: Path | None = None) -> Settings:
    """The settings of the project, or defaults; UserError names a missing bibliography."""
    root = root or project_root()
    file = root / "_quarto.yml"
    config = (read_yaml(file, "settings file") if file.is_file() else None) or {}
    if not isinstance(config, dict):
        raise UserError(
            f"{file} must hold names and values, such as `bibliography: reports/references.bib`; it"
            f" holds {config!r}"
        )
    listed, style = config.get("bibliography") or [], config.get("csl") or ""
    listed = [listed] if isinstance(listed, str) else listed
    if not (isinstance(listed, list) and all(isinstance(name, str) for name in [*listed, style])):
        raise UserError(
            f"bibliography and csl of {file} must be names of files, such as `bibliography:"
            " reports/references.bib`"
        )
    bibliography = tuple(root / name for name in listed)
    csl = root / style if style else None
    for path in (*bibliography, *([csl] if csl else [])):
        if not path.is_file():
            raise UserError(f"{file} names {path}, and there is no such file")
    html = find_section(config, "format", "html")
    return Settings(
        title=find_section(config, "website").get("title") or "vitlab",
        lang=config.get("lang") or "en",
        bibliography=bibliography,
        csl=csl,
        fold=html.get("code-fold", True),
        toc_depth=html.get("toc-depth", 3),
        config=config,
    )


def hash_templates() -> str:
    """Eight letters that change with what gives pages and PDF their looks; both carry them."""
    folder = Path(__file__).parent
    files = [path for path in folder.iterdir() if path.suffix in TEMPLATES]
    return hash_files([*files, folder / "paper.py"], folder)[:8]


def find_section(config: dict, *names: str) -> dict:
    """The settings below these names; none where the value is a word (`format: html`)."""
    for name in names:
        config = config.get(name)
        if not isinstance(config, dict):
            return {}
    return config

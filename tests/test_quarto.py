"""The report with Quarto, which tests cannot count on: its call is recorded at the edge, its input
held against its rules.
"""

import json
import os
import stat
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from tests.test_report import (
    POINT,
    make_code,
    make_interactive,
    make_picture,
    make_table,
    write_batch,
)
from vitlab.report import render_report
from vitlab.report.gather import gather_report
from vitlab.report.options import read_options
from vitlab.report.quarto import pdf_config, site_config
from vitlab.report.settings import read_settings

ROOT = Path(__file__).parents[1]

# From src/resources/schema of quarto-cli 1.8: `project` and `website` are closed objects, an
# unknown key there is an error.
PROJECT = {
    "title",
    "type",
    "render",
    "execute-dir",
    "output-dir",
    "lib-dir",
    "resources",
    "preview",
    "pre-render",
    "post-render",
}
WEBSITE = {
    "title",
    "description",
    "favicon",
    "site-url",
    "site-path",
    "search",
    "navbar",
    "sidebar",
    "page-navigation",
    "back-to-top-navigation",
    "bread-crumbs",
    "page-footer",
    "body-header",
    "body-footer",
}
SIDEBAR = {
    "id",
    "title",
    "logo",
    "search",
    "tools",
    "contents",
    "style",
    "background",
    "foreground",
    "border",
    "alignment",
    "collapse-level",
    "pinned",
    "header",
    "footer",
}
TOP = {"project", "website", "format", "execute", "bibliography", "csl", "lang", "quarto-required"}
EXECUTE = {
    "enabled": bool,
    "echo": bool,
    "warning": bool,
    "error": bool,
    "output": bool,
    "include": bool,
    "freeze": (bool, str),
}
HTML = {
    "theme": str,
    "toc": bool,
    "toc-depth": int,
    "code-fold": (bool, str),
    "html-math-method": str,
    "tbl-colwidths": bool,
    "embed-resources": bool,
    "code-tools": (bool, dict),
    "css": str,
}
TYPST = {
    "papersize": str,
    "margin": dict,
    "mainfont": str,
    "fontsize": str,
    "toc": bool,
    "toc-depth": int,
    "section-numbering": str,
    "citeproc": bool,
    "tbl-colwidths": bool,
    "keep-typ": bool,
}
KNOWN = {"execute": EXECUTE, "html": HTML, "typst": TYPST}
FAKE = """#!{python}
import json, pathlib, sys
here = pathlib.Path.cwd()
with open({log!r}, "a") as log:
    print(json.dumps({{"arguments": sys.argv[1:], "folder": here.name}}), file=log)
if {fails}:
    print("ERROR: YAML validation failed in _quarto.yml")
    sys.exit(3)
if here.name == "site":
    (here / "_site").mkdir()
    for source in here.glob("*.ipynb"):
        (here / "_site" / (source.stem + ".html")).write_text("rendered by quarto")
else:
    (here / "report.pdf").write_bytes(b"%PDF- by quarto")
"""


def check_config(config):
    assert set(config) <= TOP
    assert set(config["project"]) <= PROJECT
    assert config["project"]["type"] in ("default", "website", "book", "manuscript")
    assert set(config.get("website", {})) <= WEBSITE
    assert set(config.get("website", {}).get("sidebar", {})) <= SIDEBAR
    for name, options in {"execute": config["execute"], **config["format"]}.items():
        for key, value in options.items():
            assert isinstance(value, KNOWN[name][key]), f"{name}: {key}: {value!r}"
    assert config["execute"]["enabled"] is False, "executed notebooks are rendered as they are"
    if "html" in config["format"]:
        assert config["format"]["html"]["html-math-method"] == "mathml", (
            "MathJax and KaTeX come from the network"
        )
        assert config["format"]["html"]["theme"] == "default", (
            "other themes load fonts from the network"
        )
    if "typst" in config["format"]:
        assert set(config["format"]["typst"]["margin"]) <= {
            "x",
            "y",
            "top",
            "bottom",
            "left",
            "right",
        }


@pytest.fixture
def batch(reports_folder, monkeypatch):
    cells = [
        nbformat.v4.new_markdown_cell("# Evaluate: *all*\n\nSee @fig-roc."),
        make_code(
            "#| label: fig-roc\n#| fig-cap: Curve.\niplot_roc()", make_interactive(monkeypatch)
        ),
        make_code(
            "#| label: tbl-metrics\n#| tbl-cap: Metrics.\ntable",
            make_table(metric=["AUC"], value=[0.9]),
        ),
        make_code("plot()", make_picture()),
    ]
    tasks = [("08_compare", {}, [nbformat.v4.new_markdown_cell("# Compare")], "done", None)]
    tasks += [("04_evaluate", {**POINT, "seed": seed}, cells, "done", None) for seed in (0, 1)]
    tasks.append(("05_interpret", POINT, None, "skipped", None))
    write_batch(reports_folder, "small", "Small", tasks)
    return reports_folder


@pytest.fixture
def quarto(tmp_path, monkeypatch):
    """Put a stand-in named quarto on the PATH; gives a function that reads what it was called
    with.
    """

    def install(fails=False):
        folder, log = tmp_path / "bin", tmp_path / "calls.jsonl"
        folder.mkdir()
        script = folder / "quarto"
        script.write_text(FAKE.format(python=sys.executable, log=str(log), fails=fails))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    if os.name == "nt":
        pytest.skip("the stand-in for quarto is a script with a #! line")
    return install


def test_project_configuration_holds_only_keys_that_quarto_knows():
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    check_config(config)
    assert list(ROOT.glob("reports/references.bib")) == [ROOT / config["bibliography"]]
    assert config["project"]["output-dir"] == "reports/_site"


def test_generated_configurations_are_valid_and_name_every_page(batch):
    report, settings = gather_report(), read_settings(ROOT)
    site, pdf = site_config(report, settings), pdf_config(settings)
    check_config(site)
    check_config(pdf)
    pages = [
        "index.ipynb",
        "04-evaluate-hybrid-vit-seed-0.ipynb",
        "05-interpret-hybrid-vit-seed-0.ipynb",
        "04-evaluate-hybrid-vit-seed-1.ipynb",
    ]
    assert site["project"]["render"] == pages
    assert site["website"]["sidebar"]["contents"] == [
        {"text": "Compare", "href": pages[0]},
        {
            "section": "hybrid_vit",
            "contents": [
                {
                    "section": "seed 0",
                    "contents": [
                        {"text": "Evaluate: *all*", "href": pages[1]},
                        {"text": "Interpret (not finished)", "href": pages[2]},
                    ],
                },
                {"section": "seed 1", "contents": [{"text": "Evaluate: *all*", "href": pages[3]}]},
            ],
        },
        {"text": "The report as PDF", "href": "report.pdf"},
    ]
    assert site["format"].keys() == {"html"}, (
        "two formats and embedded resources do not go together (quarto-cli #11206)"
    )
    assert site["format"]["html"]["embed-resources"] is True
    assert pdf["format"].keys() == {"typst"}
    assert "website" not in pdf


def test_quarto_is_called_once_for_the_site_and_once_for_the_pdf(batch, quarto):
    calls = quarto()
    paths = render_report(["small"])
    assert calls() == [
        {"arguments": ["render"], "folder": "site"},
        {"arguments": ["render", "report.ipynb", "--to", "typst"], "folder": "pdf"},
    ]
    assert paths["html"].read_text() == "rendered by quarto"
    assert (batch / "_site" / "04-evaluate-hybrid-vit-seed-1.html").is_file()
    assert paths["pdf"].read_bytes() == b"%PDF- by quarto"
    for folder in ("site", "pdf"):
        config = yaml.safe_load(
            (batch / "_build" / folder / "_quarto.yml").read_text(encoding="utf-8")
        )
        check_config(config)
        assert all(
            (batch / "_build" / folder / name).is_file()
            for name in [*config["project"]["render"], *config["bibliography"]]
        )


def test_quarto_gets_notebooks_that_ask_for_no_network(batch, quarto):
    """An output of type text/html or JavaScript makes Quarto add scripts from a CDN (its
    core/jupyter/widgets.ts).
    """
    quarto()
    render_report(["small"])
    files = [
        *(batch / "_build" / "site").glob("*.ipynb"),
        batch / "_build" / "pdf" / "report.ipynb",
    ]
    assert len(files) == 5 + len(list(ROOT.glob("reports/guide/*.md")))
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        nbformat.validate(notebook)
        kinds = {
            kind
            for cell in notebook.cells
            for output in cell.get("outputs", ())
            for kind in output.get("data", {})
        }
        assert kinds <= {"text/markdown", "image/png", "text/plain"}
        assert all(not cell.metadata for cell in notebook.cells), (
            "Quarto writes cell metadata into the page"
        )
        front = yaml.safe_load(notebook.cells[0].source.strip("-\n"))
        assert front["title"]
        labels = [
            read_options(cell.source)[0].get("label")
            for cell in notebook.cells
            if cell.cell_type == "code"
        ]
        labels = [label for label in labels if label]
        assert len(labels) == len(set(labels)), "Quarto refuses a label used twice"
    page = (batch / "_build" / "site" / "04-evaluate-hybrid-vit-seed-0.ipynb").read_text(
        encoding="utf-8"
    )
    assert "vitlab-plotlyjs" in page and "{=html}" in page
    assert "vitlab-plotly" not in files[-1].read_text(encoding="utf-8"), (
        "paper gets the static twin"
    )


def test_error_of_quarto_shows_what_it_said(batch, quarto):
    quarto(fails=True)
    with pytest.raises(RuntimeError, match=r"(?s)`quarto render`.*code 3.*YAML validation failed"):
        render_report(["small"])

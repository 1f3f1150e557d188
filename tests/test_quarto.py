"""The report with Quarto, which tests cannot count on: its call is recorded at the edge, its input
held against its rules.
"""

import json
import os
import re
import stat
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from PIL import Image

from tests.test_report import (
    POINT,
    make_code,
    make_interactive,
    make_picture,
    make_table,
    write_batch,
)
from vitlab.new_project import IGNORED
from vitlab.report import render_report
from vitlab.report.gather import gather_report
from vitlab.report.markdown import read_options, run_pandoc
from vitlab.report.quarto import pdf_config, site_config
from vitlab.report.settings import read_settings

ROOT = Path(__file__).parents[1]
FILTERS = ROOT / "vitlab" / "report"

# From src/resources/schema of quarto-cli 1.8: these are closed objects, where an unknown key is an
# error. Of each, the keys that we use.
KEYS = {
    "project": {"type", "render", "output-dir"},
    "website": {"title", "search", "page-navigation", "back-to-top-navigation", "sidebar"},
    "sidebar": {"style", "contents"},
}
TOP = {"project", "website", "format", "execute", "bibliography", "csl", "lang", "quarto-required"}
TOP |= {"filters", "version", "templates"}  # the last two are for our own templates
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
    (here / "_site" / "search.json").write_text("[]")
    (here / "_site" / "site_libs").mkdir()
    for source in here.glob("*.ipynb"):
        (here / "_site" / (source.stem + ".html")).write_text("rendered by quarto")
else:
    (here / "report.pdf").write_bytes(b"%PDF- by quarto")
"""


def check_config(config):
    assert set(config) <= TOP
    assert set(config["project"]) <= KEYS["project"]
    assert config["project"]["type"] in ("default", "website")
    website = config.get("website", {})
    assert set(website) <= KEYS["website"]
    assert set(website.get("sidebar", {})) <= KEYS["sidebar"]
    assert config["execute"]["enabled"] is False, "executed notebooks are rendered as they are"
    if "html" in config["format"]:
        html = config["format"]["html"]
        assert html["html-math-method"] == "mathml", "MathJax and KaTeX come from the network"
        assert html["theme"] == "default", "other themes load fonts from the network"


@pytest.fixture
def batch(reports_folder, monkeypatch):
    cells = [
        nbformat.v4.new_markdown_cell("# Evaluate: *all*\n\nSee @fig-roc."),
        make_code("#| label: fig-roc\n#| fig-cap: Curve.\niplot_roc()", make_interactive()),
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
    html = site["format"]["html"]
    assert html["embed-resources"] is True and site["website"]["page-navigation"] is False
    assert html["css"] == "content.css" and html["code-overflow"] == "wrap"
    assert html["html-table-processing"] == "none" and html["code-tools"] == {"source": False}
    assert pdf["format"].keys() == {"typst"}
    assert "website" not in pdf
    both = pdf_config(settings, ["report", "report-notebooks"])  # others do not get these settings
    assert both["project"]["render"] == ["report.ipynb", "report-notebooks.ipynb"]
    typst = pdf["format"]["typst"]
    assert typst["template-partials"] == ["page.typ", "typst-show.typ"], "cover and running header"
    assert typst["syntax-highlighting"] == "idiomatic", "code that is not justified"
    assert typst["citeproc"] and pdf["csl"] == site["csl"], "one citation style"
    for config in (site, pdf):
        assert config["filters"] == [{"path": "common.lua", "at": "pre-ast"}]


@pytest.mark.parametrize(("rows", "breakable"), [(5, "false"), (40, "true")])
def test_filter_makes_tables_fit_and_long_ones_breakable(rows, breakable):
    header = "| model" + " | a_long_name_of_a_column" * 8 + " |\n" + "|-" * 9 + "|\n"
    text = header + ("| efficientnet_lite0" + " | 0.946" * 8 + " |\n") * rows
    typst = filter_text(text, "typst")
    factor, breaks = re.search(r"#fitted\(([\d.]+), (\w+)\)", typst).groups()
    assert float(factor) < 1 and breaks == breakable
    assert 'class="table-scroll' in filter_text(text, "html")


def test_filter_leaves_no_callout_to_quarto_and_no_link_without_a_target():
    """Quarto's own call-outs import a Typst package, which fails offline."""
    text = '::: {.callout-tip title="Try it"}\nNow.\n:::\n\n# Here {#here}\n\n[a](#here) [b](#gone)'
    typst = filter_text(text, "typst")
    assert '#callout("tip", [' in typst and "Try it" in typst
    assert "#link(<here>)[a] b" in typst and "gone" not in typst
    html = filter_text(text, "html")
    assert 'class="remark tip"' in html and "callout" not in html


@pytest.mark.parametrize("target", ["typst", "html"])
def test_filter_adds_references_where_something_is_cited(target):
    assert "References" in filter_text("As @deitsch2019 found.", target)
    assert "References" not in filter_text(
        "See @fig-a.\n\n```python\n@models.register\n```", target
    )


def test_tall_figures_of_the_paper_move_and_wide_ones_scroll_on_a_phone(tmp_path):
    Image.new("RGB", (600, 900)).save(tmp_path / "tall.png", dpi=(100, 100))
    Image.new("RGB", (600, 100)).save(tmp_path / "low.png", dpi=(100, 100))
    text = "---\nflow: true\n---\n" + "\n\n".join(
        f"![Caption.]({tmp_path}/{name}.png){{#fig-{name}}}" for name in ("tall", "low")
    )
    assert filter_text(text, "typst").count("placement: auto") == 1
    assert filter_text(text, "html").count('class="wide"') == 2


def filter_text(text, target):
    options = (f"--to={target}", "--standalone", f"--lua-filter={FILTERS / 'common.lua'}")
    return run_pandoc("--from=markdown", "--wrap=none", "--metadata=title:x", *options, text=text)


def test_quarto_renders_the_site_alone_and_leaves_gitignore_as_it_is():
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    assert config["format"].keys() == {"html"}, "`quarto render` makes no PDF of each notebook"
    for ignored in ((ROOT / ".gitignore").read_text(encoding="utf-8"), IGNORED):
        assert {"/.quarto/", "**/*.quarto_ipynb"} <= set(ignored.splitlines())


def test_quarto_is_called_for_site_and_pdf_with_notebooks_that_need_no_network(batch, quarto):
    """An output of type text/html or JavaScript makes Quarto add scripts from a CDN (its
    core/jupyter/widgets.ts).
    """
    calls = quarto()
    paths = render_report(["small"])
    assert calls() == [
        {"arguments": ["render"], "folder": "site"},
        {"arguments": ["render", "report.ipynb", "--to", "typst"], "folder": "pdf"},
    ]
    assert paths["html"].read_text() == "rendered by quarto"
    assert (batch / "_site" / "04-evaluate-hybrid-vit-seed-1.html").is_file()
    assert paths["pdf"].read_bytes() == b"%PDF- by quarto"
    left = {path.name for path in (batch / "_site").iterdir() if path.suffix != ".html"}
    assert left == {"report.pdf", "pages.json"}, "no search index, no libraries"
    build = batch / "_build"
    for folder in (build / "site", build / "pdf"):
        config = yaml.safe_load((folder / "_quarto.yml").read_text(encoding="utf-8"))
        check_config(config)
        files = [*config["project"]["render"], *config["bibliography"], config["csl"]]
        files += [entry["path"] for entry in config["filters"]]
        for form in config["format"].values():
            files += [*form.get("template-partials", ()), *([form["css"]] if "css" in form else [])]
        for name in files:
            assert (folder / name).is_file()
    files = [*(build / "site").glob("*.ipynb"), build / "pdf" / "report.ipynb"]
    assert len(files) == 5 + len(list(ROOT.glob("reports/guide/*.md")))
    for file in files:
        check_notebook(nbformat.read(file, as_version=4))
    page = (build / "site" / "04-evaluate-hybrid-vit-seed-0.ipynb").read_text(encoding="utf-8")
    assert "vitlab-plotlyjs" in page and "{=html}" in page
    assert "vitlab-plotly" not in files[-1].read_text(encoding="utf-8"), "paper has pictures"


def check_notebook(notebook):
    nbformat.validate(notebook)
    labels = []
    for cell in notebook.cells:
        assert not cell.metadata, "Quarto writes cell metadata into the page"
        for output in cell.get("outputs", ()):
            assert set(output.get("data", {})) <= {"text/markdown", "image/png", "text/plain"}
        if cell.cell_type == "code":
            labels += [label for label in [read_options(cell.source)[0].get("label")] if label]
    assert len(labels) == len(set(labels)), "Quarto refuses a label used twice"
    assert yaml.safe_load(notebook.cells[0].source.strip("-\n"))["title"]


def test_where_quarto_fails_its_words_are_kept_and_pandoc_renders(batch, quarto, caplog):
    quarto(fails=True)
    paths = render_report(["small"])
    assert re.search(r"(?s)`quarto render`.*code 3.*YAML validation failed", caplog.text)
    assert paths["html"].is_file() and paths["pdf"].read_bytes().startswith(b"%PDF")

"""The report without Quarto: what the notebooks hold arrives in the HTML pages and in the PDF, and
nothing asks for a network.
"""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pypdf
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from vitlab import report as report_package
from vitlab.errors import UserError
from vitlab.plots import interactive
from vitlab.report import render_report
from vitlab.report.clean import clean_notebook, for_paper, for_web
from vitlab.report.combine import combine_pages
from vitlab.report.gather import Report, describe_point, gather_report, order_tasks
from vitlab.report.markdown import (
    code_block,
    find_headings,
    read_options,
    run_pandoc,
    shift_headings,
    write_options,
)
from vitlab.report.pandoc import Medium, notebook_markdown
from vitlab.report.quarto import TYPST, pdf_config, site_config
from vitlab.report.settings import read_settings

POINT = {"model": "hybrid_vit", "seed": 0}
FINETUNE = """# Fine-tune a model

A Vision Transformer [@dosovitskiy2021] reads patches; the yardstick is @deitsch2019. The loss
falls, see @fig-history.[^1]

[^1]: Label smoothing keeps it above zero.

## Set-up {#sec-setup}

A head computes $\\sqrt{d}$ of its width.

::: {.callout-warning title="Licence of the images"}
They are CC BY-NC-SA 4.0; more in @sec-setup, then [evaluate](04_evaluate.ipynb).
:::
"""


def make_png(width=3.0, dpi=100):
    figure, ax = plt.subplots(figsize=(width, 2.0), dpi=dpi)
    ax.plot([1, 2], [3, 1])
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def make_code(source, *outputs, tags=()):
    return new_code_cell(
        source,
        outputs=list(outputs),
        execution_count=1,
        metadata={"tags": list(tags)} if tags else {},
    )


def make_picture():
    return new_output(
        "display_data", data={"image/png": make_png(), "text/plain": "<Figure size 300x200>"}
    )


def make_table(**columns):
    table = pd.DataFrame(columns)
    return new_output(
        "execute_result",
        data={"text/html": table._repr_html_(), "text/plain": str(table)},
        execution_count=1,
    )


def make_interactive(slope=1):
    """What a notebook keeps of a real interactive figure."""
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0, slope])
    shown = interactive.Interactive(
        go.Figure(go.Scatter(x=[1, 2], y=[2, 1], name="the-live-series")), figure
    )
    return new_output("display_data", data=shown._repr_mimebundle_())


def make_parameters(**injected):
    own = """dataset = "digits"  # any name listed by vitlab.data.available()
model = "vit_scratch"  # Füße
seed = 7
sizes = [
    1,
]"""
    lines = "\n".join(f"{key} = {value!r}" for key, value in injected.items())
    return [
        make_code(own, tags=["parameters"]),
        make_code(f"# Parameters\n{lines}\n", tags=["injected-parameters"]),
    ]


def make_failed():
    mark = new_markdown_cell('<span id="papermill-error-cell">An Exception was encountered</span>')
    mark.metadata["tags"] = ["papermill-error-cell-tag"]
    trace = ["\x1b[0;31mValueError\x1b[0m: the scores hold NaN"]
    error = new_output("error", ename="ValueError", evalue="the scores hold NaN", traceback=trace)
    broken = make_code(
        '#| label: tbl-never\n#| tbl-cap: "Never made."\nmetrics_table(predictions)', error
    )
    return [
        mark,
        new_markdown_cell("# Evaluate\n\nHow good is it?"),
        *make_parameters(**POINT),
        broken,
    ]


def write_batch(folder, name, title, tasks):
    """A batch as `vitlab batch` leaves it. tasks: (notebook, point, cells or None, status,
    error).
    """
    rows = []
    for notebook, point, cells, status, error in tasks:
        path = (
            f"runs/{name}/{'-'.join(map(str, point.values())) or 'once'}/notebooks/{notebook}.ipynb"
        )
        if cells is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(new_notebook(cells=cells), folder / path)
        row = {
            "notebook": notebook,
            "point": point,
            "parameters": {"dataset": "elpv", **point},
            "path": path,
            "status": status,
        }
        rows.append(
            {**row, "error": error, "note": "03_finetune failed" if status == "skipped" else ""}
        )
    target = folder / "runs" / "batches" / name / "batch.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"title": title, "name": name, "tasks": rows}))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small report, rendered once: folder, HTML text by page, PDF."""
    folder = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("VITLAB_REPORTS", str(folder))
        monkeypatch.setattr(report_package.shutil, "which", lambda name: None)
        history = """#| label: fig-history
#| fig-cap: "Loss of `hybrid_vit` by epoch."
#| fig-alt: 'Two "falling" curves & more.'
plot_history(history)"""
        finetune = [
            new_markdown_cell(FINETUNE),
            *make_parameters(**POINT),
            make_code(
                history, new_output("stream", name="stderr", text="NOISE-ON-STDERR"), make_picture()
            ),
            make_code(
                "#| output: false\nrun.finish()",
                new_output("stream", name="stdout", text="HIDDEN-OUTPUT"),
            ),
            make_code(
                "#| echo: false\nhidden_source()",
                new_output("stream", name="stdout", text=" 1 %\r 99 %\rwritten out\n"),
            ),
            make_code(
                '#| label: tbl-history\n#| tbl-cap: "The last epochs."\nhistory.tail()',
                make_table(
                    epoch=[11, 12],
                    val_roc_auc=[0.9412, 0.9387],
                    note=["best | so far", "$5 @nobody"],
                ),
            ),
        ]
        compare = [
            new_markdown_cell(
                "# Compare models\n\nPublished results stand beside [@song2024]. It began with"
                " [data](01_explore_data.ipynb)."
            ),
            make_code(
                '#| label: fig-cost\n#| fig-cap: "Cost."\n#| fig-alt: "Dots."\niplot_cost(table)',
                make_interactive(),
            ),
            make_code(
                '#| label: fig-more\n#| fig-cap: "More."\niplot(table)',
                make_interactive(slope=2),
            ),
        ]
        explore = [
            new_markdown_cell("# Explore the data\n\nWhat is in it?"),
            make_code("plot()", make_picture()),
        ]
        error = {
            "cell": 5,
            "line": "metrics_table(predictions)",
            "name": "ValueError",
            "value": "the scores hold NaN",
        }
        tasks = [
            ("01_explore_data", {}, explore, "done", None),
            ("03_finetune", POINT, finetune, "done", None),
            ("04_evaluate", POINT, make_failed(), "failed", error),
            ("05_interpret", POINT, None, "skipped", None),
            ("08_compare", {}, compare, "done", None),
        ]
        write_batch(folder, "small", "A small report", tasks)
        paths = render_report(["small"])
    site = folder / "_site"
    assert paths == {
        "html": site / "index.html",
        "pdf": site / "report.pdf",
        "findings": folder / "_build" / "findings.json",
    }
    pages = {path.stem: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    listed = json.loads((site / "pages.json").read_text())
    assert listed["runs/small/hybrid_vit-0/notebooks/03_finetune.ipynb"] == f"{FINETUNE_PAGE}.html"
    return site, pages, pypdf.PdfReader(paths["pdf"])


FINETUNE_PAGE = "03-finetune-hybrid-vit-seed-0"


class Reader(HTMLParser):
    """Elements of a page with their attributes, and its text outside of scripts and style
    sheets.
    """

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self._skip = [], "", 0
        self.feed(html)
        self.text = " ".join(self.text.replace("\u200b", "").replace("\xa0", " ").split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._skip += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._skip -= tag in ("script", "style")

    def handle_data(self, data):
        self.text += "" if self._skip else data

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def pdf_text(pdf):
    return " ".join(
        " ".join(page.extract_text() for page in pdf.pages).replace("\xa0", " ").split()
    )


def test_report_text_figures_tables_and_citations_in_html(site):
    page = Reader(site[1][FINETUNE_PAGE])
    for text in (
        "Fine-tune a model · hybrid_vit · seed 0",
        "(Dosovitskiy et al. 2021)",
        "Deitsch et al. (2019)",
        "see Figure 1",
        "Figure 1: Loss of hybrid_vit by epoch.",
        "Table 1: The last epochs.",
        "0.9412",
        "best | so far",
        "$5 @nobody",
        "Licence of the images",
        "more in Set-up",
        "Label smoothing keeps it above zero.",
        "written out",
        "plot_history(history)",
        "An Image Is Worth 16x16 Words",
    ):
        assert text in page.text
    picture = page.all("img")[0]
    assert picture["alt"] == 'Two "falling" curves & more.'
    assert picture["width"] == "288", "3 inches, as drawn"
    assert base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")).startswith(
        b"\x89PNG"
    )
    assert page.all("math"), "formulas are MathML, which needs no script"


def test_report_text_figures_tables_and_citations_in_pdf(site):
    text = pdf_text(site[2])
    for expected in (
        "A small report",
        "Data set: elpv",
        "Contents",
        "2 Explore the data",
        "3 Fine-tune a model · hybrid_vit · seed 0",
        "(Dosovitskiy et al. 2021)",
        "Deitsch et al. (2019)",
        "Loss of hybrid_vit by epoch.",
        "Table 1: The last epochs.",
        "0.9412",
        "Licence of the images",
        "Label smoothing keeps it above zero.",
        "written out",
    ):
        assert expected in text
    assert text.count("Figure 3") == 2, "the caption and the reference to it"
    assert text.rfind("References") < text.rfind("An Image Is Worth 16x16 Words")
    assert sum(len(page.images) for page in site[2].pages) == 4, (
        "two pictures, and the static twins of two interactive figures"
    )
    assert site[2].metadata.title == "A small report"


def test_report_pdf_pictures_carry_alternative_texts(site):
    found = []

    def visit(item):
        item = item.get_object()
        if isinstance(item, list):
            for child in item:
                visit(child)
        elif isinstance(item, dict):
            found.extend([str(item["/Alt"])] if "/Alt" in item else [])
            if "/K" in item:
                visit(item["/K"])

    visit(site[2].trailer["/Root"]["/StructTreeRoot"])
    assert 'Two "falling" curves & more.' in found and "Dots." in found


def test_report_leaves_out_noise_and_what_options_hide(site):
    texts = [pdf_text(site[2]), *(Reader(html).text for html in site[1].values())]
    noise = ["NOISE-ON-STDERR", "HIDDEN-OUTPUT", "hidden_source", "99 %", "<Figure"]
    for words in [*noise, "An Exception was encountered"]:
        assert not any(words in text for text in texts), words


def test_report_plotly_is_live_in_html_and_absent_from_pdf(site):
    page = site[1]["index"]
    assert page.count('id="vitlab-plotlyjs"') == 1, "once a page, however many figures"
    assert page.count("the-live-series") == 2
    assert [
        item["aria-label"] for item in Reader(page).all("div") if item.get("role") == "group"
    ] == ["Dots.", "More."]
    assert not Reader(page).all("img"), "the static twin is for paper"
    assert "vitlab-plotlyjs" not in site[1][FINETUNE_PAGE], (
        "pages without such figures do not carry the library"
    )
    assert "the-live-series" not in pdf_text(site[2])


def test_report_pages_need_no_other_file_and_no_network(site):
    for html in site[1].values():
        page = Reader(html)
        sources = [
            item.get("src") or item.get("href")
            for item in page.all("script", "link", "img", "iframe", "source")
        ]
        assert all(source is None or source.startswith("data:") for source in sources)
        assert (
            "@import" not in html.split("</style>")[0] and "url(" not in html.split("</style>")[0]
        )


def test_report_pages_are_accessible_and_links_lead_somewhere(site):
    folder, pages, _ = site
    anchors = {
        stem: [item["id"] for _, item in Reader(html).elements if item.get("id")]
        for stem, html in pages.items()
    }
    for stem, html in pages.items():
        page = Reader(html)
        assert len(anchors[stem]) == len(set(anchors[stem])), f"an id of {stem} stands twice"
        assert page.all("html")[0]["lang"] == "en"
        assert len(page.all("h1")) == 1
        assert all(item.get("alt") for item in page.all("img"))
        assert any(item.get("aria-current") == "page" for item in page.all("a"))
        for target in (
            item["href"] for item in page.all("a") if not re.match(r"[a-z]+:", item["href"])
        ):
            file, _, anchor = target.partition("#")
            assert not file or (folder / file).is_file(), f"{stem} links to {target}"
            assert not anchor or anchor in anchors[Path(file).stem if file else stem], (
                f"{stem} links to {target}"
            )


def test_report_shows_failed_and_skipped_notebooks(site):
    failed, skipped = (
        Reader(site[1]["04-evaluate-hybrid-vit-seed-0"]).text,
        Reader(site[1]["05-interpret-hybrid-vit-seed-0"]).text,
    )
    assert (
        "This notebook did not run to its end In cell 5, at the line metrics_table(predictions)"
        " ValueError: the scores hold NaN" in failed
    )
    assert "This cell failed: ValueError" in failed and "Never made." not in failed
    assert "This notebook was skipped 03_finetune failed" in skipped
    home = Reader(site[1]["index"]).text
    assert "2 of 5 notebooks did not run to their end" in home
    assert "Evaluate not finished" in home, "in the navigation"
    assert "This notebook was skipped" in pdf_text(site[2])


def test_report_parameters_show_the_values_of_the_run(site):
    text = Reader(site[1][FINETUNE_PAGE]).text
    assert (
        "dataset = \"digits\" # any name listed by vitlab.data.available() model = 'hybrid_vit' #"
        " Füße seed = 0 sizes = [ 1, ]" in text
    )
    assert "# Parameters" not in text


def test_injected_values_replace_annotated_defaults():
    own = (
        "seed: int = 0  # Füße\nrate: float | None = (\n    None\n)\nname: str = 'a'; epochs ="
        " 3\nunset: int\nkept: int = 5"
    )
    given = "# Parameters\nseed = 4\nrate = 0.001\nname = 'b'\nepochs = 7\n"
    cells = [make_code(own, tags=["parameters"]), make_code(given, tags=["injected-parameters"])]
    (cell,) = clean_notebook(new_notebook(cells=cells)).cells
    lines = read_options(cell.source)[1].splitlines()
    assert (
        lines[:1] == ["seed: int = 4  # Füße"]
        and lines[1].startswith("rate: float | None = ")
        and "0.001" in cell.source
    )
    assert (
        lines[-3:] == ["name: str = 'b'; epochs = 7", "unset: int", "kept: int = 5"]
        and "None\n" not in cell.source
    )


def test_clean_notebook_turns_tables_to_markdown_with_numbers_to_the_right():
    table = make_table(
        name=["a", "–"], auc=[0.9, 0.8], range=["[0.1, 0.2]", "[0.3, 0.4]"], spread=["–", "–"]
    )
    notebook = clean_notebook(
        new_notebook(cells=[make_code("t1", table), make_code("t2", make_table(only=["text"]))])
    )
    first, second = (cell.outputs[0].data["text/markdown"].splitlines() for cell in notebook.cells)
    assert [cell.strip() for cell in first[0].split("|")[2:-1]] == [
        "name",
        "auc",
        "range",
        "spread",
    ]
    sides = [re.sub("-+", "-", cell) for cell in first[1].split("|")[2:-1]]
    assert sides == [":-", "-:", "-:", "-:"]
    assert [cell.strip() for cell in second[2].split("|")[1:-1]] == ["0", "text"]
    assert all(
        "text/html" not in output.data
        for cell in for_web(notebook).cells
        for output in cell.outputs
    )


@pytest.mark.parametrize("columns", [None, "split"])
def test_clean_notebook_puts_the_name_of_the_index_over_its_column(columns):
    table = pd.DataFrame({"train": [1, 2]}, index=pd.Index(["a", "b"], name="label")).rename_axis(
        columns=columns
    )
    output = new_output("display_data", data={"text/html": table.to_html()})
    lines = (
        clean_notebook(new_notebook(cells=[make_code("t", output)]))
        .cells[0]
        .outputs[0]
        .data["text/markdown"]
        .splitlines()
    )
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["label", "train"]
    assert len(lines) == 4, "head, rule and two rows"


def test_clean_notebook_puts_no_caption_under_an_excuse():
    excuse = new_output("display_data", data={"text/markdown": "Nothing to draw."})
    cells = [
        make_code("#| label: fig-a\n#| fig-cap: Never made.\nplot()", output)
        for output in (excuse, make_picture())
    ]
    excused, drawn = (
        read_options(cell.source)[0] for cell in clean_notebook(new_notebook(cells=cells)).cells
    )
    assert not excused and drawn["label"] == "fig-a" and drawn["fig-cap"] == "Never made."


def test_references_to_figures_that_are_not_shown_leave_the_prose():
    prose = "Loss (@fig-a), bound (@fig-b); @tbl-c and @fig-a show it [@fig-b], not @fig-lost."
    source = "#| label: {}\n#| fig-cap: Loss.\nplot()"
    cells = [make_code(source.format("fig-a"), make_picture())]
    cells += [make_code(source.format(label)) for label in ("fig-b", "tbl-c")]
    clean = clean_notebook(new_notebook(cells=[new_markdown_cell(prose), *cells]))
    expected = "Loss (@fig-a), bound; the table and @fig-a show it [the figure], not @fig-lost."
    assert clean.cells[0].source == expected


@pytest.mark.parametrize("target", ["html5", "typst"])
def test_a_number_is_not_torn_from_its_own_spread_or_interval(target):
    table = "| a | b |\n|:--|--:|\n| x | 0.8 ± 0.1 |\n| y | 0.9 [0.8, 1.0] |\n"
    filters = str(Path(report_package.__file__).with_name("common.lua"))
    text = run_pandoc(
        "--from=markdown", f"--to={target}", "--wrap=none", f"--lua-filter={filters}", text=table
    )
    text = text.replace("~", "\u00a0").replace("\\[", "[")
    assert "0.8 ±\u00a00.1" in text and "0.9 [0.8,\u00a01.0" in text


def test_clean_notebook_gives_every_picture_an_alternative_text():
    cells = [
        make_code('#| fig-cap: "Said: so"\nplot()', make_picture()),
        make_code("plot_it(1)", make_picture()),
    ]
    said, unsaid = (
        read_options(cell.source)[0]["fig-alt"]
        for cell in clean_notebook(new_notebook(cells=cells)).cells
    )
    assert said == "Said: so"
    assert unsaid == "Picture made by the code plot_it(1)"


def test_for_paper_makes_a_large_picture_a_jpeg_of_the_same_size():
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "PNG", dpi=(100, 100))
    data = {"image/png": base64.b64encode(png.getvalue()).decode()}
    cell = make_code("plot()", new_output("display_data", data=data))
    (output,) = for_paper(new_notebook(cells=[cell])).cells[0].outputs
    with Image.open(io.BytesIO(base64.b64decode(output.data["image/jpeg"]))) as picture:
        assert picture.size == (400, 300) and picture.info["dpi"] == (100, 100)


def test_for_paper_keeps_the_static_twin():
    notebook = clean_notebook(new_notebook(cells=[make_code("iplot()", make_interactive())]))
    assert list(for_paper(notebook).cells[0].outputs[0].data) == ["image/png"]
    assert list(for_web(notebook).cells[0].outputs[0].data) == ["text/markdown"]


def test_options_survive_reading_and_writing():
    options = {"label": "fig-a", "fig-cap": 'A "quoted": caption, $x_i$', "echo": False}
    assert read_options(write_options(options, "x = 1\n#| not an option")) == (
        options,
        "x = 1\n#| not an option",
    )
    assert read_options("#| label: tbl-a\n#| answer\nx") == (
        {"label": "tbl-a", "answer": None},
        "x",
    )
    for wrong in ("#| just words\nx", '#| fig-cap: "a "b" c"\nx'):
        with pytest.raises(ValueError, match="key: value"):
            read_options(wrong)


def test_headings_are_found_and_shifted_outside_of_code_only():
    text = "# One\n\n````python\n# comment\n```\n# still code\n````\n\n## Two"
    assert find_headings(text) == [(0, 1), (8, 2)]
    assert shift_headings(text).splitlines()[::8] == ["## One", "### Two"]
    assert "\n# comment\n" in shift_headings(text)
    assert code_block("a\n```\nb", ".output").startswith("```` {.output}\n")


def test_markdown_honours_echo_output_include_fold_and_joins_pictures(tmp_path):
    lines = [new_output("stream", name="stdout", text=text) for text in ("one\n", "two\n")]
    cells = [
        make_code("#| include: false\ngone()", new_output("stream", name="stdout", text="gone")),
        make_code("#| code-fold: show\nshown()", *lines),
        make_code('#| fig-cap: "Both."\ntwo()', make_picture(), make_picture()),
    ]
    text = notebook_markdown(
        for_web(clean_notebook(new_notebook(cells=cells))), Medium(tmp_path, fold=True), "p"
    )
    assert "gone" not in text
    assert 'fold="show"' in text and "one\ntwo" in text
    assert re.search(
        r"::: \{ \.captioned"
        r" \.fig\}\n!\[\]\(p-3-1\.png\).*\n\n!\[\]\(p-3-2\.png\).*\n\nBoth\.\n:::",
        text,
    )


def test_order_puts_comparison_first_then_shared_then_each_point():
    points = [{"model": "b", "seed": 0}, {"model": "a", "seed": 0}]
    planned = [
        ("02_x", {}),
        *[(name, point) for point in points for name in ("03_y", "04_z")],
        ("08_compare", {}),
        ("01_w", {}),
    ]
    ordered = order_tasks([{"notebook": notebook, "point": point} for notebook, point in planned])
    assert [(task["notebook"], task["point"].get("model", "")) for task in ordered] == [
        ("08_compare", ""),
        ("01_w", ""),
        ("02_x", ""),
        ("03_y", "b"),
        ("04_z", "b"),
        ("03_y", "a"),
        ("04_z", "a"),
    ]
    assert describe_point({"model": "vit", "seed": 1, "pretrained": True}) == [
        "vit",
        "seed 1",
        "pretrained True",
    ]


def test_combined_notebook_has_unique_labels_and_shows_code_once(reports_folder):
    text = (
        "# Fine-tune\n\nSee @fig-a and [@fig-a].[^n]\n\n[^n]: A note.\n\nTo [the"
        " other](04_evaluate.ipynb), not a@b.org."
    )
    figure = make_code('#| label: fig-a\n#| fig-cap: "As @fig-a says."\ndraw()', make_picture())
    tasks = []
    for seed in (0, 1):
        point = {"model": "vit", "seed": seed}
        tasks.append(
            (
                "03_finetune",
                point,
                [new_markdown_cell(text), *make_parameters(seed=seed), figure],
                "done",
                None,
            )
        )
        tasks.append(("04_evaluate", point, [new_markdown_cell("# Evaluate")], "done", None))
    write_batch(reports_folder, "b", "B", tasks)
    report = gather_report()
    cells = combine_pages(report).cells
    options = [read_options(cell.source)[0] for cell in cells if cell.cell_type == "code"]
    labels = [item["label"] for item in options if "label" in item]
    assert labels == ["fig-a-index", "fig-a-03-finetune-vit-seed-1"]
    assert [item.get("echo", True) for item in options] == [
        True,
        True,
        True,
        False,
    ], "the parameters are shown each time"
    codes = [read_options(cell.source)[1] for cell in cells if cell.cell_type == "code"]
    assert "seed = 0" in codes[0] and "model = " in codes[0]
    assert codes[2].startswith("seed = 1") and "model = " not in codes[2], (
        "of the parameters, what differs"
    )
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert "# Fine-tune · vit · seed 1 {#03-finetune-vit-seed-1}" in prose
    assert (
        "*Code, and parameters that are not shown, are those of [Fine-tune · vit · seed"
        " 0](#index).*" in prose
    )
    last = next(source for source in reversed(prose) if "See" in source)
    assert (
        "See @fig-a-03-finetune-vit-seed-1 and"
        " [@fig-a-03-finetune-vit-seed-1].[^03-finetune-vit-seed-1-n]" in last
    )
    assert "[the other](#04-evaluate-vit-seed-1), not a@b.org." in last
    assert "References" not in "".join(prose), "nothing is cited"
    page = next(page for page in report.pages if page.slug == "03-finetune-vit-seed-1")
    assert "(04-evaluate-vit-seed-1.ipynb)" in page.notebook.cells[0].source


def test_several_batches_become_parts(reports_folder):
    for name in ("one", "two"):
        write_batch(
            reports_folder,
            name,
            name.title(),
            [("08_compare", {}, [new_markdown_cell("# Compare")], "done", None)],
        )
    report = gather_report()
    assert report.title == "One and Two"
    assert [(page.slug, page.group) for page in report.pages] == [
        ("index", ("One", "", "")),
        ("two-08-compare", ("Two", "", "")),
    ]


def test_mistakes_are_errors_that_say_what_to_do(reports_folder):
    with pytest.raises(ValueError, match="run `vitlab batch"):
        gather_report()
    cells = [new_markdown_cell("# Compare"), make_code('#| fig-cap: "a "b" c"\nplot()')]
    write_batch(reports_folder, "small", "S", [("08_compare", {}, cells, "done", None)])
    with pytest.raises(ValueError, match=r"unknown batch 'smal'.*Did you mean small"):
        gather_report(["smal"])
    with pytest.raises(ValueError, match=r'(?s)08_compare\.ipynb: .*fig-cap: "a "b" c"'):
        gather_report()


@pytest.mark.parametrize(
    "text", ["# nothing\n", "website:\nformat:\nbibliography:\ncsl:\nlang:\n", "format: html\n"]
)
def test_settings_that_are_empty_are_defaults(tmp_path, text):
    (tmp_path / "_quarto.yml").write_text(text)
    settings = read_settings(tmp_path)
    assert (settings.title, settings.lang, settings.bibliography) == ("vitlab", "en", ())
    site, pdf = site_config(Report("", "", "", ()), settings), pdf_config(settings)
    assert site["website"]["title"] == "vitlab"
    html = {"embed-resources": True, "css": "content.css"}
    html |= {"html-table-processing": "none", "code-overflow": "wrap"}
    assert site["format"] == {"html": html} and not site["website"]["page-navigation"]
    assert pdf["format"] == {"typst": TYPST}
    assert site["execute"] == pdf["execute"] == {"enabled": False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- website\n- format\n", "must hold names and values"),
        ("just a text\n", "must hold names and values"),
        ("website: [\n", "is not YAML"),
        ("bibliography: {a: b}\n", "must be names of files"),
        ("csl: 3\n", "must be names of files"),
        ("bibliography: gone.bib\n", r"names .*gone\.bib, and there is no such file"),
    ],
)
def test_settings_that_cannot_be_used_are_one_sentence(tmp_path, text, message):
    (tmp_path / "_quarto.yml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    "file",
    sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb")),
    ids=lambda file: file.stem,
)
def test_notebooks_refer_only_to_what_there_is(file):
    """A reference that leads nowhere shows as (fig-lost?) in the report."""
    cells = clean_notebook(nbformat.read(file, as_version=4)).cells
    options = [read_options(cell.source)[0] for cell in cells if cell.cell_type == "code"]
    captions = [str(item[key]) for item in options for key in ("fig-cap", "tbl-cap") if key in item]
    prose = "\n".join([cell.source for cell in cells if cell.cell_type == "markdown"] + captions)
    sources = (Path(__file__).parents[1] / "reports" / "references.bib").read_text(encoding="utf-8")
    known = {str(item["label"]) for item in options if "label" in item} | set(
        re.findall(r"\{#([\w-]+)", prose)
    )
    assert set(re.findall(r"(?<!\w)@([A-Za-z][\w-]*)", prose)) <= known | set(
        re.findall(r"@\w+\{(\w+),", sources)
    )


def test_published_results_cite_what_the_bibliography_holds():
    root = Path(__file__).parents[1] / "reports"
    published = pd.read_csv(root / "published_elpv.csv")
    keys = set(re.findall(r"@\w+\{(\w+),", (root / "references.bib").read_text(encoding="utf-8")))
    assert set(published["source"]) <= keys
    assert published["accuracy_mean"].between(0, 1).all()
    assert published[["model", "task", "cells", "protocol", "note"]].notna().all(axis=None)

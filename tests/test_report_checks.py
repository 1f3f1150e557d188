"""Each check finds what is planted, at its place, and nothing in a report without mistakes; the
marks are in HTML and PDF.
"""

import json
import shutil

import nbformat
import numpy as np
import pandas as pd
import pypdf
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from rich.console import Console
from safetensors.numpy import save_file
from typer.testing import CliRunner

from tests.test_report import make_png, make_table, pdf_text
from vitlab import report as report_package
from vitlab.batch.fingerprint import fingerprint_tasks
from vitlab.batch.plan import load_batch, plan_tasks
from vitlab.cli import app
from vitlab.report import ReportRefused, render_report
from vitlab.report.checks import check_report
from vitlab.report.findings import Finding, mark_report, print_findings, read_findings
from vitlab.report.gather import gather_report
from vitlab.report.references import bibliography_keys
from vitlab.report.settings import Settings
from vitlab.run_folders import dataset_folder
from vitlab.runs import PROMISED

RUNS = f"runs/{dataset_folder('toy')}"

BIBLIOGRAPHY = "@article{vaswani2017, title={Attention}, author={Vaswani, A.}, year={2017}}\n"
POINT = {"model": "vit", "seed": 0}
DRAWN = "#| label: fig-loss\n#| fig-cap: The loss.\n#| fig-alt: A falling line.\nplot()"


def picture():
    return new_output(
        "display_data", data={"image/png": make_png(), "text/plain": "<Figure size 300x200>"}
    )


def failure():
    return new_output(
        "error", ename="ValueError", evalue="no [data]\nat all", traceback=["ValueError: no [data]"]
    )


class Project:
    """A project with notebooks 03 and 08, a batch of both, and their executed copies; everything in
    it is right at first.
    """

    def __init__(self, root, reports):
        self.root, self.reports, self.tasks = root, reports, []
        (root / "_quarto.yml").write_text("bibliography: reports/own.bib\nwebsite: {title: Toy}\n")
        (root / "reports").mkdir()
        (root / "reports" / "own.bib").write_text(BIBLIOGRAPHY)
        (root / "notebooks").mkdir()
        text = (
            "# Train\n\nAs @vaswani2017 say, see @fig-loss, @tbl-loss and @sec-more, then"
            " [compare](08_compare.ipynb).\n\n## More {#sec-more}\n\nUp to [more](#sec-more) and"
            " the [network](https://example.org/nowhere)."
        )
        self.train = [
            new_markdown_cell(text),
            new_code_cell("seed = 1", metadata={"tags": ["parameters"]}),
            new_code_cell(DRAWN, outputs=[picture()]),
            new_code_cell(
                "#| label: tbl-loss\n#| tbl-cap: Losses.\ntable", outputs=[make_table(epoch=[1, 2])]
            ),
        ]
        compare = [
            new_markdown_cell("# Compare\n\nBack to [more](03_train.ipynb#sec-more)."),
            new_code_cell("1 + 1"),
        ]
        self.write("03_train", POINT, self.train, f"{RUNS}/vit-seed0")
        self.write("08_compare", {}, compare, None)

    def write(self, stem, point, cells, run):
        """The notebook, and an executed copy of it as papermill leaves it."""
        bare = [
            new_code_cell(c.source, metadata=c.metadata) if c.cell_type == "code" else c
            for c in cells
        ]
        nbformat.write(new_notebook(cells=bare), self.root / "notebooks" / f"{stem}.ipynb")
        path = f"{run or 'runs/batches/toy'}/notebooks/{stem}.ipynb"
        given = {"dataset": "toy", **point, **({"run_name": "vit-seed0"} if run else {})}
        self.tasks.append(
            {"notebook": stem, "point": point, "parameters": given, "path": path, "run": run}
        )
        self.tasks[-1] |= {"status": "done", "error": None, "note": ""}
        if run:
            self.write_run(run, status="done")
        self.execute(path, cells)

    def execute(self, path, cells):
        cells = [nbformat.from_dict(cell) for cell in cells]
        place = next(
            (i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])),
            None,
        )
        if place is not None:
            cells.insert(
                place + 1,
                new_code_cell(
                    "# Parameters\nseed = 0\n", metadata={"tags": ["injected-parameters"]}
                ),
            )
        for number, cell in enumerate([cell for cell in cells if cell.cell_type == "code"], 1):
            cell.execution_count = number
        self.save(path, new_notebook(cells=cells))

    def save(self, path, notebook):
        file = self.reports / path
        file.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, file)

    def write_run(self, run, text=None, **content):
        file = self.reports / run / "run.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "parameters": {"dataset": "toy"},
            "facts": {},
            "start_s": 1.0,
            "files": [],
            **content,
        }
        file.write_text(json.dumps(content) if text is None else text)

    def write_files(self, run):
        """The files that notebooks 03 and 04 promise."""
        folder = self.reports / run
        for name in {name for names in PROMISED.values() for name in names}:
            (folder / name).write_text("{}")
        pd.DataFrame({"sample_id": ["a"]}).to_parquet(folder / "predictions.parquet")
        save_file({"weight": np.zeros(2, np.float32)}, folder / "model.safetensors")

    def edit(self, change, stem="03_train"):
        """Change the executed copy of a notebook."""
        path = next(task["path"] for task in self.tasks if task["notebook"] == stem)
        notebook = nbformat.read(self.reports / path, as_version=4)
        change(notebook.cells)
        self.save(path, notebook)

    def add(self, *cells):
        """Put cells at the end of notebook 03 and of its executed copy, whose last cell is number 6
        then.
        """
        nbformat.write(
            new_notebook(cells=[*self.train, *cells]), self.root / "notebooks" / "03_train.ipynb"
        )
        self.execute(self.tasks[0]["path"], [*self.train, *cells])

    def check(self, max_page_mb=10.0):
        self.keep()
        settings = Settings(bibliography=(self.root / "reports" / "own.bib",))
        return check_report(gather_report(), settings, max_page_mb)

    def keep(self):
        file = self.reports / "runs" / "batches" / "toy" / "batch.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "title": "Toy",
            "name": "toy",
            "file": "notebooks/batches/toy.yml",
            "tasks": self.tasks,
        }
        file.write_text(json.dumps(content))


@pytest.fixture
def project(tmp_path, reports_folder, monkeypatch):
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setattr(report_package.shutil, "which", lambda name: None)
    return Project(root, reports_folder)


def places(findings, parts=3):
    return [(finding.rule, finding.cell, finding.label)[:parts] for finding in findings]


def test_nothing_is_found_where_nothing_is_wrong(project):
    assert project.check() == []


def test_a_source_edited_since_is_named_with_both_lines(project):
    notebook = nbformat.read(project.root / "notebooks" / "03_train.ipynb", as_version=4)
    notebook.cells[2].source = notebook.cells[2].source.replace("plot()", "plot(epochs=3)")
    notebook.cells.append(new_code_cell("new_cell()"))
    nbformat.write(notebook, project.root / "notebooks" / "03_train.ipynb")
    findings = project.check()
    assert places(findings) == [("source", 4, "fig-loss"), ("source", 5, "tbl-loss")]
    assert findings[0].message == "executed as `plot()`, but the notebook now has `plot(epochs=3)`"
    assert findings[1].message == "the notebook has 1 more cells here: `new_cell()`"
    assert findings[0].file == f"{RUNS}/vit-seed0/notebooks/03_train.ipynb"


def test_a_cell_taken_out_and_a_notebook_taken_away_are_found(project):
    notebook = nbformat.read(project.root / "notebooks" / "03_train.ipynb", as_version=4)
    del notebook.cells[3]
    nbformat.write(notebook, project.root / "notebooks" / "03_train.ipynb")
    (project.root / "notebooks" / "08_compare.ipynb").unlink()
    findings = project.check()
    assert (
        findings[0].message.startswith("the notebook that this was made from is gone")
        and findings[0].cell is None
    )
    assert findings[1].message == "there is no notebook `08_compare.ipynb` beside 03_train.ipynb"
    assert findings[2].message == "the notebook no longer has this cell: `table`"


def test_a_failed_cell_is_found_and_those_after_it_are_counted(project):
    def fail(cells):
        cells[3].outputs = [failure()]
        cells[4].update(outputs=[], execution_count=None)

    project.edit(fail)
    project.tasks[0] |= {
        "status": "failed",
        "error": {"cell": 3, "line": "plot()", "name": "ValueError", "value": "no [data]"},
    }
    findings = [finding for finding in project.check() if finding.rule != "reference"]
    assert places(findings) == [
        ("unfinished", None, ""),
        ("failed", 4, "fig-loss"),
        ("not executed", 5, "tbl-loss"),
        ("nothing shown", 5, "tbl-loss"),
    ]
    assert findings[1].message == "ValueError: no [data]" and findings[1].shown


FIGURE = "#| label: fig-a\n#| fig-cap: C.\n#| fig-alt: A.\nplot()"
TABLE = "#| label: tbl-a\n#| tbl-cap: C.\ntable"
OUTPUTS = {
    "live": {"text/html": "<div class='vitlab-plotly'></div>"},
    "png": {"image/png": make_png()},
    "svg": {"image/svg+xml": "x"},
    "gif": {"image/gif": "x"},
    "text": {"text/plain": "x"},
    "words": {"text/markdown": "None, for a reason."},
    "blank": {"text/markdown": " \n", "text/plain": "<IPython.core.display.Markdown object>"},
    "table": {"text/html": "<table><tr><td>1</td></tr></table>", "text/plain": "1"},
    "picture in a table": {"text/html": "<table><tr><td><img src='data:,' alt='A.'></table>"},
    "live table": {"text/html": "<div class='vitlab-viewer'></div>", "text/markdown": "| a |"},
    "live figure": {"text/html": "<div class='vitlab-plotly'></div>", "image/png": make_png()},
}


@pytest.mark.parametrize(
    ("source", "outputs", "rules"),
    [
        (FIGURE, [], ["nothing shown"]),
        (FIGURE, ["text"], ["nothing shown"]),
        (FIGURE, ["words"], []),
        (FIGURE, ["table"], ["nothing shown"]),
        (FIGURE, ["blank"], ["nothing shown"]),
        (FIGURE, ["gif"], ["nothing shown"]),
        (FIGURE, ["table", "png"], []),
        (FIGURE, ["live"], []),
        (FIGURE, ["picture in a table"], []),
        ("#| fig-cap: C.\nplot()", ["text"], ["nothing shown"]),
        ("#| fig-alt: A.\nplot()", ["text"], ["nothing shown"]),
        ("plot()", ["png"], ["caption", "alternative text"]),
        ("#| fig-cap: C.\n#| fig-alt: ' '\nplot()", ["svg"], ["alternative text"]),
        ("#| fig-alt: A.\nplot()", ["live"], ["caption"]),
        ("#| include: false\nplot()", ["png"], []),
        ("#| output: false\nplot()", ["png"], []),
        (TABLE, [], ["nothing shown"]),
        (TABLE, ["text"], ["nothing shown"]),
        (TABLE, ["blank"], ["nothing shown"]),
        (TABLE, ["words"], []),
        (TABLE, ["live table"], []),
        ("#| fig-alt: A.\n" + TABLE, ["png"], ["nothing shown"]),
        ("#| fig-alt: A.\n" + TABLE, ["live figure"], ["nothing shown"]),
        ("#| tbl-cap: C.\nboth()", ["table", "png"], ["alternative text"]),
        ("#| tbl-cap: C.\n#| fig-alt: A.\nboth()", ["table", "png"], []),
    ],
)
def test_figures_and_tables_are_shown_captioned_and_described(project, source, outputs, rules):
    shown = [new_output("display_data", data=OUTPUTS[name]) for name in outputs]
    project.add(new_code_cell(source, outputs=shown))
    assert places(project.check(), 2) == [(rule, 6) for rule in rules]


@pytest.mark.parametrize(
    ("text", "rule", "message"),
    [
        ("See @fig-los.", "reference", "no figure or table `@fig-los`; did you mean `@fig-loss`?"),
        ("[@vaswani2071]", "reference", "no source `@vaswani2071`; did you mean `@vaswani2017`?"),
        ("See @sec-none.", "reference", "no section `@sec-none`; did you mean `@sec-more`?"),
        ("A note.[^1]\n\n[^1]: See @a2020.", "reference", "no source `@a2020`"),
        ("[here](#mor)", "link", "no anchor `#mor` on this page; did you mean `#more`?"),
        ("[it](08_compare.ipynb#nowhere)", "link", "no anchor `#nowhere` on the page index"),
        ("[it](09_none.ipynb)", "link", "no notebook `09_none.ipynb` beside 03_train.ipynb"),
        ("[it](no-such-one.ipynb)", "link", "no notebook `no-such-one.ipynb` beside 03_train"),
        ("[file](../data/x.csv)", "link", "no page `../data/x.csv`; files are not copied"),
        ("[file](file:///home/me/x.csv)", "link", "no page `file:///home/me/x.csv`"),
        ("[file](C:/x.csv)", "link", "no page `C:/x.csv`"),
        ("<a href=nowhere.html>Raw</a>", "link", "no page `nowhere.html`"),
        ("<a href='#away'>HTML</a>", "link", "no anchor `#away` on this page"),
        ("[it](#away) <b data-id='away'>away</b>", "link", "no anchor `#away` on this page"),
        ("![Words](x.png)", "picture", "not copied into the report: `x.png`"),
        ("![Words](FILE:///x.png)", "picture", "not copied into the report: `FILE:///x.png`"),
        ("![Words](C:/x.png)", "picture", "not copied into the report: `C:/x.png`"),
        ("![](https://example.org/x.png)", "alternative text", "`https://example.org/x.png` has"),
        ("<img src=//example.org/x.png>", "alternative text", "`//example.org/x.png` has none"),
    ],
)
def test_what_leads_nowhere_is_found_in_prose(project, text, rule, message):
    more = new_markdown_cell("### More\n\nBut `@code` is none, nor is a@b.org.")
    project.add(new_markdown_cell(f"### Here\n\n{text}"), more)
    (finding,) = project.check()
    assert (finding.rule, finding.cell) == (rule, 6) and message in finding.message


def test_what_leads_somewhere_is_let_alone(project):
    text = (
        "An <img src='https://example.org/x.png' alt=''>, <!-- <a href='gone.html'> --> and <a"
        " name='old'></a> to [old](#old), ![a dot](data:image/gif;base64,R0lGODlhAQABAAAAACw=),"
        " [mail](mailto:a@b.org) and [the network](//example.org)."
    )
    project.add(new_markdown_cell(text))
    assert project.check() == []


def test_links_in_html_and_in_markdown_that_cells_show(project):
    html = [
        "<a href=x.csv target=_blank>x.csv</a> <a href='#spot'>up</a>",
        "<b id='here'></b><a href='#here'>down</a> <img src='x.png'>",
        "<script>document.write('<a href=made.html>it</a>')</script><a href='#made'>made</a>",
        "<a href=hidden.html>hidden</a>",
    ]
    shown = [new_output("display_data", data={"text/html": text}) for text in html]
    said = new_output(
        "display_data",
        data={"text/markdown": "On to [it](09_none.ipynb) and [compare](08_compare.ipynb)."},
    )
    options = "#| label: fig-b\n#| fig-cap: C.\n#| fig-alt: A.\n"
    project.add(
        new_code_cell("link()", outputs=shown[:1]),
        new_code_cell(options + "draw()", outputs=shown[1:3]),
        new_code_cell("#| output: false\nlink()", outputs=[shown[3], said]),
        new_code_cell("say()", outputs=[said]),
    )
    found = [(each.rule, each.cell, each.message.split("`")[1]) for each in project.check()]
    assert found == [
        ("link", 6, "x.csv"),
        ("link", 6, "#spot"),
        ("picture", 7, "x.png"),
        ("link", 9, "09_none.ipynb"),
    ]


def test_a_notebook_may_have_a_hyphen_or_a_dot_in_its_name(project):
    project.write("09-my-own", {}, [new_markdown_cell("# Own"), new_code_cell("1")], None)
    shutil.copy(
        project.root / "notebooks" / "09-my-own.ipynb", project.root / "notebooks" / "10-v1.2.ipynb"
    )
    project.add(
        new_markdown_cell(
            "To [my own](09-my-own.ipynb) and [what is not in the report](10-v1.2.ipynb)."
        )
    )
    assert project.check() == []
    text = gather_report().pages[-1].notebook.cells[-1].source
    assert text == "To [my own](09-my-own.ipynb) and what is not in the report."


def test_references_in_captions_and_markdown_outputs_are_read_too(project):
    said = new_output(
        "display_data", data={"text/markdown": "See @tbl-none and [it](08_compare.ipynb)."}
    )
    options = "#| label: fig-b\n#| fig-cap: As in @fig-none.\n#| fig-alt: A.\nplot()"
    project.add(new_code_cell(options, outputs=[picture()]), new_code_cell("say()", outputs=[said]))
    assert [(finding.cell, finding.label, finding.message) for finding in project.check()] == [
        (6, "fig-b", "there is no figure or table `@fig-none`; did you mean `@fig-loss`?"),
        (7, "", "there is no figure or table `@tbl-none`; did you mean `@tbl-loss`?"),
    ]


def test_a_reference_to_a_figure_that_is_not_shown(project):
    excuse = new_output("display_data", data={"text/markdown": "Nothing to draw."})
    project.edit(lambda cells: cells[3].update(outputs=[excuse]))
    assert not project.check(), "prose names it without a number"
    text = "#| label: tbl-loss\n#| tbl-cap: As @fig-loss.\ntable"
    project.edit(lambda cells: cells[4].update(source=text))
    (finding,) = [one for one in project.check() if one.rule == "reference"]
    assert finding.message == "`@fig-loss` refers to cell 4, which shows nothing"
    assert finding.cell == 5


def test_bibliography_is_read_by_pandoc(project, tmp_path):
    other = tmp_path / "csl.json"
    other.write_text('[{"id": "a2020", "type": "book", "title": "T"}]')
    assert bibliography_keys([project.root / "reports" / "own.bib", other]) == {
        "vaswani2017",
        "a2020",
    }


def test_half_done_runs_of_the_report_and_beside_it(project):
    project.write_run(f"{RUNS}/vit-seed0", status="running")
    project.write_run(f"{RUNS}/other", status="failed")
    project.write_run(f"{RUNS}/torn", text='{"status": "do')
    for name in ("lost", "whole"):
        project.write_run(f"{RUNS}/{name}", status="done", files=PROMISED["03_finetune"])
        project.write_files(f"{RUNS}/{name}")
    (project.reports / RUNS / "lost" / "history.csv").unlink()
    project.write_run("runs/elsewhere/x", status="failed")
    findings = project.check()
    assert {finding.rule for finding in findings} == {"run"}
    assert [(finding.file, finding.message.split(";")[0]) for finding in findings] == [
        (f"{RUNS}/lost", "history.csv is missing"),
        (f"{RUNS}/other", "its status is failed"),
        (f"{RUNS}/torn", "its run.json cannot be read"),
        (f"{RUNS}/vit-seed0", "its status is running"),
    ]
    shutil.rmtree(project.reports / RUNS / "other")
    assert f"{RUNS}/other" not in {finding.file for finding in project.check()}


@pytest.mark.parametrize(
    ("stem", "file"),
    [
        ("03_finetune", "history.csv"),
        ("03_finetune", "predictions.parquet"),
        ("03_finetune", "model.safetensors"),
        ("04_evaluate", "metrics.json"),
    ],
)
def test_a_file_of_a_run_that_is_missing_or_damaged(project, stem, file):
    project.write(stem, {"model": "cnn"}, project.train, f"{RUNS}/cnn-seed0")
    project.write_files(f"{RUNS}/cnn-seed0")
    assert project.check() == []
    path = project.reports / f"{RUNS}/cnn-seed0" / file
    whole = path.read_bytes()
    damages = [None] if path.suffix == ".csv" else [None, whole[: len(whole) // 2]]
    for damage in damages:
        path.unlink() if damage is None else path.write_bytes(damage)
        (finding,) = project.check()
        assert (finding.rule, finding.file) == ("run", f"{RUNS}/cnn-seed0")
        state = "missing" if damage is None else "damaged"
        assert finding.message == f"{file} is {state}; run the batch again"


def test_runs_beside_those_of_a_data_set_that_the_notebook_names_itself(project):
    own = new_code_cell("dataset = 'toy'\nseed = 3", metadata={"tags": ["parameters"]})
    compare = [new_markdown_cell("# Compare\n\nBack to [more](03_train.ipynb#sec-more)."), own]
    del project.tasks[1]
    project.write("08_compare", {}, compare, None)
    del project.tasks[1]["parameters"]["dataset"]
    assert project.check() == []
    project.write_run(f"{RUNS}/other", status="failed")
    assert [(finding.rule, finding.file) for finding in project.check()] == [
        ("run", f"{RUNS}/other")
    ]
    project.tasks[0]["parameters"]["dataset"] = "digits"
    project.keep()
    assert gather_report().subtitle == "Data sets: toy, digits"


class TestOutOfDate:
    """What the batch would do again is found, and nothing where it would not, or where that is
    unknown.
    """

    def record(self, project, **content):
        """Write the batch file, and record of notebook 03 that it was executed as this file
        says.
        """
        tagged = {"tags": ["parameters"]}
        project.train[1] = new_code_cell("seed = 1\nepochs = 2", metadata=tagged)
        project.add()
        (task,) = plan_tasks(load_batch(self.write(project, **content)))
        (fingerprint,) = fingerprint_tasks([task], lambda dataset: "1.0")
        project.execute(task.path, project.train)
        project.write_run(task.run, status="done")
        project.tasks[0] |= {"path": task.path, "run": task.run, "fingerprint": fingerprint}

    def write(self, project, **content):
        file = project.root / "notebooks" / "batches" / "toy.yml"
        file.parent.mkdir(exist_ok=True)
        content = {
            "parameters": {"epochs": 1},
            "grid": {"seed": [0, 1]},
            "chain": [{"notebook": "03_train"}],
        } | content
        file.write_text(json.dumps(content))
        return file

    @pytest.fixture
    def recorded(self, project):
        self.record(project, grid={"seed": [0]})
        assert project.check() == []
        return project

    def messages(self, project):
        findings = project.check()
        assert {(finding.rule, finding.file) for finding in findings} <= {
            ("out of date", project.tasks[0]["path"])
        }
        return [finding.message for finding in findings]

    @pytest.mark.parametrize("change", [{"parameters": {"epochs": 5}}, {"grid": {"seed": [7]}}])
    def test_other_parameters_and_points(self, recorded, change):
        self.write(recorded, **change)
        message = "`notebooks/batches/toy.yml` now asks for other parameters or points"
        assert self.messages(recorded) == [f"{message}; run the batch again"]

    def test_other_code(self, recorded):
        recorded.tasks[0]["fingerprint"]["code"] = "0123456789ab"
        assert self.messages(recorded) == ["code changed; run the batch again"]
        # a notebook that was edited may use other code; the rule source is about it
        recorded.tasks[0]["fingerprint"]["notebook"] = "0123456789ab"
        assert self.messages(recorded) == []

    def test_other_libraries_files_and_runs(self, recorded):
        fingerprint = recorded.tasks[0]["fingerprint"]
        fingerprint["libraries"] |= {"torch": "2.0"}
        fingerprint |= {"files": {"published.csv": "0123"}, "runs": "3 finished, 0123"}
        (message,) = self.messages(recorded)
        for change in ("torch 2.0 -> none", "runs changed", "published.csv 0123 -> none"):
            assert change in message

    def test_other_data_and_what_came_before_are_left_to_the_batch(self, recorded):
        recorded.tasks[0]["fingerprint"] |= {"data": "0123456789ab", "needs": "0123456789ab"}
        assert self.messages(recorded) == []

    @pytest.mark.parametrize("text", [None, "chain: [", "chain: [{notebook: 99_gone}]"])
    def test_nothing_is_said_without_a_batch_file_that_can_be_planned(self, recorded, text):
        recorded.tasks[0]["fingerprint"]["code"] = "0123456789ab"
        file = recorded.root / "notebooks" / "batches" / "toy.yml"
        file.unlink() if text is None else file.write_text(text)
        assert self.messages(recorded) == []

    def test_a_copy_that_another_batch_made_anew(self, recorded):
        fresh = recorded.reports / "runs" / "batches" / "other" / "batch.json"
        fresh.parent.mkdir(parents=True)
        recorded.keep()
        shutil.copy(recorded.reports / "runs" / "batches" / "toy" / "batch.json", fresh)
        recorded.tasks[0] |= {
            "fingerprint": recorded.tasks[0]["fingerprint"] | {"code": "0123456789ab"}
        }
        assert self.messages(recorded) == []
        fresh.unlink()
        assert len(self.messages(recorded)) == 1


def test_a_page_over_the_limit_names_its_largest_cell(project):
    heavy = new_output(
        "display_data", data={"text/html": "<div class='vitlab-viewer'>" + "x" * 300_000 + "</div>"}
    )
    project.add(
        new_code_cell("#| label: fig-big\n#| fig-cap: C.\n#| fig-alt: A.\nview()", outputs=[heavy])
    )
    assert project.check(0.5) == []
    (finding,) = project.check(0.3)
    assert (finding.rule, finding.cell, finding.label) == ("size", 6, "fig-big")
    assert "the limit is 0.3 MB; the largest cell has 0.3 MB" in finding.message
    with pytest.raises(ValueError, match="more than 0 MB, not 0"):
        project.check(0)


def test_marks_stand_after_their_cells_and_are_summed_up_on_the_first_page(project):
    project.edit(
        lambda cells: cells[3].update(source="#| label: fig-loss\n#| fig-cap: The loss.\nplot()")
    )
    findings = project.check()
    report = mark_report(gather_report(), findings)
    home, page = (page.notebook.cells for page in report.pages)
    assert "This report has 2 problems" in home[0].source
    assert "(03-train-vit-seed-0.ipynb): source, alternative text" in home[0].source
    place = next(
        i for i, cell in enumerate(page) if "plot()" in cell.source and cell.cell_type == "code"
    )
    title, where, _, first, second, *_ = page[place + 1].source.split("\n")
    rules = "not executed from its present source; a figure without an alternative text"
    assert title == f'::: {{.callout-warning title="Problem: {rules}"}}'
    assert where == f"Cell 4 of `{RUNS}/vit-seed0/notebooks/03_train.ipynb` (*fig-loss*):"
    assert first == "- executed as `plot()`, but the notebook now has `#| fig-alt: A falling line.`"
    assert second == "- this figure has no alternative text: write `#| fig-alt: ...`"


def test_strict_publishes_nothing_and_the_marks_are_in_page_and_pdf(project):
    project.keep()
    paths = render_report(strict=True)
    assert read_findings(paths["findings"]) == []
    before = paths["html"].read_bytes(), paths["pdf"].read_bytes()
    project.add(new_markdown_cell("See @fig-none, a [dead end](#none) and ![a graph](none.png)."))
    project.keep()
    rules = ["reference", "link", "picture"]
    with pytest.raises(ReportRefused, match="not published: 3 problems") as refused:
        render_report(strict=True)
    assert [finding.rule for finding in refused.value.findings] == rules
    assert (paths["html"].read_bytes(), paths["pdf"].read_bytes()) == before
    assert [finding.rule for finding in read_findings(paths["findings"])] == rules
    paths = render_report()
    page = (paths["html"].parent / "03-train-vit-seed-0.html").read_text(encoding="utf-8")
    assert page.count("Problem: ") == 1 and 'class="remark warning"' in page
    assert "This report has 3 problems" in paths["html"].read_text(encoding="utf-8")
    text = pdf_text(pypdf.PdfReader(paths["pdf"]))
    assert text.count("Problem: ") == 1 and "[a picture that is not here: a graph]" in text


def test_command_prints_where_and_tells_by_its_status(project):
    project.add(new_markdown_cell("See @fig-none."))
    project.keep()
    result = CliRunner().invoke(app, ["report", "toy", "--strict"])
    assert result.exit_code == 1 and "HTML" not in result.stdout
    assert f"{RUNS}/vit-seed0/notebooks/03_train.ipynb" in result.stdout
    assert "@fig-none" in result.stdout and "Not published: 1 problem" in result.stderr
    result = CliRunner().invoke(app, ["report", "toy"])
    assert result.exit_code == 0 and "@fig-none" in result.stdout and "HTML" in result.stdout
    assert "1 problem" in result.stderr
    result = CliRunner().invoke(app, ["report", "toy", "--max-page-mb", "-1"])
    assert result.exit_code == 2 and "more than 0" in result.stderr


def test_findings_are_printed_as_they_are():
    console = Console(record=True, width=100)
    print_findings([Finding("link", "a.ipynb", "x [y]", cell=3, label="fig-a")], console)
    assert "x [y]" in console.export_text()

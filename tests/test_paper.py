"""The report to hand in: which sections it holds, and what it says of the runs."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from vitlab.report.clean import clean_notebook
from vitlab.report.gather import HOME, Page, Report
from vitlab.report.markdown import split_sections
from vitlab.report.paper import has_answer, write_paper
from vitlab.runs import Run


def text_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


def make_page(stem, *sections, point=None, **facts):
    cells = []
    for title in sections:
        said = new_output("display_data", data={"text/markdown": f"said in {title}"})
        cells.append(new_markdown_cell(f"## {title}\n\nAbout {title}."))
        cells.append(new_code_cell("secret = 1", outputs=[said]))
    groups = ("", "", "")
    return Page(stem, stem, stem, point or {}, groups, new_notebook(cells=cells), **facts)


def test_sections_are_cut_at_headings_within_a_cell():
    cells = [new_markdown_cell("before\n\n## One\n\ntext\n\n## Two {#two}"), new_code_cell("x")]
    sections = split_sections(cells)
    assert [(title, len(own)) for title, own in sections] == [("", 1), ("One", 1), ("Two", 2)]
    assert len({cell.id for _, own in sections for cell in own}) == 4


def test_sections_that_show_nothing_are_left_out_and_failures_stay():
    def section(title, *outputs):
        source = "#| label: fig-x\n#| fig-cap: A figure.\nplot()"
        cell = new_code_cell(source, execution_count=1, outputs=list(outputs))
        return [new_markdown_cell(f"## {title}\n\nwords"), cell]

    words = new_output("display_data", data={"text/markdown": "Nothing is drawn for a CNN."})
    picture = new_output("display_data", data={"image/png": "iVBORw0KGgo="})
    error = new_output("error", ename="ValueError", evalue="x", traceback=["x"])
    cells = [*section("Empty", words), *section("Full", picture), *section("Broken", error)]
    text = text_of(clean_notebook(new_notebook(cells=[*cells, *section("Not run")])))
    assert "Empty" not in text
    assert all(f"## {title}" in text for title in ("Full", "Broken", "Not run"))


@pytest.fixture
def report(reports_folder):
    run = Run.create(name="vit", dataset="digits", model="vit", seed=0, mixup=0.2)
    for name in ("splits.csv", "predictions.parquet"):
        run.write_text(name, "content")
    facts = {"trained_parameters": 10, "parameters": 2_000, "train_s": 3.2, "best_epoch": 4}
    run.record(**facts, device="cpu")
    run.finish()
    place = run.path.relative_to(reports_folder).as_posix()
    pages = (
        make_page(HOME, "The answer", "Limits", "Cost", "All runs"),
        make_page("01_explore_data", "What augmentation does"),
        make_page("04_evaluate", "Metrics", point={"model": "vit"}, run=place),
        make_page("04_evaluate", "Metrics", point={"model": "cnn"}),
        make_page("05_interpret", "Summary", trouble="it failed"),
    )
    return Report("Digits", "", "2026-12-01", pages, author="A. Student", commands=("vitlab x",))


def test_the_paper_holds_chosen_sections_without_code(report):
    assert has_answer(report)
    paper = write_paper(report)
    text = text_of(paper)
    chapters = [line for line in text.splitlines() if line.startswith("# ")]
    names = [line.split()[1] for line in chapters]
    assert names == ["Summary", "Methods", "Results", "Evaluation", "Reproduction"]
    assert "About The answer." in text and "About Cost." in text
    assert "All runs" not in text and "augmentation" not in text
    assert all("echo: false" in cell.source for cell in paper.cells if cell.cell_type == "code")
    assert text.count("## Metrics") == 1 and "about vit; the web pages hold the others" in text
    assert 'author: "A&#46; Student"' in text
    nbformat.validate(paper)


def test_methods_and_reproduction_come_from_the_runs(report):
    text = text_of(write_paper(report))
    assert "| vit | 0 | mixup 0.2 | 10 of 2,000 | 4 | 3 |" in text
    assert "vitlab x" in text and "ed7002b439e9" in text  # SHA-256 of "content"


def test_a_report_without_a_comparison_has_no_paper():
    assert not has_answer(Report("x", "", "", (make_page("01_explore_data", "The answer"),)))

"""What a person sees in Jupyter: one line for a mistake, captions, the table of a training run, the
name of a run. All of it is kept in the notebook, and left out of reports.
"""

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from vitlab.errors import Interrupted, UserError
from vitlab.markup import JUPYTER_ONLY
from vitlab.report.clean import clean_notebook
from vitlab.training.live import Bar, LiveTable, render_table

CELLS = [
    "from vitlab import plots\nplots.set_style()\nplots.set_style()",
    '#| label: fig-one\n#| fig-cap: "A *title*: one."\nprint("drawn")',
    """from vitlab.training.live import show_training
shown = show_training("vit", "val_accuracy", epochs=3, steps=2)
first = {"epoch": 1, "train_loss": 2.0, "val_loss": 1.0, "val_accuracy": 0.5, "seconds": 9}
shown.start(2, [first], 1)
shown.step()
shown.epoch(first | {"epoch": 2, "val_accuracy": 0.4}, 1)
shown.close()""",
    """from vitlab.notebook import show_run
from vitlab.runs import Run
show_run(Run.create(name="first", dataset="digits", model="vit_scratch", seed=0), "04_evaluate")""",
    "import vitlab.training.options as options\noptions.parse_options('mixp=1')",
    "from vitlab.errors import Interrupted\nraise Interrupted('Stopped. Run the cell again.')",
]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jupyter")
    content = new_notebook(cells=[new_code_cell(source) for source in CELLS])
    client = NotebookClient(content, allow_errors=True, resources={"metadata": {"path": folder}})
    return client.execute()


def test_a_caption_is_below_its_figure(notebook):
    drawn, caption = notebook.cells[1].outputs
    assert drawn.text == "drawn\n"
    assert caption.data["text/markdown"] == "**Figure:** A *title*: one."
    assert caption.metadata == JUPYTER_ONLY and notebook.cells[0].outputs == []


def test_the_table_of_a_training_run_is_kept_in_its_last_state(notebook):
    (table,) = notebook.cells[2].outputs
    html = table.data["text/html"]
    assert table.metadata == JUPYTER_ONLY
    assert html.count("<tr>") == 3 and "<td><b>0.500</b></td>" in html and "0.400" in html
    assert "vit: 2 epochs, best epoch 1" in html


def test_the_rate_counts_the_steps_of_this_session_only(monkeypatch):
    clock = iter([100.0, 100.0, 104.0, 104.0])
    monkeypatch.setattr("vitlab.training.live.time.perf_counter", lambda: next(clock))
    table = LiveTable("vit", "val_accuracy", epochs=3, steps=10, visible=False)
    table.start(20, [], 0)
    table.step()
    assert table._state(True) == "vit: epoch 3 of 3, step 1 of 10, 0.25 steps/s, at most 36 s left"


def test_in_a_terminal_there_is_a_bar(capsys):
    bar = Bar("vit", "val_accuracy", epochs=2, steps=2, visible=True)
    bar.options["disable"] = False  # pytest's output is no terminal
    bar.start(2, [], 0)
    bar.step()
    bar.epoch({"val_accuracy": 0.5}, 2)
    assert (bar.bar.n, bar.bar.total) == (3, 4)
    bar.close()


def test_names_in_the_table_are_escaped():
    row = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_recall_<b>": 0.5, "seconds": 1.0}
    html = render_table([row], "val_recall_<b>", 1, "<i>")
    assert "val recall &lt;b&gt;" in html and "&lt;i&gt;" in html


def test_the_end_of_a_run_names_it_and_the_next_command(notebook):
    (shown,) = notebook.cells[3].outputs
    text = shown.data["text/markdown"]
    assert text.startswith("Run `first` in `reports/runs/digits-")
    assert "vitlab run 04_evaluate" in text and "-p run_name first" in text


def test_a_mistake_and_an_interruption_are_one_line(notebook):
    (error,) = notebook.cells[4].outputs
    (line,) = error.traceback
    assert error.ename == "UserError"
    assert line.startswith("UserError (line 2 of this cell): unknown option 'mixp'. Did you mean")
    (stop,) = notebook.cells[5].outputs
    assert stop.traceback == ["Stopped. Run the cell again."]
    assert isinstance(Interrupted("x"), KeyboardInterrupt) and isinstance(
        UserError("x"), ValueError
    )


def test_reports_leave_it_out(notebook):
    outputs = [cell.outputs for cell in clean_notebook(notebook).cells]
    assert [len(shown) for shown in outputs[:4]] == [0, 1, 0, 0]
    nbformat.validate(notebook)

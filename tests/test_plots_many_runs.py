"""Figures and the table of many runs: right with one run, with eight and with three hundred, and
bounded in size.
"""

import base64
import re

import numpy as np
import pandas as pd
import pytest

from vitlab import plots
from vitlab.plots import many_runs, runs_table
from vitlab.plots.many_runs import (
    BY_RECIPE,
    OTHERS,
    Scale,
    name_column,
    order_runs,
    plot_run_facets,
    plot_run_parallel,
)
from vitlab.report.clean import clean_notebook, for_paper, for_web

METRIC = "metrics.roc_auc"
COLUMNS = ["model", "parameters.learning_rate", "parameters.strategy"]


def make_runs(count, models=3):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "run": [f"elpv/m{i % models}-seed{i}-{i:08x}" for i in range(count)],
            "dataset": "elpv",
            "model": [f"m{i % models}" for i in range(count)],
            "seed": range(count),
            "status": "done",
            "problem": "",
            "parameters.learning_rate": 10 ** rng.uniform(-5, -2, count),
            "parameters.strategy": [[None, "full", "linear_probe"][i % 3] for i in range(count)],
            "facts.train_s": rng.uniform(10, 20, count),
            METRIC: rng.uniform(0.5, 1, count),
        }
    )
    return table.assign(
        **{f"{METRIC}.low": table[METRIC] - 0.1, f"{METRIC}.high": table[METRIC] + 0.1}
    )


def test_scales_by_hand():
    numbers = Scale.of(pd.Series([1.0, 10, 100, 2, 3, 4, 5]))
    assert numbers.logarithmic and not numbers.choices
    assert (
        numbers.shares()[:3].tolist() == [0, 0.5, 1]
        and numbers.ticks()[0] == (0, "1")
        and numbers.ticks()[-1] == (1, "100")
    )
    few = Scale.of(pd.Series([20, 5, 10, 5]))
    assert few.choices == ["5", "10", "20"] and few.values.tolist() == [2, 0, 1, 0]
    mixed = Scale.of(pd.Series(["full", None, "full", float("nan")], dtype=object))
    assert mixed.choices == [BY_RECIPE, "full"] and mixed.values.tolist() == [1, 0, 1, 0]
    assert Scale.of(pd.Series([True, False])).choices == ["False", "True"]
    many = Scale.of(pd.Series([f"v{i:02d}" for i in range(20)] * 2 + ["v00"]))
    assert len(many.choices) == 8 and many.choices[-1] == OTHERS and many.choices[0] == "v00"
    assert Scale.of(pd.Series([3.0] * 9)).shares().tolist() == [0.5] * 9


def test_order_puts_the_best_first_and_losses_the_other_way_round():
    table = make_runs(4).assign(**{"metrics.nll": [0.3, 0.1, np.nan, 0.2]})
    assert order_runs(table, "metrics.nll")["metrics.nll"].tolist() == [0.1, 0.2, 0.3]
    assert order_runs(table, METRIC)[METRIC].is_monotonic_decreasing
    with pytest.raises(ValueError, match=r"unknown column 'metrics\.auc'.*metrics\.roc_auc"):
        order_runs(table, "metrics.auc")
    assert (
        name_column("metrics.roc_auc") == "ROC AUC"
        and name_column("facts.train_s") == "training time (s)"
    )


@pytest.mark.parametrize("count", [1, 8, 300])
def test_facets_have_a_panel_a_column_and_a_dot_a_run(count):
    axes = plot_run_facets(make_runs(count), METRIC, COLUMNS)
    assert [ax.get_title() for ax in axes] == ["model", "learning rate", "strategy"]
    for ax in axes:
        assert sum(len(dots.get_offsets()) for dots in ax.collections) == count
    assert axes[2].get_yticklabels()[0].get_text() == BY_RECIPE
    axes[0].figure.canvas.draw()


def test_facets_pool_models_beyond_what_colours_tell_apart():
    axes = plot_run_facets(make_runs(60, models=20), METRIC, COLUMNS)
    names = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert len(names) == 7 and OTHERS in names


def test_interactive_facets_tell_which_run_a_dot_is():
    shown = plots.iplot_run_facets(make_runs(8), METRIC, COLUMNS)
    table = make_runs(8)
    first = shown.figure.data[0]
    assert first.name == "m0" and set(first.y) == set(
        table.loc[table["model"] == "m0", METRIC].round(4)
    )
    assert all(text.startswith("m0-seed") and "model: m0" in text for text in first.text)
    assert len(shown.figure.data) == 9 and len(shown.to_html()) < 40_000


def test_parallel_axes_by_hand():
    ax = plot_run_parallel(make_runs(8), METRIC, COLUMNS)
    table = make_runs(8)
    best = table[METRIC].idxmax()
    (thick,) = [line for line in ax.lines if line.get_linewidth() > 2]
    heights = thick.get_ydata()
    assert heights[0] == {"m0": 0, "m1": 0.5, "m2": 1}[table["model"][best]] and heights[-1] == 1
    rates = np.log10(table["parameters.learning_rate"])
    assert heights[1] == pytest.approx((rates[best] - rates.min()) / (rates.max() - rates.min()))
    assert sum(len(line.get_xdata()) == 4 for line in ax.lines) == 8
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "model",
        "learning\nrate",
        "strategy",
        "ROC\nAUC",
    ]


def test_interactive_figures_of_thousands_stay_light(monkeypatch):
    monkeypatch.setattr(many_runs, "MOST_DRAWN", 50)
    table = make_runs(400)
    facets = plots.iplot_run_facets(table, METRIC, COLUMNS)
    assert sum(len(trace.x) for trace in facets.figure.data) == 50 * len(COLUMNS)
    assert (
        facets.figure.layout.annotations[-1].text
        == "the best 10 of 400 runs, and 40 others at random"
    )
    best = set(table[METRIC].nlargest(10).round(4))
    assert best <= {y for trace in facets.figure.data[:3] for y in trace.y}
    parallel = plots.iplot_run_parallel(table, METRIC, COLUMNS)
    assert len(parallel.figure.data[0].dimensions[0]["values"]) == 50


def test_colours_do_not_drown_in_a_few_runs_that_failed_to_learn():
    values = pd.Series([0.1] * 2 + [0.9 + 0.001 * i for i in range(98)], name=METRIC)
    norm = many_runs._norm(values)
    assert norm.vmin > 0.89 and norm.vmax == pytest.approx(0.997)


def test_table_is_bounded_and_unfolds_everything(monkeypatch):
    monkeypatch.setattr(runs_table, "MOST_ROWS", 20)
    table = make_runs(300)
    table.loc[5, [METRIC, "status", "problem"]] = [np.nan, "failed", "NaN in <epoch> 2"]
    shown = plots.iplot_runs_table(table, METRIC, ["parameters.strategy"])
    assert shown.html.count('<tr class="run">') == 20 and "280 more are not shown" in shown.html
    best = table.loc[table[METRIC].idxmax()]
    first = re.search(r'<tr class="run">.*?</tr>\n<tr class="more">.*?</tr>', shown.html).group()
    assert best["run"].rpartition("/")[2] in first and f"{best[METRIC]:.3f} [" in first
    assert "<dt>training time (s)</dt>" in first and "<dt>learning rate</dt>" in first
    monkeypatch.setattr(runs_table, "MOST_ROWS", 300)
    full = plots.iplot_runs_table(table, METRIC, []).html
    assert full.rindex("NaN in &lt;epoch&gt; 2") > full.rindex("m2-seed"), (
        "a run without a score comes last"
    )
    lines = shown.markdown.splitlines()
    assert lines[0] == "| run | ROC AUC | strategy | status |" and len(lines) == 24
    assert (
        lines[-1]
        == "The first 20 of 300 runs; the web page has more of them, with all that is known of"
        " each."
    )


def test_table_too_large_for_a_page_has_fewer_rows(monkeypatch):
    whole = plots.iplot_runs_table(make_runs(200), METRIC, []).html
    monkeypatch.setattr(runs_table, "LIMIT", 20_000)
    html = plots.iplot_runs_table(make_runs(200), METRIC, []).html
    rows = html.count('<tr class="run">')
    assert 10 < rows < 200 and f"{200 - rows} more are not shown" in html
    assert len(whole) - len(html) > (200 - rows) / 200 * (len(whole) - 25_000)


def test_report_keeps_the_table_alive_on_the_web_and_short_on_paper():
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    data = plots.iplot_runs_table(make_runs(30), METRIC, [])._repr_mimebundle_()
    cell = new_code_cell(
        "#| label: tbl-a\n#| tbl-cap: C.\nt", outputs=[new_output("display_data", data=data)]
    )
    notebook = clean_notebook(new_notebook(cells=[cell]))
    web, paper = (view(notebook).cells[0].outputs[0].data for view in (for_web, for_paper))
    assert "vitlab-runs" in web["text/markdown"] and 'class="live-table"' in web["text/markdown"]
    assert paper["text/markdown"].startswith("| run | ROC AUC | status |")


def test_twins_for_paper_are_pictures():
    for shown in (
        plots.iplot_run_facets(make_runs(9), METRIC, ["model"]),
        plots.iplot_run_parallel(make_runs(9), METRIC, ["model"]),
    ):
        assert base64.b64decode(shown._repr_mimebundle_()["image/png"]).startswith(b"\x89PNG")

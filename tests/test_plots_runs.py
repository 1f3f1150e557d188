"""Figures and the table of many runs and of the trials of a search: right with none, one, eight and
three hundred, and bounded in size.
"""

import re

import numpy as np
import pandas as pd
import pytest

from vitlab import plots
from vitlab.plots import runs, tables
from vitlab.plots.runs import BY_RECIPE, OTHERS, Scale, order_runs
from vitlab.plots.training import best_so_far
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
        numbers.heights()[:3].tolist() == [0, 0.5, 1]
        and numbers.ticks()[0] == "1"
        and numbers.ticks()[1] == "100"
    )
    few = Scale.of(pd.Series([20, 5, 10, 5]))
    assert few.choices == ["5", "10", "20"] and few.values.tolist() == [2, 0, 1, 0]
    mixed = Scale.of(pd.Series(["full", None, "full", float("nan")], dtype=object))
    assert mixed.choices == [BY_RECIPE, "full"] and mixed.values.tolist() == [1, 0, 1, 0]
    assert Scale.of(pd.Series([True, False])).choices == ["False", "True"]
    many = Scale.of(pd.Series([f"v{i:02d}" for i in range(20)] * 2 + ["v00"]))
    assert len(many.choices) == 8 and many.choices[-1] == OTHERS and many.choices[0] == "v00"
    assert Scale.of(pd.Series([3.0] * 9)).heights().tolist() == [0.5] * 9


def test_order_puts_the_best_first_and_losses_the_other_way_round():
    table = make_runs(4).assign(**{"metrics.nll": [0.3, 0.1, np.nan, 0.2]})
    assert order_runs(table, "metrics.nll")["metrics.nll"].tolist() == [0.1, 0.2, 0.3]
    assert order_runs(table, METRIC)[METRIC].is_monotonic_decreasing
    with pytest.raises(ValueError, match=r"unknown column 'metrics\.auc'.*metrics\.roc_auc"):
        order_runs(table, "metrics.auc")


@pytest.mark.parametrize("count", [1, 8, 300])
def test_facets_have_a_panel_a_column_and_a_dot_a_run(count):
    axes = plots.iplot_run_facets(make_runs(count), METRIC, COLUMNS).static.axes
    assert [ax.get_title() for ax in axes] == ["model", "learning rate", "strategy"]
    for ax in axes:
        assert sum(len(dots.get_offsets()) for dots in ax.collections) == count
    assert axes[2].get_xticklabels()[0].get_text() == BY_RECIPE


def test_facets_pool_models_beyond_what_colours_tell_apart():
    axes = plots.iplot_run_facets(make_runs(60, models=20), METRIC, COLUMNS).static.axes
    names = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert len(names) == 7 and OTHERS in names


def test_interactive_facets_tell_which_run_a_dot_is():
    shown = plots.iplot_run_facets(make_runs(8), METRIC, COLUMNS)
    table = make_runs(8)
    first = shown.figure.data[0]
    assert first.name == "m0" and set(first.y) == set(table.loc[table["model"] == "m0", METRIC])
    assert all(run.startswith("m0-seed") for run, _ in first.customdata)
    assert {value for _, value in first.customdata} == {"m0"}
    assert len(shown.figure.data) == 9 and len(shown.to_html()) < 40_000


def test_parallel_axes_by_hand():
    ax = plots.iplot_run_parallel(make_runs(8), METRIC, COLUMNS).static.axes[0]
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
    monkeypatch.setattr(runs, "MAX_RUNS", 50)
    table = make_runs(400)
    facets = plots.iplot_run_facets(table, METRIC, COLUMNS)
    assert sum(len(trace.x) for trace in facets.figure.data) == 50 * len(COLUMNS)
    assert (
        facets.figure.layout.annotations[-1].text
        == "the best 10 of 400 runs, and 40 others at random"
    )
    assert set(table[METRIC].nlargest(10)) <= {y for trace in facets.figure.data for y in trace.y}
    parallel = plots.iplot_run_parallel(table, METRIC, COLUMNS)
    assert len(parallel.figure.data[0].dimensions[0]["values"]) == 50


def test_colours_do_not_drown_in_a_few_runs_that_failed_to_learn():
    values = pd.Series([0.1] * 2 + [0.9 + 0.001 * i for i in range(98)], name=METRIC)
    norm = runs._norm(values)
    assert norm.vmin > 0.89 and norm.vmax == pytest.approx(0.997)


def test_table_is_bounded_and_unfolds_everything(monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROWS", 20)
    table = make_runs(300)
    table.loc[5, [METRIC, "status", "problem"]] = [np.nan, "failed", "NaN in <epoch> 2"]
    shown = plots.iplot_runs_table(table, METRIC, ["parameters.strategy"])
    assert shown.html.count('<tr class="run">') == 20 and "280 more are not shown" in shown.html
    best = table.loc[table[METRIC].idxmax()]
    first = re.search(r'<tr class="run">.*?</tr>\n<tr class="more">.*?</tr>', shown.html).group()
    assert best["run"].rpartition("/")[2] in first and f"{best[METRIC]:.3f} [" in first
    assert "<dt>training time (s)</dt>" in first and "<dt>learning rate</dt>" in first
    monkeypatch.setattr(tables, "MAX_ROWS", 300)
    full = plots.iplot_runs_table(table, METRIC, []).html
    assert full.rindex("NaN in &lt;epoch&gt; 2") > full.rindex("m2-seed"), (
        "a run without a score comes last"
    )
    lines = shown.markdown.splitlines()
    assert lines[0] == "| run | ROC AUC | strategy | status |" and len(lines) == 24
    assert lines[-1] == "The first 20 of 300 runs; the web page has more."


def test_table_too_large_for_a_page_has_fewer_rows(monkeypatch):
    whole = plots.iplot_runs_table(make_runs(200), METRIC, []).html
    monkeypatch.setattr(tables, "MAX_BYTES", 20_000)
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


# Trials of a search


@pytest.fixture
def trials():
    """As `trials_table` gives them: the finished ones first, the best on top."""
    table = pd.DataFrame(
        {
            "trial": [4, 0, 2, 1, 3],
            "state": ["finished", "finished", "finished", "pruned", "failed"],
            "value": [0.9, 0.8, 0.7, 0.5, np.nan],
            "best_epoch": [3, 2, 3, 1, 0],
            "epochs": [3, 3, 3, 2, 0],
            "seconds": [1.0, 1.1, 1.0, 0.5, 0.1],
            "learning_rate": [1e-3, 1e-4, 1e-5, 1e-2, 1e-1],
            "mixup": [0.0, 0.1, 0.4, 0.2, 0.3],
            "augment": pd.Categorical(
                ["light", "none", "light", "strong", "none"],
                ["none", "light", "strong"],
                ordered=True,
            ),
            "trained_blocks": pd.Categorical(
                ["all", "0", "2", "all", "0"], ["0", "2", "all"], ordered=True
            ),
            "note": ["", "", "", "", "FloatingPointError"],
        }
    )
    return table


@pytest.fixture
def importance():
    return pd.DataFrame({"argument": ["learning_rate", "mixup"], "importance": [0.7, 0.3]})


def test_best_so_far_by_hand(trials):
    assert best_so_far(trials, "val_accuracy").to_numpy().tolist() == [
        [0, 0.8],
        [1, 0.8],
        [2, 0.8],
        [3, 0.8],
        [4, 0.9],
    ]
    assert best_so_far(trials, "val_loss")["value"].tolist() == [0.8, 0.8, 0.7, 0.7, 0.7]


def test_trials_show_every_state(trials):
    ax = plots.iplot_trials(trials, "val_accuracy").static.axes[0]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["finished", "pruned (best until then)", "best so far", "failed"]
    assert ax.get_ylabel() == "validation accuracy" and ax.get_xlabel() == "trial"
    assert ax.lines[0].get_xydata().tolist() == [[4, 0.9], [0, 0.8], [2, 0.7]]


def test_importance_bars_or_words(importance):
    ax = plots.plot_importance(importance)
    assert [bar.get_width() for bar in ax.patches] == [0.7, 0.3]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["learning rate", "mixup"]
    assert plots.plot_importance(importance[:0]).texts[0].get_text().startswith("Importance needs")


def test_interactive_figures_tell_the_same(trials):
    figure = plots.iplot_trials(trials, "val_accuracy").figure
    assert [trace.name for trace in figure.data] == ["finished", "pruned", "best so far"]
    assert list(figure.data[0].customdata[0]) == [3, 0.001, 0.0, "light", "all"]
    assert figure.layout.yaxis.title.text == "validation accuracy"
    dimensions = plots.iplot_parallel(trials, "val_accuracy").figure.data[0].dimensions
    assert [one.label for one in dimensions] == [
        "learning rate",
        "mixup",
        "augment",
        "trained blocks",
        "validation accuracy",
    ]
    assert list(dimensions[0].values) == [0, 0.5, 1], "by powers of ten, the best trial last"
    assert list(dimensions[3].ticktext) == ["0", "2", "all"] and list(dimensions[3].values) == [
        0.5,
        0,
        1,
    ]
    panels = plots.iplot_arguments(trials, "val_accuracy").figure
    # plotly.express numbers the axes from the bottom row
    assert panels.layout.xaxis4.type == "log"
    assert list(panels.layout.xaxis.ticktext) == ["0", "2", "all"]
    best = next(trace for trace in panels.data if trace.name == "best trial")
    assert list(best.x) == [1e-3] and list(best.y) == [0.9]
    assert best.customdata.tolist() == [["trial 4 (epoch 3)", "0.001"]]
    losses = plots.iplot_arguments(trials.assign(value=-trials["value"]), "val_loss").figure
    assert list(losses.data[0].y) == [-0.9], "the lowest loss is the best"


@pytest.mark.parametrize("finished", [3, 1, 0])
def test_few_finished_trials_do_not_break_a_figure(trials, finished):
    few = pd.concat([trials[:finished], trials[3:]], ignore_index=True)
    figures = [
        draw(few, "val_accuracy")
        for draw in (plots.iplot_trials, plots.iplot_parallel, plots.iplot_arguments)
    ]
    for figure in figures:
        assert figure.to_png().startswith(b"\x89PNG") and "vitlab-plotly" in figure.to_html()

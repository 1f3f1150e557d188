"""Interactive figures hold all they need, say which dot is which, and stay light; tables for the
reader; fonts.
"""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from tests import figures
from tests.figures import FIGURES, RUN_COLUMNS, RUN_METRIC, make_predictions, make_runs
from vitlab import evaluation, plots
from vitlab.markup import JUPYTER_ONLY
from vitlab.plots import fonts, interactive, runs
from vitlab.plots.interactive import plotly_text
from vitlab.plots.runs import BY_RECIPE, OTHERS, best_so_far, order_runs, place_values
from vitlab.plots.viewer import LIMIT
from vitlab.report.clean import clean_notebook, for_paper, for_web

INTERACTIVE = [name for name in FIGURES if name.startswith("iplot_")]
PLOTLY = [name for name in INTERACTIVE if name not in ("iplot_runs_table", "iplot_patch_attention")]
GRID = (2, 3)
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def legend(ax):
    found = ax.get_legend() or ax.get_figure(root=True).legends[0]
    return [text.get_text() for text in found.get_texts()]


# The contract


def test_the_library_is_an_output_of_its_own_before_the_first_figure(monkeypatch):
    """Quarto moves an output with a library to the top of the page."""
    sent = []
    monkeypatch.setattr(interactive, "_library_sent", False)
    monkeypatch.setattr(interactive, "display", lambda *out, **how: sent.append((*out, how)))
    bundles = {name: FIGURES[name]()._repr_mimebundle_() for name in PLOTLY}
    assert len(sent) == 1 and sent[0][1] == {"metadata": JUPYTER_ONLY}, "reports bring their own"
    library = sent[0][0].data
    # hidden from module loaders
    assert "window.Plotly || (function (define, module, exports) {" in library
    pages = [bundle["text/html"] for bundle in bundles.values()]
    assert len(library) > 3e6 and all(len(page) < 1e5 for page in pages)
    for page, bundle in zip(pages, bundles.values(), strict=True):
        assert page.count('class="vitlab-plotly"') == 1
        assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=", page), "nothing from elsewhere"
        assert re.search(r'"showSendToCloud":\s*false', page)
        assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
        assert page.count("</script>") == 2, "the figure, the hint when there is no library"
    names = re.findall(r'id="(vitlab-[0-9a-f-]{36})"', "".join(pages))
    assert len(set(names)) == len(pages)


@pytest.mark.parametrize("name", INTERACTIVE)
def test_reports_keep_it_alive_on_the_web_and_plain_on_paper(name):
    bundle = FIGURES[name]()._repr_mimebundle_()
    source = f'#| label: fig-a\n#| fig-cap: C.\n#| fig-alt: "Alternative text"\n{name}'
    cell = new_code_cell(source, outputs=[new_output("display_data", data=bundle)])
    clean = clean_notebook(new_notebook(cells=[cell]))
    web, paper = (make(clean).cells[0].outputs[0].data for make in (for_web, for_paper))
    kind = "live-table" if name == "iplot_runs_table" else "interactive"
    assert f'class="{kind}"' in web["text/markdown"] and "Alternative text" in web["text/markdown"]
    assert set(paper) == {"text/markdown" if name == "iplot_runs_table" else "image/png"}


def test_plotly_shows_names_as_text():
    assert plotly_text("<b>&$%{x}") == "&#60;b&#62;&#38;&#36;%&#123;x}"
    names = ["$x$", "<b>bold", "back\\slash", "%{x}"]
    samples = pd.DataFrame({"sample_id": [f"{n}/1.png" for n in names], "label": names})
    samples["group"] = "<i>g"
    table = samples[["sample_id"]].assign(mean=0.5, std=0.1)
    figure = plots.iplot_intensities(table, samples, names).figure
    assert [trace.name for trace in figure.data] == list(map(plotly_text, names))
    for trace in figure.data:
        assert "<b>bold" not in trace.hovertemplate and "<" not in trace.customdata[0][0]
    assert figure.layout.annotations[0].text == "&#60;i&#62;g (n = 4)"


# What each says


def test_every_dot_can_be_traced_to_its_sample():
    samples = figures.make_samples()
    table = figures.make_image_table(samples).set_index("sample_id")
    traces = FIGURES["iplot_intensities"]().figure.data
    found = {}
    for trace in traces:
        found |= dict(zip(trace.customdata[:, 0], trace.x, strict=True))
    assert found == table["mean"].to_dict()
    many = samples.assign(group=[f"g{i % 30}" for i in range(60)])
    shown = plots.iplot_intensities(table.reset_index(), many, figures.CLASSES)
    assert len(shown.static.axes) == 7
    assert "7 largest of 30 values of group" in shown.static.get_suptitle()


def test_comparison_draws_seeds_and_mean():
    shown = FIGURES["iplot_comparison"]()
    axes = shown.static.axes
    assert [ax.get_title() for ax in axes] == ["ROC AUC", "F1"]
    np.testing.assert_allclose(axes[0].collections[0].get_offsets(), [[0.8, 0], [0.83, 0]])
    np.testing.assert_allclose(axes[0].collections[-3].get_offsets(), [[0.815, 0]])
    first = shown.figure.data[0]
    assert first.name == "efficientnet_lite0"
    assert first.customdata.tolist() == [
        ["efficientnet_lite0", "0", "0.8"],
        ["efficientnet_lite0", "1", "0.83"],
    ]
    with pytest.raises(ValueError, match=r"unknown metric 'F1'"):
        plots.iplot_comparison(figures.make_runs_metrics(), ["F1"])


def test_cost_and_pareto():
    shown = FIGURES["iplot_cost"]()
    (ax,) = shown.static.axes
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "training time (s)"
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[9, 0.8], [12, 0.83]])
    shown = FIGURES["iplot_pareto"]()
    (ax,) = shown.static.axes
    front = next(line for line in ax.lines if line.get_drawstyle() == "steps-post")
    assert front.get_xdata().tolist() == list(shown.figure.data[-1].x) == [12, 40]
    assert ax.get_xlabel() == "median latency (ms, batch 1, 2 threads)"
    assert legend(ax)[0] == "full, 90 MB" and shown.figure.layout.xaxis.type == "log"
    bars = ax.collections[1].get_segments()
    assert np.ptp(bars[0][:, 1]) == pytest.approx(0.04)
    assert shown.figure.data[0].customdata[0].tolist() == [
        "full, 90 MB",
        "40",
        "0.9",
        "0.88",
        "0.92",
    ]
    table = figures.make_benchmark()
    unsized = plots.iplot_pareto(table.assign(size_mb=np.nan), batch_size=32)
    assert legend(unsized.static.axes[0])[0] == "full, unknown size"
    with pytest.raises(ValueError, match=r"unknown batch_size .8.*1, 32"):
        plots.iplot_pareto(table, batch_size=8)


def test_thresholds_are_marked_with_their_rules():
    table = evaluation.threshold_table(make_predictions())
    rules = ["0.5", "f1", "cost", "recall", "youden"]
    chosen = pd.DataFrame({"rule": rules, "threshold": [0.5, 0.4, np.inf, np.nan, 0.4]})
    near = chosen.assign(threshold=[0.5, 0.4, 0.43, 0.9, 0.4])  # no room for a name each
    near = [text.get_text() for text in plots.iplot_threshold(table, near).static.axes[0].texts]
    assert list(filter(None, near)) == ["F1, Youden, cost", "recall"]
    shown = plots.iplot_threshold(table, chosen)
    (ax,) = shown.static.axes
    assert legend(ax) == ["precision", "recall", "specificity", "F1", "0.5, the default"]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), table["recall"])
    marks = [(text.get_position()[0], text.get_text()) for text in ax.texts]
    (mark,) = shown.figure.layout.annotations
    assert marks == [(0.4, "F1, Youden")] == [(mark.x, mark.text)]
    np.testing.assert_allclose(shown.figure.data[1].y, table["recall"])


# Runs and trials


def test_values_are_numbers_or_choices():
    assert place_values(pd.Series([1.0, 10, 100, 2, 3, 4, 5]), 6)[1] == "log"
    assert place_values(pd.Series([1.0, 2, 3]), 0)[1] == "linear"
    places, choices = place_values(pd.Series([20, 5, 10, 5]), 6)
    assert choices == ["5", "10", "20"] and places.round().tolist() == [2, 0, 1, 0]
    mixed = pd.Series(["full", None, "full", float("nan")], dtype=object)
    places, choices = place_values(mixed, 6)
    assert choices == [BY_RECIPE, "full"] and places.round().tolist() == [1, 0, 1, 0]
    assert place_values(pd.Series([True, False]), 0)[1] == ["False", "True"]
    many = place_values(pd.Series([f"v{i:02d}" for i in range(20)] * 2 + ["v00"]), 6)[1]
    assert len(many) == 8 and many[-1] == OTHERS and many[0] == "v00"


def test_order_puts_the_best_first_and_losses_the_other_way_round():
    table = make_runs(4).assign(**{"metrics.nll": [0.3, 0.1, np.nan, 0.2]})
    assert order_runs(table, "metrics.nll")["metrics.nll"].tolist() == [0.1, 0.2, 0.3]
    assert order_runs(table, RUN_METRIC)[RUN_METRIC].is_monotonic_decreasing
    with pytest.raises(ValueError, match=r"unknown column 'metrics\.auc'.*metrics\.roc_auc"):
        order_runs(table, "metrics.auc")


@pytest.mark.parametrize("count", [0, 1, 300])
def test_facets_have_a_panel_a_column_and_a_dot_a_run(count):
    shown = plots.iplot_run_facets(make_runs(count), RUN_METRIC, RUN_COLUMNS)
    axes = shown.static.axes
    if not count:
        assert axes[0].texts[0].get_text() == "There is no run to draw."
        return
    assert [ax.get_title() for ax in axes] == ["model", "learning rate", "strategy"]
    for ax in axes:
        assert sum(len(dots.get_offsets()) for dots in ax.collections) == count
    assert axes[2].get_xticklabels()[0].get_text() == BY_RECIPE
    first = shown.figure.data[0]
    scores = make_runs(count).query("model == 'm0'")[RUN_METRIC]
    assert first.name == "m0" and set(first.y) == set(scores)
    assert all(run.startswith("m0-seed") for run in first.customdata[:, 0])
    assert set(first.customdata[:, 1]) == {"m0"}


def test_facets_pool_models_beyond_what_colours_tell_apart():
    shown = plots.iplot_run_facets(make_runs(60, models=20), RUN_METRIC, RUN_COLUMNS)
    names = legend(shown.static.axes[0])
    assert len(names) == 7 and OTHERS in names


def test_the_table_of_runs_is_bounded_and_escaped(monkeypatch):
    monkeypatch.setattr(runs, "MAX_ROWS", 30)
    table = make_runs(100)
    table.loc[5, [RUN_METRIC, "status", "problem"]] = [np.nan, "failed", "NaN in <epoch> 2"]
    shown = plots.iplot_runs_table(table, RUN_METRIC, ["parameters.strategy"])
    assert shown.figure.count("<tr") == 31 and "70 more are not shown" in shown.figure
    best = table.loc[table[RUN_METRIC].idxmax()]
    assert best["run"].rpartition("/")[2] in shown.figure.split("</tr>")[1]
    assert f"{best[RUN_METRIC]:.3f} [" in shown.figure.split("</tr>")[1]
    lines = shown.static.splitlines()
    assert lines[0] == "| run | ROC AUC | strategy | status |" and len(lines) == 24
    assert lines[-1] == "The first 20 of 100 runs; the web page has more."
    monkeypatch.setattr(runs, "MAX_ROWS", 100)
    last = plots.iplot_runs_table(table, RUN_METRIC, []).figure.split("</tr>")[-2]
    assert "failed: NaN in &lt;epoch&gt; 2" in last, "a run without a score comes last"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_table_sorts_and_filters_in_a_browser(tmp_path):
    act = """<script>
      document.querySelectorAll(".vitlab-runs thead button")[1].click();
      document.querySelectorAll(".vitlab-runs thead button")[1].click();
      var input = document.querySelector(".vitlab-runs input");
      input.value = "full m1"; input.dispatchEvent(new Event("input"));</script>"""
    table = make_runs(12)
    html = plots.iplot_runs_table(table, RUN_METRIC, ["parameters.strategy"]).to_html()
    page = browse(tmp_path, html + act)
    kept = table[(table["model"] == "m1") & (table["parameters.strategy"] == "full")]
    assert f"{len(kept)} of 12 runs" in page
    first = page.partition("<tbody>")[2].partition("</tr>")[0]
    worst = table.loc[table[RUN_METRIC].idxmin(), "run"].rpartition("/")[2]
    assert worst in first, "descending, then ascending"


def test_trials_show_every_state():
    shown = FIGURES["iplot_trials"]()
    (ax,) = shown.static.axes
    assert legend(ax) == ["finished", "pruned", "best so far", "failed"]
    assert ax.get_ylabel() == "validation accuracy" and ax.get_xlabel() == "trial"
    assert ax.collections[0].get_offsets().tolist() == [[4, 0.9], [0, 0.8], [2, 0.7]]
    assert [trace.name for trace in shown.figure.data] == ["finished", "pruned", "best so far"]
    assert shown.figure.data[0].customdata[0].tolist() == ["4", "0.9", "3", "0.001", "light"]
    trials = figures.make_trials()
    best = best_so_far(trials, "val_accuracy").to_numpy().tolist()
    assert best == [[0, 0.8], [1, 0.8], [2, 0.8], [3, 0.8], [4, 0.9]]
    assert best_so_far(trials, "val_loss")["value"].tolist() == [0.8, 0.8, 0.7, 0.7, 0.7]


def test_arguments_have_a_panel_each_and_the_best_trial_a_colour():
    figure = FIGURES["iplot_arguments"]().figure
    assert figure.layout.xaxis.type == "log"
    assert list(figure.layout.xaxis2.ticktext) == ["none", "light", "strong"], "in their order"
    best = next(trace for trace in figure.data if trace.name == "best trial")
    assert list(best.x) == [1e-3] and list(best.y) == [0.9]
    assert best.customdata.tolist() == [["trial 4 (epoch 3)", "0.001", "0.9"]]


@pytest.mark.parametrize("finished", [1, 0])
def test_few_finished_trials_do_not_break_a_figure(finished):
    trials = figures.make_trials()
    few = pd.concat([trials[:finished], trials[3:]], ignore_index=True)
    for draw in (plots.iplot_trials, plots.iplot_arguments):
        assert "image/png" in draw(few, "val_accuracy")._repr_mimebundle_()
    ax = plots.plot_importance(pd.DataFrame({"argument": [], "importance": []}))
    assert ax.texts[0].get_text().startswith("Importance needs")


# The viewer of attention


def read_data(html):
    return json.loads(re.search(r"var data = (\{.*\});", html)[1])


def test_the_viewer_holds_the_attention_to_one_part_in_255():
    weights = figures.make_attention(2)
    html = plots.iplot_patch_attention(np.zeros((40, 60, 3)), weights, GRID).to_html()
    data = read_data(html)
    assert data["grid"] == [2, 3] and data["prefix"] == 1 and data["layers"] == ["1", "2"]
    for layer in range(2):
        levels = np.frombuffer(base64.b64decode(data["weights"][layer]), np.uint8).reshape(7, 6)
        highest = np.array(data["highest"][layer])
        np.testing.assert_allclose(highest, weights[layer, :, 1:].max(axis=1), rtol=1e-3)
        error = np.abs(levels / 255 * highest[:, None] - weights[layer, :, 1:])
        assert (error <= highest[:, None] * (0.5 / 255 + 1e-3)).all()
    np.testing.assert_allclose(data["toPrefix"], weights[:, :, 0], rtol=1e-3)
    picture = Image.open(io.BytesIO(base64.b64decode(data["image"])))
    assert picture.size == (60, 40) and data["size"] == [448, 299]
    # without the data in base64, which may spell anything
    code = re.sub(r'"[A-Za-z0-9+/=]{40,}"', '""', html)
    assert not re.search(r"https?:|src=|href=|import |fetch|XMLHttp|//[a-z]", code)
    assert html.count("</script>") == 1
    assert 'aria-label="An image; pointing at one of its patches' in html


@pytest.mark.parametrize(("prefix", "token"), [(1, 0), (2, 0), (0, 4)])
def test_the_query_shown_first(prefix, token):
    weights = figures.make_attention(1, prefix)
    viewer = plots.iplot_patch_attention(np.zeros((8, 12, 3)), weights, GRID)
    assert read_data(viewer.to_html())["query"] == token
    last = viewer.static.axes[1].images[0].get_array()
    expected = weights[0, token, prefix:]
    np.testing.assert_allclose(last, (expected / expected.max()).reshape(GRID), rtol=1e-6)


def test_a_vit_of_twelve_blocks_stays_small():
    even = np.full((12, 197, 197), 1 / 197, np.float32)
    noise = np.random.default_rng(1).random((224, 224, 3))  # the worst case for JPEG
    assert len(plots.iplot_patch_attention(noise, even, (14, 14)).to_html()) < LIMIT
    deep = np.full((18, 577, 577), 1 / 577, np.float32)
    with pytest.raises(ValueError, match=r"takes 8\.\d MB.*give at most 2 of the 18 blocks"):
        plots.iplot_patch_attention(noise, deep, (24, 24))
    with pytest.raises(ValueError, match="give a smaller image, which has fewer patches"):
        plots.iplot_patch_attention(noise, np.full((1, 1370, 1370), 1 / 1370), (37, 37))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_viewer_works_in_a_browser(tmp_path):
    weights = figures.make_attention(2)
    act = """<script>setTimeout(function () {
      var canvas = document.querySelector(".vv-query"), box = canvas.getBoundingClientRect();
      var x = box.left + 0.9 * box.width, y = box.top + 0.2 * box.height;
      var at = {clientX: x, clientY: y, bubbles: true};
      canvas.dispatchEvent(new PointerEvent("pointermove", at));
      var chooser = document.querySelector(".vv-layer");
      chooser.value = 0;
      chooser.dispatchEvent(new Event("change"));
    }, 300);</script>"""
    viewer = plots.iplot_patch_attention(figures.make_images(1)[0], weights, GRID)
    page = browse(tmp_path, viewer.to_html() + act)
    row = weights[0, 3, 1:]  # a class token, then row 1: columns 1, 2, 3
    best, share = int(row.argmax()), row.max()
    percent = f"{100 * share:.{int(share < 0.0995)}f} %"
    assert "query: patch in row 1, column 3" in page and "its attention, block 1" in page
    assert f"patch (row {best // 3 + 1}, column {best % 3 + 1}) gets {percent}" in page


def browse(folder, html):
    """The page as a browser leaves it."""
    page = folder / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{html}", encoding="utf-8")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000"]
    command += ["--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


# Tables for the reader


def test_tables_fold_intervals_and_name_rows():
    metrics = evaluation.metrics_table(make_predictions(), replicates=50)
    shown = plots.present(metrics)
    assert list(shown.columns) == ["value"] and len(shown) == len(evaluation.METRICS)
    row = metrics.iloc[0]
    value = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    assert shown.loc["accuracy", "value"] == value
    wide = plots.present(
        evaluation.comparison_table(figures.make_runs_metrics()), columns="metric", digits=2
    )
    assert list(wide.columns) == ["seeds", "ROC AUC", "F1", "accuracy"]
    assert wide.loc["hybrid_vit", "F1"] == "0.84 ± 0.02"
    ends = {"recall": [0.9, 0.8], "recall_low": [0.8, np.nan], "recall_high": [1.0, np.nan]}
    rules = plots.present(pd.DataFrame({"rule": ["f1", "cost"], **ends}), digits=2)
    assert rules["recall"].tolist() == ["0.90 [0.80, 1.00]", "0.80"]
    row = {"metric": "f1", "value": np.nan, "low": np.nan, "high": np.nan, "note": "only cats"}
    assert plots.present(pd.DataFrame([row])).loc["F1"].tolist() == ["–", "only cats"]


def test_numbers_in_tables():
    table = pd.DataFrame(
        {
            "side": ["a", "b"],
            "parameters": [2_095_842, 900],
            "seed": [20240101, 1],
            "change": [-0.0004, 0.0125],
            "gap": [np.nan, 0.5],
            "count": pd.array([None, 12], dtype="Int64"),
            "p_holm": [1e-9, 0.25],
        }
    )
    shown = plots.present(table, digits=2)
    assert shown["parameters"].tolist() == ["2,095,842", "900"]
    assert shown["seed"].tolist() == [20240101, 1]
    assert not np.signbit(shown["change"].iloc[0]) and shown["change"].tolist() == [0, 0.01]
    assert shown["gap"].tolist() == ["–", "0.50"] and shown["count"].tolist() == ["–", "12"]
    assert shown["p (Holm)"].tolist() == ["< 0.01", "0.25"]
    numbers = plots.present(table[["gap", "side"]])
    assert numbers.index.tolist() == ["", ""], "numbers are no names of rows"
    spread = pd.DataFrame({"model": ["a"], "mean": [-0.0001], "spread": [0.0]})
    assert plots.present(spread)["value"].tolist() == ["0.000 ± 0.000"]


# Fonts


@pytest.mark.parametrize("name", ["кот", "γάτα", "قطة", "Katze", "→ ✓"])
def test_scripts_of_the_usual_font_need_no_other(name):
    assert fonts.find_fonts(name) == ([], "")


def test_an_installed_font_is_found_for_missing_characters(monkeypatch):
    """matplotlib's mono font stands for an installed one, while the usual one lacks Cyrillic."""
    usual, other = (font_manager.findfont(name) for name in (fonts.USUAL, "DejaVu Sans Mono"))
    known = {usual: range(32, 0x250), other: range(0x400, 0x460)}
    monkeypatch.setattr(fonts, "_installed", lambda: (other,))
    monkeypatch.setattr(fonts, "_characters", lambda path: frozenset(known.get(path, known[usual])))
    assert fonts.find_fonts("кот a 猫") == (["DejaVu Sans Mono"], "猫")


@pytest.mark.parametrize(
    ("missing", "package"),
    [("한か", "fonts-noto-cjk"), ("ท", "fonts-noto-core"), ("🦜", "fonts-symbola")],
)
def test_the_hint_names_the_package(missing, package):
    assert f"apt-get install {package})" in fonts.describe_missing(missing)

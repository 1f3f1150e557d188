"""Every figure drawn from small tables: what is on it is what the table says."""

import base64
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color, to_hex
from PIL import Image

from vitlab import plots
from vitlab.evaluation import (
    METRICS,
    comparison_table,
    confusion_table,
    curve_band_table,
    metrics_table,
    mistakes_table,
    precision_recall_table,
    roc_table,
    slice_table,
    threshold_table,
)
from vitlab.plots import data, interactive, style
from vitlab.plots.style import class_colors, series_colors
from vitlab.plots.training import best_epoch

CLASSES = ("functional", "defective")
DIGITS = tuple("0123456789")


def make_predictions(classes=CLASSES, num_samples=120):
    generator = np.random.default_rng(0)
    label = generator.integers(len(classes), size=num_samples)
    logits = generator.normal(size=(num_samples, len(classes)))
    logits[np.arange(num_samples), label] += 1.5
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame({"sample_id": [f"s{i}" for i in range(num_samples)], "split": "test"})
    table["group"] = generator.choice(["mono", "poly"], num_samples)
    table["label"], table["pred"] = np.array(classes)[label], np.array(classes)[prob.argmax(axis=1)]
    table[[f"logit_{name}" for name in classes]] = logits
    table[[f"prob_{name}" for name in classes]] = prob
    return table


def make_history(epochs=6, offset=0.0, classes=CLASSES):
    epoch = np.arange(1, epochs + 1)
    history = pd.DataFrame({"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1 / epoch + 0.1})
    for name in (
        "val_accuracy",
        "val_balanced_accuracy",
        "val_roc_auc",
        *(f"val_recall_{name}" for name in classes),
    ):
        history[name] = 0.5 + 0.05 * epoch + offset
    return history


@pytest.fixture
def samples():
    label = ["functional"] * 6 + ["defective"] * 4
    group = ["mono", "poly"] * 5
    ids = [f"s{i}" for i in range(10)]
    return pd.DataFrame(
        {"sample_id": ids, "label": label, "split": ["train"] * 7 + ["test"] * 3, "group": group}
    )


@pytest.fixture
def images():
    return [Image.new("L", (12, 12), 40 * i) for i in range(6)]


@pytest.fixture
def measured():
    ids = [f"s{i}" for i in range(10)]
    return pd.DataFrame(
        {
            "sample_id": ids,
            "width": [30] * 9 + [20],
            "height": 30,
            "mean": np.linspace(0, 1, 10),
            "std": 0.2,
        }
    )


@pytest.fixture
def runs_metrics():
    rows = [
        (m, s, k, 0.8 + 0.1 * s)
        for m in ("hybrid_vit", "vit_scratch")
        for s in (0, 1)
        for k in ("roc_auc", "f1")
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "metric", "value"])


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# Style


def test_a_class_has_one_colour_everywhere(samples, images):
    colors = class_colors(CLASSES)
    bars = plots.plot_class_balance(samples, classes=CLASSES)[0].patches
    assert [to_hex(bar.get_facecolor()) for bar in bars] == list(colors.values())
    axes = plots.plot_sample_grid(
        images[:2], ["a", "b"], labels=["defective", "functional"], classes=CLASSES
    )
    assert to_hex(axes[0].spines["left"].get_edgecolor()) == colors["defective"]
    recall = plots.plot_history(make_history())[2].lines
    assert [line.get_color() for line in recall[:2]] == list(colors.values())


def test_colours_never_run_out_and_differ():
    names = [str(i) for i in range(25)]
    for colors in (class_colors(names), series_colors(names)):
        assert len(set(colors.values())) == 25
    assert set(class_colors(CLASSES).values()).isdisjoint(series_colors("abc").values())


def test_images_keep_their_range_of_values():
    ax = plt.figure().add_subplot()
    style.show_image(ax, np.full((4, 4), 51, np.uint8))
    style.show_image(ax, np.full((4, 4), 0.2))
    style.show_image(ax, Image.fromarray(np.full((4, 4), 13107, np.uint16)))
    assert [float(image.get_array()[0, 0]) for image in ax.images] == pytest.approx([0.2, 0.2, 0.2])
    assert all(image.get_clim() == (0, 1) for image in ax.images)


# Data


def test_class_balance_counts_each_group(samples):
    axes = plots.plot_class_balance(samples, classes=CLASSES)
    assert [ax.get_title() for ax in axes] == ["all (n = 10)", "mono (n = 5)", "poly (n = 5)"]
    assert [bar.get_width() for bar in axes[0].patches] == [6, 4]
    assert texts(axes[1]) == ["3 (60%)", "2 (40%)"]
    assert len(plots.plot_class_balance(samples.assign(group="x"), CLASSES)) == 1


def test_sample_grid(images):
    axes = plots.plot_sample_grid(images, [f"image {i}" for i in range(6)], columns=4)
    assert [ax.get_title() for ax in axes] == [f"image {i}" for i in range(6)]
    assert len(axes[0].figure.axes) == 6  # the two empty places of the second row are gone
    with pytest.raises(ValueError, match="no image"):
        plots.plot_sample_grid([], [])


def test_pairs_lie_side_by_side(images):
    axes = plots.plot_pairs(
        [(images[0], images[1]), (images[2], images[3])], [("a", "b"), ("c", "d")]
    )
    assert [ax and ax.get_title() for ax in axes[0]] == ["a", "b", None, "c", "d"]
    with pytest.raises(ValueError, match="no image"):
        plots.plot_pairs([], [])


def test_sizes_and_intensities(measured, samples):
    assert "30 × 30 (9 of 10 images)" in plots.plot_image_sizes(measured).get_title()
    axes = plots.iplot_intensities(measured, samples, CLASSES).static.axes
    mono = axes[0].collections[0]
    assert axes[0].get_title() == "mono (n = 5)" and len(mono.get_offsets()) == 5
    colors = {
        round(x, 3): to_hex(color[:3])
        for (x, _), color in zip(mono.get_offsets(), mono.get_facecolors(), strict=True)
    }
    assert colors[0.0] == class_colors(CLASSES)["functional"]
    assert colors[round(8 / 9, 3)] == class_colors(CLASSES)["defective"]


# Vision Transformer


def test_patches_are_those_of_the_image():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    whole, grid, row = plots.plot_patches(image, 4)
    assert "2 × 2 = 4 patches" in grid.get_title()
    picture = grid.images[0].get_array() * 255
    assert picture[0, 0] == 0 and picture[-1, -1] == 63 and picture[0, -1] == 7
    assert (picture == 255).any()  # white gaps
    assert [label.get_text() for label in row.get_xticklabels()] == ["1", "2", "3", "4"]
    assert whole.images[0].get_array().shape == (8, 8)
    with pytest.raises(ValueError, match="do not fill an image of 8 x 8"):
        plots.plot_patches(image, 3)


def test_position_similarities_by_hand():
    # a prefix token, then a grid of 2 x 2
    positions = np.array([[9.0, 9, 9], [1, 0, 0], [0, 2, 0], [1, 0, 0], [0, 0, -1]])
    left, right = plots.plot_position_encodings(positions, (2, 2))
    assert left.images[0].get_array().shape == (4, 3)
    mosaic = right.images[0].get_array()  # four maps of 2 x 2 with a gap between them
    assert mosaic.shape == (5, 5)
    np.testing.assert_allclose(mosaic[:2, :2], [[1, 0], [1, 0]])
    np.testing.assert_allclose(mosaic[:2, 3:], [[0, 1], [0, 0]])
    assert np.ma.getmaskarray(mosaic)[2].all()
    with pytest.raises(ValueError, match="do not cover a grid of 3 x 3"):
        plots.plot_position_encodings(positions, (3, 3))


def test_attention_of_the_class_token_and_of_a_patch():
    attention = np.full((5, 5), 0.1)
    attention[0] = [0.2, 0.4, 0.3, 0.1, 0.0]
    attention[3] = [0.5, 0.1, 0.2, 0.0, 0.2]  # the patch in row 1, column 0
    image = np.zeros((8, 8))
    left, right = plots.plot_attention_head(image, attention, (2, 2))
    np.testing.assert_allclose(right.images[0].get_array(), [[0.4, 0.3], [0.1, 0.0]])
    assert "20%" in right.get_title() and not left.patches
    left, right = plots.plot_attention_head(image, attention, (2, 2), query=(1, 0))
    np.testing.assert_allclose(right.images[0].get_array(), [[0.1, 0.2], [0.0, 0.2]])
    mark = left.patches[0]
    assert (mark.get_xy(), mark.get_width(), mark.get_height()) == ((-0.5, 3.5), 4, 4)
    with pytest.raises(ValueError, match="outside the grid of 2 x 2"):
        plots.plot_attention_head(image, attention, (2, 2), query=(2, 0))
    with pytest.raises(ValueError, match="does not cover a grid"):
        plots.plot_attention_head(image, attention, (3, 2))
    with pytest.raises(ValueError, match=r"must be \(T, T\)"):
        plots.plot_attention_head(image, attention[None], (2, 2))


# Training


def test_history_marks_the_best_epoch():
    history = make_history()
    loss, scores, recall = plots.plot_history(history, monitor="val_roc_auc")
    assert legend_texts(loss) == ["training", "validation"]
    assert legend_texts(scores) == ["accuracy", "balanced accuracy", "ROC AUC"]
    assert legend_texts(recall) == list(CLASSES)
    assert all(ax.lines[-1].get_xdata()[0] == 6 for ax in (loss, scores, recall))
    assert best_epoch(history.assign(val_loss=[3, 1, 2, 4, 5, 6]), "val_loss") == 2
    with pytest.raises(ValueError, match="unknown column 'val_auc'"):
        plots.plot_history(history, monitor="val_auc")
    plots.plot_history(make_history(1))


def test_history_of_many_classes_draws_their_mean_and_the_lowest():
    history = make_history(classes=DIGITS).assign(val_recall_3=0.1)
    recall = plots.plot_history(history)[2]
    assert legend_texts(recall) == ["all classes", "mean of 10", "lowest at the end: 3"]
    np.testing.assert_allclose(
        recall.lines[0].get_ydata(), history.filter(like="val_recall_").mean(axis=1)
    )
    np.testing.assert_allclose(recall.lines[1].get_ydata(), 0.1)


def test_cost_draws_a_dot_for_each_run():
    table = pd.DataFrame(
        {
            "model": ["a", "a", "b"],
            "training_seconds": [10, 20, 30],
            "roc_auc": [0.9, 0.8, 0.7],
            "parameters": [2e6, 2e6, 1e6],
        }
    )
    ax = plots.plot_cost(table)
    first, second = ax.collections
    np.testing.assert_allclose(first.get_offsets(), [[10, 0.9], [20, 0.8]])
    assert first.get_sizes()[0] > second.get_sizes()[0]
    assert legend_texts(ax) == ["a: 2 M parameters", "b: 1 M parameters"]
    assert ax.get_xscale() == "linear"
    assert plots.plot_cost(table.assign(training_seconds=[1, 50, 900])).get_xscale() == "log"
    with pytest.raises(ValueError, match="columns missing: roc_auc; the table has model"):
        plots.plot_cost(table.drop(columns="roc_auc"))
    with pytest.raises(ValueError, match="has no rows"):
        plots.plot_cost(table[:0])


# Evaluation


def test_learning_curves_are_means_over_the_epochs_all_seeds_reached():
    seeds = [make_history(6), make_history(4, offset=0.1)]
    shown = plots.iplot_history({"hybrid_vit": seeds, "vit_scratch": make_history(3)})
    mean = next(trace for trace in shown.figure.data if trace.name.startswith("hybrid_vit ("))
    assert list(mean.x) == [1, 2, 3, 4]
    np.testing.assert_allclose(mean.y, [0.6, 0.65, 0.7, 0.75])
    (ax,) = shown.static.axes
    assert legend_texts(ax) == ["hybrid_vit (2 seeds)", "vit_scratch"]
    with pytest.raises(ValueError, match="in the history of hybrid_vit"):
        plots.iplot_history({"hybrid_vit": seeds}, metric="val_auc")


def test_curves_carry_their_area_and_their_baseline():
    predictions = make_predictions()
    metrics = metrics_table(predictions, replicates=0).set_index("metric")["value"]
    tables = {name: roc_table(predictions) for name in ("hybrid_vit", "same")}
    named = [f"{name} (AUC {metrics['roc_auc']:.3f})" for name in tables]
    assert legend_texts(plots.plot_roc(tables)) == [*named, "chance (AUC 0.500)"]
    bands = {
        kind: curve_band_table(predictions, kind, replicates=30)
        for kind in ("roc", "precision_recall")
    }
    axes = plots.plot_curves(roc_table(predictions), precision_recall_table(predictions), bands)
    prevalence = (predictions["label"] == "defective").mean()
    ap = f"AP {metrics['average_precision']:.3f}"
    assert legend_texts(axes[1]) == [ap, f"prevalence ({prevalence:.3f})"]
    assert axes[1].get_legend().get_title().get_text() == "class: defective"
    for ax, band in zip(axes, bands.values(), strict=True):
        heights = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == (band["low"].min(), band["high"].max())
    swapped = {"roc": bands["precision_recall"]}
    with pytest.raises(ValueError, match="no column false_positive_rate"):
        plots.plot_curves(roc_table(predictions), precision_recall_table(predictions), swapped)


def test_curves_of_several_classes():
    predictions = make_predictions(DIGITS)
    metrics = metrics_table(predictions, replicates=0).set_index("metric")["value"]
    mean = f"mean of 10 classes (AUC {metrics['roc_auc']:.3f})"
    assert legend_texts(plots.plot_roc(roc_table(predictions)))[1] == mean
    few = make_predictions(DIGITS[:5])
    axes = plots.plot_curves(roc_table(few), precision_recall_table(few))
    assert [len(ax.lines) for ax in axes] == [6, 6]
    several = plots.plot_roc({"a": roc_table(predictions), "b": roc_table(predictions)})
    assert legend_texts(several)[0] == f"a (AUC {metrics['roc_auc']:.3f})"
    assert several.get_legend().get_title().get_text() == "mean over 10 classes"


def test_thresholds_are_marked_with_their_rules():
    table = threshold_table(make_predictions())
    rules = ["0.5", "f1", "cost", "recall", "youden"]
    chosen = pd.DataFrame({"rule": rules, "threshold": [0.5, 0.4, np.inf, np.nan, 0.4]})
    shown = plots.iplot_threshold(table, chosen)
    (ax,) = shown.static.axes
    assert legend_texts(ax) == ["precision", "recall", "specificity", "F1", "0.5, the default"]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), table["recall"])
    assert [(text.get_position()[0], text.get_text()) for text in ax.texts] == [(0.4, "F1, Youden")]
    (mark,) = shown.figure.layout.annotations
    assert (mark.x, mark.text) == (0.4, "F1, Youden")
    np.testing.assert_allclose(shown.figure.data[1].y, table["recall"])


def test_confusion_shows_counts_and_row_shares():
    table = pd.DataFrame([[3, 1], [0, 6]], index=CLASSES, columns=CLASSES)
    ax = plots.plot_confusion(table)
    assert texts(ax) == ["3\n75%", "1\n25%", "0\n0%", "6\n100%"]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "functional\nn = 4",
        "defective\nn = 6",
    ]
    assert len(plots.plot_confusion(confusion_table(make_predictions(DIGITS))).texts) == 100


def test_slices_say_why_a_value_is_missing():
    predictions = make_predictions()
    predictions.loc[predictions["group"] == "poly", "label"] = "functional"
    axes = plots.plot_slices(
        slice_table(predictions, ["group"], metrics=["accuracy", "roc_auc"], replicates=20)
    )
    assert [ax.get_title() for ax in axes] == ["accuracy", "ROC AUC"]
    assert texts(axes[0]) == [] and texts(axes[1]) == ["only functional"]
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names[:2] == ["group", "all (n = 120)"] and names[2].startswith("mono")


def test_mistakes_are_written_under_their_image(images):
    table = mistakes_table(make_predictions(), n=6)
    axes = plots.plot_mistakes(images, table)
    first = table.iloc[0]
    assert (
        axes[0].get_title()
        == f"{first['sample_id']}\ntrue: {first['label']}\npredicted: {first['pred']}"
        f" ({first['confidence']:.0%})"
    )
    assert texts(plots.plot_mistakes([], table.iloc[:0])[0]) == ["no mistakes"]
    with pytest.raises(ValueError, match="5 images and 6 titles"):
        plots.plot_mistakes(images[:5], table)


# Comparison and tables


def test_comparison_draws_seeds_and_mean(runs_metrics):
    shown = plots.iplot_comparison(runs_metrics, ["roc_auc", "f1"])
    axes = shown.static.axes
    assert [ax.get_title() for ax in axes] == ["ROC AUC", "F1"]
    seeds, mean = axes[0].collections[:2]
    np.testing.assert_allclose(seeds.get_offsets(), [[0.8, 0], [0.9, 0]])
    np.testing.assert_allclose(mean.get_offsets(), [[0.85, 0]])
    first = shown.figure.data[0]
    assert first.name == "hybrid_vit"
    np.testing.assert_allclose(first.y, [0.8, 0.8, 0.9, 0.9])
    with pytest.raises(ValueError, match=r"unknown metric 'F1'"):
        plots.iplot_comparison(runs_metrics, ["F1"])


def test_tables_for_the_reader(runs_metrics):
    metrics = metrics_table(make_predictions())
    shown = plots.present(metrics)
    assert (
        list(shown.columns) == ["value"]
        and shown.index[METRICS.index("roc_auc")] == "ROC AUC"
        and len(shown) == len(METRICS)
    )
    row = metrics.iloc[0]
    assert (
        shown.loc["accuracy", "value"]
        == f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    )
    wide = plots.present(comparison_table(runs_metrics), columns="metric", digits=2)
    assert list(wide.columns) == ["seeds", "ROC AUC", "F1"]
    assert wide.loc["hybrid_vit", "F1"] == "0.85 ± 0.07"
    slices = slice_table(make_predictions(), metrics=["accuracy", "roc_auc"], replicates=20)
    wide = plots.present(slices.drop(columns="column"), columns="metric")
    assert list(wide.index) == ["all", "mono", "poly"] and list(wide.columns) == [
        "n",
        "accuracy",
        "ROC AUC",
    ]
    assert plots.present(mistakes_table(make_predictions()), digits=1)["confidence"].iloc[0] == 0.9
    single = pd.DataFrame(
        {
            "metric": ["f1"],
            "value": [np.nan],
            "low": [np.nan],
            "high": [np.nan],
            "note": ["only functional"],
        }
    )
    assert plots.present(single).loc["F1"].tolist() == ["–", "only functional"]


def test_numbers_in_tables():
    table = pd.DataFrame(
        {
            "side": ["a", "b"],
            "parameters": [2_095_842, 900],
            "seed": [20240101, 1],
            "change": [-0.0004, 0.0125],
            "gap": [np.nan, 0.5],
            "count": pd.array([None, 12], dtype="Int64"),
            "importance": [0.25, 0.5],
        }
    )
    shown = plots.present(table, digits=2)
    assert shown["parameters"].tolist() == ["2,095,842", "900"] and shown["seed"].tolist() == [
        20240101,
        1,
    ]
    assert not np.signbit(shown["change"].iloc[0]) and shown["change"].tolist() == [0, 0.01]
    assert shown["gap"].tolist() == ["–", "0.50"] and shown["count"].tolist() == ["–", "12"]
    assert plots.present(table[["gap", "side"]]).index.tolist() == [
        "",
        "",
    ], "numbers are no names of rows"
    spread = pd.DataFrame({"model": ["a"], "mean": [-0.0001], "spread": [0.0]})
    assert plots.present(spread)["value"].tolist() == ["0.000 ± 0.000"]


# Interactive figures


@pytest.fixture
def figures(measured, samples, runs_metrics, monkeypatch):
    monkeypatch.setattr(interactive, "_library_sent", False)
    return [
        plots.iplot_intensities(measured, samples, CLASSES),
        plots.iplot_history(
            {"hybrid_vit": [make_history(), make_history(4)], "vit_scratch": make_history()}
        ),
        plots.iplot_comparison(runs_metrics, ["roc_auc", "f1"]),
        plots.iplot_threshold(
            threshold_table(make_predictions()),
            pd.DataFrame({"rule": ["f1"], "threshold": [0.4]}),
        ),
    ]


def test_the_library_travels_with_the_first_figure_only(figures):
    bundles = [figure._repr_mimebundle_() for figure in figures]
    assert ['id="vitlab-plotlyjs"' in bundle["text/html"] for bundle in bundles] == [
        True,
        False,
        False,
        False,
    ]
    assert len(bundles[0]["text/html"]) > 3e6 and len(bundles[1]["text/html"]) < 1e5
    for bundle in bundles:
        assert bundle["text/html"].count('class="vitlab-plotly"') == 1
        assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
        assert "Interactive" in bundle["text/plain"]
    ids = re.findall(
        r'id="(vitlab-[0-9a-f-]{36})"', "".join(bundle["text/html"] for bundle in bundles)
    )
    assert len(set(ids)) == 4


def test_the_library_is_hidden_from_module_loaders_and_sends_nothing(figures):
    html = figures[0]._repr_mimebundle_()["text/html"]
    assert "window.Plotly || (function (define, module, exports) {" in html
    loaded_from_elsewhere = re.findall(r"<(?:script|link)[^>]+(?:src|href)=", html)
    assert loaded_from_elsewhere == []
    assert re.search(r'"showSendToCloud":\s*false', figures[1].to_html())
    # the library, the figure, the hint when there is no library
    assert html.count("</script>") == 3


def test_every_dot_can_be_traced_to_its_sample(figures):
    assert plt.get_fignums() == []
    traces = figures[0].figure.data
    names = {name: x for trace in traces for name, x in zip(trace.hovertext, trace.x, strict=True)}
    assert sorted(names) == [f"s{i}" for i in range(10)] and names["s9"] == 1


def test_published_numbers_are_grey_and_ours_coloured():
    rows = [
        ("grade", "mono", "accuracy", "vit", 0.82, 0.02, "this report"),
        ("grade", "mono", "accuracy", "VGG19", 0.81, np.nan, "Song et al. 2024"),
        ("grade", "all", "accuracy", "vit", 0.8, 0.02, "this report"),
    ]
    table = pd.DataFrame(
        rows, columns=["task", "cells", "metric", "model", "mean", "spread", "source"]
    )
    (ax,) = plots.plot_published(table)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["vit", "VGG19 (Song)"]
    assert ax.get_title() == "grade, mono\naccuracy"
    with pytest.raises(ValueError, match="both our and published"):
        plots.plot_published(table[table["source"] == "this report"])


def test_lines_run_through_the_means_over_seeds():
    rows = [
        ("pretrained", 5, 0, 0.6),
        ("pretrained", 5, 1, 0.8),
        ("pretrained", 50, 0, 0.9),
        ("scratch", 5, 0, 0.3),
    ]
    ax = plots.plot_data_efficiency(
        pd.DataFrame(rows, columns=["model", "images_per_class", "seed", "accuracy"])
    )
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[5, 0.7], [50, 0.9]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "pretrained",
        "scratch",
    ]
    assert list(ax.get_xticks()) == [5, 50]


# Images in rows

IMAGES = {f"s{row}": Image.new("L", (8, 6), 20 * row) for row in range(10)}


def test_worst_images_are_in_rows_with_scores_and_frames():
    rows = [
        ("dark", "s0", 0.1, True),
        ("dark", "s1", 0.4567, False),
        ("wrong_label", "s2", 1e-8, True),
    ]
    axes = plots.plot_worst(
        IMAGES, pd.DataFrame(rows, columns=["issue", "sample_id", "score", "flagged"])
    )
    assert axes.shape == (2, 2) and axes[1, 1] is None
    assert [axes[0, 0].get_title(), axes[0, 1].get_title(), axes[1, 0].get_title()] == [
        "0.100",
        "0.457",
        "1e-08",
    ]
    assert [
        any(spine.get_visible() for spine in ax.spines.values()) for ax in (*axes[0], axes[1, 0])
    ] == [True, False, True]
    assert {text.get_text() for ax in axes[0, 0].figure.axes for text in ax.texts} == {
        "dark",
        "wrong\nlabel",
    }
    assert np.array_equal(
        np.asarray(axes[0, 1].images[0].get_array()) * 255, np.asarray(IMAGES["s1"])
    )


def test_an_image_that_cannot_be_drawn_is_a_blank_with_its_name():
    worst = pd.DataFrame(
        [("unreadable", "broken", 0.0, True)], columns=["issue", "sample_id", "score", "flagged"]
    )
    axes = plots.plot_worst({}, worst)
    assert axes[0, 0].get_title() == "broken"


def test_clusters_are_framed_in_the_colour_of_their_split(monkeypatch):
    monkeypatch.setattr(data, "MAX_IMAGES", 2)
    samples = pd.DataFrame(
        {"sample_id": list(IMAGES), "label": ["a", "b"] * 5, "split": ["train", "test"] * 5}
    )
    rows = [("s4", "s4", 2), ("s5", "s4", 2), ("s0", "s0", 3), ("s1", "s0", 3), ("s2", "s0", 3)]
    clusters = pd.DataFrame(rows, columns=["sample_id", "cluster", "size"])
    axes = plots.plot_clusters(IMAGES, clusters, samples)
    assert axes.shape == (2, 2) and axes[1, 0].get_title() == "s0\na"
    wanted = series_colors(["train", "val", "test"])
    for ax, split in zip(axes[0], ("train", "test"), strict=True):
        assert same_color(ax.spines["top"].get_edgecolor(), wanted[split])
    assert [text.get_text() for text in axes[0, 0].figure.legends[0].texts] == [
        "train",
        "val",
        "test",
    ]
    assert {text.get_text() for ax in axes[0, 0].figure.axes for text in ax.texts} == {
        "2 images",
        "3 images",
    }

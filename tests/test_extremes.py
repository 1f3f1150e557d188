"""What is left of many classes and models: the lowest and the highest, or the best; and figures of
a bounded size.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tests import figures
from vitlab import evaluation, plots
from vitlab.data import draw_samples
from vitlab.extremes import describe_cut, find_extremes, keep_extremes

A4 = (6.31, 9.7)  # inches: the text block of a page


def make_predictions(classes):
    """Every class has at least two test images. As many groups as classes, at most 40."""
    names = [f"class_{i:04d}" for i in range(classes)]
    predictions = figures.make_predictions(names, max(4 * classes, 120))
    group = [f"g{i % min(classes, 40)}" for i in range(len(predictions))]
    return predictions.assign(group=group), names


def check_size(axes, smallest=0.4):
    """Drawn within a page, and no panel lower or narrower than so many inches."""
    figure = np.ravel(axes)[0].figure
    figure.draw_without_rendering()
    assert (figure.get_size_inches() <= A4).all()
    for ax in np.ravel(axes):
        size = ax.get_window_extent().size / figure.dpi
        assert min(size) >= smallest, size
    plt.close(figure)


def test_few_are_shown_as_they_are_and_many_by_their_ends():
    assert find_extremes([3, 1, 2]).tolist() == [0, 1, 2]
    assert find_extremes([3, 1, 2, 9, 8], most=4).tolist() == [1, 2, 4, 3]
    assert find_extremes([3, 1, 2, 9, 8], most=3).tolist() == [1, 2, 3]
    assert find_extremes([np.nan, 5, 1, 3, np.nan], most=2).tolist() == [2, 1]
    assert find_extremes([np.nan, 5, np.nan], most=2).tolist() == [1, 0]
    table = pd.DataFrame({"name": list("abcde"), "f1": [0.5, 0.1, 0.9, 0.2, 0.8]})
    assert keep_extremes(table, "f1", 4)["name"].tolist() == ["b", "d", "e", "c"]
    assert (
        describe_cut(12, 1000, by="recall") == "12 of 1,000 classes: lowest and highest recall"
        and describe_cut(3, 3) == ""
    )


def test_tables_are_cut_with_a_row_that_counts_the_rest():
    table = pd.DataFrame(
        {"class": [f"c{i}" for i in range(100)], "f1": np.linspace(0, 1, 100), "images": 7}
    )
    shown = plots.present(table, extremes="f1")
    assert list(shown.index) == [
        *(f"c{i}" for i in range(6)),
        "… 88 more",
        *(f"c{i}" for i in range(94, 100)),
    ]
    assert list(plots.present(table.head(12), extremes="f1").index) == [f"c{i}" for i in range(12)]


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_figures_of_many_classes_stay_readable(classes):
    predictions, names = make_predictions(classes)
    samples = predictions[["sample_id", "label", "split", "group"]]
    check_size(plots.plot_confusion(evaluation.confusion_table(predictions)), smallest=1.4)
    check_size(figures.draw_curves(predictions), smallest=2)
    check_size(plots.plot_class_balance(samples, classes=names))
    shown = plots.iplot_intensities(figures.make_image_table(samples), samples, names)
    assert len(shown.figure.data) <= 8 * 12 and shown.static.get_size_inches()[1] <= A4[1]
    if classes == 10:  # slices are groups, of which there are at most 40
        scores = {"metrics": ("accuracy",), "replicates": 0}
        check_size(plots.plot_slices(evaluation.slice_table(predictions, ["group"], **scores)))
        gaps = evaluation.worst_slice_table(predictions, replicates=20)
        check_size(plots.plot_gaps(gaps))


def test_confusions_beyond_a_dozen_classes_are_pooled():
    predictions, names = make_predictions(100)
    table = evaluation.confusion_table(predictions)
    table.iloc[7, 3] = 500
    ax = plots.plot_confusion(table)
    shown = [label.get_text() for label in ax.get_xticklabels()]
    assert len(shown) == 12 and shown[-1] == "89 others" and {names[3], names[7]} <= set(shown)
    counts = [int(text.get_text().split("\n")[0]) for text in ax.texts if text.get_text()]
    assert sum(counts) == table.to_numpy().sum()


@pytest.mark.parametrize(
    ("counts", "images", "expected"),
    [
        ({"common": 8, "rare": 3}, 12, {"common": 8, "rare": 3}),  # fewer than asked for
        ({"common": 50, "rare": 3}, 12, {"common": 9, "rare": 3}),
        ({"a": 50, "b": 1}, 12, {"a": 11, "b": 1}),
        ({"a": 50, "b": 50, "c": 50}, 12, {"a": 4, "b": 4, "c": 4}),
        # more classes than images: one of each of twelve
        ({f"c{i}": 2 for i in range(100)}, 12, None),
    ],
)
def test_samples_are_drawn_evenly_from_what_there_is(counts, images, expected):
    labels = [name for name, count in counts.items() for _ in range(count)]
    samples = pd.DataFrame({"sample_id": [f"s{i}" for i in range(len(labels))], "label": labels})
    drawn = draw_samples(samples, images, seed=1)
    found = drawn["label"].value_counts().to_dict()
    assert drawn["sample_id"].is_unique and drawn["label"].is_monotonic_increasing
    assert found == expected if expected else (len(found) == 12 and set(found.values()) == {1})


def test_slices_of_many_are_cut():
    drop = {"column": "label", "slice": [f"c{i}" for i in range(40)], "n": 9, "note": ""}
    table = pd.DataFrame({**drop, "change": np.linspace(-1, 1, 40), "lost": 1, "gained": 0})
    ax = plots.plot_drop(table.assign(low=-1, high=1))
    names = " ".join(label.get_text() for label in ax.get_yticklabels())
    assert len(ax.get_yticklabels()) == 13
    assert "c0:" in names and "c39:" in names and "c20:" not in names


MODELS = [f"m{i:02d}" for i in range(40)]
VALUES = pd.Series(np.linspace(0, 1, 40), MODELS)
SCORES = VALUES.rename_axis("model").rename("value").reset_index()


def draw_comparison():
    return plots.iplot_comparison(SCORES.assign(seed=0, metric="accuracy"), ["accuracy"]).static


def draw_history():
    histories = {
        name: [pd.DataFrame({"epoch": [1, 2], "val_roc_auc": [0, score]})]
        for name, score in VALUES.items()
    }
    return plots.plot_learning_curves(histories, "val_roc_auc").figure


def draw_cost():
    table = SCORES.rename(columns={"value": "roc_auc"})
    return plots.iplot_cost(table.assign(training_seconds=9, parameters=1e6, seed=0)).static


def draw_robustness():
    tables = {name: figures.make_robustness(value) for name, value in VALUES.items()}
    return plots.plot_robustness(tables, ["accuracy"])[0, 0].figure


def draw_imbalance():
    table = SCORES.assign(metric="f1", difference=SCORES["value"] + 0.1, lowest=0, highest=2)
    return plots.plot_imbalance_methods(table, ["f1"])[0].figure


def draw_differences():
    pairs = [(a, b) for i, a in enumerate(MODELS) for b in MODELS[:i]]
    table = pd.DataFrame(pairs, columns=["model_a", "model_b"])
    table = table.assign(value_a=table["model_a"].map(VALUES), value_b=table["model_b"].map(VALUES))
    table = table.assign(metric="f1", difference=0.1, low=0.0, high=0.2, verdict="b better")
    return plots.plot_differences(table).figure


@pytest.mark.parametrize(
    "draw",
    [
        draw_comparison,
        draw_history,
        draw_cost,
        draw_robustness,
        draw_imbalance,
        draw_differences,
    ],
)
def test_of_many_models_the_best_are_shown(draw):
    figure = draw()
    assert "best" in figure.get_suptitle() and "40" in figure.get_suptitle()
    texts = {label.get_text() for ax in figure.axes for label in ax.get_yticklabels()}
    for legend in [ax.get_legend() for ax in figure.axes] + figure.legends:
        texts |= {text.get_text() for text in legend.get_texts()} if legend else set()
    shown = {model for model in MODELS if any(model in text for text in texts)}
    assert {"m39", "m28"} <= shown <= set(MODELS[27:])

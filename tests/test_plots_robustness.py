"""Figures of robustness and of gaps: what stands where, from tables made by hand, and bad input."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vitlab import plots

CONDITIONS = [("clean", 0), ("blur", 1), ("blur", 3), ("jpeg", 1), ("jpeg", 3)]


def make_table(value=0.9):
    rows = [
        (name, severity, 50, metric, value - 0.1 * severity)
        for name, severity in CONDITIONS
        for metric in ("accuracy", "overconfidence")
    ]
    table = pd.DataFrame(rows, columns=["corruption", "severity", "n", "metric", "value"])
    return table.assign(low=table["value"] - 0.05, high=table["value"] + 0.05)


def lines(ax):
    """The curves of an axis without the level that is drawn for orientation."""
    return [line for line in ax.lines if len(line.get_xdata()) > 2]


def test_curves_begin_at_the_clean_images():
    axes = plots.plot_robustness(make_table(), ["accuracy", "overconfidence"])
    assert axes.shape == (2, 2)
    assert [ax.get_title() for ax in axes[0]] == ["blur", "JPEG"]
    assert [row[0].get_ylabel() for row in axes] == ["accuracy", "overconfidence"]
    (line,) = lines(axes[0, 1])
    assert line.get_xdata().tolist() == [0, 1, 3]
    assert line.get_ydata().tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert axes[0, 0].figure.legends == []


def test_a_line_for_each_model():
    axes = plots.plot_robustness({"ours": make_table(), "theirs": make_table(0.7)}, ["accuracy"])
    assert axes.shape == (1, 2)
    assert [line.get_ydata()[0] for line in lines(axes[0, 0])] == [0.9, 0.7]
    assert [text.get_text() for text in axes[0, 0].figure.legends[0].get_texts()] == [
        "ours",
        "theirs",
    ]


def test_bad_tables_of_robustness():
    with pytest.raises(ValueError, match=r"unknown metric .acuracy.\. Did you mean accuracy"):
        plots.plot_robustness(make_table(), ["acuracy"])
    with pytest.raises(ValueError, match="table of theirs lacks the corruptions jpeg"):
        table = make_table()
        plots.plot_robustness(
            {"ours": table, "theirs": table[table["corruption"] != "jpeg"]}, ["accuracy"]
        )


def test_corruptions_side_by_side():
    images = [Image.new("L", (30, 20), grey) for grey in (0, 100)]
    axes = plots.plot_corruptions(
        {"blur": images, "gaussian_noise": images, "jpeg": images}, (0, 3)
    )
    assert axes.shape == (2, 3)
    assert [ax.get_title() for ax in axes[0]] == ["blur", "Gaussian noise", "JPEG"]
    names = [text.get_text() for ax in axes[0, 0].figure.axes for text in ax.texts]
    assert names == ["clean", "severity 3"]
    assert axes[1, 2].images[0].get_array()[0, 0] == pytest.approx(100 / 255)
    with pytest.raises(ValueError, match="blur: 2 images for 1 severities"):
        plots.plot_corruptions({"blur": images}, [1])
    with pytest.raises(ValueError, match="no image to draw"):
        plots.plot_corruptions({}, [1])


def test_accuracy_under_attack():
    table = pd.DataFrame({"epsilon": [0, 1, 2], "metric": "accuracy", "value": [0.9, 0.4, 0.1]})
    table = table.assign(low=table["value"] - 0.1, high=table["value"] + 0.1)
    ax = plots.plot_attack(table)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.9, 0.4, 0.1]]
    assert ax.get_ylabel() == "accuracy under attack" and ax.get_legend() is None


def test_the_change_is_magnified_to_the_full_range():
    before = np.full((2, 4, 4, 3), 0.5)
    after = before + np.where(np.arange(4) < 2, 0.01, -0.01)[None, None, :, None]
    words = {
        "label": "no",
        "pred": "no",
        "confidence": 0.9,
        "changed_pred": "yes",
        "changed_confidence": 0.8,
    }
    axes = plots.plot_attack_images(before, after, pd.DataFrame([words, words]))
    assert axes.shape == (3, 2)
    shown = axes[1, 0].images[0].get_array()
    assert shown[0, 0, 0] == pytest.approx(1)
    assert shown[0, 3, 0] == pytest.approx(0)
    names = [text.get_text() for ax in axes[0, 0].figure.axes for text in ax.texts]
    assert names[1] == "change,\n50 times"
    assert axes[0, 1].get_title() == "true: no\nno (90%)"
    assert axes[2, 1].get_title() == "yes (80%)"
    with pytest.raises(ValueError, match="2 images before, 1 after"):
        plots.plot_attack_images(before, after[:1], pd.DataFrame([words, words]))

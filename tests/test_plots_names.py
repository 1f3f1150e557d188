"""Names in figures are shown as they are: formulas, HTML, underscores, and scripts that the usual
font lacks.
"""

import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager

from vitlab import plots
from vitlab.plots import fonts
from vitlab.plots.interactive import plotly_text
from vitlab.plots.style import legend_name, new_axes, use_log_axis

NAMES = ["$x$ and $y$", "<b>bold", "__background__", "back\\slash", "%{x}"]


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        plots.set_style()
        yield
    pd.reset_option("display.max_colwidth")
    pd.reset_option("display.html.use_mathjax")


def confuse(names):
    return plots.plot_confusion(
        pd.DataFrame(np.eye(len(names), dtype=int), index=names, columns=names)
    )


def test_formulas_are_not_set():
    ax = confuse(NAMES)
    ax.figure.draw_without_rendering()
    labels = ax.get_xticklabels()
    assert [label.get_text() for label in labels] == NAMES and not any(
        label.get_parse_math() for label in labels
    )
    assert "tex2jax_ignore" in pd.DataFrame({"a": ["$x$"]})._repr_html_()


def test_logarithmic_axes_have_plain_numbers():
    ax = new_axes(None, 2)
    ax.plot([1e-4, 100], [0, 1])
    use_log_axis(ax)
    ax.figure.draw_without_rendering()
    assert {"0.001", "1", "100"} <= {label.get_text() for label in ax.get_xticklabels()}


def test_names_with_an_underscore_stay_in_the_legend():
    history = pd.DataFrame(
        {
            "epoch": [1, 2],
            "val_recall___background__": [0.1, 0.2],
            "val_recall_a": [0.3, 0.4],
            "val_loss": [2, 1],
        }
    )
    *_, last = plots.plot_history(history)
    assert [text.get_text() for text in last.get_legend().get_texts()] == [
        legend_name("__background__"),
        "a",
    ]


def test_plotly_shows_markup_as_text():
    assert (
        plotly_text("<b>&$%{x}") == "&#60;b&#62;&#38;&#36;%&#123;x}"
        and plotly_text("back\\slash_1") == "back\\slash_1"
    )
    samples = pd.DataFrame(
        {"sample_id": [f"{name}/1.png" for name in NAMES], "label": NAMES, "group": "<i>g"}
    )
    figure = plots.iplot_intensities(
        samples[["sample_id"]].assign(mean=0.5, std=0.1), samples, NAMES
    ).figure
    assert [trace.name for trace in figure.data] == list(map(plotly_text, NAMES))
    for trace in figure.data:
        assert "<b>bold" not in trace.hovertemplate and "<" not in trace.hovertext[0]
    assert figure.layout.annotations[0].text == "&#60;i&#62;g (n = 5)"


def test_many_groups_have_no_panel_each():
    samples = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(60)],
            "label": "a",
            "group": [f"g{i % 30}" for i in range(60)],
        }
    )
    figure = plots.iplot_intensities(
        samples[["sample_id"]].assign(mean=0.5, std=0.1), samples, ["a"]
    )
    assert (
        len(figure.figure.data) == 7
        and "7 largest of 30 values of group" in figure.static.get_suptitle()
    )


@pytest.mark.parametrize("name", ["кот", "γάτα", "قطة", "Katze", "→ ✓"])
def test_scripts_of_the_usual_font_need_no_other(name):
    assert fonts.find_fonts(name) == ([], "")


@pytest.fixture
def other_font(monkeypatch):
    """A font that stands for an installed one: matplotlib's own mono font, while the usual one
    lacks Cyrillic.
    """
    usual, other = (font_manager.findfont(name) for name in (fonts.USUAL, "DejaVu Sans Mono"))
    latin = frozenset(range(32, 0x250))
    monkeypatch.setattr(fonts, "_installed", lambda: (other,))
    monkeypatch.setattr(
        fonts,
        "_characters",
        lambda path: latin if path == usual else frozenset([*range(0x400, 0x460)]),
    )


def test_an_installed_font_is_used_for_missing_characters(other_font):
    assert fonts.find_fonts("кот a") == (["DejaVu Sans Mono"], "")
    ax = confuse(["кот", "a"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.draw_without_rendering()
    assert ax.get_xticklabels()[0].get_fontfamily()[-1] == "DejaVu Sans Mono"
    assert ax.xaxis.label.get_fontfamily()[-1] == "DejaVu Sans Mono"


def test_without_one_there_is_one_hint(monkeypatch):
    monkeypatch.setattr(fonts, "_installed", tuple)
    fonts._hint_once.cache_clear()
    ax = confuse(["猫", "बिल्ली"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ax.figure.draw_without_rendering()
        ax.figure.draw_without_rendering()
    (hint,) = (str(warning.message) for warning in caught)
    assert "猫" in hint and "apt-get install fonts-noto-cjk fonts-noto-core" in hint
    plt.close(ax.figure)


@pytest.mark.parametrize(
    ("missing", "package"),
    [
        ("한", "fonts-noto-cjk"),
        ("か", "fonts-noto-cjk"),
        ("ท", "fonts-noto-core"),
        ("🦜", "fonts-symbola"),
    ],
)
def test_the_hint_names_the_package(missing, package):
    assert f"apt-get install {package})" in fonts.describe_missing(missing)

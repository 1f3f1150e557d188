"""What is in a data set: class balance and intensities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from vitlab.extremes import MAX_LINES, MAX_PANELS, describe_cut, find_extremes
from vitlab.plots.interactive import Interactive, scatter
from vitlab.plots.style import (
    WIDTH,
    class_colors,
    note_above,
    panel_grid,
    shared_legend,
    shorten,
)


def plot_class_balance(samples: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """Number and share of samples of each class: a panel for all samples, then one for each group.

    Of many classes and groups, those with the fewest and the most samples are shown.

    >>> samples = pd.DataFrame({"label": ["cat", "dog", "dog"], "group": ["a", "b", "b"]})
    >>> [ax.get_title() for ax in plot_class_balance(samples, ["cat", "dog"])]
    ['all (n = 3)', 'a (n = 1)', 'b (n = 2)']
    """
    every = list(classes)
    sizes = samples["label"].value_counts().reindex(every, fill_value=0)
    classes = [every[place] for place in find_extremes(sizes)]
    colors = class_colors(every)
    groups = samples["group"].astype(str)
    order = _largest_groups(groups)
    parts = {"all": samples} | {name: samples[groups == name] for name in order if len(order) > 1}
    axes = panel_grid(len(parts), 4, 0.75 + 0.28 * len(classes), sharey=True)
    # the text behind a bar is about 0.9 inches long
    room = 1 / (1 - 0.9 / ((WIDTH - 0.8) / min(4, len(parts))))
    for ax, (name, part) in zip(axes, parts.items(), strict=True):
        counts = part["label"].value_counts().reindex(classes, fill_value=0)
        bars = ax.barh(
            range(len(classes)), counts, color=[colors[name] for name in classes], height=0.72
        )
        texts = [f"{count:,} ({count / max(1, len(part)):.0%})" for count in counts]
        ax.bar_label(bars, texts, padding=3, fontsize=7.5)
        ax.set(
            title=f"{shorten(name)} (n = {len(part):,})",
            xlabel="images",
            xlim=(0, max(1, counts.max()) * room),
        )
        ax.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10], integer=True))
        ax.set_yticks(range(len(classes)), [shorten(name) for name in classes])
        ax.tick_params(axis="y", length=0)
    axes[0].invert_yaxis()
    cut = describe_cut(len(classes), len(every), by="number of images")
    note_above(axes[0].figure, cut, _note_groups(len(order), groups.nunique()))
    return axes


def _largest_groups(groups: pd.Series) -> list[str]:
    """The names of the largest groups, as many as a figure has panels, in alphabetical order."""
    return sorted(groups.value_counts().index[: MAX_PANELS - 1])


def _note_groups(shown: int, total: int) -> str:
    return f"the {shown} largest of {total:,} values of group" if shown < total else ""


def iplot_intensities(
    image_table: pd.DataFrame, samples: pd.DataFrame, classes: Sequence[str]
) -> Interactive:
    """Mean brightness against contrast (standard deviation of the pixels), a dot for each image, a
    panel for each group.

    Of many classes, the darkest and the brightest have a colour; of many groups, the largest have a
    panel. In HTML, point at a dot to read its sample_id."""
    table = image_table.merge(
        samples[["sample_id", "label", "group"]], on="sample_id", validate="one_to_one"
    )
    table["group"] = table["group"].astype(str)
    groups, every = _largest_groups(table["group"]), list(classes)
    means = table.groupby("label")["mean"].mean().reindex(every)
    shown = [every[place] for place in find_extremes(means, MAX_LINES * 2)]
    others = f"{len(every) - len(shown):,} others"
    colors = class_colors(shown) | ({others: "#737373"} if len(shown) < len(every) else {})
    table["class"] = table["label"].where(table["label"].isin(shown), others)
    parts = [table[table["group"] == name] for name in groups]
    titled = [
        part.assign(panel=f"{shorten(name)} (n = {len(part):,})")
        for name, part in zip(groups, parts, strict=True)
    ]
    figure = scatter(
        pd.concat(titled),
        "mean",
        "std",
        "class",
        colors,
        panel="panel",
        height=3.0,
        hover=["sample_id", "class", "mean", "std"],
        labels={"mean": "mean brightness", "std": "contrast"},
        sharex=True,
        sharey=True,
    )
    axes = figure.static.axes
    axes[0].set_ylabel("contrast (standard deviation)")
    # a label of the figure would lie on the legend
    title = "mean brightness (0 black, 1 white)"
    shared_legend(axes[:1], min(len(colors), 5), title=title)
    note_above(figure.static, _note_groups(len(groups), table["group"].nunique()))
    return figure

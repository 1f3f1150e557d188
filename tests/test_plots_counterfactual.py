"""Counterfactuals as pictures: the right cells outlined, the change said in words."""

import numpy as np
import pytest

from vitlab import plots


def make_removed(*marked):
    removed = np.zeros((len(marked), 4, 5), bool)
    for cells, row in zip(removed, marked, strict=True):
        for place in row:
            cells[place] = True
    return removed


def draw(removed, before=("good", "bad"), after=("bad", "bad"), **options):
    images = np.random.default_rng(0).random((len(removed), 40, 50, 3))
    return plots.plot_counterfactuals(images, images[::-1], removed, before, after, **options)


def test_captions_say_what_changed_after_how_many_patches():
    axes = draw(make_removed([(1, 1), (1, 2)], []))
    assert axes.shape == (2, 2)
    assert [first.get_title() for first, _ in axes] == ["good", "bad"]
    assert axes[0, 1].get_xlabel() == "good\n→ bad after\n2 of 20 patches"
    assert axes[1, 1].get_xlabel() == "bad\nno change found\nthat turns it"
    assert [ax.get_ylabel() for ax in axes[0]] == ["image", "patches removed"]
    told = draw(make_removed([(0, 0)], []), found=[False, False], kind="exchanged")
    assert (
        told[0, 1].get_xlabel().startswith("good\nno change")
        and told[0, 1].get_ylabel() == "patches exchanged"
    )


def test_the_outline_runs_around_the_cells_and_not_between_them():
    axes = draw(make_removed([(1, 1), (1, 2)], [(0, 0)]))
    segments = np.array(axes[0, 1].collections[0].get_segments()) + 0.5  # cells of 10 x 10 pixels
    sides = {tuple(map(tuple, side)) for side in segments.round(6)}
    expected = {((10, 10), (10, 20)), ((30, 10), (30, 20))} | {
        ((left, y), (left + 10, y)) for left in (10, 20) for y in (10, 20)
    }
    assert sides == expected
    corner = np.array(axes[1, 1].collections[0].get_segments()) + 0.5
    assert len(corner) == 4 and corner.min() == 0, "cells at the border of the image are closed too"


def test_many_images_stand_in_blocks():
    removed = make_removed(*[[(0, 0)]] * 8)
    axes = draw(removed, ["good"] * 8, ["bad"] * 8)
    assert axes.shape == (8, 2)
    rows = [[ax.get_subplotspec().rowspan.start for ax in pair] for pair in axes]
    assert rows == [[0, 1]] * 4 + [[2, 3]] * 4
    assert [bool(pair[0].get_ylabel()) for pair in axes] == [True, False, False, False] * 2


def test_counts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"have 1, 1, 1, 2, 2, 2 entries: give as many of each"):
        draw(make_removed([(0, 0)]))
    with pytest.raises(ValueError, match="at least one"):
        draw(np.zeros((0, 4, 5), bool), [], [])

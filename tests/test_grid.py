"""Cells worked out by hand, and what may stand in for them."""

import pytest
import torch

from vitlab.explain.grid import (
    BASELINES,
    choose_grid,
    make_baseline,
    number_cells,
    pool_cells,
    replace_cells,
    spread_cells,
)
from vitlab.schema import Anatomy, Transform


def test_cells_are_numbered_row_by_row():
    assert number_cells((2, 2), (3, 4)).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    assert number_cells((2, 3), (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="a grid of 4x2 cells does not fit images of 3x4"):
        number_cells((4, 2), (3, 4))


def test_pool_and_spread():
    cells = number_cells((1, 2), (2, 4))
    values = torch.tensor([[[1.0, 3.0, 0.0, 8.0], [2.0, 2.0, 0.0, 0.0]]])
    assert pool_cells(values, cells).tolist() == [[2.0, 2.0]]
    assert spread_cells(torch.tensor([[5.0, 7.0]]), cells).tolist() == [[[5, 5, 7, 7]] * 2]


def test_replaced_cells_show_the_baseline():
    images = torch.ones(2, 3, 2, 4)
    removed = torch.tensor([[True, False], [False, False]])
    found = replace_cells(images, torch.zeros_like(images), removed, number_cells((1, 2), (2, 4)))
    assert found[0, 1].tolist() == [[0, 0, 1, 1]] * 2 and torch.equal(found[1], images[1])


def test_a_grid_for_every_model():
    assert choose_grid(Anatomy("vit", ("b",), ("a",), 1, (3, 5), ()), (48, 80)) == (3, 5)
    assert choose_grid(Anatomy("cnn", (), (), 0, (7, 7), ("s",)), (224, 112)) == (14, 7)
    assert choose_grid(Anatomy("cnn", (), (), 0, (1, 1), ("s",)), (8, 8)) == (8, 8)


def test_baselines():
    transform = Transform((8, 8), (0.5, 0.4, 0.2), (0.25, 0.2, 0.1))
    images = torch.randn(2, 3, 40, 30)
    made = {kind: make_baseline(kind, images, transform) for kind in BASELINES}
    assert not made["mean"].any() and all(
        baseline.shape == images.shape for baseline in made.values()
    )
    torch.testing.assert_close(made["black"][:, :, 0, 0], torch.tensor([[-2.0, -2.0, -2.0]] * 2))
    assert made["blur"].std() < 0.3 * images.std()
    torch.testing.assert_close(
        make_baseline("blur", torch.ones(1, 3, 5, 9), transform), torch.ones(1, 3, 5, 9)
    )
    with pytest.raises(ValueError, match="unknown baseline 'white'"):
        make_baseline("white", images, transform)

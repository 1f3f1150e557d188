"""Focal loss and resampling against hand-computed values and torch."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.toys import small_digits
from vitlab.training import recipe
from vitlab.training.loss import build_loss, focal_loss
from vitlab.training.order import BatchOrder, plan_epoch

INDICES = np.array([0] * 8 + [1] * 3 + [2])


def test_focal_loss_by_hand():
    """p = (3/4, 1/4), gamma 2: (1/4)^2 ln 4/3 for the first class, (3/4)^2 ln 4 for the second."""
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    first, second = math.log(4 / 3) / 16, math.log(4) * 9 / 16
    hard = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert focal_loss(logits, hard, 2.0).item() == pytest.approx((first + second) / 2, abs=1e-12)
    soft = torch.tensor([[0.75, 0.25], [0.0, 1.0]], dtype=torch.float64)
    assert focal_loss(logits, soft, 2.0).item() == pytest.approx(
        (0.75 * first + 1.25 * second) / 2, abs=1e-12
    )
    weight = torch.tensor([0.5, 3.0], dtype=torch.float64)
    assert focal_loss(logits, hard, 2.0, weight).item() == pytest.approx(
        (0.5 * first + 3 * second) / 2, abs=1e-12
    )


def test_focal_loss_of_gamma_zero_is_cross_entropy():
    logits, targets = (
        torch.randn(7, 4, dtype=torch.float64),
        torch.rand(7, 4, dtype=torch.float64).softmax(dim=1),
    )
    weight = torch.rand(4, dtype=torch.float64)
    found, expected = (
        focal_loss(logits, targets, 0.0, weight),
        F.cross_entropy(logits, targets, weight),
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_focal_loss_has_a_gradient_where_all_is_recognised():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([[1.0, 0.0]]), 0.5).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    "arguments", [{}, {"mixup": 0.4}, {"label_smoothing": 0.1}, {"class_weights": "effective"}]
)
def test_the_focal_loss_of_a_training_tends_to_its_cross_entropy(arguments):
    data, inputs, labels = small_digits(), torch.randn(20, 10), torch.arange(20) % 10
    values = []
    for gamma in (0.0, 1e-6, 2.0):
        torch.manual_seed(0)
        loss = build_loss(data, recipe("vit_scratch", focal_gamma=gamma, **arguments), "cpu")
        values.append(loss(torch.nn.Identity(), inputs, labels).item())
    assert values[1] == pytest.approx(values[0], rel=1e-4) and values[2] < 0.95 * values[0]


def draw(resample, epoch=1, seed=0, **arguments):
    length, plan = plan_epoch(INDICES, resample)
    order = BatchOrder(length, 3, seed, draw=plan, **arguments)
    order.epoch = epoch
    return list(order)


def test_without_resampling_the_order_is_what_it_was():
    assert plan_epoch(INDICES, "none") == (12, None)
    assert draw("none") == list(BatchOrder(12, 3, 0))


def test_oversampling_replicates():
    positions = [i for batch in draw("oversample") for i in batch]
    assert len(positions) == 24, "three classes of eight"
    counts = np.bincount(positions, minlength=12)
    assert set(counts[:8]) == {1} and set(counts[8:11]) == {2, 3} and counts[11] == 8
    assert draw("oversample") == draw("oversample") and draw("oversample", epoch=2) != draw(
        "oversample"
    )
    assert draw("oversample", seed=1) != draw("oversample")


def test_undersampling_draws_anew():
    epochs = [[i for batch in draw("undersample", epoch) for i in batch] for epoch in range(1, 100)]
    assert all(
        len(set(positions)) == 3 and sorted(INDICES[positions]) == [0, 1, 2] for positions in epochs
    )
    assert set().union(*epochs) == set(range(12)), "in time, every image has its turn"


def test_resampled_batches_are_shared_and_carried_on():
    whole = draw("oversample")
    order = BatchOrder(24, 3, 0, draw=plan_epoch(INDICES, "oversample")[1])
    order.first_step = 5
    assert list(order) == whole[5:]
    shares = [draw("oversample", rank=rank, processes=3) for rank in range(3)]
    assert [shares[0][step] + shares[1][step] + shares[2][step] for step in range(8)] == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_weights": "balance"}, "unknown class_weights 'balance'. Did you mean 'balanced'"),
        ({"class_weights": True}, "class_weights must be of type str, like 'balanced', not True"),
        (
            {"class_weights_beta": 1.0},
            "class_weights_beta must be below 1.*write class_weights='balanced'",
        ),
        ({"focal_gamma": -1.0}, "focal_gamma must not be negative"),
        ({"resample": "over"}, "unknown resample 'over'"),
        (
            {"resample": "oversample", "class_weights": "balanced"},
            "a second time: write class_weights='none' with it",
        ),
        (
            {"resample": "smote", "strategy": "full"},
            "needs strategy='linear_probe' and cache=True, not strategy='full'",
        ),
        (
            {"resample": "smote", "strategy": "linear_probe", "cache": False},
            "cache=False; write these, or resample='oversample'",
        ),
        (
            {"resample": "smote", "strategy": "linear_probe", "mixup_rare": 0.2},
            "write mixup_rare=0 with it",
        ),
        ({"mixup_rare": -0.1}, "mixup_rare must not be negative"),
        ({"synthetic": "gan"}, "unknown synthetic 'gan'.*fourier"),
        (
            {"synthetic": "fourier", "synthetic_share": 0.0},
            "makes no image; write a share such as 0.5",
        ),
        ({"synthetic_share": 1.5}, "synthetic_share must be between 0 and 1"),
    ],
)
def test_combinations_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe("vit_scratch", **arguments)


def test_resampling_alone_drops_the_weights():
    assert (
        recipe("vit_scratch").class_weights
        == recipe("vit_scratch", resample="none").class_weights
        == "balanced"
    )
    assert recipe("vit_scratch", resample="undersample").class_weights == "none"

"""A damaged model gets better, and never worse."""

from copy import deepcopy
from functools import cache

import pytest
import torch

from tests.toys import small_digits, tiny_vit
from vitlab.compress.recovery import recover, recovery_recipe
from vitlab.training import fit, predict, recipe

QUICK = {
    "batch_size": 16,
    "precision": "fp32",
    "augment": "none",
    "monitor": "val_loss",
    "patience": 9,
}


@cache
def trained():
    model = tiny_vit()
    fit(model, small_digits(), config=recipe("vit_scratch", epochs=12, learning_rate=5e-3, **QUICK))
    return model


def damage(model):
    """Half of the neurons of every block set to zero."""
    model = deepcopy(model)
    for block in model.module.blocks:
        block.mlp.fc1.weight.data[::2] = 0
        block.mlp.fc1.bias.data[::2] = 0
        block.attn.proj.weight.data[:, ::2] = 0
    return model


def test_recovery_with_and_without_the_model_as_it_was():
    whole = trained()
    for teacher in (None, whole):
        model = damage(whole)
        history = recover(
            model,
            small_digits(),
            recipe("vit_scratch", epochs=4, learning_rate=1e-3, **QUICK),
            teacher,
        )
        assert (
            list(history["epoch"]) == [0, 1, 2, 3, 4]
            and history["val_loss"].min() < history["val_loss"][0] - 0.01
        )
        before = predict(damage(whole), small_digits(), splits=("val",))
        assert (before["pred"] == before["label"]).mean() == pytest.approx(
            history["val_accuracy"][0]
        )


def test_what_makes_it_worse_is_not_kept():
    whole = trained()
    model = deepcopy(whole)
    history = recover(
        model,
        small_digits(),
        config=recipe("vit_scratch", epochs=1, learning_rate=0.5, warmup_epochs=0, **QUICK),
    )
    assert history["val_loss"][1] > history["val_loss"][0]
    assert all(
        torch.equal(value, whole.module.state_dict()[name])
        for name, value in model.module.state_dict().items()
    )


def test_recipe_is_shorter_and_slower():
    usual, short = recipe("vit_scratch"), recovery_recipe("vit_scratch", batch_size=16)
    assert (
        short.epochs == 2
        and short.learning_rate == pytest.approx(usual.learning_rate / 5)
        and short.batch_size == 16
    )
    assert recovery_recipe("vit_scratch", epochs=9).epochs == 9

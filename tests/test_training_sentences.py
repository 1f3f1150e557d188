"""The sentences about a history: chance is called chance, and only a rise that means overfitting is
called so.
"""

import numpy as np
import pandas as pd
import pytest

from tests.toys import small_digits, tiny_vit
from vitlab.training import (
    TrainConfig,
    describe_imbalance,
    describe_model,
    describe_training,
    imbalance_table,
    recipe_table,
)
from vitlab.training.sentences import chance_limit, describe_losses

FACTS = {"best_epoch": 2, "train_s": 10.0, "frozen_s": 1.0, "precision": "fp32", "device": "cpu"}
PLAIN = TrainConfig(mixup=0.0)
OVERFITTED = {"train_loss": [1.0, 0.8, 0.4, 0.1], "val_loss": [1.0, 0.8, 0.9, 1.2]}


def make_history(recall, **losses):
    data = small_digits()
    table = pd.DataFrame({"epoch": range(1, 5), **(losses or OVERFITTED)})
    table["val_roc_auc"] = table["val_balanced_accuracy"] = recall
    return table.assign(**{f"val_recall_{name}": recall for name in data.classes})


def test_a_model_at_chance_is_called_that_and_not_overfitted():
    text = describe_training(make_history(0.1), PLAIN, small_digits(), FACTS)
    assert "at chance" in text and "overfit" not in text


def test_a_model_that_has_learned_and_overfits():
    text = describe_training(make_history(0.9), PLAIN, small_digits(), FACTS)
    assert (
        "best epoch is number 2 of 4" in text
        and "balanced accuracy of 0.900" in text
        and "at chance" not in text
    )
    assert (
        "lowest after epoch 2 (0.800) and 1.200 at the end, while the training loss falls from"
        " 0.800 to 0.100" in text
    )
    assert "overfits after epoch 2" in text


@pytest.mark.parametrize(
    ("losses", "changes", "expected"),
    [
        ({"val_loss": [1.0, 0.9, 0.8, 0.7]}, {}, "still fell at the end"),
        ({"val_loss": [1.0, 0.8, 0.82, 0.83]}, {}, "hardly changes"),
        (
            {},
            {"mixup": 0.2, "label_smoothing": 0.1},
            "includes `mixup`, `label_smoothing`, so the two losses cannot be compared",
        ),
        ({}, {"focal_gamma": 2.0}, "includes `focal_gamma`"),
        ({}, {"class_weights": "none", "resample": "oversample"}, "includes `resample`"),
        ({"train_loss": [1.0, 0.8, 0.9, 1.1]}, {}, "not overfitting"),
    ],
)
def test_what_is_not_overfitting(losses, changes, expected):
    text = describe_losses(make_history(0.9, **OVERFITTED | losses), TrainConfig(**changes))
    assert expected in text and "overfits" not in text


def best_of_guesses(generator, counts, epochs):
    """Recalls of the best of some epochs in each of which a model names classes at random, at other
    rates each time.
    """
    named = generator.dirichlet(np.ones(len(counts)), epochs)
    recalls = generator.binomial(counts, named) / counts
    return recalls[recalls.mean(axis=1).argmax()]


@pytest.mark.parametrize("counts", [(130, 65), (12, 12), (20,) * 10])
@pytest.mark.parametrize("epochs", [1, 8])
def test_guessing_is_called_better_than_chance_in_at_most_5_percent(counts, epochs):
    generator = np.random.default_rng(0)
    runs = [best_of_guesses(generator, counts, epochs) for _ in range(200)]
    alarms = np.mean([recalls.mean() > chance_limit(recalls, counts, epochs) for recalls in runs])
    assert alarms <= 0.08  # nominal 5 %, and two standard errors of 200 simulations


@pytest.mark.parametrize(("counts", "recall"), [((130, 65), 0.68), ((20,) * 10, 0.25)])
def test_a_weak_model_is_told_from_guessing_in_at_least_90_percent(counts, recall):
    generator = np.random.default_rng(0)
    runs = [generator.binomial(counts, recall) / counts for _ in range(200)]
    assert np.mean([recalls.mean() > chance_limit(recalls, counts, 8) for recalls in runs]) >= 0.9


def test_model_recipe_and_classes_in_words():
    data, config = small_digits(), TrainConfig(class_weights="none", seed=3)
    text = describe_model(tiny_vit(), data)
    assert "16 × 16 pixels" in text and "grid of 4 × 4" in text
    assert f"{len(data.split('train')):,} train" in text
    table = recipe_table(config)
    cells = {*table.index, *table.to_numpy().ravel()}
    assert {"class_weights", "none", "seed", "3", "tracker"} <= cells
    balance = imbalance_table(data, config)
    largest = balance.set_index("class")["images"].idxmax()
    assert f"The largest class, *{largest}*, has " in describe_imbalance(balance)
    assert "synthetic" not in describe_imbalance(balance)
    made = describe_imbalance(balance.assign(synthetic=1))
    assert made.endswith(f"; {len(data.classes)} images are synthetic.")

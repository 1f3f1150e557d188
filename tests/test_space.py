"""The space of tuning: what it holds, what it refuses, and which training arguments a drawn point
stands for.
"""

import optuna
import pandas as pd
import pytest

from vitlab.training import (
    TrainConfig,
    best_trials,
    changes_table,
    default_space,
    describe_trials,
    recipe,
    space_table,
)
from vitlab.training.space import SearchSpace, apply_values, draw, fit_to_model, recipe_values


def test_draws_stay_within_the_space():
    space = SearchSpace(
        learning_rate=(1e-4, 1e-3), mixup=(0.1, 0.1), augment=("none",), trained_blocks=(1, "all")
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [draw(space, study.ask()) for _ in range(40)]
    assert all(
        1e-4 <= point["learning_rate"] <= 1e-3 and 0.6 <= point["layer_decay"] <= 1
        for point in points
    )
    assert {point["mixup"] for point in points} == {0.1} and {
        point["augment"] for point in points
    } == {"none"}
    assert {point["trained_blocks"] for point in points} == {1, "all"}
    low = sum(point["learning_rate"] < 10**-3.5 for point in points)
    assert 10 < low < 30  # evenly over powers of ten: half of them in the lower half


@pytest.mark.parametrize(
    "blocks, strategy, last_blocks, train_from",
    [
        (0, "linear_probe", 1, ""),
        (2, "last_blocks", 2, ""),
        ("all", "full", 1, ""),
        ("recipe", "from_stage", 1, "stem.stage4"),
    ],
)
def test_trained_blocks_name_a_strategy(blocks, strategy, last_blocks, train_from):
    config = apply_values(
        recipe("hybrid_vit"),
        {"trained_blocks": blocks, "learning_rate": 0.00123456, "augment": "strong"},
    )
    assert (config.strategy, config.last_blocks, config.train_from) == (
        strategy,
        last_blocks,
        train_from,
    )
    assert config.learning_rate == 0.00123456 and config.augment == "strong"
    assert config.mixup == recipe("hybrid_vit").mixup


@pytest.mark.parametrize("model", ["hybrid_vit", "efficientnet_lite0", "vit_scratch", "resnet18"])
def test_the_default_space_holds_the_recipe(model):
    config = recipe(model)
    space = default_space(config)
    assert ("recipe" in space.trained_blocks) == (config.strategy == "from_stage")
    assert apply_values(config, recipe_values(space, config)) == config
    assert recipe_values(SearchSpace(learning_rate=(1e-7, 1e-6)), config) is None


def test_only_and_left_alone():
    space = SearchSpace().only("learning_rate", "mixup")
    assert list(space.active()) == ["learning_rate", "mixup"]
    assert apply_values(TrainConfig(strategy="gradual"), {"mixup": 0.3}).strategy == "gradual"


def test_blocks_that_the_model_lacks_are_left_out():
    assert fit_to_model(SearchSpace(), 3).trained_blocks == (0, 1, 2, "all")
    with pytest.raises(
        ValueError, match=r"trained_blocks=\(8,\), but the model has 3; choose 0 to 3, or 'all'"
    ):
        fit_to_model(SearchSpace(trained_blocks=(8,)), 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"learning_rate": (1e-2, 1e-4)},
            r"learning_rate must be a range \(lowest, highest\), or \(\)",
        ),
        ({"learning_rate": (1e-2,)}, "learning_rate must be a range"),
        ({"learning_rate": (0, 1e-4)}, "learning_rate must be above 0"),
        (
            {"weight_decay": (0, 0.1)},
            "weight_decay is drawn over powers of ten, so it cannot begin at 0; write 1e-6",
        ),
        ({"layer_decay": (0.5, 1.5)}, "layer_decay must be between 0 and 1"),
        ({"augment": ("none", "lite")}, "unknown augment 'lite'. Did you mean light"),
        (
            {"trained_blocks": (0, -1)},
            "trained_blocks holds -1; its choices are numbers from 0 on, 'all' and 'recipe'",
        ),
        ({"trained_blocks": ("full",)}, "trained_blocks holds 'full'"),
    ],
)
def test_a_space_that_cannot_be_searched(arguments, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**arguments)


def test_an_unknown_argument_is_named_with_the_choices():
    with pytest.raises(
        ValueError,
        match=r"unknown argument to tune 'learning_rates'. Did you mean learning_rate.*mixup",
    ):
        SearchSpace().only("learning_rates")


def test_space_table_shows_ranges_choices_and_the_recipe():
    space = SearchSpace(learning_rate=(1e-4, 1e-2), trained_blocks=(0, "all"))
    config = recipe("vit_scratch", learning_rate=2e-3)
    table = space_table(space.only("learning_rate", "trained_blocks"), config)
    assert table.loc["learning rate"].tolist() == ["0.0001 to 0.01", 2e-3]
    assert table.loc["trained blocks"].tolist() == ["0, all", "full"]


def test_trials_in_a_sentence_and_a_table():
    trials = pd.DataFrame(
        [(3, "finished", 0.75, 60.0), (0, "finished", 0.5, 60.0), (1, "pruned", 0.9, 30.0)],
        columns=["trial", "state", "value", "seconds"],
    ).assign(best_epoch=1, epochs=4, learning_rate=0.00123, note="")
    config = recipe("vit_scratch", epochs=4, monitor="val_balanced_accuracy")
    assert describe_trials(trials, config) == (
        "Trials: 2 finished, 1 pruned. The best is number 3 with a validation balanced accuracy of"
        " 0.750; the recipe reached 0.500 in the same 4 epochs. All trials together took 2.5"
        " minutes."
    )
    assert "the recipe reached" not in describe_trials(trials.drop(index=1), config)
    assert describe_trials(trials[2:], config).startswith("Trials: 1 pruned. All trials")
    shown = best_trials(trials, "val_accuracy", most=2)
    assert list(shown) == ["trial", "state", "val_accuracy", "seconds", "learning_rate"]
    assert len(shown) == 2 and shown["learning_rate"].iloc[0] == "0.0012"


def test_table_of_the_best_values():
    table = changes_table({"mixup": 0.2}, recipe("vit_scratch"))
    assert table.loc["mixup"].tolist() == ["0.0", "0.2"]

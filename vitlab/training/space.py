"""What tuning may vary, how far, and the training arguments that a drawn set of values stands
for; and tables and sentences about a search, for notebook 07.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import pandas as pd

from vitlab.errors import UserError
from vitlab.plots.style import readable
from vitlab.registry import unknown
from vitlab.training.config import CHOICES, TrainConfig

if TYPE_CHECKING:
    from optuna import Trial

LOGARITHMIC = ("learning_rate", "weight_decay")  # drawn evenly over powers of ten
RANGES = (*LOGARITHMIC, "layer_decay", "mixup")


@dataclass(frozen=True)
class SearchSpace:
    """Ranges (lowest, highest) and choices to search. An empty tuple leaves an argument as the
    recipe has it.

    trained_blocks: how deep the model is trained, seen from the head. 0 is a linear probe, a number
        the last blocks (of a CNN, the last stages) and all behind them, "all" the whole model,
        "recipe" the strategy of the recipe. Numbers beyond what the model has are left out. Behind
        frozen blocks that are cached, augmentation acts by `views` of the recipe only.
    """

    learning_rate: tuple[float, ...] = (1e-5, 1e-2)
    layer_decay: tuple[float, ...] = (0.6, 1.0)
    weight_decay: tuple[float, ...] = (1e-3, 0.3)
    augment: tuple[str, ...] = CHOICES["augment"]
    mixup: tuple[float, ...] = (0.0, 0.4)
    trained_blocks: tuple[int | str, ...] = (0, 1, 2, 4, "all")

    def __post_init__(self):
        if not self.active():
            raise UserError(
                "there is nothing to tune; choose at least one of"
                f" {', '.join(field.name for field in fields(self))}"
            )
        for name in RANGES:
            ends = getattr(self, name)
            if ends and not (len(ends) == 2 and ends[0] <= ends[1]):
                raise UserError(
                    f"{name} must be a range (lowest, highest), or () to leave it alone; it is"
                    f" {ends}"
                )
            if ends:
                for end in ends:
                    replace(TrainConfig(), **{name: end})  # the config knows what it may be
                if name in LOGARITHMIC and ends[0] == 0:
                    raise UserError(
                        f"{name} is drawn over powers of ten, so it cannot begin at 0; write 1e-6,"
                        " or () for none"
                    )
        for name in self.augment:
            if name not in CHOICES["augment"]:
                raise UserError(unknown("augment", name, list(CHOICES["augment"])))
        for blocks in self.trained_blocks:
            number = isinstance(blocks, int) and not isinstance(blocks, bool) and blocks >= 0
            if not number and blocks not in ("all", "recipe"):
                raise UserError(
                    f"trained_blocks holds {blocks!r}; its choices are numbers from 0 on, 'all' and"
                    " 'recipe'"
                )

    def only(self, *names: str) -> SearchSpace:
        """The same ranges for these arguments; the others are left alone."""
        known = [field.name for field in fields(self)]
        for name in names:
            if name not in known:
                raise UserError(unknown("argument to tune", name, known))
        return replace(self, **{name: () for name in known if name not in names})

    def active(self) -> dict[str, tuple]:
        """The arguments that are searched, each with its range or choices."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name)
        }


def default_space(config: TrainConfig) -> SearchSpace:
    """The space that holds a recipe: where it trains a part of the model of its own, that part is
    one of the choices.
    """
    space = SearchSpace()
    return replace(
        space, trained_blocks=tuple(dict.fromkeys((*space.trained_blocks, _name_blocks(config))))
    )


def fit_to_model(space: SearchSpace, num_blocks: int) -> SearchSpace:
    """The space without numbers of blocks that the model does not have; ValueError when none is
    left.
    """
    kept = tuple(
        blocks for blocks in space.trained_blocks if isinstance(blocks, str) or blocks <= num_blocks
    )
    if space.trained_blocks and not kept:
        raise UserError(
            f"trained_blocks={space.trained_blocks}, but the model has {num_blocks}; choose 0 to"
            f" {num_blocks}, or 'all'"
        )
    return replace(space, trained_blocks=kept)


def recipe_values(space: SearchSpace, config: TrainConfig) -> dict | None:
    """The recipe as a point of the space; None when it lies outside."""
    point = {
        name: _name_blocks(config) if name == "trained_blocks" else getattr(config, name)
        for name in space.active()
    }
    for name, values in space.active().items():
        inside = values[0] <= point[name] <= values[1] if name in RANGES else point[name] in values
        if not inside:
            return None
    return point


def draw(space: SearchSpace, trial: Trial) -> dict:
    """One value for each argument that is searched, as Optuna suggests it."""
    return {
        name: (
            trial.suggest_float(name, *values, log=name in LOGARITHMIC)
            if name in RANGES
            else trial.suggest_categorical(name, values)
        )
        for name, values in space.active().items()
    }


def apply_values(config: TrainConfig, values: dict) -> TrainConfig:
    """The recipe with drawn values in place of its own."""
    changes = dict(values)
    blocks = changes.pop("trained_blocks", "recipe")
    if blocks != "recipe":
        changes["strategy"] = (
            "full" if blocks == "all" else "last_blocks" if blocks else "linear_probe"
        )
        changes["last_blocks"] = (
            blocks if changes["strategy"] == "last_blocks" else config.last_blocks
        )
        changes["train_from"] = ""
    return replace(config, **changes)


def _name_blocks(config: TrainConfig) -> int | str:
    return {"full": "all", "linear_probe": 0, "last_blocks": config.last_blocks}.get(
        config.strategy, "recipe"
    )


def space_table(space: SearchSpace, config: TrainConfig) -> pd.DataFrame:
    """A row for each argument that is searched: its range or choices, and the recipe's value."""
    rows = []
    for name, values in space.active().items():
        if name in RANGES:
            searched = f"{values[0]:g} to {values[1]:g}"
        else:
            searched = ", ".join(map(str, values))
        rows.append((readable(name), searched, getattr(config, name, config.strategy)))
    return pd.DataFrame(rows, columns=["argument", "searched", "recipe"]).set_index("argument")


def best_trials(trials: pd.DataFrame, monitor: str, most: int = 10) -> pd.DataFrame:
    """The best finished trials, then others, in few digits. trials: of `trials_table`."""
    shown = trials.head(most).drop(columns=["best_epoch", "epochs"])
    if (trials["note"] == "").all():
        shown = shown.drop(columns="note")
    numbers = {name: shown[name].map("{:.2g}".format) for name in RANGES if name in shown}
    return shown.assign(**numbers).rename(columns={"value": monitor})


def describe_trials(trials: pd.DataFrame, config: TrainConfig) -> str:
    """The number of trials by state, the best of them, the recipe's score, and the computing time.

    trials: of `trials_table`."""
    counts = [f"{count} {state}" for state, count in trials["state"].value_counts().items()]
    text = f"Trials: {', '.join(counts)}."
    finished = trials[trials["state"] == "finished"]
    if len(finished):
        best = finished.iloc[0]
        text += (
            f" The best is number {best['trial']} with a {readable(config.monitor)} of"
            f" {best['value']:.3f}"
        )
        recipe = finished.loc[finished["trial"] == 0, "value"]
        if len(recipe):
            text += f"; the recipe reached {recipe.iloc[0]:.3f} in the same {config.epochs} epochs"
        text += "."
    return f"{text} All trials together took {trials['seconds'].sum() / 60:.1f} minutes."


def changes_table(changes: Mapping[str, object], usual: TrainConfig) -> pd.DataFrame:
    """A row for each changed training argument: the recipe's value and that of the best trial."""
    rows = [
        (readable(name), str(getattr(usual, name)), str(value)) for name, value in changes.items()
    ]
    return pd.DataFrame(rows, columns=["argument", "recipe", "best trial"]).set_index("argument")

"""Tables and sentences about a search for training arguments, for notebook 07."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from vitlab.plots.style import readable
from vitlab.training.config import TrainConfig
from vitlab.training.space import RANGES, SearchSpace


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

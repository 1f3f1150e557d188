"""A search for better training arguments, with Optuna: judged on the validation split, in a journal
that processes share.

reports/tuning/<data set>-<hash>/<name>.journal is the study. Every process that has the file adds
trials to it, one after the other or at the same time; a machine that dies loses the trial it was at
and nothing else."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import optuna
import pandas as pd
import psutil
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from tqdm.auto import tqdm

from vitlab.data import add_synthetic, load_dataset
from vitlab.errors import UserError
from vitlab.models import build_model, split_stages
from vitlab.models.stages import block_positions
from vitlab.places import reports_dir
from vitlab.registry import unknown
from vitlab.run_folders import canonical_dataset, check_run_name, dataset_folder, run_name
from vitlab.schema import DataBundle
from vitlab.seeds import derive_seed
from vitlab.training.config import TrainConfig, fit_options, recipe
from vitlab.training.loop import fit
from vitlab.training.space import (
    RANGES,
    SearchSpace,
    apply_values,
    default_space,
    draw,
    fit_to_model,
    recipe_values,
)

STARTUP = 5  # trials drawn at random, and never pruned, before earlier ones guide the search
# what a bad set of values may do; anything else ends the search
FAILURES = (FloatingPointError, torch.OutOfMemoryError)
ELSEWHERE = timedelta(days=1)  # a trial of another machine that began longer ago is taken for dead
STATES = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
PRUNERS = {
    "median": lambda epochs: optuna.pruners.MedianPruner(
        n_startup_trials=STARTUP, n_warmup_steps=2
    ),
    # arXiv 1603.06560
    "hyperband": lambda epochs: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs),
    "none": lambda epochs: optuna.pruners.NopPruner(),
}


def tune_recipe(
    dataset: str,
    model: str,
    config: TrainConfig | None = None,
    space: SearchSpace | None = None,
    *,
    trials: int = 20,
    minutes: float = 0,
    name: str = "",
    pruner: str = "median",
    options: Mapping = MappingProxyType({}),
) -> optuna.Study:
    """Search the space around a recipe until the study holds so many trials, and return the study.

    config: what all trials share, the seed among it; by default the model's recipe, which is also
    the first trial. trials: that the study is to hold in the end, those of earlier calls and of
    other processes included. Finished, pruned and
        failed ones count; a trial that was killed or interrupted does not. Processes at work on the
        last ones do not wait for each other.
    minutes: after these no further trial is begun; 0 means no limit. name: of the study; by default
    made from all that decides it, so that the same call carries on and another starts anew. pruner:
    median or hyperband, which end a trial that falls behind the others in the same epoch, or none.
    options: of `build_model`.

    The score of a trial is the best value of `config.monitor`. The test split is taken away before
    the search begins. Raises ValueError for trials, a pruner, space or model that do not fit, and
    for a study of this name made with other arguments."""
    if trials < 1:
        raise UserError(f"trials must be at least 1, not {trials}")
    if pruner not in PRUNERS:
        raise UserError(unknown("pruner", pruner, list(PRUNERS)))
    data = without_test(load_dataset(dataset, seed=config.seed if config else 0))
    config = replace(config or recipe(model, data), tracker="")
    options = fit_options(model, data, options)
    data = add_synthetic(data, config.synthetic, config.synthetic_share, config.seed)
    space = space or default_space(config)
    if space.trained_blocks:
        module = build_model(model, data.classes, seed=config.seed, **options).module
        space = fit_to_model(
            space, len(block_positions([name for name, _ in split_stages(module)]))
        )
    made_with = {
        "dataset": canonical_dataset(dataset),
        "data": data.version,
        "model": model,
        "options": dict(options),
    }
    made_with |= {"pruner": pruner, "config": asdict(config), "space": asdict(space)}
    name = name or run_name({"model": model, "seed": config.seed, **made_with})
    deadline = time.monotonic() + 60 * minutes if minutes else math.inf

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("process", _process())
        chosen = apply_values(config, draw(space, trial))
        classifier = build_model(model, data.classes, seed=config.seed, **options)

        def report(row: dict) -> None:
            trial.report(row[config.monitor], row["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned(f"behind the others in epoch {row['epoch']}")

        try:
            scores = fit(classifier, data, config=chosen, on_epoch=report, show=False)[
                config.monitor
            ]
            if not scores.notna().any():
                raise FloatingPointError(f"{config.monitor} is not a number in any epoch")
        except FAILURES as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            raise
        return float(scores.min() if _is_loss(config) else scores.max())

    with _quiet():
        study = _open_study(study_path(dataset, name), name, made_with, config)
        _close_abandoned(study)
        first = recipe_values(space, config)
        if not study.trials and first:
            study.enqueue_trial(first, skip_if_exists=True)
        with tqdm(total=trials, desc=f"tune {model}", unit="trial") as bar:
            while True:
                bar.n = _count(study)
                bar.refresh()
                if bar.n >= trials or time.monotonic() >= deadline:
                    return study
                study.optimize(objective, n_trials=1, catch=FAILURES)


def study_path(dataset: str, name: str) -> Path:
    """The file of a study. UserError unless the name is a plain file name."""
    return (
        reports_dir()
        / "tuning"
        / dataset_folder(dataset)
        / f"{check_run_name(name, 'study_name')}.journal"
    )


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """A row a trial: the finished ones with the best first, then pruned, failed and other ones in
    their order.

    Columns: trial, state (finished, pruned, failed, interrupted, running or waiting), value (the
    best of its epochs, in `config.monitor`), best_epoch, epochs, seconds, a column for each
    argument that was searched (choices are ordered categories), and note."""
    rows, sign = [], 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    searched = SearchSpace(**_tuples(study.user_attrs["made_with"]["space"])).active()
    for trial in study.trials:
        values = {
            epoch: value
            for epoch, value in trial.intermediate_values.items()
            if math.isfinite(value)
        }
        best = min(values, key=lambda epoch: sign * values[epoch], default=None)
        rows.append(
            {
                "trial": trial.number,
                "state": _describe_state(trial),
                "value": math.nan if best is None else values[best],
                "best_epoch": best or 0,
                "epochs": len(trial.intermediate_values),
                "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else math.nan,
                **{name: trial.params.get(name) for name in searched},
                "note": trial.user_attrs.get("error", ""),
            }
        )
    columns = ["trial", "state", "value", "best_epoch", "epochs", "seconds", *searched, "note"]
    order = [*dict.fromkeys((*STATES.values(), "interrupted"))]
    rows.sort(
        key=lambda row: (
            order.index(row["state"]),
            sign * row["value"] if row["state"] == "finished" else row["trial"],
        )
    )
    table = pd.DataFrame(rows, columns=columns)
    for name in set(searched) - set(RANGES):
        choices = [str(choice) for choice in searched[name]]
        table[name] = pd.Categorical(
            table[name].map(str, na_action="ignore"), choices, ordered=True
        )
    return table


def importance_table(study: optuna.Study) -> pd.DataFrame:
    """Share of the variance of the finished trials' scores that each argument accounts for, all
    other ones averaged over: fANOVA (Hutter et al. 2014, proceedings.mlr.press/v32/hutter14.html).

    Columns: argument, importance; the greatest first. No rows where fewer than two finished trials
    differ in their score."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in finished}) < 2:
        return pd.DataFrame(columns=["argument", "importance"])
    with _quiet():
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return pd.DataFrame(
        [(name, float(share)) for name, share in shares.items()], columns=["argument", "importance"]
    )


def best_recipe(study: optuna.Study) -> TrainConfig:
    """The training arguments of the best finished trial. ValueError when there is none yet, with
    what there is.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        states = trials_table(study)["state"].value_counts()
        found = (
            ", ".join(f"{count} {state}" for state, count in states.items()) or "no trials at all"
        )
        raise UserError(
            f"study {study.study_name} has no finished trial yet ({found}); call tune_recipe again"
            " with more trials or minutes, or with a lower learning_rate in its space where trials"
            " fail"
        )
    return apply_values(TrainConfig(**study.user_attrs["made_with"]["config"]), study.best_params)


def recipe_changes(config: TrainConfig, model: str, data: DataBundle | None = None) -> dict:
    """Where a config departs from the recipe: with it, `recipe(model, data, **changes)` and
    notebook 03 make it again.
    """
    usual = recipe(model, data, seed=config.seed)
    changes = {
        name: value for name, value in asdict(config).items() if value != getattr(usual, name)
    }
    if "strategy" in changes and not config.train_from:
        changes.pop("train_from", None)  # another strategy drops it by itself
    return changes


def without_test(data: DataBundle) -> DataBundle:
    """The data without the rows of its test split; to read one of its images raises ValueError."""
    test = frozenset(data.split("test")["sample_id"])

    def read(sample_id: str):
        if sample_id in test:
            raise UserError(f"{sample_id} belongs to the test split, which tuning must not see")
        return data.read(sample_id)

    return replace(
        data,
        samples=data.samples[data.samples["split"] != "test"].reset_index(drop=True),
        read=read,
    )


class TrialSampler(optuna.samplers.BaseSampler):
    """TPE (arXiv 2304.11127) whose random numbers depend on the seed and on the number of the
    trial, and on nothing else.

    So a study that is resumed does not draw its first values again, processes that start together
    differ, and a study in two sittings is the same as in one."""

    def __init__(self, seed: int):
        self.seed = seed
        self.tpe = self._seeded(0)

    def _seeded(self, number: int) -> optuna.samplers.TPESampler:
        return optuna.samplers.TPESampler(
            n_startup_trials=STARTUP, seed=derive_seed(self.seed, "trial", number) % 2**32
        )

    def before_trial(self, study, trial):
        self.tpe = self._seeded(trial.number)

    def infer_relative_search_space(self, study, trial):
        return self.tpe.infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        return self.tpe.sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study, trial, state, values):
        self.tpe.after_trial(study, trial, state, values)


def _open_study(path: Path, name: str, made_with: dict, config: TrainConfig) -> optuna.Study:
    path.parent.mkdir(parents=True, exist_ok=True)
    # symbolic links need rights there
    lock = JournalFileOpenLock(str(path)) if sys.platform == "win32" else None
    study = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(path), lock_obj=lock)),
        direction="minimize" if _is_loss(config) else "maximize",
        sampler=TrialSampler(config.seed),
        pruner=PRUNERS[made_with["pruner"]](config.epochs),
        load_if_exists=True,
    )
    made_with = json.loads(json.dumps(made_with))
    before = study.user_attrs.get("made_with")
    if before is None:
        study.set_user_attr("made_with", made_with)
    elif before != made_with:
        differences = "; ".join(_differences(before, made_with))
        raise UserError(
            f"study {name} was made with other arguments: {differences}. Give another name, or"
            f" delete {path}"
        )
    return study


def _differences(before: dict, now: dict, prefix: str = "") -> Iterator[str]:
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old!r} and is {new!r} now"


def _count(study: optuna.Study) -> int:
    """Trials that are done or under way."""
    counted = ("finished", "pruned", "failed", "running")
    return sum(_describe_state(trial) in counted for trial in study.get_trials(deepcopy=False))


def _describe_state(trial: FrozenTrial) -> str:
    """A trial that failed by its values says why; one that says nothing was interrupted, or closed
    after its process died.
    """
    if trial.state == TrialState.FAIL and "error" not in trial.user_attrs:
        return "interrupted"
    return STATES[trial.state.name]


def _close_abandoned(study: optuna.Study) -> None:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_abandoned(trial):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _is_abandoned(trial: FrozenTrial) -> bool:
    machine, process, began = trial.user_attrs.get("process", ("", 0, 0))
    if machine != platform.node():
        return datetime.now() - trial.datetime_start > ELSEWHERE
    try:
        # the number may have gone to another process
        alive = abs(psutil.Process(process).create_time() - began) < 1
    except psutil.NoSuchProcess:
        alive = False
    return not alive or process == os.getpid()


def _process() -> tuple[str, int, float]:
    return platform.node(), os.getpid(), psutil.Process().create_time()


def _is_loss(config: TrainConfig) -> bool:
    return config.monitor.endswith("loss")


def _tuples(space: dict) -> dict:
    return {name: tuple(values) for name, values in space.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log, a line or more a trial, only from errors on; what it says of trials is in the
    table.
    """
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)

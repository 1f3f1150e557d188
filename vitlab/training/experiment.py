"""From names to a finished run: what notebook 03 does cell by cell, as one call."""

from __future__ import annotations

import difflib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from accelerate import debug_launcher, notebook_launcher
from accelerate.state import AcceleratorState

from vitlab.data import ImageDataset, add_synthetic, data_card, load_dataset
from vitlab.data.balance import drop_synthetic
from vitlab.errors import UserError
from vitlab.models import build_model, load_model, save_model
from vitlab.registry import unknown
from vitlab.run_folders import (
    RunBusy,
    canonical_dataset,
    check_run_name,
    is_held,
    list_runs,
    runs_folder,
)
from vitlab.runs import PROMISED, Run, find_runs
from vitlab.schema import DataBundle, ModelBundle, check_predictions
from vitlab.training.config import TrainConfig, fit_options, recipe
from vitlab.training.devices import join_processes
from vitlab.training.loop import fit
from vitlab.training.scores import compute_logits
from vitlab.training.teacher import Teacher

MAX_NAMES = 8  # of runs in a message
BUSY_SECONDS = 5  # between two looks at a run that another process trains


def predict(model: ModelBundle, data: DataBundle, splits=("val", "test")) -> pd.DataFrame:
    """The predictions table of the real images of these splits, by the whole model in its own
    precision, as it is later used.

    The cache of a training does not do: what it rounds to bfloat16 turned 16 of 839 answers of the
    hybrid on ELPV (seed 1).

    >>> import vitlab
    >>> data = vitlab.load_dataset("digits")
    >>> model = vitlab.build_model("vit_scratch", data.classes, size=24, depth=1)
    >>> predictions = vitlab.predict(model, data, splits=["val"])
    >>> predictions[["prob_0", "prob_1"]].shape
    (216, 2)
    """
    data = replace(data, samples=drop_synthetic(data.samples))
    device = next(model.module.parameters()).device
    tables = []
    for split in splits:
        logits, _ = compute_logits(model.module, ImageDataset(data, split, model.transform), device)
        rows = data.split(split)[["sample_id", "split", "group", "label"]].reset_index(drop=True)
        rows["pred"] = np.array(data.classes)[logits.argmax(dim=1).numpy()]
        for kind, values in (("logit", logits.double()), ("prob", logits.double().softmax(dim=1))):
            rows[[f"{kind}_{name}" for name in data.classes]] = values.numpy()
        tables.append(rows)
    predictions = pd.concat(tables, ignore_index=True)
    check_predictions(predictions)
    return predictions


def measure_inference(model: ModelBundle, repeats: int = 15) -> float:
    """Median milliseconds for one image through the whole model, batch of 1, float32, after
    warm-up.
    """
    image = torch.zeros(
        1,
        len(model.transform.mean),
        *model.transform.size,
        device=next(model.module.parameters()).device,
    )
    model.module.eval()
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            start = time.perf_counter()
            model.module(image).cpu()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def save_results(run: Run, model: ModelBundle, data: DataBundle) -> pd.DataFrame:
    """Keep splits, data card, weights and predictions in the run, mark it as done, and return the
    predictions.

    The value range of the data is kept in the model's transform, so that images from elsewhere are
    scaled as these were."""
    run.write_table("splits.csv", data.samples)
    run.write_text("data_card.md", data_card(data))
    model = replace(model, transform=replace(model.transform, value_range=data.value_range))
    save_model(model, run.path)
    predictions = predict(model, data)
    run.write_table("predictions.parquet", predictions)
    run.record(inference_ms=round(measure_inference(model), 2), data_version=data.version)
    run.finish(PROMISED["03_finetune"])
    return predictions


def initial_model(run: Run) -> tuple[ModelBundle | None, str]:
    """The model as it was before this run trained it, rebuilt from the run's options and seed, and
    an empty text.

    None, and why, where its pretrained weights cannot be reached.
    """
    trained = load_model(run.path)
    try:
        return (
            build_model(
                trained.name, trained.classes, seed=run.parameters["seed"], **trained.options
            ),
            "",
        )
    except UserError as error:
        return None, f"The initial weights cannot be rebuilt: {error}."


def ensure_run(dataset: str, model: str, seed: int = 0, name: str = "") -> Run:
    """The newest finished run of this data set, model and seed without a variant, else one trained
    now; with a name, that run.

    UserError for a name that no finished run of this data set, model and seed has: a name never
    starts a training run."""
    if name:
        return _find_named(dataset, model, seed, name)
    return find_or_train(
        lambda: [run for run in find_runs(dataset, model=model, seed=seed) if not run.variant],
        lambda: finetune(dataset, model, seed),
    )


def find_or_train(find: Callable[[], list[Run]], train: Callable[[], Run]) -> Run:
    """The last of the runs found; else a new one. While another process trains the same run, wait
    for it and look again.
    """
    while not (runs := find()):
        try:
            return train()
        except RunBusy as busy:
            print(f"Waiting: {busy}")
            while is_held(busy.path):
                time.sleep(BUSY_SECONDS)
    return runs[-1]


def _find_named(dataset: str, model: str, seed: int, name: str) -> Run:
    folder = runs_folder(dataset)
    if check_run_name(name) not in {path.name for path in list_runs(dataset)}:
        names = [run.name for run in find_runs(dataset)]
        near = difflib.get_close_matches(name, names, n=MAX_NAMES, cutoff=0) or names[:MAX_NAMES]
        advice = (
            f"These are finished runs in {folder}. Leave run_name empty for the newest run of model"
            " and seed."
        )
        raise UserError(unknown("run_name", name, near, advice))
    run = Run(folder / name)
    differs = [
        f"{key} {found!r} instead of {asked!r}"
        for key, asked in (("model", model), ("seed", seed))
        if (found := run.parameters.get(key)) != asked
    ]
    if run.dataset != canonical_dataset(dataset):
        differs.append(f"dataset {run.dataset!r} instead of {dataset!r}")
    problem = f"it has {' and '.join(differs)}" if differs else run.problem
    if problem:
        raise UserError(f"run {name} in {folder} cannot be used here: {problem}")
    return run


def finetune(
    dataset: str,
    model: str,
    seed: int = 0,
    name: str = "",
    *,
    options: Mapping = MappingProxyType({}),
    splits: Mapping = MappingProxyType({}),
    **overrides,
) -> Run:
    """Train a model on a data set by its recipe, with `overrides` of it, and keep everything in a
    new run.

    options: of `build_model`; splits: of `load_dataset` (split_by, folds, fold). Called in each
    process of `torchrun`, all of them train; the first one writes."""
    # raises for what does not fit together, before data are read
    recipe(model, seed=seed, **overrides)
    data = load_dataset(dataset, seed=seed, **splits)
    config = recipe(model, data, seed=seed, **overrides)
    data = add_synthetic(data, config.synthetic, config.synthetic_share, seed)
    classifier = build_model(model, data.classes, seed=seed, **fit_options(model, data, options))
    parameters = {
        "dataset": dataset,
        "model": model,
        "seed": seed,
        **splits,
        "split_by": data.split_by,
        **options,
        **overrides,
    }
    return train_in_run(fit, classifier, data, config, parameters, name)


def train_in_run(
    train: Callable,
    model: ModelBundle,
    data: DataBundle,
    config: TrainConfig,
    parameters: Mapping,
    name: str = "",
) -> Run:
    """Train a model and keep everything in a new run of these parameters, which counts as failed
    where the training raises.

    train: called with model, data, run and config, as `fit` is. All processes train, the first one
    writes."""
    state = join_processes()
    run = Run.create(name=name, **parameters) if state.is_main_process else None
    state.wait_for_everyone()
    run = run or Run.join(name=name, **parameters)
    try:
        train(model, data, run, config)
        if state.is_main_process:
            save_results(run, model, data)
    except BaseException as error:
        if state.is_main_process:
            run.fail(error)
        raise
    return run


def fit_on(
    processes: int,
    model: ModelBundle,
    data: DataBundle,
    run: Run,
    config: TrainConfig,
    *,
    teacher: Teacher | None = None,
) -> pd.DataFrame:
    """`fit` with this many processes, one a GPU, or sharing the processor where there is none; the
    model ends with the weights.

    Before it, the notebook must not have used a GPU: a process that has cannot be forked. Raises
    ValueError for fewer GPUs than processes."""
    if processes == 1:
        return fit(model, data, run, config, teacher=teacher)
    if 0 < torch.cuda.device_count() < processes:
        raise UserError(
            f"processes={processes}, but there are {torch.cuda.device_count()} GPUs; choose that"
            " many at most"
        )
    # of an earlier training: the launcher wants to be the first
    AcceleratorState._reset_state(reset_partial_state=True)
    # the latter is Accelerate's for processors
    launch = notebook_launcher if torch.cuda.is_available() else debug_launcher
    launch(_fit_and_save, (model, data, run, config, teacher), num_processes=processes)
    trained = load_model(run.path)
    model.module.load_state_dict(trained.module.state_dict())
    run.info = Run(run.path).info
    return run.read_table("history.csv")


def _fit_and_save(model, data, run, config, teacher):
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # the threads of OpenMP do not survive the fork
    fit(model, data, run, config, teacher=teacher)
    if join_processes().is_main_process:
        save_model(model, run.path)

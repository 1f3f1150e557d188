"""From names to a finished run: what notebook 03 does cell by cell, as one call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch

from vitlab.data import ImageDataset, add_synthetic, data_card, drop_synthetic, load_dataset
from vitlab.models import build_model, pieces, save_model
from vitlab.runs import Run, find_runs, run_path
from vitlab.schema import DataBundle, ModelBundle, check_predictions
from vitlab.training.cache import FrozenFeatures, FrozenFront
from vitlab.training.config import TrainConfig, recipe
from vitlab.training.devices import join_processes
from vitlab.training.loop import fit
from vitlab.training.scores import compute_logits
from vitlab.training.strategy import lowest_border, split_model


def predict(model: ModelBundle, data: DataBundle, splits=("val", "test"), config: TrainConfig | None = None) -> pd.DataFrame:
    """The predictions table of the real images of these splits. With the config of the training, the frozen part is cached."""
    data = replace(data, samples=drop_synthetic(data.samples))
    border, device = 0, next(model.module.parameters()).device
    if config and config.cache and config.strategy != "full":
        border = lowest_border([name for name, _ in pieces(model.module)], config)
    frozen, trained = split_model(model.module, border)
    front = FrozenFront(frozen, config.precision, device) if border else None
    tables = []
    for split in splits:
        dataset = FrozenFeatures(data, split, model, front) if front else ImageDataset(data, split, model.transform)
        logits, _ = compute_logits(trained, dataset, device)
        rows = data.split(split)[["sample_id", "split", "group", "label"]].reset_index(drop=True)
        rows["pred"] = np.array(data.classes)[logits.argmax(dim=1).numpy()]
        for kind, values in (("logit", logits.double()), ("prob", logits.double().softmax(dim=1))):
            rows[[f"{kind}_{name}" for name in data.classes]] = values.numpy()
        tables.append(rows)
    predictions = pd.concat(tables, ignore_index=True)
    check_predictions(predictions)
    return predictions


def measure_inference(model: ModelBundle, repeats: int = 15) -> float:
    """Median milliseconds for one image through the whole model, batch of 1, float32, after warm-up."""
    image = torch.zeros(1, len(model.transform.mean), *model.transform.size, device=next(model.module.parameters()).device)
    model.module.eval()
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            start = time.perf_counter()
            model.module(image).cpu()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def save_results(run: Run, model: ModelBundle, data: DataBundle, config: TrainConfig) -> pd.DataFrame:
    """Keep splits, data card, weights and predictions in the run, mark it as done, and return the predictions."""
    run.write_table("splits.csv", data.samples)
    run.write_text("data_card.md", data_card(data))
    save_model(model, run.path)
    predictions = predict(model, data, config=config)
    run.write_table("predictions.parquet", predictions)
    run.record(inference_ms=round(measure_inference(model), 2))
    run.finish()
    return predictions


def ensure_run(dataset: str, model: str, seed: int = 0, name: str = "") -> Run:
    """The newest finished run of this data set, model and seed without a variant (or the one of this name); else trained now."""
    runs = find_runs(dataset, model=model, seed=seed)
    runs = [run for run in runs if (run.name == name if name else not run.variant)]
    return runs[-1] if runs else finetune(dataset, model, seed, name)


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
    """Train a model on a data set by its recipe, with `overrides` of it, and keep everything in a new run.

    options: of `build_model`; splits: of `load_dataset` (split_by, folds, fold). Called in each process of
    `accelerate launch`, all of them train; the first one writes.
    """
    config = recipe(model, seed=seed, **overrides)
    data = add_synthetic(load_dataset(dataset, seed=seed, **splits), config.synthetic, config.synthetic_share, seed)
    classifier = build_model(model, data.classes, seed=seed, **options)
    parameters = {"dataset": dataset, "model": model, "seed": seed, **splits, **options, **overrides}
    return train_in_run(fit, classifier, data, config, parameters, name)


def train_in_run(
    train: Callable, model: ModelBundle, data: DataBundle, config: TrainConfig, parameters: Mapping, name: str = ""
) -> Run:
    """Train a model and keep everything in a new run of these parameters, which counts as failed where the training raises.

    train: called with model, data, run and config, as `fit` is. All processes train, the first one writes.
    """
    state = join_processes()
    if state.is_main_process:
        Run.create(name=name, **parameters)
    state.wait_for_everyone()
    run = Run(run_path(name=name, **parameters))
    try:
        train(model, data, run, config)
        if state.is_main_process:
            save_results(run, model, data, config)
    except BaseException as error:
        run.fail(error)
        raise
    return run

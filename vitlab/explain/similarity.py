"""How similar maps are, by Spearman's rank correlation over the cells of a grid: maps of two
methods, and maps of one method before and after the model is changed (sanity checks).

A map that does not change with the weights, the labels or the class explains nothing of the model.
Source: Adebayo et al. 2018, Sanity Checks for Saliency Maps, arXiv 1810.03292."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.stats import binom, rankdata
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitlab.errors import UserError
from vitlab.evaluation.inference import correct_holm, mean_interval
from vitlab.explain.inspection import inspecting
from vitlab.explain.methods import explain
from vitlab.explain.removal import (
    CellScorer,
    check_maps,
    choose_grid,
    number_cells,
    pool_cells,
    round_maps,
)
from vitlab.models import split_stages
from vitlab.schema import AttributionMap, ModelBundle
from vitlab.seeds import derive_seed

WEIGHTS, LABELS, CLASSES = "weights", "labels", "classes"
UNCHANGED = "does not change: explains nothing of the model"
CHANGES = "changes with the model"
SAME_CLASS = "the same for every class"
TOO_FEW = "too few images to show anything"
# rank correlation at which the ranks of two maps share a quarter of their variance
THRESHOLD = 0.5
SAME = 1 - 1e-4  # from here on two maps are equal up to rounding
LEVEL = 0.025  # of each verdict, one-sided
BATCH = 32  # images at once in a forward pass


def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis, with broadcasting; NaN where one side is
    constant.
    """
    centred = []
    for values in (a, b):
        rest = values - values.mean(axis=-1, keepdims=True)
        largest = np.abs(values).max(axis=-1, keepdims=True)
        constant = np.abs(rest).max(axis=-1, keepdims=True) <= 1e-9 * largest
        centred.append(np.where(constant, np.nan, rest))
    a, b = centred
    return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


def correlate_ranks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis, with broadcasting; NaN where one side is
    constant.

    As scipy.stats.spearmanr row by row: tied values get their mean rank. Values that differ by
    rounding are tied (`round_maps`)."""
    return correlate(*(rankdata(round_maps(values), axis=-1) for values in (a, b)))


def compare_maps(model: ModelBundle, maps: AttributionMap, others: AttributionMap) -> pd.DataFrame:
    """Similarity of two maps of each image: method, sample_id, similarity, absolute, other_image.

    similarity: rank correlation over the cells of `choose_grid`. absolute: that of the absolute
    values, which stays high where only the sign has changed. other_image: the mean absolute
    similarity of the first map to the maps of the other images, which any method has. A blank map
    has a similarity of 1 to another blank one, and of 0 to any other."""
    size = maps.values.shape[1:]
    cells = number_cells(choose_grid(model.anatomy, size), size)
    first, second = (
        pool_cells(torch.from_numpy(found.values).double(), cells).numpy()
        for found in (maps, others)
    )
    among = _correlate_maps(np.abs(first)[:, None], np.abs(first)[None])  # (N, N)
    count = len(first)
    return pd.DataFrame(
        {
            "method": maps.method,
            "sample_id": list(maps.sample_ids),
            "similarity": _correlate_maps(first, second),
            "absolute": _correlate_maps(np.abs(first), np.abs(second)),
            "other_image": (among.sum(axis=1) - 1) / (count - 1) if count > 1 else np.nan,
        }
    )


def _correlate_maps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    both_blank = (np.ptp(a, axis=-1) == 0) & (np.ptp(b, axis=-1) == 0)
    return np.where(both_blank, 1.0, np.nan_to_num(correlate_ranks(a, b)))


def agreement_table(scorer: CellScorer, maps: Sequence[AttributionMap]) -> pd.DataFrame:
    """Mean rank correlation of the absolute values of each two methods over the images; agreement
    does not show that either is right.

    Columns method_a, method_b, value, low, high, n. low, high: 95% t interval over images, NaN for
    a single one. Images on which one of the two maps is blank are not counted in n."""
    maps = check_maps(maps)
    if len(maps) < 2:
        raise UserError(f"agreement needs at least two methods; there is only {maps[0].method}")
    pooled = [np.abs(scorer.pool(found)) for found in maps]
    pairs = list(combinations(range(len(maps)), 2))
    values = np.stack([correlate_ranks(pooled[a], pooled[b]) for a, b in pairs], axis=1)
    mean, low, high, count = mean_interval(values, limits=(-1, 1))
    names = {
        "method_a": [maps[a].method for a, _ in pairs],
        "method_b": [maps[b].method for _, b in pairs],
    }
    return pd.DataFrame({**names, "value": mean, "low": low, "high": high, "n": count})


def sanity_table(
    model: ModelBundle,
    images: torch.Tensor,
    maps: Sequence[AttributionMap],
    against: str | ModelBundle,
    *,
    steps: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare maps of the trained model with maps that should differ from them.

    maps: of this model and these images (N, 3, h, w), one for each method, made without options.
    against:

    - "weights": maps of the model while its weights are randomised from the head down, in `steps`
      steps (see `randomise`); step 0 is the trained model.
    - another model of the same kind: maps of a model trained on shuffled labels (data set
      shuffled:NAME). Models fine-tuned from the same weights share what was learned elsewhere, and
      their maps may be similar for that reason.
    - "classes": maps for the most likely other class. With two classes one logit often falls
      as the other rises: signed maps then change their sign (similarity near -1), and maps of
      absolute gradients stay as they are.

    Columns: test, method, step, layer (what was randomised last), sample_id, similarity, absolute,
    other_image (see `compare_maps`)."""
    maps = check_maps(maps)
    target = maps[0].target
    changes = []  # step, what was changed last, the model, the target
    if isinstance(against, ModelBundle):
        if tuple(model.classes) != tuple(against.classes) or model.transform != against.transform:
            raise UserError(
                f"{model.name} and {against.name} differ in their classes or their transform;"
                " compare two models of one kind"
            )
        test, changes = LABELS, [(1, "", against, target)]
    elif against == CLASSES:
        test, changes = CLASSES, [(1, "", model, _find_second(model, images, target))]
    elif against == WEIGHTS:
        changed = enumerate(randomise(model, images, steps=steps, seed=seed), 1)
        test, changes = WEIGHTS, ((step, layer, other, target) for step, (layer, other) in changed)
    else:
        raise UserError(f"against must be 'weights', 'classes' or a model, not {against!r}")
    parts = []
    if test == WEIGHTS:
        parts = [compare_maps(model, found, found).assign(step=0, layer="") for found in maps]
    for step, layer, other, wanted in changes:
        for found in maps:
            again = explain(other, images, found.method, wanted, found.sample_ids)
            parts.append(compare_maps(model, found, again).assign(step=step, layer=layer))
    columns = ["test", "method", "step", "layer", "sample_id"]
    columns += ["similarity", "absolute", "other_image"]
    return pd.concat(parts, ignore_index=True).assign(test=test)[columns]


def sanity_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Whether the maps of each method change, from a `sanity_table`: method, similarity, low, high,
    other_image, verdict.

    The last step counts, and the larger of the means of `similarity` and `absolute`, since a map
    that only changes its sign still shows the same places; for "classes" it is `similarity`.
    similarity, low, high: mean and 95% t interval over images. verdict, of other weights or labels:
    "changes with the model" if on more than half of such images the similarity is below 0.5, "does
    not change: explains nothing of the model" if it is above, else "not shown", or "too few images
    to show anything". Of classes: "the same for every class" if no map differs, "differs" if the
    similarity is below 0.5 on more than half of such images, else "hardly differs". To pass is
    necessary and not sufficient: a random map passes.

    The verdicts are exact one-sided sign tests at 2.5% with Holm's correction for the number of
    methods. They hold for any distribution: where the median is 0.5, some verdict of nine methods
    was wrong in at most 2.6% of 2,000 tables of 9 images with normal, uniform and exponential
    similarities, and in less than 1% of 12 and 24 images. Nine methods need 9 images: n images
    reach no p below 0.5^n."""
    last = table[table["step"] == table["step"].max()]
    if not len(last) or last["step"].iloc[0] == 0:
        raise UserError("the table holds no step after the trained model (step 0)")
    classes = last["test"].iloc[0] == CLASSES
    groups = last.groupby("method", sort=False)
    values = []
    for _, part in groups:
        measures = [part["similarity"], *([] if classes else [part["absolute"]])]
        values.append(max(measures, key=lambda measure: measure.mean()).to_numpy())
    values = np.stack(values, axis=1)  # (N, methods)
    below = correct_holm(sign_test_p(THRESHOLD - values)) <= LEVEL
    above = correct_holm(sign_test_p(values - THRESHOLD)) <= LEVEL
    few = np.full(len(groups), 0.5 ** len(values) * len(groups) > LEVEL)
    if classes:
        same = (values >= SAME).all(axis=0)
        verdict = np.select([same, below, few], [SAME_CLASS, "differs", TOO_FEW], "hardly differs")
    else:
        verdict = np.select([below, above, few], [CHANGES, UNCHANGED, TOO_FEW], "not shown")
    mean, low, high, _ = mean_interval(values, limits=(-1, 1))
    return pd.DataFrame(
        {
            "method": list(groups.groups),
            "similarity": mean,
            "low": low,
            "high": high,
            "other_image": groups["other_image"].mean().to_numpy(),
            "verdict": verdict,
        }
    )


def describe_classes(verdicts: pd.DataFrame, readable: Callable[[str], str] = str) -> str:
    """Which methods show the same map for every class, from the `sanity_verdicts` of classes."""
    same = verdicts.loc[verdicts["verdict"] == SAME_CLASS, "method"]
    if not len(same):
        return "No method gives the same map for every class."
    return (
        f"The same for every class: {', '.join(map(readable, same))}. Such a map may show where the"
        " model looked; it cannot be the reason for a class."
    )


def sign_test_p(differences: np.ndarray) -> np.ndarray:
    """One-sided p-values of the exact sign test along the first axis of (N, ...): positive on more
    than half of the images?

    Zeros and NaN are left out; 1 where nothing is left, NaN where all are NaN. As
    scipy.stats.binomtest for each column."""
    positive, count = (differences > 0).sum(axis=0), (differences != 0).sum(axis=0)
    missing = np.isnan(differences)
    count = count - missing.sum(axis=0)
    return np.where(missing.all(axis=0), np.nan, binom.sf(positive - 1, count, 0.5))


def randomise(
    model: ModelBundle, images: torch.Tensor, *, steps: int = 5, seed: int = 0
) -> Iterator[tuple[str, ModelBundle]]:
    """Copies of the model with ever more of its weights randomised, from the head down: (what was
    randomised last, the model).

    First the head alone, then the stages before it (`vitlab.models.split_stages`; the children of a
    module that cannot be split) in `steps` - 1 groups of about equal size. Each layer draws its
    weights as when it was made (`reset_parameters`); parameters of a module without that
    (positions, tokens, scales) have their values permuted, which keeps their distribution. Batch
    statistics of such stages are then measured on `images`, since signals would fade or explode
    with those of other weights. The draws depend on `seed` and the names of the stages alone. Each
    model is the same module, changed further when the next one is asked for."""
    module = copy.deepcopy(model.module)
    device = next(module.parameters()).device
    try:
        parts = split_stages(module)
    except UserError:
        parts = list(module.named_children())
    parts = [(name, part) for name, part in reversed(parts) if list(part.parameters())]
    groups = [parts]
    if steps > 1:
        split = np.array_split(np.arange(1, len(parts)), steps - 1)
        groups = [parts[:1], *([parts[i] for i in group] for group in split if len(group))]
    changed: list[nn.Module] = []
    for group in groups:
        with torch.random.fork_rng(devices=[]):
            for name, part in group:
                torch.random.default_generator.manual_seed(derive_seed(seed, "randomise", name))
                _draw_weights(part.cpu())
        module.to(device)
        changed += [part for _, part in group]
        _measure_statistics(module, changed, images)
        first, last = group[0][0], group[-1][0]
        yield first if len(group) == 1 else f"{first} to {last}", replace(model, module=module)


@torch.no_grad()
def _draw_weights(part: nn.Module) -> None:
    for layer in part.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
            continue
        for parameter in layer.parameters(recurse=False):
            order = torch.randperm(parameter.numel())
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


@torch.no_grad()
def _measure_statistics(
    module: nn.Module, changed: Sequence[nn.Module], images: torch.Tensor
) -> None:
    """Batch norms within the changed parts take mean and variance from the images, all else in
    evaluation mode.
    """
    layers = [layer for part in changed for layer in part.modules()]
    norms = [one for one in layers if isinstance(one, _BatchNorm) and one.track_running_stats]
    if not norms:
        return
    device, momenta = next(module.parameters()).device, [norm.momentum for norm in norms]
    with inspecting(module), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the plain mean over batches
        for batch in images.split(BATCH):
            module(batch.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _find_second(model, images, target) -> list[str]:
    """The most likely class of each image other than its target."""
    device = next(model.module.parameters()).device
    with inspecting(model.module), torch.no_grad():
        logits = torch.cat([model.module(batch.to(device)).cpu() for batch in images.split(BATCH)])
    logits[range(len(logits)), [model.classes.index(name) for name in target]] = -torch.inf
    return [model.classes[index] for index in logits.argmax(dim=1)]

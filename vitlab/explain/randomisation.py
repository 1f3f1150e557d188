"""Does a map depend on what the model has learnt? Sanity checks that need no truth: other weights,
other labels, another class.

Adebayo et al. 2018, Sanity Checks for Saliency Maps, arXiv 1810.03292. Maps are compared by
Spearman's rank correlation over the cells of the model's grid: `similarity` is that of the maps as
they are, `absolute` that of their absolute values, which stays high where only the sign has
changed. A blank map is like another blank one (1) and like nothing else (0)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata, ttest_1samp
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitlab.errors import UserError
from vitlab.evaluation.few_images import correct_holm, mean_interval
from vitlab.explain.faithfulness import correlate
from vitlab.explain.grid import choose_grid, number_cells, pool_cells
from vitlab.explain.inspection import inspecting
from vitlab.explain.methods import explain
from vitlab.models import split_stages
from vitlab.schema import AttributionMap, ModelBundle
from vitlab.seeds import derive_seed

NO_OPTIONS: Mapping[str, Mapping] = MappingProxyType({})
UNCHANGED = "does not change: explains nothing of the model"
CHANGES = "changes with the model"
SAME_CLASS = "the same for every class"
# rank correlation at which the one map's ranks explain a quarter of the variance of the other's
THRESHOLD = 0.5
SAME = 1 - 1e-4  # from here on two maps are the same but for rounding
LEVEL = 0.025  # of each verdict, one-sided


def randomisation_table(
    model: ModelBundle,
    images: torch.Tensor,
    methods: Sequence[str],
    *,
    steps: int = 5,
    seed: int = 0,
    sample_ids: Sequence[str] | None = None,
    options: Mapping[str, Mapping] = NO_OPTIONS,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Maps of the model while its weights are drawn anew from the head down, held against those of
    the trained one (cascading).

    Step 0 is the trained model, the others are those of `randomise`; after the last nothing is left
    that was learnt. All maps are for the class that the trained model predicts. options: of
    methods, by name. The model is left as it was. Columns: method, step, layer (what was drawn anew
    last), sample_id, similarity, absolute, and other_image: the mean absolute similarity of the
    trained model's map with its maps of the other images, which all maps of a method have in common
    anyway."""
    settings = {"sample_ids": sample_ids, "batch_size": batch_size}
    trained = {
        name: explain(model, images, name, **settings, **options.get(name, {})) for name in methods
    }
    cells = _number_cells(model, images)
    parts = [compare_maps(maps, maps, cells, step=0, layer="") for maps in trained.values()]
    for step, (layer, changed) in enumerate(randomise(model, images, steps=steps, seed=seed), 1):
        for name, maps in trained.items():
            found = explain(changed, images, name, maps.target, **settings, **options.get(name, {}))
            parts.append(compare_maps(maps, found, cells, step=step, layer=layer))
    return pd.concat(parts, ignore_index=True)


def compare_models_table(
    model: ModelBundle,
    other: ModelBundle,
    images: torch.Tensor,
    methods: Sequence[str],
    *,
    sample_ids: Sequence[str] | None = None,
    options: Mapping[str, Mapping] = NO_OPTIONS,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Maps of two models of one kind for the same images and classes, those that the first
    predicts: learnt from other labels.

    other: a model trained on shuffled labels (data set shuffled:NAME). Columns as in
    `randomisation_table`, with step 1 only. Models fine-tuned from the same weights share what was
    learnt elsewhere (a frozen stem, say), and their maps may be alike for that reason: a high
    similarity then says that a map shows little of what these labels taught."""
    if tuple(model.classes) != tuple(other.classes) or model.transform != other.transform:
        raise UserError(
            f"{model.name} and {other.name} differ in classes or in what images they take; compare"
            " two of one kind"
        )
    settings = {"sample_ids": sample_ids, "batch_size": batch_size}
    cells, parts = _number_cells(model, images), []
    for name in methods:
        maps = explain(model, images, name, **settings, **options.get(name, {}))
        found = explain(other, images, name, maps.target, **settings, **options.get(name, {}))
        parts.append(compare_maps(maps, found, cells, step=1, layer="labels"))
    return pd.concat(parts, ignore_index=True)


def class_sensitivity_table(
    model: ModelBundle,
    images: torch.Tensor,
    methods: Sequence[str],
    *,
    sample_ids: Sequence[str] | None = None,
    options: Mapping[str, Mapping] = NO_OPTIONS,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Maps for the class that the model predicts, held against those for the class that it holds
    second most likely.

    Columns: method, sample_id, target, other, similarity, absolute. 1 throughout: the method shows
    the same for every class. With two classes the one logit often falls as the other rises; signed
    maps then turn round (similarity near -1), and maps of absolute gradients stay: `absolute` near
    1 is no fault there."""
    device = next(model.module.parameters()).device
    with inspecting(model.module), torch.no_grad():
        logits = torch.cat(
            [model.module(batch.to(device)).cpu() for batch in images.split(batch_size)]
        )
    first, second = (
        [model.classes[index] for index in column] for column in logits.topk(2).indices.T.tolist()
    )
    settings = {"sample_ids": sample_ids, "batch_size": batch_size}
    cells, parts = _number_cells(model, images), []
    for name in methods:
        maps, others = (
            explain(model, images, name, target, **settings, **options.get(name, {}))
            for target in (first, second)
        )
        table = compare_maps(maps, others, cells).assign(target=first, other=second)
        parts.append(table[["method", "sample_id", "target", "other", "similarity", "absolute"]])
    return pd.concat(parts, ignore_index=True)


def sanity_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Per method, whether its maps change with the model: from a table of randomisation_table or
    compare_models_table.

    What counts is the last step, and the larger of the means of `similarity` and `absolute`: a map
    that only changes its sign still shows the same places. Columns: method, similarity (that mean),
    low, high (95 % t interval over images), other_image (what maps of different images have in
    common), verdict: "changes with the model" where the mean is below 0.5, at which a quarter of
    the variance of ranks would be shared; "does not change: explains nothing of the model" where it
    is above; both by one-sided t-tests at 2.5 %, after Holm's correction for the number of methods;
    otherwise "not shown". To pass is necessary and not sufficient: a random map passes.

    The t-test needs similarities that are roughly symmetric. Of 1,000 tables of nine methods
    exactly at 0.5 (target 2.5 %), some verdict "changes" was wrong in 2.4 % with 6 images and 1.0 %
    with 12 for normal similarities, in 5.0 % and 4.2 % for uniform ones, and in 28.1 % and 29.3 %
    for skewed ones (exponential); those with the opposite skew are as often called unchanged. More
    images do not mend that. Look at the interval: one that ends near 0.5 shows nothing."""
    last = table[table["step"] == table["step"].max()]
    if not len(last) or last["step"].iloc[0] == 0:
        raise UserError(
            "the table holds no step after the trained model (step 0); randomisation_table(...,"
            " steps=5) makes one"
        )
    groups = last.groupby("method", sort=False)
    chosen = {
        name: (
            part[
                max(("similarity", "absolute"), key=lambda measure: part[measure].mean())
            ].to_numpy()
        )
        for name, part in groups
    }
    table, below, above = _compare_with_threshold(chosen)
    verdict = np.select([below, above], [CHANGES, UNCHANGED], "not shown")
    return table.assign(other_image=groups["other_image"].mean().to_numpy(), verdict=verdict)


def class_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Per method of a class_sensitivity_table: the mean similarity with its 95 % interval over
    images, and a verdict.

    Columns: method, similarity, low, high, verdict: "the same for every class" where no map
    differs, "differs" where the mean is below 0.5 by the test of `sanity_verdicts`, else "hardly
    differs"."""
    values = {
        name: part.to_numpy() for name, part in table.groupby("method", sort=False)["similarity"]
    }
    found, below, _ = _compare_with_threshold(values)
    same = [(part >= SAME).all() for part in values.values()]
    return found.assign(verdict=np.select([same, below], [SAME_CLASS, "differs"], "hardly differs"))


def randomise(
    model: ModelBundle, images: torch.Tensor, *, steps: int = 5, seed: int = 0
) -> Iterator[tuple[str, ModelBundle]]:
    """Copies of the model with ever more of its weights drawn anew, from the head down: (what was
    drawn last, the model).

    First the head alone, then the stages before it (`vitlab.models.split_stages`; the children of a
    module that cannot be cut) in `steps` - 1 parts of about equally many stages; after the last
    step none is left. Each layer draws its weights as it did when it was made (`reset_parameters`);
    parameters of a module without that (positions, tokens, scales) have their values permuted,
    which keeps their distribution. Batch statistics of such parts are then measured on `images`,
    since signals would fade or explode with those of other weights. What is drawn depends on `seed`
    and on the names of the stages alone. Each model is the same module, changed further when the
    next one is asked for."""
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps must be a whole number of at least 1, not {steps!r}")
    module = copy.deepcopy(model.module)
    device = next(module.parameters()).device
    try:
        chain = split_stages(module)
    except ValueError:
        chain = list(module.named_children())
    chain = [
        (name, stage) for name, stage in reversed(chain) if any(True for _ in stage.parameters())
    ]
    groups = [
        chain[:1],
        *(
            [chain[i] for i in part]
            for part in np.array_split(np.arange(1, len(chain)), max(steps - 1, 1))
        ),
    ]
    groups = [group for group in groups if group] if steps > 1 else [chain]
    changed: list[nn.Module] = []
    for group in groups:
        with torch.random.fork_rng(devices=[]):
            for name, stage in group:
                torch.random.default_generator.manual_seed(derive_seed(seed, "randomise", name))
                _draw_anew(stage.cpu())
        module.to(device)
        changed += [stage for _, stage in group]
        _measure_statistics(module, changed, images)
        names = [name for name, _ in group]
        yield (
            names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}",
            replace(model, module=module),
        )


@torch.no_grad()
def _draw_anew(stage: nn.Module) -> None:
    for part in stage.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
            continue
        for parameter in part.parameters(recurse=False):
            parameter.copy_(
                parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter)
            )


@torch.no_grad()
def _measure_statistics(
    module: nn.Module, changed: Sequence[nn.Module], images: torch.Tensor, batch_size: int = 32
) -> None:
    """Let the batch norms within the changed parts take mean and variance from the images, all else
    in evaluation mode.
    """
    norms = [
        part
        for stage in changed
        for part in stage.modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats
    ]
    if not norms:
        return
    device, momenta = next(module.parameters()).device, [norm.momentum for norm in norms]
    with inspecting(module), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the plain mean over batches
        for batch in images.split(batch_size):
            module(batch.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _number_cells(model: ModelBundle, images: torch.Tensor) -> torch.Tensor:
    size = tuple(images.shape[-2:])
    return number_cells(choose_grid(model.anatomy, size), size)


def compare_maps(
    maps: AttributionMap, others: AttributionMap, cells: torch.Tensor, **columns
) -> pd.DataFrame:
    """Rank correlations between each map and the other one of the same image, (N, h, w) each, over
    the cells.
    """
    plain = [_rank_cells(found.values, cells) for found in (maps, others)]
    absolute = [_rank_cells(np.abs(found.values), cells) for found in (maps, others)]
    # (N, N), of the first maps with each other
    alike = _correlate(absolute[0][:, None], absolute[0][None])
    count = len(alike)
    return pd.DataFrame(
        {
            "method": maps.method,
            **columns,
            "sample_id": list(maps.sample_ids),
            "similarity": _correlate(*plain),
            "absolute": _correlate(*absolute),
            "other_image": (
                (alike.sum(axis=1) - np.diag(alike)) / (count - 1) if count > 1 else np.nan
            ),
        }
    )


def _rank_cells(values: np.ndarray, cells: torch.Tensor) -> np.ndarray:
    """The rank of each cell of each map by its mean: (N, h, w) to (N, cells)."""
    means = pool_cells(torch.from_numpy(values).double(), cells).numpy()
    # sums in another order are no difference
    means = np.round(means, 12 - int(np.ceil(np.log10(np.abs(means).max() or 1))))
    return rankdata(means, axis=-1)


def _correlate(ranks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Correlation of ranks along the last axis; where one map is blank 0, where both are 1."""
    both_blank = (np.ptp(ranks, axis=-1) == 0) & (np.ptp(others, axis=-1) == 0)
    return np.where(both_blank, 1.0, np.nan_to_num(correlate(ranks, others)))


def _compare_with_threshold(
    values: dict[str, np.ndarray],
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Table of method, similarity, low, high; whether each mean is shown to be below the threshold,
    and above it (methods,).
    """
    columns = [mean_interval(part[:, None], limits=(-1, 1)) for part in values.values()]
    mean, low, high, _ = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    below, above = (
        correct_holm(np.array([_test_mean(part, side) for part in values.values()])) <= LEVEL
        for side in ("less", "greater")
    )
    return (
        pd.DataFrame({"method": list(values), "similarity": mean, "low": low, "high": high}),
        below,
        above,
    )


def _test_mean(values: np.ndarray, side: str) -> float:
    """P-value of a t-test of the mean against the threshold; 0 or 1 where all values are the same,
    NaN for a single one.
    """
    if len(values) < 2:
        return np.nan
    if np.ptp(values) < 1e-9:
        return float(not (values[0] < THRESHOLD if side == "less" else values[0] > THRESHOLD))
    return float(ttest_1samp(values, THRESHOLD, alternative=side).pvalue)

"""What each attention head does: how far and how widely it looks, what the prediction loses without
it, and how fine-tuning changed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.evaluation.inference import mean_interval, sign_flip_p
from vitlab.explain.attention import (
    Layout,
    intercept_attention,
    list_attention,
    list_layouts,
    map_received,
)
from vitlab.explain.inspection import differentiate_at, inspecting
from vitlab.explain.methods import check_images, fit_anatomy
from vitlab.explain.rollout import share_read_tokens
from vitlab.explain.similarity import correlate_ranks
from vitlab.schema import Anatomy, ModelBundle


def attention_table(
    model: ModelBundle, images: torch.Tensor, *, batch_size: int = 8
) -> pd.DataFrame:
    """How far (pixels) and how widely (nats) each head looks, averaged over images and patches.

    Columns: layer, head, distance, distance_low, distance_high, entropy, entropy_low, entropy_high;
    the bounds are 95% t intervals over the images (NaN for a single one). Attention from and to
    prefix tokens is left out, the rest divided by its sum. Only one layer of a batch is in memory
    at a time. Source: Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7, and Raghu et al. 2021,
    arXiv 2108.08810."""
    found: dict[int, list[np.ndarray]] = {}
    for batch in _split(images, batch_size):
        for layer, values in _summarise(model, batch, _measure(batch)).items():
            found.setdefault(layer, []).append(values.cpu().double().numpy())  # (B, H, 2)
    rows = []
    for layer, parts in found.items():
        means, low, high, _ = mean_interval(np.concatenate(parts))  # each (H, 2)
        for head, mean in enumerate(means):
            row = {"layer": layer, "head": head}
            for i, name in enumerate(("distance", "entropy")):
                row |= {name: mean[i], f"{name}_low": low[head, i], f"{name}_high": high[head, i]}
            rows.append(row)
    return pd.DataFrame(rows)


def head_ablation_table(
    model: ModelBundle, images: torch.Tensor, *, batch_size: int = 8
) -> pd.DataFrame:
    """How the prediction changes when the output of one head is set to zero: a row for each head.

    Columns: layer, head, change (of the probability of the class that the whole model predicts,
    mean over images; below 0 the head supports the prediction), low, high (95% t interval over
    images), p_fdr: p-value of an exact sign-flip test that the head changes nothing, corrected for
    the number of heads (Benjamini and Hochberg 1995). Of the heads with p_fdr below 0.05, about 5%
    at most are false discoveries. Costs a forward pass of all images for each head. Source: Michel
    et al. 2019, arXiv 1905.10650."""
    anatomy = _fit_anatomy(model, images)
    found: dict[tuple[int, int], list[np.ndarray]] = {}  # changes of each head, batch by batch
    with inspecting(model.module), torch.no_grad():
        for batch in _split(images, batch_size):
            counts, probs = _count_heads(model, anatomy, batch)
            predicted = probs.argmax(dim=1, keepdim=True)
            for layer, count in counts.items():
                for head in range(count):
                    with intercept_attention(model.module, anatomy, _drop_head(head), [layer]):
                        without = _predict(model, batch)
                    change = (without - probs).gather(1, predicted)[:, 0]
                    found.setdefault((layer, head), []).append(change.cpu().double().numpy())
    changes = np.stack([np.concatenate(parts) for parts in found.values()], axis=1)  # (N, heads)
    change, low, high, _ = mean_interval(changes)
    table = pd.DataFrame(list(found), columns=["layer", "head"])
    return table.assign(change=change, low=low, high=high, p_fdr=correct_heads(changes))


def correct_heads(changes: np.ndarray) -> np.ndarray:
    """Sign-flip p-values of changes (N, heads) over images, corrected for the number of heads; NaN
    for a single image.
    """
    if len(changes) < 2:
        return np.full(changes.shape[1:], np.nan)
    return false_discovery_control(sign_flip_p(changes))


def attention_change_table(
    before: ModelBundle, after: ModelBundle, images: torch.Tensor, *, batch_size: int = 8
) -> pd.DataFrame:
    """How each head differs between two sets of weights of the same model, such as before and after
    fine-tuning.

    Columns: layer, head, measure, before, after, change, low, high, p_fdr; change = after - before,
    with its 95% t interval over images and its p-value, corrected for the heads of a measure as in
    `head_ablation_table`. measure: distance (pixels) and entropy (nats) as in `attention_table`;
    similarity, the rank correlation between both models' attention from the tokens that the
    classifier reads to the patches (before: with itself, 1)."""
    anatomy = _fit_anatomy(after, images)
    if anatomy != _fit_anatomy(before, images):
        raise UserError(
            f"{before.name} and {after.name} are not built alike, so their heads cannot be compared"
            " one by one"
        )
    found: dict[int, list[np.ndarray]] = {}
    for batch in _split(images, batch_size):
        share, measure = _share_read_tokens(after, anatomy, batch), _measure(batch)

        def summarise(matrix, layout, share=share, measure=measure):
            return measure(matrix, layout), map_received(matrix, layout, share).flatten(2)

        ours, theirs = (_summarise(model, batch, summarise) for model in (before, after))
        for layer in ours:
            values = _pair_measures(before, after, layer, ours[layer], theirs[layer])
            found.setdefault(layer, []).append(values)
    names = [(layer, head) for layer, parts in found.items() for head in range(parts[0].shape[1])]
    # (N, heads, 3, 2)
    values = np.concatenate([np.concatenate(parts) for parts in found.values()], axis=1)
    tables = []
    for i, measure in enumerate(("distance", "entropy", "similarity")):
        changes = values[:, :, i, 1] - values[:, :, i, 0]  # (N, heads)
        change, low, high, _ = mean_interval(changes)
        table = pd.DataFrame(names, columns=["layer", "head"]).assign(
            measure=measure,
            before=values[:, :, i, 0].mean(axis=0),
            after=values[:, :, i, 1].mean(axis=0),
            change=change,
            low=low,
            high=high,
            p_fdr=correct_heads(changes),
        )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def measure_distance_and_entropy(
    attention: torch.Tensor, layout: Layout, size: tuple[int, int]
) -> torch.Tensor:
    """How far and how widely patches look, (B * windows, H, T, T) to (B, H, 2), averaged over the
    patches of an image.

    Attention to prefix tokens and padding is left out and the rest divided by its sum. The distance
    is between the patches' centres, in pixels of an image of this size (height, width); the entropy
    is in nats, log(N) when N patches get the same attention."""
    attention = layout.split(attention)  # (B, windows, H, T, T)
    places = layout.places.to(attention.device)
    known = places >= 0  # (windows, T)
    weights = attention * known[:, None, None]
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    rows, columns = layout.grid
    centres = torch.stack(
        [places // columns * (size[0] / rows), places % columns * (size[1] / columns)], dim=-1
    )  # (windows, T, 2)
    distance = (weights * torch.cdist(centres, centres)[:, None]).sum(dim=-1)  # (B, windows, H, T)
    entropy = torch.special.entr(weights).sum(dim=-1)
    found = torch.stack([distance, entropy], dim=-1)  # (B, windows, H, T, 2)
    return (found * known[:, None, :, None]).sum(dim=(1, 3)) / known.sum()


def _pair_measures(before, after, layer, ours, theirs) -> np.ndarray:
    """Distance, entropy and similarity of both models: (B, H, 3, 2)."""
    (measured, looked), (measured_after, looked_after) = ours, theirs
    if looked.shape != looked_after.shape:
        raise UserError(
            f"layer {layer} has {looked.shape[1]} heads in {before.name} and"
            f" {looked_after.shape[1]} in {after.name}: one of them was pruned, so their heads"
            " cannot be compared one by one"
        )
    looks = looked.cpu().double().numpy(), looked_after.cpu().double().numpy()
    similarity = np.nan_to_num(correlate_ranks(*looks))  # (B, H); 0 where one side is constant
    values = np.ones((*similarity.shape, 3, 2))
    values[:, :, :2, 0] = measured.cpu().numpy()
    values[:, :, :2, 1] = measured_after.cpu().numpy()
    values[:, :, 2, 1] = similarity
    return values


def _summarise(
    model, images, summarise: Callable[[torch.Tensor, Layout], object]
) -> dict[int, object]:
    """summarise(matrix, layout) of each layer, in order; one matrix in memory at a time."""
    anatomy = _fit_anatomy(model, images)
    list_attention(anatomy)
    layouts, found = list_layouts(anatomy), {}

    def keep(layer, call):
        found[layer] = summarise(call.form(), layouts[layer])
        return call.output

    with (
        inspecting(model.module),
        torch.no_grad(),
        intercept_attention(model.module, anatomy, keep),
    ):
        model.module(_move(model, images))
    return dict(sorted(found.items()))


def _measure(images) -> Callable[[torch.Tensor, Layout], torch.Tensor]:
    return lambda matrix, layout: measure_distance_and_entropy(matrix, layout, images.shape[-2:])


def _share_read_tokens(model, anatomy: Anatomy, images) -> torch.Tensor | None:
    """(B, T), or None (all patches) for windows. Any one logit shows which tokens are read."""
    if not anatomy.attention:
        return None
    with inspecting(model.module):
        images = _move(model, images).clone()
        first = torch.zeros(len(images), dtype=torch.long)
        targets = F.one_hot(first, len(model.classes)).to(images)
        _, gradient = differentiate_at(anatomy.blocks[-1], model.module, images, targets)
        return share_read_tokens(gradient)


def _count_heads(model, anatomy, images) -> tuple[dict[int, int], torch.Tensor]:
    """Heads of each layer, and the probabilities (B, num_classes) of the whole model."""
    counts: dict[int, int] = {}

    def count(layer, call):
        counts[layer] = call.output.shape[-3]
        return call.output

    with intercept_attention(model.module, anatomy, count):
        probs = _predict(model, images)
    return dict(sorted(counts.items())), probs


def _drop_head(head: int) -> Callable:
    """For intercept_attention: the output of one head becomes zero."""

    def handle(layer, call):
        output = call.output.clone()  # (B * windows, H, T, d)
        output[:, head] = 0
        return output

    return handle


def _predict(model, images) -> torch.Tensor:
    return model.module(_move(model, images)).float().softmax(dim=1)


def _move(model, images) -> torch.Tensor:
    weight = next(model.module.parameters())
    return images.to(weight.device, weight.dtype)


def _split(images, batch_size) -> Iterator[torch.Tensor]:
    check_images(images, None, batch_size)
    return iter(images.split(batch_size))


def _fit_anatomy(model, images) -> Anatomy:
    return fit_anatomy(model, tuple(images.shape[-2:])).anatomy

"""What each attention head does: how far and how widely it attends, what the prediction loses
without it, and how fine-tuning changed it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control

from vitlab.errors import UserError
from vitlab.evaluation.inference import mean_interval, sign_flip_p
from vitlab.explain.attention import (
    Layout,
    intercept_attention,
    list_attention,
    list_layouts,
    map_received,
    share_read_tokens,
)
from vitlab.explain.inspection import differentiate_at, inspecting
from vitlab.explain.methods import check_images, fit_anatomy
from vitlab.explain.similarity import correlate_ranks
from vitlab.schema import Anatomy, ModelBundle

BATCH = 8  # images at once
MEASURES = ("distance", "entropy")


def attention_table(model: ModelBundle, images: torch.Tensor) -> pd.DataFrame:
    """How far (distance, pixels) and how widely (entropy, nats) each head attends, averaged over
    images and patches.

    Columns: layer, head, distance, distance_low, distance_high, entropy, entropy_low, entropy_high;
    low and high are 95% t intervals over the images (NaN for a single one). Attention from and to
    prefix tokens is left out, the rest divided by its sum. Source: Dosovitskiy et al. 2021, arXiv
    2010.11929, figure 7, and Raghu et al. 2021, arXiv 2108.08810."""
    measured, _ = _measure_heads(model, images)
    table = _list_heads(measured)
    mean, low, high, _ = mean_interval(np.concatenate(measured, axis=1))  # each (heads, 2)
    for i, name in enumerate(MEASURES):
        table[name], table[f"{name}_low"], table[f"{name}_high"] = mean[:, i], low[:, i], high[:, i]
    return table


def attention_change_table(
    before: ModelBundle, after: ModelBundle, images: torch.Tensor
) -> pd.DataFrame:
    """How each head differs between two sets of weights of the same model, such as before and after
    fine-tuning.

    Columns: layer, head, measure, before, after, change, low, high, p_fdr; change = after - before,
    with its 95% t interval over images and its p-value, corrected for the heads of a measure as in
    `head_ablation_table`. measure: distance and entropy as in `attention_table`; similarity, the
    rank correlation between both models' attention from the tokens that the classifier reads to the
    patches (before: with itself, 1)."""
    anatomy = _fit_anatomy(after, images)
    if anatomy != _fit_anatomy(before, images):
        raise UserError(
            f"{before.name} and {after.name} differ in their structure, so their heads cannot be"
            " compared one by one"
        )
    share = _find_read_tokens(after, anatomy, images) if anatomy.attention else None
    (measured, received), (measured_after, received_after) = (
        _measure_heads(model, images, share) for model in (before, after)
    )
    similarities = []
    for layer, pair in enumerate(zip(received, received_after, strict=True)):
        if pair[0].shape != pair[1].shape:
            raise UserError(
                f"layer {layer} has {pair[0].shape[1]} heads in {before.name} and"
                f" {pair[1].shape[1]} in {after.name}: one of them was pruned, so their heads"
                " cannot be compared one by one"
            )
        similarities.append(np.nan_to_num(correlate_ranks(*pair)))  # 0 where one is constant
    old, new = np.concatenate(measured, axis=1), np.concatenate(measured_after, axis=1)
    similarity = np.concatenate(similarities, axis=1)
    values = {
        "distance": (old[..., 0], new[..., 0]),
        "entropy": (old[..., 1], new[..., 1]),
        "similarity": (np.ones_like(similarity), similarity),
    }
    tables = []
    for measure, (first, second) in values.items():  # each (N, heads)
        change, low, high, _ = mean_interval(second - first)
        table = _list_heads(measured).assign(measure=measure, before=first.mean(axis=0))
        table = table.assign(after=second.mean(axis=0), change=change, low=low, high=high)
        tables.append(table.assign(p_fdr=correct_heads(second - first)))
    return pd.concat(tables, ignore_index=True)


def head_ablation_table(model: ModelBundle, images: torch.Tensor) -> pd.DataFrame:
    """How the prediction changes when the output of one head is set to zero: one row for each head.

    Columns: layer, head, change (of the probability of the class that the whole model predicts,
    mean over images; below 0 the head supports the prediction), low, high (95% t interval over
    images), p_fdr: p-value of an exact sign-flip test that the head changes nothing, corrected for
    the number of heads (Benjamini and Hochberg 1995). Of the heads with p_fdr below 0.05, about 5%
    at most are false discoveries. Costs a forward pass of all images for each head. Source: Michel
    et al. 2019, arXiv 1905.10650."""
    check_images(images)
    anatomy = _fit_anatomy(model, images)
    found: dict[tuple[int, int], list[np.ndarray]] = {}  # changes of each head, batch by batch
    with inspecting(model.module), torch.no_grad():
        for batch in _move(model, images).split(BATCH):
            counts: dict[int, int] = {}

            def count(layer, call, counts=counts):
                counts[layer] = call.output.shape[-3]
                return call.output

            with intercept_attention(model.module, anatomy, count):
                probs = model.module(batch).float().softmax(dim=1)
            predicted = probs.argmax(dim=1, keepdim=True)
            for layer in sorted(counts):
                for head in range(counts[layer]):
                    with intercept_attention(model.module, anatomy, _drop_head(head), [layer]):
                        without = model.module(batch).float().softmax(dim=1)
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


def measure_distance_and_entropy(
    attention: torch.Tensor, layout: Layout, size: tuple[int, int]
) -> torch.Tensor:
    """How far and how widely patches attend, (B * windows, H, T, T) to (B, H, 2), averaged over the
    patches of an image.

    Attention to prefix tokens and padding is left out and the rest divided by its sum. The distance
    is between the patches' centres, in pixels of an image of this size (height, width); the entropy
    is in nats, log(N) for uniform attention to N patches."""
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


def _measure_heads(
    model: ModelBundle, images: torch.Tensor, share: torch.Tensor | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each layer, distance and entropy (N, H, 2), and the attention that patches receive from
    the tokens of `share` (N, T), (N, H, patches). One matrix is in memory at a time.
    """
    check_images(images)
    anatomy, size = _fit_anatomy(model, images), tuple(images.shape[-2:])
    layouts = list_layouts(anatomy)
    measured, received = ([[] for _ in list_attention(anatomy)] for _ in range(2))
    with inspecting(model.module), torch.no_grad():
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)

            def keep(layer, call, part=part):
                matrix, layout = call.weights(), layouts[layer]
                found = measure_distance_and_entropy(matrix, layout, size)
                measured[layer].append(found.cpu().double().numpy())
                found = map_received(matrix, layout, None if share is None else share[part])
                received[layer].append(found.flatten(2).cpu().double().numpy())
                return call.output

            with intercept_attention(model.module, anatomy, keep):
                model.module(_move(model, images[part]))
    return [np.concatenate(parts) for parts in measured], [
        np.concatenate(parts) for parts in received
    ]


def _list_heads(measured: list[np.ndarray]) -> pd.DataFrame:
    """The columns layer and head, for what was measured on each layer, (N, H, ...)."""
    names = [(layer, head) for layer, part in enumerate(measured) for head in range(part.shape[1])]
    return pd.DataFrame(names, columns=["layer", "head"])


def _find_read_tokens(model: ModelBundle, anatomy: Anatomy, images: torch.Tensor) -> torch.Tensor:
    """The weights (N, T) of the tokens that the classifier reads; any logit shows them."""
    shares = []
    with inspecting(model.module):
        for batch in _move(model, images).split(BATCH):
            first = torch.zeros(len(batch), dtype=torch.long, device=batch.device)
            _, gradient = differentiate_at(anatomy.blocks[-1], model.module, batch.clone(), first)
            shares.append(share_read_tokens(gradient))
    return torch.cat(shares)


def _drop_head(head: int):
    """For intercept_attention: the output of one head becomes zero."""

    def handle(layer, call):
        output = call.output.clone()  # (B * windows, H, T, d)
        output[:, head] = 0
        return output

    return handle


def _move(model, images) -> torch.Tensor:
    weight = next(model.module.parameters())
    return images.to(weight.device, weight.dtype)


def _fit_anatomy(model, images) -> Anatomy:
    return fit_anatomy(model, tuple(images.shape[-2:])).anatomy

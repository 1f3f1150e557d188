"""What each attention head does: how far and widely it looks, what the decision loses without it,
what fine-tuning made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control, rankdata
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.evaluation.few_images import mean_interval, sign_flip_p
from vitlab.explain.faithfulness import correlate
from vitlab.explain.inspection import differentiate_at, inspecting
from vitlab.explain.interception import choose_indices, intercept_attention, list_attention
from vitlab.explain.layout import Layout, list_layouts, map_received, measure_distance_and_entropy
from vitlab.explain.methods import check_images, fit_anatomy
from vitlab.explain.rollout import share_read_tokens
from vitlab.registry import unknown
from vitlab.schema import Anatomy, ModelBundle

REPLACEMENTS = ("zero", "mean")


def attention_table(
    model: ModelBundle,
    images: torch.Tensor,
    layers: Sequence[int] | None = None,
    *,
    batch_size: int = 8,
) -> pd.DataFrame:
    """How far (pixels) and how widely (nats) each head looks: means over the images and all patches
    of each.

    Columns: layer, head, distance, distance_low, distance_high, entropy, entropy_low, entropy_high;
    the bounds are those of 95% t intervals over the images (NaN for a single one). Attention from
    and to prefix tokens is left out, the rest divided by its sum. Matrices are summed up as they
    are formed, so that no more than one layer of a batch is in memory. Source: distance as in
    Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7, and Raghu et al. 2021, arXiv 2108.08810.
    """
    found = {}
    for batch in _split(images, batch_size):
        for layer, values in _summarise(model, batch, _measure(batch), layers).items():
            found.setdefault(layer, []).append(values.cpu().double().numpy())  # (B, H, 2)
    rows = []
    for layer, parts in found.items():
        values = np.concatenate(parts)  # (N, H, 2)
        means, low, high, _ = mean_interval(values)
        for head, mean in enumerate(means):
            row = {"layer": layer, "head": head}
            for i, name in enumerate(("distance", "entropy")):
                row |= {name: mean[i], f"{name}_low": low[head, i], f"{name}_high": high[head, i]}
            rows.append(row)
    return pd.DataFrame(rows)


def head_ablation_table(
    model: ModelBundle,
    images: torch.Tensor,
    target: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    *,
    replacement: str = "zero",
    batch_size: int = 8,
) -> pd.DataFrame:
    """What happens when one head's output is taken away: a row for each head, at a forward pass of
    all images each.

    target: a class name for all images or one for each, such as their labels; by default the class
    predicted for each. replacement: zero, or mean, the head's own mean over the tokens of the
    image, which takes away where it looked and leaves its level. Columns: layer, head, change (of
    the target's probability, mean over images; below 0 the head spoke for the target), low, high
    (95% t interval over images), p_fdr, accuracy (share of images whose top class is the target,
    without the head), accuracy_change. p_fdr: p-value of an exact sign-flip test that the head
    changes nothing, corrected for the number of heads (Benjamini and Hochberg, 1995): of the heads
    with p_fdr below 0.05, about 5 % at most are false finds. Source: Michel et al. 2019, arXiv
    1905.10650."""
    if replacement not in REPLACEMENTS:
        raise UserError(unknown("replacement", replacement, list(REPLACEMENTS)))
    anatomy = _fit_anatomy(model, images)
    layers = choose_indices(layers, len(list_attention(anatomy)), "layer")
    named = None if target is None else _read_classes(model, target, len(images))
    # of each batch: change, and is the target on top, without and with
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    with inspecting(model.module), torch.no_grad():
        for number, batch in enumerate(_split(images, batch_size)):
            counts, probs = _count_heads(model, anatomy, batch, layers)
            if named is None:
                chosen = probs.argmax(dim=1)
            else:
                chosen = torch.tensor(
                    named[number * batch_size :][:batch_size], device=probs.device
                )
            for layer in layers:
                for head in range(counts[layer]):
                    with intercept_attention(
                        model.module, anatomy, _drop_head(head, replacement, len(batch)), [layer]
                    ):
                        without = _predict(model, batch)
                    change = (without - probs).gather(1, chosen[:, None])[:, 0]
                    hits = [(one.argmax(dim=1) == chosen).to(change) for one in (without, probs)]
                    found.setdefault((layer, head), []).append(
                        torch.stack([change, *hits], dim=1).cpu().double().numpy()
                    )
    values = np.stack([np.concatenate(parts) for parts in found.values()], axis=1)  # (N, heads, 3)
    _, accuracy, before = values.mean(axis=0).T
    change, low, high, _ = mean_interval(values[..., 0])
    p = correct_heads(values[..., 0])
    table = pd.DataFrame(list(found), columns=["layer", "head"])
    return table.assign(
        change=change,
        low=low,
        high=high,
        p_fdr=p,
        accuracy=accuracy,
        accuracy_change=accuracy - before,
    )


def correct_heads(changes: np.ndarray) -> np.ndarray:
    """Sign-flip p-values of changes (N, heads) over images, corrected for the number of heads; NaN
    for a single image.
    """
    if len(changes) < 2:
        return np.full(changes.shape[1:], np.nan)
    return false_discovery_control(sign_flip_p(changes))


def attention_change_table(
    before: ModelBundle,
    after: ModelBundle,
    images: torch.Tensor,
    layers: Sequence[int] | None = None,
    *,
    batch_size: int = 8,
) -> pd.DataFrame:
    """What became of each head, from one set of weights to another of the same model: fine-tuning,
    above all.

    Columns: layer, head, measure, before, after, change, low, high, p_fdr; change = after - before,
    with its 95% t interval over images and its p-value, corrected for the heads of a measure as in
    `head_ablation_table`. measure: distance (pixels) and entropy (nats) as in attention_table;
    similarity, the rank correlation between the two models' attention from the tokens that the
    classifier reads to the patches, mean over images (before: with itself, 1)."""
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

        both = [_summarise(model, batch, summarise, layers) for model in (before, after)]
        for layer, (measured, looked) in both[0].items():
            measured_after, looked_after = both[1][layer]
            if looked.shape != looked_after.shape:
                raise UserError(
                    f"layer {layer} has {looked.shape[1]} heads in {before.name} and"
                    f" {looked_after.shape[1]} in {after.name}: one of them was pruned, so their"
                    " heads cannot be compared one by one"
                )
            ranks = [rankdata(one.cpu().numpy(), axis=-1) for one in (looked, looked_after)]
            similarity = np.nan_to_num(correlate(*ranks))  # (B, H); 0 where one side is constant
            pair = [
                (measured.cpu().numpy(), np.ones_like(similarity)),
                (measured_after.cpu().numpy(), similarity),
            ]
            # (B, H, 3, 2)
            values = np.stack(
                [np.concatenate([one, other[..., None]], axis=2) for one, other in pair], axis=-1
            )
            found.setdefault(layer, []).append(values.astype(float))
    names = [(layer, head) for layer, parts in found.items() for head in range(parts[0].shape[1])]
    # (N, heads, 3, 2)
    values = np.concatenate([np.concatenate(parts) for parts in found.values()], axis=1)
    changes = values[..., 1] - values[..., 0]
    change, low, high, _ = mean_interval(changes)
    tables = []
    for i, measure in enumerate(("distance", "entropy", "similarity")):
        before_, after_ = values[:, :, i].mean(axis=0).T
        table = pd.DataFrame(names, columns=["layer", "head"]).assign(
            measure=measure, before=before_, after=after_
        )
        bounds = {
            "change": change[:, i],
            "low": low[:, i],
            "high": high[:, i],
            "p_fdr": correct_heads(changes[:, :, i]),
        }
        tables.append(table.assign(**bounds))
    return pd.concat(tables, ignore_index=True)


def _summarise(
    model, images, summarise: Callable[[torch.Tensor, Layout], object], layers
) -> dict[int, object]:
    """summarise(matrix, layout) of each chosen layer, in order; one matrix in memory at a time."""
    anatomy = _fit_anatomy(model, images)
    layouts, found = list_layouts(anatomy), {}

    def answer(call):
        found[call.layer] = summarise(call.compute_matrix(), layouts[call.layer])
        return call.compute_output()

    with (
        inspecting(model.module),
        torch.no_grad(),
        intercept_attention(model.module, anatomy, answer, layers),
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
        targets = F.one_hot(torch.zeros(len(images), dtype=torch.long), len(model.classes)).to(
            images
        )
        return share_read_tokens(
            differentiate_at(anatomy.blocks[-1], model.module, images, targets)[1]
        )


def _count_heads(model, anatomy, images, layers) -> tuple[dict[int, int], torch.Tensor]:
    """Heads of each layer, and the probabilities (B, num_classes) of the whole model."""
    counts = {}

    def answer(call):
        output = call.compute_output()
        counts[call.layer] = output.shape[-3]
        return output

    with intercept_attention(model.module, anatomy, answer, layers):
        return counts, _predict(model, images)


def _drop_head(head: int, replacement: str, count: int) -> Callable:
    """An answer to intercept_attention for `count` images."""

    def answer(call):
        output = call.compute_output().clone()  # (B * windows, H, T, d)
        own = output[:, head].unflatten(0, (count, -1))  # (B, windows, T, d)
        mean = own.mean(dim=(1, 2), keepdim=True)
        output[:, head] = (
            torch.zeros_like(own) if replacement == "zero" else mean.expand_as(own)
        ).flatten(0, 1)
        return output

    return answer


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


def _read_classes(model, target, count) -> list[int]:
    names = [target] * count if isinstance(target, str) else list(target)
    if len(names) != count:
        raise UserError(
            f"{len(names)} names in target for {count} images; give one class name for all, or one"
            " for each image"
        )
    for name in names:
        if name not in model.classes:
            raise UserError(unknown("target", str(name), list(model.classes)))
    return [model.classes.index(name) for name in names]

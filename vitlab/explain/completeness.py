"""Do the values of a map add up to what they claim to divide?"""

from __future__ import annotations

import inspect

import pandas as pd
import torch

from vitlab.errors import UserError
from vitlab.explain.baselines import make_baseline
from vitlab.explain.inspection import inspecting
from vitlab.explain.methods import available, methods
from vitlab.schema import AttributionMap, ModelBundle


def convergence_delta(
    model: ModelBundle,
    images: torch.Tensor,
    found: AttributionMap,
    *,
    baseline: str | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Hold each map against the axiom of completeness: one row an image, sample_id, difference,
    total, delta.

    difference: the target logit of the image minus that of the baseline (with `versus`, of the
    difference of the two logits). total: the sum of the map. delta: total minus difference, 0 where
    the division is exact, and Captum's convergence delta. images (N, 3, h, w), normalised, in the
    order of the maps; baseline: the one that the maps were made with, by default that of the
    method.

    Raises ValueError for a map of a method that does not claim to add up. Source: Sundararajan et
    al. 2017, arXiv 1703.01365."""
    if not methods[found.method].complete:
        claims = ", ".join(name for name in available() if methods[name].complete)
        raise UserError(
            f"the values of a {found.method} map do not claim to add up to a difference; those that"
            f" do: {claims}"
        )
    if len(images) != len(found.sample_ids):
        raise UserError(
            f"{len(images)} images for {len(found.sample_ids)} maps; give those explained, in the"
            " same order"
        )
    if baseline is None:
        baseline = inspect.signature(methods[found.method].compute).parameters["baseline"].default
    logits = {"image": [], "baseline": []}
    weight = next(model.module.parameters())
    with inspecting(model.module), torch.no_grad():
        for batch in images.split(batch_size):
            batch = batch.to(weight.device, weight.dtype)
            logits["image"].append(model.module(batch))
            logits["baseline"].append(model.module(make_baseline(baseline, batch, model.transform)))
    # (N, num_classes)
    change = (torch.cat(logits["image"]) - torch.cat(logits["baseline"])).double().cpu()
    difference = _pick(change, found.target, model.classes)
    if found.versus:
        difference = difference - _pick(change, found.versus, model.classes)
    total = found.values.sum(axis=(1, 2), dtype="float64")
    return pd.DataFrame(
        {
            "sample_id": list(found.sample_ids),
            "difference": difference,
            "total": total,
            "delta": total - difference,
        }
    )


def _pick(change, names, classes):
    return change[torch.arange(len(change)), [classes.index(name) for name in names]].numpy()

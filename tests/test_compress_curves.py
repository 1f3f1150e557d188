"""Curves of pruning and merging: each point is the score of the variant by itself."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.test_shrinking import FAMILIES
from tests.toys import small_digits, tiny_vit
from vitlab.compress.cost import count_cost
from vitlab.compress.curves import merging_curve_table, pruning_curve_table
from vitlab.compress.importance import importance_table
from vitlab.compress.pruning import plan_pruning, prune
from vitlab.compress.tokens import merge_tokens
from vitlab.training import predict


def score(model, split="val"):
    """Mean recall over the classes that the split has."""
    table = predict(model, small_digits(), splits=(split,))
    return (table["pred"] == table["label"]).groupby(table["label"]).mean().mean()


@pytest.mark.parametrize("family", ["vit_scratch", "hybrid_vit", "deit distilled"])
def test_points_of_pruning_are_the_scores_of_pruned_models(family):
    model = FAMILIES[family]()
    model.module.train()
    importance = {"weights": importance_table(model, measure="magnitude")}
    importance["reversed"] = importance["weights"].assign(
        importance=lambda table: -table["importance"]
    )
    table = pruning_curve_table(model, small_digits(), importance, (0.4,), replicates=20)
    assert (
        table["importance"].tolist() == ["weights"] * 2 + ["reversed"] * 2
        and table["keep"].tolist() == [1, 0.4] * 2
    )
    assert model.module.training and all(block.training for block in model.module.blocks)
    assert table["n"].unique() == len(small_digits().split("val"))
    for row in table.itertuples():
        variant = model
        if row.keep < 1:
            variant = prune(
                model,
                plan_pruning(
                    model, importance[row.importance], row.keep, "multiply_adds", of="blocks"
                ),
            )
        assert row.value == pytest.approx(score(variant))
        assert row.multiply_adds == pytest.approx(
            count_cost(variant, "multiply_adds") / count_cost(model, "multiply_adds")
        )
        assert row.parameters == pytest.approx(
            count_cost(variant, "parameters") / count_cost(model, "parameters")
        )
        assert row.low <= row.value <= row.high and row.metric == "balanced_accuracy"


@pytest.mark.parametrize("family", ["vit_scratch", "deit distilled"])
def test_points_of_merging_are_the_scores_of_merging_models(family):
    model = FAMILIES[family]()
    table = merging_curve_table(model, small_digits(), (2, 4), repeats=1, threads=1, replicates=20)
    assert (
        table["merged"].tolist() == [0, 2, 4]
        and table["ratio"][0] == 1
        and (table["p50_ms"] > 0).all()
    )
    patches = np.prod(model.anatomy.grid) + model.anatomy.num_prefix_tokens
    # what the last of three blocks takes in
    assert table["tokens"].tolist() == [patches, patches - 4, patches - 8]
    assert table["multiply_adds"][0] == 1 and (table["multiply_adds"].diff().dropna() < 0).all()
    for row in table.itertuples():
        assert row.value == pytest.approx(score(merge_tokens(model, row.merged)))


def test_what_cannot_be_drawn_is_refused_before_any_image_is_read():
    model, data = tiny_vit(), small_digits()
    table = importance_table(model, measure="magnitude")
    blind = replace(data, read=None)
    with pytest.raises(ValueError, match="cannot be reached"):
        pruning_curve_table(model, blind, {"weights": table}, (0.5, 0.001))
    with pytest.raises(ValueError, match="nothing pruned"):
        pruning_curve_table(model, blind, {"weights": table}, (1.5,))
    with pytest.raises(ValueError, match="keeps is empty"):
        pruning_curve_table(model, blind, {"weights": table}, ())
    with pytest.raises(ValueError, match="no images in the split 'val'"):
        samples = data.samples[data.samples["split"] != "val"]
        pruning_curve_table(model, replace(data, samples=samples), {"weights": table})
    with pytest.raises(ValueError, match="numbers is empty"):
        merging_curve_table(model, data, ())
    with pytest.raises(ValueError, match="not -3"):
        merging_curve_table(model, data, (-3,))


def test_double_precision_stays():
    model = tiny_vit()
    model.module.double()
    importance = {"weights": importance_table(model, measure="magnitude")}
    curve = pruning_curve_table(model, small_digits(), importance, (0.5,), replicates=20)
    assert (
        np.isfinite(curve["value"]).all() and next(model.module.parameters()).dtype == torch.double
    )
    assert isinstance(curve, pd.DataFrame)

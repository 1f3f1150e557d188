"""Importance of parts, plans, pruned models, and the curves of pruning and merging."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from tests.test_shrinking import FAMILIES, SPEC, draw_images, tiny_deep_hybrid, tiny_timm
from tests.toys import small_digits, tiny_vit
from vitlab.compress.curves import merging_curve_table, pruning_curve_table
from vitlab.compress.importance import masking, part_importance_table
from vitlab.compress.merging import count_multiply_adds, merge_tokens
from vitlab.compress.pruning import plan_pruning, prune
from vitlab.models import build_model, count_parameters, load_model, save_model, shrink_model
from vitlab.training import predict

WITHIN = ("head", "neuron")


def draw_labels(model, count):
    return [model.classes[i % len(model.classes)] for i in range(count)]


def measure_loss(model, images, labels, masks):
    targets = torch.tensor([model.classes.index(label) for label in labels])
    with masking(model.module, masks), torch.no_grad():
        return F.cross_entropy(model.module(images), targets, reduction="none")


def pick(table, kind, block):
    rows = table[(table["kind"] == kind) & (table["block"] == block)]
    return rows.set_index("index")["importance"]


def weigh(model, kinds=WITHIN, measure="magnitude"):
    return part_importance_table(model, kinds=kinds, measure=measure)


@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_is_the_slope_of_the_loss_along_the_mask(family):
    model = FAMILIES[family]()
    model.module.double()
    images, labels = draw_images(model, 5), draw_labels(model, 5)
    table = part_importance_table(model, images, labels, batch_size=2)
    images = images.double()
    for kind, block, index in [("head", 0, 1), ("neuron", 1, 7), ("block", 2, 0)]:
        values = pick(table, kind, block)
        losses = []
        for step in (-1e-3, 1e-3):
            mask = torch.ones(len(values), dtype=torch.double)
            mask[index] += step
            losses.append(measure_loss(model, images, labels, {(kind, block): mask}))
        slope = ((losses[1] - losses[0]) / 2e-3).abs().mean().item()
        assert slope > 0
        assert values[index] == pytest.approx(slope, rel=1e-3)


def test_unused_parts_have_no_importance():
    model = tiny_vit()
    block = model.module.blocks[1]
    block.attn.proj.weight.data[:, 8:] = 0  # the second head's columns
    block.mlp.fc2.weight.data[:, 5] = 0
    table = part_importance_table(model, draw_images(model, 4), draw_labels(model, 4), WITHIN)
    assert pick(table, "head", 1)[1] == 0 and pick(table, "head", 1)[0] != 0
    assert pick(table, "neuron", 1)[5] == 0 and pick(table, "neuron", 1)[4] != 0


def test_magnitude_by_hand():
    model = tiny_vit()
    block = model.module.blocks[2]
    table = part_importance_table(model, measure="magnitude")
    attn, mlp = block.attn, block.mlp
    rows = [8 + j + 16 * part for part in range(3) for j in range(8)]  # the second of two heads
    head = [attn.qkv.weight[rows].flatten(), attn.qkv.bias[rows], attn.proj.weight[:, 8:].flatten()]
    neuron = [mlp.fc1.weight[9], mlp.fc1.bias[9:10], mlp.fc2.weight[:, 9]]
    whole = [parameter.flatten() for parameter in block.parameters()]
    for kind, index, tensors in [("head", 1, head), ("neuron", 9, neuron), ("block", 0, whole)]:
        norm = torch.cat(tensors).norm().item()
        assert pick(table, kind, 2)[index] == pytest.approx(norm, rel=1e-5)


def test_a_pruned_model_has_its_own_importance_and_no_hook_is_left():
    model = shrink_model(tiny_timm(), SPEC)
    images, labels = draw_images(model), draw_labels(model, 3)
    table = part_importance_table(model, images, labels)
    sizes = table.groupby(["kind", "block"]).size()
    assert sizes["head"].tolist() == [1, 2]
    assert sizes["neuron"].tolist() == [15, 5]
    assert sizes["block"].tolist() == [1, 1]
    for part in model.module.modules():
        assert not (part._forward_hooks or part._forward_pre_hooks)
    for parameter in model.module.parameters():
        assert parameter.requires_grad and parameter.grad is None
    whole = part_importance_table(model, images, labels, batch_size=1)
    pd.testing.assert_frame_equal(table, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": "gradient"}, "taylor"),
        ({"kinds": ["layer"]}, "neuron"),
        ({"images": None}, "measured on images"),
        ({"labels": None}, "3 class names"),
        ({"labels": ["0", "1"]}, "3 class names"),
        ({"labels": ["0", "1", "cat"]}, "cat"),
    ],
)
def test_invalid_arguments_of_importance(arguments, message):
    model = tiny_vit()
    given = {"images": draw_images(model), "labels": draw_labels(model, 3), **arguments}
    with pytest.raises(ValueError, match=message):
        part_importance_table(model, **given)


def test_a_cnn_cannot_be_pruned():
    model = build_model("efficientnet_lite0", ["a", "b"], pretrained=False, size=32)
    with pytest.raises(ValueError, match="no transformer blocks"):
        weigh(model)


def as_masks(plan):
    """The plan as masks of ones and zeros over the whole model."""
    masks = {}
    for block, (entry, row) in enumerate(zip(plan.spec, plan.table.itertuples(), strict=True)):
        if entry is None:
            masks["block", block] = torch.zeros(1)
            continue
        for kind, name, size in (("head", "heads", row.heads), ("neuron", "neurons", row.neurons)):
            kept = [float(index in entry[name]) for index in range(size)]
            masks[kind, block] = torch.tensor(kept)
    return masks


def count_blocks(model):
    return sum(count_parameters(block) for block in model.module.blocks)


@pytest.mark.parametrize("kinds", [WITHIN, ("block",)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_is_as_small_as_planned_and_equals_the_masked_one(family, kinds, tmp_path):
    model = FAMILIES[family]()
    images = draw_images(model)
    plan = plan_pruning(model, weigh(model, kinds), 0.5)
    small = prune(model, plan)
    assert plan.share <= 0.5
    assert count_blocks(small) / count_blocks(model) == pytest.approx(plan.share)
    heads = [entry["heads"] for entry in small.options["shrunk"] if entry]
    assert heads == [kept for kept in plan.table["heads_kept"] if kept]
    with torch.no_grad(), masking(model.module, as_masks(plan)):
        masked = model.module(images)
    with torch.no_grad():
        assert (small.module(images) - masked).abs().max() < 1e-5
        save_model(small, tmp_path)
        assert torch.equal(load_model(tmp_path).module(images), small.module(images))


def test_multiply_adds_by_hand():
    # patches of 4 on 16 pixels: 16 tokens and the class token; C = 16, 64 neurons, 3 blocks, 10
    # classes
    T, C = 17, 16
    block = T * C * 3 * C + 2 * T * T * C + T * C * C + 2 * T * C * 64
    assert count_multiply_adds(tiny_vit()) == 16 * C * 3 * 16 + 3 * block + C * 10


def test_the_least_important_for_its_size_is_removed_first():
    model = tiny_vit()
    table = weigh(model).assign(importance=1.0)
    almost_all = 1 - 1 / count_blocks(model)
    head = (table["kind"] == "head") & (table["block"] == 1) & (table["index"] == 0)
    plan = plan_pruning(model, table.assign(importance=np.where(head, 0.0, 1.0)), almost_all)
    assert plan.spec[1]["heads"] == [1]
    assert plan.table[["heads_kept", "neurons_kept"]].sum().tolist() == [5, 3 * 64]
    chosen = [3, 9, 20, 33, 41, 50, 51, 63]
    inside = table["index"].isin(chosen)
    neurons = (table["kind"] == "neuron") & (table["block"] == 2) & inside
    plan = plan_pruning(model, table.assign(importance=np.where(neurons, 0.0, 1.0)), almost_all)
    assert plan.spec[2]["neurons"] == [i for i in range(64) if i not in chosen]
    # all alike: eight neurons (8 * 33 parameters) are worth eight, a head (536 parameters) one
    assert plan_pruning(model, table, almost_all).table["heads_kept"].sum() == 5


def test_whole_blocks_go_by_importance_and_one_stays():
    model = tiny_vit()
    table = weigh(model, ["block"]).assign(importance=[2.0, 3.0, 1.0])
    assert plan_pruning(model, table, 0.9).table["heads_kept"].tolist() == [2, 2, 0]
    assert plan_pruning(model, table, 0.34).table["heads_kept"].tolist() == [0, 2, 0]
    with pytest.raises(ValueError, match=r"without any block .* 0.333 of them are left"):
        plan_pruning(model, table, 0.2)


def test_kinds_outside_the_table_are_kept():
    model = tiny_timm()
    plan = plan_pruning(model, weigh(model, ["head"]), 0.95)
    assert (plan.table["neurons_kept"] == plan.table["neurons"]).all()
    assert plan.table["heads_kept"].sum() < 12


def test_the_message_for_a_share_out_of_reach_says_which_one_is_in_reach():
    model = tiny_deep_hybrid()
    table = weigh(model)
    with pytest.raises(ValueError, match=r"cannot be reached.*1 head and 8 neurons") as caught:
        plan_pruning(model, table, 0.01)
    reachable = float(str(caught.value).split(" of them are left")[0].split()[-1])
    assert plan_pruning(model, table, reachable + 0.001).share == pytest.approx(
        reachable, abs=0.001
    )


@pytest.mark.parametrize(
    ("keep", "message"), [(0, "nothing left"), (1.0, "nothing pruned"), ("half", "share of the")]
)
def test_invalid_shares(keep, message):
    model = tiny_vit()
    with pytest.raises(ValueError, match=message):
        plan_pruning(model, weigh(model), keep)


def test_tables_and_plans_of_another_model():
    model = tiny_vit()
    table = weigh(model)
    with pytest.raises(ValueError, match="other parts"):
        plan_pruning(tiny_timm(), table, 0.7)
    with pytest.raises(ValueError, match="other parts of kind neuron"):
        plan_pruning(model, table[(table["kind"] != "neuron") | (table["block"] < 2)], 0.7)
    with pytest.raises(ValueError, match="several measures"):
        plan_pruning(model, pd.concat([table, table.assign(measure="taylor")]), 0.7)
    with pytest.raises(ValueError, match="whole blocks and parts within"):
        plan_pruning(model, part_importance_table(model, measure="magnitude"), 0.7)
    with pytest.raises(ValueError, match="other sizes"):
        prune(tiny_timm(), plan_pruning(model, table, 0.7))


def score(model):
    """Mean recall over the classes of the validation split."""
    table = predict(model, small_digits(), splits=("val",))
    return (table["pred"] == table["label"]).groupby(table["label"]).mean().mean()


@pytest.mark.parametrize("family", ["vit_scratch", "deit distilled"])
def test_points_of_the_pruning_curve_are_scores_of_pruned_models(family):
    model = FAMILIES[family]()
    model.module.train()
    importance = {"weights": weigh(model)}
    reverse = -importance["weights"]["importance"]
    importance["reversed"] = importance["weights"].assign(importance=reverse)
    table = pruning_curve_table(model, small_digits(), importance, (0.4,), replicates=20)
    assert table["importance"].tolist() == ["weights"] * 2 + ["reversed"] * 2
    assert table["keep"].tolist() == [1, 0.4] * 2
    assert all(part.training for part in model.module.modules())
    for row in table.itertuples():
        variant = model
        if row.keep < 1:
            variant = prune(model, plan_pruning(model, importance[row.importance], row.keep))
        assert row.value == pytest.approx(score(variant))
        share = count_multiply_adds(variant) / count_multiply_adds(model)
        assert row.multiply_adds == pytest.approx(share)
        assert row.low <= row.value <= row.high and row.metric == "balanced_accuracy"


def test_points_of_the_merging_curve_are_scores_of_merging_models():
    model = FAMILIES["deit distilled"]()
    table = merging_curve_table(model, small_digits(), (2, 4), repeats=1, threads=1, replicates=20)
    assert table["merged"].tolist() == [0, 2, 4]
    assert table["ratio"][0] == table["multiply_adds"][0] == 1
    assert (table["multiply_adds"].diff().dropna() < 0).all()
    for row in table.itertuples():
        assert row.value == pytest.approx(score(merge_tokens(model, row.merged)))


def test_invalid_curves_are_refused_before_any_image_is_read():
    model, data = tiny_vit(), small_digits()
    table, blind = {"weights": weigh(model)}, replace(data, read=None)
    with pytest.raises(ValueError, match="cannot be reached"):
        pruning_curve_table(model, blind, table, (0.5, 0.001))
    with pytest.raises(ValueError, match="keeps is empty"):
        pruning_curve_table(model, blind, table, ())
    without = replace(data, samples=data.samples[data.samples["split"] != "val"])
    with pytest.raises(ValueError, match="no images in the split 'val'"):
        pruning_curve_table(model, without, table)
    with pytest.raises(ValueError, match="not -3"):
        merging_curve_table(model, data, (-3,))

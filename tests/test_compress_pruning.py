"""Importance of parts, pruned models and their recovery, and the curves of pruning and merging."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.test_shrinking import FAMILIES, SPEC, draw_images, tiny_deep_hybrid, tiny_timm
from tests.toys import small_digits, tiny_vit
from vitlab.compress.curves import (
    count_multiply_adds,
    merge_tokens,
    merging_curve_table,
    pruning_curve_table,
)
from vitlab.compress.distillation import recover, recovery_recipe
from vitlab.compress.pruning import masking, part_importance_table, plan_pruning, pruning_table
from vitlab.models import build_model, count_parameters, load_model, save_model, shrink_model
from vitlab.training import fit, predict, recipe


def draw_labels(model, count):
    return [model.classes[i % len(model.classes)] for i in range(count)]


def pick(table, kind, block):
    rows = table[(table["kind"] == kind) & (table["block"] == block)]
    return rows.set_index("index")["importance"]


def weigh(model, **options):
    return part_importance_table(model, measure="magnitude", **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_is_the_slope_of_the_loss_along_the_mask(family):
    model = FAMILIES[family]()
    model.module.double()
    images, labels = draw_images(model, 5), draw_labels(model, 5)
    table = part_importance_table(model, images, labels)
    images, targets = images.double(), torch.arange(5)
    for kind, block, index in [("head", 0, 1), ("neuron", 1, 7), ("block", 2, 0)]:
        values = pick(table, kind, block)
        losses = []
        for step in (-1e-3, 1e-3):
            mask = torch.ones(len(values), dtype=torch.double)
            mask[index] += step
            with masking(model.module, {(kind, block): mask}), torch.no_grad():
                losses.append(F.cross_entropy(model.module(images), targets, reduction="none"))
        slope = ((losses[1] - losses[0]) / 2e-3).abs().mean().item()
        assert slope > 0
        assert values[index] == pytest.approx(slope, rel=1e-3)


def test_magnitude_by_hand():
    model = tiny_vit()
    block = model.module.blocks[2]
    attn, mlp = block.attn, block.mlp
    rows = [8 + j + 16 * part for part in range(3) for j in range(8)]  # the second of two heads
    head = [attn.qkv.weight[rows].flatten(), attn.qkv.bias[rows], attn.proj.weight[:, 8:].flatten()]
    neuron = [mlp.fc1.weight[9], mlp.fc1.bias[9:10], mlp.fc2.weight[:, 9]]
    whole = [parameter.flatten() for parameter in block.parameters()]
    for kind, index, tensors in [("head", 1, head), ("neuron", 9, neuron), ("block", 0, whole)]:
        norm = torch.cat(tensors).norm().item()
        assert pick(weigh(model), kind, 2)[index] == pytest.approx(norm, rel=1e-5)


def test_a_pruned_model_has_its_own_importance_and_no_hook_is_left():
    model = shrink_model(tiny_timm(), SPEC)
    table = part_importance_table(model, draw_images(model, 20), draw_labels(model, 20))
    sizes = table.groupby(["kind", "block"]).size()
    assert sizes["head"].tolist() == [1, 2]
    assert sizes["neuron"].tolist() == [15, 5]
    assert sizes["block"].tolist() == [1, 1]
    for part in model.module.modules():
        assert not (part._forward_hooks or part._forward_pre_hooks)
    for parameter in model.module.parameters():
        assert parameter.requires_grad and parameter.grad is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": "gradient"}, "taylor"),
        ({"images": None}, "measured on images"),
        ({"labels": ["0", "1"]}, "a class name for each"),
    ],
)
def test_invalid_arguments_of_importance(arguments, message):
    model = tiny_vit()
    given = {"images": draw_images(model), "labels": draw_labels(model, 3), **arguments}
    with pytest.raises(ValueError, match=message):
        part_importance_table(model, **given)


def as_masks(spec, sizes):
    """What is kept as masks of ones and zeros over the whole model."""
    masks = {}
    for block, (entry, row) in enumerate(zip(spec, sizes.itertuples(), strict=True)):
        if entry is None:
            masks["block", block] = torch.zeros(1)
            continue
        for kind, size in (("head", row.heads), ("neuron", row.neurons)):
            kept = [float(index in entry[f"{kind}s"]) for index in range(size)]
            masks[kind, block] = torch.tensor(kept)
    return masks


def count_blocks(model):
    return sum(count_parameters(block) for block in model.module.blocks)


@pytest.mark.parametrize("whole_blocks", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_is_small_enough_and_equals_the_masked_one(family, whole_blocks, tmp_path):
    model = FAMILIES[family]()
    images = draw_images(model)
    spec = plan_pruning(model, weigh(model), 0.5, whole_blocks)
    table, small = pruning_table(model, spec), shrink_model(model, spec)
    assert 0.3 < count_blocks(small) / count_blocks(model) <= 0.5
    heads = [entry["heads"] for entry in small.options["shrunk"] if entry]
    assert heads == [kept for kept in table["heads_kept"] if kept]
    with torch.no_grad(), masking(model.module, as_masks(spec, table)):
        masked = model.module(images)
    with torch.no_grad():
        assert (small.module(images) - masked).abs().max() < 1e-5
        save_model(small, tmp_path)
        assert torch.equal(load_model(tmp_path).module(images), small.module(images))


def test_the_least_important_for_its_size_is_removed_first():
    model = tiny_vit()
    table = weigh(model).assign(importance=1.0)
    almost_all = 1 - 1 / count_blocks(model)
    head = (table["kind"] == "head") & (table["block"] == 1) & (table["index"] == 0)
    spec = plan_pruning(model, table.assign(importance=np.where(head, 0.0, 1.0)), almost_all)
    assert spec[1]["heads"] == [1]
    kept = pruning_table(model, spec)[["heads_kept", "neurons_kept"]]
    assert kept.sum().tolist() == [5, 3 * 64]
    chosen = [3, 9, 20, 33, 41, 50, 51, 63]
    inside = table["index"].isin(chosen)
    neurons = (table["kind"] == "neuron") & (table["block"] == 2) & inside
    spec = plan_pruning(model, table.assign(importance=np.where(neurons, 0.0, 1.0)), almost_all)
    assert spec[2]["neurons"] == [i for i in range(64) if i not in chosen]
    # all alike: eight neurons (8 * 33 parameters) are worth eight, a head (536 parameters) one
    assert pruning_table(model, plan_pruning(model, table, almost_all))["heads_kept"].sum() == 5


def test_whole_blocks_go_by_importance_and_one_stays():
    model = tiny_vit()
    table = weigh(model, kinds=["block"]).assign(importance=[2.0, 3.0, 1.0])
    for keep, kept in {0.9: [2, 2, 0], 0.34: [0, 2, 0]}.items():
        spec = plan_pruning(model, table, keep, whole_blocks=True)
        assert pruning_table(model, spec)["heads_kept"].tolist() == kept
    with pytest.raises(ValueError, match=r"0.333 of them are left when one block remains"):
        plan_pruning(model, table, 0.2, whole_blocks=True)


def test_the_message_for_a_share_out_of_reach_says_which_one_is_in_reach():
    model = tiny_deep_hybrid()
    with pytest.raises(ValueError, match=r"cannot be reached.*1 head and 8 neurons") as caught:
        plan_pruning(model, weigh(model), 0.01)
    reachable = float(str(caught.value).split(" of them are left")[0].split()[-1])
    spec = plan_pruning(model, weigh(model), reachable + 0.001)
    share = count_blocks(shrink_model(model, spec)) / count_blocks(model)
    assert share == pytest.approx(reachable, abs=0.001)


def test_what_cannot_be_pruned():
    model = tiny_vit()
    for keep, message in {0: "nothing left", 1.0: "nothing pruned", "half": "share of the"}.items():
        with pytest.raises(ValueError, match=message):
            plan_pruning(model, weigh(model), keep)
    with pytest.raises(ValueError, match="other parts of kind head than vit_tiny"):
        plan_pruning(tiny_timm(), weigh(model), 0.7)
    cnn = build_model("efficientnet_lite0", ["a", "b"], pretrained=False, size=32)
    with pytest.raises(ValueError, match="no transformer blocks"):
        weigh(cnn)


def score(model):
    """Mean recall over the classes of the validation split."""
    table = predict(model, small_digits(), splits=("val",))
    return (table["pred"] == table["label"]).groupby(table["label"]).mean().mean()


def test_points_of_the_curves_are_scores_of_smaller_models():
    model = FAMILIES["deit distilled"]()
    importance = {"weights": weigh(model)}
    reverse = -importance["weights"]["importance"]
    importance["reversed"] = importance["weights"].assign(importance=reverse)
    table = pruning_curve_table(model, small_digits(), importance, replicates=20)
    assert table["importance"].tolist() == ["weights"] * 3 + ["reversed"] * 3
    assert table["keep"].tolist() == [1, 0.6, 0.2] * 2
    for row in table[1:].itertuples():
        variant = model
        if row.keep < 1:
            spec = plan_pruning(model, importance[row.importance], row.keep)
            variant = shrink_model(model, spec)
        assert row.value == pytest.approx(score(variant))
        share = count_multiply_adds(variant) / count_multiply_adds(model)
        assert row.multiply_adds == pytest.approx(share)
        assert row.low <= row.value <= row.high and row.metric == "balanced_accuracy"
    table = merging_curve_table(model, small_digits(), repeats=1, threads=1, replicates=20)
    assert table["merged"].tolist() == [0, 8, 32]
    assert table["ratio"][0] == table["multiply_adds"][0] == 1
    assert table["multiply_adds"][1] < 1
    for row in table.itertuples():
        variant = merge_tokens(model, row.merged) if row.merged else model
        assert row.value == pytest.approx(score(variant))


def test_multiply_adds_by_hand():
    # patches of 4 on 16 pixels: 16 tokens and the class token; C = 16, 64 neurons, 3 blocks, 10
    # classes
    T, C = 17, 16
    block = T * C * 3 * C + 2 * T * T * C + T * C * C + 2 * T * C * 64
    assert count_multiply_adds(tiny_vit()) == 16 * C * 3 * 16 + 3 * block + C * 10


QUICK = {"batch_size": 16, "precision": "fp32", "augment": "none", "monitor": "val_loss"}


@pytest.fixture(scope="module")
def trained():
    model = tiny_vit()
    config = recipe("vit_scratch", epochs=12, learning_rate=5e-3, patience=9, **QUICK)
    fit(model, small_digits(), config=config)
    return model


@pytest.mark.parametrize("taught", [False, True])
def test_recovery_makes_a_damaged_model_better(trained, taught):
    model = deepcopy(trained)
    for block in model.module.blocks:
        block.mlp.fc1.weight.data[::2] = 0
        block.mlp.fc1.bias.data[::2] = 0
        block.attn.proj.weight.data[:, ::2] = 0
    before = predict(model, small_digits(), splits=("val",))
    config = recipe("vit_scratch", epochs=4, learning_rate=1e-3, **QUICK)
    history = recover(model, small_digits(), config, trained if taught else None)
    assert list(history["epoch"]) == [0, 1, 2, 3, 4]
    assert history["val_loss"].min() < history["val_loss"][0] - 0.01
    accuracy = (before["pred"] == before["label"]).mean()
    assert history["val_accuracy"][0] == pytest.approx(accuracy)


def test_a_recovery_that_makes_it_worse_is_not_kept(trained):
    model = deepcopy(trained)
    config = recipe("vit_scratch", epochs=1, learning_rate=0.5, warmup_epochs=0, **QUICK)
    history = recover(model, small_digits(), config)
    assert history["val_loss"][1] > history["val_loss"][0]
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, trained.module.state_dict()[name])


def test_the_recipe_of_a_recovery_is_shorter_and_slower():
    usual, short = recipe("vit_scratch"), recovery_recipe("vit_scratch", batch_size=16)
    assert short.epochs == 2 and short.batch_size == 16
    assert short.learning_rate == pytest.approx(usual.learning_rate / 5)
    assert recovery_recipe("vit_scratch", epochs=9).epochs == 9

import numpy as np
import pandas as pd
import pytest
import torch

from tests.test_importance import draw_labels
from tests.test_shrinking import FAMILIES, draw_images, tiny_deep_hybrid, tiny_timm
from tests.toys import tiny_vit
from vitlab.compress.cost import cost_blocks, count_cost, count_multiply_adds
from vitlab.compress.importance import importance_table, masking
from vitlab.compress.pruning import plan_pruning, prune
from vitlab.models import count_parameters, load_model, save_model, shrink_model


def weigh(model, **options):
    return importance_table(model, draw_images(model, 6), draw_labels(model, 6), **options)


def as_masks(model, plan):
    """The plan laid over the whole model as masks of ones and zeros."""
    masks = {}
    for block, (entry, row) in enumerate(zip(plan.spec, plan.table.itertuples(), strict=True)):
        if entry is None:
            masks["block", block] = torch.zeros(1)
            continue
        for kind, name, size in (("head", "heads", row.heads), ("neuron", "neurons", row.neurons)):
            masks[kind, block] = torch.tensor(
                [float(index in entry[name]) for index in range(size)]
            )
    return masks


@pytest.mark.parametrize("drop_blocks", [False, True])
@pytest.mark.parametrize("by", ["parameters", "multiply_adds"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_is_as_small_as_planned_and_equals_the_masked_one(
    family, by, drop_blocks, tmp_path
):
    model = FAMILIES[family]()
    images = draw_images(model)
    plan = plan_pruning(model, weigh(model), 0.5, by, of="blocks", drop_blocks=drop_blocks)
    small = prune(model, plan)
    assert plan.share <= 0.5
    assert count_cost(small, by, "blocks") / count_cost(model, by, "blocks") == pytest.approx(
        plan.share
    )
    for count in (lambda bundle: count_parameters(bundle.module), count_multiply_adds):
        assert count(small) < count(model)
    assert [entry["heads"] for entry in small.options["shrunk"] if entry] == [
        kept for kept in plan.table["heads_kept"] if kept
    ]
    with torch.no_grad(), masking(model.module, as_masks(model, plan)):
        masked = model.module(images)
    with torch.no_grad():
        assert (small.module(images) - masked).abs().max() < 1e-5
        save_model(small, tmp_path)
        assert torch.equal(load_model(tmp_path).module(images), small.module(images))


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_add_up_to_what_is_counted(family):
    model = FAMILIES[family]()
    blocks = cost_blocks(model, "multiply_adds")
    small = shrink_model(model, [{"heads": [0], "neurons": 8}, None, {}])
    block = model.module.blocks[0]
    heads, neurons = block.attn.num_heads, block.mlp.fc1.out_features
    saved = (
        blocks[0]["heads"] * (heads - 1) / heads + blocks[0]["neurons"] * (neurons - 8) / neurons
    )
    saved += blocks[1]["heads"] + blocks[1]["neurons"]
    assert count_multiply_adds(model) - count_multiply_adds(small) == saved
    inside = sum(count_parameters(block) for block in model.module.blocks)
    assert count_cost(model, "parameters", "blocks") == inside


def test_multiply_adds_by_hand():
    # patches of 4 on 16 pixels: 16 tokens and the class token; C = 16, 64 neurons, 3 blocks, 10
    # classes
    model = tiny_vit()
    T, C = 17, 16
    block = T * C * 3 * C + 2 * T * T * C + T * C * C + 2 * T * C * 64
    assert count_multiply_adds(model) == 16 * C * 3 * 16 + 3 * block + C * 10
    assert count_cost(model, "multiply_adds", "blocks") == 3 * block


def test_the_least_important_for_its_cost_goes_first():
    model = tiny_vit()
    table = importance_table(model, measure="magnitude").assign(importance=1.0)
    head = (table["kind"] == "head") & (table["block"] == 1) & (table["index"] == 0)
    neurons = (
        (table["kind"] == "neuron")
        & (table["block"] == 2)
        & table["index"].isin([3, 9, 20, 33, 41, 50, 51, 63])
    )
    cost = count_cost(model, "parameters")
    for cheap, spec in [
        (head, [{}, {"heads": [1]}, {}]),
        (
            neurons,
            [
                {},
                {},
                {"neurons": [i for i in range(64) if i not in (3, 9, 20, 33, 41, 50, 51, 63)]},
            ],
        ),
    ]:
        plan = plan_pruning(model, table.assign(importance=np.where(cheap, 0.0, 1.0)), 1 - 1 / cost)
        assert count_parameters(prune(model, plan).module) == count_parameters(
            shrink_model(model, spec).module
        )
        kept = plan.spec[1]["heads"] if cheap is head else plan.spec[2]["neurons"]
        assert kept == (spec[1]["heads"] if cheap is head else spec[2]["neurons"])
    # all parts alike: eight neurons (8 * 33 parameters) are worth eight, a head (536 parameters)
    # one, so a head goes
    assert plan_pruning(model, table, 1 - 1 / cost).table["heads_kept"].sum() == 5
    # a block worth next to nothing goes as a whole, where it may
    block = (table["kind"] == "block") & (table["block"] == 0)
    cheap = table.assign(importance=np.where(block, 1e-9, 1.0))
    assert plan_pruning(model, cheap, 0.6, drop_blocks=True).spec[0] is None
    assert plan_pruning(model, cheap, 0.6).spec[0] is not None
    # a block is a third: it would overshoot
    near = plan_pruning(model, cheap, 0.95, drop_blocks=True)
    assert near.spec[0] is not None and near.share > 0.9


def test_kinds_left_out_of_the_table_are_left_alone():
    model = tiny_timm()
    plan = plan_pruning(model, weigh(model, kinds="head"), 0.95)
    assert (plan.table["neurons_kept"] == plan.table["neurons"]).all() and plan.table[
        "heads_kept"
    ].sum() < 12


@pytest.mark.parametrize("by", ["parameters", "multiply_adds"])
def test_a_target_out_of_reach_says_what_is_in_reach(by):
    model = tiny_deep_hybrid()
    table = weigh(model)
    with pytest.raises(ValueError, match="cannot be reached") as caught:
        plan_pruning(model, table, 0.01, by)
    assert "at least 1 head and 8 neurons" in str(caught.value)
    reachable = float(str(caught.value).split(" of them are left")[0].split()[-1])
    assert plan_pruning(model, table, reachable + 0.001, by).share == pytest.approx(
        reachable, abs=0.001
    )
    with pytest.raises(ValueError, match="cannot be reached") as further:
        plan_pruning(model, table, 0.01, by, drop_blocks=True)
    assert float(str(further.value).split(" of them are left")[0].split()[-1]) < reachable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 0}, "nothing left"),
        ({"target": 1.0}, "nothing pruned"),
        ({"target": "half"}, "share of parameters"),
        ({"by": "flops"}, "multiply_adds"),
        ({"of": "stem"}, "Choices: model, blocks"),
        ({"drop_blocks": True}, "importance of blocks"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    model = tiny_vit()
    table = importance_table(model, kinds=["head", "neuron"], measure="magnitude")
    with pytest.raises(ValueError, match=message):
        plan_pruning(model, table, **{"target": 0.7, **arguments})


def test_tables_and_plans_of_another_model():
    model = tiny_vit()
    table = importance_table(model, measure="magnitude")
    with pytest.raises(ValueError, match="other parts"):
        plan_pruning(tiny_timm(), table, 0.7)
    with pytest.raises(ValueError, match="no neuron of block 2"):
        plan_pruning(model, table[(table["kind"] != "neuron") | (table["block"] < 2)], 0.7)
    with pytest.raises(ValueError, match="several measures"):
        plan_pruning(model, pd.concat([table, table.assign(measure="taylor")]), 0.7)
    with pytest.raises(ValueError, match="other sizes"):
        prune(tiny_timm(), plan_pruning(model, table, 0.7))

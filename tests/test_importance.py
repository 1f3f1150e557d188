import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from tests.test_shrinking import FAMILIES, SPEC, draw_images, tiny_timm
from tests.toys import tiny_vit
from vitlab.compress.importance import importance_table, masking
from vitlab.explain import head_ablation_table
from vitlab.models import build_model, shrink_model


def draw_labels(model, count):
    return [model.classes[i % len(model.classes)] for i in range(count)]


def measure_loss(model, images, labels, masks):
    targets = torch.tensor([model.classes.index(label) for label in labels])
    with masking(model.module, masks), torch.no_grad():
        return F.cross_entropy(model.module(images), targets, reduction="none")


def pick(table, kind, block):
    return table[(table["kind"] == kind) & (table["block"] == block)].set_index("index")[
        "importance"
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_is_the_slope_of_the_loss_along_the_mask(family):
    model = FAMILIES[family]()
    model.module.double()
    images = draw_images(model, 5)
    labels = draw_labels(model, 5)
    table = importance_table(model, images, labels, batch_size=2)
    images = images.double()
    assert set(table.columns) == {"kind", "block", "index", "importance", "measure"}
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


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_is_the_loss_of_the_model_without_the_part(family):
    model = FAMILIES[family]()
    images, labels = draw_images(model, 5), draw_labels(model, 5)
    table = importance_table(model, images, labels, ["head", "block"], "ablation", batch_size=2)
    whole = measure_loss(model, images, labels, {}).mean()
    heads = len(pick(table, "head", 0))
    without = shrink_model(model, [{"heads": list(range(1, heads))}, {}, {}])
    rise = measure_loss(without, images, labels, {}).mean() - whole
    assert pick(table, "head", 0)[0] == pytest.approx(rise.item(), abs=1e-6)
    rise = measure_loss(shrink_model(model, [{}, None, {}]), images, labels, {}).mean() - whole
    assert pick(table, "block", 1)[0] == pytest.approx(rise.item(), abs=1e-6)
    assert table["importance"].abs().max() > 1e-6


def test_unused_parts_are_worth_nothing():
    model = tiny_vit()
    block = model.module.blocks[1]
    block.attn.proj.weight.data[:, 8:] = 0  # the second head's columns
    block.mlp.fc2.weight.data[:, 5] = 0
    images, labels = draw_images(model, 4), draw_labels(model, 4)
    for measure in ("taylor", "ablation"):
        table = importance_table(model, images, labels, ("head", "neuron"), measure)
        assert pick(table, "head", 1)[1] == 0 and pick(table, "head", 1)[0] != 0
        assert pick(table, "neuron", 1)[5] == 0 and pick(table, "neuron", 1)[4] != 0


def test_ablation_agrees_with_the_table_of_heads():
    model = tiny_vit()
    images = draw_images(model, 1)
    probs = model.module(images).softmax(dim=1)[0]
    predicted = model.classes[probs.argmax()]
    mine = importance_table(model, images, [predicted], "head", "ablation")
    theirs = head_ablation_table(model, images)
    prob = probs.max().item()
    expected = np.log(prob) - np.log(prob + theirs["change"])
    assert np.allclose(mine["importance"], expected, atol=1e-5)


def test_magnitude_by_hand():
    model = tiny_vit()
    block = model.module.blocks[2]
    table = importance_table(model, measure="magnitude")
    attn, mlp = block.attn, block.mlp
    # the second of two heads of 8
    rows = [8 + j + 16 * part for part in range(3) for j in range(8)]
    head = torch.cat(
        [attn.qkv.weight[rows].flatten(), attn.qkv.bias[rows], attn.proj.weight[:, 8:].flatten()]
    ).norm()
    neuron = torch.cat([mlp.fc1.weight[9], mlp.fc1.bias[9:10], mlp.fc2.weight[:, 9]]).norm()
    assert pick(table, "head", 2)[1] == pytest.approx(head.item(), rel=1e-5)
    assert pick(table, "neuron", 2)[9] == pytest.approx(neuron.item(), rel=1e-5)
    whole = torch.cat([parameter.flatten() for parameter in block.parameters()]).norm()
    assert pick(table, "block", 2)[0] == pytest.approx(whole.item(), rel=1e-5)


def test_a_shrunk_model_has_its_own_importance_and_nothing_is_left_behind():
    model = shrink_model(tiny_timm(), SPEC)
    images, labels = draw_images(model), draw_labels(model, 3)
    table = importance_table(model, images, labels)
    counts = table.groupby(["kind", "block"]).size().to_dict()
    assert counts == {
        ("head", 0): 1,
        ("head", 1): 2,
        ("neuron", 0): 15,
        ("neuron", 1): 5,
        ("block", 0): 1,
        ("block", 1): 1,
    }
    assert not any(
        part._forward_hooks or part._forward_pre_hooks for part in model.module.modules()
    )
    assert all(
        parameter.requires_grad and parameter.grad is None
        for parameter in model.module.parameters()
    )
    whole = importance_table(model, images, labels, batch_size=1)
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
def test_arguments_that_do_not_fit(arguments, message):
    model = tiny_vit()
    with pytest.raises(ValueError, match=message):
        importance_table(
            model, **{"images": draw_images(model), "labels": draw_labels(model, 3), **arguments}
        )


def test_a_cnn_has_no_such_parts():
    model = build_model("efficientnet_lite0", ["a", "b"], pretrained=False, size=32)
    with pytest.raises(ValueError, match="no transformer blocks"):
        importance_table(model, measure="magnitude")

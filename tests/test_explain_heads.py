"""Distance, entropy, ablation and change of heads against loops over tokens, weights zeroed by
hand, and scipy.
"""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import sem, spearmanr, t

from tests.families import assert_same_state, build_family, describe_state, family, sharpen
from vitlab.explain import (
    attention_change_table,
    attention_table,
    head_ablation_table,
    record_attention,
)
from vitlab.explain.attention import Layout, map_received
from vitlab.explain.heads import correct_heads, measure_distance_and_entropy

VIT = {"size": (16, 24), "depth": 3}


def sharp_model(seed=0):
    model = sharpen(build_family("vit_scratch", seed=seed, **VIT))
    with torch.no_grad():
        model.module.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def model():
    return sharp_model()


@pytest.fixture
def images():
    return torch.randn(9, 3, 16, 24)


def record(model, images):
    with record_attention(model.module, model.anatomy) as attention, torch.no_grad():
        model.module(images)
    return torch.stack(attention).double().numpy()  # (L, B, H, T, T)


def measure_by_loops(matrix):
    """Distance and entropy of one image and head, (T, T) with a class token, patches of 8 pixels on
    a grid of 2x3.
    """
    distances, entropies = [], []
    for query in range(6):
        weights = matrix[1 + query, 1:] / matrix[1 + query, 1:].sum()
        apart = [8 * np.hypot(query // 3 - key // 3, query % 3 - key % 3) for key in range(6)]
        distances.append(np.dot(weights, apart))
        entropies.append(-sum(weight * np.log(weight) for weight in weights))
    return np.mean(distances), np.mean(entropies)


def test_distance_and_entropy_by_loops(model, images):
    """Nine images are two batches."""
    model.module.train()
    before = describe_state(model.module)
    table = attention_table(model, images).set_index(["layer", "head"])
    assert_same_state(model.module, before)
    matrices = record(model, images)
    for (layer, head), row in table.iterrows():
        expected = np.array([measure_by_loops(one) for one in matrices[layer, :, head]])
        for i, name in enumerate(("distance", "entropy")):
            values = expected[:, i]
            assert row[name] == pytest.approx(values.mean(), rel=1e-4)
            interval = t.interval(0.95, 8, values.mean(), sem(values))
            assert row[[f"{name}_low", f"{name}_high"]].tolist() == pytest.approx(interval, 1e-3)
    assert list(table.index) == [(layer, head) for layer in range(3) for head in range(2)]
    assert table["distance"].std() > 0.1


def test_uniform_attention(model, images):
    for block in model.module.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
        torch.nn.init.zeros_(block.attn.qkv.bias)
    table = attention_table(model, images)
    np.testing.assert_allclose(table["entropy"], np.log(6), rtol=1e-5)
    apart = [np.hypot(i // 3 - j // 3, i % 3 - j % 3) for i in range(6) for j in range(6)]
    np.testing.assert_allclose(table["distance"], 8 * np.mean(apart), rtol=1e-5)


def test_a_swin_attends_no_further_than_its_windows():
    model = build_family("swin_tiny_patch4_window7_224", size=64)
    table = attention_table(model, torch.randn(2, 3, 64, 64))
    assert table.groupby("layer").size().tolist() == [2, 2, 4, 4]
    assert (table["entropy"] <= np.log(16) + 1e-5).all()
    # the diagonal of a window, in pixels
    assert (table["distance"] < np.where(table["layer"] < 2, 4, 8) * 3 * 2**0.5).all()


@pytest.mark.parametrize("name", ["vit_scratch", "swin_tiny_patch4_window7_224"])
def test_a_head_set_to_zero_is_its_columns_of_proj_set_to_zero(name):
    model = sharp_model() if name == "vit_scratch" else build_family(name, size=64)
    *_, head = (
        part
        for part in model.module.modules()
        if isinstance(part, torch.nn.Linear) and part.out_features == 3
    )
    torch.nn.init.normal_(head.weight)
    images = torch.randn(9, 3, *model.transform.size)
    model.module.train()
    before = describe_state(model.module)
    table = head_ablation_table(model, images)
    assert_same_state(model.module, before)
    module = model.module.eval()
    names = model.anatomy.attention or [window.attention for window in model.anatomy.windows]
    with torch.no_grad():
        whole = module(images).softmax(dim=1)
        chosen = whole.argmax(dim=1)
        for row in table.iloc[::3].itertuples():
            changed = copy.deepcopy(module)
            proj = changed.get_submodule(names[row.layer]).proj
            proj.weight[:, 12 * row.head : 12 * (row.head + 1)] = 0
            change = (changed(images).softmax(dim=1) - whole)[range(9), chosen].mean().item()
            assert row.change == pytest.approx(change, abs=1e-5)
            assert row.low <= row.change <= row.high
    assert table["change"].abs().max() > 0.001


def test_a_model_without_heads():
    for make in (attention_table, head_ablation_table):
        with pytest.raises(ValueError, match="has no attention"):
            make(family("test_resnet"), torch.randn(1, 3, 64, 64))


def test_change_between_two_sets_of_weights(model, images):
    after = sharp_model(seed=1)
    table = attention_change_table(model, after, images)
    for measure in ("distance", "entropy"):
        rows = table[table["measure"] == measure].reset_index(drop=True)
        for name, one in (("before", model), ("after", after)):
            np.testing.assert_allclose(rows[name], attention_table(one, images)[measure], rtol=1e-5)
        assert ((rows["low"] <= rows["change"]) & (rows["change"] <= rows["high"])).all()
    one, other = record(model, images), record(after, images)
    for row in table[table["measure"] == "similarity"].itertuples():
        # of the class token, (B, N)
        attends = [each[row.layer][:, row.head, 0, 1:] for each in (one, other)]
        # less than a millionth of the largest is a tie
        attends = [np.round(each / each.max(axis=1, keepdims=True), 6) for each in attends]
        expected = np.mean([spearmanr(a, b).statistic for a, b in zip(*attends, strict=True)])
        assert row.before == 1 and row.after == pytest.approx(expected, abs=1e-6)
    assert len(table) == 3 * 2 * 3 and table.query("measure == 'similarity'")["after"].max() < 0.99


def test_a_model_and_itself_have_not_changed(model, images):
    assert (attention_change_table(model, model, images)["change"].abs() < 1e-9).all()
    other = build_family("vit_scratch", **{**VIT, "depth": 2})
    with pytest.raises(ValueError, match="differ in their structure"):
        attention_change_table(other, model, images)


@pytest.mark.parametrize("draw", ["normal", "laplace"])
def test_heads_that_change_nothing_are_seldom_significant(draw):
    """144 heads, 12 images, no effect, 50 models: at most 3 with a significant head; uncorrected
    intervals have 12 heads in each.
    """
    generator, significant = np.random.default_rng(0), 0
    for _ in range(50):
        changes = getattr(generator, draw)(size=(12, 144))
        significant += (correct_heads(changes) < 0.05).any()
    assert significant <= 3
    changes[:, :10] += 3
    shown = correct_heads(changes) < 0.05
    assert shown[:10].all() and shown[10:].sum() <= 2
    assert np.isnan(correct_heads(changes[:1])).all()


def test_attention_of_shifted_windows_lands_on_its_token():
    """Two windows of 1x2 on a map of 1x4, shifted by one: they hold tokens 1, 2 and 3, 0."""
    layout = Layout((1, 4), torch.tensor([[1, 2], [3, 0]]))
    # (windows, 1, 2, 2)
    attention = torch.tensor([[[[0.9, 0.1], [0.5, 0.5]]], [[[1.0, 0.0], [0.2, 0.8]]]])
    found = map_received(attention, layout)
    torch.testing.assert_close(found, torch.tensor([[[[0.8, 1.4, 0.6, 1.2]]]]) / 4)
    measured = measure_distance_and_entropy(attention, layout, (10, 40))
    log = np.log
    entropies = [-0.9 * log(0.9) - 0.1 * log(0.1), log(2), 0, -0.2 * log(0.2) - 0.8 * log(0.8)]
    distances = [0.1 * 10, 0.5 * 10, 0, 0.2 * 30]  # tokens 3 and 0 lie 30 pixels apart
    np.testing.assert_allclose(measured, [[[np.mean(distances), np.mean(entropies)]]], rtol=1e-5)


def test_prefix_tokens_and_padding_are_left_out_of_distance_and_entropy():
    layout = Layout((2, 1), torch.tensor([[-1, 0, 1]]))
    attention = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.25, 0.25], [0.8, 0.2, 0.0]])[None, None]
    found = measure_distance_and_entropy(attention, layout, (16, 8))
    # rows of the patches, prefix left out: (0.5, 0.5) and (1, 0); patches are 8 pixels apart
    np.testing.assert_allclose(found, [[[(0.5 * 8 + 8) / 2, np.log(2) / 2]]], rtol=1e-5)

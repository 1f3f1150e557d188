"""Distance, entropy, ablation and change of heads against loops over tokens, weights zeroed by
hand, and scipy.
"""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import sem, spearmanr, t

from vitlab.explain import (
    attention_change_table,
    attention_table,
    head_ablation_table,
    record_attention,
)
from vitlab.explain.attention import Layout, map_received
from vitlab.explain.heads import correct_heads, measure_distance_and_entropy
from vitlab.models import build_model

VIT = {"size": (16, 24), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
SWIN = {
    "size": 64,
    "embed_dim": 24,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
    "pretrained": False,
}


def sharp_model(seed=0):
    model = build_model("vit_scratch", ["a", "b", "c"], seed=seed, **VIT)
    with torch.no_grad():
        for block in model.module.blocks:
            block.attn.qkv.weight.mul_(20)
        model.module.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def model():
    return sharp_model()


@pytest.fixture
def images():
    return torch.randn(5, 3, 16, 24)


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


def describe(module):
    hooks = sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()
    )
    flags = (
        [part.training for part in module.modules()],
        [parameter.requires_grad for parameter in module.parameters()],
    )
    return hooks, flags, {name: value.clone() for name, value in module.state_dict().items()}


def assert_unchanged(module, before):
    hooks, flags, weights = describe(module)
    assert (hooks, flags) == before[:2] and all(
        torch.equal(weights[name], before[2][name]) for name in weights
    )


def test_distance_and_entropy_by_loops(model, images):
    model.module.train()
    before = describe(model.module)
    table = attention_table(model, images, batch_size=2).set_index(["layer", "head"])
    assert_unchanged(model.module, before)
    expected = np.array(
        [
            [[measure_by_loops(one) for one in heads] for heads in layer]
            for layer in record(model, images)
        ]
    )
    for (layer, head), row in table.iterrows():
        np.testing.assert_allclose(
            row[["distance", "entropy"]], expected[layer, :, head].mean(axis=0), rtol=1e-4
        )
        for place, name in enumerate(("distance", "entropy")):
            values = expected[layer, :, head, place]
            interval = t.interval(0.95, 4, values.mean(), sem(values))
            np.testing.assert_allclose(
                row[[f"{name}_low", f"{name}_high"]].astype(float), interval, rtol=1e-3
            )
    assert list(table.index) == [(layer, head) for layer in range(3) for head in range(2)]
    assert table["distance"].std() > 0.1


def test_even_attention_has_the_entropy_of_an_even_look(model, images):
    for block in model.module.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
        torch.nn.init.zeros_(block.attn.qkv.bias)
    table = attention_table(model, images)
    np.testing.assert_allclose(table["entropy"], np.log(6), rtol=1e-5)
    apart = [np.hypot(i // 3 - j // 3, i % 3 - j % 3) for i in range(6) for j in range(6)]
    np.testing.assert_allclose(table["distance"], 8 * np.mean(apart), rtol=1e-5)


def test_a_swin_looks_no_further_than_its_windows():
    model = build_model("swin_tiny_patch4_window7_224", ["a", "b"], **SWIN)
    table = attention_table(model, torch.randn(2, 3, 64, 64))
    assert table.groupby("layer").size().tolist() == [2, 2, 4, 4]
    assert (table["entropy"] <= np.log(16) + 1e-5).all()
    # the diagonal of a window, in pixels
    assert (table["distance"] < np.where(table["layer"] < 2, 4, 8) * 3 * 2**0.5).all()


@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_head_set_to_zero_is_its_columns_of_proj_set_to_zero(model, images, batch_size):
    model.module.train()
    before = describe(model.module)
    table = head_ablation_table(model, images, batch_size=batch_size)
    assert_unchanged(model.module, before)
    model.module.eval()
    with torch.no_grad():
        whole = model.module(images).softmax(dim=1)
        chosen = whole.argmax(dim=1)
        for row in table.itertuples():
            changed = copy.deepcopy(model.module)
            changed.blocks[row.layer].attn.proj.weight[:, 12 * row.head : 12 * (row.head + 1)] = 0
            probs = changed(images).softmax(dim=1)
            changes = (probs - whole)[range(5), chosen].numpy()
            assert row.change == pytest.approx(changes.mean(), abs=1e-5)
            assert row.low <= row.change <= row.high
    assert len(table) == 6 and table["change"].abs().max() > 0.01


def test_a_head_of_a_swin_is_its_columns_too():
    model, images = (
        build_model("swin_tiny_patch4_window7_224", ["a", "b"], **SWIN),
        torch.randn(2, 3, 64, 64),
    )
    *_, head = (
        part
        for part in model.module.modules()
        if isinstance(part, torch.nn.Linear) and part.out_features == 2
    )
    torch.nn.init.normal_(head.weight)
    table = head_ablation_table(model, images).query("layer == 3").reset_index(drop=True)
    model.module.eval()
    with torch.no_grad():
        whole = model.module(images).softmax(dim=1)
        changed = copy.deepcopy(model)
        changed.module.get_submodule(model.anatomy.windows[-1].attention).proj.weight[:, 12:24] = 0
        change = changed.module(images).softmax(dim=1) - whole
        expected = change[range(2), whole.argmax(dim=1)].mean().item()
    assert table["change"][1] == pytest.approx(expected, abs=1e-5) and abs(expected) > 1e-4


def test_a_model_without_heads(images):
    cnn = build_model("resnet18", ["a", "b"], pretrained=False, size=(32, 32))
    for make in (attention_table, head_ablation_table):
        with pytest.raises(ValueError, match="has no attention"):
            make(cnn, torch.randn(1, 3, 32, 32))


def test_what_fine_tuning_changed(model, images):
    after = sharp_model(seed=1)
    table = attention_change_table(model, after, images, batch_size=2)
    ours = {
        name: attention_table(one, images) for name, one in (("before", model), ("after", after))
    }
    for measure in ("distance", "entropy"):
        rows = table[table["measure"] == measure].reset_index(drop=True)
        for name in ("before", "after"):
            np.testing.assert_allclose(rows[name], ours[name][measure], rtol=1e-5)
        assert ((rows["low"] <= rows["change"]) & (rows["change"] <= rows["high"])).all()
    one, other = record(model, images), record(after, images)
    for row in table[table["measure"] == "similarity"].itertuples():
        # of the class token, (B, N)
        looks = one[row.layer][:, row.head, 0, 1:], other[row.layer][:, row.head, 0, 1:]
        expected = np.mean([spearmanr(a, b).statistic for a, b in zip(*looks, strict=True)])
        assert row.before == 1 and row.after == pytest.approx(expected, abs=1e-6)
    assert len(table) == 3 * 2 * 3 and table.query("measure == 'similarity'")["after"].max() < 0.99


def test_a_model_and_itself_have_not_changed(model, images):
    table = attention_change_table(model, model, images)
    assert (table["change"].abs() < 1e-9).all()
    other = build_model("vit_scratch", ["a", "b", "c"], **{**VIT, "depth": 2})
    with pytest.raises(ValueError, match="not built alike"):
        attention_change_table(other, model, images)


@pytest.mark.parametrize("draw", ["normal", "laplace"])
def test_heads_that_change_nothing_are_seldom_framed(draw):
    """144 heads, 12 images, no effect, 50 models: at most 3 with a frame; uncorrected intervals
    frame 12 heads in each.
    """
    generator, framed = np.random.default_rng(0), 0
    for _ in range(50):
        changes = getattr(generator, draw)(size=(12, 144))
        framed += (correct_heads(changes) < 0.05).any()
    assert framed <= 3
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


def test_prefix_tokens_and_fillings_are_left_out_of_distance_and_entropy():
    layout = Layout((2, 1), torch.tensor([[-1, 0, 1]]))
    attention = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.25, 0.25], [0.8, 0.2, 0.0]])[None, None]
    found = measure_distance_and_entropy(attention, layout, (16, 8))
    # rows of the patches, prefix left out: (0.5, 0.5) and (1, 0); patches are 8 pixels apart
    np.testing.assert_allclose(found, [[[(0.5 * 8 + 8) / 2, np.log(2) / 2]]], rtol=1e-5)

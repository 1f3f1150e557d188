"""Maps of models with other weights, other labels and other classes, against rank correlations and
networks by hand.
"""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from tests.test_explain import assert_same_state, describe_state
from tests.toys import linear_model
from vitlab.explain import (
    class_sensitivity_table,
    class_verdicts,
    compare_models_table,
    explain,
    randomisation_table,
    randomise,
    sanity_verdicts,
)
from vitlab.explain.methods import explanation, methods
from vitlab.explain.randomisation import _correlate, _rank_cells
from vitlab.models import build_model, split_stages
from vitlab.schema import Anatomy

CLASSES = ("a", "b", "c")
SIZES = {
    "vit_scratch": {"size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2},
    "hybrid_vit": {"size": 64, "pretrained": False, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "resnet18": {"size": 48, "pretrained": False},
}


def build(name):
    return build_model(name, CLASSES, **SIZES[name])


def make_images(model, count=4):
    return torch.randn(count, 3, *model.transform.size, generator=torch.Generator().manual_seed(1))


def changed_pieces(model, other):
    """Names of the stages in which any parameter differs."""
    found = []
    for (name, stage), (_, after) in zip(
        split_stages(model.module), split_stages(other.module), strict=True
    ):
        pairs = zip(stage.parameters(), after.parameters(), strict=True)
        if any(not torch.equal(one, two) for one, two in pairs):
            found.append(name)
    return found


@pytest.mark.parametrize("name", SIZES)
def test_weights_are_drawn_anew_from_the_head_down(name):
    model = build(name)
    # as if trained: nothing is at 0 or 1, where a new draw may put it as well
    for parameter in model.module.parameters():
        parameter.data += 0.01 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(len(parameter))
        )
    before, state = describe_state(model.module), torch.random.get_rng_state()
    names = [name for name, stage in split_stages(model.module) if list(stage.parameters())]
    seen = []
    for step, (layer, changed) in enumerate(randomise(model, make_images(model), steps=3)):
        found = changed_pieces(model, changed)
        assert found == names[len(names) - len(found) :], "the last ones, without a gap"
        assert step or (layer, found) == ("head", ["head"])
        seen.append(len(found))
        assert torch.isfinite(changed.module(make_images(model))).all()
        assert not changed.module.training
    assert (
        len(seen) == 3
        and seen[-1] == len(names)
        and seen[1] - 1 == pytest.approx((len(names) - 1) / 2, abs=0.5)
    )
    every = [parameter for part in changed.module.children() for parameter in part.parameters()]
    assert not any(
        torch.equal(one, two)
        for one, two in zip(model.module.parameters(), every, strict=False)
        if one.numel() > 1
    )
    assert_same_state(model.module, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_drawn_depends_on_the_seed_alone():
    model = build("vit_scratch")
    images = make_images(model)

    def draw(seed):
        *_, (_, changed) = randomise(model, images, steps=2, seed=seed)
        return changed.module.state_dict()

    first, other = draw(0), draw(1)
    torch.rand(5)
    again = draw(0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    positions = model.module.pos_embed.detach()
    assert not torch.equal(first["pos_embed"], positions)
    # its values, permuted
    torch.testing.assert_close(
        first["pos_embed"].flatten().sort()[0], positions.flatten().sort()[0]
    )


def test_batch_statistics_are_measured():
    model = build("resnet18")
    images = make_images(model, 40) + 3
    (_, changed), *_ = randomise(model, images, steps=1)
    norm, seen = changed.module.bn1, []
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    changed.module(images)
    parts = [part.mean(dim=(0, 2, 3)) for part in seen[0].split(32)]
    torch.testing.assert_close(
        norm.running_mean, torch.stack(parts).mean(dim=0), atol=1e-4, rtol=1e-4
    )
    assert norm.momentum == model.module.bn1.momentum and not norm.training


def test_a_module_that_cannot_be_cut_is_taken_apart_by_its_children():
    weight = torch.randn(3, 12)
    model = linear_model(weight, torch.zeros(3), CLASSES, 2)
    model = replace(
        model, module=nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    )
    layers = [
        (layer, copy.deepcopy(m.module.state_dict()))
        for layer, m in randomise(model, torch.randn(2, 3, 2, 2), steps=5)
    ]
    assert [layer for layer, _ in layers] == [
        "3",
        "1",
    ], "no more steps than there are parts with weights"
    assert torch.equal(layers[0][1]["1.weight"], model.module[1].weight)
    assert not torch.equal(layers[1][1]["1.weight"], model.module[1].weight)
    torch.testing.assert_close(layers[0][1]["3.weight"], layers[1][1]["3.weight"])


@pytest.fixture
def test_methods(monkeypatch):
    """Two methods of which it is known what they show: one the weights of a linear model, one the
    image alone.
    """
    monkeypatch.setattr(methods, "_functions", dict(methods._functions))

    @explanation(signed=True, shows="A test.")
    def weights(model, images, targets, sign=1):
        shown = sign * (targets.float() @ model.module.weight)  # (B, 3 * h * w)
        return shown.unflatten(1, (3, *images.shape[-2:])).sum(dim=1)

    @explanation(signed=False, shows="A test.")
    def edges(model, images, targets):
        return images.mean(dim=1).abs()

    @explanation(signed=False, shows="A test.")
    def blank(model, images, targets):
        return torch.zeros_like(images[:, 0])


class Linear(nn.Module):
    """A linear layer without bias that can be drawn anew."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T

    def reset_parameters(self):
        nn.init.normal_(self.weight)


class Shown(nn.Sequential):
    """A sequence of one layer that shows its layer's weight."""

    @property
    def weight(self):
        return self[0].weight


def shown(weight):
    """A linear model on 8 x 8 pixels, each of them a cell."""
    anatomy = Anatomy("cnn", (), (), 0, (8, 8), ("0",))
    return replace(
        linear_model(weight, torch.zeros(3), CLASSES, 8),
        module=Shown(Linear(weight)),
        anatomy=anatomy,
    )


def test_known_methods(test_methods):
    model = shown(torch.randn(3, 192))
    images = torch.randn(12, 3, 8, 8)
    table = randomisation_table(
        model, images, ["weights", "edges", "blank"], sample_ids=[f"s{i}" for i in range(12)]
    )
    assert list(table.columns) == [
        "method",
        "step",
        "layer",
        "sample_id",
        "similarity",
        "absolute",
        "other_image",
    ]
    assert (
        len(table) == 3 * 2 * 12
        and set(table["step"]) == {0, 1}
        and set(table["layer"]) == {"", "0"}
    )
    assert (table.query("step == 0")[["similarity", "absolute"]] == 1).all(axis=None)
    last = table.query("step == 1").set_index(["method", "sample_id"])
    assert (last.loc["edges", "similarity"] == 1).all() and last.loc[
        "weights", "similarity"
    ].abs().max() < 0.5
    assert (last.loc["blank", ["similarity", "other_image"]] == 1).all(axis=None)
    (_, changed), *_ = randomise(model, images)
    maps = [
        explain(m, images, "weights", explain(model, images, "weights").target).values
        for m in (model, changed)
    ]
    for i in range(12):
        expected = spearmanr(maps[0][i].ravel(), maps[1][i].ravel()).statistic
        assert last.loc[("weights", f"s{i}"), "similarity"] == pytest.approx(expected, abs=1e-9)
    edges = images.mean(dim=1).abs().flatten(1).numpy()
    expected = np.mean([spearmanr(edges[0], edges[i]).statistic for i in range(1, 12)])
    assert last.loc[("edges", "s0"), "other_image"] == pytest.approx(expected, abs=1e-6)
    verdicts = sanity_verdicts(table).set_index("method")
    assert verdicts["verdict"].to_dict() == {
        "weights": "changes with the model",
        "edges": "does not change: explains nothing of the model",
        "blank": "does not change: explains nothing of the model",
    }
    assert verdicts.loc["edges", ["similarity", "low", "high"]].tolist() == [1, 1, 1]


def test_two_models_and_options(test_methods):
    weight, images = torch.randn(3, 192), torch.randn(6, 3, 8, 8)
    model, turned = shown(weight), shown(-weight)
    table = compare_models_table(model, turned, images, ["weights"])
    assert table["similarity"].to_numpy() == pytest.approx(-1) and table[
        "absolute"
    ].to_numpy() == pytest.approx(1)
    verdicts = sanity_verdicts(table)
    assert verdicts["verdict"].tolist() == ["does not change: explains nothing of the model"], (
        "the sign alone is no change"
    )
    same = compare_models_table(
        model,
        model,
        images,
        ["weights"],
        options={"weights": {"sign": -1}},
        sample_ids=list("abcdef"),
    )
    assert same["similarity"].to_numpy() == pytest.approx(1) and same["sample_id"].tolist() == list(
        "abcdef"
    )
    with pytest.raises(ValueError, match="differ in classes or in what images they take"):
        compare_models_table(model, replace(model, classes=("x", "y", "z")), images, ["weights"])


def test_not_shown_in_between():
    def table(values):
        columns = {
            "method": "m",
            "step": 1,
            "sample_id": range(len(values)),
            "similarity": 0.0,
            "other_image": 0.0,
        }
        return pd.DataFrame({**columns, "absolute": values})

    row = sanity_verdicts(table([0.2, 0.9] * 8)).iloc[0]
    assert (
        row["verdict"] == "not shown"
        and row["low"] < 0.5 < row["high"]
        and row["similarity"] == pytest.approx(0.55)
    )
    assert sanity_verdicts(table([0.2, 0.5] * 8)).iloc[0]["verdict"] == "changes with the model"
    with pytest.raises(ValueError, match="no step after the trained model"):
        sanity_verdicts(table([1.0]).assign(step=0))


@pytest.mark.parametrize("count", [6, 12])
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_how_often_verdicts_are_wrong_at_the_threshold(shape, count):
    """Nine methods whose mean similarity is exactly 0.5, 100 tables; the target is 2.5 % of either
    kind.

    Normal: up to 6 of 100, which are exceeded with a chance of 1 %. Skewed: the docstring says 28
    and 29 %, of the one kind."""
    generator, wrong = np.random.default_rng(count), np.zeros(2)
    for _ in range(100):
        values, methods = (
            generator.normal(0.5, 0.15, size=(9, count)),
            np.repeat([f"m{i}" for i in range(9)], count),
        )
        if shape == "skewed":
            values = 0.5 + 0.15 * (generator.exponential(size=(9, count)) - 1)
        table = pd.DataFrame(
            {
                "method": methods,
                "step": 1,
                "similarity": 0.0,
                "other_image": 0.0,
                "absolute": values.ravel(),
            }
        )
        verdicts = sanity_verdicts(table)["verdict"]
        wrong += verdicts.str.startswith("changes").any(), verdicts.str.startswith("does not").any()
    if shape == "normal":
        assert (wrong <= 6).all() and wrong.any(), wrong
    else:
        assert 15 <= wrong[0] <= 43 and wrong[1] <= 6, wrong


def test_classes(test_methods):
    weight = torch.randn(3, 192)
    model, images = shown(weight), torch.randn(5, 3, 8, 8)
    table = class_sensitivity_table(model, images, ["weights", "edges"])
    order = (images.flatten(1) @ weight.T).argsort(dim=1, descending=True)
    for i, row in enumerate(table.query("method == 'weights'").itertuples()):
        first, second = order[i, :2].tolist()
        assert (row.target, row.other) == (CLASSES[first], CLASSES[second])
        maps = weight.reshape(3, 3, 64).sum(dim=1)
        assert row.similarity == pytest.approx(
            spearmanr(maps[first], maps[second]).statistic, abs=1e-6
        )
    verdicts = class_verdicts(table).set_index("method")["verdict"]
    assert verdicts.to_dict() == {"weights": "differs", "edges": "the same for every class"}


def test_rollout_is_the_same_for_every_class_and_integrated_gradients_are_not():
    model = build("vit_scratch")
    options = {"integrated_gradients": {"steps": 2}}
    table = class_sensitivity_table(
        model, make_images(model), ["rollout", "integrated_gradients"], options=options
    )
    verdicts = class_verdicts(table).set_index("method")
    assert (
        verdicts.loc["rollout", "verdict"] == "the same for every class"
        and verdicts.loc["rollout", "similarity"] == 1
    )
    assert verdicts.loc["integrated_gradients", "verdict"] == "differs"


@pytest.mark.parametrize("name", SIZES)
def test_every_family(name):
    model = build(name)
    before, names = describe_state(model.module), ["grad_cam", "saliency"]
    table = randomisation_table(model, make_images(model), names, steps=2, batch_size=3)
    assert len(table) == 2 * 3 * 4 and table[["similarity", "absolute"]].notna().all(axis=None)
    assert table[["similarity", "absolute"]].abs().max(axis=None) <= 1 + 1e-9
    assert_same_state(model.module, before)
    pd.testing.assert_frame_equal(
        randomisation_table(model, make_images(model), names, steps=2, batch_size=3), table
    )


def test_correlation_of_blank_and_tied_maps():
    cells = torch.arange(4).reshape(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
    values = np.array([[1.0, 2, 2, 5], [0, 0, 0, 0], [3, 1, 1, 0]])
    maps = np.stack([np.kron(row.reshape(2, 2), np.ones((2, 2))) for row in values]).astype(
        np.float32
    )
    ranks = _rank_cells(maps, cells)
    np.testing.assert_allclose(ranks[0], [1, 2.5, 2.5, 4])
    found = _correlate(ranks[:, None], ranks[None])
    np.testing.assert_allclose(found, [[1, 0, -1], [0, 1, 0], [-1, 0, 1]], atol=1e-12)
    noise = 1e-15 * np.arange(16).reshape(4, 4)  # as of sums in another order
    np.testing.assert_array_equal(_rank_cells(maps.astype(float) + noise, cells), ranks)


def test_steps_must_be_a_number():
    model = build("vit_scratch")
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, not 0"):
        next(randomise(model, make_images(model), steps=0))

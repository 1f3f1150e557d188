"""Pointing at what decides, with numbers worked out by hand, and models of which it is known what
they go by.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.toys import tiny_vit
from vitlab.data import load_dataset, load_images, stamp_masks
from vitlab.explain import (
    describe_stamp_effect,
    explain,
    pointing_scores,
    pointing_table,
    stamp_effect_table,
)
from vitlab.schema import Anatomy, AttributionMap, ModelBundle, Transform

MASK = np.zeros((1, 4, 4), dtype=bool)
MASK[0, :2, :2] = True  # 4 of 16 pixels


def make_maps(*values, method="saliency"):
    values = np.array(values, dtype=np.float32)
    return AttributionMap(
        values, method, ("a",) * len(values), tuple(f"s{i}" for i in range(len(values))), True
    )


def point(values, mask=MASK):
    return pointing_table(make_maps(values), mask).iloc[0]


def test_worked_out_by_hand():
    row = point([[5, 1, 0, 0], [2, -4, 3, 0], [0, 0, -9, 1], [0, 0, 0, 0]])
    # largest value 5, inside; positive values 5 + 1 + 2 of 12 inside; the four largest are 5, 3, 2
    # and one of the two 1s
    assert (row["hit"], row["mass"], row["chance"]) == (1, 8 / 12, 0.25)
    assert row["rank"] == pytest.approx((2 + 0.5) / 4)
    row = point([[0, 0, 0, 0], [0, 0, 7, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert (row["hit"], row["mass"]) == (0, 0) and row["rank"] == pytest.approx(3 * 4 / 15 / 4), (
        "three places for 15 zeros"
    )


def test_maps_that_say_nothing_get_what_chance_gives():
    for blank in (np.zeros((4, 4)), np.full((4, 4), 2.0), np.full((4, 4), -1.0)):
        row = point(blank)
        assert row[["hit", "mass", "rank"]].tolist() == [0.25, 0.25, 0.25]
    two = np.zeros((4, 4))
    two[0, 0] = two[3, 3] = 1
    assert point(two)["hit"] == 0.5, "one of the two largest values is inside"
    generator, masks = np.random.default_rng(0), np.repeat(MASK, 4000, axis=0)
    table = pointing_table(make_maps(*generator.normal(size=(4000, 4, 4))), masks)
    assert table[["hit", "mass", "rank"]].mean().to_numpy() == pytest.approx(0.25, abs=0.02)


def test_scores_are_long():
    table = pointing_table(
        make_maps(MASK[0], ~MASK[0], method="rollout"), np.repeat(MASK, 2, axis=0)
    )
    scores = pointing_scores(table)
    assert list(scores.columns) == ["method", "metric", "sample_id", "value"] and len(scores) == 6
    expected = {("pointing_hit", "s0"): 1, ("pointing_mass", "s0"): 1, ("pointing_rank", "s0"): 1}
    expected |= {("pointing_hit", "s1"): 0, ("pointing_mass", "s1"): 0, ("pointing_rank", "s1"): 0}
    assert scores.set_index(["metric", "sample_id"])["value"].to_dict() == expected and set(
        scores["method"]
    ) == {"rollout"}


class BarDetector(nn.Module):
    """Two logits: the greatest step from row to row, and from column to column, averaged over the
    other axis of a window.

    Edges of stepped diagonals hardly add up along an axis, those of bars do: a model that goes by
    the stamp and by nothing else."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        grey = self.scale * images.mean(dim=1, keepdim=True)
        maps = [grey.diff(dim=2), grey.diff(dim=3)]
        windows = [(1, 8), (8, 1)]
        pooled = [
            nn.functional.avg_pool2d(m, w, stride=1).abs()
            for m, w in zip(maps, windows, strict=True)
        ]
        return torch.cat([m.amax(dim=(2, 3)) for m in pooled], dim=1)


@pytest.fixture(scope="module")
def data():
    """Planted images of plain grey, of two classes."""
    data = load_dataset("planted:digits")
    samples = data.samples[data.samples["label"].isin(["0", "1"])].reset_index(drop=True)
    grey = load_dataset("digits").read("digit0000").point(lambda value: 128)
    return replace(
        data,
        classes=("0", "1"),
        samples=samples,
        read=replace(data.read, read=lambda sample_id: grey),
    )


@pytest.fixture(scope="module")
def detector():
    transform = Transform((72, 72), (0.5,) * 3, (0.5,) * 3)
    return ModelBundle(
        "detector",
        BarDetector().eval(),
        ("0", "1"),
        transform,
        Anatomy("cnn", (), (), 0, (9, 9), ("",)),
    )


def test_a_model_that_goes_by_the_stamp(detector, data):
    stamped = data.split("test").query("stamped")["sample_id"]
    effect = stamp_effect_table(detector, data, stamped)
    assert effect["sample_id"].tolist() == stamped.tolist()
    assert effect["right"].all() and effect["decides"].all() and not effect["right_other"].any()
    assert 0.2 < effect["right_without"].mean() < 0.8
    assert "the test is valid" in describe_stamp_effect(effect)
    chosen = effect["sample_id"][:8].tolist()
    images = load_images(data, chosen, detector.transform)
    maps = explain(detector, images, "saliency", sample_ids=chosen)
    table = pointing_table(maps, stamp_masks(data, chosen, detector.transform))
    assert (
        (table["hit"] == 1).all()
        and table["mass"].min() > 0.7
        and table["chance"].tolist() == pytest.approx([1 / 36] * 8)
    )
    beside = ~stamp_masks(data, chosen, detector.transform)
    assert (pointing_table(maps, beside)["hit"] == 0).all()


def test_a_model_that_does_not(data):
    model = tiny_vit()
    model = replace(
        model,
        classes=("0", "1"),
        module=nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)).eval(),
    )
    nn.init.zeros_(model.module[1].weight)
    model.module[1].bias.data = torch.tensor([1.0, 0.0])
    chosen = data.samples.query("stamped and split == 'val'")["sample_id"].iloc[20::-1]
    effect = stamp_effect_table(model, data, chosen)  # says "0" whatever it sees
    assert effect["sample_id"].tolist() == chosen.tolist()
    assert not effect["decides"].any() and effect["right"].equals(effect["right_other"])
    assert effect["right"].equals(effect["label"] == "0")
    assert "has not learned to use the stamp" in describe_stamp_effect(effect)


def test_what_does_not_fit_is_named(detector, data):
    maps = make_maps(np.eye(4))
    for masks, message in (
        (MASK[:, :3], r"masks \(1, 3, 4\) do not fit maps \(1, 4, 4\)"),
        (np.zeros_like(MASK), "the stamp of s0 is not visible"),
    ):
        with pytest.raises(ValueError, match=message):
            pointing_table(maps, masks)
    with pytest.raises(ValueError, match=r"choose images .* where the column stamped is true"):
        stamp_effect_table(detector, data, data.samples.query("not stamped")["sample_id"][:3])
    with pytest.raises(ValueError, match="digits has no planted stamps"):
        stamp_effect_table(detector, load_dataset("digits"), ["digit0000"])

"""Maps before and after compression: correlations by hand, and a model that is its own copy."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from tests.toys import linear_digits, linear_model, small_digits, tiny_vit
from vitlab.compress.explanations import describe_shifts, explanation_shift_table
from vitlab.data import ImageDataset
from vitlab.explain import explain, sanity_table


def digits(model, count=6):
    dataset = ImageDataset(small_digits(), "test", model.transform)
    return torch.stack([image for image, _, _ in dataset.__getitems__(range(count))])


def test_a_copy_has_the_same_maps():
    networks = {"full": tiny_vit(), "copy": tiny_vit()}
    table = explanation_shift_table(networks, digits(networks["full"]), ["saliency", "rollout"])
    assert table["method"].tolist() == ["saliency", "rollout"]
    assert (table["model"] == "copy").all() and (table["n"] == 6).all()
    assert table[["value", "low", "high"]].to_numpy().ravel() == pytest.approx([1] * 6)
    text = describe_shifts(table)
    assert text.startswith("More alike than maps of different images: saliency of *copy*")


def test_values_are_those_of_the_sanity_checks():
    model, other = tiny_vit(), tiny_vit(seed=1)
    images = digits(model)
    row = explanation_shift_table({"a": model, "b": other}, images, ["saliency"]).iloc[0]
    theirs = sanity_table(model, images, [explain(model, images, "saliency")], other)
    assert row["value"] == pytest.approx(theirs["similarity"].mean())
    assert row["other"] == pytest.approx(theirs["other_image"].mean())


def test_two_images_and_four_patches_by_hand():
    """Each class has other weights for the four pixels; those of the second class are permuted in
    the compressed model.

    Ranks 1 2 3 4 against 1 4 3 2: 1 - 6 * 8 / (4 * 15) = 0.2; against those of the first class, 4 1
    2 3: 1 - 6 * 12 / 60 = -0.2."""
    first, second, changed = [[4.0, 1], [2, 3]], [[1.0, 2], [3, 4]], [[1.0, 4], [3, 2]]
    networks = {}
    for name, weights in {"full": (first, second), "small": (first, changed)}.items():
        flat = torch.tensor(weights)[:, None].expand(2, 3, 2, 2).flatten(1)
        model = linear_model(flat, torch.zeros(2), ("a", "b"), 2)
        networks[name] = replace(model, anatomy=replace(model.anatomy, grid=(2, 2)))
    images = torch.zeros(2, 3, 2, 2)
    images[0, :, 0, 0] = images[1, :, 1, 1] = 1  # of the class a (4 against 1), and b (4 against 3)
    row = explanation_shift_table(networks, images, ["saliency"]).iloc[0]
    assert row[["value", "low", "high", "other"]].tolist() == pytest.approx([0.6, -1, 1, -0.2])


def test_one_image_has_no_interval():
    model = tiny_vit()
    networks = {"full": model, "copy": model}
    table = explanation_shift_table(networks, digits(model, 1), ["saliency"])
    assert table[["low", "high", "other"]].isna().all(axis=None)
    assert table["value"].tolist() == pytest.approx([1])


def test_sentences_on_shifts():
    table = pd.DataFrame({"model": "pruned", "method": ["grad_cam", "saliency"]})
    table = table.assign(low=[0.6, 0.1], other=0.3)
    assert describe_shifts(table) == (
        "More alike than maps of different images: grad cam of *pruned*. Not shown to be more alike"
        " than those: saliency of *pruned*."
    )
    none = explanation_shift_table({"full": tiny_vit()}, digits(tiny_vit(), 1), ["saliency"])
    assert "no smaller network" in describe_shifts(none)


def test_bad_input_of_explanations():
    model = linear_digits()
    images, networks = digits(model, 2), {"full": model, "same": model}
    with pytest.raises(ValueError, match=r"unknown explanation method .oclusion."):
        explanation_shift_table(networks, images, ["oclusion"])
    networks["same"] = replace(model, classes=tuple("abcdefghij"))
    with pytest.raises(ValueError, match="compare two models of the same classes"):
        explanation_shift_table(networks, images, ["saliency"])

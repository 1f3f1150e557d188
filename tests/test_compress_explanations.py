"""Maps before and after compression: shifts measured by hand, and a model that is its own copy."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.toys import linear_digits, linear_model, small_digits, tiny_vit
from vitlab.compress.explanations import (
    compare_explanations,
    describe_shifts,
    explanation_shift_tables,
    find_masses,
    find_peaks,
)
from vitlab.data import ImageDataset
from vitlab.explain import explain, sanity_table


def digits(model, count=6):
    dataset = ImageDataset(small_digits(), "test", model.transform)
    return torch.stack([image for image, _, _ in dataset.__getitems__(range(count))])


def test_peaks_and_centres_by_hand():
    maps = np.zeros((4, 5, 6))
    maps[0, 1, 4] = 2.0
    maps[0, 3, 0] = 1.0
    maps[1, 2:4, 2:4] = 1.0  # a cell of four pixels
    maps[2, 0, 0] = -1.0  # nothing positive: the largest value is shared by all other pixels
    maps[3, 4, 5], maps[3, 0, 5] = 3.0, 1.0
    assert find_peaks(maps)[[0, 1, 3]].tolist() == [[1, 4], [2.5, 2.5], [4, 5]]
    assert find_masses(maps) == pytest.approx(
        np.array([[5 / 3, 8 / 3], [2.5, 2.5], [2, 2.5], [3, 5]])
    )
    assert find_peaks(maps)[2] == pytest.approx([60 / 29, 75 / 29])


def test_a_copy_has_the_same_maps():
    model = tiny_vit()
    images = digits(model)
    table = explanation_shift_tables(
        {"full": model, "copy": tiny_vit()}, images, ["saliency", "rollout"]
    )
    assert describe_shifts(table).startswith(
        "Shown to be more alike than maps of different images: saliency of *copy*"
    )
    assert set(table["model"]) == {"copy"}
    table = table.set_index(["method", "measure"])
    assert table["n"].tolist() == [6] * 6
    for method in ("saliency", "rollout"):
        values = table.loc[method]
        assert values.loc["similarity", ["value", "low", "high"]].tolist() == pytest.approx(
            [1, 1, 1]
        )
        assert values.loc[
            ["peak_shift", "mass_shift"], ["value", "low", "high"]
        ].to_numpy() == pytest.approx(np.zeros((2, 3)))
        assert values.loc["peak_shift", "other"] > 0


def test_similarities_are_those_of_the_sanity_checks():
    model, other = tiny_vit(), tiny_vit(seed=1)
    images = digits(model)
    ours = compare_explanations(model, other, images, ["saliency"])
    theirs = sanity_table(model, images, [explain(model, images, "saliency")], other)
    for column in ("similarity", "absolute", "other_image"):
        assert ours[column].tolist() == theirs[column].tolist()


def test_a_model_that_looks_elsewhere_is_seen():
    """Two linear models, each on one pixel: their maps are one pixel each, five rows and two
    columns apart.
    """
    models = []
    for place in ((1, 2), (6, 4)):
        weight = torch.zeros(2, 3, 8, 8)
        weight[1, :, place[0], place[1]] = 1.0
        models.append(linear_model(weight.flatten(1), torch.tensor([-100.0, 100.0]), ("a", "b"), 8))
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    table = compare_explanations(*models, images, ["saliency"])
    assert table["peak_shift"].tolist() == pytest.approx([29**0.5] * 3)
    assert table["mass_shift"].tolist() == pytest.approx([29**0.5] * 3)
    assert table["other_peak"].tolist() == [0, 0, 0]


def test_two_images_and_four_cells_by_hand():
    """Each class looks at four pixels with other weights; those of the second class change places
    in the compressed model.

    Ranks 1 2 3 4 against 1 4 3 2: 1 - 6 * 8 / (4 * 15) = 0.2; against those of the first class, 4 1
    2 3: 1 - 6 * 12 / 60 = -0.2."""
    first, second, changed = [[4.0, 1], [2, 3]], [[1.0, 2], [3, 4]], [[1.0, 4], [3, 2]]
    models = []
    for weights in ((first, second), (first, changed)):
        model = linear_model(
            torch.tensor(weights)[:, None].expand(2, 3, 2, 2).flatten(1),
            torch.zeros(2),
            ("a", "b"),
            2,
        )
        models.append(replace(model, anatomy=replace(model.anatomy, grid=(2, 2))))
    images = torch.zeros(2, 3, 2, 2)
    images[0, :, 0, 0] = images[1, :, 1, 1] = 1  # of the class a (4 against 1), and b (4 against 3)
    table = compare_explanations(*models, images, ["saliency"])
    assert table["similarity"].tolist() == pytest.approx([1, 0.2]) == table["absolute"].tolist()
    assert table["peak_shift"].tolist() == [0, 1]  # from below at the right to above
    # from row 0.7 and column 0.6 to row 0.5 and column 0.6
    assert table["mass_shift"].tolist() == pytest.approx([0, 0.2])
    assert table["other_image"].tolist() == pytest.approx([-0.2, -0.2])
    assert table["other_peak"].tolist() == pytest.approx([2**0.5] * 2)
    # from row 0.5 and column 0.4
    assert table["other_mass"].tolist() == pytest.approx([0.08**0.5] * 2)
    means = explanation_shift_tables(
        dict(zip("ab", models, strict=True)), images, ["saliency"]
    ).set_index("measure")
    assert (
        means["value"].tolist() == pytest.approx([0.6, 0.5, 0.1]) and means["n"].tolist() == [2] * 3
    )
    assert means.loc["similarity", ["low", "high", "other"]].tolist() == pytest.approx(
        [-1, 1, -0.2]
    )


def test_one_image_has_no_interval():
    model = tiny_vit()
    table = explanation_shift_tables({"full": model, "copy": model}, digits(model, 1), ["saliency"])
    assert table[["low", "high", "other"]].isna().all(axis=None)
    assert table["value"].tolist() == pytest.approx([1, 0, 0])


def test_sentences_on_shifts():
    rows = {
        "method": ["grad_cam", "saliency"],
        "measure": "similarity",
        "low": [0.6, 0.1],
        "other": 0.3,
    }
    table = pd.DataFrame({"model": "pruned", **rows})
    words = (
        "Shown to be more alike than maps of different images: grad cam of *pruned*. Not shown for"
        " saliency of *pruned*."
    )
    assert describe_shifts(table) == words
    assert describe_shifts(table.tail(1)) == "Not shown for saliency of *pruned*."
    model = tiny_vit()
    assert "no smaller network" in describe_shifts(
        explanation_shift_tables({"full": model}, digits(model, 1), ["saliency"])
    )


def test_bad_input_of_explanations():
    model = linear_digits()
    images = digits(model, 2)
    with pytest.raises(ValueError, match=r"unknown explanation method .oclusion."):
        compare_explanations(model, model, images, ["oclusion"])
    with pytest.raises(ValueError, match="names is empty"):
        compare_explanations(model, model, images, [])
    with pytest.raises(ValueError, match="compare two models of the same classes"):
        compare_explanations(
            model, replace(model, classes=tuple("abcdefghij")), images, ["occlusion"]
        )

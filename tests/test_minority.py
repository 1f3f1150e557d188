"""Mixtures within rare classes: SMOTE on cached features, and mixup."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset

from tests.toys import small_digits, tiny_vit
from vitlab.data import add_synthetic
from vitlab.runs import Run
from vitlab.training import fit, imbalance_table, recipe, split_model
from vitlab.training.cache import FrozenFeatures, FrozenFront
from vitlab.training.minority import RareMixup, SmoteFeatures

PROBE = {
    "epochs": 3,
    "batch_size": 16,
    "precision": "fp32",
    "strategy": "linear_probe",
    "views": 2,
    "learning_rate": 1e-2,
}


def uneven_digits(left=8):
    """The small digits with only so many training images of the class "3"."""
    samples = small_digits().samples
    extra = samples.index[(samples["label"] == "3") & (samples["split"] == "train")][left:]
    return replace(small_digits(), samples=samples.drop(extra).reset_index(drop=True))


def probe_features(data, views=1):
    model = tiny_vit()
    front = FrozenFront(split_model(model.module, 5)[0], "fp32", torch.device("cpu"))
    augment = (lambda pixels: 255 - pixels) if views > 1 else None
    return FrozenFeatures(data, "train", model, front, views=views, augment=augment)


class Vectors(Dataset):
    """Items whose value is their position."""

    labels = np.array([0] * 6 + [1] * 3)

    def __len__(self):
        return 9

    def set_epoch(self, epoch):
        pass

    def __getitems__(self, positions):
        return [(torch.full((2, 2), float(i)), int(self.labels[i]), i) for i in positions]


def test_rare_mixup_stays_within_the_class():
    items = RareMixup(Vectors(), [1], alpha=1.0, seed=0)
    batch = items.__getitems__([0, 6, 7, 8, 8, 5])
    assert [(label, position) for _, label, position in batch] == [
        (0, 0),
        (1, 6),
        (1, 7),
        (1, 8),
        (1, 8),
        (0, 5),
    ]
    assert batch[0][0].unique().tolist() == [0.0] and batch[5][0].unique().tolist() == [5.0], (
        "others are left as they are"
    )
    mixed = [values.unique().item() for values, _, _ in batch[1:5]]
    assert all(6 <= value <= 8 for value in mixed) and any(value != round(value) for value in mixed)
    assert mixed[2] != mixed[3], "two copies of an image are mixed apart"
    again = items.__getitems__([0, 6, 7, 8, 8, 5])
    assert all(torch.equal(one[0], other[0]) for one, other in zip(batch, again, strict=True))
    items.set_epoch(2)
    later = items.__getitems__([0, 6, 7, 8, 8, 5])
    assert any(not torch.equal(one[0], other[0]) for one, other in zip(batch, later, strict=True))


def test_smote_fills_every_class_with_rows_between_training_rows():
    data = uneven_digits()
    features = probe_features(data)
    made = SmoteFeatures(features, seed=0)
    counts = np.bincount(made.labels)
    assert set(counts) == {np.bincount(features.labels).max()} and len(made) == 10 * counts[0]
    images = len(features)
    own = features.read_view(0, list(range(images)))
    assert torch.equal(
        torch.stack([item[0] for item in made.__getitems__([0, 5, 9])]), own[[0, 5, 9]]
    )
    values, label, position = made[len(made) - 1]
    assert (values.shape, position, label) == (own.shape[1:], len(made) - 1, made.labels[-1])
    members = own[torch.as_tensor(features.labels == label)].double()
    gaps = [  # to the segment between each pair of training rows of the class
        torch.linalg.norm(
            values - a - ((values - a) @ (b - a) / ((b - a) @ (b - a))).clamp(0, 1) * (b - a)
        ).item()
        for a in members
        for b in members
        if not torch.equal(a, b)
    ]
    assert min(gaps) < 1e-5, (
        "between two training rows of the class: none of validation or test has a share in it"
    )


def test_smote_gives_all_views_the_same_place():
    features = probe_features(uneven_digits(), views=2)
    made = SmoteFeatures(features, seed=0)
    assert len(made.made) == 2 and not torch.equal(*made.made)
    position, seen = len(made) - 1, []
    for epoch in (1, 2, 3):
        made.set_epoch(epoch)
        seen.append(made[position][0])
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1]), (
        "the views take turns"
    )
    other = SmoteFeatures(features, seed=1)
    assert not torch.equal(other.made[0], made.made[0])
    assert torch.equal(SmoteFeatures(features, seed=0).made[0], made.made[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"class_weights": "effective", "class_weights_beta": 0.9},
        {"focal_gamma": 2.0},
        {"resample": "oversample"},
        {"resample": "undersample"},
        {"resample": "smote"},
        {"mixup_rare": 0.4},
        {"synthetic": "fourier"},
        {"synthetic": "fourier"},
    ],
    ids=str,
)
def test_each_remedy_changes_the_training_and_survives_a_break(changes):
    config = recipe("vit_scratch", **PROBE, **changes)
    data = add_synthetic(uneven_digits(), config.synthetic, 1.0)
    plain = fit(tiny_vit(), uneven_digits(), config=recipe("vit_scratch", **PROBE))
    whole = fit(tiny_vit(), data, config=config)
    assert (
        np.isfinite(whole["train_loss"]).all()
        and abs(whole["val_loss"] - plain["val_loss"]).max() > 1e-6
    )

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny_vit(), data, Run.create(name="broken", dataset="digits"), config, on_epoch=stop)
    continued = fit(tiny_vit(), data, Run.create(name="broken", dataset="digits"), config)
    pd.testing.assert_frame_equal(
        continued.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True
    )


@pytest.mark.parametrize(
    "changes", [{"mixup_rare": 0.4}, {"resample": "oversample"}, {"synthetic": "fourier"}], ids=str
)
def test_remedies_on_images_are_those_on_features(changes):
    config = recipe("vit_scratch", **{**PROBE, "views": 1}, **changes)
    data = add_synthetic(uneven_digits(), config.synthetic, 1.0)
    cached, without = (
        fit(tiny_vit(), data, config=replace(config, cache=cache)) for cache in (True, False)
    )
    if "mixup_rare" in changes:  # images are mixed before the frozen part, features behind it
        assert abs(cached["train_loss"] - without["train_loss"]).max() > 1e-6
    else:
        np.testing.assert_allclose(cached["train_loss"], without["train_loss"], atol=1e-4)


def test_the_table_says_what_is_done_for_each_class():
    data = add_synthetic(uneven_digits(), "fourier", 1.0)
    largest = uneven_digits().split("train")["label"].value_counts().max()
    table = imbalance_table(data, recipe("vit_scratch", **PROBE)).set_index("class")
    assert table.loc["3", "images"] == 8 and table.loc["3", "synthetic"] == largest - 8
    assert (
        set(table["per_epoch"]) == {largest}
        and not table["rare"].any()
        and np.allclose(table["weight"], 1)
    )
    table = imbalance_table(
        uneven_digits(), recipe("vit_scratch", **PROBE, resample="smote")
    ).set_index("class")
    assert (
        table.loc["3", "rare"]
        and set(table["per_epoch"]) == {largest}
        and (table["weight"] == 1).all()
    )
    table = imbalance_table(
        uneven_digits(), recipe("vit_scratch", **PROBE, resample="undersample")
    ).set_index("class")
    assert set(table["per_epoch"]) == {8}
    table = imbalance_table(uneven_digits(), recipe("vit_scratch", **PROBE)).set_index("class")
    assert (
        table["per_epoch"].equals(table["images"])
        and table.loc["3", "weight"] == table["weight"].max() > 1.5
    )


def test_what_cannot_be_remedied_is_refused_before_anything_is_computed(reports_folder):
    for data, changes, message in (
        (
            uneven_digits(1),
            {"resample": "smote"},
            "resample='smote' needs 2 training images of each class, and '3' has 1",
        ),
        (
            uneven_digits(0),
            {"resample": "undersample"},
            "needs 1 training images of each class, and '3' has 0",
        ),
        (
            uneven_digits(),
            {"synthetic": "fourier"},
            r"write data = add_synthetic\(data, 'fourier', 0.5, seed\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fit(tiny_vit(), data, config=recipe("vit_scratch", **PROBE, **changes))
    assert not (reports_folder / "cache").exists()

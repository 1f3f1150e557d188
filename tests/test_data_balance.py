"""Class weights against hand-computed ones; synthetic images: of training images only, in train
only, the same each time, and never evaluated.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.class_weight import compute_class_weight

from tests.toys import small_digits, tiny_vit
from vitlab.data import ImageDataset, add_synthetic, load_dataset
from vitlab.data.balance import class_weights, drop_synthetic, rare_classes, swap_amplitude
from vitlab.runs import Run
from vitlab.training import fit, predict, recipe, save_results, split_model
from vitlab.training.cache import FrozenFeatures, FrozenFront

LABELS = ["a"] * 8 + ["b"] * 3 + ["c"] * 1


CLASSES = ("a", "b", "c")


def test_balanced_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.array(CLASSES), y=LABELS)
    np.testing.assert_allclose(class_weights(LABELS, CLASSES), expected, rtol=1e-12)
    np.testing.assert_array_equal(class_weights(LABELS, CLASSES, "none"), [1, 1, 1])


def test_effective_weights_by_hand():
    """beta 1/2: effective numbers 2 (1 - 2^-8), 2 (1 - 2^-3), 2 (1 - 2^-1), that is 255/128, 7/4,
    1.
    """
    raw = np.array([128 / 255, 4 / 7, 1])
    expected = raw * 12 / (8 * raw[0] + 3 * raw[1] + raw[2])
    np.testing.assert_allclose(
        class_weights(LABELS, CLASSES, "effective", beta=0.5), expected, rtol=1e-12
    )
    np.testing.assert_allclose(
        class_weights(LABELS, CLASSES, "effective", beta=0), [1, 1, 1], rtol=1e-12
    )
    near = class_weights(LABELS, CLASSES, "effective", beta=1 - 1e-9)
    np.testing.assert_allclose(near, class_weights(LABELS, CLASSES), rtol=1e-6)


@pytest.mark.parametrize("scheme", ["none", "balanced", "effective"])
def test_a_sample_weighs_one_on_average(scheme):
    weights = dict(zip(CLASSES, class_weights(LABELS, CLASSES, scheme, 0.9), strict=True))
    assert np.mean([weights[label] for label in LABELS]) == pytest.approx(1, abs=1e-12)


def test_bad_weights():
    with pytest.raises(ValueError, match=r"unknown class weights 'balance'. Did you mean balanced"):
        class_weights(LABELS, CLASSES, "balance")
    with pytest.raises(ValueError, match="no label of the classes c"):
        class_weights(["a", "b"], CLASSES)


def test_rare_is_below_an_equal_share():
    assert rare_classes(LABELS, CLASSES) == ["b", "c"]
    assert rare_classes(["a", "b"], ("a", "b")) == []


@pytest.fixture
def uneven():
    """Fifteen training images of "3" go, so that it is rare."""
    data = load_dataset("digits", seed=0)
    samples = data.samples
    three = samples.index[(samples["label"] == "3") & (samples["split"] == "train")]
    return replace(data, samples=samples.drop(three[30:]).reset_index(drop=True))


def test_rows_are_marked_and_in_train_only(uneven):
    data = add_synthetic(uneven, "fourier", share=0.5)
    made, real = data.samples[data.samples["synthetic"]], drop_synthetic(data.samples)
    largest = uneven.split("train")["label"].value_counts().max()
    assert len(made) == largest // 2 - 30 and set(made["label"]) == {"3"}
    assert (
        set(made["split"]) == {"train"}
        and made["source"].str.startswith("synthetic:fourier of ").all()
    )
    assert (
        made["sample_id"].is_unique
        and made["sample_id"].str.fullmatch(r"digit\d+~fourier-\d+").all()
    )
    pd.testing.assert_frame_equal(real[uneven.samples.columns], uneven.samples)
    train = uneven.split("train").set_index("sample_id")
    assert {*made["made_from"], *made["made_with"]} <= set(train.index), (
        "never of validation or test images"
    )
    assert (made["made_from"] != made["made_with"]).all()
    assert set(train.loc[made["made_from"], "label"]) == {"3"}
    assert made["made_from"].value_counts().max() == -(-len(made) // 30), "they take turns"


def test_pixels_of_validation_and_test_images_are_never_read(uneven):
    read = []
    data = add_synthetic(
        replace(uneven, read=lambda sample_id: read.append(sample_id) or uneven.read(sample_id)),
        "fourier",
    )
    for sample_id in data.samples["sample_id"][data.samples["synthetic"]]:
        data.read(sample_id)
    assert read and set(read) <= set(uneven.split("train")["sample_id"])


def test_the_same_each_time_and_another_for_another_seed(uneven):
    first, again, other = (add_synthetic(uneven, "fourier", seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first.samples, again.samples)
    assert not first.samples["made_with"].equals(other.samples["made_with"])
    name = first.samples["sample_id"].iloc[-1]
    image = np.asarray(first.read(name))
    assert np.array_equal(image, again.read(name)) and image.shape == (8, 8)
    assert not np.array_equal(image, uneven.read(first.samples["made_from"].iloc[-1]))


def test_groups_keep_to_themselves(uneven):
    samples = uneven.samples.assign(
        group=np.where(np.arange(len(uneven.samples)) % 2, "odd", "even")
    )
    data = add_synthetic(replace(uneven, samples=samples), "fourier")
    made = data.samples[data.samples["synthetic"]]
    group = samples.set_index("sample_id")["group"]
    assert (group[made["made_from"]].to_numpy() == group[made["made_with"]].to_numpy()).all()
    assert (group[made["made_from"]].to_numpy() == made["group"].to_numpy()).all()


def test_what_cannot_be_made(uneven):
    with pytest.raises(
        ValueError, match=r"unknown kind of synthetic images 'forier'. Did you mean fourier"
    ):
        add_synthetic(uneven, "forier")
    alone = uneven.samples.assign(group=uneven.samples["sample_id"])
    with pytest.raises(ValueError, match=r"needs a second training image in the group.*class '3'"):
        add_synthetic(replace(uneven, samples=alone), "fourier")
    assert add_synthetic(uneven, "none") is uneven


def test_the_amplitude_is_swapped_and_the_phase_kept():
    image, style = np.random.default_rng(0).uniform(20, 235, (2, 40, 30))
    mixed = swap_amplitude(image, style, beta=0.1)  # frequencies -3 to 3 on both axes
    before, donor, after = (np.fft.fft2(values) for values in (image, style, mixed))
    np.testing.assert_allclose(
        np.exp(1j * np.angle(after)), np.exp(1j * np.angle(before)), atol=1e-6
    )
    low = np.zeros((40, 30), dtype=bool)
    low[np.ix_(range(-3, 4), range(-3, 4))] = True
    np.testing.assert_allclose(np.abs(after)[low], np.abs(donor)[low], rtol=1e-9)
    np.testing.assert_allclose(np.abs(after)[~low], np.abs(before)[~low], rtol=1e-9)
    assert mixed.mean() == pytest.approx(style.mean()), "frequency 0 is the mean"


def test_real_images_keep_their_cached_features(uneven, reports_folder):
    import torch

    model = tiny_vit()
    front = FrozenFront(split_model(model.module, 5)[0], "fp32", torch.device("cpu"))
    plain = FrozenFeatures(uneven, "train", model, front)
    files = {file: file.stat().st_mtime_ns for file in (reports_folder / "cache").glob("*.npy")}
    data = add_synthetic(uneven, "fourier")
    features = FrozenFeatures(data, "train", model, front)
    assert len(list((reports_folder / "cache").glob("*.npy"))) == 2 and all(
        file.stat().st_mtime_ns == time for file, time in files.items()
    ), "the real ones were there"
    assert len(features) == len(data.split("train")) > len(plain)
    images = ImageDataset(data, "train", model.transform)
    chosen = [len(features) - 1, 0, len(plain), 7]
    with torch.inference_mode():
        expected = front.module(torch.stack([images[i][0] for i in chosen]))
    torch.testing.assert_close(
        torch.stack([item[0] for item in features.__getitems__(chosen)]),
        expected,
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_run_names_them_and_judges_real_images_only():
    data = add_synthetic(small_digits(), "fourier", share=1.0)
    config = recipe(
        "vit_scratch",
        epochs=1,
        batch_size=32,
        precision="fp32",
        synthetic="fourier",
        strategy="linear_probe",
    )
    model, run = tiny_vit(), Run.create(dataset="digits", model="vit_scratch", seed=0)
    fit(model, data, run, config)
    predictions = save_results(run, model, data)
    splits = run.read_table("splits.csv")
    assert splits["synthetic"].sum() == data.samples["synthetic"].sum() > 0
    real = drop_synthetic(splits)
    assert set(predictions["sample_id"]) == set(real["sample_id"][real["split"] != "train"])
    assert set(predict(model, data, splits=("train",))["sample_id"]) == set(
        real["sample_id"][real["split"] == "train"]
    )
    again = load_dataset("digits", samples=splits)
    assert (
        again.samples["sample_id"].tolist() == real["sample_id"].tolist()
        and "synthetic" not in again.samples
    )
    pd.testing.assert_frame_equal(predict(model, again), predictions, atol=1e-5)

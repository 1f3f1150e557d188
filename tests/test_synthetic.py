"""Synthetic images: of training images only, in train only, the same each time, and nobody's
result.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.toys import small_digits, tiny_vit
from vitlab.data import ImageDataset, add_synthetic, drop_synthetic, load_dataset
from vitlab.data.synthetic import paste_patch, swap_amplitude
from vitlab.runs import Run
from vitlab.training import (
    FrozenFeatures,
    FrozenFront,
    fit,
    predict,
    recipe,
    save_results,
    split_model,
)
from vitlab.training.experiment import finetune

KINDS = ("fourier", "paste")


@pytest.fixture
def uneven():
    """Fifteen training images of "3" go, so that it is rare."""
    data = load_dataset("digits", seed=0)
    samples = data.samples
    three = samples.index[(samples["label"] == "3") & (samples["split"] == "train")]
    return replace(data, samples=samples.drop(three[30:]).reset_index(drop=True))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_marked_and_in_train_only(uneven, kind):
    data = add_synthetic(uneven, kind, share=0.5)
    made, real = data.samples[data.samples["synthetic"]], drop_synthetic(data.samples)
    largest = uneven.split("train")["label"].value_counts().max()
    assert len(made) == largest // 2 - 30 and set(made["label"]) == {"3"}
    assert (
        set(made["split"]) == {"train"}
        and made["source"].str.startswith(f"synthetic:{kind} of ").all()
    )
    assert (
        made["sample_id"].is_unique
        and made["sample_id"].str.fullmatch(rf"digit\d+~{kind}-\d+").all()
    )
    pd.testing.assert_frame_equal(real[uneven.samples.columns], uneven.samples)
    train = uneven.split("train").set_index("sample_id")
    assert {*made["made_from"], *made["made_with"]} <= set(train.index), (
        "never of validation or test images"
    )
    assert (made["made_from"] != made["made_with"]).all()
    assert set(train.loc[made["made_from"], "label"]) == {"3"}
    if kind == "paste":
        assert set(train.loc[made["made_with"], "label"]) == {"3"}
    assert made["made_from"].value_counts().max() == -(-len(made) // 30), "they take turns"


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_validation_and_test_images_are_never_read(uneven, kind):
    read = []
    data = add_synthetic(
        replace(uneven, read=lambda sample_id: read.append(sample_id) or uneven.read(sample_id)),
        kind,
    )
    for sample_id in data.samples["sample_id"][data.samples["synthetic"]]:
        data.read(sample_id)
    assert read and set(read) <= set(uneven.split("train")["sample_id"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_each_time_and_another_for_another_seed(uneven, kind):
    first, again, other = (
        add_synthetic(uneven, kind),
        add_synthetic(uneven, kind),
        add_synthetic(uneven, kind, seed=1),
    )
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
    for kind in KINDS:
        data = add_synthetic(replace(uneven, samples=samples), kind)
        made, group = (
            data.samples[data.samples["synthetic"]],
            samples.set_index("sample_id")["group"],
        )
        assert (group[made["made_from"]].to_numpy() == group[made["made_with"]].to_numpy()).all()
        assert (group[made["made_from"]].to_numpy() == made["group"].to_numpy()).all()


def test_what_cannot_be_made(uneven):
    with pytest.raises(
        ValueError, match=r"unknown kind of synthetic images 'forier'. Did you mean fourier"
    ):
        add_synthetic(uneven, "forier")
    with pytest.raises(ValueError, match="share=0 of the largest class is no share"):
        add_synthetic(uneven, "paste", share=0)
    samples = uneven.samples
    rest = samples.index[(samples["label"] == "3") & (samples["split"] == "train")][1:]
    with pytest.raises(
        ValueError, match=r"needs two training images of class '3'.*or synthetic='fourier'"
    ):
        add_synthetic(replace(uneven, samples=samples.drop(rest)), "paste")
    assert (
        add_synthetic(replace(uneven, samples=samples.drop(rest)), "fourier")
        .samples["synthetic"]
        .any()
    )
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


def test_only_the_mean_is_swapped_where_the_square_is_one_frequency():
    image, style = np.array([[1.0, 3.0], [5.0, 7.0]]), np.array([[9.0, 9.0], [9.0, 13.0]])
    np.testing.assert_allclose(swap_amplitude(image, style, beta=0.01), image + 6, atol=1e-12)
    colours = np.stack([image, image, image], axis=-1)
    np.testing.assert_allclose(
        swap_amplitude(colours, colours * 2, beta=0.01), colours + 4, atol=1e-12
    )


def test_a_patch_by_hand():
    mixed = paste_patch(np.zeros((16, 16)), np.full((16, 16), 8.0), top=0.0, left=1.0)
    # a patch of 8, two pixels to fade in at each side
    edge = np.array([0.25, 0.75, 1, 1, 1, 1, 0.75, 0.25])
    expected = np.zeros((16, 16))
    expected[:8, 8:] = 8 * np.outer(edge, edge)
    np.testing.assert_allclose(mixed, expected)
    assert paste_patch(np.zeros((16, 20, 3)), np.ones((16, 20, 3)), 0.5, 0.5).shape == (16, 20, 3)


def test_pairs_of_other_sizes_and_modes(uneven):
    def read(sample_id):
        number = int(sample_id.removeprefix("digit"))
        return (
            Image.new("RGB", (20, 10), (200, 100, 0)) if number % 2 else Image.new("L", (8, 12), 50)
        )

    data = add_synthetic(replace(uneven, read=read), "paste")
    for row in data.samples[data.samples["synthetic"]].itertuples():
        image, pair = data.read(row.sample_id), [read(row.made_from), read(row.made_with)]
        assert image.size == pair[0].size
        assert image.mode == ("L" if {part.mode for part in pair} == {"L"} else "RGB")


def test_real_images_keep_their_cached_features(uneven, reports_folder):
    import torch

    model = tiny_vit()
    front = FrozenFront(split_model(model.module, 5)[0], "fp32", torch.device("cpu"))
    plain = FrozenFeatures(uneven, "train", model, front)
    files = {file: file.stat().st_mtime_ns for file in (reports_folder / "cache").glob("*.npy")}
    data = add_synthetic(uneven, "paste")
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
    data = add_synthetic(small_digits(), "paste", share=1.0)
    config = recipe(
        "vit_scratch",
        epochs=1,
        batch_size=32,
        precision="fp32",
        synthetic="paste",
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


def test_finetune_makes_them():
    options = {"size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    arguments = {
        "epochs": 1,
        "precision": "fp32",
        "strategy": "linear_probe",
        "synthetic": "fourier",
        "synthetic_share": 1.0,
    }
    run = finetune("digits", "vit_scratch", options=options, **arguments)
    made = run.read_table("splits.csv").query("synthetic")
    assert len(made) > 0 and set(made["split"]) == {"train"}

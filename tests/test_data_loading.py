"""Pixels against hand-computed ones, and ImageDataset: order, laziness, threads, seeds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from vitlab.data import ImageDataset, build_augmentation, denormalise, fit_image, load_images
from vitlab.data.loading import normalise, preprocess
from vitlab.pictures import to_rgb
from vitlab.schema import DataBundle, Transform
from vitlab.seeds import derive_seed

PLAIN = Transform(size=(4, 4), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="nearest")


IMAGENET = Transform(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def grey(values, dtype=np.uint8):
    return Image.fromarray(np.array(values, dtype=dtype))


def test_pad_keeps_the_whole_image_between_bars_of_the_mean_colour():
    pixels = fit_image(Image.new("RGB", (4, 2), "white"), replace(PLAIN, mean=(0.2, 0.4, 0.6)))
    bar = [51, 102, 153]
    assert pixels[:, :, 0].T.tolist() == [bar, [255] * 3, [255] * 3, bar]


def test_crop_fills_the_frame_around_the_centre():
    wide = np.repeat(np.arange(8)[None] * 30, 4, axis=0)  # 4 high, 8 wide
    pixels = fit_image(grey(wide), replace(PLAIN, fit="crop"))
    assert pixels[0].tolist() == [[60, 90, 120, 150]] * 4


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 5)])
def test_any_shape_reaches_the_size_which_is_height_by_width(fit, size):
    transform = Transform((6, 10), (0.5,) * 3, (0.5,) * 3, fit=fit)
    assert fit_image(Image.new("L", size), transform).shape == (3, 6, 10)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_not_clipped(dtype):
    image = grey([[0, 257, 25700, 65535]], dtype)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 100, 255]


def test_floats_run_from_darkest_to_brightest_and_must_be_finite():
    assert np.asarray(to_rgb(grey([[-1.0, 0.0, 4.0]], np.float32)))[0, :, 0].tolist() == [
        0,
        51,
        255,
    ]
    assert np.asarray(to_rgb(grey([[2.5, 2.5]], np.float32))).tolist() == [[[0] * 3] * 2]
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_rgb(grey([[1.0, np.nan]], np.float32))


def test_palettes_and_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert np.asarray(to_rgb(palette)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    palette.info["transparency"] = 0
    assert np.asarray(to_rgb(palette, (1, 2, 3))).tolist() == [[[1, 2, 3], [200, 100, 50]]]
    # a fifth of the colour, four fifths of the fill
    half = Image.new("RGBA", (1, 1), (200, 0, 100, 51))
    assert np.asarray(to_rgb(half, (100, 100, 100))).tolist() == [[[120, 80, 100]]]
    assert np.asarray(to_rgb(Image.new("LA", (1, 1), (90, 0)), (7, 7, 7))).tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]
)
def test_every_mode_becomes_rgb(mode):
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_normalise_matches_torchvision_and_denormalise_undoes_it():

    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    batch = normalise(pixels, IMAGENET)
    assert torch.allclose(
        batch, v2.functional.normalize(pixels / 255, IMAGENET.mean, IMAGENET.std), atol=1e-6
    )
    images = denormalise(batch, IMAGENET)
    assert images.shape == (2, 32, 32, 3) and np.allclose(
        images, pixels.permute(0, 2, 3, 1) / 255, atol=1e-6
    )
    assert denormalise(batch * 100, IMAGENET).max() == 1


def test_augmentation_is_ruled_by_torchs_seed_and_keeps_size_and_type():
    pixels = torch.randint(0, 256, (3, 24, 36), dtype=torch.uint8)
    augment = build_augmentation("strong", (24, 36))
    variants = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        variants.append(augment(pixels))
    assert variants[0].shape == pixels.shape and variants[0].dtype == torch.uint8
    assert torch.equal(variants[0], variants[1]) and not torch.equal(variants[0], variants[2])


def test_flip_is_an_option():
    left = torch.zeros(3, 32, 32, dtype=torch.uint8)
    left[:, :, :8] = 255

    def mirrored(flip):
        augment = build_augmentation("light", (32, 32), flip=flip)
        return sum(bool(augment(left)[:, :, 24:].float().mean() > 60) for _ in range(40))

    assert mirrored(flip=False) == 0 and 8 < mirrored(flip=True) < 32


def test_misspelt_options_name_the_choices():
    with pytest.raises(ValueError, match="Did you mean strong"):
        build_augmentation("strng", (8, 8))
    with pytest.raises(ValueError, match="unknown interpolation 'bicubc'"):
        fit_image(Image.new("L", (2, 2)), replace(PLAIN, interpolation="bicubc"))
    with pytest.raises(ValueError, match="unknown fit 'stretch'"):
        fit_image(Image.new("L", (2, 2)), replace(PLAIN, fit="stretch"))


TRANSFORM = Transform(
    size=(8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation="bilinear"
)


@pytest.fixture
def reads():
    return []


@pytest.fixture
def data(reads):
    samples = pd.DataFrame(
        {"sample_id": [f"s{row:02d}" for row in range(20)], "label": ["a", "b"] * 10}
    )
    samples = samples.assign(
        split=["train"] * 12 + ["val"] * 4 + ["test"] * 4, group="all", source=samples["sample_id"]
    )

    def read(sample_id):
        reads.append(sample_id)
        return Image.fromarray(
            np.random.default_rng(int(sample_id[1:])).integers(0, 256, (9, 7), dtype=np.uint8)
        )

    return DataBundle("toy", ("a", "b"), samples, read, samples.head(0))


def test_sample_ids_choose_and_order(data):
    dataset = ImageDataset(data, ["s19", "s02"], TRANSFORM)
    assert dataset.samples["sample_id"].tolist() == ["s19", "s02"] and dataset.labels.tolist() == [
        1,
        0,
    ]
    with pytest.raises(ValueError, match="1 sample_ids are not in toy, the first is 's99'"):
        ImageDataset(data, ["s19", "s99"], TRANSFORM)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        ImageDataset(data, "dev", TRANSFORM)


def test_nothing_is_decoded_before_it_is_asked_for(data, reads):
    dataset = ImageDataset(data, "train", TRANSFORM)
    assert reads == []
    dataset.__getitems__([3, 5])
    assert sorted(reads) == ["s03", "s05"]


def test_the_data_loader_asks_for_whole_batches(data, monkeypatch):
    asked = []
    whole = ImageDataset.__getitems__
    monkeypatch.setattr(
        ImageDataset,
        "__getitems__",
        lambda self, positions: asked.append(list(positions)) or whole(self, positions),
    )
    batches = list(DataLoader(ImageDataset(data, "train", TRANSFORM), batch_size=5))
    assert asked == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    images, labels, positions = (torch.cat(part) for part in zip(*batches, strict=True))
    assert images.shape == (12, 3, 8, 8) and images.dtype == torch.float32
    assert labels.tolist() == [0, 1] * 6 and positions.tolist() == list(range(12))
    assert all(
        torch.equal(images[i], preprocess(data.read(f"s{i:02d}"), TRANSFORM)) for i in range(12)
    )


def test_augmentation_comes_before_normalisation_and_its_draws_depend_on_seed_epoch_and_sample_alone(  # noqa: E501
    data,
):
    augment = build_augmentation("strong", TRANSFORM.size)
    dataset = ImageDataset(data, "train", TRANSFORM, augment, seed=4)
    dataset.set_epoch(3)
    images = {position: image for image, _, position in dataset.__getitems__([7, 1, 4])}
    state = torch.random.get_rng_state()
    for position, image in images.items():
        assert torch.equal(dataset[position][0], image), "in other company, the same"
        sample_id = dataset.samples["sample_id"][position]
        pixels = fit_image(data.read(sample_id), TRANSFORM)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(4, 3, sample_id))
            assert torch.equal(image, normalise(augment(pixels), TRANSFORM))
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    dataset.set_epoch(4)
    assert not torch.equal(dataset[7][0], images[7])


def test_in_memory_decodes_once_and_gives_the_same(data, reads):
    kept, fresh = (
        ImageDataset(data, "train", TRANSFORM, in_memory=True),
        ImageDataset(data, "train", TRANSFORM),
    )
    first = torch.stack([image for image, _, _ in kept.__getitems__(range(12))])
    second = torch.stack([image for image, _, _ in kept.__getitems__(range(12))])
    assert len(reads) == 12 and torch.equal(first, second)
    assert torch.equal(first, torch.stack([image for image, _, _ in fresh.__getitems__(range(12))]))
    assert len(reads) == 24


def test_load_images_is_the_dataset_in_one_tensor(data):
    ids = ["s03", "s01", "s02"]
    images = load_images(data, ids, TRANSFORM)
    assert images.shape == (3, 3, 8, 8)
    for image, (expected, _, _) in zip(images, ImageDataset(data, ids, TRANSFORM), strict=True):
        assert torch.equal(image, expected)

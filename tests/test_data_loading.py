"""ImageDataset: order, laziness, threads, seeds, and that torch's DataLoader takes whole batches
from it.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vitlab.data import (
    ImageDataset,
    build_augmentation,
    fit_image,
    load_images,
    normalise,
    preprocess,
)
from vitlab.data.reading import map_images
from vitlab.schema import DataBundle, Transform
from vitlab.seeds import derive_seed

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


def test_items_are_the_preprocessed_image_its_class_and_its_position(data):
    dataset = ImageDataset(data, "val", TRANSFORM)
    assert len(dataset) == 4 and dataset.labels.tolist() == [0, 1, 0, 1]
    image, label, position = dataset[1]
    assert torch.equal(image, preprocess(data.read("s13"), TRANSFORM)) and (label, position) == (
        1,
        1,
    )


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


def test_augmentation_comes_before_normalisation_and_its_draws_depend_on_seed_epoch_and_sample_alone(
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


def test_images_are_mapped_in_order_and_an_error_comes_through():
    ids = [str(number) for number in range(1000)]
    assert map_images(int, ids, "counting") == list(range(1000))
    with pytest.raises(ValueError, match="invalid literal"):
        map_images(int, [*ids, "x"], "counting")


def test_load_images_is_the_dataset_in_one_tensor(data):
    ids = ["s03", "s01", "s02"]
    images = load_images(data, ids, TRANSFORM)
    assert images.shape == (3, 3, 8, 8)
    for image, (expected, _, _) in zip(images, ImageDataset(data, ids, TRANSFORM), strict=True):
        assert torch.equal(image, expected)

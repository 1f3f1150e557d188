"""Corruptions: values counted by hand or held against other libraries, what is drawn, every mode
and size of image.
"""

import pickle

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import functional as V

from tests.toys import small_digits
from vitlab.robustness import CORRUPTIONS, SEVERITIES, corrupt_data, corrupt_image, corruption_table
from vitlab.schema import DataBundle

NAMES = ["blur", "brightness", "contrast", "gaussian_noise", "jpeg", "rotation"]


def distance(first, second):
    return np.abs(np.asarray(first, float) - np.asarray(second, float)).mean()


@pytest.fixture(scope="module")
def texture():
    """Grey levels that vary smoothly and sharply, 60 x 48."""
    rows, columns = np.mgrid[:48, :60]
    values = (
        90 + 50 * np.sin(rows / 5) * np.cos(columns / 7) + 60 * ((rows // 12 + columns // 12) % 2)
    )
    return Image.fromarray(values.astype(np.uint8))


def test_the_names_and_the_strengths_of_imagenet_c():
    assert CORRUPTIONS.names() == NAMES
    table = corruption_table().set_index("corruption")
    assert table.loc["gaussian_noise", ["1", "2", "3", "4", "5"]].tolist() == [
        0.08,
        0.12,
        0.18,
        0.26,
        0.38,
    ]
    assert table.loc["jpeg", ["1", "5"]].tolist() == [25, 7]


@pytest.mark.parametrize("name", NAMES)
def test_worse_from_severity_to_severity(name, texture):
    changes = [
        distance(texture, corrupt_image(texture, name, severity, sample_id="a"))
        for severity in (0, *SEVERITIES)
    ]
    assert changes[0] == 0
    assert np.all(np.diff(changes) > 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (31, 17)])
def test_every_mode_and_size(name, mode, size):
    values = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    grey = Image.fromarray(values)
    image = (
        Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    )
    worse = corrupt_image(image, name, 5)
    assert worse.size == size
    assert worse.mode == ("L" if mode in ("1", "L", "I;16", "F") else "RGB")


def test_sixteen_bits_are_not_clipped(texture):
    deep = Image.fromarray(np.asarray(texture).astype(np.uint16) * 257)
    assert distance(corrupt_image(deep, "contrast", 2), corrupt_image(texture, "contrast", 2)) == 0


def test_tiny_images_change_too():
    image = Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)[:, ::-1].T.copy())
    assert all(distance(image, corrupt_image(image, name, 3, sample_id="a")) > 1 for name in NAMES)


def test_brightness_by_hand_and_as_in_hsv(gradient_image):
    grey = Image.fromarray(np.array([[0, 100, 200]], dtype=np.uint8))
    assert np.asarray(corrupt_image(grey, "brightness", 2)).tolist() == [[51, 151, 251]]
    assert np.asarray(corrupt_image(grey, "brightness", 4)).tolist() == [[102, 202, 255]]
    hsv = matplotlib.colors.rgb_to_hsv(np.asarray(gradient_image) / 255)
    hsv[..., 2] = np.minimum(hsv[..., 2] + 0.3, 1)
    expected = np.round(matplotlib.colors.hsv_to_rgb(hsv) * 255)
    # halves round either way
    assert np.abs(np.asarray(corrupt_image(gradient_image, "brightness", 3)) - expected).max() <= 1


def test_contrast_by_hand_and_as_torchvision(texture):
    grey = Image.fromarray(np.array([[0, 100, 200]], dtype=np.uint8))
    assert np.asarray(corrupt_image(grey, "contrast", 1)).tolist() == [[60, 100, 140]]
    expected = V.adjust_contrast(V.pil_to_tensor(texture), 0.2)[0].numpy().astype(float)
    # Pillow rounds the mean
    assert np.abs(np.asarray(corrupt_image(texture, "contrast", 3)) - expected).max() <= 1


def test_blur_is_as_wide_as_it_says():
    """A point of light spreads to a Gaussian whose variance is that of its width."""
    pixels = np.zeros((224, 224), dtype=np.uint8)
    pixels[100:124, 100:124] = 255  # a point alone would vanish in the rounding
    spread = np.asarray(corrupt_image(Image.fromarray(pixels), "blur", 4), float)
    offsets = (np.arange(224) - 111.5) ** 2
    variance = [
        (values.sum(axis=0) * offsets).sum() / values.sum()
        for values in (pixels.astype(float), spread)
    ]
    assert variance[1] - variance[0] == pytest.approx(4**2, rel=0.05)


def test_noise_has_its_deviation_and_is_of_one_channel_in_grey():
    grey = Image.new("L", (200, 200), 128)
    noise = np.asarray(corrupt_image(grey, "gaussian_noise", 1, sample_id="a"), float) / 255
    assert noise.std() == pytest.approx(0.08, rel=0.02)
    colours = np.asarray(
        corrupt_image(grey.convert("RGB"), "gaussian_noise", 1, sample_id="a"), float
    )
    assert abs(np.corrcoef(colours[..., 0].ravel(), colours[..., 1].ravel())[0, 1]) < 0.02


def test_rotation_keeps_the_centre_and_leaves_no_empty_corner():
    white = Image.new("L", (40, 30), 255)
    assert np.asarray(corrupt_image(white, "rotation", 5)).min() == 255
    pixels = np.zeros((101, 101), dtype=np.uint8)
    pixels[49:52, 80:83] = 255  # 31 pixels to the right of the centre
    turned = np.asarray(corrupt_image(Image.fromarray(pixels), "rotation", 5, sample_id="a"), float)
    row, column = (turned.sum(axis=1 - axis) @ np.arange(101) / turned.sum() for axis in (0, 1))
    angle = np.degrees(np.arctan2(row - 50, column - 50))
    assert abs(angle) == pytest.approx(30, abs=0.5)


def test_what_is_drawn_depends_on_seed_and_sample_alone(texture):
    first = corrupt_image(texture, "gaussian_noise", 3, seed=1, sample_id="a")
    np.random.random(5)
    assert distance(first, corrupt_image(texture, "gaussian_noise", 3, seed=1, sample_id="a")) == 0
    assert distance(first, corrupt_image(texture, "gaussian_noise", 3, seed=2, sample_id="a")) > 0
    assert distance(first, corrupt_image(texture, "gaussian_noise", 3, seed=1, sample_id="b")) > 0


def test_corrupted_data_are_lazy_distinct_and_travel_between_processes():
    reads = []

    def read(sample_id):
        reads.append(sample_id)
        return data.read(sample_id)

    data = small_digits()
    watched = DataBundle(
        data.name, data.classes, data.samples, read, data.excluded, version=data.version
    )
    worse = corrupt_data(watched, "blur", 2, seed=1)
    assert reads == []
    sample_id = data.samples["sample_id"].iloc[0]
    assert distance(worse.read(sample_id), corrupt_image(data.read(sample_id), "blur", 2)) == 0
    assert reads == [sample_id]
    versions = {
        corrupt_data(data, name, level, seed).version
        for name, level, seed in [("blur", 2, 0), ("blur", 3, 0), ("jpeg", 2, 0)]
    }
    assert len(versions | {data.version, corrupt_data(data, "blur", 2, seed=1).version}) == 5
    assert corrupt_data(data, "blur", 0) is data
    twice = corrupt_data(corrupt_data(data, "blur", 2), "jpeg", 1)
    assert "blur" in twice.version
    copy = pickle.loads(pickle.dumps(corrupt_data(data, "blur", 2)))
    assert distance(copy.read(sample_id), worse.read(sample_id)) == 0


def test_unknown_names_and_severities():
    with pytest.raises(
        ValueError, match=r"unknown corruption 'gausian_noise'.*Did you mean gaussian_noise"
    ):
        corrupt_data(small_digits(), "gausian_noise", 1)
    for severity in (6, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match="1 \\(mild\\) to 5"):
            corrupt_data(small_digits(), "blur", severity)

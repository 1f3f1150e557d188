"""Preprocessing without torch equals that of vitlab.data, bit by bit."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import vitlab.data as with_torch
from vitlab.compress.preprocess import fit_image, normalise, preprocess
from vitlab.pictures import INTERPOLATIONS
from vitlab.schema import Transform

TRANSFORM = Transform(size=(37, 50), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
DRAWN = np.random.default_rng(0)


def draw_image(mode, size):
    width, height = size
    channels = len(Image.new(mode, (1, 1)).getbands()) if mode not in ("I", "F", "I;16") else 1
    shape = (height, width, channels) if channels > 1 else (height, width)
    if mode == "F":
        return Image.fromarray(DRAWN.normal(size=shape).astype(np.float32))
    if mode in ("I", "I;16"):
        return Image.fromarray(
            DRAWN.integers(0, 65536, shape).astype(np.int32 if mode == "I" else np.uint16)
        )
    if mode in ("1", "P", "CMYK"):
        return Image.fromarray(DRAWN.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(
            mode
        )
    return Image.fromarray(DRAWN.integers(0, 256, shape, dtype=np.uint8))


def assert_same(image, transform):
    pixels = with_torch.fit_image(image, transform)
    np.testing.assert_array_equal(fit_image(image, transform), pixels.permute(1, 2, 0).numpy())
    ours = preprocess(image, transform)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, with_torch.preprocess(image, transform).numpy())


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_and_fit(interpolation, fit):
    transform = replace(TRANSFORM, interpolation=interpolation, fit=fit)
    for size in ((61, 43), (300, 301), (3, 90), (1, 1), (50, 37)):
        assert_same(draw_image("RGB", size), transform)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
@pytest.mark.parametrize("channels", [3, 1])
def test_every_mode(mode, channels):
    transform = TRANSFORM if channels == 3 else replace(TRANSFORM, mean=(0.449,), std=(0.226,))
    assert_same(draw_image(mode, (41, 30)), transform)


def test_real_images():
    data = with_torch.load_dataset("elpv", seed=0)
    for sample_id in data.samples["sample_id"].iloc[::500]:
        for transform in (TRANSFORM, Transform(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)):
            assert_same(data.read(sample_id), transform)


def test_batch_of_pixels():
    pixels = DRAWN.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(normalise(pixels, TRANSFORM)[1], normalise(pixels[1], TRANSFORM))
    by_hand = (pixels[1, 3, 2, 0] / 255 - 0.485) / 0.229
    assert normalise(pixels, TRANSFORM)[1, 0, 3, 2] == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"interpolation": "cubic"}, "bicubic"), ({"fit": "stretch"}, "pad, crop")],
)
def test_unknown_words(change, message):
    with pytest.raises(ValueError, match=message):
        fit_image(draw_image("RGB", (5, 5)), replace(TRANSFORM, **change))


def test_channels_and_pixels_that_do_not_fit():
    with pytest.raises(ValueError, match="1 channels do not fit a transform with 3"):
        normalise(np.zeros((4, 5, 1), np.uint8), TRANSFORM)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_image(Image.fromarray(np.full((4, 4), np.nan, np.float32)), TRANSFORM)


def test_needs_no_torch():
    code = (
        "import sys, vitlab.compress.preprocess; print({'torch', 'timm', 'torchvision'} &"
        " set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "set()"
    )

"""Pixels against hand-computed ones: modes, padding, cropping, normalisation, augmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.data import build_augmentation, denormalise, fit_image, normalise, preprocess
from vitlab.pictures import to_rgb
from vitlab.schema import Transform

PLAIN = Transform(size=(4, 4), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="nearest")
IMAGENET = Transform(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def grey(values, dtype=np.uint8):
    return Image.fromarray(np.array(values, dtype=dtype))


def test_grey_becomes_three_equal_channels():
    pixels = preprocess(grey(np.arange(16).reshape(4, 4) * 17), PLAIN)
    assert pixels.shape == (3, 4, 4) and pixels.dtype == torch.float32
    assert all(torch.allclose(channel, torch.arange(16).reshape(4, 4) / 15) for channel in pixels)


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


def test_a_square_stays_a_square_when_padded():
    """Aspect ratio: a white square in a wide black image is as high as it is wide afterwards."""
    values = np.zeros((100, 300))
    values[30:70, 130:170] = 255
    white = (
        fit_image(grey(values), Transform((60, 60), (0.0,) * 3, (1.0,) * 3, "bilinear"))[0] > 127
    )
    assert white.any(dim=0).sum() == white.any(dim=1).sum() == 8


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_not_clipped(dtype):
    image = grey([[0, 257, 25700, 65535]], dtype)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 100, 255]


def test_sixteen_bit_files_keep_their_values(tmp_path):
    for name in ("image.png", "image.tif"):
        grey([[0, 25700], [51400, 65535]], np.uint16).save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert np.asarray(to_rgb(image))[..., 1].tolist() == [[0, 100], [200, 255]]


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
    from torchvision.transforms import v2

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


def test_stronger_augmentation_changes_more():
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(3, 64, 64)

    def change(strength):
        torch.manual_seed(0)
        augment = build_augmentation(strength, (64, 64), flip=False)
        return np.mean([(augment(ramp).float() - ramp.float()).abs().mean() for _ in range(20)])

    assert 0 < change("light") < change("strong")
    assert build_augmentation("none", (64, 64)) is None


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

"""Images deeper than 8 bits: one range for a whole data set, kept with the model."""

import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from vitlab.data import data_card, load_dataset
from vitlab.data.reading import check_images, find_value_range, map_images
from vitlab.data.sources import Source
from vitlab.models import build_model, load_model
from vitlab.pictures import fit_picture, to_rgb
from vitlab.runs import Run
from vitlab.schema import Transform
from vitlab.training import save_results

pytestmark = pytest.mark.filterwarnings("ignore:.*more than 8 bits")


def test_unreadable_images_are_listed_in_order_with_their_reason():
    def read(sample_id):
        if sample_id == "s3":
            raise SyntaxError("broken PNG file")
        if sample_id == "s200":
            raise FileNotFoundError(2, "No such file or directory", "/a/path/of/this/machine")
        return Image.new("L", (2, 2))

    ids = [f"s{row}" for row in range(300)]
    samples = pd.DataFrame({"sample_id": ids, "source": [f"{name}.png" for name in ids]})
    checked = check_images(Source("toy", "1", ("a",), samples, read))
    assert checked.unreadable.values.tolist() == [
        ["s3", "s3.png", "SyntaxError: broken PNG file"],
        ["s200", "s200.png", "No such file or directory"],
    ]


def save_set(root, draw, suffix="png", per_class=10):
    """A folder of two classes, `draw(number)` giving the pixels of each image."""
    for place, label in enumerate("ab"):
        (root / label).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(draw(number + per_class * place)).save(
                root / label / f"{number}.{suffix}"
            )
    return f"folder:{root}"


def noise(number, high, low=0, dtype=np.uint16):
    return np.random.default_rng(number).uniform(low, high, (40, 40)).astype(dtype)


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_a_signal_of_so_many_bits_looks_like_the_same_one_in_8(tmp_path, bits):
    top = 2**bits - 1
    eight = load_dataset(
        save_set(
            tmp_path / "eight",
            lambda number: (noise(number, top) / top * 255).round().astype(np.uint8),
        )
    )
    with pytest.warns(
        UserWarning,
        match=rf"20 of 20 images have more than 8 bits a pixel; their values 0 to {top:g}\b",
    ):
        deep = load_dataset(save_set(tmp_path / "deep", lambda number: noise(number, top)))
    assert deep.value_range == (0, top) and eight.value_range is None
    for sample_id in ("a/3.png", "b/7.png"):
        assert deep.read(sample_id).mode == "L"
        np.testing.assert_array_equal(deep.read(sample_id), eight.read(sample_id))


def test_the_range_is_the_same_for_every_seed_fold_and_later_notebook(tmp_path):
    name = save_set(tmp_path / "set", lambda number: noise(number, 100 * (number + 10)))
    first = load_dataset(name, seed=0)
    others = [load_dataset(name, seed=1), load_dataset(name, folds=2, fold=1)]
    others += [load_dataset(name, samples=first.samples.head(number)) for number in (4, 20)]
    for other in others:
        assert other.value_range == first.value_range == (0, 4095)
        np.testing.assert_array_equal(
            other.read("b/9.png" if len(other.samples) > 4 else "a/0.png"),
            first.read("b/9.png" if len(other.samples) > 4 else "a/0.png"),
        )


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([], None),
        ([(0, 65535, True)], (0, 65535)),
        ([(0, 200, True)], (0, 255)),
        ([(0, 256, True)], (0, 511)),
        ([(0, 1, True)], (0, 1)),  # a mask
        ([(0.1, 0.9, False)], (0, 1)),
        ([(0.0, 250.5, False)], (0, 250.5)),
        ([(-1024, 3071, True)], (-1024, 3071)),  # Hounsfield units
        ([(29_000, 31_000, True)], (29_000, 31_000)),  # a thermal camera, hundredths of a kelvin
        ([(0, 2**20, True)], (0, 2**21 - 1)),  # 32 bits
        ([(7, 7, True)], (0, 255)),
        ([(0, 4000, True)] * 200 + [(0, 65535, True)], (0, 4095)),  # a spoilt image among many
    ],
)
def test_the_range_follows_the_values(limits, expected):
    assert find_value_range(limits) == expected


def test_hot_pixels_do_not_count(tmp_path):
    def draw(number):
        pixels = noise(number, 4095)
        pixels[5, 7] = 65535
        return pixels

    data = load_dataset(save_set(tmp_path / "hot", draw))
    assert data.value_range == (0, 4095)
    assert np.asarray(data.read("a/0.png"))[5, 7] == 255


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        (np.float32, -2.0, 6.0),
        (np.int32, -3000, 5000),
        (np.float32, 0.0, 1.0),
        (np.int32, 0, 2**20 - 1),
    ],
)
def test_float_and_32_bit_files_share_one_range(tmp_path, dtype, low, high):
    data = load_dataset(
        save_set(
            tmp_path / "tif",
            lambda number: noise(number, high * (1 if number else 0.5), low, dtype),
            "tif",
        )
    )
    measured = np.array(data.value_range)
    np.testing.assert_allclose(measured, (low, high), atol=0.01 * (high - low))
    pixels = noise(0, high * 0.5, low, dtype)  # darker than the rest, and stays so
    expected = np.clip((pixels - measured[0]) / (measured[1] - measured[0]), 0, 1) * 255
    np.testing.assert_allclose(data.read("a/0.tif"), expected, atol=0.51)


def test_a_deep_image_with_a_value_that_is_not_finite_is_left_out(tmp_path):
    def draw(number):
        pixels = noise(number, 1, dtype=np.float32)
        pixels[0, 0] = np.nan if number == 4 else 0
        return pixels

    data = load_dataset(save_set(tmp_path / "nan", draw, "tif"))
    assert data.excluded[["sample_id", "reason"]].values.tolist() == [
        ["a/4.tif", "it holds NaN or infinite pixels"]
    ]
    assert data.value_range == (0, 1)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_other_modes_have_no_range_and_no_warning(tmp_path, mode):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(4):
            Image.fromarray(noise(number, 255, dtype=np.uint8)).convert(mode).save(
                tmp_path / label / f"{number}.tif"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset(f"folder:{tmp_path}")
    assert data.value_range is None and data.read("a/0.tif").mode == mode


def test_sets_made_of_a_deep_one_are_scaled_like_it(tmp_path):
    name = save_set(tmp_path / "base", lambda number: noise(number, 4095))
    shuffled, base = load_dataset(f"shuffled:{name}"), load_dataset(name)
    np.testing.assert_array_equal(shuffled.read("a/0.png"), base.read("a/0.png"))
    planted = load_dataset(f"planted:{name}")
    own = np.asarray(planted.read(planted.samples["sample_id"][0]))
    assert (own > 200).mean() > 0.15, "12 bits are not as dark as in a range of 16"


def test_the_range_goes_into_the_run_and_from_there_to_images_from_elsewhere(tmp_path):
    data = load_dataset(save_set(tmp_path / "set", lambda number: noise(number, 4095)))
    assert "0 is black and 4,095 white" in data_card(data)
    model = build_model("vit_scratch", data.classes, size=36, embed_dim=16, depth=1, num_heads=1)
    run = Run.create(dataset=data.name, model=model.name, seed=0)
    run.write_table("history.csv", pd.DataFrame({"epoch": [1]}))
    save_results(run, model, data)
    transform = load_model(run.path).transform
    assert transform.value_range == (0, 4095)
    raw = Image.open(tmp_path / "set" / "a" / "0.png")
    np.testing.assert_array_equal(
        fit_picture(raw, transform), fit_picture(data.read("a/0.png"), transform)
    )


def test_without_a_range_a_single_image_is_read_as_16_bits():
    image = Image.fromarray(np.array([[0, 25700, 65535]], np.uint16))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 100, 255]
    plain = Transform((1, 3), (0.5,), (0.5,), "nearest")
    assert np.asarray(fit_picture(image, plain)).tolist() == [[0, 100, 255]]
    assert np.asarray(fit_picture(image, replace(plain, value_range=(0, 51400)))).tolist() == [
        [0, 128, 255]
    ]


def write_deep_png(path, pixels):
    """A PNG of 16 bits a channel, from (rows, columns, 2 to 4) whole numbers; Pillow writes
    none.
    """
    rows, columns, channels = pixels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits_a_channel_is_left_out(tmp_path, channels):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(6):
            image = Image.fromarray(noise(number, 255, dtype=np.uint8))
            image.convert("RGB").save(tmp_path / label / f"{number}.png")
    pixels = np.random.default_rng(0).integers(0, 4096, (16, 16, channels)).astype(np.uint16)
    write_deep_png(tmp_path / "a" / "deep.png", pixels)
    if channels == 3:
        tifffile.imwrite(tmp_path / "a" / "deep.tif", pixels, photometric="rgb")
    data = load_dataset(f"folder:{tmp_path}")
    assert set(data.excluded["sample_id"]) >= {"a/deep.png"} and len(data.samples) == 12
    assert data.excluded["reason"].str.startswith("colour of 16 bits a channel").all()


def test_images_are_mapped_in_order_and_an_error_comes_through():
    ids = [str(number) for number in range(1000)]
    assert map_images(int, ids, "counting") == list(range(1000))
    with pytest.raises(ValueError, match="invalid literal"):
        map_images(int, [*ids, "x"], "counting")

"""open_picture: pixels that decode are used, whatever the metadata are; and one list of formats."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vitlab.data import load_dataset
from vitlab.errors import UserError
from vitlab.pictures import FORMATS, IMAGE_SUFFIXES, PNG_SIGNATURE, open_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
# an EXIF block: orientation 6
TURNED = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHH", 1, 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"


def encode(format, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def add_to_jpeg(*segments, mode="RGB"):
    data = encode("JPEG", mode)
    extra = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
        for marker, body in segments
    )
    return data[:2] + extra + data[2:]


def add_to_png(*chunks, at_end=False):
    data = encode("PNG")
    extra = b"".join(
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
        for kind, body, crc in chunks
    )
    place = -12 if at_end else 33  # before IEND, or behind IHDR
    return data[:place] + extra + data[place:]


def odd_exif(orientation=6):
    """Orientation and a signed rational of -1/0, which Pillow reads and cannot write."""
    entries = struct.pack("<HHHIHH", 2, 0x0112, 3, 1, orientation, 0) + struct.pack(
        "<HHII", 0x011A, 10, 1, 38
    )
    return b"II*\0\x08\0\0\0" + entries + b"\0\0\0\0" + struct.pack("<ii", -1, 0)


BOMB = b"note\0\0" + zlib.compress(b"x" * 20_000_000)
ODD_PNG = {
    "text with a wrong checksum": add_to_png((b"tEXt", b"note\0b", 1)),
    "compressed text by an unknown method": add_to_png((b"zTXt", b"note\0\7junk", None)),
    "text that decompresses to 20 MB": add_to_png((b"zTXt", BOMB, None)),
    "the same behind the pixels": add_to_png((b"zTXt", BOMB, None), at_end=True),
    "a colour profile by an unknown method": add_to_png((b"iCCP", b"profile\0\7junk", None)),
    "an empty colour profile": add_to_png((b"iCCP", b"", None)),
    "resolution cut short": add_to_png((b"pHYs", b"\0", None)),
    "gamma cut short": add_to_png((b"gAMA", b"", None)),
    "animation cut short": add_to_png((b"acTL", b"\0", None)),
    "EXIF that is none": add_to_png((b"eXIf", b"junk", None)),
    "bytes behind the end": encode("PNG") + b"junk" * 9,
}
ODD_JPEG = {
    "a colour profile cut short": add_to_jpeg((0xE2, b"ICC_PROFILE\0")),
    "a JFIF header cut short": add_to_jpeg((0xE0, b"JFIF\0")),
    "an Adobe header cut short": add_to_jpeg((0xEE, b"Adobe\0")),
    "EXIF that is none": add_to_jpeg((0xE1, b"Exif\0\0junk")),
    "a list of pictures that is none": add_to_jpeg((0xE2, b"MPF\0junk")),
    "bytes behind the end": encode("JPEG") + b"junk" * 9,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data", "format"),
    [pytest.param(data, "PNG", id=f"png, {name}") for name, data in ODD_PNG.items()]
    + [pytest.param(data, "JPEG", id=f"jpeg, {name}") for name, data in ODD_JPEG.items()],
)
def test_odd_metadata_do_not_cost_a_pixel(data, format, tmp_path):
    expected = Image.open(io.BytesIO(encode(format)))
    np.testing.assert_array_equal(open_picture(data), expected)
    (tmp_path / "picture").write_bytes(data)
    np.testing.assert_array_equal(open_picture(tmp_path / "picture"), expected)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_counts_though_the_rest_of_the_exif_is_odd(orientation, format):
    options = {"lossless": True} if format == "WEBP" else {}
    plain = Image.open(io.BytesIO(encode(format, **options)))
    odd = open_picture(
        encode(format, exif=b"Exif\0\0" * (format == "JPEG") + odd_exif(orientation), **options)
    )
    swaps = orientation in (5, 6, 7, 8)
    assert odd.size == ((40, 30) if swaps else (30, 40))
    corner = {
        2: (29, 0),
        3: (29, 39),
        4: (0, 39),
        5: (0, 0),
        6: (0, 39),
        7: (29, 39),
        8: (29, 0),
    }.get(orientation, (0, 0))
    assert odd.getpixel((0, 0)) == plain.getpixel(corner)


def test_a_turned_image_is_turned_once():
    picture = open_picture(encode("JPEG", exif=b"Exif\0\0" + TURNED))
    assert picture.size == (40, 30) and not picture.getexif()


def test_stripping_keeps_orientation_and_colours():
    damaged = (0xE2, b"ICC_PROFILE\0")
    assert open_picture(add_to_jpeg(damaged, (0xE1, b"Exif\0\0" + TURNED))).size == (40, 30)
    plain = Image.open(io.BytesIO(encode("JPEG", "CMYK")))
    # the Adobe header says it is inverted
    np.testing.assert_array_equal(open_picture(add_to_jpeg(damaged, mode="CMYK")), plain)


@pytest.mark.parametrize(
    "data",
    [
        encode("JPEG")[:-40],
        encode("PNG")[:-200],
        encode("PNG")[:40],
        b"",
        PNG_SIGNATURE,
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\xff\xd8" + b"\xff\xe1\xff\xff" * 2,
        add_to_png((b"tEXt", b"note\0b", 1))[:-200],  # both odd and cut off
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # Pillow would start another program
    ],
)
def test_broken_pixels_and_other_formats_are_refused(data):
    with pytest.raises((OSError, SyntaxError, ValueError)):
        open_picture(data)


def test_a_check_sees_the_header_before_the_pixels_and_its_error_is_passed_on():
    seen = []

    def check(image):
        seen.append((image.size, bool(image.tile)))  # a tile is still to be decoded
        raise UserError("too large")

    for data in (encode("PNG"), ODD_PNG["resolution cut short"]):
        with pytest.raises(UserError, match="too large"):
            open_picture(data, check)
    assert seen == [((30, 40), True)] * 2


def test_every_suffix_is_read_from_a_folder(tmp_path):
    for format, suffixes in FORMATS.items():
        for suffix in suffixes:
            for label in ("a", "b"):
                (tmp_path / label).mkdir(exist_ok=True)
                (tmp_path / label / f"small{suffix}").write_bytes(encode(format))
                (tmp_path / label / f"LARGE{suffix.upper()}").write_bytes(encode(format))
    data = load_dataset(f"folder:{tmp_path}")
    assert len(data.samples) == 4 * len(IMAGE_SUFFIXES) and not len(data.excluded)
    assert {".jpe", ".jfif", ".avif", ".jp2", ".ppm"} <= set(IMAGE_SUFFIXES)


def test_odd_metadata_in_a_folder_and_in_a_hub_set(tmp_path):
    odd = encode("JPEG", exif=b"Exif\0\0" + odd_exif())
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(4):
            (tmp_path / label / f"{number}.jpg").write_bytes(odd)
    data = load_dataset(f"folder:{tmp_path}")
    assert not len(data.excluded) and data.read("a/0.jpg").size == (40, 30)
    hugging_face = pytest.importorskip("datasets")
    features = hugging_face.Features(
        {"image": hugging_face.Image(), "label": hugging_face.ClassLabel(names=["a", "b"])}
    )
    columns = {"image": [{"bytes": odd, "path": None}] * 20, "label": [0, 1] * 10}
    hugging_face.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "saved")
    data = load_dataset(f"hub:{tmp_path / 'saved'}")
    assert not len(data.excluded) and data.read("all00000").size == (40, 30)

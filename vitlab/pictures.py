"""From a file to an image of a model's size, with Pillow alone: training and a deployed model see
the same pixels.

`open_picture` decodes a file of one of FORMATS, `fit_picture` brings the image to a model's size
and to 8 bits. Images deeper than 8 bits are scaled by `Transform.value_range`, which is estimated
over the training data and kept with the model."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import Transform

INTERPOLATIONS = tuple(method.name.lower() for method in Image.Resampling)
FORMATS = {  # Pillow's name of each format that is accepted -> how its files end
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
UPRIGHT = {  # EXIF orientation -> what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE, JPEG_SIGNATURE = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
LOST_BITS = "vitlab_lost_bits"  # key of Image.info
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # of a PNG


def open_picture(
    file: Path | str | bytes, check: Callable[[Image.Image], object] = lambda image: None
) -> Image.Image:
    """The decoded image of a file or of its bytes, turned upright by its EXIF orientation.

    A file that Pillow refuses because of its metadata is decoded without them. Of several frames or
    pages, the first is read. Of 16-bit colour, Pillow keeps the upper 8 bits; `image.info` then
    holds LOST_BITS. check: called with the image before its pixels are decoded; it may raise.
    Raises Pillow's errors for other formats and for damaged pixels."""

    def decode(source) -> Image.Image:
        with Image.open(source, formats=tuple(FORMATS)) as image:
            check(image)
            deep = any(";16" in str(tile[3]) for tile in image.tile) and not is_deep(image)
            image.load()
        if deep:
            image.info[LOST_BITS] = True
        return image

    try:
        return _turn_upright(decode(io.BytesIO(file) if isinstance(file, bytes) else file))
    except (UserError, Image.DecompressionBombError):
        raise
    except Exception:
        stripped = _strip_metadata(file if isinstance(file, bytes) else Path(file).read_bytes())
        if not stripped:
            raise
        try:
            return _turn_upright(decode(io.BytesIO(stripped)))
        except UserError:
            raise
        except Exception:  # the pixels are damaged as well: the first error tells more
            pass
        raise


def fit_picture(image: Image.Image, transform: Transform) -> Image.Image:
    """The image at the model's size with its aspect ratio kept: RGB, or 8-bit grey where the
    transform has one mean.

    Fit `pad` shows the whole image between bars, `crop` fills the frame and cuts, both around the
    centre. Bars and transparent pixels get the mean colour, which normalises to about 0."""
    if transform.interpolation not in INTERPOLATIONS:
        raise UserError(unknown("interpolation", transform.interpolation, list(INTERPOLATIONS)))
    if transform.fit not in ("pad", "crop"):
        raise UserError(unknown("fit", transform.fit, ["pad", "crop"]))
    height, width = transform.size
    method = Image.Resampling[transform.interpolation.upper()]
    fill = tuple(round(255 * mean) for mean in transform.mean) * (3 // len(transform.mean))
    image = to_rgb(image, fill, transform.value_range)
    if transform.fit == "pad":
        image = ImageOps.pad(
            _thicken(image, (width, height), method), (width, height), method, color=fill
        )
    else:
        image = ImageOps.fit(image, (width, height), method)
    return image if len(transform.mean) == 3 else image.convert("L")


def to_rgb(
    image: Image.Image,
    fill: tuple[int, int, int] = (0, 0, 0),
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """8-bit RGB from any mode, over the colour `fill`. value_range: see `scale_to_eight_bits`."""
    if is_deep(image):
        # Pillow's own conversion clips all above 255 to white
        image = scale_to_eight_bits(image, value_range)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*fill, 255)), image)
    return image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether its pixels are integers of more than 8 bits, or floating-point numbers."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def scale_to_eight_bits(
    image: Image.Image, value_range: tuple[float, float] | None = None
) -> Image.Image:
    """8-bit grey from a deep image: `value_range` becomes 0..255, values outside are clipped.

    Without a range it is 0..65535, or the image's own minimum and maximum for floating-point values
    and for integers outside of that. UserError for NaN or infinite pixels."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise UserError("it holds NaN or infinite pixels")
    low, high = value_range or (0.0, 65535.0)
    if value_range is None and (image.mode == "F" or values.min() < low or values.max() > high):
        low, high = values.min(), values.max()
    shares = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return Image.fromarray(np.round(shares * 255).astype(np.uint8))


def _thicken(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """Enlarge an image so thin that nothing of it would be left at this size (width, height)."""
    width, height = image.size
    if round(height / width * size[0]) < 1:
        return image.resize((size[0], 1), method)
    if round(width / height * size[1]) < 1:
        return image.resize((1, size[1]), method)
    return image


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF data: SyntaxError, struct.error, TypeError, ...
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info.pop("exif", None)  # which would turn it again
    return turned


def _strip_metadata(data: bytes) -> bytes:
    """The bytes of a PNG or JPEG without metadata that its pixels do not need; empty for other
    formats.
    """
    if data.startswith(PNG_SIGNATURE):
        kept, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
        while place < len(data):
            end = place + 12 + int.from_bytes(data[place : place + 4])
            kept += [data[place:end]] if data[place + 4 : place + 8] in PIXEL_CHUNKS else []
            place = end
        return b"".join(kept)
    if data.startswith(JPEG_SIGNATURE):
        kept, place = [JPEG_SIGNATURE], len(JPEG_SIGNATURE)
        # from DA on, pixels
        while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] not in (
            b"",
            b"\xda",
        ):
            marker, end = data[place + 1], place + 2 + int.from_bytes(data[place + 2 : place + 4])
            is_metadata = marker == 0xFE or 0xE0 <= marker <= 0xEF
            # Adobe: the colours
            is_needed = data[place + 4 : place + 8] == b"Exif" or (
                marker == 0xEE and end - place >= 16
            )
            kept += [data[place:end]] if is_needed or not is_metadata else []
            place = end
        return b"".join(kept) + data[place:]
    return b""

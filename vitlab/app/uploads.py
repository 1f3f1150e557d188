"""Reading uploaded files safely: size and pixels are checked before anything is decoded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitlab.errors import UserError
from vitlab.pictures import FORMATS, open_picture

# what training accepts, as a phrase
NAMED = " or ".join([", ".join(list(FORMATS)[:-1]), list(FORMATS)[-1]])
STRIP = 10  # times as long as wide, at most


@dataclass(frozen=True)
class UploadLimits:
    """megabytes: of one file. megapixels: of one image. files: at a time."""

    megabytes: float = 10
    megapixels: float = 25
    files: int = 200

    def __post_init__(self):
        for name in ("megabytes", "megapixels", "files"):
            if getattr(self, name) <= 0:
                raise UserError(
                    f"the limit of {name} must be more than 0, got {getattr(self, name)}"
                )

    @property
    def bytes(self) -> int:
        return int(self.megabytes * 1_000_000)


class UploadError(UserError):
    """A file that is not accepted; the message is for the person who sent it."""

    def __init__(self, message: str, too_large: bool = False):
        super().__init__(message)
        self.too_large = too_large


def read_upload(file: str | Path | bytes, limits: UploadLimits) -> Image.Image:
    """The decoded image, as in training; UploadError for another file, or one over the limits."""
    check_bytes(len(file) if isinstance(file, bytes) else os.path.getsize(file), limits)
    try:
        image = open_picture(
            file, lambda opened: _check_pixels(opened.width, opened.height, limits)
        )
        _check_finite(image)
        return image
    except UploadError:
        raise
    except UnidentifiedImageError:
        raise UploadError(
            f"This file is not an image in a supported format. Send a {NAMED} file."
        ) from None
    # Pillow's own alarm, for far more pixels than any limit here
    except Image.DecompressionBombError:
        raise UploadError(_describe_pixels("far too many pixels", limits), too_large=True) from None
    # decoders of a damaged file raise OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise UploadError(
            "This image is damaged or truncated and cannot be decoded. Save or download it again."
        ) from error


def check_bytes(size: int, limits: UploadLimits) -> None:
    """UploadError for an empty file, and for one of more bytes than the limit."""
    if size == 0:
        raise UploadError("This file is empty. Send an image.")
    if size > limits.bytes:
        raise UploadError(
            f"This file has {size / 1e6:,.1f} MB, more than the limit of {limits.megabytes:g} MB."
            " Reduce its size.",
            too_large=True,
        )


def _check_pixels(width: int, height: int, limits: UploadLimits) -> None:
    if width * height > limits.megapixels * 1_000_000:
        raise UploadError(
            _describe_pixels(f"{width:,} x {height:,} pixels", limits), too_large=True
        )

    if max(width, height) > STRIP * min(width, height):
        raise UploadError(
            f"This image is a strip of {width:,} x {height:,} pixels, which is too narrow. Crop it."
        )


def _check_finite(image: Image.Image) -> None:
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise UploadError(
            "This image contains pixels that are not numbers (NaN or infinite). Save it as PNG."
        )


def _describe_pixels(many: str, limits: UploadLimits) -> str:
    return (
        f"This image has {many}, more than the limit of {limits.megapixels:g} megapixels."
        " Scale it down."
    )

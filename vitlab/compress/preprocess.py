"""What `vitlab.data.preprocess` does, in Pillow and numpy alone: pixel by pixel the same, for
machines without torch.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from vitlab.errors import UserError
from vitlab.pictures import fit_picture
from vitlab.schema import Transform


def preprocess(image: Image.Image, transform: Transform) -> np.ndarray:
    """The image as a model takes it: (3, h, w) float32, or (1, h, w) for grey, normalised."""
    return normalise(fit_image(image, transform), transform)


def fit_image(image: Image.Image, transform: Transform) -> np.ndarray:
    """(h, w, 3) uint8 in RGB, or (h, w, 1) in grey where the transform has one mean; see
    `vitlab.pictures.fit_picture`.
    """
    height, width = transform.size
    return np.asarray(fit_picture(image, transform)).reshape(height, width, len(transform.mean))


def normalise(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    """uint8 (..., h, w, C) to float32 (..., C, h, w): values in 0..1, then minus mean, over std,
    per channel.
    """
    mean, std = (np.array(values, np.float32) for values in (transform.mean, transform.std))
    if pixels.shape[-1] != len(mean):
        raise UserError(
            f"images with {pixels.shape[-1]} channels do not fit a transform with {len(mean)}"
        )
    values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(values, -1, -3))

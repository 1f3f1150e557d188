"""Ranges of the activations of an ONNX graph on real images; their 8-bit scales are computed from
them.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

from vitlab.compress.graph import MAP_OPS, WEIGHTED
from vitlab.compress.parity import PixelSet
from vitlab.compress.preprocess import normalise
from vitlab.schema import Transform

CHUNK = 8  # images in memory at a time


def measure_ranges(source: Path, cache: Path, batches: Iterator[np.ndarray]) -> None:
    """Write the ranges that onnxruntime's quantiser reads, from inputs of the graph, a few images
    at a time.

    onnxruntime keeps in memory what it has not yet counted.
    """
    with silence():
        calibrator = create_calibrator(
            source,
            [*WEIGHTED, *MAP_OPS],
            augmented_model_path=str(cache.with_name("augmented.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        for batch in batches:
            calibrator.collect_data(_Reader(batch))
        save_tensors_data(calibrator.compute_data(), cache)


def feed_images(images: PixelSet, transform: Transform) -> Iterator[np.ndarray]:
    """Inputs of the graph (B, C, h, w), a few images at a time."""
    for start in range(0, len(images), CHUNK):
        yield normalise(images.pixels[start : start + CHUNK], transform)


class _Reader(CalibrationDataReader):
    """Images one by one, as onnxruntime's calibration asks for them."""

    def __init__(self, batch: np.ndarray):
        self._rest = iter(batch)

    def get_next(self):
        image = next(self._rest, None)
        return None if image is None else {"images": image[None]}


@contextmanager
def silence() -> Iterator[None]:
    """onnxruntime's quantiser advises a pre-processing that changes nothing here, and prints its
    progress.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)

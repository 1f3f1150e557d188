"""One way to call them all: whatever gives logits becomes a function from a batch of pixels to a
batch of logits, in NumPy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitlab.errors import MissingFileError, UserError
from vitlab.registry import unknown

if TYPE_CHECKING:
    import pandas as pd

    from vitlab.schema import DataBundle, Transform

Side = Callable[[np.ndarray], np.ndarray]
PRECISIONS = ("fp32", "bf16", "fp16")


def make_side(model, *, threads: int | None = None, precision: str = "fp32") -> Side:
    """A function from pixels (B, 3, h, w), float32, to logits (B, num_classes), float32.

    model: a ModelBundle or torch module (computed in `precision`, weights turned once), the path of
    an ONNX file, an onnxruntime session, or any function, which is taken as it is. threads: of a
    session made here; a torch module computes with as many as torch is set to. ValueError for
    anything else."""
    if precision not in PRECISIONS:
        raise UserError(unknown("precision", precision, list(PRECISIONS)))
    if isinstance(model, str | Path):
        from vitlab.compress.session import open_session

        if not Path(model).is_file():
            raise MissingFileError(
                f"there is no file {model}; export_onnx(model, path, data) writes one"
            )
        return _call_session(open_session(model, threads))
    if hasattr(model, "get_inputs"):
        return _call_session(model)
    module = getattr(model, "module", model)
    if hasattr(module, "state_dict"):
        return _call_module(module, precision)
    if not callable(model):
        raise UserError(
            f"a {type(model).__name__} gives no logits: write a model, the path of an ONNX file, or"
            " a function"
        )
    return model


def _call_session(session) -> Side:
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: np.asarray(pixels, np.float32)})[0].astype(
        np.float32, copy=False
    )


def _call_module(module, precision: str) -> Side:
    import torch

    from vitlab.training.precision import TYPES

    if precision in TYPES:
        module = copy.deepcopy(module).to(TYPES[precision])
    module.eval()
    weight = next(module.parameters())

    def compute(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return (
                module(torch.as_tensor(pixels).to(weight.device, weight.dtype))
                .float()
                .cpu()
                .numpy()
            )

    return compute


def predict_sides(
    sides: Mapping[str, Side],
    data: DataBundle,
    transform: Transform,
    splits: Sequence[str] = ("test",),
    batch_size: int = 8,
) -> dict[str, pd.DataFrame]:
    """The predictions table of each side, as of `vitlab.training.predict`. Each image is read and
    prepared once for all sides.

    A small batch is quicker in PyTorch on a processor: what a large one needs in between is asked
    of the system anew each time."""
    import pandas as pd
    from scipy.special import softmax

    from vitlab.data import ImageDataset
    from vitlab.schema import check_predictions

    called = {name: make_side(model) for name, model in sides.items()}
    rows = pd.concat([data.split(split) for split in splits])[
        ["sample_id", "split", "group", "label"]
    ].reset_index(drop=True)
    dataset = ImageDataset(data, rows["sample_id"].tolist(), transform)
    logits: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    for start in range(0, len(dataset), batch_size):
        batch = dataset.__getitems__(range(start, min(start + batch_size, len(dataset))))
        pixels = np.stack([image.numpy() for image, _, _ in batch])  # (B, 3, h, w)
        for name, side in called.items():
            logits[name].append(side(pixels))
    tables = {}
    for name, parts in logits.items():
        values = np.concatenate(parts).astype(float)  # (N, num_classes)
        if values.shape[1:] != (len(data.classes),):
            raise UserError(
                f"{name} gives {values.shape[1:]} values an image, and {data.name} has"
                f" {len(data.classes)} classes"
            )
        table = rows.assign(pred=np.array(data.classes)[values.argmax(axis=1)])
        for kind, scores in (("logit", values), ("prob", softmax(values, axis=1))):
            table[[f"{kind}_{one}" for one in data.classes]] = scores
        check_predictions(table)
        tables[name] = table
    return tables

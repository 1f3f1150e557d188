"""Variants of a model (PyTorch, ONNX) behind one interface: a function from pixels to logits, in
NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from vitlab.compress.session import open_session
from vitlab.data import ImageDataset
from vitlab.errors import MissingFileError, UserError
from vitlab.schema import DataBundle, ModelBundle, Transform, check_predictions

Predictor = Callable[[np.ndarray], np.ndarray]
BATCH = 8  # images; faster in PyTorch on a processor than a large batch, which allocates anew
MB = 1e6  # bytes
SAVED = ("model.safetensors", "model.json")


def make_predictor(model: ModelBundle | Path | Predictor, threads: int | None = None) -> Predictor:
    """A function from pixels (B, 3, h, w) to logits (B, num_classes), both float32.

    model: a model, the path of an ONNX file, or a function, which is returned as it is. threads: of
    an ONNX file; a PyTorch model computes with as many threads as torch is set to.

    >>> from vitlab.models import build_model
    >>> predictor = make_predictor(build_model("vit_scratch", ["cat", "dog"], size=32))
    >>> predictor(np.zeros((4, 3, 32, 32), np.float32)).shape
    (4, 2)
    """
    if isinstance(model, ModelBundle):
        return _call_module(model.module.eval())
    if isinstance(model, str | Path):
        return _call_session(open_session(model, threads))
    return model


def predict_variants(
    variants: Mapping[Hashable, ModelBundle | Path | Predictor],
    data: DataBundle,
    transform: Transform,
    splits: Sequence[str] = ("test",),
) -> dict[Hashable, pd.DataFrame]:
    """The predictions table of each variant (what `make_predictor` takes, by name), as of
    `vitlab.training.predict`. Each image is read and prepared once for all variants.
    """
    predictors = {name: make_predictor(model) for name, model in variants.items()}
    rows = pd.concat([data.split(split) for split in splits])
    rows = rows[["sample_id", "split", "group", "label"]].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"{data.name} has no images in the split {' or '.join(splits)}")
    dataset = ImageDataset(data, rows["sample_id"].tolist(), transform)
    logits: dict[Hashable, list[np.ndarray]] = {name: [] for name in variants}
    for start in range(0, len(dataset), BATCH):
        batch = dataset.__getitems__(range(start, min(start + BATCH, len(dataset))))
        pixels = np.stack([image.numpy() for image, _, _ in batch])  # (B, 3, h, w)
        for name, predictor in predictors.items():
            logits[name].append(predictor(pixels))
    tables = {}
    for name, parts in logits.items():
        values = np.concatenate(parts).astype(float)  # (N, num_classes)
        if values.shape[1:] != (len(data.classes),):
            raise UserError(
                f"{name} gives {values.shape[1:]} values per image, and {data.name} has"
                f" {len(data.classes)} classes"
            )
        table = rows.assign(pred=np.array(data.classes)[values.argmax(axis=1)])
        for kind, scores in (("logit", values), ("prob", softmax(values, axis=1))):
            table[[f"{kind}_{one}" for one in data.classes]] = scores
        check_predictions(table)
        tables[name] = table
    return tables


def size_on_disk(path: Path | str) -> float:
    """Megabytes (10^6 bytes) of a model: an ONNX file, or a folder of `save_model`."""
    path = Path(path)
    files = [path / name for name in SAVED if (path / name).is_file()] if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise MissingFileError(f"{path} is neither an ONNX file nor a folder of save_model")
    return sum(file.stat().st_size for file in files) / MB


def _call_session(session) -> Predictor:
    name = session.get_inputs()[0].name

    def compute(pixels: np.ndarray) -> np.ndarray:
        logits = session.run(None, {name: np.asarray(pixels, np.float32)})[0]
        return logits.astype(np.float32, copy=False)

    return compute


def _call_module(module: torch.nn.Module) -> Predictor:
    weight = next(module.parameters())

    def compute(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            images = torch.as_tensor(pixels).to(weight.device, weight.dtype)
            return module(images).float().cpu().numpy()

    return compute

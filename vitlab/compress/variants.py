"""Variants of a model (PyTorch, ONNX) behind one interface: a function from pixels to logits, in
NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitlab.errors import MissingFileError, UserError

if TYPE_CHECKING:
    import pandas as pd

    from vitlab.schema import DataBundle, Transform

Predictor = Callable[[np.ndarray], np.ndarray]


def make_predictor(model, *, threads: int | None = None) -> Predictor:
    """A function from pixels (B, 3, h, w) to logits (B, num_classes), both float32.

    model: a ModelBundle or torch module, the path of an ONNX file, an onnxruntime session, or a
    function, which is returned as it is. threads: of a session made here; a torch module computes
    with as many threads as torch is set to. ValueError for anything else.

    >>> from vitlab.models import build_model
    >>> predictor = make_predictor(build_model("vit_scratch", ["cat", "dog"], size=32))
    >>> predictor(np.zeros((4, 3, 32, 32), np.float32)).shape
    (4, 2)
    """
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
        return _call_module(module)
    if not callable(model):
        raise UserError(
            f"a {type(model).__name__} gives no logits: pass a model, the path of an ONNX file, or"
            " a function"
        )
    return model


def predict_variants(
    variants: Mapping[str, object],
    data: DataBundle,
    transform: Transform,
    splits: Sequence[str] = ("test",),
) -> dict[str, pd.DataFrame]:
    """The predictions table of each variant (what `make_predictor` takes, by name), as of
    `vitlab.training.predict`. Each image is read and prepared once for all variants.
    """
    import pandas as pd
    from scipy.special import softmax

    from vitlab.data import ImageDataset
    from vitlab.schema import check_predictions

    batch_size = 8  # faster in PyTorch on a processor than a large batch, which allocates anew
    predictors = {name: make_predictor(model) for name, model in variants.items()}
    rows = pd.concat([data.split(split) for split in splits])
    rows = rows[["sample_id", "split", "group", "label"]].reset_index(drop=True)
    dataset = ImageDataset(data, rows["sample_id"].tolist(), transform)
    logits: dict[str, list[np.ndarray]] = {name: [] for name in variants}
    for start in range(0, len(dataset), batch_size):
        batch = dataset.__getitems__(range(start, min(start + batch_size, len(dataset))))
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


def _call_session(session) -> Predictor:
    name = session.get_inputs()[0].name

    def compute(pixels: np.ndarray) -> np.ndarray:
        logits = session.run(None, {name: np.asarray(pixels, np.float32)})[0]
        return logits.astype(np.float32, copy=False)

    return compute


def _call_module(module) -> Predictor:
    import torch

    module.eval()
    weight = next(module.parameters())

    def compute(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            images = torch.as_tensor(pixels).to(weight.device, weight.dtype)
            return module(images).float().cpu().numpy()

    return compute

"""Images as vectors: what a pretrained network makes of them before its classifier, to measure how
alike two images are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from vitlab.errors import UserError
from vitlab.models import build_model, split_stages
from vitlab.schema import SPLITS, DataBundle
from vitlab.training.cache import FrozenFeatures, FrozenFront
from vitlab.training.devices import join_processes


def embed_images(
    data: DataBundle, model: str = "efficientnet_lite0", size: int | None = None
) -> np.ndarray:
    """(N, D) float32 of length 1, a row for each row of `data.samples`: the input of the classifier
    of a pretrained model.

    size: pixels of the input; by default what the model was made for. Fewer are faster and see
    less. The vectors know nothing of the labels or splits. They are kept in reports/cache with the
    outputs of frozen stages, so every seed and every labelling of the same images computes them
    once. Raises ValueError for a model that gives no vector an image."""
    bundle = build_model(model, ("any", "other"), size=size)  # the classifier is not used
    device = join_processes().device
    front = nn.Sequential(
        *(stage for name, stage in split_stages(bundle.module) if name != "head")
    ).to(device)
    front = FrozenFront(front.to(memory_format=torch.channels_last), "auto", device)
    rows = np.arange(len(data.samples))
    embeddings = None
    for split in SPLITS:
        features = FrozenFeatures(data, split, bundle, front)
        values = features.stores[0].read(features.rows)
        if values.ndim != 2:
            raise UserError(
                f"{model} gives {tuple(values.shape[1:])} an image, not one vector; choose"
                " efficientnet_lite0"
            )
        embeddings = (
            np.empty((len(rows), values.shape[1]), np.float32) if embeddings is None else embeddings
        )
        embeddings[(data.samples["split"] == split).to_numpy()] = values.float().numpy()
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)

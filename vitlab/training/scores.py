"""Logits of a data set, and the validation columns of the history that they give."""

from __future__ import annotations

import numpy as np
import torch
from accelerate.utils import gather_object
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from vitlab.training.devices import autocast


def arrange(inputs: torch.Tensor, channels_last: bool = True) -> torch.Tensor:
    """float32, and (B, C, h, w) with the channels last in memory: several times faster for
    convolutions, the same numbers.
    """
    last = channels_last and inputs.ndim == 4
    return inputs.float().contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


def compute_logits(
    module,
    dataset: Dataset,
    device: torch.device,
    precision: str = "fp32",
    *,
    rank: int = 0,
    processes: int = 1,
) -> tuple[torch.Tensor, np.ndarray]:
    """Logits (N, num_classes) float32 and class indices (N,) of a dataset, in its order. Processes
    share the work.
    """
    module.eval()
    logits = []
    own = list(range(rank, len(dataset), processes))
    with torch.inference_mode(), autocast(device, precision):
        for inputs, _, _ in DataLoader(dataset, batch_size=64, sampler=own):
            logits.append(module(arrange(inputs.to(device))).float().cpu())
    if processes > 1:
        shares = gather_object([(own, torch.cat(logits))])
        order = torch.tensor([position for positions, _ in shares for position in positions])
        return torch.cat([values for _, values in shares])[order.argsort()], dataset.labels
    return torch.cat(logits), dataset.labels


def score_columns(classes: tuple[str, ...]) -> list[str]:
    return [
        "val_loss",
        "val_accuracy",
        "val_balanced_accuracy",
        "val_roc_auc",
        *(f"val_recall_{name}" for name in classes),
    ]


def score_logits(
    logits: torch.Tensor,
    labels: np.ndarray,
    classes: tuple[str, ...],
    weight: torch.Tensor | None = None,
) -> dict[str, float]:
    """The validation columns of the history; the area under the ROC curve is one against the rest
    for more than two classes.

    weight: of each class in val_loss, as in the training loss: the sum is divided by the number of
    images."""
    probabilities = logits.softmax(dim=1).numpy()
    predicted = probabilities.argmax(axis=1)
    indices = range(len(classes))
    ranking = probabilities[:, 1] if len(classes) == 2 else probabilities
    recalls = recall_score(labels, predicted, labels=indices, average=None, zero_division=0)
    values = (
        F.cross_entropy(
            logits, F.one_hot(torch.tensor(labels), len(classes)).float(), weight
        ).item(),
        float((predicted == labels).mean()),
        balanced_accuracy_score(labels, predicted),
        roc_auc_score(
            labels, ranking, multi_class="ovr", labels=indices if len(classes) > 2 else None
        ),
        *recalls,
    )
    return dict(zip(score_columns(classes), map(float, values), strict=True))

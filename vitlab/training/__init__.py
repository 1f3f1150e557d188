"""Training: recipes, the loop, the frozen part computed once, predictions, and whole runs."""

from vitlab.training.config import TrainConfig, recipe
from vitlab.training.experiment import ensure_run, finetune, measure_inference, predict, save_results
from vitlab.training.frozen import FrozenFeatures, split_model
from vitlab.training.loop import fit, warmup_cosine

__all__ = [
    "FrozenFeatures",
    "TrainConfig",
    "ensure_run",
    "finetune",
    "fit",
    "measure_inference",
    "predict",
    "recipe",
    "save_results",
    "split_model",
    "warmup_cosine",
]

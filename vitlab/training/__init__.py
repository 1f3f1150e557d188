"""Training: recipes, strategies, the loop, the frozen part computed once, checkpoints, predictions, and whole runs."""

from vitlab.training.cache import FrozenFeatures, FrozenFront
from vitlab.training.config import TrainConfig, recipe, training_arguments
from vitlab.training.experiment import ensure_run, finetune, measure_inference, predict, save_results
from vitlab.training.launch import fit_on
from vitlab.training.loop import fit
from vitlab.training.strategy import build_optimizer, find_border, split_model, strategy_table

__all__ = [
    "FrozenFeatures",
    "FrozenFront",
    "TrainConfig",
    "build_optimizer",
    "ensure_run",
    "find_border",
    "finetune",
    "fit",
    "fit_on",
    "measure_inference",
    "predict",
    "recipe",
    "save_results",
    "split_model",
    "strategy_table",
    "training_arguments",
]

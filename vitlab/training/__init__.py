"""Training: recipes, strategies, the loop, the frozen part computed once, checkpoints, predictions,
and whole runs.
"""

from vitlab.training.cache import FrozenFeatures, FrozenFront
from vitlab.training.config import TrainConfig, fit_options, recipe, training_arguments
from vitlab.training.embedding import embed_images
from vitlab.training.experiment import ensure_run, initial_model, predict, save_results
from vitlab.training.known_truth import ensure_planted_run, ensure_shuffled_run
from vitlab.training.launch import fit_on
from vitlab.training.loop import fit
from vitlab.training.minority import imbalance_table
from vitlab.training.objective import Objective
from vitlab.training.reading import describe_training
from vitlab.training.space import default_space
from vitlab.training.strategy import build_optimizer, find_border, split_model, strategy_table
from vitlab.training.tune import (
    best_recipe,
    importance_table,
    recipe_changes,
    trials_table,
    tune_recipe,
)

__all__ = [
    "FrozenFeatures",
    "FrozenFront",
    "Objective",
    "TrainConfig",
    "best_recipe",
    "build_optimizer",
    "default_space",
    "describe_training",
    "embed_images",
    "ensure_planted_run",
    "ensure_run",
    "ensure_shuffled_run",
    "find_border",
    "fit",
    "fit_on",
    "fit_options",
    "imbalance_table",
    "importance_table",
    "initial_model",
    "predict",
    "recipe",
    "recipe_changes",
    "save_results",
    "split_model",
    "strategy_table",
    "training_arguments",
    "trials_table",
    "tune_recipe",
]

from .cache import (
    embed_images as embed_images,
)
from .config import TrainConfig as TrainConfig, fit_options as fit_options, recipe as recipe
from .experiment import (
    ensure_run as ensure_run,
    fit_on as fit_on,
    initial_model as initial_model,
    predict as predict,
    save_results as save_results,
)
from .known_truth import (
    ensure_planted_run as ensure_planted_run,
    ensure_shuffled_run as ensure_shuffled_run,
)
from .loop import fit as fit
from .minority import imbalance_table as imbalance_table
from .options import list_options as list_options, read_settings as read_settings
from .sentences import (
    describe_imbalance as describe_imbalance,
    describe_model as describe_model,
    describe_training as describe_training,
    recipe_table as recipe_table,
)
from .space import (
    best_trials as best_trials,
    changes_table as changes_table,
    default_space as default_space,
    describe_trials as describe_trials,
    space_table as space_table,
)
from .strategy import (
    build_optimizer as build_optimizer,
    find_border as find_border,
    split_model as split_model,
    strategy_table as strategy_table,
)
from .tune import (
    best_recipe as best_recipe,
    importance_table as importance_table,
    recipe_changes as recipe_changes,
    trials_table as trials_table,
    tune_recipe as tune_recipe,
)

"""Why a model decides as it does: attention made visible, and maps of what each pixel contributed."""

from vitlab.explain.attention import record_attention
from vitlab.explain.attribution import integrated_gradients, saliency
from vitlab.explain.cam import grad_cam
from vitlab.explain.methods import available, explain, suitable_methods
from vitlab.explain.pointing import pointing_scores, pointing_table, stamp_effect_table
from vitlab.explain.randomisation import (
    class_sensitivity_table,
    class_verdicts,
    compare_models_table,
    randomisation_table,
    randomise,
    sanity_verdicts,
)
from vitlab.explain.rollout import compute_rollout, rollout

__all__ = [
    "available",
    "class_sensitivity_table",
    "class_verdicts",
    "compare_models_table",
    "compute_rollout",
    "explain",
    "grad_cam",
    "integrated_gradients",
    "pointing_scores",
    "pointing_table",
    "randomisation_table",
    "randomise",
    "record_attention",
    "rollout",
    "saliency",
    "sanity_verdicts",
    "stamp_effect_table",
    "suitable_methods",
]

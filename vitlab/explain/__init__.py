"""Why a model decides as it does: attention made visible, and maps of what each pixel contributed."""

from vitlab.explain.attention import record_attention
from vitlab.explain.attribution import integrated_gradients, saliency
from vitlab.explain.cam import grad_cam
from vitlab.explain.controls import CONTROLS, control_maps
from vitlab.explain.faithfulness import area_table, comprehensiveness, curve_table, sensitivity_n, sufficiency
from vitlab.explain.methods import available, explain, suitable_methods
from vitlab.explain.removal import CellScorer
from vitlab.explain.road import road
from vitlab.explain.rollout import compute_rollout, rollout
from vitlab.explain.similarity import agreement_table, sparseness
from vitlab.explain.stability import infidelity, max_sensitivity
from vitlab.explain.trust import describe_table, legend_table, rank_table, score_maps, trust_table

__all__ = [
    "CONTROLS",
    "CellScorer",
    "agreement_table",
    "area_table",
    "available",
    "comprehensiveness",
    "compute_rollout",
    "control_maps",
    "curve_table",
    "describe_table",
    "explain",
    "grad_cam",
    "infidelity",
    "integrated_gradients",
    "legend_table",
    "max_sensitivity",
    "rank_table",
    "record_attention",
    "road",
    "rollout",
    "saliency",
    "score_maps",
    "sensitivity_n",
    "sparseness",
    "sufficiency",
    "suitable_methods",
    "trust_table",
]

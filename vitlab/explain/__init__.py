"""Why a model decides as it does: attention made visible, and maps of what each pixel
contributed.
"""

from vitlab.explain import attention_maps  # noqa: F401  (this registers its method)
from vitlab.explain.attention import record_attention
from vitlab.explain.cam import eigen_cam, grad_cam, grad_cam_plus_plus, layer_cam, score_cam
from vitlab.explain.completeness import convergence_delta
from vitlab.explain.controls import CONTROLS, control_maps
from vitlab.explain.counterfactual import Counterfactual, find_counterfactual
from vitlab.explain.faithfulness import (
    area_table,
    comprehensiveness,
    curve_table,
    sensitivity_n,
    sufficiency,
)
from vitlab.explain.gradients import (
    gradient_shap,
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from vitlab.explain.heads import attention_change_table, attention_table, head_ablation_table
from vitlab.explain.methods import (
    available,
    describe_map,
    describe_methods,
    explain,
    suitable_methods,
)
from vitlab.explain.perturbation import feature_ablation, kernel_shap, lime, occlusion
from vitlab.explain.pointing import pointing_scores, pointing_table, stamp_effect_table
from vitlab.explain.randomisation import (
    class_sensitivity_table,
    class_verdicts,
    compare_models_table,
    randomisation_table,
    randomise,
    sanity_verdicts,
)
from vitlab.explain.removal import CellScorer
from vitlab.explain.road import road
from vitlab.explain.rollout import (
    compute_rollout,
    gradient_rollout,
    rollout,
    transformer_attribution,
)
from vitlab.explain.similarity import agreement_table, sparseness
from vitlab.explain.stability import max_sensitivity
from vitlab.explain.summary import summary_table
from vitlab.explain.trust import (
    add_controls,
    describe_table,
    legend_table,
    rank_table,
    score_maps,
    trust_table,
)

__all__ = [
    "CONTROLS",
    "CellScorer",
    "Counterfactual",
    "add_controls",
    "agreement_table",
    "area_table",
    "attention_change_table",
    "attention_table",
    "available",
    "class_sensitivity_table",
    "class_verdicts",
    "compare_models_table",
    "comprehensiveness",
    "compute_rollout",
    "control_maps",
    "convergence_delta",
    "curve_table",
    "describe_map",
    "describe_methods",
    "describe_table",
    "eigen_cam",
    "explain",
    "feature_ablation",
    "find_counterfactual",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient_rollout",
    "gradient_shap",
    "head_ablation_table",
    "input_x_gradient",
    "integrated_gradients",
    "kernel_shap",
    "layer_cam",
    "legend_table",
    "lime",
    "max_sensitivity",
    "occlusion",
    "pointing_scores",
    "pointing_table",
    "randomisation_table",
    "randomise",
    "rank_table",
    "record_attention",
    "road",
    "rollout",
    "saliency",
    "sanity_verdicts",
    "score_cam",
    "score_maps",
    "sensitivity_n",
    "smooth_grad",
    "sparseness",
    "stamp_effect_table",
    "sufficiency",
    "suitable_methods",
    "summary_table",
    "transformer_attribution",
    "trust_table",
]

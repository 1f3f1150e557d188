"""Why a model decides as it does: attention made visible, and maps of what each pixel contributed."""

from vitlab.explain import attention_maps
from vitlab.explain.attention import record_attention
from vitlab.explain.cam import eigen_cam, grad_cam, grad_cam_plus_plus, layer_cam, score_cam
from vitlab.explain.completeness import convergence_delta
from vitlab.explain.counterfactual import Counterfactual, find_counterfactual
from vitlab.explain.gradients import gradient_shap, input_x_gradient, integrated_gradients, saliency, smooth_grad
from vitlab.explain.heads import attention_change_table, attention_table, head_ablation_table
from vitlab.explain.methods import available, describe_methods, explain, suitable_methods
from vitlab.explain.perturbation import feature_ablation, kernel_shap, lime, occlusion
from vitlab.explain.rollout import compute_rollout, gradient_rollout, rollout, transformer_attribution

__all__ = [
    "Counterfactual",
    "attention_change_table",
    "attention_maps",
    "attention_table",
    "available",
    "compute_rollout",
    "convergence_delta",
    "describe_methods",
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
    "lime",
    "occlusion",
    "record_attention",
    "rollout",
    "saliency",
    "score_cam",
    "smooth_grad",
    "suitable_methods",
    "transformer_attribution",
]

"""Why a model decides as it does: attention made visible, and maps of what each pixel contributed."""

from vitlab.explain.attention import record_attention
from vitlab.explain.cam import grad_cam
from vitlab.explain.completeness import convergence_delta
from vitlab.explain.counterfactual import Counterfactual, find_counterfactual
from vitlab.explain.gradients import gradient_shap, input_x_gradient, integrated_gradients, saliency, smooth_grad
from vitlab.explain.methods import available, describe_methods, explain, suitable_methods
from vitlab.explain.perturbation import feature_ablation, kernel_shap, lime, occlusion
from vitlab.explain.rollout import compute_rollout, rollout

__all__ = [
    "Counterfactual",
    "available",
    "compute_rollout",
    "convergence_delta",
    "describe_methods",
    "explain",
    "feature_ablation",
    "find_counterfactual",
    "grad_cam",
    "gradient_shap",
    "input_x_gradient",
    "integrated_gradients",
    "kernel_shap",
    "lime",
    "occlusion",
    "record_attention",
    "rollout",
    "saliency",
    "smooth_grad",
    "suitable_methods",
]

"""Why a model decides as it does: attention made visible, and maps of what each pixel contributed."""

from vitlab.explain import attention_maps
from vitlab.explain.attention import record_attention
from vitlab.explain.attribution import integrated_gradients, saliency
from vitlab.explain.cam import eigen_cam, grad_cam, grad_cam_plus_plus, layer_cam, score_cam
from vitlab.explain.heads import attention_change_table, attention_table, head_ablation_table
from vitlab.explain.methods import available, explain, suitable_methods
from vitlab.explain.rollout import compute_rollout, gradient_rollout, rollout, transformer_attribution

__all__ = [
    "attention_change_table",
    "attention_maps",
    "attention_table",
    "available",
    "compute_rollout",
    "eigen_cam",
    "explain",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient_rollout",
    "head_ablation_table",
    "integrated_gradients",
    "layer_cam",
    "record_attention",
    "rollout",
    "saliency",
    "score_cam",
    "suitable_methods",
    "transformer_attribution",
]

"""Models: the project's own, any of timm's, their structure, and how they are saved."""

from vitlab.models.saving import load_model, save_model
from vitlab.models.shrinking import shrink_model
from vitlab.models.stages import (
    split_stages,
)
from vitlab.models.wrapping import wrap_model
from vitlab.models.zoo import (
    available,
    build_model,
    count_parameters,
)

__all__ = [
    "available",
    "build_model",
    "count_parameters",
    "load_model",
    "save_model",
    "shrink_model",
    "split_stages",
    "wrap_model",
]

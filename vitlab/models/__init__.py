"""Models: the project's own, any of timm's, what they are made of, and how they are kept."""

from vitlab.models.anatomy import find_anatomy
from vitlab.models.chain import block_positions, find_piece, pieces
from vitlab.models.saving import load_model, save_model
from vitlab.models.shrinking import shrink, shrink_model
from vitlab.models.wrapping import wrap_model
from vitlab.models.zoo import available, build_model, check_name, count_parameters

__all__ = [
    "available",
    "block_positions",
    "build_model",
    "check_name",
    "count_parameters",
    "find_anatomy",
    "find_piece",
    "load_model",
    "pieces",
    "save_model",
    "shrink",
    "shrink_model",
    "wrap_model",
]

"""Models: the project's own, any of timm's, what they are made of, and how they are kept."""

from vitlab.models.anatomy import find_anatomy
from vitlab.models.chain import pieces
from vitlab.models.saving import load_model, save_model
from vitlab.models.zoo import available, build_model, check_name, count_parameters

__all__ = ["available", "build_model", "check_name", "count_parameters", "find_anatomy", "load_model", "pieces", "save_model"]

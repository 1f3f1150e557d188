"""Scores of a model when images get worse, by accident (corruptions) or on purpose (attacks)."""

from vitlab.robustness.attack import attack_images, attack_table, describe_attack
from vitlab.robustness.corruptions import CORRUPTIONS, corrupt_image
from vitlab.robustness.scores import (
    corruption_cost_table,
    describe_corruption_costs,
    robustness_table,
)

__all__ = [
    "CORRUPTIONS",
    "attack_images",
    "attack_table",
    "corrupt_image",
    "corruption_cost_table",
    "describe_attack",
    "describe_corruption_costs",
    "robustness_table",
]

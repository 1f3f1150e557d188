"""What is left of a model's scores when images get worse, by chance (corruptions) or by intent
(attacks).
"""

from vitlab.robustness.attack import ATTACKS, attack_images, attack_table
from vitlab.robustness.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt_data,
    corrupt_image,
    corruption_table,
)
from vitlab.robustness.curves import draw_subset, drop_table, robustness_table

__all__ = [
    "ATTACKS",
    "CORRUPTIONS",
    "SEVERITIES",
    "attack_images",
    "attack_table",
    "corrupt_data",
    "corrupt_image",
    "corruption_table",
    "draw_subset",
    "drop_table",
    "robustness_table",
]

"""Why a model decides as it does: recorded attention, maps of what each pixel contributed, and
tests of such maps.
"""

from vitlab.explain import attention, cam, gradients, perturbation  # noqa: F401  (their methods)
from vitlab.explain.attention import record_attention
from vitlab.explain.counterfactual import find_counterfactual
from vitlab.explain.faithfulness import curve_table, legend_table
from vitlab.explain.gradients import completeness_table
from vitlab.explain.heads import attention_change_table, attention_table, head_ablation_table
from vitlab.explain.methods import (
    describe_methods,
    explain,
    suitable_methods,
)
from vitlab.explain.pointing import (
    MIN_ACCURACY,
    describe_stamp_effect,
    pointing_scores,
    pointing_table,
    stamp_effect_table,
)
from vitlab.explain.removal import CellScorer
from vitlab.explain.similarity import (
    agreement_table,
    describe_classes,
    sanity_table,
    sanity_verdicts,
)
from vitlab.explain.trust import (
    add_controls,
    describe_ranks,
    describe_table,
    rank_table,
    score_maps,
    summary_table,
    trust_table,
)

__all__ = [
    "MIN_ACCURACY",
    "CellScorer",
    "add_controls",
    "agreement_table",
    "attention_change_table",
    "attention_table",
    "completeness_table",
    "curve_table",
    "describe_classes",
    "describe_methods",
    "describe_ranks",
    "describe_stamp_effect",
    "describe_table",
    "explain",
    "find_counterfactual",
    "head_ablation_table",
    "legend_table",
    "pointing_scores",
    "pointing_table",
    "rank_table",
    "record_attention",
    "sanity_table",
    "sanity_verdicts",
    "score_maps",
    "stamp_effect_table",
    "suitable_methods",
    "summary_table",
    "trust_table",
]

"""Every figure, from tables, arrays and maps; never from models. Never imports torch.

`plot_` functions draw with matplotlib on the axes given or on a new figure and return the axes; they never call `show`.
`iplot_` functions give an `Interactive` (Plotly) or a `Viewer` (plain HTML), and the matplotlib twin where HTML cannot go.
"""

from vitlab.plots.attention import plot_attention_change, plot_attention_distance, plot_head_ablation, plot_heads
from vitlab.plots.attribution import plot_attributions, plot_counterfactuals, title_images
from vitlab.plots.calibration import (
    plot_annotators,
    plot_class_coverage,
    plot_conformal,
    plot_recalibration,
    plot_reliability,
    plot_risk_coverage,
)
from vitlab.plots.comparison import plot_differences, plot_published, plot_remedies, plot_uncertainty
from vitlab.plots.compression import (
    plot_drop,
    plot_lost,
    plot_merging_curve,
    plot_pruning_curve,
)
from vitlab.plots.curves import plot_curves, plot_roc
from vitlab.plots.data import (
    plot_augmentations,
    plot_class_balance,
    plot_clusters,
    plot_image_sizes,
    plot_pairs,
    plot_sample_grid,
    plot_worst,
)
from vitlab.plots.evaluation import (
    plot_confusion,
    plot_gaps,
    plot_mistakes,
    plot_slices,
)
from vitlab.plots.faithfulness import plot_perturbation_curves, plot_pointing, plot_randomisation
from vitlab.plots.interactive import Interactive, iplot_comparison, iplot_history, iplot_intensities, iplot_threshold
from vitlab.plots.many_runs import iplot_run_facets, iplot_run_parallel
from vitlab.plots.pareto import iplot_pareto, plot_ingredients
from vitlab.plots.robustness import plot_attack, plot_attack_images, plot_corruptions, plot_robustness
from vitlab.plots.runs_table import iplot_runs_table
from vitlab.plots.style import readable, set_style
from vitlab.plots.tables import present
from vitlab.plots.training import plot_cost, plot_history, plot_hunger, plot_pretraining
from vitlab.plots.trust import plot_agreement, plot_trust, plot_trust_by_model
from vitlab.plots.tuning import (
    iplot_arguments,
    iplot_parallel,
    iplot_trials,
    plot_importance,
)
from vitlab.plots.viewer import Viewer, iplot_patch_attention
from vitlab.plots.vit import plot_attention_head, plot_patches, plot_position_encodings

__all__ = [
    "Interactive",
    "Viewer",
    "iplot_arguments",
    "iplot_comparison",
    "iplot_history",
    "iplot_intensities",
    "iplot_parallel",
    "iplot_pareto",
    "iplot_patch_attention",
    "iplot_run_facets",
    "iplot_run_parallel",
    "iplot_runs_table",
    "iplot_threshold",
    "iplot_trials",
    "plot_agreement",
    "plot_annotators",
    "plot_attack",
    "plot_attack_images",
    "plot_attention_change",
    "plot_attention_distance",
    "plot_attention_head",
    "plot_attributions",
    "plot_augmentations",
    "plot_class_balance",
    "plot_class_coverage",
    "plot_clusters",
    "plot_conformal",
    "plot_confusion",
    "plot_corruptions",
    "plot_cost",
    "plot_counterfactuals",
    "plot_curves",
    "plot_differences",
    "plot_drop",
    "plot_gaps",
    "plot_head_ablation",
    "plot_heads",
    "plot_history",
    "plot_hunger",
    "plot_image_sizes",
    "plot_importance",
    "plot_ingredients",
    "plot_lost",
    "plot_merging_curve",
    "plot_mistakes",
    "plot_pairs",
    "plot_patches",
    "plot_perturbation_curves",
    "plot_pointing",
    "plot_position_encodings",
    "plot_pretraining",
    "plot_pruning_curve",
    "plot_published",
    "plot_randomisation",
    "plot_recalibration",
    "plot_reliability",
    "plot_remedies",
    "plot_risk_coverage",
    "plot_robustness",
    "plot_roc",
    "plot_sample_grid",
    "plot_slices",
    "plot_trust",
    "plot_trust_by_model",
    "plot_uncertainty",
    "plot_worst",
    "present",
    "readable",
    "set_style",
    "title_images",
]

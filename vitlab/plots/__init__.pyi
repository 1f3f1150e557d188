from .attention import (
    plot_attention_change as plot_attention_change,
    plot_attention_distance as plot_attention_distance,
    plot_head_ablation as plot_head_ablation,
    plot_heads as plot_heads,
)
from .attribution import (
    plot_attributions as plot_attributions,
    plot_counterfactuals as plot_counterfactuals,
)
from .calibration import (
    plot_annotators as plot_annotators,
    plot_conformal as plot_conformal,
    plot_reliability as plot_reliability,
    plot_risk_coverage as plot_risk_coverage,
)
from .comparison import (
    iplot_comparison as iplot_comparison,
    plot_differences as plot_differences,
    plot_imbalance_methods as plot_imbalance_methods,
    plot_published as plot_published,
)
from .compression import (
    iplot_pareto as iplot_pareto,
    plot_drop as plot_drop,
    plot_lost as plot_lost,
    plot_merging_curve as plot_merging_curve,
    plot_pruning_curve as plot_pruning_curve,
)
from .data import (
    iplot_intensities as iplot_intensities,
    plot_class_balance as plot_class_balance,
    plot_clusters as plot_clusters,
    plot_image_sizes as plot_image_sizes,
    plot_pairs as plot_pairs,
    plot_sample_grid as plot_sample_grid,
    plot_worst as plot_worst,
)
from .evaluation import (
    iplot_threshold as iplot_threshold,
    plot_confusion as plot_confusion,
    plot_curves as plot_curves,
    plot_gaps as plot_gaps,
    plot_mistakes as plot_mistakes,
    plot_roc as plot_roc,
    plot_slices as plot_slices,
)
from .robustness import (
    plot_attack as plot_attack,
    plot_attack_images as plot_attack_images,
    plot_corruptions as plot_corruptions,
    plot_robustness as plot_robustness,
)
from .runs import (
    iplot_run_facets as iplot_run_facets,
    iplot_run_parallel as iplot_run_parallel,
)
from .style import readable as readable, set_style as set_style
from .tables import iplot_runs_table as iplot_runs_table, present as present
from .training import (
    iplot_arguments as iplot_arguments,
    iplot_history as iplot_history,
    iplot_parallel as iplot_parallel,
    iplot_trials as iplot_trials,
    plot_cost as plot_cost,
    plot_data_efficiency as plot_data_efficiency,
    plot_history as plot_history,
    plot_importance as plot_importance,
)
from .trust import (
    plot_agreement as plot_agreement,
    plot_perturbation_curves as plot_perturbation_curves,
    plot_pointing as plot_pointing,
    plot_randomisation as plot_randomisation,
    plot_trust as plot_trust,
    plot_trust_by_model as plot_trust_by_model,
)
from .viewer import iplot_patch_attention as iplot_patch_attention
from .vit import (
    plot_attention_head as plot_attention_head,
    plot_patches as plot_patches,
    plot_position_encodings as plot_position_encodings,
)

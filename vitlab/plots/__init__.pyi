from .attention import (
    plot_attention_change as plot_attention_change,
    plot_attention_distance as plot_attention_distance,
    plot_head_ablation as plot_head_ablation,
    plot_heads as plot_heads,
    plot_patches as plot_patches,
    plot_position_encodings as plot_position_encodings,
)
from .comparison import (
    iplot_comparison as iplot_comparison,
    iplot_cost as iplot_cost,
    iplot_pareto as iplot_pareto,
    plot_attack as plot_attack,
    plot_differences as plot_differences,
    plot_imbalance_methods as plot_imbalance_methods,
    plot_merging_curve as plot_merging_curve,
    plot_pruning_curve as plot_pruning_curve,
    plot_ranking as plot_ranking,
    plot_robustness as plot_robustness,
)
from .curves import (
    iplot_threshold as iplot_threshold,
    plot_curves as plot_curves,
    plot_roc as plot_roc,
)
from .data import (
    iplot_intensities as iplot_intensities,
    plot_class_balance as plot_class_balance,
)
from .evaluation import (
    plot_conformal as plot_conformal,
    plot_confusion as plot_confusion,
    plot_drop as plot_drop,
    plot_gaps as plot_gaps,
    plot_reliability as plot_reliability,
    plot_risk_coverage as plot_risk_coverage,
    plot_slices as plot_slices,
)
from .images import (
    plot_attack_images as plot_attack_images,
    plot_attributions as plot_attributions,
    plot_corruptions as plot_corruptions,
    plot_counterfactuals as plot_counterfactuals,
    plot_lost as plot_lost,
    plot_mistakes as plot_mistakes,
    plot_sample_grid as plot_sample_grid,
    plot_worst as plot_worst,
)
from .runs import (
    iplot_arguments as iplot_arguments,
    iplot_run_facets as iplot_run_facets,
    iplot_runs_table as iplot_runs_table,
    iplot_trials as iplot_trials,
    plot_importance as plot_importance,
)
from .style import readable as readable, set_style as set_style
from .tables import present as present
from .training import (
    plot_data_efficiency as plot_data_efficiency,
    plot_history as plot_history,
    plot_learning_curves as plot_learning_curves,
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

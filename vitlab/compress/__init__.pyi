from .benchmark import benchmark_table as benchmark_table, recommend as recommend
from .calibration import note_calibration as note_calibration
from .changes import change_table as change_table, changed_images as changed_images
from .curves import (
    merging_curve_table as merging_curve_table,
    pruning_curve_table as pruning_curve_table,
)
from .distillation import (
    distill as distill,
    recover as recover,
    recovery_recipe as recovery_recipe,
)
from .latency import latency_table as latency_table
from .pruning import (
    part_importance_table as part_importance_table,
    plan_pruning as plan_pruning,
    pruning_table as pruning_table,
)
from .support import (
    build_student as build_student,
    describe_similarity as describe_similarity,
    explain_skipped as explain_skipped,
    export_networks as export_networks,
    map_similarity_table as map_similarity_table,
)
from .variants import predict_variants as predict_variants, size_on_disk as size_on_disk

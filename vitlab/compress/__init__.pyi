from .benchmark import benchmark_table as benchmark_table, size_on_disk as size_on_disk
from .confidence import find_calibration as find_calibration, note_calibration as note_calibration
from .curves import (
    merging_curve_table as merging_curve_table,
    pruning_curve_table as pruning_curve_table,
)
from .distillation import distill as distill
from .explanations import (
    describe_shifts as describe_shifts,
    explanation_shift_table as explanation_shift_table,
)
from .export import export_onnx as export_onnx
from .importance import part_importance_table as part_importance_table
from .latency import latency_table as latency_table
from .losses import drop_table as drop_table, lost_images as lost_images
from .merging import count_multiply_adds as count_multiply_adds, merge_tokens as merge_tokens
from .pruning import plan_pruning as plan_pruning, prune as prune
from .quantize import quantize_onnx as quantize_onnx
from .recommendation import describe_compression as describe_compression
from .recovery import recover as recover, recovery_recipe as recovery_recipe
from .session import OnnxClassifier as OnnxClassifier
from .support import (
    build_student as build_student,
    explain_skipped as explain_skipped,
    export_networks as export_networks,
    shared_methods as shared_methods,
)
from .variants import make_predictor as make_predictor, predict_variants as predict_variants

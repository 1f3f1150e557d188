from .cost import count_cost as count_cost, count_multiply_adds as count_multiply_adds
from .curves import merging_curve_table as merging_curve_table, pruning_curve_table as pruning_curve_table
from .distillation import Distillation as Distillation, born_again as born_again, distill as distill
from .doctor import doctor_table as doctor_table, examine as examine, say_diagnosis as say_diagnosis
from .explanations import compare_explanations as compare_explanations, explanation_shift_table as explanation_shift_table
from .export import export_onnx as export_onnx, find_calibration as find_calibration
from .footprint import footprint_table as footprint_table, peak_memory as peak_memory, size_on_disk as size_on_disk
from .importance import importance_table as importance_table
from .latency import latency_table as latency_table
from .losses import drop_table as drop_table, lost_images as lost_images
from .processor import instruction_table as instruction_table
from .pruning import plan_pruning as plan_pruning, prune as prune, prune_iteratively as prune_iteratively
from .quantize import (
    float_frontier_table as float_frontier_table,
    quantize_onnx as quantize_onnx,
    sensitivity_table as sensitivity_table,
)
from .recovery import recover as recover, recovery_recipe as recovery_recipe
from .session import OnnxClassifier as OnnxClassifier
from .sides import make_side as make_side, predict_sides as predict_sides
from .students import finetune_student as finetune_student
from .tokens import count_tokens as count_tokens, merge_tokens as merge_tokens

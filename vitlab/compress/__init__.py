"""Smaller and faster models, and proof of it: pruning, distillation, quantisation, ONNX, token merging, and what each costs.

Names are looked up when they are first used, so that what runs without torch (`vitlab.compress.session`) loads none.
"""

from importlib import import_module

MODULES = {
    "cost": ("count_cost", "count_multiply_adds"),
    "curves": ("merging_curve_table", "pruning_curve_table"),
    "distillation": ("Distillation", "born_again", "distill"),
    "doctor": ("doctor_table", "examine", "say_diagnosis"),
    "explanations": ("compare_explanations", "explanation_shift_table"),
    "export": ("export_onnx", "find_calibration"),
    "footprint": ("footprint_table", "peak_memory", "size_on_disk"),
    "importance": ("importance_table",),
    "latency": ("latency_table",),
    "losses": ("drop_table", "lost_images"),
    "processor": ("instruction_table",),
    "pruning": ("plan_pruning", "prune", "prune_iteratively"),
    "quantize": ("float_frontier_table", "quantize_onnx", "sensitivity_table"),
    "recovery": ("recover", "recovery_recipe"),
    "session": ("OnnxClassifier",),
    "sides": ("make_side", "predict_sides"),
    "students": ("finetune_student",),
    "tokens": ("count_tokens", "merge_tokens"),
}
PLACES = {name: module for module, names in MODULES.items() for name in names}
__all__ = sorted(PLACES)


def __getattr__(name: str):
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *PLACES]

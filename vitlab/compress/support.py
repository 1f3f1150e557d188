"""Which steps of notebook 06 a model supports, checked before they run, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from vitlab.compress.curves import KEEPS
from vitlab.compress.export import export_onnx
from vitlab.compress.importance import part_importance_table
from vitlab.compress.pruning import plan_pruning
from vitlab.compress.quantize import quantize_onnx
from vitlab.compress.sidecar import sidecar_path
from vitlab.errors import UserError
from vitlab.explain import explain
from vitlab.models import build_model, count_parameters, split_stages
from vitlab.models.merging import check_merging
from vitlab.schema import DataBundle, ModelBundle


def build_student(name: str, teacher: ModelBundle, seed: int = 0, **options) -> ModelBundle:
    """An untrained network for the teacher's classes that gets the same pixels as the teacher;
    options: of `build_model`.
    """
    colours = len(teacher.transform.mean)
    student = build_model(
        name, teacher.classes, seed=seed, size=teacher.transform.size, in_chans=colours, **options
    )
    return replace(student, transform=teacher.transform)


def explain_skipped(
    model: ModelBundle,
    *,
    keep: float,
    whole_blocks: bool,
    student: str,
    student_depth: int,
    seed: int = 0,
) -> dict[str, str]:
    """Steps of notebook 06 that this model does not support (pruning, curve, merging,
    distillation), each with its reason.

    keep, whole_blocks: what pruning is asked for (`plan_pruning`). student,
    student_depth: of `build_student`. Wrong arguments are errors, since they are no property of the
    model."""
    checks = {
        "pruning": lambda: _try_pruning(model, keep, whole_blocks),
        "curve": lambda: _try_pruning(model, min(KEEPS), False),
        "merging": lambda: _try_merging(model),
        "distillation": lambda: build_student(student, model, seed, depth=student_depth),
    }
    titles = {"curve": "Pruning within the blocks", "merging": "Token merging"}
    skipped = {}
    for step, check in checks.items():
        try:
            check()
        except UserError as reason:
            skipped[step] = f"{titles.get(step, step.capitalize())} is skipped: {reason}."
    return skipped


def export_networks(
    networks: Mapping[str, ModelBundle], folder: Path, data: DataBundle, seed: int = 0
) -> tuple[dict[str, Path], pd.DataFrame, list[str]]:
    """Export each network to ONNX and to static int8: the files by name, a row a network, and a
    sentence on each that failed.

    Files: `<network>, ONNX` and `<network>, int8`. Columns network, parameters, agreement (of int8
    with its float graph on validation images), passed (the gate), float_nodes (how many nodes stay
    in float). Earlier files of these names are deleted."""
    files, rows, skipped = {}, [], []
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        paths = [folder / f"{name}{ending}.onnx" for ending in ("", "-int8")]
        for path in paths:
            path.unlink(missing_ok=True)
            sidecar_path(path).unlink(missing_ok=True)
        try:
            files[f"{name}, ONNX"] = export_onnx(network, paths[0], data, seed=seed).path
            quantised = quantize_onnx(paths[0], paths[1], data, on_failure="flag", seed=seed)
        except UserError as reason:
            skipped.append(
                f"{'int8' if paths[0].is_file() else 'ONNX'} of the {name} network is skipped:"
                f" {reason}."
            )
            continue
        files[f"{name}, int8"] = quantised.path
        row = {"network": name, "parameters": count_parameters(network.module)}
        row |= {key: quantised.summary[key] for key in ("agreement", "passed")}
        rows.append(row | {"float_nodes": len(quantised.summary["float_nodes"])})
    return (
        files,
        pd.DataFrame(rows, columns=["network", "parameters", "agreement", "passed", "float_nodes"]),
        skipped,
    )


def shared_methods(
    networks: Mapping[str, ModelBundle], names: Sequence[str], images: torch.Tensor
) -> tuple[list[str], list[str]]:
    """Those explanation methods among `names` that can explain all of the networks, and a sentence
    on each of the others.

    images: (N, 3, h, w), normalised, on which each method is tried; one is enough.
    """
    working, skipped = [], []
    for method in names:
        try:
            for network in networks.values():
                explain(network, images, method)
            working.append(method)
        except UserError as reason:
            skipped.append(f"Maps of {method.replace('_', ' ')} are not compared: {reason}.")
    return working, skipped


def _try_pruning(model: ModelBundle, keep: float, whole_blocks: bool) -> None:
    kinds = ("block",) if whole_blocks else ("head", "neuron")
    plan_pruning(model, part_importance_table(model, kinds=kinds, measure="magnitude"), keep)
    split_stages(model.module)


def _try_merging(model: ModelBundle) -> None:
    check_merging(model.module, 0)
    split_stages(model.module)

"""The steps of notebook 06: which of them a model supports, its networks as files, and whether
they still look at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from vitlab.compress.curves import KEEPS
from vitlab.compress.export import export_onnx
from vitlab.compress.pruning import part_importance_table, plan_pruning
from vitlab.compress.quantize import quantize_onnx
from vitlab.compress.session import description_path
from vitlab.errors import UserError
from vitlab.evaluation.inference import mean_interval
from vitlab.explain.methods import explain
from vitlab.explain.similarity import compare_maps
from vitlab.models import build_model, count_parameters
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
    """Steps of notebook 06 that this model does not support (Pruning, Pruning within the blocks,
    Token merging, Distillation), each with its reason. The arguments are those of the notebook.
    """

    def try_pruning(keep: float, whole_blocks: bool) -> None:
        kinds = ("block",) if whole_blocks else ("head", "neuron")
        importance = part_importance_table(model, kinds=kinds, measure="magnitude")
        plan_pruning(model, importance, keep, whole_blocks)

    checks: dict[str, Callable[[], object]] = {
        "Pruning": lambda: try_pruning(keep, whole_blocks),
        "Pruning within the blocks": lambda: try_pruning(min(KEEPS), False),
        "Token merging": lambda: check_merging(model.module, 0),
        "Distillation": lambda: build_student(student, model, seed, depth=student_depth),
    }
    skipped = {}
    for step, check in checks.items():
        try:
            check()
        except UserError as reason:
            skipped[step] = f"{step} is skipped: {reason}."
    return skipped


def export_networks(
    networks: Mapping[str, ModelBundle], folder: Path, data: DataBundle, seed: int = 0
) -> tuple[dict[str, Path], pd.DataFrame, list[str]]:
    """Export each network to ONNX and to int8: the files by name, a row for each int8 file, and a
    sentence on each export that failed.

    Files: `<network>, ONNX` and `<network>, int8`. Columns network, parameters, agreement (of int8
    with its float graph on validation images), float_nodes (how many nodes stay in float). Earlier
    files of these names are deleted."""
    files, rows, skipped = {}, [], []
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        source, target = folder / f"{name}.onnx", folder / f"{name}-int8.onnx"
        for path in (source, target):
            path.unlink(missing_ok=True)
            description_path(path).unlink(missing_ok=True)
        try:
            files[f"{name}, ONNX"] = export_onnx(network, source, data, seed=seed).path
            quantised = quantize_onnx(source, target, data, seed=seed)
        except UserError as reason:
            kind = "int8" if source.is_file() else "ONNX"
            skipped.append(f"{kind} of the {name} network is skipped: {reason}.")
            continue
        files[f"{name}, int8"] = quantised.path
        row = {"network": name, "parameters": count_parameters(network.module)}
        row["agreement"] = quantised.summary["agreement"]
        rows.append(row | {"float_nodes": len(quantised.summary["float_nodes"])})
    columns = ["network", "parameters", "agreement", "float_nodes"]
    return files, pd.DataFrame(rows, columns=columns), skipped


def map_similarity_table(
    networks: Mapping[str, ModelBundle], images: torch.Tensor, methods: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Rank correlation of the maps of each network with those of the first one, for the class that
    the first one predicts: means over the images with 95 % t intervals. And a sentence on each
    method that cannot explain all of the networks.

    A model may keep its accuracy and decide by something else. Maps of different images have much
    in common too, so the correlation of those is given beside each number. images: (N, 3, h, w),
    normalised. Columns model, method, value, low, high, other: the mean correlation of the first
    network's maps of different images (of absolute values)."""
    first, *others = networks
    model, rows, skipped = networks[first], [], []
    for method in methods:
        try:
            for network in networks.values():
                explain(network, images[:1], method)
        except UserError as reason:
            skipped.append(f"Maps of {method.replace('_', ' ')} are not compared: {reason}.")
            continue
        before = explain(model, images, method)
        for name in others:
            after = explain(networks[name], images, method, before.target)
            table = compare_maps(model, before, after)
            found = mean_interval(table[["similarity"]].to_numpy(float), limits=(-1, 1))
            value, low, high, _ = (float(part[0]) for part in found)
            row = {"model": name, "method": method, "value": value, "low": low, "high": high}
            rows.append(row | {"other": table["other_image"].mean()})
    columns = ["model", "method", "value", "low", "high", "other"]
    return pd.DataFrame(rows, columns=columns), skipped


def describe_similarity(table: pd.DataFrame) -> str:
    """Sentences on a `map_similarity_table`: which maps are shown to be more alike than maps of
    different images.
    """
    if table.empty:
        return "There is no smaller network whose maps could be compared."
    alike = table["low"] > table["other"]
    names = table["method"].str.replace("_", " ") + " of *" + table["model"] + "*"
    sentences = []
    if alike.any():
        sentences.append(f"More alike than maps of different images: {', '.join(names[alike])}.")
    if not alike.all():
        sentences.append(f"Not shown to be more alike than those: {', '.join(names[~alike])}.")
    return " ".join(sentences)

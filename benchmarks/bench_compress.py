"""How small and how fast? Against the same model in PyTorch at float32, on two threads, sides in turn, each ingredient alone.

`geometry`: a ViT-B/16 at 224 pixels, one image at a time. What is timed does not depend on the weights, which are random here,
and the smaller students stand for what distillation gives. Public claim to beat: 156 ms to 59 ms (62 % less) and 346 MB to 89 MB
(74 % less) by pruning, distillation and quantisation; our bar for the best combination is 90 % less of both.

`trained`: the fine-tuned runs of a reports folder. Of the ONNX files made of each that are faster and lose at most 0.5 points of
balanced accuracy on the validation split, the one with the least time times size is taken; its latency, size and loss are
measured on the test split. At least 75 % less latency and 80 % less size are asked for at a loss of at most 0.5 points, the mean
over the seeds with a paired interval (over the test images where there are fewer than five seeds); and that int8 gives the class
that float32 gives in the same runtime on 99 % of the images.

    taskset -c 0,1 python benchmarks/bench_compress.py [geometry] [trained] [--threads N] [--repeats N] [--dataset NAME]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from records import record, write_records

from vitlab.compress.doctor import ARM, MARGIN, X86, doctor_table, read_instructions, say_diagnosis
from vitlab.compress.footprint import footprint_table, size_on_disk
from vitlab.compress.latency import latency_table
from vitlab.compress.losses import measure_agreement
from vitlab.compress.sides import make_side, predict_sides
from vitlab.data import load_dataset
from vitlab.evaluation import corrected_t
from vitlab.models import build_model, load_model, save_model
from vitlab.registry import unknown
from vitlab.runs import find_runs

CLAIM = {"latency": ">= 0.62", "size": ">= 0.74"}
BEST = {"latency": ">= 0.9", "size": ">= 0.9"}
TRAINED = {"latency": ">= 0.75", "size": ">= 0.8"}
LOSS, AGREEMENT = "<= 0.5", ">= 0.99"
METRIC, TEST_SHARE, SEEDS = "balanced_accuracy", 0.2, 5
STUDENTS = {"ViT-B": "vit_base_patch16_224", "ViT-S": "vit_small_patch16_224", "ViT-Ti": "vit_tiny_patch16_224"}
KEPT = 0.5  # of the multiply-adds of the pruned ViT-B
METHODS = {"dynamic int8": "dynamic", "static int8": "static"}
PEER, FIRST, CLAIMED, STUDENT = "PyTorch fp32", "ViT-B PyTorch fp32", "ViT-B int8", "ViT-S int8"


def measure_geometry(folder: Path, _dataset: str, threads: int, repeats: int) -> tuple[list[dict], pd.DataFrame]:
    """Records, and a row for each ingredient and combination. Any real images do for the gate of the export: the digits."""
    from vitlab.compress.export import export_onnx
    from vitlab.compress.importance import importance_table
    from vitlab.compress.pruning import plan_pruning, prune
    from vitlab.compress.quantize import quantize_onnx

    data = load_dataset("digits")
    models = {name: build_model(timm_name, data.classes, pretrained=False) for name, timm_name in STUDENTS.items()}
    weights = importance_table(models["ViT-B"], measure="magnitude")
    models["pruned ViT-B"] = prune(models["ViT-B"], plan_pruning(models["ViT-B"], weights, KEPT, "multiply_adds"))
    save_model(models["ViT-B"], folder / "torch")
    files = {FIRST: folder / "torch"}
    for name, model in models.items():
        exported, small = folder / f"{name}.onnx", folder / f"{name} int8.onnx"
        export_onnx(model, exported, data, limit=8)
        quantize_onnx(exported, small, data, method="dynamic", gate_images=8, on_failure="flag")  # random weights: ties all over
        files |= {f"{name} ONNX fp32": exported, f"{name} int8": small}
    sides = {FIRST: models["ViT-B"], "ViT-B PyTorch bf16": make_side(models["ViT-B"], precision="bf16")}
    sides |= {name: path for name, path in files.items() if name != FIRST}
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    table = latency_table(sides, images, (1,), repeats, threads, seconds=180)
    table = table.merge(footprint_table(files, images=4, threads=threads), on="side", how="left")
    rows = table.set_index("side")
    case, peer = "ViT-B/16 geometry, 224 pixels, batch 1", rows.loc[FIRST]
    records = []
    for name, bars in {CLAIMED: CLAIM, STUDENT: BEST}.items():
        row = rows.loc[name]
        saved = {"latency": 1 - row["ratio"], "size": 1 - row["size_mb"] / peer["size_mb"]}
        for what, column in (("latency", "p50_ms"), ("size", "size_mb")):
            metric = f"{name}: share of {column} saved"
            records.append(record(case, metric, row[column], peer[column], PEER, saved[what], bars[what]))
    return records, table


def measure_run(folder: Path, run, threads: int, repeats: int) -> dict:
    """One trained run: the file that is chosen on val, and what it gives and costs on test."""
    from vitlab.compress.export import export_onnx
    from vitlab.compress.quantize import quantize_onnx

    model, samples = load_model(run.path), pd.read_csv(run.path / "splits.csv")
    data = load_dataset(run.parameters["dataset"], samples=samples)
    files = {name: folder / f"{run.name}-{name.replace(' ', '-')}.onnx" for name in ("ONNX fp32", *METHODS)}
    export_onnx(model, files["ONNX fp32"], data)
    for name, method in METHODS.items():
        quantize_onnx(files["ONNX fp32"], files[name], data, method=method, on_failure="flag")
    sides, tables = {"PyTorch fp32": model, **files}, {}
    predictions = predict_sides(sides, data, model.transform, ("val", "test"))
    sizes = {"PyTorch fp32": size_on_disk(run.path), **{name: size_on_disk(path) for name, path in files.items()}}
    pixels = np.random.default_rng(0).standard_normal((1, 3, *model.transform.size), dtype=np.float32)
    for seed, split in enumerate(("val", "test")):  # timed anew: what was chosen for its time must show it again
        latency = latency_table(sides, pixels, (1,), repeats, threads, seed=seed)
        tables[split] = doctor_table(latency, predictions, sizes, metric=METRIC, split=split)
    print(f"{run.name}, on val:\n{say_diagnosis(tables['val'])}\n", flush=True)
    good = tables["val"][(tables["val"]["change"] >= -MARGIN) & (tables["val"]["speed"] == "faster")]
    chosen = good.loc[(good["ratio"] * good["size_mb"]).idxmin(), "side"] if len(good) else "PyTorch fp32"
    rows = tables["test"].set_index("side")
    first, row = rows.loc["PyTorch fp32"], rows.loc[chosen]
    agreement = {name: measure_agreement(predictions["ONNX fp32"], predictions[name])[0] for name in METHODS}
    return {
        "run": run.name, "model": run.parameters["model"], "seed": run.parameters.get("seed", 0), "chosen": chosen,
        "p50_ms": row["p50_ms"], "first_ms": first["p50_ms"], "ratio": row["ratio"],
        "size_mb": row["size_mb"], "first_mb": first["size_mb"], "value": row["value"], "first_value": first["value"],
        "change": row["change"], "change_low": row["change_low"], "change_high": row["change_high"], **agreement,
    }  # fmt: skip


def measure_trained(folder: Path, dataset: str, threads: int, repeats: int) -> tuple[list[dict], pd.DataFrame]:
    """Records of each model over its seeds, and a row for each run."""
    runs = [run for run in find_runs(dataset) if not run.variant]
    if not runs:
        raise ValueError(f"there is no finished run of {dataset} in the reports folder; set VITLAB_REPORTS to one that has some")
    table, records = pd.DataFrame([measure_run(folder, run, threads, repeats) for run in runs]), []
    for model, part in table.groupby("model", sort=False):
        seeds = len(part)
        case = f"{model} on {dataset}, {seeds} seed{'s' * (seeds > 1)}: {', '.join(part['chosen'].unique())}"
        mean = part.mean(numeric_only=True)
        saved = {"p50_ms": 1 - part["ratio"].median(), "size_mb": 1 - mean["size_mb"] / mean["first_mb"]}
        for (column, share), bar in zip(saved.items(), (TRAINED["latency"], TRAINED["size"]), strict=True):
            first = mean["first_" + column.rpartition("_")[2]]
            records.append(record(case, f"share of {column} saved", mean[column], first, PEER, share, bar))
        change, low, high, _ = corrected_t((part["value"] - part["first_value"]).to_numpy(), TEST_SHARE)
        if seeds < SEEDS:  # too few for an interval over seeds: that over test images stands in, of the first seed
            low, high = part[["change_low", "change_high"]].iloc[0]
        print(f"{case}: balanced accuracy {100 * change:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]")
        values = (100 * mean["value"], 100 * mean["first_value"])
        records.append(record(case, "points of balanced accuracy lost", *values, PEER, -100 * change, LOSS))
        records.append(record(case, "points lost, upper end of the interval", *values, PEER, -100 * low, LOSS))
        for name in METHODS:
            share = part[name].min()
            records.append(record(case, f"{name}: top-1 agreement, worst seed", share, 1, "ONNX fp32", share, AGREEMENT))
    return records, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="geometry, trained (default: both)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="turns of each timing (default: %(default)s)")
    parser.add_argument("--dataset", default="elpv", help="of the trained runs (default: %(default)s)")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    for name in parts:
        if name not in PARTS:
            raise ValueError(unknown("part", name, list(PARTS)))
    flags = read_instructions() or frozenset()
    facts = {"instructions": sorted(flags & {*X86, *ARM}), "threads": options.threads}
    for name in parts:
        with tempfile.TemporaryDirectory() as folder:
            records, table = PARTS[name](Path(folder), options.dataset, options.threads, options.repeats)
        print(table.to_string(float_format="{:.3f}".format))
        write_records("compress", records, **facts, **{name: json.loads(table.round(4).to_json(orient="records"))})


PARTS = {"geometry": measure_geometry, "trained": measure_trained}

if __name__ == "__main__":
    main()

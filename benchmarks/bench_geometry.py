"""What each ingredient takes off a ViT-B/16 at 224 pixels, one image at a time, against PyTorch in float32, sides in turn.

`geometry`: rungs of a ladder, each with all that the ones before it have: ONNX Runtime, int8, half the heads and neurons cut out,
similar tokens merged, every second block left out. Beside it other ways down: 70 % cut out, and the smaller students (ViT-S and
ViT-Ti) that distillation would train. No pretrained ViT-B is at hand here, and time and size do not depend on the weights: they
are random, and nothing is said of accuracy. Public claim to beat: 62 % less latency and 74 % less size; our bar is 90 % of both.

`accuracy`: the same rungs on models that are trained here, vit_scratch on the digits over several seeds, with the accuracy of
each on the test images. A small model on an easy task: it shows that the steps work together, not what they cost a ViT-B.

    taskset -c 0,1 python benchmarks/bench_geometry.py [geometry] [accuracy] [--threads N] [--repeats N] [--seeds N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from records import record, write_records

from vitlab.compress.cost import count_multiply_adds
from vitlab.compress.export import export_onnx
from vitlab.compress.footprint import footprint_table
from vitlab.compress.importance import importance_table
from vitlab.compress.latency import latency_table
from vitlab.compress.pruning import plan_pruning, prune
from vitlab.compress.quantize import quantize_onnx
from vitlab.compress.recovery import recover
from vitlab.compress.sides import make_side, predict_sides
from vitlab.compress.tokens import merge_tokens
from vitlab.data import load_dataset
from vitlab.evaluation import corrected_t
from vitlab.models import build_model, count_parameters, save_model, shrink_model
from vitlab.registry import unknown
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training import fit

CLAIM, BEST = {"latency": ">= 0.62", "size": ">= 0.74"}, {"latency": ">= 0.9", "size": ">= 0.9"}
CASE, PEER = "ViT-B/16 geometry, 224 pixels, batch 1", "PyTorch fp32"
MERGED = 8  # tokens a block: of 196 patches 96 are merged in 12 blocks, about half
KEPT, KEPT_LESS = 0.5, 0.3  # of the blocks' parameters
GATE_IMAGES = 4  # real images on which an export must agree with PyTorch
DIGITS_MERGED = 5  # of 64 patches 30 are merged in 6 blocks, again about half
LOSS, TEST_SHARE = "<= 0.5", 0.15  # points of accuracy; of the images


@dataclass(frozen=True)
class Rung:
    """network: by its name among those built; after: the rung that it is held against, for what its own ingredient gives."""

    network: str
    runtime: str  # PyTorch fp32, PyTorch bf16, ONNX fp32 or int8
    after: str = ""


LADDER = {
    PEER: Rung("ViT-B", "PyTorch fp32"),
    "ONNX Runtime fp32": Rung("ViT-B", "ONNX fp32", PEER),
    "+ int8": Rung("ViT-B", "int8", "ONNX Runtime fp32"),
    "+ 50 % cut out": Rung("ViT-B, 50 % cut out", "int8", "+ int8"),
    "+ tokens merged": Rung("ViT-B, 50 % cut out, merged", "int8", "+ 50 % cut out"),
    "+ half the blocks": Rung("ViT-B, 50 % cut out, merged, 6 blocks", "int8", "+ tokens merged"),
}
OTHERS = {
    "PyTorch bf16": Rung("ViT-B", "PyTorch bf16", PEER),
    "70 % cut out, tokens merged, int8": Rung("ViT-B, 70 % cut out, merged", "int8", "+ int8"),
    "ViT-S int8": Rung("ViT-S", "int8", "+ int8"),
    "ViT-S, tokens merged, int8": Rung("ViT-S, merged", "int8", "ViT-S int8"),
    "ViT-Ti int8": Rung("ViT-Ti", "int8", "+ int8"),
}
RUNGS = {**LADDER, **OTHERS}
JUDGED = {
    "+ int8": CLAIM,
    "+ half the blocks": BEST,
    "70 % cut out, tokens merged, int8": BEST,
    "ViT-S int8": BEST,
    "ViT-Ti int8": BEST,
}


def build_networks(data: DataBundle) -> dict[str, Callable[[], ModelBundle]]:
    """The networks by name, built when they are called for; a ViT-B takes 350 MB."""
    names = {"ViT-B": "vit_base_patch16_224", "ViT-S": "vit_small_patch16_224", "ViT-Ti": "vit_tiny_patch16_224"}
    full = {name: build_model(timm_name, data.classes, pretrained=False) for name, timm_name in names.items()}
    weights = importance_table(full["ViT-B"], measure="magnitude", kinds=("head", "neuron"))

    def cut(keep):
        return prune(full["ViT-B"], plan_pruning(full["ViT-B"], weights, keep, of="blocks"))

    half = cut(KEPT)
    every_second = [{} if block % 2 == 0 else None for block in range(len(half.module.blocks))]
    return {name: (lambda model=model: model) for name, model in full.items()} | {
        "ViT-B, 50 % cut out": lambda: half,
        "ViT-B, 50 % cut out, merged": lambda: merge_tokens(half, MERGED),
        "ViT-B, 50 % cut out, merged, 6 blocks": lambda: merge_tokens(shrink_model(half, every_second), 2 * MERGED),
        "ViT-B, 70 % cut out, merged": lambda: merge_tokens(cut(KEPT_LESS), MERGED),
        "ViT-S, merged": lambda: merge_tokens(full["ViT-S"], MERGED),
    }


def measure_geometry(folder: Path, threads: int, repeats: int, _seeds: int) -> tuple[list[dict], pd.DataFrame]:
    """Records, and a row for each rung. Any real images do for the gate of the export: the digits."""
    data, sides, files, counts, previous = load_dataset("digits"), {}, {}, {}, {}
    for name, build in build_networks(data).items():
        began = time.perf_counter()
        model, wanted = build(), {rung.runtime for rung in RUNGS.values() if rung.network == name}
        counts[name] = {
            "parameters_m": count_parameters(model.module) / 1e6,
            "multiply_adds_g": count_multiply_adds(model) / 1e9,
        }
        previous[name, "ONNX fp32"] = exported = export_onnx(model, folder / f"{name}.onnx", data, limit=GATE_IMAGES).path
        previous[name, "int8"] = quantize_onnx(
            exported,
            folder / f"{name} int8.onnx",
            data,
            method="dynamic",
            gate_images=GATE_IMAGES,
            float_nodes=[],
            on_failure="flag",
        ).path  # answers of random weights are ties all over: agreement says nothing here
        if "ONNX fp32" not in wanted:
            exported.unlink()
        if PEER in wanted:
            save_model(model, folder / "torch")
            previous[name, PEER] = previous[name, "PyTorch bf16"] = model
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    for name, rung in RUNGS.items():
        side = previous[rung.network, rung.runtime]
        sides[name] = make_side(side, precision="bf16") if rung.runtime == "PyTorch bf16" else side
        if rung.runtime != "PyTorch bf16":  # the same file
            files[name] = folder / "torch" if rung.runtime == PEER else side
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    table = latency_table(sides, images, (1,), repeats, threads, seconds=90)
    table = table.merge(footprint_table(files, images=4, threads=threads), on="side", how="left")
    table = add_shares(table, counts)
    return judge(table), table


def quantise(path: Path, data: DataBundle, **options) -> Path:
    target = path.with_name(f"{path.stem} int8.onnx")
    return quantize_onnx(path, target, data, method="dynamic", on_failure="flag", **options).path


def add_shares(table: pd.DataFrame, counts: dict[str, dict[str, float]]) -> pd.DataFrame:
    """What is saved in all, and what the rung's own ingredient leaves of the rung before it, of latency and of size."""
    rows = table.set_index("side")
    found = []
    for name, row in rows.iterrows():
        rung = RUNGS[str(name)]
        before = rows.loc[rung.after] if rung.after else row
        saved = {"latency_saved": 1 - row["ratio"], "size_saved": 1 - row["size_mb"] / rows["size_mb"].iloc[0]}
        left = {"latency_of_before": row["ratio"] / before["ratio"], "size_of_before": row["size_mb"] / before["size_mb"]}
        found.append({"side": name, "after": rung.after, **counts[rung.network], **saved, **left})
    columns = ["side", "repeats", "p50_ms", "p90_ms", "ratio", "ratio_low", "ratio_high", "size_mb", "peak_mb", "libraries_mb"]
    return table[columns].merge(pd.DataFrame(found), on="side")


def judge(table: pd.DataFrame) -> list[dict]:
    """The records: latency and size of each combination that has a bar."""
    rows = table.set_index("side")
    peer, records = rows.loc[PEER], []
    for name, bars in JUDGED.items():
        row, label = rows.loc[name], LABELS.get(name, name)
        for what, column in (("latency", "p50_ms"), ("size", "size_mb")):
            metric = f"{label}: share of {what} saved"
            records.append(record(CASE, metric, row[column], peer[column], PEER, row[f"{what}_saved"], bars[what]))
    return records


LABELS = {"+ int8": "ViT-B int8", "+ half the blocks": "all of the ladder"}


def climb(folder: Path, seed: int) -> pd.DataFrame:
    """One vit_scratch trained on digits and brought down the ladder: a row for each rung, with its accuracy on test images."""
    data = load_dataset("digits", seed=seed)
    full = build_model("vit_scratch", data.classes, seed=seed)
    fit(full, data)
    val = data.split("val")
    images = load_pixels(data, full, val)
    weigh = {"labels": val["label"].tolist(), "measure": "taylor"}
    importance = importance_table(full, images, kinds=("head", "neuron"), **weigh)
    cut = prune(full, plan_pruning(full, importance, KEPT, of="blocks"))
    rungs = {"PyTorch fp32": full, "50 % cut out": cut}
    rungs["+ recovery"] = recovered = shrink_model(cut, [{}] * len(cut.module.blocks))
    recover(recovered, data, teacher=full)
    rungs["+ tokens merged"] = merge_tokens(recovered, DIGITS_MERGED)
    worth = importance_table(recovered, images, kinds="block", **{**weigh, "measure": "ablation"}).sort_values("importance")
    least = set(worth["block"].head(len(worth) // 2))
    rungs["half the blocks too, + recovery"] = small = shrink_model(
        recovered, [None if block in least else {} for block in range(len(recovered.module.blocks))]
    )
    recover(small, data, teacher=full)
    rungs["+ tokens merged "] = merge_tokens(small, 2 * DIGITS_MERGED)
    sides = {}
    for name, model in rungs.items():
        sides[name] = model
        if "merged" in name or name == "PyTorch fp32":
            exported = export_onnx(model, folder / f"{seed} {len(sides)}.onnx", data).path
            sides[f"{name.strip()}, int8" + " " * name.endswith(" ")] = quantise(exported, data)
    return measure_rungs(sides, rungs, data, seed)


def measure_rungs(sides, rungs, data, seed) -> pd.DataFrame:
    predictions = predict_sides(sides, data, rungs["PyTorch fp32"].transform)
    whole = count_multiply_adds(rungs["PyTorch fp32"]), count_parameters(rungs["PyTorch fp32"].module)
    rows, model = [], rungs["PyTorch fp32"]
    for name, table in predictions.items():
        model = rungs.get(name, model)  # an int8 file is of the network before it
        right = (table["pred"] == table["label"]).mean()
        shares = count_multiply_adds(model) / whole[0], count_parameters(model.module) / whole[1]
        rows.append({"seed": seed, "rung": name, "multiply_adds": shares[0], "parameters": shares[1], "accuracy": right})
    return pd.DataFrame(rows)


def load_pixels(data: DataBundle, model: ModelBundle, rows: pd.DataFrame):
    from vitlab.data import load_images

    return load_images(data, rows["sample_id"], model.transform)


def measure_accuracy(folder: Path, _threads: int, _repeats: int, seeds: int) -> tuple[list[dict], pd.DataFrame]:
    """A record for each rung that is a file to be deployed, and a row for each rung, means over the seeds."""
    runs = pd.concat([climb(folder, seed) for seed in range(seeds)])
    accuracy = runs.pivot(index="seed", columns="rung", values="accuracy")[list(runs["rung"].unique())]
    case, records, rows = f"vit_scratch on digits, {seeds} seeds", [], []
    for name, values in accuracy.items():
        lost = 100 * (accuracy[PEER] - values).to_numpy()
        mean, low, high, _ = corrected_t(lost, TEST_SHARE)
        shares = runs[runs["rung"] == name][["multiply_adds", "parameters"]].mean()
        rows.append({"rung": name, **shares, "accuracy": values.mean(), "points_lost": mean, "low": low, "high": high})
        if "int8" in str(name):
            pair = 100 * values.mean(), 100 * accuracy[PEER].mean()
            records.append(record(case, f"{name}: points of accuracy lost", *pair, PEER, mean, LOSS))
    return records, pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="geometry, accuracy (default: both)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each timing (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of the trained models (default: %(default)s)")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    for name in parts:
        if name not in PARTS:
            raise ValueError(unknown("part", name, list(PARTS)))
    for name in parts:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            records, table = PARTS[name](Path(folder), options.threads, options.repeats, options.seeds)
        print(table.to_string(float_format="{:.3f}".format))
        facts = {"threads": options.threads, name: json.loads(table.round(4).to_json(orient="records"))}
        write_records("geometry", records, **facts)
        print(f"{name}: {time.perf_counter() - began:.0f} s\n", flush=True)


PARTS = {"geometry": measure_geometry, "accuracy": measure_accuracy}

if __name__ == "__main__":
    main()

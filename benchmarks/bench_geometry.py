"""What each ingredient takes off a ViT-B/16 at 224 pixels, one image at a time, against PyTorch in
float32, sides in turn.

`geometry`: rungs of a ladder, each with all that the ones before it have: ONNX Runtime, int8, half
the heads and neurons cut out, similar tokens merged, every second block left out. Beside it other
ways down: 70 % cut out, and the smaller students (ViT-S and ViT-Ti) that distillation would train.
No pretrained ViT-B is at hand here, and time and size do not depend on the weights: they are
random, and nothing is said of accuracy. Public claim to beat: 62 % less latency and 74 % less size;
our bar is 90 % of both.

`accuracy`: the same rungs on models that are trained here, vit_scratch on the digits over several
seeds, with the accuracy of each on the test images. A small model on an easy task: it shows that
the steps work together, not what they cost a ViT-B.

    taskset -c 0,1 python benchmarks/bench_geometry.py [geometry] [accuracy] [--threads N]
        [--repeats N] [--seeds N]
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from records import corrected_t, record, write_records

from vitlab.compress.curves import count_multiply_adds, merge_tokens
from vitlab.compress.distillation import recover, recovery_recipe
from vitlab.compress.export import Gate, export_onnx
from vitlab.compress.latency import latency_table
from vitlab.compress.pruning import part_importance_table, plan_pruning
from vitlab.compress.quantize import quantize_onnx
from vitlab.compress.variants import predict_variants, size_on_disk
from vitlab.data import load_dataset, load_images
from vitlab.data.splits import TEST_SHARE
from vitlab.models import build_model, count_parameters, save_model, shrink_model
from vitlab.registry import unknown
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training import fit, recipe

CLAIM, BEST = {"latency": ">= 0.62", "size": ">= 0.74"}, {"latency": ">= 0.9", "size": ">= 0.9"}
CASE, PEER, BF16 = "ViT-B/16 geometry, 224 pixels, batch 1", "PyTorch fp32", "PyTorch bf16"
SECONDS = 60  # of timing, after which no further turn begins
MERGED = 8  # tokens a block: of 196 patches 96 are merged in 12 blocks, about half
# of 12 and 3072: 50 and 30 % of a block's parameters
HALF, LESS = {"heads": 6, "neurons": 1536}, {"heads": 4, "neurons": 896}
KEPT = 0.5  # of the blocks' parameters, on the digits
GATE_IMAGES = 4  # real images on which an export must agree with PyTorch
# vit_scratch that trains in seconds
SMALL = {"size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4}
LONGER, RECOVERY_EPOCHS = {"epochs": 16}, 6
DIGITS_MERGED = 5  # of 64 patches 30 are merged in 6 blocks, again about half
LOSS = "<= 0.5"  # points of accuracy


@dataclass(frozen=True)
class Rung:
    """network: by its name among those built; after: the rung that it is held against, for what its
    own ingredient gives.
    """

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
    BF16: Rung("ViT-B", BF16, PEER),
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
LABELS = {"+ int8": "ViT-B int8", "+ half the blocks": "all of the ladder"}


def build_networks(data: DataBundle) -> dict[str, ModelBundle]:
    """The networks by name. Every block is cut alike: which parts go is for trained weights to say,
    and moves no figure here.
    """
    names = {
        "ViT-B": "vit_base_patch16_224",
        "ViT-S": "vit_small_patch16_224",
        "ViT-Ti": "vit_tiny_patch16_224",
    }
    networks = {
        name: build_model(timm_name, data.classes, pretrained=False)
        for name, timm_name in names.items()
    }
    depth = len(networks["ViT-B"].module.blocks)
    half, less = (shrink_model(networks["ViT-B"], [kept] * depth) for kept in (HALF, LESS))
    every_second = shrink_model(half, [{} if block % 2 == 0 else None for block in range(depth)])
    return networks | {
        "ViT-B, 50 % cut out": half,
        "ViT-B, 50 % cut out, merged": merge_tokens(half, MERGED),
        "ViT-B, 50 % cut out, merged, 6 blocks": merge_tokens(every_second, 2 * MERGED),
        "ViT-B, 70 % cut out, merged": merge_tokens(less, MERGED),
        "ViT-S, merged": merge_tokens(networks["ViT-S"], MERGED),
    }


def measure_geometry(
    folder: Path, threads: int, repeats: int, _seeds: int
) -> tuple[list[dict], pd.DataFrame]:
    """Records, and a row for each rung. Any real images do for the gate of the export: the
    digits.
    """
    data, counts, made = load_dataset("digits"), {}, {}
    for name, model in build_networks(data).items():
        began = time.perf_counter()
        counts[name] = {
            "parameters_m": count_parameters(model.module) / 1e6,
            "multiply_adds_g": count_multiply_adds(model) / 1e9,
        }
        exported = export_onnx(model, folder / f"{name}.onnx", data, limit=GATE_IMAGES).path
        # random weights: ties
        int8 = quantise(exported, data, gate_images=GATE_IMAGES, gate=Gate(agreement=0))
        made |= {(name, PEER): model, (name, "ONNX fp32"): exported, (name, "int8"): int8}
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    sides = {
        name: made[rung.network, rung.runtime]
        for name, rung in RUNGS.items()
        if rung.runtime != BF16
    }
    save_model(sides[PEER], folder / "torch")
    files = {**sides, PEER: folder / "torch"}
    whole = sides[PEER]
    sides |= {BF16: replace(whole, module=copy.deepcopy(whole.module).bfloat16())}
    images = np.random.default_rng(0).standard_normal(
        (1, 3, *sides[PEER].transform.size), dtype=np.float32
    )
    table = latency_table(sides, images, (1,), repeats, threads, seconds=SECONDS)
    # NaN for bf16: no file
    table["size_mb"] = table["variant"].map(
        {name: size_on_disk(path) for name, path in files.items()}
    )
    table = add_shares(table, counts)
    return judge(table), table


def quantise(path: Path, data: DataBundle, **options) -> Path:
    target = path.with_name(f"{path.stem} int8.onnx")
    return quantize_onnx(path, target, data, **options).path


def add_shares(table: pd.DataFrame, counts: dict[str, dict[str, float]]) -> pd.DataFrame:
    """What is saved in all, and what the rung's own ingredient leaves of the rung before it, of
    latency and of size.
    """
    rows = table.set_index("variant")
    found = []
    for name, row in rows.iterrows():
        rung = RUNGS[str(name)]
        before = rows.loc[rung.after] if rung.after else row
        saved = {
            "latency_saved": 1 - row["ratio"],
            "size_saved": 1 - row["size_mb"] / rows["size_mb"].iloc[0],
        }
        left = {
            "latency_of_before": row["ratio"] / before["ratio"],
            "size_of_before": row["size_mb"] / before["size_mb"],
        }
        found.append(
            {"variant": name, "after": rung.after, **counts[rung.network], **saved, **left}
        )
    columns = [
        "variant",
        "repeats",
        "p50_ms",
        "p90_ms",
        "ratio",
        "ratio_low",
        "ratio_high",
        "size_mb",
    ]
    return table[columns].merge(pd.DataFrame(found), on="variant")


def judge(table: pd.DataFrame) -> list[dict]:
    """The records: latency and size of each combination that has a bar."""
    rows = table.set_index("variant")
    peer, records = rows.loc[PEER], []
    for name, bars in JUDGED.items():
        row, label = rows.loc[name], LABELS.get(name, name)
        for what, column in (("latency", "p50_ms"), ("size", "size_mb")):
            metric = f"{label}: share of {what} saved"
            records.append(
                record(
                    CASE, metric, row[column], peer[column], PEER, row[f"{what}_saved"], bars[what]
                )
            )
    return records


def climb(folder: Path, seed: int) -> pd.DataFrame:
    """One vit_scratch trained on digits and brought down the ladder: a row for each rung, with its
    accuracy on test images.
    """
    data = load_dataset("digits", seed=seed)
    full = build_model("vit_scratch", data.classes, seed=seed, **SMALL)
    fit(full, data, config=recipe("vit_scratch", seed=seed, **LONGER))
    val = data.split("val")
    images, labels = load_images(data, val["sample_id"], full.transform), val["label"].tolist()
    importance = part_importance_table(full, images, labels, ("head", "neuron"))
    cut = shrink_model(full, plan_pruning(full, importance, KEPT))
    recovered = recover_copy(cut, full, data, seed)
    worth = (
        part_importance_table(recovered, images, labels, ["block"])
        .sort_values("importance")["block"]
        .tolist()
    )
    least = worth[: len(worth) // 2]
    half = shrink_model(recovered, [None if block in least else {} for block in range(len(worth))])
    half_recovered = recover_copy(half, full, data, seed)
    networks = {
        "full": full,
        "50 % cut out": cut,
        "50 % cut out, recovered": recovered,
        "50 % cut out, recovered, tokens merged": merge_tokens(recovered, DIGITS_MERGED),
        "half the blocks too, recovered": half_recovered,
        "half the blocks too, recovered, tokens merged": merge_tokens(
            half_recovered, 2 * DIGITS_MERGED
        ),
    }
    sides, models = {}, {}
    for name, model in networks.items():
        sides[name] = models[name] = model
        if name == "full" or "merged" in name:
            exported = export_onnx(model, folder / f"{seed} {name}.onnx", data).path
            sides[f"{name}, int8"], models[f"{name}, int8"] = quantise(exported, data), model
    predictions = predict_variants(sides, data, full.transform)
    rows = [
        {
            "seed": seed,
            "rung": name,
            "multiply_adds": count_multiply_adds(models[name]) / count_multiply_adds(full),
            "parameters": count_parameters(models[name].module) / count_parameters(full.module),
            "accuracy": (table["pred"] == table["label"]).mean(),
        }
        for name, table in predictions.items()
    ]
    print(pd.DataFrame(rows).to_string(float_format="{:.3f}".format), flush=True)
    return pd.DataFrame(rows)


def recover_copy(
    model: ModelBundle, teacher: ModelBundle, data: DataBundle, seed: int
) -> ModelBundle:
    copied = shrink_model(model, [{}] * len(model.module.blocks))
    recover(
        copied,
        data,
        config=recovery_recipe("vit_scratch", seed=seed, epochs=RECOVERY_EPOCHS),
        teacher=teacher,
    )
    return copied


def measure_accuracy(
    folder: Path, _threads: int, _repeats: int, seeds: int
) -> tuple[list[dict], pd.DataFrame]:
    """A record for each rung that is a file to be deployed, and a row for each rung, means over the
    seeds.
    """
    runs = pd.concat([climb(folder, seed) for seed in range(seeds)])
    accuracy = runs.pivot(index="seed", columns="rung", values="accuracy")[
        list(runs["rung"].unique())
    ]
    case, records, rows = f"vit_scratch on digits, {seeds} seeds", [], []
    for name, values in accuracy.items():
        lost = 100 * (accuracy["full"] - values).to_numpy()
        mean, low, high, _ = corrected_t(lost, TEST_SHARE)
        shares = runs[runs["rung"] == name][["multiply_adds", "parameters"]].mean()
        rows.append(
            {
                "rung": name,
                **shares,
                "accuracy": values.mean(),
                "points_lost": mean,
                "low": low,
                "high": high,
            }
        )
        if "int8" in str(name):
            pair = 100 * values.mean(), 100 * accuracy["full"].mean()
            records.append(
                record(case, f"{name}: points of accuracy lost", *pair, PEER, mean, LOSS)
            )
    return records, pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="geometry, accuracy (default: both)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=15, help="turns of each timing (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="of the trained models (default: %(default)s)"
    )
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    for name in parts:
        if name not in PARTS:
            raise ValueError(unknown("part", name, list(PARTS)))
    for name in parts:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            records, table = PARTS[name](
                Path(folder), options.threads, options.repeats, options.seeds
            )
        print(table.to_string(float_format="{:.3f}".format))
        facts = {
            "threads": options.threads,
            name: json.loads(table.round(4).to_json(orient="records")),
        }
        write_records("geometry", records, **facts)
        print(f"{name}: {time.perf_counter() - began:.0f} s\n", flush=True)


PARTS = {"geometry": measure_geometry, "accuracy": measure_accuracy}

if __name__ == "__main__":
    main()

"""How small and how fast? Against the same model in PyTorch at float32, on two threads, sides in
turn, each ingredient alone.

Models fine-tuned on a data set, seeds 0 to 4; a run that the reports folder lacks is trained first.
Candidates of each: ONNX float32, int8, and a smaller network in static int8:
where the model has transformer blocks, the model itself with a share of them (whole ones go),
recovered; else a hybrid ViT of one block that learns from it. Of those that keep the answers of
their own float graph (99 % on validation images), are faster and lose at most 0.5 points of
balanced accuracy on the validation split, the one with the least time times size is taken; its
latency, size and loss are measured on the test split. At least 75 % less latency and 80 % less size
are asked for at a loss of at most 0.5 points, the mean over the seeds with a paired interval (over
the test images where there are fewer than five seeds); and that int8 gives the class of float32 in
the same runtime on 99 % of the images.

What a seed gave is kept in <reports>/bench_compress/ when it is finished, and not measured again
with the same settings: broken off, the benchmark goes on there. --again measures anew.

    taskset -c 0,1 python benchmarks/bench_compress.py [--threads N] [--repeats N] [--dataset NAME]
        [--models NAME ...] [--seeds N ...] [--keeps SHARE ...] [--again]
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from records import corrected_t, record, write_records

from vitlab.compress.benchmark import benchmark_table
from vitlab.compress.changes import measure_agreement
from vitlab.compress.latency import latency_table, read_instructions
from vitlab.compress.variants import predict_variants, size_on_disk
from vitlab.data import load_dataset, load_images
from vitlab.errors import UserError
from vitlab.files import write_json
from vitlab.models import build_model, load_model, save_model, shrink_model
from vitlab.places import reports_dir
from vitlab.runs import Run
from vitlab.training import ensure_run, recipe

TRAINED = {"latency": ">= 0.75", "size": ">= 0.8"}
LOSS, AGREEMENT = "<= 0.5", ">= 0.99"
MARGIN, TEST_SHARE = 0.005, 0.2
MODELS, SEEDS = ("hybrid_vit", "efficientnet_lite0"), (0, 1, 2, 3, 4)
# shares of the transformer blocks that pruning keeps: one of the three of hybrid_vit
KEEPS = (0.34,)
STUDENT, STUDENT_DEPTH = "hybrid_vit", 1  # learns from a model that has no blocks
WEIGHED = 128  # validation images on which importance is measured
INT8 = "static int8"
PEER = "PyTorch fp32"


def make_candidates(
    run: Run, model, data, keeps, folder: Path
) -> tuple[dict[str, Path], dict[str, Path]]:
    """The ONNX files of a run by name, and the float file that each int8 one agrees with (on val).

    A smaller network is kept in the folder once it is trained, and taken from there when a run that
    was broken off goes on."""
    from vitlab.compress.export import export_onnx
    from vitlab.compress.quantize import quantize_onnx

    smaller = {f"pruned to {keep:g}, ": partial(prune_and_recover, keep=keep) for keep in keeps}
    networks = {"": None} | (smaller if model.anatomy.attention else {"distilled, ": teach_student})
    files, floats = {}, {}
    for prefix, make in networks.items():
        saved = folder / prefix.replace(", ", "").replace(" ", "-")
        if make and not (saved / "model.json").is_file():
            save_model(make(model, data, run.parameters.get("seed", 0)), saved)
        network = load_model(saved) if make else model
        source = folder / f"{prefix}fp32.onnx".replace(", ", "-")
        export_onnx(network, source, data)
        if not prefix:
            files["ONNX fp32"] = source
        name = prefix + INT8
        path = folder / f"{name}.onnx".replace(", ", "-")
        try:
            quantize_onnx(source, path, data)
        except UserError as reason:
            print(f"{name}: {reason}", flush=True)
            continue
        files[name], floats[name] = path, source
    return files, floats


def prune_and_recover(model, data, seed: int, keep: float):
    """The model with this share of its blocks, taught by itself; as in notebook 06, but recovered
    by the whole recipe.
    """
    from vitlab.compress.distillation import recover, recovery_recipe
    from vitlab.compress.pruning import part_importance_table, plan_pruning

    val = data.split("val")
    rows = val.sample(n=min(WEIGHED, len(val)), random_state=seed)
    images = load_images(data, rows["sample_id"], model.transform)
    weights = part_importance_table(model, images, rows["label"].tolist(), kinds=("block",))
    pruned = shrink_model(model, plan_pruning(model, weights, keep, whole_blocks=True))
    recover(pruned, data, config=recovery_recipe(model.name, seed=seed), teacher=model)
    return pruned


def teach_student(model, data, seed: int):
    """A hybrid ViT of one block, taught by the model, with its own usual recipe."""
    from vitlab.compress.distillation import distill

    student = build_model(
        STUDENT, data.classes, seed=seed, size=model.transform.size, depth=STUDENT_DEPTH
    )
    student = replace(student, transform=model.transform)  # both get the same pixels
    distill(model, student, data, config=recipe(STUDENT, seed=seed))
    return student


def measure_run(run: Run, options: Namespace, folder: Path) -> dict:
    """One trained run: the file that is chosen on val, and what it gives and costs on test."""
    model = load_model(run.path)
    data = load_dataset(run.parameters["dataset"], samples=run.read_table("splits.csv"))
    files, floats = make_candidates(run, model, data, options.keeps, folder)
    sides, tables = {PEER: model, **files}, {}
    others = {
        f"float of {name}": path for name, path in floats.items() if path not in files.values()
    }
    predictions = predict_variants({**sides, **others}, data, model.transform, ("val", "test"))
    sizes = {
        PEER: size_on_disk(run.path),
        **{name: size_on_disk(path) for name, path in files.items()},
    }
    pixels = load_images(data, data.split("val")["sample_id"].head(1), model.transform).numpy()
    # timed anew: what was chosen for its time must show it again
    for seed, split in enumerate(("val", "test")):
        latency = latency_table(sides, pixels, (1,), options.repeats, options.threads, seed=seed)
        tables[split] = benchmark_table(latency, predictions, sizes, split=split)
    val = tables["val"]
    shown = val[["variant", "ratio", "speed", "change", "change_low", "change_high", "quality"]]
    print(f"{run.name}, on val:\n{shown.to_string(index=False)}", flush=True)
    good = val[(val["change"] >= -MARGIN) & (val["speed"] == "faster")]
    chosen = good.loc[(good["ratio"] * good["size_mb"]).idxmin(), "variant"] if len(good) else PEER
    first, row = (tables["test"].set_index("variant").loc[name] for name in (PEER, chosen))
    agreement = {}
    for name, path in floats.items():
        own = "ONNX fp32" if path == files["ONNX fp32"] else f"float of {name}"
        agreement[name] = measure_agreement(predictions[own], predictions[name])
    columns = [
        "variant",
        "p50_ms",
        "ratio",
        "size_mb",
        "value",
        "change",
        "change_low",
        "change_high",
        "agreement",
    ]
    return {
        "run": run.name,
        "model": run.parameters["model"],
        "seed": run.parameters.get("seed", 0),
        "chosen": chosen,
        "p50_ms": row["p50_ms"],
        "first_ms": first["p50_ms"],
        "ratio": row["ratio"],
        "size_mb": row["size_mb"],
        "first_mb": first["size_mb"],
        "value": row["value"],
        "first_value": first["value"],
        "change": row["change"],
        "change_low": row["change_low"],
        "change_high": row["change_high"],
        **agreement,
        "candidates": {
            split: json.loads(table[columns].round(4).to_json(orient="records"))
            for split, table in tables.items()
        },
    }


def measure_seed(model: str, seed: int, options: Namespace) -> dict:
    """The outcome of one seed: as it was kept, where the settings are the same; else measured now,
    and kept.
    """
    settings = {
        "threads": options.threads,
        "repeats": options.repeats,
        "blocks": list(options.keeps),
    }
    settings["student"] = [STUDENT, STUDENT_DEPTH]
    run = ensure_run(options.dataset, model, seed)
    folder = reports_dir() / "bench_compress" / run.name
    if options.again:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "outcome.json"
    if kept.is_file():
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before["settings"] == settings:
            print(f"{run.name}: kept from {before['date']}")
            return before["outcome"]
    start = time.perf_counter()
    outcome = measure_run(run, options, folder)
    outcome["seconds"] = round(time.perf_counter() - start, 1)
    write_json(
        kept,
        {
            "settings": settings,
            "date": f"{time.strftime('%Y-%m-%d', time.gmtime())}",
            "outcome": outcome,
        },
    )
    print(f"{run.name}: measured in {outcome['seconds']:.0f} s", flush=True)
    return outcome


def measure_models(options: Namespace) -> tuple[list[dict], pd.DataFrame]:
    """Records of each model over its seeds, and a row for each run."""
    outcomes = [
        measure_seed(model, seed, options) for model in options.models for seed in options.seeds
    ]
    table, records = pd.DataFrame(outcomes).drop(columns="candidates"), []
    for model, part in table.groupby("model", sort=False):
        records += judge_model(model, part, options.dataset)
    return records, table


def judge_model(model: str, part: pd.DataFrame, dataset: str) -> list[dict]:
    """The records of one model: a row of `part` a seed."""
    seeds, mean, records = len(part), part.mean(numeric_only=True), []
    case = f"{model} on {dataset}, {seeds} seed{'s' * (seeds > 1)}"
    saved = {
        "p50_ms": 1 - part["ratio"].median(),
        "size_mb": 1 - mean["size_mb"] / mean["first_mb"],
    }
    for (column, share), bar in zip(
        saved.items(), (TRAINED["latency"], TRAINED["size"]), strict=True
    ):
        first = mean["first_" + column.rpartition("_")[2]]
        records.append(
            record(case, f"share of {column} saved", mean[column], first, PEER, share, bar)
        )
    change, low, high, _ = corrected_t((part["value"] - part["first_value"]).to_numpy(), TEST_SHARE)
    # too few for an interval over seeds: that over test images stands in, of the first seed
    if seeds < len(SEEDS):
        low, high = part[["change_low", "change_high"]].iloc[0]
    picked = ", ".join(f"{name} ({count})" for name, count in part["chosen"].value_counts().items())
    print(
        f"{case}: {picked}; balanced accuracy {100 * change:+.2f} points [{100 * low:+.2f},"
        f" {100 * high:+.2f}]"
    )
    values = (100 * mean["value"], 100 * mean["first_value"])
    records.append(
        record(case, "points of balanced accuracy lost", *values, PEER, -100 * change, LOSS)
    )
    records.append(
        record(case, "points lost, upper end of the interval", *values, PEER, -100 * low, LOSS)
    )
    for name in part.columns[part.columns.str.endswith("int8")]:
        shares = part[name].dropna()
        values = {"mean": shares.mean(), "worst seed": shares.min()} if len(shares) else {}
        for what, share in values.items():
            records.append(
                record(
                    case,
                    f"{name}: top-1 agreement, {what}",
                    share,
                    1,
                    "ONNX fp32",
                    share,
                    AGREEMENT,
                )
            )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=20, help="turns of each timing (default: %(default)s)"
    )
    parser.add_argument(
        "--dataset", default="elpv", help="of the trained runs (default: %(default)s)"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(MODELS),
        help="of the trained runs (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=list(SEEDS),
        help="of the trained runs (default: %(default)s)",
    )
    parser.add_argument(
        "--keeps",
        nargs="*",
        type=float,
        default=list(KEEPS),
        help="shares kept (default: %(default)s)",
    )
    parser.add_argument(
        "--again", action="store_true", help="measure seeds anew whose outcome was kept"
    )
    options = parser.parse_args()
    facts = {"instructions": read_instructions() or [], "threads": options.threads}
    records, table = measure_models(options)
    print(table.to_string(float_format="{:.3f}".format))
    write_records(
        "compress", records, **facts, trained=json.loads(table.round(4).to_json(orient="records"))
    )


if __name__ == "__main__":
    main()

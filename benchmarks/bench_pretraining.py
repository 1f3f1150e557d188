"""What are the weights of vit_tiny_vitlab worth? The same network, fine-tuned from them and from
random weights.

`elpv`: all training images, five seeds, area under the ROC curve on test: at least 0.03 more, with
an interval without zero. `digits`: 50 training images a class, five seeds, accuracy on test: at
least 10 points more. `hunger`: the curve over numbers of images. Intervals are t intervals over
seeds, corrected for splits that overlap (Nadeau and Bengio 2003). Rows are kept as they are
measured, in benchmarks/results/pretraining.csv, and a second call measures what is missing there.

    python benchmarks/bench_pretraining.py [elpv] [digits] [hunger] [--seeds N]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
from pretraining.data_efficiency import data_efficiency_table
from records import RESULTS, corrected_t, record, write_records

SIDES = {
    "pretrained": {"name": "vit_tiny_vitlab", "pretrained": True},
    "scratch": {"name": "vit_tiny_vitlab", "pretrained": False},
}
# of 8x8 pixels each: no need for more
DIGITS = {side: {**arguments, "size": 64} for side, arguments in SIDES.items()}
TEST_SHARE = 0.2
FILE = RESULTS / "pretraining.csv"
PARTS = {  # data set, models, images a class (0: all), column, least gain, arguments of training
    "elpv": ("elpv", SIDES, (0,), "roc_auc", 0.03, {}),
    "digits": ("digits", DIGITS, (50,), "accuracy", 0.10, {"flip": False}),
    "hunger": ("digits", DIGITS, (5, 10, 20, 50, 100), "accuracy", None, {"flip": False}),
}


def measure(part: str, seeds: int, path: Path = FILE) -> pd.DataFrame:
    """All rows of this part, those on file included."""
    dataset, sides, counts, _, _, arguments = PARTS[part]
    for count in counts:
        for seed in range(seeds):
            known = (
                pd.read_csv(path)
                if path.exists()
                else pd.DataFrame(columns=["dataset", "images_per_class", "seed"])
            )
            if (
                (known["dataset"] == dataset)
                & (known["images_per_class"] == count)
                & (known["seed"] == seed)
            ).sum() == len(sides):
                continue
            rows = [
                {"dataset": dataset, **row}
                for row in data_efficiency_table(dataset, sides, [count], [seed], **arguments)
            ]
            for row in rows:
                print(row, flush=True)
            part_path = path.with_suffix(".part")
            pd.concat([known, pd.DataFrame(rows)] if len(known) else [pd.DataFrame(rows)]).to_csv(
                part_path, index=False
            )
            os.replace(part_path, path)
    table = pd.read_csv(path)
    return table[(table["dataset"] == dataset) & table["images_per_class"].isin(counts)]


def judge(part: str, table: pd.DataFrame) -> list[dict]:
    """The gain of the pretrained side over the seeds, and the lower end of its interval, as
    records.
    """
    dataset, _, (count, *_), column, least, _ = PARTS[part]
    wide = table.pivot(index="seed", columns="model", values=column)
    gain, low, high, p = corrected_t((wide["pretrained"] - wide["scratch"]).to_numpy(), TEST_SHARE)
    case = f"{dataset}, {count or 'all'} images a class, {len(wide)} seeds"
    sides = (wide["pretrained"].mean(), wide["scratch"].mean(), "random weights")
    print(
        f"{case}: {column} {sides[0]:.3f} against {sides[1]:.3f}, gain {gain:.3f} [{low:.3f},"
        f" {high:.3f}], p = {p:.2g}"
    )
    return [
        record(case, f"{column}, gain", *sides, gain, f">= {least}"),
        record(case, f"{column}, least gain (95 %)", *sides, low, ">= 0"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["elpv", "digits"], choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    for part in arguments.parts:
        table = measure(part, arguments.seeds)
        if PARTS[part][4] is not None:
            write_records("pretraining", judge(part, table))
        print(
            table.groupby(["images_per_class", "model"])[
                ["accuracy", "balanced_accuracy", "roc_auc"]
            ]
            .mean()
            .round(3)
        )

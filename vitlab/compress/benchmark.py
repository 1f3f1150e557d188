"""What each variant of a model gives on this machine: time, size and quality against the first
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from vitlab.compress.losses import loss_p_value, measure_agreement, measure_miscalibration
from vitlab.errors import MissingFileError, UserError
from vitlab.evaluation.metrics import metrics_table
from vitlab.evaluation.pairwise import pairwise_table

METRIC = "balanced_accuracy"
MARGIN = 0.02  # of the metric: what some 500 images can show; half a point would need thousands
LEVEL = 0.05  # of the tests against a loss above the margin
DIGITS = 4  # of a calibration error: what differs by less differs in rounding
EVEN = "no difference shown"
MB = 1e6  # bytes
SAVED = ("model.safetensors", "model.json")
# ends of the names of files in which an ONNX file of this name may keep its weights
BESIDE = ("", ".data", "_data")


def benchmark_table(
    latency: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    sizes: Mapping[str, float] | None = None,
    *,
    split: str,
    replicates: int = 1000,
) -> pd.DataFrame:
    """Time and quality of each variant against the first one: a row for each variant and batch size
    of a `latency_table`.

    predictions: a predictions table of each variant by name. split: val to choose by
    (`choose_variant`), test to report. Columns: those of the latency table; split; size_mb (NaN
    where `sizes` has none); metric, value, low, high; change, change_low, change_high (paired,
    against the first variant); agreement, agreement_low, agreement_high (same class, right or
    wrong); loss_p (`loss_p_value` of the margin, NaN for the first variant); ece, ece_change,
    ece_low, ece_high; and three verdicts. Intervals are at 95 %. speed: "faster" or "slower" where
    the interval of the ratio excludes 1. quality: "worse" or "better" where that of the change
    excludes 0, else "as good" where a loss above the margin is ruled out, else "loss not ruled
    out". calibration: "worse" or "better" by the change of the ECE. ValueError where a variant has
    no predictions."""
    names = list(dict.fromkeys(latency["variant"]))
    lacking = [name for name in names if name not in predictions]
    if lacking:
        raise UserError(
            f"there are no predictions of {', '.join(lacking)}; give a predictions table for each"
            " variant timed"
        )
    settings = {"split": split, "replicates": replicates}
    first, rows = predictions[names[0]], []
    for name in names:
        own = predictions[name]
        score = metrics_table(own, **settings).set_index("metric").loc[METRIC]
        row = {
            "variant": name,
            "split": split,
            "size_mb": (sizes or {}).get(name, np.nan),
            "metric": METRIC,
        }
        row |= {"value": score["value"], "low": score["low"], "high": score["high"]}
        gap = {"difference": 0.0, "low": 0.0, "high": 0.0}
        if name != names[0]:
            pair = {names[0]: {0: first}, name: {0: own}}
            gap = pairwise_table(pair, METRIC, **settings).iloc[0]
        row |= {"change": gap["difference"], "change_low": gap["low"], "change_high": gap["high"]}
        row |= zip(
            ("agreement", "agreement_low", "agreement_high"),
            measure_agreement(first, own, split),
            strict=True,
        )
        error = measure_miscalibration(first, own, **settings)
        row |= {
            "ece": error["ece"],
            "ece_change": error["change"],
            "ece_low": error["low"],
            "ece_high": error["high"],
        }
        reference = name == names[0]
        row["loss_p"] = np.nan if reference else loss_p_value(first, own, MARGIN, split)
        row["quality"] = (
            "reference" if reference else _compare_quality(gap["low"], gap["high"], row["loss_p"])
        )
        moved = [round(error[end], DIGITS) for end in ("low", "high")]
        row["calibration"] = "reference" if reference else _compare(*moved, 0, ("better", "worse"))
        rows.append(row)
    table = latency.merge(pd.DataFrame(rows), on="variant", how="left", validate="many_to_one")
    speed = [
        (
            "reference"
            if row.variant == names[0]
            else _compare(row.ratio_low, row.ratio_high, 1, ("faster", "slower"))
        )
        for row in table.itertuples()
    ]
    table.insert(table.columns.get_loc("quality"), "speed", speed)
    return table


def size_on_disk(path: Path | str) -> float:
    """Megabytes (10^6 bytes) of a model: an ONNX file with its weights beside it, or a folder of
    `save_model` (its own files).
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in SAVED if (path / name).is_file()]
        if not files:
            raise UserError(
                f"{path} holds no saved model ({' and '.join(SAVED)}); save_model(model, folder)"
                " writes one"
            )
    else:
        files = [file for end in BESIDE if (file := path.with_name(path.name + end)).is_file()]
        if not path.is_file():
            raise MissingFileError(f"there is no file or folder {path}")
    return sum(file.stat().st_size for file in files) / MB


def _compare(low: float, high: float, even: float, words: tuple[str, str]) -> str:
    return words[0] if high < even else words[1] if low > even else EVEN


def _compare_quality(low: float, high: float, loss_p: float) -> str:
    verdict = _compare(low, high, 0, ("worse", "better"))
    if verdict != EVEN:
        return verdict
    return "as good" if loss_p <= LEVEL else "loss not ruled out"

"""Look before you promise: what this processor has, and what each choice really gives on it, in time and in quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vitlab.compress.footprint import MB, size_on_disk
from vitlab.compress.latency import latency_table
from vitlab.compress.losses import measure_agreement, measure_miscalibration
from vitlab.compress.processor import INT8, instruction_table, read_instructions
from vitlab.compress.sides import predict_sides
from vitlab.errors import UserError
from vitlab.evaluation.metrics import METRICS, metrics_table
from vitlab.evaluation.paired import paired_table
from vitlab.registry import unknown
from vitlab.schema import DataBundle, Transform

MARGIN = 0.005  # of the metric: half a point
DIGITS = 4  # of a calibration error: what differs by less differs in rounding
EVEN = "no difference shown"


def examine(
    choices: Mapping[str, object],
    data: DataBundle,
    transform: Transform,
    *,
    split: str = "test",
    metric: str = "balanced_accuracy",
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 30,
    threads: int | None = None,
    seconds: float = 60.0,
    margin: float = MARGIN,
    seed: int = 0,
) -> pd.DataFrame:
    """A `doctor_table` of models, ONNX files or functions by name, the first being the reference: predicted and timed here.

    Predictions are of all images of the split; time is that of calls alone, images being prepared. Sizes are those of files, or
    of a module's weights. Choose on `val`, and measure
    what was chosen on `test`.
    """
    predictions = predict_sides(choices, data, transform, (split,))
    ids = data.split(split)["sample_id"].head(max(batch_sizes)).tolist()
    pixels = _load_pixels(data, ids, transform)
    latency = latency_table(choices, pixels, batch_sizes, repeats, threads, seconds=seconds, seed=seed)
    sizes = {name: _measure_size(choice) for name, choice in choices.items()}
    options = {"metric": metric, "split": split, "margin": margin, "seed": seed}
    return doctor_table(latency, predictions, sizes, **options)


def doctor_table(
    latency: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    sizes: Mapping[str, float] | None = None,
    *,
    metric: str = "balanced_accuracy",
    split: str = "test",
    positive: str | None = None,
    margin: float = MARGIN,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Time and quality of each side against the first one: a row for each side and batch size of a `latency_table`.

    Columns: those of the latency table; size_mb (NaN where `sizes` has none); metric, value, low, high; change, change_low,
    change_high (paired, against the first side); agreement, agreement_low, agreement_high (same class, right or wrong); ece,
    ece_change, ece_low, ece_high; and three verdicts.
    speed: "faster" or "slower" where the interval of the ratio lies on one side of 1. quality: "worse" or "better" where that of
    the change lies on one side of 0, else "as good" where a loss above `margin` is ruled out, else "loss not ruled out".
    calibration: "worse" or "better" by the change of the ECE. ValueError where a side has no predictions.
    """
    if metric not in METRICS:
        raise UserError(unknown("metric", metric, list(METRICS)))
    sides = list(dict.fromkeys(latency["side"]))
    lacking = [name for name in sides if name not in predictions]
    if lacking:
        raise UserError(f"there are no predictions of {', '.join(lacking)}; give a predictions table for each side timed")
    settings = {"split": split, "replicates": replicates, "seed": seed, "confidence": confidence}
    first, rows = predictions[sides[0]], []
    for name in sides:
        own = predictions[name]
        score = metrics_table(own, positive=positive, **settings).set_index("metric").loc[metric]
        row = {"side": name, "size_mb": (sizes or {}).get(name, np.nan), "metric": metric}
        row |= {"value": score["value"], "low": score["low"], "high": score["high"]}
        gap = {"difference": 0.0, "low": 0.0, "high": 0.0}
        if name != sides[0]:
            gap = paired_table(first, own, (sides[0], name), [metric], positive=positive, **settings).iloc[0]
        row |= {"change": gap["difference"], "change_low": gap["low"], "change_high": gap["high"]}
        row |= zip(("agreement", "agreement_low", "agreement_high"), measure_agreement(first, own, split), strict=True)
        error = measure_miscalibration(first, own, **settings)
        row |= {"ece": error["ece"], "ece_change": error["change"], "ece_low": error["low"], "ece_high": error["high"]}
        reference = name == sides[0]
        row["quality"] = "reference" if reference else _judge_quality(gap["low"], gap["high"], margin)
        moved = [round(error[end], DIGITS) for end in ("low", "high")]
        row["calibration"] = "reference" if reference else _judge(*moved, 0, ("better", "worse"))
        rows.append(row)
    table = latency.merge(pd.DataFrame(rows), on="side", how="left", validate="many_to_one")
    speed = [
        "reference" if row.side == sides[0] else _judge(row.ratio_low, row.ratio_high, 1, ("faster", "slower"))
        for row in table.itertuples()
    ]
    table.insert(table.columns.get_loc("quality"), "speed", speed)
    table.attrs["margin"] = margin
    return table


def _judge(low: float, high: float, even: float, words: tuple[str, str]) -> str:
    return words[0] if high < even else words[1] if low > even else EVEN


def _judge_quality(low: float, high: float, margin: float) -> str:
    verdict = _judge(low, high, 0, ("worse", "better"))
    return verdict if verdict != EVEN else "as good" if low >= -margin else "loss not ruled out"


def say_diagnosis(table: pd.DataFrame, instructions: frozenset[str] | None = None, margin: float | None = None) -> str:
    """A `doctor_table` in sentences: the processor, then each choice, where it is slower or worse first, and which one to take.

    To take is the fastest, at the smallest batch size, of those that are faster than the first side, and for which a loss above
    the margin is ruled out; where there is none, the first side.
    """
    margin = table.attrs.get("margin", MARGIN) if margin is None else margin
    found = read_instructions() if instructions is None else instructions
    first, smallest = table["side"].iloc[0], table["batch_size"].min()
    lines = [_say_processor(found)]
    for name, part in table.groupby("side", sort=False):
        if name != first:
            lines.append(_say_choice(part, first))
    best = table[(table["batch_size"] == smallest) & (table["speed"] == "faster") & (table["change_low"] >= -margin)]
    if best.empty:
        lines.append(
            f"Take {first}: no choice is both faster at batch {smallest} and shown to lose at most {100 * margin:.2g} points."
        )
    else:
        row = best.loc[best["ratio"].idxmin()]
        lines.append(
            f"Take {row['side']}: the fastest at batch {smallest} of those shown to lose at most {100 * margin:.2g} points "
            f"of {_readable(row['metric'])}."
        )
    return "\n".join(lines)


def _say_processor(found: frozenset[str] | None) -> str:
    if found is None:
        return "Which instructions this processor has is not known; what follows was measured on it."
    there = [row.instruction for row in instruction_table(found).itertuples() if row.present]
    fast = [name for name in INT8 if name in found]
    verdict = (
        f"8-bit products have instructions of their own ({', '.join(fast)})"
        if fast
        else "none for 8-bit products: int8 may be slower than float here, and on AVX2 less exact"
    )
    return f"This processor has {', '.join(there) or 'none of the instructions looked for'}: {verdict}."


def _say_choice(part: pd.DataFrame, first: str) -> str:
    row = part.iloc[0]
    speeds = []
    for one in part.sort_values("speed", key=lambda column: column != "slower", kind="stable").itertuples():
        factor = f"{1 / one.ratio:.2f} times as fast" if one.speed == "faster" else f"{one.ratio:.2f} times the time"
        word = {"slower": "SLOWER here", "faster": "faster", EVEN: "no difference in speed shown"}[one.speed]
        speeds.append(f"{word} at batch {one.batch_size} ({factor}, ratio {one.ratio_low:.2f} to {one.ratio_high:.2f})")
    points = f"{100 * row['change']:+.2f} points of {_readable(row['metric'])} [{100 * row['change_low']:+.2f}, "
    points += f"{100 * row['change_high']:+.2f}]"
    quality = {"worse": "WORSE"}.get(row["quality"], row["quality"].capitalize())
    calibration = {"worse": "Calibration WORSE", "better": "Calibration better"}.get(row["calibration"], "Calibration: " + EVEN)
    ece = f"ECE {row['ece']:.3f}, {row['ece_change']:+.3f} [{row['ece_low']:+.3f}, {row['ece_high']:+.3f}]"
    agreement = f"the same answer as {first} on {row['agreement']:.1%} of the images"
    return f"{row['side']}: {'; '.join(speeds)}. {quality}: {points}; {agreement}. {calibration} ({ece})."


def _readable(metric: str) -> str:
    return metric.replace("_", " ")


def _measure_size(choice) -> float:
    """Megabytes of a file, or of a module's weights, which is what its file has; NaN for a function."""
    if isinstance(choice, str | Path):
        return size_on_disk(choice)
    module = getattr(choice, "module", choice)
    if not hasattr(module, "state_dict"):
        return np.nan
    return sum(tensor.nbytes for tensor in module.state_dict().values()) / MB


def _load_pixels(data: DataBundle, ids: list[str], transform: Transform) -> np.ndarray:
    from vitlab.data import ImageDataset

    dataset = ImageDataset(data, ids, transform)
    return np.stack([image.numpy() for image, _, _ in dataset.__getitems__(range(len(ids)))])  # (N, 3, h, w)

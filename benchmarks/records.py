"""What every benchmark writes: benchmarks/results/<topic>.json with the machine and a record for
each bar, missed ones too.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy import stats

RESULTS = Path(__file__).parent / "results"


def record(
    case: str, metric: str, ours: float, peer: float, peer_name: str, ratio: float, bar: str
) -> dict:
    """bar: `>= 3` or `<= 1.1`, for the ratio."""
    sign, limit = bar.split()
    holds = ratio >= float(limit) if sign == ">=" else ratio <= float(limit)
    values = {
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "peer_name": peer_name,
        "ratio": round(ratio, 3),
    }
    return {"case": case, "metric": metric, **values, "bar": bar, "holds": bool(holds)}


def write_records(topic: str, records: list[dict], **further) -> None:
    """Print the records as a table and write them, with `further` facts; records of earlier calls
    with other cases stay.
    """
    path = RESULTS / f"{topic}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    cases = {(one["case"], one["metric"]) for one in records}
    kept = [one for one in before.get("records", []) if (one["case"], one["metric"]) not in cases]
    content = {
        **before,
        **further,
        "machine": describe_machine(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "records": kept + records,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for one in records:
        verdict = "holds" if one["holds"] else "MISSED"
        sides = f"{one['ours']:>10} : {one['peer']:<10} ({one['peer_name']})"
        print(f"{one['case']:58} {sides} {one['ratio']:>7} {one['bar']:8} {verdict}")


def describe_machine() -> str:
    """Processor, cores and Python."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    formats = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    python = f"Python {platform.python_version()}"
    return (
        f"{name} ({', '.join(formats) or 'no bf16'}), {os.cpu_count()} cores, {platform.system()},"
        f" {python}"
    )


def corrected_t(
    differences: np.ndarray, test_share: float, confidence: float = 0.95
) -> tuple[float, float, float, float]:
    """Mean, low, high and p of the corrected resampled t-test (Nadeau and Bengio, Machine Learning
    52, 2003).

    differences: one for each of k seeds, each with a test share drawn from the same images: the
    variance of their mean is taken as (1 / k + test / train) s^2. It is not for a fixed test split.
    NaN for one seed and for differences that are all the same."""
    seeds, mean = len(differences), float(np.mean(differences))
    if seeds < 2 or np.ptp(differences) == 0:
        return mean, np.nan, np.nan, np.nan
    error = np.std(differences, ddof=1) * np.sqrt(1 / seeds + test_share / (1 - test_share))
    half = stats.t.ppf((1 + confidence) / 2, seeds - 1) * error
    return mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, seeds - 1))

"""An index of all runs in one Parquet file, so that hundreds of them are read in a moment.

reports/runs/index.parquet holds for each run what its run.json and metrics.json say, and a stamp of these files. What has changed
since is read again, what is gone goes, and the file is written anew under a temporary name. It holds nothing that the folders do
not: without it, or with a damaged one, everything is read once more. A run whose files cannot be read is a row that says so; it
has no stamp and is read again each time.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vitlab.errors import UserError
from vitlab.runs import atomic, dataset_folder, describe_draw, reports_dir

FILE = "index.parquet"
STORED = ("folder", "stamp", "run", "metrics", "problem")  # all of them text
SIGNS = ("run.json", "metrics.json", "predictions.parquet")  # files whose state is the stamp; the last counts without the second
ALWAYS = ("model", "seed", "dataset", "variant", "run_name")  # parameters that have columns of their own, or are names
log = logging.getLogger(__name__)


def index_runs(dataset: str = "") -> pd.DataFrame:
    """A row for each run of a data set (default: of all), oldest first, from the index, which is brought up to date.

    Columns: run (folder, as `elpv/hybrid_vit-seed0-1a2b3c4d`), dataset, model, variant, seed, draw, status (running, done, failed
    or damaged), problem, started, wall_s, peak_memory_mb; then `parameters.NAME`, `facts.NAME`, `metrics.NAME` and, where there
    are intervals, `metrics.NAME.low` and `metrics.NAME.high`. A run without metrics.json has the metrics of its predictions, and
    no intervals. A folder without run.json is no run.
    """
    stored = update_index()
    if dataset:
        stored = stored[stored["folder"].str.startswith(f"{dataset_folder(dataset)}/")]
    rows = [_expand(row) for row in stored.to_dict("records")]
    first = ["run", "dataset", "model", "variant", "seed", "draw", "status", "problem", "started", "wall_s", "peak_memory_mb"]
    order = [*first, *sorted({name for row in rows for name in row} - {*first, "start_s"}, key=_place)]
    table = pd.DataFrame(rows, columns=["start_s", *order])
    return table.sort_values("start_s", kind="stable", ignore_index=True).drop(columns="start_s")


def update_index() -> pd.DataFrame:
    """Bring the index file up to date and give what it holds, with the columns STORED. Where it cannot be written, a warning."""
    folder = reports_dir() / "runs"
    before = _read_index(folder / FILE)
    known = {row["folder"]: row for row in before.to_dict("records")}
    rows = []
    for path in _find_folders(folder):
        name, stamp = path.relative_to(folder).as_posix(), _stamp(path)
        name = name.encode("utf-8", "backslashreplace").decode()  # a name that is no UTF-8
        if stamp is None:
            continue  # no run, or removed while we looked
        row = known.get(name)
        rows.append(row if row and row["stamp"] == stamp else {"folder": name, "stamp": stamp} | _read_run(path))
    after = pd.DataFrame(rows, columns=list(STORED)).astype(str)
    if not after.equals(before) and folder.is_dir():
        try:
            with atomic(folder / FILE) as temporary:
                after.to_parquet(temporary, index=False)
        except OSError as error:
            log.warning("the index of runs in %s cannot be written, and is read anew each time: %s", folder, error)
    return after


def keep_runs(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    """The rows for which a condition holds, in the language of pandas' `query`: "status == 'done' and `metrics.roc_auc` > 0.9".

    An empty condition keeps all. ValueError names what is wrong with it, and the columns.
    """
    if not condition.strip():
        return table
    try:
        return table.query(condition).reset_index(drop=True)
    except Exception as error:  # pandas raises a dozen kinds here
        said = re.sub(r"BACKTICK_QUOTED_STRING_(\w+)", lambda match: match[1].replace("_DOT_", "."), str(error))
        names = ", ".join(f"`{name}`" if "." in name else name for name in table.columns if table[name].notna().any())
        raise UserError(f"cannot keep the runs with {condition!r}: {said}. Columns: {names}") from error


def varied_columns(table: pd.DataFrame, metric: str, most: int = 6) -> list[str]:
    """The columns in which these runs differ by choice (model, variant's parameters), at most so many.

    Those come first whose values go with the largest differences in `metric`: the share of its variance that lies between the
    values (of numbers, between quarters), less what chance alone would give them (epsilon squared). It describes these runs; what
    was varied together cannot be told apart.
    """
    parameters = [name for name in table if name.startswith("parameters.") and name.partition(".")[2] not in ALWAYS]
    candidates = ["model", *parameters]
    shares = {}
    for name in candidates:
        values = table[name].map(str)
        if values.nunique() > 1:
            shares[name] = _share_between(table[name], table[metric]) if metric in table else 0.0
    return sorted(shares, key=shares.get, reverse=True)[:most]


def _share_between(values: pd.Series, scores: pd.Series) -> float:
    scores = scores.astype(float)
    numbers = pd.to_numeric(values, errors="coerce")
    groups = values.map(str)
    if numbers.notna().all() and numbers.nunique() > 8:
        groups = pd.qcut(numbers, 4, duplicates="drop").astype(str)
    groups = groups[scores.notna()]
    scores = scores.dropna()
    count, kinds = len(scores), groups.nunique()
    total = ((scores - scores.mean()) ** 2).sum()
    if count <= kinds or not total:
        return 0.0
    within = ((scores - scores.groupby(groups).transform("mean")) ** 2).sum()
    return float(1 - (within / (count - kinds)) / (total / (count - 1)))


def _find_folders(folder: Path) -> list[Path]:
    """Every folder two levels down, in order."""
    found = []
    for dataset in _folders_in(folder):
        found += _folders_in(dataset)
    return found


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _stamp(path: Path) -> str | None:
    """The state of the files that a row is made of; None without run.json. A file that is replaced has another inode."""
    states = []
    for name in SIGNS:
        if name == SIGNS[2] and states[1]:
            continue
        try:
            stat = os.stat(path / name)
            states.append(f"{stat.st_mtime_ns}-{stat.st_size}-{stat.st_ino}")
        except OSError:
            states.append("")
    return " ".join(states) if states[0] else None


def _read_index(file: Path) -> pd.DataFrame:
    empty = pd.DataFrame(columns=list(STORED), dtype=str)
    if not file.is_file():
        return empty
    try:
        table = pd.read_parquet(file)
        return table.astype(str) if tuple(table.columns) == STORED else empty
    except Exception as error:  # torn, or no Parquet at all: pyarrow has many errors for that
        log.warning("the index of runs %s cannot be read and is made anew: %s", file, error)
        return empty


def _read_run(path: Path) -> dict[str, str]:
    """run and metrics as JSON texts, problem as a sentence; what cannot be read is an empty object, the stamp then empty."""
    info, problem = _read_object(path / "run.json")
    if not problem and not (isinstance(info.get("parameters"), dict) and isinstance(info.get("status"), str)):
        info, problem = {}, "run.json lacks parameters or status"
    metrics, trouble = _read_object(path / "metrics.json") if (path / "metrics.json").is_file() else _score(path)
    said = str(problem or info.get("error", "") or trouble).encode("utf-8", "replace").decode()
    row = {"run": json.dumps(info), "metrics": json.dumps(metrics), "problem": said}
    return row | {"stamp": ""} if problem or trouble else row


def _read_object(file: Path) -> tuple[dict, str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return (content, "") if isinstance(content, dict) else ({}, f"{file.name} holds no object")
    except (OSError, ValueError) as error:
        return {}, f"{file.name} cannot be read: {error}"


def _score(path: Path) -> tuple[dict, str]:
    """The metrics of the predictions on the test images, for a run that notebook 04 has not seen."""
    if not (path / "predictions.parquet").is_file():
        return {}, ""
    from vitlab.evaluation import metrics_table

    try:
        table = metrics_table(pd.read_parquet(path / "predictions.parquet"), replicates=0)
        return {row["metric"]: {"value": row["value"]} for row in table.to_dict("records")}, ""
    except Exception as error:  # whatever a torn or foreign file brings: it is a note in the table, not the end of it
        return {}, f"predictions.parquet cannot be scored: {type(error).__name__}: {error}"


def _expand(row: dict[str, str]) -> dict:
    info, metrics = json.loads(row["run"]), json.loads(row["metrics"])
    parameters, facts = info.get("parameters", {}), info.get("facts", {})
    facts = facts if isinstance(facts, dict) else {}
    wide = {
        "run": row["folder"],
        "start_s": start if isinstance(start := info.get("start_s"), int | float) else float("inf"),
        "dataset": parameters.get("dataset", row["folder"].partition("/")[0]),
        "model": str(parameters.get("model", "")),
        "variant": str(parameters.get("variant") or ""),
        "seed": parameters.get("seed"),
        "draw": describe_draw(parameters),
        "status": info.get("status", "damaged"),
        "problem": row["problem"],
        **{name: info.get(name) for name in ("started", "wall_s", "peak_memory_mb")},
        **{f"parameters.{name}": value for name, value in parameters.items()},
        **{f"facts.{name}": value for name, value in facts.items()},
    }
    for name, value in metrics.items():
        for key, number in (value if isinstance(value, dict) else {"value": value}).items():
            if isinstance(number, int | float):
                wide[f"metrics.{name}" if key == "value" else f"metrics.{name}.{key}"] = float(number)
    return wide


def _place(column: str) -> tuple[int, str]:
    kinds: Sequence[str] = ("parameters", "facts", "metrics")
    return kinds.index(column.partition(".")[0]), column

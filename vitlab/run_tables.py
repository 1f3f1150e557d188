"""Tables of runs: the metrics of one, the comparison of several, and one row for each run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlab.errors import UserError
from vitlab.places import reports_dir
from vitlab.run_folders import list_all_runs, list_runs
from vitlab.runs import Run, describe_draw, read_runs, runs_folder

# parameters that have columns of their own, or are names
ALWAYS = ("model", "seed", "dataset", "variant", "run_name")
MAX_VARIED = 6  # columns


def latest_runs(dataset: str, *, variants: bool = False) -> tuple[list[Run], list[str]]:
    """The newest finished run of each model and draw (seed, fold), ordered by them; and sentences
    that name the runs left out.

    All runs of a model have the options (all parameters except the draw) of its newest run. Runs
    with other options are left out, and so are incomplete or damaged ones.

    variants: the runs with a `variant` instead of those without: the newest of each model, variant
    and draw, in the order in which the variants were first trained."""
    runs, left_out = read_runs(dataset, "done", {})
    runs = [run for run in runs if bool(run.variant) == variants]
    order = list(dict.fromkeys(run.variant for run in runs))
    kept: list[Run] = []
    for title in sorted({run.title for run in runs}):
        of_title = [run for run in runs if run.title == title]
        options = of_title[-1].options
        newest = {run.draw: run for run in of_title if run.options == options}
        kept += newest.values()
        others = [run for run in of_title if run.options != options]
        if others:
            left_out.append(_describe_others(title, options, others))
    kept.sort(
        key=lambda run: (
            str(run.parameters.get("model")),
            order.index(run.variant),
            _seed(run),
            run.draw,
        )
    )
    return kept, left_out


def evaluate(
    result: Run | pd.DataFrame,
    *,
    replicates: int = 1000,
    cluster: str | pd.Series | None = None,
) -> pd.DataFrame:
    """The metrics of a model on its test images with 95% intervals.

    result: a finished run, or predictions as of `vitlab.predict`. replicates: of the bootstrap.
    cluster: images that are drawn together, such as near-duplicates, see
    `vitlab.evaluation.metrics_table`. Columns: metric, value, low, high, note.

    >>> import pandas as pd, vitlab
    >>> table = {"sample_id": ["a", "b"], "split": "test", "group": "all", "label": ["no", "yes"]}
    >>> table |= {"pred": ["no", "no"], "logit_no": [2.0, 1.0], "logit_yes": 0.0}
    >>> table |= {"prob_no": [0.88, 0.73], "prob_yes": [0.12, 0.27]}
    >>> metrics = vitlab.evaluate(pd.DataFrame(table)).set_index("metric")
    >>> float(metrics.loc["accuracy", "value"])
    0.5
    """
    from vitlab.evaluation import metrics_table

    return metrics_table(_read_predictions(result), replicates=replicates, cluster=cluster)


def compare(
    results: Iterable[Run] | Mapping[str, Mapping[object, pd.DataFrame]],
    metric: str = "roc_auc",
    *,
    replicates: int = 1000,
    cluster: str | pd.Series | None = None,
) -> pd.DataFrame:
    """Every pair of models on one test metric over their common seeds: difference, interval,
    verdict.

    results: finished runs, or predictions by model and seed. For the other arguments and the
    columns see `vitlab.evaluation.pairwise_table`.

    >>> import pandas as pd, vitlab
    >>> table = {"sample_id": ["a", "b"], "split": "test", "group": "all", "label": ["no", "yes"]}
    >>> table |= {"pred": ["no", "yes"], "logit_no": [2.0, 0.0], "logit_yes": [0.0, 1.0]}
    >>> table = pd.DataFrame(table | {"prob_no": [0.88, 0.27], "prob_yes": [0.12, 0.73]})
    >>> pairs = vitlab.compare({"vit": {0: table}, "cnn": {0: table}}, "accuracy")
    >>> pairs[["model_a", "model_b", "difference"]].to_numpy().tolist()
    [['vit', 'cnn', 0.0]]
    """
    from vitlab.evaluation import pairwise_table

    if not isinstance(results, Mapping):
        by_model: dict[str, dict[object, pd.DataFrame]] = {}
        for run in results:
            by_model.setdefault(run.title, {})[run.draw] = _read_predictions(run)
        results = by_model
    return pairwise_table(results, metric, replicates=replicates, cluster=cluster)


def _read_predictions(result: Run | pd.DataFrame) -> pd.DataFrame:
    return result.read_table("predictions.parquet") if isinstance(result, Run) else result


def run_table(dataset: str = "") -> pd.DataFrame:
    """A row for each run of a data set (default: of all), oldest first.

    Columns: run (folder, as `elpv-1a2b3c4d/hybrid_vit-seed0-1a2b3c4d`), dataset, model, variant,
    seed, draw, status (running, done, failed, or damaged where files are missing or cannot be
    read), problem, started, wall_s, peak_memory_mb; then `parameters.NAME`, `facts.NAME`,
    `metrics.NAME` and, where there are intervals, `metrics.NAME.low` and `metrics.NAME.high`. A run
    without metrics.json has the metrics of its predictions, and no intervals. A folder without
    run.json is not a run.

    >>> import vitlab
    >>> table = vitlab.run_table("digits")
    >>> {"run", "model", "seed", "status"} <= set(table.columns)
    True
    """
    paths = list_runs(runs_folder(dataset)) if dataset else list_all_runs(reports_dir() / "runs")
    rows = [_read_row(path) for path in paths]
    first = [
        "run",
        "dataset",
        "model",
        "variant",
        "seed",
        "draw",
        "status",
        "problem",
        "started",
        "wall_s",
        "peak_memory_mb",
    ]
    order = [
        *first,
        *sorted({name for row in rows for name in row} - {*first, "start_s"}, key=_place),
    ]
    table = pd.DataFrame(rows, columns=["start_s", *order])
    return table.sort_values("start_s", kind="stable", ignore_index=True).drop(columns="start_s")


def print_runs(table: pd.DataFrame) -> None:
    """Print a `run_table` for people: one line per run, oldest first."""
    shown = Table("run", "model", "seed", "status", "accuracy", "started")
    scores = table.get("metrics.accuracy", pd.Series(float("nan"), table.index))
    for row, score in zip(table.to_dict("records"), scores, strict=True):
        model = ", ".join(filter(None, (row["model"], row["variant"])))
        status = f"{row['status']}: {row['problem']}" if row["problem"] else row["status"]
        cells = (row["run"], model, row["draw"], status)
        accuracy = "" if pd.isna(score) else f"{score:.3f}"
        started = "" if pd.isna(row["started"]) else row["started"][:16].replace("T", " ")
        shown.add_row(*map(escape, cells), accuracy, started)
    Console().print(shown if len(table) else "No runs yet.")


def keep_runs(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    """The rows for which a condition of pandas' `query` holds, such as "status == 'done' and
    `metrics.roc_auc` > 0.9"; all rows for an empty one. UserError names the columns.
    """
    if not condition.strip():
        return table
    try:
        return table.query(condition).reset_index(drop=True)
    except Exception as error:  # pandas raises a dozen kinds here
        problem = re.sub(
            r"BACKTICK_QUOTED_STRING_(\w+)",
            lambda match: match[1].replace("_DOT_", "."),
            str(error),
        )
        names = ", ".join(
            f"`{name}`" if "." in name else name
            for name in table.columns
            if table[name].notna().any()
        )
        raise UserError(
            f"cannot keep the runs with {condition!r}: {problem}. Columns: {names}"
        ) from error


def varied_columns(table: pd.DataFrame, metric: str) -> list[str]:
    """The columns in which these runs differ by choice (model, parameters), at most MAX_VARIED.

    Sorted by epsilon squared: the share of the variance of `metric` between the values of a column
    (for numbers, between quarters), less the share expected by chance."""
    parameters = [
        name
        for name in table
        if name.startswith("parameters.") and name.partition(".")[2] not in ALWAYS
    ]
    candidates = ["model", *parameters]
    shares = {}
    for name in candidates:
        values = table[name].map(str)
        if values.nunique() > 1:
            shares[name] = _share_between(table[name], table[metric]) if metric in table else 0.0
    return sorted(shares, key=shares.get, reverse=True)[:MAX_VARIED]


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


def _describe_others(title: str, options: dict, others: list[Run]) -> str:
    names = sorted(
        {
            key
            for run in others
            for key in {*options, *run.options}
            if options.get(key) != run.options.get(key)
        }
    )
    values = ", ".join(f"{name} {options.get(name, 'by default')}" for name in names)
    runs = ", ".join(run.name for run in others)
    return (
        f"{title}: compared are the runs with the options of the newest one ({values}). Left out,"
        f" with other options: {runs}"
    )


def _seed(run: Run) -> float:
    seed = run.parameters.get("seed", 0)
    return seed if isinstance(seed, int | float) else 0


def _read_row(path: Path) -> dict:
    # a name that is not UTF-8
    place = f"{path.parent.name}/{path.name}".encode("utf-8", "backslashreplace").decode()
    try:
        run = Run(path)
    except UserError as error:
        unknown = {"dataset": path.parent.name, "model": "", "variant": "", "draw": ""}
        return {
            "run": place,
            "start_s": float("inf"),
            **unknown,
            "status": "damaged",
            "problem": str(error),
        }
    damage = run.problem if run.status == "done" else ""
    metrics, problem = _read_metrics(path)
    row = {
        "run": place,
        "start_s": run.info["start_s"],
        "dataset": run.parameters.get("dataset", ""),
        "model": str(run.parameters.get("model", "")),
        "variant": run.variant,
        "seed": run.parameters.get("seed"),
        "draw": describe_draw(run.parameters),
        "status": "damaged" if damage else run.status,
        "problem": str(damage or run.info.get("error", "") or problem),
        **{name: run.info.get(name) for name in ("started", "wall_s", "peak_memory_mb")},
        **{f"parameters.{name}": value for name, value in run.parameters.items()},
        **{f"facts.{name}": value for name, value in run.facts.items()},
    }
    for name, value in metrics.items():
        values = value if isinstance(value, dict) else {"value": value}
        for key, number in values.items():
            column = f"metrics.{name}" if key == "value" else f"metrics.{name}.{key}"
            if isinstance(number, int | float):
                row[column] = float(number)
    return row


def _read_metrics(path: Path) -> tuple[dict, str]:
    """metrics.json, or the metrics of the test predictions where notebook 04 has not run; and what
    is wrong with them.
    """
    try:
        if (path / "metrics.json").is_file():
            return dict(json.loads((path / "metrics.json").read_text(encoding="utf-8"))), ""
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return {}, f"metrics.json cannot be read: {error}"
    if not (path / "predictions.parquet").is_file():
        return {}, ""
    from vitlab.evaluation import metrics_table

    try:
        table = metrics_table(pd.read_parquet(path / "predictions.parquet"), replicates=0)
        return {row["metric"]: {"value": row["value"]} for row in table.to_dict("records")}, ""
    except Exception as error:  # a damaged file becomes a note in the table
        return {}, f"predictions.parquet cannot be scored: {type(error).__name__}: {error}"


def _place(column: str) -> tuple[int, str]:
    kinds: Sequence[str] = ("parameters", "facts", "metrics")
    return kinds.index(column.partition(".")[0]), column

"""Tables of runs: the metrics of one, the comparison of several, and one row for each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlab.errors import UserError
from vitlab.files import read_json
from vitlab.run_folders import list_runs
from vitlab.runs import Run, read_runs

FACTS_OF_RUN = ("start_s", "started", "wall_s", "peak_memory_mb")  # as run.json has them
COLUMNS = ("run", "dataset", "model", "variant", "seed", "draw", "status", "problem")
# parameters that have columns of their own, or are names
ALWAYS = ("model", "seed", "dataset", "variant", "run_name")
MAX_VARIED = 6  # columns


def latest_runs(
    dataset: str, *, variants: bool = False, preset: str = "", split_by: str = ""
) -> tuple[list[Run], list[str]]:
    """The newest finished run of each model and draw (seed, fold), ordered by them; and sentences
    that name the runs left out.

    All runs of a model have the options (all parameters except the draw) of its newest run. Runs
    with other options are left out, and so are incomplete or damaged ones.

    variants: the runs with a `variant` instead of those without: the newest of each model, variant
    and draw, in the order in which the variants were first trained. preset, split_by: runs trained
    with another preset or split are left out, and those with another number of folds (default: as
    the newest run)."""
    runs, left_out = read_runs(dataset, "done", {})
    runs = [run for run in runs if bool(run.variant) == variants]
    for name, value in {"preset": preset, "split_by": split_by, "folds": None}.items():
        value = value or (_setting(runs[-1], name) if runs else "")
        if others := [run.name for run in runs if _setting(run, name) != value]:
            left_out.append(f"Left out, with another {name} than {value}: {', '.join(others)}")
        runs = [run for run in runs if _setting(run, name) == value]
    by_title: dict[str, list[Run]] = {}
    for run in runs:
        by_title.setdefault(run.title, []).append(run)
    kept: list[Run] = []
    for title, same in sorted(by_title.items(), key=lambda item: item[1][0].model):
        options = same[-1].options
        newest = {run.draw: run for run in same if run.options == options}
        kept += sorted(newest.values(), key=lambda run: (run.seed, run.draw))
        others = [run for run in same if run.options != options]
        if others:
            left_out.append(_describe_others(title, options, others))
    return kept, left_out


def _setting(run: Run, name: str) -> str | int:
    """What runs that are compared share, or its default."""
    default = {"preset": "standard", "split_by": "image", "folds": 0}[name]
    return run.parameters.get(name) or default


def read_tests(runs: Sequence[Run]) -> tuple[list[tuple[str, str, pd.DataFrame]], list[str]]:
    """(title, draw, predictions) of each of `latest_runs`, and sentences about what is left out.

    The folds of one cross-validation are one entry: the test predictions of all folds, each image
    once, by the model that was not trained on it. Cross-validations that lack a fold are left out,
    unless all do; then each fold is an entry."""
    whole: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        folds = run.parameters.get("folds") or 0
        draw = run.draw.replace(f"fold {run.fold} of {folds}", f"{folds} folds")
        whole.setdefault((run.title, draw), {})[run.fold] = run
    lacking = [
        key
        for key, parts in whole.items()
        if len(parts) < (next(iter(parts.values())).parameters.get("folds") or 1)
    ]
    if len(lacking) == len(whole):
        tests = [(run.title, run.draw, run.read_table("predictions.parquet")) for run in runs]
        return tests, []
    tests = []
    for (title, draw), parts in whole.items():
        tables = [run.read_table("predictions.parquet") for run in parts.values()]
        if len(tables) > 1:
            tables = [table[table["split"] == "test"] for table in tables]
        if (title, draw) not in lacking:
            tests.append((title, draw, pd.concat(tables, ignore_index=True)))
    sentences = [
        f"{title}, seed {draw}: left out, as {len(whole[title, draw])} folds are there"
        for title, draw in lacking
    ]
    return tests, sentences


def _describe_others(title: str, options: dict, others: list[Run]) -> str:
    names = {name for run in others for name in {*options, *run.options}}
    differ = [
        name
        for name in sorted(names)
        if any(run.options.get(name) != options.get(name) for run in others)
    ]
    values = ", ".join(f"{name} {options.get(name, 'by default')}" for name in differ)
    return (
        f"{title}: compared are the runs with the options of the newest one ({values}). Left out,"
        f" with other options: {', '.join(run.name for run in others)}"
    )


def evaluate(result: Run | pd.DataFrame, *, replicates: int = 1000) -> pd.DataFrame:
    """The metrics of a model on its test images with 95% intervals.

    result: a finished run, or predictions as of `vitlab.predict`. replicates: of the bootstrap.
    Columns: metric, value, low, high, note; see `vitlab.evaluation.metrics_table`.

    >>> import pandas as pd, vitlab
    >>> table = {"sample_id": ["a", "b"], "split": "test", "group": "all", "label": ["no", "yes"]}
    >>> table |= {"pred": ["no", "no"], "logit_no": [2.0, 1.0], "logit_yes": 0.0}
    >>> table |= {"prob_no": [0.88, 0.73], "prob_yes": [0.12, 0.27]}
    >>> metrics = vitlab.evaluate(pd.DataFrame(table)).set_index("metric")
    >>> float(metrics.loc["accuracy", "value"])
    0.5
    """
    from vitlab.evaluation import metrics_table

    return metrics_table(_read_predictions(result), replicates=replicates)


def compare(
    results: Iterable[Run] | Mapping[str, Mapping[object, pd.DataFrame]],
    metric: str = "roc_auc",
    *,
    replicates: int = 1000,
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
    return pairwise_table(results, metric, replicates=replicates)


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
    table = pd.json_normalize([_read_row(path) for path in list_runs(dataset)])
    table = table.rename(columns=lambda name: name.removesuffix(".value"))
    first = [*COLUMNS, *FACTS_OF_RUN]
    further = [
        name
        for kind in ("parameters.", "facts.", "metrics.")
        for name in sorted(table.columns)
        if name.startswith(kind)
    ]
    table = table.reindex(columns=[*first, *further])
    return table.sort_values("start_s", kind="stable", ignore_index=True).drop(columns="start_s")


def _read_row(path: Path) -> dict:
    # a name that is not UTF-8
    place = f"{path.parent.name}/{path.name}".encode("utf-8", "backslashreplace").decode()
    row = dict.fromkeys(COLUMNS, "") | {"run": place}
    try:
        run = Run(path)
    except UserError as error:
        dataset = path.parent.name
        return row | {"dataset": dataset, "status": "damaged", "problem": str(error)}
    damage = run.problem if run.status == "done" else ""
    metrics, problem = _read_metrics(path)
    for name, value in metrics.items():
        metrics[name] = value if isinstance(value, dict) else {"value": value}
    return {
        "run": place,
        "dataset": run.parameters.get("dataset", ""),
        "model": run.model,
        "variant": run.variant,
        "seed": run.seed,
        "draw": run.draw,
        "status": "damaged" if damage else run.status,
        "problem": str(damage or run.info.get("error", "") or problem),
        **{name: run.info.get(name) for name in FACTS_OF_RUN},
        "parameters": run.parameters,
        "facts": run.facts,
        "metrics": metrics,
    }


def _read_metrics(path: Path) -> tuple[dict, str]:
    """metrics.json, or the metrics of the test predictions where notebook 04 has not run; and what
    is wrong with them.
    """
    if (path / "metrics.json").is_file():
        try:
            return read_json(path / "metrics.json"), ""
        except UserError as error:
            return {}, str(error)
    if not (path / "predictions.parquet").is_file():
        return {}, ""
    from vitlab.evaluation import metrics_table

    try:
        table = metrics_table(pd.read_parquet(path / "predictions.parquet"), replicates=0)
    except Exception as error:  # a damaged file becomes a note in the table
        return {}, f"predictions.parquet cannot be scored: {type(error).__name__}: {error}"
    return dict(zip(table["metric"], table["value"], strict=True)), ""


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
        known = [name for name in table.columns if table[name].notna().any()]
        names = ", ".join(f"`{name}`" if "." in name else name for name in known)
        raise UserError(
            f"cannot keep the runs with {condition!r} ({type(error).__name__}). Columns: {names}"
        ) from error


def varied_columns(table: pd.DataFrame) -> list[str]:
    """The first MAX_VARIED columns in which these runs differ by choice: model and parameters."""
    parameters = [name for name in table if name.startswith("parameters.")]
    candidates = [name for name in parameters if name.partition(".")[2] not in ALWAYS]
    varied = [name for name in ("model", *candidates) if table[name].map(str).nunique() > 1]
    return varied[:MAX_VARIED]

"""What a batch would cost, before it runs: measured seconds where a task has run before, counted FLOPs where a notebook trains.

time = FLOPs / (rate of this machine's matrix products x UTILISATION), and the same for a GPU that everybody knows. That is good
enough to choose between now, tonight and another machine, not better: a model of many small operations is slower, a notebook
does more than its training, and early stopping may end one sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vitlab.batch.plan import Task
from vitlab.errors import UserError

UTILISATION = 0.4  # share of the rate of plain matrix products that a training reaches; see measure_speed for how ours do
REFERENCE = "NVIDIA A100"
REFERENCE_FLOPS_PER_S = {"bf16": 312e12, "fp16": 312e12, "auto": 312e12, "fp32": 19.5e12}  # peaks, from its data sheet
TRAINS = {"dataset", "model", "epochs", "learning_rate"}  # a notebook that declares all of these trains one model
LEAVES_COST_ALONE = {"seed", "run_name"}


def estimate_batch(
    tasks: Sequence[Task], stale: Sequence[int], measured: Sequence[float | None], call: Callable
) -> dict[str, Any]:
    """One record a task, how fast this machine is in each precision, and totals over the tasks to run (`stale`).

    measured: seconds each task took when it last ended well. call: calls `module:function` where the heavy libraries are loaded.
    Keys of a record: seconds (measured, else counted, else None), measured (whether), flops, images, epochs, precision,
    reference_s (on REFERENCE, of the training alone) and problem (why a training could not be counted).
    ValueError for training arguments that do not fit together.
    """
    known: dict[str, dict] = {}
    speeds: dict[str, dict] = {}
    records = []
    for number, (task, seconds) in enumerate(zip(tasks, measured, strict=True)):
        record = {"seconds": seconds, "measured": seconds is not None, "flops": None, "reference_s": None, "problem": ""}
        if number in stale and set(task.step.declared) >= TRAINS:
            parameters = {
                name: value for name, value in (task.step.declared | task.parameters).items() if name not in LEAVES_COST_ALONE
            }
            key = repr(sorted(parameters.items()))
            if key not in known:
                known[key] = _ask(task, parameters, call)
            record |= known[key]
            if record["flops"] is not None:
                precision = record["precision"]
                if precision not in speeds:
                    speeds[precision] = call("vitlab.training.cost:measure_speed", precision)
                record |= _time_training(record, speeds[precision])
        records.append(record)
    return {"tasks": records, "speeds": list(speeds.values()), "totals": _sum_up([records[number] for number in stale])}


def _ask(task: Task, parameters: dict[str, Any], call: Callable) -> dict[str, Any]:
    try:
        return call("vitlab.training.cost:estimate_training", parameters)
    except ValueError as error:
        raise UserError(f"{task.label}: {error}") from error


def _time_training(record: dict[str, Any], speed: dict[str, Any]) -> dict[str, Any]:
    here = {}
    if not record["measured"]:
        rate = speed["flops_per_s"]
        here = {"seconds": record["flops"] / (rate * UTILISATION)} if rate else {"problem": speed["problem"]}
    peak = REFERENCE_FLOPS_PER_S[record["precision"]]
    return here | {"reference_s": record["flops"] / (peak * UTILISATION)}


def _sum_up(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tasks": len(records),
        "seconds": sum(record["seconds"] or 0 for record in records),
        "without_seconds": sum(record["seconds"] is None for record in records),
        "flops": sum(record["flops"] or 0 for record in records),
        "reference_s": sum(record["reference_s"] or 0 for record in records),
    }

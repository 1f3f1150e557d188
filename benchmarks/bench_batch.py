"""What a batch costs over its bare notebooks, how soon a finished one is seen to be finished, and
what a second worker gives.

- overhead: the chain of a batch file by `vitlab batch`, against the same notebooks with the same
  parameters one by one through papermill (`bare`), and against their code cells in one Python
  process with each figure saved as a PNG (`script`), each in a fresh reports folder. The script
  pays for its imports once and starts no kernel: nothing can be leaner.
- second: `vitlab batch` once more on a batch that is done, whole command.
- workers: 64 tiny notebooks on one worker and on two.

The sides alternate; what counts is the ratio of their medians. CPU seconds are shown beside the
time on the clock: where the two differ much, the machine was busy with other things. `tiny` shows
where the time of a tiny notebook goes.

    python benchmarks/bench_batch.py [overhead] [second] [workers] [tiny] [--batch FILE]
        [--repeats N] [--scheduler ADDRESS]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from records import record, write_records

from vitlab.batch import load_batch, plan_tasks
from vitlab.notebook import read_cells

HERE = Path(__file__).parent
BARS = {"bare": "<= 1.05", "script": "<= 1.10", "second": "<= 1", "workers": ">= 1.8"}
SECOND = 5.0  # seconds that a call on a finished batch may take
TINY = 64
CLI = [sys.executable, "-c", "from vitlab.cli import app; app()", "batch"]
SCRIPT_HEAD = """
import os, pathlib
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
plt.rcParams["figure.max_open_warning"] = 0
figures = pathlib.Path(os.environ["VITLAB_REPORTS"], "figures")
figures.mkdir()

def run(source, name):
    exec(compile(source, name, "exec"), {"__name__": "__main__"})
    for number in plt.get_fignums():
        plt.figure(number).savefig(figures / f"{name}-{number}.png", bbox_inches="tight")
    plt.close("all")
"""
TINY_CELLS = (
    "seed = 0  # of the numbers drawn",
    "import numpy\nnumpy.random.default_rng(seed).random(1000).sum()",
)


def write_script(batch: Path, path: Path) -> None:
    """The chain as one script: for each task its code cells in a namespace of their own."""
    parts = [SCRIPT_HEAD]
    for task in plan_tasks(load_batch(batch)):
        code = []
        for cell in read_cells(task.step.source):
            if cell["cell_type"] == "code":
                code.append(cell["source"])
                if "parameters" in cell["tags"]:
                    code += [f"{name} = {value!r}" for name, value in task.parameters.items()]
        source = "\n".join(code)
        parts.append(f"run({source!r}, {task.label!r})")
    path.write_text("\n".join(parts), encoding="utf-8")


def write_calls(batch: Path, path: Path) -> None:
    """The chain as calls of papermill, one process a notebook, the way one would do it by hand."""
    calls = []
    for number, task in enumerate(plan_tasks(load_batch(batch))):
        words = [str(task.step.source), f"{number}.ipynb", "-k", "python3", "--no-progress-bar"]
        for name, value in task.parameters.items():
            words += ["-p" if not isinstance(value, str) else "-r", name, str(value)]
        calls.append([sys.executable, "-m", "papermill", *words])
    head = "import os, subprocess\nroot = os.environ['VITLAB_REPORTS']\n"
    loop = "    call[4] = os.path.join(root, call[4])\n    subprocess.run(call, check=True)\n"
    path.write_text(f"{head}for call in {calls!r}:\n{loop}", encoding="utf-8")


def write_tiny(folder: Path) -> Path:
    """A batch of TINY notebooks that do next to nothing."""
    first, second = TINY_CELLS
    cell = {"cell_type": "code", "execution_count": None, "outputs": []}
    cells = [cell | {"id": "a", "source": first, "metadata": {"tags": ["parameters"]}}]
    cells += [cell | {"id": "b", "source": second, "metadata": {}}]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "tiny.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    file = folder / "tiny.yml"
    file.write_text(
        f"grid: {{seed: {list(range(TINY))}}}\nchain: [{{notebook: tiny}}]\n", encoding="utf-8"
    )
    return file


def time_command(command: list[str], reports: str | None = None) -> dict[str, float]:
    """Seconds on the clock, and of the processor, of a command that keeps its runs in `reports`, by
    default a fresh folder.
    """
    with tempfile.TemporaryDirectory() as fresh:
        start, cpu = time.perf_counter(), count_cpu_seconds()
        environment = {**os.environ, "VITLAB_REPORTS": reports or fresh}
        result = subprocess.run(
            command, env=environment, cwd=HERE.parent, capture_output=True, text=True
        )
        times = {"seconds": time.perf_counter() - start, "CPU seconds": count_cpu_seconds() - cpu}
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}")
    return times


def count_cpu_seconds() -> float:
    """Of all processes started from here that have ended, and those that they started."""
    times = os.times()
    return times.children_user + times.children_system


def compare(sides: dict[str, list[str]], repeats: int) -> dict[str, float]:
    """The median of the seconds of each side; the sides take turns, and the first one changes."""
    times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in list(sides) if repeat % 2 == 0 else list(sides)[::-1]:
            times[side].append(time_command(sides[side]))
            shown = (f"{value:8.1f} {metric}" for metric, value in times[side][-1].items())
            print(f"{repeat + 1}. {side:10}", *shown, flush=True)
    return {side: statistics.median(run["seconds"] for run in runs) for side, runs in times.items()}


def measure_overhead(batch: Path, repeats: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        bare, script = Path(folder) / "bare.py", Path(folder) / "chain.py"
        write_calls(batch, bare)
        write_script(batch, script)
        python = [sys.executable]
        seconds = compare(
            {
                "batch": [*CLI, str(batch)],
                "bare": [*python, str(bare)],
                "script": [*python, str(script)],
            },
            repeats,
        )
    case = f"{batch.name}: {len(plan_tasks(load_batch(batch)))} notebooks, median of {repeats}"
    peers = {
        "bare": "papermill, one notebook after the other",
        "script": "the same cells in one script",
    }
    return [
        record(
            case if side == "script" else f"{case}, bare",
            "seconds",
            seconds["batch"],
            seconds[side],
            name,
            seconds["batch"] / seconds[side],
            BARS[side],
        )
        for side, name in peers.items()
    ]


def measure_second(batch: Path) -> list[dict]:
    """The batch is laid down as finished, rather than run: what a second call looks at is files,
    and whether they still fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_tiny(Path(folder))
        reports = str(Path(folder, "reports"))
        for file in (tiny, batch):
            mark_as_done(file, Path(reports))
        tiny_again, again = (
            [time_command([*CLI, str(file)], reports)["seconds"] for _ in range(3)]
            for file in (tiny, batch)
        )
    cases = {
        f"second call on {TINY} finished notebooks": tiny_again,
        f"second call on {batch.name}, finished": again,
    }
    return [
        record(
            case,
            "seconds",
            statistics.median(times),
            SECOND,
            "the bar",
            statistics.median(times) / SECOND,
            BARS["second"],
        )
        for case, times in cases.items()
    ]


def mark_as_done(batch: Path, reports: Path) -> None:
    """Write what a finished batch leaves behind: its state, its executed copies, and its runs,
    marked as done.
    """
    from vitlab.batch.fingerprint import fingerprint_tasks
    from vitlab.batch.state import BatchState

    before = os.environ.get("VITLAB_REPORTS")
    os.environ["VITLAB_REPORTS"] = str(reports)
    try:
        from vitlab.data import data_version

        loaded = load_batch(batch)
        tasks = plan_tasks(loaded)
        state = BatchState(loaded, tasks)
        for number in state.find_stale(fingerprint_tasks(tasks, data_version), force=True):
            copy = reports / tasks[number].path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text("{}")
            if tasks[number].run:
                (reports / tasks[number].run / "run.json").write_text('{"status": "done"}')
            state.settle(number, {"status": "done", "seconds": 1.0})
    finally:
        (
            os.environ.pop("VITLAB_REPORTS")
            if before is None
            else os.environ.update(VITLAB_REPORTS=before)
        )


def measure_workers(repeats: int, scheduler: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        tiny = str(write_tiny(Path(folder)))
        sides = {"1 worker": [*CLI, tiny], "2 workers": [*CLI, tiny, "--workers", "2"]}
        if scheduler:
            sides["Dask"] = [*CLI, tiny, "--scheduler", scheduler]
        seconds = compare(sides, repeats)
    one, two = seconds["1 worker"], seconds["2 workers"]
    if scheduler:
        print(
            f"on the workers of {scheduler}: {one / seconds['Dask']:.2f} times faster than one"
            " worker here"
        )
    case = f"{TINY} tiny notebooks, median of {repeats}"
    return [
        record(
            case, "seconds, one worker over two", two, one, "one worker", one / two, BARS["workers"]
        )
    ]


def show_tiny(times: int = 8) -> None:
    """Median seconds of the stages of a tiny notebook, in one process, one after the other."""
    from nbclient.client import NotebookClient
    from papermill.clientwrap import PapermillNotebookClient

    from vitlab.batch.execute import Execution
    from vitlab.batch.run import kernel_environment
    from vitlab.kernels import WarmProcess

    stages: dict[str, list[float]] = {}

    def watch(owner, method: str, name: str) -> None:
        inner = getattr(owner, method)

        def timed(*arguments, **options):
            start = time.perf_counter()
            try:
                return inner(*arguments, **options)
            finally:
                stages.setdefault(name, []).append(time.perf_counter() - start)

        setattr(owner, method, timed)

    watch(NotebookClient, "start_new_kernel", "fork the kernel")
    watch(NotebookClient, "start_new_kernel_client", "until it answers")
    watch(PapermillNotebookClient, "papermill_execute_cells", "its cells")
    watch(NotebookClient, "_cleanup_kernel", "shut it down")
    watch(Execution, "run", "all of it")
    with tempfile.TemporaryDirectory() as folder, kernel_environment(), WarmProcess() as warm:
        source = write_tiny(Path(folder)).with_suffix(".ipynb")
        warm.preload(["numpy"])
        warm.ask("os:getpid")
        cpu = time.process_time()
        for seed in range(times):
            Execution(source, Path(folder, "out", "tiny.ipynb"), {"seed": seed}, warm).run()
        cpu = (time.process_time() - cpu) / times
    for name, seconds in stages.items():
        print(f"{name:20} {statistics.median(seconds):6.2f} s")
    print(f"{'CPU of the batch':20} {cpu:6.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        choices=["overhead", "second", "workers", "tiny", []],
        help="default: all but tiny",
    )
    parser.add_argument(
        "--batch",
        type=Path,
        default=HERE / "batch_digits.yml",
        help="the chain (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="how often each side runs (default: %(default)s)"
    )
    parser.add_argument(
        "--scheduler", default="", help="a Dask scheduler on which the tiny notebooks run as well"
    )
    options = parser.parse_args()
    parts = options.parts or ["overhead", "second", "workers"]
    if "tiny" in parts:
        show_tiny()
    records = []
    records += measure_second(options.batch) if "second" in parts else []
    records += measure_workers(options.repeats, options.scheduler) if "workers" in parts else []
    records += measure_overhead(options.batch, options.repeats) if "overhead" in parts else []
    if records:
        write_records("batch", records)


if __name__ == "__main__":
    main()
